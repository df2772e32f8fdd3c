"""Addresses of artifacts in an SQLite store whose directory was moved or copied."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

from experiments.system.paths import ARTIFACTS
from experiments.tracking.private_mlflow_api import ADDRESS_COLUMNS

TIMEOUT = 5.0  # seconds that another process may hold the database
_log = logging.getLogger(__name__)


def follow_move(file: Path) -> None:
    """Correct the artifacts' addresses in an SQLite file whose directory was moved or copied.

    MLflow records absolute addresses. Without this correction, old artifacts would not be found, and new ones would be
    written to the previous directory. It is made only for the layout of outputs/, with the artifacts beside the file.
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
