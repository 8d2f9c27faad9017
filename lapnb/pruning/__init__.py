"""Pruning criteria, the layers that they look at, and masks."""
