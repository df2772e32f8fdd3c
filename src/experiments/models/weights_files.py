"""Which files can be weights files, by their first bytes; checked before Keras is imported."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from experiments.errors import ConfigError

ALLOWED = (
    "must be a Keras weights file, *.weights.h5, *_notop.h5 or *_no_top.h5 (keras.applications), or a backbone saved "
    "whole, *.keras"
)
# First bytes of files that are often mistaken for weights files.
FORMATS = (
    (rb"\s*(<!doctype|<html|<\?xml)", "an HTML or XML page, as a failed download leaves it"),
    (rb"version https://git-lfs", "a Git LFS pointer; fetch the file itself (git lfs pull)"),
    (rb"\x80[\x02-\x05]", "a pickle, which could run code"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", "a compressed file; unpack it"),
    (rb"\s*\{", "JSON text"),
    (rb".{8}\{\"", "a safetensors file"),
)


def check_file(path: Path, key: str) -> None:
    """Raise ConfigError unless a path is a regular file that begins as HDF5 or .keras files do."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        remote = ". An address is not downloaded: fetch the file yourself" if re.match(r"\w+:/", str(path)) else ""
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise ConfigError(f"{key}: {reason}. Received: {path}{remote}") from None
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise ConfigError(f"{key}: {ALLOWED}, not {what}. Received: {path}")
    try:
        with path.open("rb") as file:
            begin = file.read(512)
    except OSError as error:
        raise ConfigError(f"{key}: {path}: {error.strerror}") from None
    if begin.startswith((b"\x89HDF\r\n\x1a\n", b"PK\x03\x04")):
        return
    found = next((what for pattern, what in FORMATS if re.match(pattern, begin, re.I | re.S)), "of another format")
    raise ConfigError(f"{key}: {ALLOWED}. Received: {path}, which does not fit: it is {found if begin else 'empty'}")
