"""Locations of conf/ and outputs/, tracking and SQLite URIs, and names of run directories."""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from functools import cache
from pathlib import Path
from urllib.parse import quote, unquote

STORE, ARTIFACTS = "mlflow.db", "mlartifacts"  # MLflow's database and artifact directory, in outputs/
PACKAGE = Path(__file__).resolve().parent.parent
REPOSITORY = PACKAGE.parent.parent
# In a wheel conf/ lies in the package; in a checkout beside src/.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else REPOSITORY / "conf"


def check_directory() -> None:
    """Raise SystemExit if the current directory was removed, because neither Python nor Hydra works without one."""
    try:
        os.getcwd()
    except OSError as error:
        sys.exit(
            f"The current directory cannot be used ({error.strerror}): {os.environ.get('PWD', '')} was removed, or "
            "made anew, since this shell entered it. Enter a directory that exists: cd"
        )


def default_outputs() -> str:
    """Return EXPERIMENTS_HOME, if it is set; else outputs/ of the repository or, outside of it, of this directory."""
    if home := os.environ.get("EXPERIMENTS_HOME"):
        return str(Path(home).expanduser().resolve())
    here = Path.cwd().resolve()
    inside = CONF.parent == REPOSITORY and here.is_relative_to(REPOSITORY)
    return str((REPOSITORY if inside else here) / "outputs")


def tracking_uri(outputs: str | None = None) -> str:
    """Return the MLflow tracking URI: MLFLOW_TRACKING_URI if it is set, else that of the database in outputs/."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(Path(outputs or default_outputs()) / STORE)


def experiment_name() -> str:
    """Return the name of the MLflow experiment: MLFLOW_EXPERIMENT_NAME if it is set, else experiments."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "experiments"


def sqlite_uri(file: Path) -> str:
    """Return the URI of a SQLite file, with %, ? and # percent-encoded.

    SQLAlchemy decodes the path of a URI, and a question mark would begin the URI's options.
    """
    path = re.sub("[%?#]", lambda found: quote(found[0]), str(file))
    # MLflow creates the parent directory of a sqlite:/// URI's path without decoding it, unless the URI names a driver.
    return f"sqlite:///{path}" if path == str(file) else f"sqlite+pysqlite:///{path}"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite URI; None for a URI of another kind."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri, re.DOTALL)
    return Path(unquote(found[1])) if found else None


def artifact_location(uri: str | None, outputs: str) -> str | None:
    """Return the artifact location of a new MLflow experiment, below outputs/; None if a tracking server chooses it."""
    is_server = uri is not None and not uri.startswith(("sqlite", "postgresql", "mysql", "mssql", "file:"))
    return None if is_server else f"{outputs}/{ARTIFACTS}"


@cache
def _start(process: int) -> tuple[str, str]:
    """Return the start time of a process and a random suffix, the same ones in a process; a forked one has its own."""
    return time.strftime("%Y%m%d-%H%M%S"), secrets.token_hex(3)


def begin_run() -> None:
    """Let `run_name` return a new name from now on, for a further run or sweep of this process."""
    _start.cache_clear()


def run_name(*what: str) -> str:
    """Return the directory name of this process's run or sweep, always the same one: start time, `what`, suffix."""
    started, suffix = _start(os.getpid())
    return "-".join([started, *what, suffix])
