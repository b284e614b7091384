"""The flag report: scores of pairs before training."""
