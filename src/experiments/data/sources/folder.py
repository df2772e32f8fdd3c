"""A folder of pictures that is there already."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from experiments.data.listing import LAYOUTS
from experiments.errors import ConfigError


def folder(*, root: str | Path, cache: Path) -> Path:
    """The data source for pictures in a folder of one's own.

    Args:
        root: The folder, absolute, relative to the working directory, or beginning with "~".
        cache: Not used here: a folder needs no download. All sources are called alike.

    Returns:
        The folder's absolute path. What is in it is the manifest's to check.

    Raises:
        ConfigError: If `root` is not an existing folder; names similar ones.
    """
    path = Path(os.path.abspath(os.path.expanduser(root)))
    if str(root) and os.path.isdir(path):  # unlike Path.is_dir, no error for a name that no file can have
        return path
    if not str(root):
        problem = "is empty"
    elif os.path.exists(path):
        problem = "is not a folder (if it is an archive, unpack it)"
    else:
        problem = f"does not exist{_similar(path)}"
    raise ConfigError(f"data.root {problem}. Allowed: a folder laid out as {LAYOUTS}. Received: {str(root)!r}")


def _similar(path: Path) -> str:
    """Names like the first missing part of a path, from the folder it would be in."""
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
