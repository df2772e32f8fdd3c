"""Imports that every job of a sweep needs, loaded once by the fork server, which starts the jobs' processes."""

import warnings

from experiments.system.startup import quiet_start

with quiet_start():
    import matplotlib.backends.backend_agg
    from PIL import Image

    from experiments import run, train
    from experiments.sweeps import worker_tasks
    from experiments.tracking import mlflow_run, private_mlflow_api

    private_mlflow_api.preload()
    Image.preinit()
# Every process that multiprocessing starts executes `-m experiments.train` again up to main(), and would warn of it.
warnings.filterwarnings("ignore", "'experiments.train' found in sys.modules", RuntimeWarning)

__all__ = ["matplotlib", "mlflow_run", "run", "train", "worker_tasks"]
