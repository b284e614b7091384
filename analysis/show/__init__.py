"""How a page looks and words itself."""
