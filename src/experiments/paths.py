"""Where conf/ and outputs/ are."""

from __future__ import annotations

import os
import secrets
import time
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
REPOSITORY = PACKAGE.parent.parent
# In a wheel conf/ lies in the package; in a checkout beside src/.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else REPOSITORY / "conf"


def default_outputs() -> str:
    """EXPERIMENTS_HOME where it is set; else the repository's outputs/ when called inside it; else ./outputs."""
    home = os.environ.get("EXPERIMENTS_HOME")
    if home:
        return str(Path(home).expanduser().resolve())
    here = Path.cwd().resolve()
    inside = CONF.parent == REPOSITORY and here.is_relative_to(REPOSITORY)
    return str((REPOSITORY if inside else here) / "outputs")


@cache
def _start(process: int) -> tuple[str, str]:
    """When a process started, for the eye, and a part that no other start has; a forked process has its own."""
    return time.strftime("%Y%m%d-%H%M%S"), secrets.token_hex(3)


def run_name(*what: str) -> str:
    """The folder of this process's run or sweep, one name for all it writes: when, what, and a part of its own."""
    started, own = _start(os.getpid())
    return "-".join([started, *what, own])
