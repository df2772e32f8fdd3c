"""Launchers of jobs: on this machine, on a Ray cluster, on SLURM."""
