"""Comparisons, verdicts and plots of recorded rows. Nothing here trains a table."""
