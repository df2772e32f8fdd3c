"""TensorFlow's settings for threads, precision, determinism and devices, applied before its first operation."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import tensorflow as tf

from experiments.config.schema import Runtime
from experiments.errors import ConfigError
from experiments.system import hardware, private_api

_log = logging.getLogger(__name__)


def threads() -> int:
    """Return the number of threads of an operation in this process."""
    return tf.config.threading.get_intra_op_parallelism_threads() or _default_threads()


def _default_threads() -> int:
    """Return TensorFlow's own number: from the environment, or the cores that the process may use (taskset, SLURM)."""
    given = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else hardware.cores()


def _apply_threads(count: int | None) -> None:
    """Set the number of threads, for None the number of cores; TensorFlow accepts it before its first operation only.

    Raises:
        ConfigError: TensorFlow has started with another number.
    """
    settings = tf.config.threading
    started = threads()
    try:
        if count is not None:
            settings.set_intra_op_parallelism_threads(count)
            settings.set_inter_op_parallelism_threads(count)
    except RuntimeError:
        if started != count:
            raise ConfigError(
                f"runtime.threads: TensorFlow has started in this process with {started} threads, which cannot be "
                "changed any more. Allowed here: that number. Else restart the kernel, or use a new process. "
                f"Received: {count}"
            ) from None
    if count is None and started != _default_threads():
        _log.warning(
            "runtime.threads: TensorFlow has started in this process with %d threads (of %d cores), which cannot be "
            "changed any more: this run uses as many. Restart the kernel or use a new process for another number",
            started, hardware.cores(),
        )  # fmt: skip


def apply(runtime: Runtime) -> AbstractContextManager[Any]:
    """Apply the settings that can only be set once per process, before TensorFlow runs its first operation.

    Returns:
        The context in which to build and train the model: the scope of a MirroredStrategy if several devices share the
        batches, otherwise one that does nothing.

    Raises:
        ConfigError: this machine lacks what the configuration requires, or TensorFlow has started with another number
            of threads in this process.
    """
    tf.get_logger().setLevel("ERROR")  # It warns of retracing, which a smaller last batch makes necessary.
    # Every shard of the feature cache is an open file, so the limit of open files is raised.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # The system may refuse to raise the limit.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _apply_threads(runtime.threads)
    gpus = tf.config.list_physical_devices("GPU")
    if runtime.precision == "mixed_float16" and not gpus:
        raise ConfigError(
            "runtime.precision: mixed_float16 needs a GPU, and TensorFlow finds none here. "
            "Allowed on this machine: float32, mixed_bfloat16"
        )
    if runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    elif private_api.is_deterministic():
        _log.warning(
            "runtime.deterministic: an earlier run of this process has made TensorFlow's operations deterministic, and "
            "that holds until the process ends: this run's are deterministic, too, and slower. Restart the kernel or "
            "use a new process for runtime.deterministic=false"
        )
    if runtime.devices is None:
        return nullcontext()
    devices = [device.name for device in tf.config.list_logical_devices("GPU" if gpus else "CPU")]
    if len(devices) < runtime.devices:
        raise ConfigError(
            f"runtime.devices: TensorFlow finds {len(devices)} ({', '.join(devices)}). Received: {runtime.devices}"
        )
    keras.utils.clear_session()  # Layer names begin anew, see `build`, which cannot do it in a strategy's scope.
    strategy = tf.distribute.MirroredStrategy(devices[: runtime.devices])
    scope: AbstractContextManager[Any] = strategy.scope()
    return scope
