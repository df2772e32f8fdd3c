"""Thumbnails of a set of files, kept in the cache by the files' contents: near-duplicates are searched among them."""

from __future__ import annotations

import io
import logging
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.data.near_duplicates import SIZE
from experiments.storage import atomic_files

DIRECTORY = "thumbnails"  # of the cache

_log = logging.getLogger(__name__)


def read_thumbnails(file: Path) -> dict[str, np.ndarray] | str:
    """Return the thumbnails in a file by sha256; if it cannot be used, return the reason instead."""
    try:
        with np.load(file, allow_pickle=False) as kept:  # its checksums are compared
            hashes, thumbnails = kept["sha256"], kept["thumbnails"]
        if thumbnails.shape != (len(hashes), SIZE, SIZE, 3) or thumbnails.dtype != np.uint8:
            return f"its array has the shape {thumbnails.shape} and the type {thumbnails.dtype}"
        return dict(zip(hashes.astype(str).tolist(), thumbnails, strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        return f"{type(error).__name__}: {error}"


def load_thumbnails(file: Path) -> dict[str, np.ndarray]:
    """Return the thumbnails in a file by sha256; none if it does not exist or, with a warning, if it is damaged."""
    kept = read_thumbnails(file) if file.exists() else {}
    if isinstance(kept, str):
        _log.warning("Damaged thumbnails, the images are decoded again: %s: %s", file, kept)
        return {}
    return kept


def save_thumbnails(file: Path, thumbnails: Mapping[str, np.ndarray]) -> None:
    """Write thumbnails [SIZE, SIZE, 3] uint8 by sha256."""
    content = io.BytesIO()
    np.savez(content, sha256=np.array(list(thumbnails), "S64"), thumbnails=np.stack(list(thumbnails.values())))
    atomic_files.write_file(file, content.getvalue())
