"""Comparisons of runs: groups over seeds and folds, significance of differences, text, figures and page."""
