"""Metrics with confidence intervals, decisions by a threshold, scores per class, checks after a training."""
