"""How TensorFlow uses the machine; called before its first operation."""

from __future__ import annotations

import tensorflow as tf

from experiments.schema import Runtime


def apply(runtime: Runtime) -> None:
    """Sets what can only be set once in a process, before anything runs.

    Raises:
        RuntimeError: TensorFlow has already started with other settings.
    """
    tf.get_logger().setLevel("ERROR")  # it warns of retracing where a last, smaller batch makes it right
    if runtime.threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(runtime.threads)
        tf.config.threading.set_inter_op_parallelism_threads(runtime.threads)
