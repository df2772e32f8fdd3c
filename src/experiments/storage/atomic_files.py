"""Atomic files, locks, and sizes for people."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

_log = logging.getLogger(__name__)

if sys.platform != "win32":
    pass


def readable(size: float) -> str:
    """A number of bytes for people: 1.3 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def write_file(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all, replacing any of that name. Its folder is made if need be.

    Raises:
        OSError: If it cannot be written; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing_file(path) as file:
        file.write(content)


@contextmanager
def writing_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes its name, whole, where the block ends without an error; as `write_file`."""
    temporary = draft(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def allocate(file: BinaryIO, size: int) -> None:
    """Gives a file its size and claims the disk space, where the system can: on a full disk, writing to the map of a
    sparse file would kill the process (SIGBUS).

    Raises:
        OSError: there is not as much.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


@contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Holds a lock, or goes on without one where there is none to be had; tells which."""
    # A soft lock would outlive a killed process; without any lock, work may be done twice, which does no harm.
    try:
        lock = FileLock(path, fallback_to_soft=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            _log.info("Waiting for another process that makes the same: %s", path.stem)
            lock.acquire()
        locked = True
    except (OSError, NotImplementedError) as error:
        _log.info("No lock on %s (%s): going on without it", path, error)
        locked = False
    try:
        yield locked
    finally:
        if locked:
            lock.release()


def draft(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}"


def write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Flushes a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
