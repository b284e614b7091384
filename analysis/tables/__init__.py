"""Numbers from run logs and score folders: no sentence, no figure."""
