"""The lock of a run's or a sweep's directory, which the process that executes it holds."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from experiments.errors import ConfigError

PATIENCE = 60.0  # seconds to wait for the previous process of the run, which may just be ending


def claim(folder: Path, name: str = ".run.lock", what: str = "run", wait: float = 0) -> FileLock:
    """Acquire and return the lock of a run's or a sweep's directory, unless locks are not supported there.

    Args:
        folder: the directory.
        name: name of the lock file.
        what: "run" or "sweep", for the message.
        wait: seconds to wait for a process that may just be ending.

    Raises:
        ConfigError: another process holds the lock.
    """
    lock = FileLock(folder / name, fallback_to_soft=False)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise ConfigError(f"{folder}: this {what} is still going on, in another process") from None
    except (OSError, NotImplementedError):
        pass
    return lock
