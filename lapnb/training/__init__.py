"""Data, networks, training."""
