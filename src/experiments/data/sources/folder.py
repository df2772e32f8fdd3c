"""Data source for an existing folder of images."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from experiments.data.listing import LAYOUTS
from experiments.errors import ConfigError


def folder(*, root: str | Path, cache: Path) -> Path:
    """Return the absolute path of an existing folder of images, the content of which the manifest checks.

    Args:
        root: The folder, absolute, relative to the working directory, or beginning with "~".
        cache: Not used; every data source receives it.

    Raises:
        ConfigError: If `root` is not an existing folder.
    """
    return existing("data.root", root, f"a folder laid out as {LAYOUTS}")


def existing(key: str, place: str | Path, allowed: str, *, is_file: bool = False) -> Path:
    """Return the absolute path of an existing folder, or file; `place` may begin with "~".

    Raises:
        ConfigError: If there is none; the message has the `key`, what it may name (`allowed`) and similar names.
    """
    path = Path(os.path.abspath(os.path.expanduser(place)))
    if str(place) and (os.path.isfile(path) if is_file else os.path.isdir(path)):  # no error for an impossible name
        return path
    if not str(place):
        problem = "is empty"
    elif os.path.exists(path):
        problem = "is not a file" if is_file else "is not a folder (if it is an archive, unpack it)"
    else:
        problem = f"does not exist{_similar(path, is_file)}"
    raise ConfigError(f"{key} {problem}. Allowed: {allowed}. Received: {str(place)!r}")


def _similar(path: Path, is_file: bool) -> str:
    """Return a phrase with the names that are similar to the first missing part of a path."""
    missing = path
    while not os.path.isdir(missing.parent):
        missing = missing.parent
    is_last = missing == path
    try:
        names = [entry.name for entry in os.scandir(missing.parent) if entry.is_dir() != (is_file and is_last)]
    except OSError:
        return ""
    lowered = {name.lower(): name for name in names}
    similar = [str(missing.parent / lowered[name]) for name in difflib.get_close_matches(missing.name.lower(), lowered)]
    return f" (did you mean {' or '.join(repr(name) for name in similar)}?)" if similar else f" (no {str(missing)!r})"
