"""Keras's global settings: the same for all runs, whatever keras.json, the environment or a notebook has set.

They are no part of a run's configuration, but would change its results: the type of numbers, the order of an image's
axes, and the limits with which KERAS_MAX_EPOCHS and KERAS_MAX_STEPS_PER_EPOCH shorten every `fit` and `predict`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from experiments.errors import ConfigError

BACKEND, VARIABLE = "tensorflow", "KERAS_BACKEND"
# NAME of `keras.config.NAME` and `keras.config.set_NAME` -> its value in every run, which is Keras's default.
SETTINGS: dict[str, Any] = {
    "floatx": "float32", "epsilon": 1e-7, "image_data_format": "channels_last", "max_epochs": None,
    "max_steps_per_epoch": None,
}  # fmt: skip
_loaded_with: dict[str, Any] = {}  # the user's values, from keras.json and the environment
_log = logging.getLogger(__name__)


def choose_backend() -> None:
    """Let Keras load with TensorFlow; raise ConfigError if this process has loaded it with another backend."""
    if (keras := sys.modules.get("keras")) is None:
        os.environ[VARIABLE] = BACKEND
    elif (loaded := keras.config.backend()) != BACKEND:
        raise ConfigError(
            f"{VARIABLE}: this process has loaded Keras with another backend, which cannot be changed any more. "
            f"Allowed: {BACKEND}. Received: {loaded}. Set {VARIABLE}={BACKEND} before Keras is imported (in a "
            "notebook, restart the kernel first), or use a new process"
        )


def current() -> dict[str, Any]:
    """Return the present values of SETTINGS; empty if Keras is not loaded."""
    keras = sys.modules.get("keras")
    return {name: getattr(keras.config, name)() for name in SETTINGS} if keras else {}


def assign(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        getattr(sys.modules["keras"].config, f"set_{name}")(value)


def pin() -> dict[str, Any]:
    """Give SETTINGS the values of every run, if Keras is loaded, and return the user's values that were replaced."""
    before = current()
    if not before:
        return {}
    if not _loaded_with:
        _loaded_with.update(before)
    assign(SETTINGS)
    return {name: value for name, value in before.items() if value != SETTINGS[name]}


def restore(before: Mapping[str, Any]) -> None:
    """Give SETTINGS earlier values of `current`; if Keras was not loaded then, those that it was loaded with."""
    assign(before or _loaded_with)


def warn(replaced: Mapping[str, Any]) -> None:
    """Log which of the user's settings have no effect, as returned by `pin`."""
    for name, value in replaced.items():
        _log.warning(
            "Keras's %s=%s, from keras.json, the environment or a notebook, has no effect: every run has %s",
            name, value, SETTINGS[name],
        )  # fmt: skip
