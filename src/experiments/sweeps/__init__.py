"""Sweeps over configurations: Hydra sweeper and launchers, hyperparameter search, ladder sweeps, summaries."""
