"""Where conf/ and outputs/ are."""

from __future__ import annotations

import os
import secrets
import time
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


# One name for everything this process writes. Seconds order the folders; the random part keeps starts apart.
_STARTED = time.strftime("%Y%m%d-%H%M%S")
_SUFFIX = secrets.token_hex(3)


def run_name(*what: str) -> str:
    """The folder of this process's run or sweep: when, what, and a part that no other start shares."""
    return "-".join([_STARTED, *what, _SUFFIX])
