"""Runs notebooks with papermill, renders HTML, judges gates, writes what CI reads."""
