"""The instrumented training step and what it records."""
