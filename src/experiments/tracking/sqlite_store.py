"""SQLite files of MLflow, read without it: whether the installed MLflow can use one, and whether it was moved.

MLflow itself calls every other version of a schema out of date, even newer ones, and migrates some old databases
without a message. It records absolute addresses of artifacts, which are corrected here.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import re
import shlex
import sqlite3
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from experiments.system.paths import ARTIFACTS
from experiments.tracking.private_mlflow_api import ADDRESS_COLUMNS

TIMEOUT = 5.0  # seconds that another process may hold the database
_log = logging.getLogger(__name__)


def sqlite_problem(file: Path, uri: str) -> tuple[str, str] | None:
    """Return why MLflow cannot use an SQLite file, and the remedy; None if it can, or reports the problem itself."""
    with contextlib.suppress(sqlite3.Error):
        with contextlib.closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=TIMEOUT)) as db:
            tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            rows = db.execute("SELECT version_num FROM alembic_version") if "alembic_version" in tables else ()
            versions = [str(row[0]) for row in rows]
        if "experiments" in tables:
            return problem(versions[0] if versions else "none", uri, file)
    return None


def problem(version: str, uri: str, file: Path | None) -> tuple[str, str] | None:
    """Return why the installed MLflow cannot use a schema of this Alembic version, and the remedy; None if it can."""
    known, newest = installed_versions()
    if not known or version == newest:
        return None
    installed = f"MLflow {importlib.metadata.version('mlflow')}"
    if version not in known and version != "none":
        return (
            f"its schema (version {version}) is newer than the installed {installed}",
            "Install the MLflow that it was made by, or a later one (pip install --upgrade mlflow)",
        )
    copy = f"cp {shlex.quote(str(file))} {shlex.quote(f'{file}.backup')} && " if file else ""
    return (
        f"its schema (version {version}) is older than the installed {installed} needs (version {newest})",
        f"Make a copy, then migrate it: {copy}mlflow db upgrade {shlex.quote(uri)}",
    )


@cache
def installed_versions() -> tuple[frozenset[str], str]:
    """Return the schema versions in the installed MLflow's migrations, and the newest one, without importing MLflow."""
    spec = importlib.util.find_spec("mlflow")
    before = {}
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob("store/db_migrations/versions/*.py"):
            text = path.read_text(encoding="utf-8")
            found = dict(re.findall(r"""^(revision|down_revision)\s*=\s*["'](\w+)["']""", text, re.MULTILINE))
            if "revision" in found:
                before[found["revision"]] = found.get("down_revision")
    newest = before.keys() - set(before.values())
    # MLflow's migrations form one sequence with one newest version; otherwise nothing could be concluded.
    return (frozenset(before), newest.pop()) if len(newest) == 1 else (frozenset(), "")


def follow_move(file: Path) -> None:
    """Correct the artifacts' addresses in an SQLite file whose directory was moved or copied.

    Without this correction, old artifacts would not be found, and new ones would be written to the previous directory.
    It is made only for the layout of outputs/, with the artifacts beside the file.
    """
    here = file.resolve().with_name(ARTIFACTS)
    if not file.is_file():
        return
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=TIMEOUT)) as store:
            for (location,) in store.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall():
                there = _local_path(location)
                if there is not None and there.name == ARTIFACTS and there != here and _has_moved(there, here, file):
                    _replace_addresses(store, location, here.as_uri())
                    _log.info("MLflow's files are in %s now: their addresses in %s led to %s", here, file, there)
    except sqlite3.Error as error:
        if "no such" not in str(error) and "not a database" not in str(error):  # MLflow reports these errors itself.
            _log.warning("%s: the addresses of artifacts cannot be corrected: %s", file, error)


def _local_path(location: str | None) -> Path | None:
    """Return the path of an artifact location that is a file URI or a plain path; None for other locations."""
    if location is None or ("://" in location and not location.startswith("file:")):
        return None
    return Path(unquote(urlsplit(location).path) if location.startswith("file:") else location)


def _has_moved(there: Path, here: Path, database: Path) -> bool:
    """Return whether a database was moved or copied, with the artifacts that are beside it, from another directory."""
    if not here.is_dir():  # `there` may be a disk that is not mounted now
        return False
    return not there.is_dir() or (not there.samefile(here) and (there.parent / database.name).is_file())


def _replace_addresses(store: sqlite3.Connection, old: str, new: str) -> None:
    """Replace the prefix `old` of the addresses in MLflow's tables, in one transaction."""
    with store:
        for table, column in ADDRESS_COLUMNS:
            if column in [row[1] for row in store.execute(f"PRAGMA table_info({table})")]:
                store.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )
