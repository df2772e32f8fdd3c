"""How TensorFlow uses the machine; settled before its first operation."""

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


def check_shares(devices: int | None, pictures: Mapping[str, int]) -> None:
    """Checks that several devices can share every batch of these splits evenly; Keras's `fit` fails where they cannot.

    Raises:
        ConfigError: a split whose last batch does not divide.
    """
    odd = [f"{split} has {count}" for split, count in pictures.items() if devices and count % devices]
    if odd:
        raise ConfigError(
            f"runtime.devices: {devices} devices share every batch evenly, so every split's number of pictures must be "
            f"a multiple of {devices}: {', '.join(odd)}. Set data.limit, or train on one device"
        )


def apply(runtime: Runtime) -> AbstractContextManager[Any]:
    """Sets what can only be set once in a process, before anything runs.

    Returns:
        The context to build and train in: the strategy's where several devices share the batches.

    Raises:
        ConfigError: this machine cannot do what the configuration asks for.
        RuntimeError: TensorFlow has already started with other settings.
    """
    tf.get_logger().setLevel("ERROR")  # it warns of retracing where a last, smaller batch makes it right
    if resource is not None:  # every shard of stored activations is an open file
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):  # a limit that the system does not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if runtime.threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(runtime.threads)
        tf.config.threading.set_inter_op_parallelism_threads(runtime.threads)
    gpus = tf.config.list_physical_devices("GPU")
    if runtime.precision == "mixed_float16" and not gpus:
        raise ConfigError(
            "runtime.precision: mixed_float16 needs a GPU, and TensorFlow sees none here. "
            "Allowed on this machine: float32, mixed_bfloat16"
        )
    if runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    if runtime.devices is None:
        return nullcontext()
    devices = [device.name for device in tf.config.list_logical_devices("GPU" if gpus else "CPU")]
    if len(devices) < runtime.devices:
        raise ConfigError(
            f"runtime.devices: TensorFlow sees {len(devices)} ({', '.join(devices)}). Received: {runtime.devices}"
        )
    strategy = tf.distribute.MirroredStrategy(devices[: runtime.devices])
    scope: AbstractContextManager[Any] = strategy.scope()
    return scope
