"""Score and flag pairs before training: the measures of every pair, the forecast of how its chosen answer will move."""
