"""Files of named arrays in the cache, written atomically and with a checksum of each array."""

from __future__ import annotations

import io
import logging
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.storage import array_cache, atomic_files

_log = logging.getLogger(__name__)


def read(file: Path) -> dict[str, np.ndarray] | str:
    """Return the arrays in a file by name; if it cannot be used, return the reason instead."""
    try:
        with np.load(file, allow_pickle=False) as kept:  # the checksums are compared
            return dict(kept)
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        return f"{type(error).__name__}: {error}"


def load(file: Path, holder: object) -> dict[str, np.ndarray]:
    """Return the arrays in a file by name; none if it does not exist or, with a warning, if it is damaged.

    The file is marked as in use while `holder` lives.
    """
    if not file.exists():
        return {}
    found = read(file)
    if isinstance(found, str):
        _log.warning("Damaged cache entry, computed again: %s: %s", file, found)
        return {}
    array_cache.mark_used(file, holder)
    return found


def write(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays of numbers or texts, replacing any file of that name."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    atomic_files.write_file(file, content.getvalue())
