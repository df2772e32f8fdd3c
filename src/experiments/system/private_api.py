"""Private API of Hydra, Keras and TensorFlow that this project needs, in one place; each has a test of its own.

No public API offers any of these. A library that changes one of them fails tests/system/test_private_api.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.utils import get_args_parser

if TYPE_CHECKING:
    import keras

__all__ = [
    "KERAS_GET_FILE",
    "CachingConfigRepository",
    "Callbacks",
    "flatten_layers",
    "get_args_parser",
    "is_deterministic",
]

KERAS_GET_FILE = "keras.src.utils.file_utils.get_file"  # through which keras.applications download their weights


def flatten_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return a layer or model and all layers inside it, at any depth."""
    return list(layer._flatten_layers())


def is_deterministic() -> bool:
    """Return whether TensorFlow's operations were made deterministic in this process."""
    from tensorflow.python.framework.config import is_op_determinism_enabled

    return bool(is_op_determinism_enabled())
