"""Gradients of log-probs: of a whole side, of every pair, and what bounds them."""
