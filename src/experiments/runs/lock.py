"""The lock of a run's or a sweep's directory, which the process that executes it holds."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from experiments.errors import ConfigError

PATIENCE = 60.0  # seconds to wait for the previous process of the run, which may just be ending


def claim(folder: Path, name: str = ".run.lock", what: str = "run", wait: float = 0) -> FileLock:
    """Return the lock of a directory, acquired unless locks are not supported there.

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
