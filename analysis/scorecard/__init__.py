"""Which predictor told which pairs would lose chosen likelihood."""
