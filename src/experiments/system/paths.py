"""Where conf/ and outputs/ are."""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from functools import cache
from pathlib import Path
from urllib.parse import quote, unquote

STORE, ARTIFACTS = "mlflow.db", "mlartifacts"  # MLflow's, in outputs/
PACKAGE = Path(__file__).resolve().parent.parent
REPOSITORY = PACKAGE.parent.parent
# In a wheel conf/ lies in the package; in a checkout beside src/.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else REPOSITORY / "conf"


def check_directory() -> None:
    """Raise SystemExit where the current directory was removed: Python and Hydra can do nothing without one."""
    try:
        os.getcwd()
    except OSError as error:
        sys.exit(
            f"The current directory cannot be used ({error.strerror}): {os.environ.get('PWD', '')} was removed, or "
            "made anew, since this shell entered it. Enter a directory that exists: cd"
        )


def default_outputs() -> str:
    """EXPERIMENTS_HOME where it is set; else the repository's outputs/ when called inside it; else ./outputs."""
    home = os.environ.get("EXPERIMENTS_HOME")
    if home:
        return str(Path(home).expanduser().resolve())
    here = Path.cwd().resolve()
    inside = CONF.parent == REPOSITORY and here.is_relative_to(REPOSITORY)
    return str((REPOSITORY if inside else here) / "outputs")


def tracking_uri(outputs: str | None = None) -> str:
    """Return the MLflow store of this place: MLFLOW_TRACKING_URI where it is set; else the database in outputs/."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(Path(outputs or default_outputs()) / STORE)


def sqlite_uri(file: Path) -> str:
    """Return the address of a SQLite file. SQLAlchemy decodes it, and a question mark would begin its options."""
    path = re.sub("[%?#]", lambda found: quote(found[0]), str(file))
    # MLflow makes the folder that a plain sqlite:/// address names, and does not decode it.
    return f"sqlite:///{path}" if path == str(file) else f"sqlite+pysqlite:///{path}"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite address; None: the address is of another kind."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri, re.DOTALL)
    return Path(unquote(found[1])) if found else None


def artifact_location(uri: str | None, outputs: str) -> str | None:
    """Return where a new MLflow experiment keeps its files: below outputs/, unless the store is a server."""
    is_server = uri is not None and not uri.startswith(("sqlite", "postgresql", "mysql", "mssql", "file:"))
    return None if is_server else f"{outputs}/{ARTIFACTS}"


@cache
def _start(process: int) -> tuple[str, str]:
    """When a process started, for the eye, and a part that no other start has; a forked process has its own."""
    return time.strftime("%Y%m%d-%H%M%S"), secrets.token_hex(3)


def run_name(*what: str) -> str:
    """The folder of this process's run or sweep, one name for all it writes: when, what, and a part of its own."""
    started, own = _start(os.getpid())
    return "-".join([started, *what, own])
