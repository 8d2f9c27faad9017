"""Reads rows: comparisons, verdicts, plots. Trains no table."""
