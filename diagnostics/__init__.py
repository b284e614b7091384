"""What is measured: pairs, batches, one forward pass, measures, the run log."""
