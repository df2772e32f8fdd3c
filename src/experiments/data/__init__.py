"""Where pictures come from, whether they are sound, and how they are read."""
