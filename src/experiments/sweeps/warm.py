"""What every job needs, imported once: the parent of a sweep's processes loads this and runs nothing of it."""

from experiments.quiet import quiet_start

with quiet_start():
    import matplotlib.backends.backend_agg

    from experiments import run, tracking
    from experiments.sweeps import look

    tracking.load()

__all__ = ["look", "matplotlib", "run"]
