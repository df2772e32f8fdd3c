"""Metrics, confidence intervals, significance tests, plots, and comparisons of runs."""
