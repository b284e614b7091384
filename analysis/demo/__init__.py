"""The embedded default's runs side by side."""
