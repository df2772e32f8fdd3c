"""Files and arrays on disk: atomic writes, locks, the array cache."""
