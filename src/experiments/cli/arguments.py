"""Command-line arguments that several verbs take, and what they do with errors."""

from __future__ import annotations

import argparse
import errno
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.errors import ConfigError, DataError
from experiments.system import machine_errors
from experiments.system.paths import default_outputs


@contextmanager
def exit_on_error(*others: type[Exception]) -> Iterator[None]:
    """End the process with the message of a ConfigError, a DataError, one of `others`, or a full disk or memory.

    Also usable as a decorator.
    """
    try:
        yield
    except Exception as error:
        text = machine_errors.exhausted(error)
        if text is None and not isinstance(error, (ConfigError, DataError, *others)):
            raise
        sys.exit(text or _text(error))


def _text(error: Exception) -> str:
    """Return the message of an error, with the path of one that the operating system raises."""
    if not isinstance(error, OSError) or not error.filename:
        return str(error)
    text = f"{error.filename}: {error.strerror}"
    path, outputs = Path(error.filename), default_outputs()
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not path.is_relative_to(outputs):
        return text
    inside = path.relative_to(outputs).parts
    if len(inside) > 2 and inside[0] in ("runs", "sweeps"):
        return f"{text}. It is in the folder of a run or sweep; inspect and report write elsewhere with --output PATH"
    return f"{text}. Outputs are written to another folder with EXPERIMENTS_HOME=FOLDER"


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument RUN and the option --uri, the MLflow tracking store that contains it."""
    parser.add_argument(
        "run", metavar="RUN", help="its folder, MLflow id, the beginning of that, name, or the end of that"
    )
    add_uri(parser)


def add_uri(parser: argparse.ArgumentParser) -> None:
    """Add the option --uri, the MLflow tracking store that contains the named runs."""
    parser.add_argument(
        "--uri", help="MLflow tracking store (default: MLFLOW_TRACKING_URI, or this place's SQLite file)"
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add overrides, as `train` takes them."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train: augmentation=strong seed=1")


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    """Add the option --config-dir, as `train` takes it."""
    parser.add_argument("--config-dir", type=Path, help="folder with further choices, as train takes it")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the option --data, the folder that the images of runs were moved to."""
    parser.add_argument(
        "--data", type=folder, metavar="FOLDER", help="where the images are now (default: where they were)"
    )


def whole(lowest: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers from `lowest`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"must be a whole number of {lowest} or more. Received: {text!r}")
        return int(text)

    return parse


def number(allowed: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    """Return an argparse type for numbers that fit; `allowed` describes them in the error message."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not fits(value):
            raise argparse.ArgumentTypeError(f"must be {allowed}. Received: {text!r}")
        return value

    return parse


def folder(text: str) -> Path:
    """Return the path of an existing folder, as an argparse type."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"no such folder. Received: {text}")
    return Path(text)


def ending(suffix: str) -> Callable[[str], Path]:
    """Return an argparse type for paths that end in a suffix such as .png."""

    def parse(text: str) -> Path:
        if Path(text).suffix != suffix:
            raise argparse.ArgumentTypeError(f"must end in {suffix}. Received: {text!r}")
        return Path(text)

    return parse


positive = whole(1)
accuracy = number("an accuracy above 0, at most 1, such as 0.99", lambda value: 0 < value <= 1)
share = number("a share above 0, at most 1, such as 0.99", lambda value: 0 < value <= 1)
