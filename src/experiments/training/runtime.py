"""TensorFlow's settings for threads, precision, determinism and devices, applied before its first operation."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import tensorflow as tf

if sys.platform != "win32":
    import resource
else:
    resource = None

from experiments.config.schema import Runtime
from experiments.errors import ConfigError


def check_shares(devices: int | None, images: Mapping[str, int]) -> None:
    """Check that several devices can share every batch of these splits evenly; otherwise Keras's `fit` would fail.

    Args:
        devices: the number of devices that share a batch; None for one device.
        images: maps each split to its number of images.

    Raises:
        ConfigError: the number of images of a split is not a multiple of `devices`.
    """
    odd = [f"{split} has {count}" for split, count in images.items() if devices and count % devices]
    if odd:
        raise ConfigError(
            f"runtime.devices: {devices} devices share every batch evenly, so every split's number of images must be "
            f"a multiple of {devices}: {', '.join(odd)}. Set data.limit, or train on one device"
        )


def apply(runtime: Runtime) -> AbstractContextManager[Any]:
    """Apply the settings that can only be set once per process, before TensorFlow runs its first operation.

    Returns:
        The context in which to build and train the model: the scope of a MirroredStrategy if several devices share the
        batches, otherwise one that does nothing.

    Raises:
        ConfigError: this machine lacks what the configuration requires.
        RuntimeError: TensorFlow has already started with other settings.
    """
    tf.get_logger().setLevel("ERROR")  # It warns of retracing, which a smaller last batch makes necessary.
    if resource is not None:  # Every shard of the feature cache is an open file, so the limit of open files is raised.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):  # The system may refuse to raise the limit.
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if runtime.threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(runtime.threads)
        tf.config.threading.set_inter_op_parallelism_threads(runtime.threads)
    gpus = tf.config.list_physical_devices("GPU")
    if runtime.precision == "mixed_float16" and not gpus:
        raise ConfigError(
            "runtime.precision: mixed_float16 needs a GPU, and TensorFlow finds none here. "
            "Allowed on this machine: float32, mixed_bfloat16"
        )
    if runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    if runtime.devices is None:
        return nullcontext()
    devices = [device.name for device in tf.config.list_logical_devices("GPU" if gpus else "CPU")]
    if len(devices) < runtime.devices:
        raise ConfigError(
            f"runtime.devices: TensorFlow finds {len(devices)} ({', '.join(devices)}). Received: {runtime.devices}"
        )
    strategy = tf.distribute.MirroredStrategy(devices[: runtime.devices])
    scope: AbstractContextManager[Any] = strategy.scope()
    return scope
