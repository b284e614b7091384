"""The run report: what one run did to its answers."""
