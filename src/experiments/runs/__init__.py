"""Run directories: what a run wrote, how it is resumed or repeated, checks of its results."""
