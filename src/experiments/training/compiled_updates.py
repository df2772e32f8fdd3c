"""Compiled updates: an optimizer's updates of large variables by XLA, for training on CPUs.

XLA updates a variable in one pass over its memory, where Keras makes one for every operation of the optimizer. A step
of 16 images through the tutorial's head, with its 8,192 x 256 weights, takes 4.0 ms instead of 8.3 ms with RMSprop, 4.4
instead of 8.4 with Adam, 4.4 instead of 4.8 with SGD (2 cores; docs/benchmarks.md). `runtime.xla=false` turns it off.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from experiments.system.private_api import wrap_update_step

LARGE = 2**18  # number of elements of a variable: 1 MB of float32, about the size of a CPU core's own cache


def only_cpus() -> bool:
    """Return whether there are only CPUs, on which Keras's `jit_compile="auto"` does not use XLA."""
    return all(device.device_type == "CPU" for device in tf.config.list_physical_devices())


def compile_updates(optimizer: keras.optimizers.Optimizer) -> None:
    """Make an optimizer update large variables with XLA.

    Only Keras's own optimizers are changed: XLA may not support what another optimizer does in its update.
    """
    if type(optimizer).__module__.partition(".")[0] == "keras":
        wrap_update_step(optimizer, compiled_update)


def compiled_update(
    update: Callable[..., None], gradient: tf.Tensor, variable: tf.Variable, learning_rate: keras.Variable
) -> None:
    """Update a variable as `update` does, compiled if the variable is large."""
    if variable.shape.num_elements() < LARGE:
        update(gradient, variable, learning_rate)
    else:
        tf.function(lambda given: update(given, variable, learning_rate), jit_compile=True)(gradient)
