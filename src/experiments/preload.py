"""Imports that every job of a sweep needs, loaded once by the fork server, which starts the jobs' processes."""

from experiments.system.startup import quiet_start

with quiet_start():
    import matplotlib.backends.backend_agg
    from PIL import Image

    from experiments import run
    from experiments.sweeps import worker_tasks
    from experiments.tracking import mlflow_run, private_mlflow_api
    from experiments.train import run_planned

    private_mlflow_api.preload()
    Image.preinit()

__all__ = ["matplotlib", "mlflow_run", "run", "run_planned", "worker_tasks"]
