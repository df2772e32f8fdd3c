"""A description of the machine and the package versions that a measurement was made with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import psutil

from experiments import __version__

PACKAGES = ("tensorflow", "keras", "numpy", "pillow")  # versions that a measurement may depend on


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def sentence() -> str:
    """Return one line with cores, processor, memory and the versions of Python, of this package and of PACKAGES."""
    memory = psutil.virtual_memory().total / 2**30
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return (
        f"{cores()} core{'s' if cores() > 1 else ''} of {cpu_model()}, {memory:.1f} GB; "
        f"{', '.join([f'Python {platform.python_version()}', f'experiments {__version__}', *versions])}"
    )
