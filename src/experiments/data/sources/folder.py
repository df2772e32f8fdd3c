"""Data source for an existing folder of images."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from experiments.data.listing import LAYOUTS
from experiments.errors import ConfigError


def folder(*, root: str | Path, cache: Path) -> Path:
    """Return the path of an existing folder of images.

    Args:
        root: The folder, absolute, relative to the working directory, or beginning with "~".
        cache: Not used, as a folder needs no download; every data source receives it.

    Returns:
        The folder's absolute path. The manifest checks its content.

    Raises:
        ConfigError: If `root` is not an existing folder; the message has similar names.
    """
    path = Path(os.path.abspath(os.path.expanduser(root)))
    if str(root) and os.path.isdir(path):  # unlike Path.is_dir, no error for an impossible name
        return path
    if not str(root):
        problem = "is empty"
    elif os.path.exists(path):
        problem = "is not a folder (if it is an archive, unpack it)"
    else:
        problem = f"does not exist{_similar(path)}"
    raise ConfigError(f"data.root {problem}. Allowed: a folder laid out as {LAYOUTS}. Received: {str(root)!r}")


def _similar(path: Path) -> str:
    """Return a phrase with names similar to the first missing part of a path.

    The names are those in the directory that would contain it.
    """
    missing = path
    while not os.path.isdir(missing.parent):
        missing = missing.parent
    try:
        names = [entry.name for entry in os.scandir(missing.parent) if entry.is_dir()]
    except OSError:
        return ""
    lowered = {name.lower(): name for name in names}
    similar = [str(missing.parent / lowered[name]) for name in difflib.get_close_matches(missing.name.lower(), lowered)]
    return f"; did you mean {' or '.join(repr(name) for name in similar)}?" if similar else f" (no {str(missing)!r})"
