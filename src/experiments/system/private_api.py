"""Private API of Hydra, OmegaConf, Keras, TensorFlow and `logging` that this project needs; each has a test of its own.

No public API offers any of these. A library that changes one of them fails tests/system/test_private_api.py.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hydra._internal.callbacks import Callbacks as Callbacks
from hydra._internal.config_repository import CachingConfigRepository as CachingConfigRepository
from hydra._internal.utils import get_args_parser as get_args_parser
from hydra.core.global_hydra import GlobalHydra
from omegaconf import Container

if TYPE_CHECKING:
    import keras

KERAS_GET_FILE = "keras.src.utils.file_utils.get_file"  # through which keras.applications download their weights


def config_root(node: Container) -> Container:
    """Return the whole configuration that a node is part of."""
    return node._get_root()


@contextmanager
def without_hydra() -> Iterator[None]:
    """Set aside the Hydra of a job, or that of the user's own program, in the block, as there can be only one."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running


@contextmanager
def open_log_handlers() -> Iterator[None]:
    """Keep the log handlers of this process open in the block.

    `logging.config`, by which Hydra and MLflow configure logging, closes every handler that `logging` has listed.
    """
    references, names = vars(logging)["_handlerList"], vars(logging)["_handlers"]
    listed, named = list(references), dict(names)
    references.clear()
    names.clear()
    try:
        yield
    finally:
        references[:0] = listed
        names.update(named)


def flatten_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return a layer or model and all layers inside it, at any depth."""
    return list(layer._flatten_layers())


def is_deterministic() -> bool:
    """Return whether TensorFlow's operations were made deterministic in this process."""
    from tensorflow.python.framework.config import is_op_determinism_enabled

    return bool(is_op_determinism_enabled())


def wrap_update_step(optimizer: keras.optimizers.Optimizer, wrapper: Callable[..., None]) -> None:
    """Make an optimizer update each variable by `wrapper(update, gradient, variable, learning_rate)`.

    `update(gradient, variable, learning_rate)` is the optimizer's update before this call.
    """
    optimizer.update_step = functools.partial(wrapper, optimizer.update_step)


def variable_index(optimizer: keras.optimizers.Optimizer, variable: Any) -> int:
    """Return the position of the variable of an update among the variables that the optimizer was built with."""
    return int(optimizer._get_variable_index(variable))


def batch_counter(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """Return the variable that counts an optimizer's batches; the public `iterations` counts updates of the weights."""
    return optimizer._iterations


def accumulated_gradients(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the sums of the gradients since the last update of the weights, with `gradient_accumulation_steps`."""
    return list(optimizer._accumulated_gradients)


@contextmanager
def replaced_convolutions(layers: Sequence[keras.layers.Layer], convolution: Callable[..., Any]) -> Iterator[None]:
    """Compute the convolutions of layers by `convolution(direct, inputs, kernel)` inside the context.

    `direct(inputs, kernel)` is the layer's own operation, which is used again afterwards.
    """
    for layer in layers:
        layer.convolution_op = functools.partial(convolution, layer.convolution_op)
    try:
        yield
    finally:
        for layer in layers:
            del layer.convolution_op
