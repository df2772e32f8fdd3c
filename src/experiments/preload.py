"""Imports that every job of a sweep needs, loaded once by the fork server, which starts the jobs' processes."""

import signal

from experiments.system.startup import quiet_start

before = signal.getsignal(signal.SIGINT)
if before == signal.default_int_handler:  # Ctrl-C ends the fork server while it loads, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

with quiet_start():
    import matplotlib.backends.backend_agg
    from PIL import Image

    from experiments import run
    from experiments.sweeps import worker_tasks
    from experiments.tracking import mlflow_run, private_mlflow_api
    from experiments.train import run_planned

    private_mlflow_api.preload()
    Image.preinit()

signal.signal(signal.SIGINT, before)

__all__ = ["matplotlib", "mlflow_run", "run", "run_planned", "worker_tasks"]
