"""Execution of commands in the process of a notebook or a script, which is afterwards what it was before."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from experiments.errors import ConfigError, DataError
from experiments.system import paths, redaction, signals
from experiments.system.private_api import without_hydra
from experiments.train import error_text

VARIABLE = "HYDRA_FULL_ERROR"  # with it, Hydra raises its errors instead of printing them


@contextmanager
def executing(command: Sequence[str]) -> Iterator[None]:
    """Execute a command of `train` in the block.

    Afterwards the process has the command line, directory, streams, signal handlers, log handlers and precision of
    Keras that it had before.

    Args:
        command: its arguments, which logs and tags record.

    Raises:
        ConfigError: as on the command line; also in place of Hydra's errors and of messages with which a process ends.
        KeyboardInterrupt: Ctrl-C, or a notebook's stop button; its message says how to go on.
    """
    paths.begin_run()
    try:
        with (
            signals.interruptible(),
            redaction.redacting(),
            without_hydra(),
            _unchanged_process(),
            unchanged_precision(),
        ):
            sys.argv = ["train", *command]
            yield
    except KeyboardInterrupt as stop:  # raised anew, as the traceback through TensorFlow is pages long
        raise KeyboardInterrupt("\n".join(getattr(stop, "__notes__", ["No run had begun"]))) from None
    except SystemExit as stop:
        if not isinstance(stop.code, str):
            raise
        raise ConfigError(stop.code) from None
    except (ConfigError, DataError) as error:  # its message is enough: the frames of this package are left out
        raise error.with_traceback(None) from None
    except Exception as error:
        text = error_text(error, command)
        if text is None:
            raise
        raise ConfigError(text) from None


@contextmanager
def _unchanged_process() -> Iterator[None]:
    """Restore command line, directory, environment and log handlers after the block."""
    arguments, level, handlers = sys.argv, logging.root.level, list(logging.root.handlers)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        with contextlib.chdir(os.getcwd()), warnings.catch_warnings():
            # MLflow imports a progress bar that would need widgets; ours does not.
            warnings.filterwarnings("ignore", "IProgress not found")
            yield
    finally:
        sys.argv = arguments
        for handler in [handler for handler in logging.root.handlers if handler not in handlers]:
            handler.close()
        logging.root.handlers, logging.root.level = handlers, level
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


@contextmanager
def unchanged_precision() -> Iterator[None]:
    """Restore the precision of Keras after the block, which holds for all layers that this process creates."""
    before = sys.modules["keras"].config.dtype_policy() if "keras" in sys.modules else None
    try:
        yield
    finally:
        if keras := sys.modules.get("keras"):
            keras.config.set_dtype_policy(before or keras.config.floatx())
