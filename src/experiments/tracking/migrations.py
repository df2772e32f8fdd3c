"""Check whether the installed MLflow can use a database, by the version of the database's schema.

MLflow itself calls every other version out of date, even newer ones, and migrates some old databases without a message.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
import shlex
import sqlite3
from functools import cache
from pathlib import Path

TIMEOUT = 5.0  # seconds that another process may hold the database


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


def problem(version: str, uri: str, file: Path | None = None) -> tuple[str, str] | None:
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
