"""Tiny language models, their data, and pairs that models make themselves."""
