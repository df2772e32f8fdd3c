"""Execution of commands in the process of a notebook or a script, which can go on with its own work afterwards.

Restored are the command line, the directory, standard streams, signal handlers, logging, Keras's settings, MLflow's
store and the garbage collector. What stays: the random states of Python, NumPy and Keras, which every run sets; the
variables EXPERIMENTS_CREDENTIALS, TF_CPP_MIN_LOG_LEVEL and KERAS_BACKEND; the limit of open files; TensorFlow's threads
and determinism. Because all of this belongs to the process, a call during that of another thread is an error.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import PIL.ImageFile

from experiments.errors import ConfigError, DataError
from experiments.system import keras_settings, paths, redaction, signals
from experiments.system.private_api import open_log_handlers, without_hydra
from experiments.tracking import connection, private_mlflow_api
from experiments.train import RAISES, error_text

_free = threading.Lock()  # held while a command is executed


@contextmanager
def executing(command: Sequence[str]) -> Iterator[None]:
    """Execute a command of `train` in the block; logs and tags record its arguments.

    Raises:
        ConfigError: as on the command line; also in place of Hydra's errors and of messages with which a process ends;
            or another thread executes a command.
        KeyboardInterrupt: Ctrl-C, or a notebook's stop button; its message says how to go on.
    """
    if not _free.acquire(blocking=False):
        raise ConfigError(
            "ex.train, sweep, compose and inspect: one call at a time in a process, and another thread is in one. Call "
            "it when that has ended, or in a process of its own"
        )
    try:
        paths.begin_run()
        with (
            signals.interruptible(),
            redaction.redacting(),
            without_hydra(),
            _unchanged_process(),
            unchanged_libraries(),
        ):
            sys.argv = ["train", *command]
            yield
    except KeyboardInterrupt as stop:  # raised anew, as the traceback through TensorFlow is pages long
        raise KeyboardInterrupt("\n".join(getattr(stop, "__notes__", ["No run had begun"]))) from None
    except SystemExit as stop:
        if not isinstance(stop.code, str):
            raise
        raise ConfigError(stop.code) from None
    except (ConfigError, DataError) as error:
        # Its message is enough. A copy, because `contextmanager` would restore the frames of Hydra in the error itself.
        raise copy.copy(error) from None
    except Exception as error:
        text = error_text(error, command)
        if text is None:
            raise
        raise ConfigError(text) from None
    finally:
        _free.release()


@contextmanager
def _unchanged_process() -> Iterator[None]:
    """Restore command line, directory, environment and log handlers after the block."""
    arguments, level, handlers = sys.argv, logging.root.level, list(logging.root.handlers)
    before = os.environ.get(RAISES)
    os.environ[RAISES] = "1"
    try:
        with contextlib.chdir(os.getcwd()), warnings.catch_warnings():
            # MLflow imports a progress bar that would need widgets; ours does not.
            warnings.filterwarnings("ignore", "IProgress not found")
            yield
    finally:
        sys.argv = arguments
        for handler in [handler for handler in logging.root.handlers if handler not in handlers]:
            handler.close()
        logging.root.handlers = handlers
        logging.root.setLevel(level)
        del os.environ[RAISES]
        if before is not None:
            os.environ[RAISES] = before


@contextmanager
def unchanged_libraries() -> Iterator[None]:
    """Restore after the block what the whole process shares.

    It is Keras's and Pillow's settings, MLflow's store and autologging, log handlers, and the garbage collector. All
    public functions and methods that load a library or read a tracking store need it.
    """
    before = sys.modules["keras"].config.dtype_policy() if "keras" in sys.modules else None
    settings, frozen = keras_settings.current(), gc.get_freeze_count()
    truncated = PIL.ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with connection.unchanged(), private_mlflow_api.without_autologging(), open_log_handlers():
            yield
    finally:
        if keras := sys.modules.get("keras"):
            keras_settings.restore(settings)
            keras.config.set_dtype_policy(before or keras.config.floatx())
        PIL.ImageFile.LOAD_TRUNCATED_IMAGES = truncated
        if not frozen:
            gc.unfreeze()  # `quiet_start` has frozen the user's objects, too, which may become garbage
