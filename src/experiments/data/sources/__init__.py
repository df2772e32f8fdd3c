"""Data sources: functions that make a data set available and return its root directory."""
