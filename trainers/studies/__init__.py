"""Many runs as one job: compare, ablate, the demo."""
