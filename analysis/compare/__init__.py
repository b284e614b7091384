"""The board: several objectives on the same pairs."""
