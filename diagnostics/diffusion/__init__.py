"""Denoisers (diffusion and flow models): what takes the place of a log-prob, and what is read and measured of them."""
