"""The Python API: runs, sweeps, comparisons and inspections as functions and objects, also for notebooks."""
