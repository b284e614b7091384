"""Runs without the flagged pairs beside runs without as many random ones."""
