"""Atomic writes and file locks."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from experiments.errors import ConfigError

PATIENCE = 60.0  # seconds to wait for the previous process of a run, which may just be ending
_log = logging.getLogger(__name__)


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically, replacing any file of that name; its directory is created if missing.

    Raises:
        OSError: If it cannot be written; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing_file(path) as file:
        file.write(content)


def write_json(path: Path, content: Any) -> None:
    """Write plain values as a JSON file; see `write_file`."""
    write_file(path, json.dumps(content, indent=1).encode())


@contextmanager
def writing_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file for writing, which atomically replaces `path` if the block ends without an error."""
    temporary = draft(path)
    try:
        with as_target(path):
            file = temporary.open("xb")
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory, which is atomically renamed to `path` if the block ends without an error.

    If another process has created `path` meanwhile, that one is kept. The caller flushes its files, where that matters.
    """
    temporary = draft(path)
    try:
        with as_target(path):
            temporary.mkdir(parents=True)
        yield temporary
        sync(temporary)
        try:
            os.rename(temporary, path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            return
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Hold a file lock, or continue without one where locks are not supported; yield whether it is held."""
    # No soft lock, as it would outlive a killed process. Without a lock, work may be done twice, which does no harm.
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


def claim(folder: Path, name: str = ".run.lock", what: str = "run", wait: float = 0) -> FileLock:
    """Return the lock of a run's or a sweep's directory, acquired unless locks are not supported there.

    Raises:
        ConfigError: another process, which may have been ending, has held it for `wait` seconds.
    """
    lock = FileLock(folder / name, fallback_to_soft=False)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise ConfigError(f"{folder}: this {what} is still going on, in another process") from None
    except (OSError, NotImplementedError):
        pass
    return lock


@contextmanager
def as_target(path: Path) -> Iterator[None]:
    """Raise errors of a temporary file or directory with the path that users know."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def draft(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}"


def file_hash(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or a directory's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
