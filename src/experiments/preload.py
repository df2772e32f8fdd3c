"""What every job needs, imported once: the parent of a sweep's processes loads this and runs nothing of it."""

import warnings

from experiments.system.startup import quiet_start

with quiet_start():
    import matplotlib.backends.backend_agg
    from PIL import Image

    from experiments import run, tracking, train
    from experiments.sweeps import worker_tasks

    tracking.load()
    Image.preinit()
# A process that multiprocessing starts runs `-m experiments.train` once more up to its main().
warnings.filterwarnings("ignore", "'experiments.train' found in sys.modules", RuntimeWarning)

__all__ = ["matplotlib", "run", "train", "worker_tasks"]
