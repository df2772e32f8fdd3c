"""The tracking store: its selection, a check whether it responds, and errors that say what to do."""

from __future__ import annotations

import http.client
import logging
import os
import re
import socket
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from experiments.errors import ConfigError
from experiments.system.paths import sqlite_file
from experiments.system.redaction import redact_credentials
from experiments.tracking import sqlite_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

WAIT = 5.0  # seconds to wait for a first response, unless the user has set TIMEOUT
# Loggers that write of each failure, the requests of MLflow of every retry, its databases with a traceback. What fails
# is raised as well, and reported by the caller.
LEVELS = {"urllib3.connectionpool": logging.ERROR, "mlflow.store.db.utils": logging.CRITICAL}
VARIABLE = "MLFLOW_TRACKING_URI"
TIMEOUT, ASYNC = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_ENABLE_ASYNC_LOGGING"
ENVIRONMENT = {  # of MLflow; values that the user has set are kept
    # With the defaults, a server that is down blocks for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    TIMEOUT: "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A progress bar per file would only be noise, as most files have a few kilobytes.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",  # `log_model` gives the requirements explicitly.
}


def missing(uri: str) -> bool:
    """Return whether a store is a missing SQLite file, which MLflow's client would create."""
    file = sqlite_file(uri)
    return file is not None and not file.exists()


def use(uri: str) -> None:
    """Import MLflow with ENVIRONMENT, without asynchronous logging, and make it use a store in this process.

    MLflow also sets MLFLOW_TRACKING_URI. The user's value is restored, as it decides the store of later runs.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ[ASYNC] = "false"  # an upload whose error is not raised would count as done, and its points would be lost
    import mlflow  # The import configures MLflow's logging.

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    _set_levels(LEVELS)
    before = {VARIABLE: os.environ.get(VARIABLE)}
    mlflow.set_tracking_uri(uri)
    _restore(before)


@contextmanager
def unchanged() -> Iterator[None]:
    """Restore MLflow's store, environment and log level after the block, in which `use` may change them."""
    logger, loaded = logging.getLogger("mlflow"), sys.modules.get("mlflow")
    level = logger.level if loaded else logging.INFO  # which MLflow sets when it is imported
    levels = {name: logging.getLogger(name).level for name in LEVELS}
    before = {name: os.environ.pop(name, None) for name in (VARIABLE, ASYNC, *ENVIRONMENT)}
    uri = loaded.get_tracking_uri() if loaded and loaded.is_tracking_uri_set() else None  # without the variable
    _restore(before)
    try:
        yield
    finally:
        if mlflow := sys.modules.get("mlflow"):
            mlflow.set_tracking_uri(uri)
            logger.setLevel(level)
        _set_levels(levels)
        _restore(before)


def _set_levels(levels: Mapping[str, int]) -> None:
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _restore(environment: Mapping[str, str | None]) -> None:
    """Set the environment variables, and remove those without a value."""
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@contextmanager
def client(uri: str, failure: str | None = None) -> Iterator[MlflowClient]:
    """Make MLflow use a store, yield a client of it, and raise the errors of the block as `errors` does."""
    use(uri)
    import mlflow

    with errors(uri, failure):
        yield mlflow.MlflowClient(uri)


@contextmanager
def errors(uri: str, failure: str | None = None) -> Iterator[None]:
    """Raise errors of MLflow in the block as ConfigError, which begins with `failure` or says the store is unusable."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:  # The exceptions of requests are OSErrors.
        raise (ConfigError(f"{failure}: {str(error)[:300]}") if failure else unusable(uri, str(error))) from None


def check_runs(uri: str) -> None:
    """Raise ConfigError if no run has created a store from which runs are to be read, or if `check` fails."""
    if missing(uri):
        raise ConfigError(f"No runs yet: there is no {sqlite_file(uri)}. Train first, or give --uri")
    check(uri)


def check_exists(uri: str, hint: str = "") -> None:
    """Raise ConfigError if a store does not respond, or is a missing SQLite file; `hint` follows that message."""
    if missing(uri):
        raise unusable(uri, f"it is not there{hint}")
    check(uri)


def check(uri: str | None) -> None:
    """Raise ConfigError if a server or a database's host does not respond, or the installed MLflow cannot use a file.

    The addresses in an SQLite store that was moved are corrected.
    """
    uri = uri or ""
    if (file := sqlite_file(uri)) is not None:
        if found := sqlite_store.sqlite_problem(file, uri):
            raise unusable(uri, *found)
        sqlite_store.follow_move(file)
        return
    try:
        parts = urlsplit(uri)
        if parts.scheme in ("http", "https"):
            # User and password are removed, because urllib would treat them as a part of the host.
            plain = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
            urllib.request.urlopen(plain, timeout=_wait()).close()
        elif parts.hostname and (port := parts.port or (5432 if parts.scheme.startswith("postgresql") else None)):
            socket.create_connection((parts.hostname, port), timeout=_wait()).close()
    except (urllib.error.HTTPError, ssl.SSLError):  # The server responds; MLflow reports other errors itself.
        return
    except (OSError, ValueError, http.client.HTTPException) as error:
        if not isinstance(getattr(error, "reason", None), ssl.SSLError):
            raise unusable(uri, str(error)) from None


def _wait() -> float:
    """Return the seconds to wait for a first response: those that the user has given to MLflow, else WAIT."""
    given = os.environ.get(TIMEOUT, ENVIRONMENT[TIMEOUT])
    return float(given) if given.isdecimal() and given != ENVIRONMENT[TIMEOUT] else WAIT


def unusable(uri: str, reason: str, remedy: str | None = None) -> ConfigError:
    """Return the error for a store that cannot be used, with MLflow's reason and, unless given, the usual remedy."""
    if outdated := re.search(r"out-of-date database schema \(found version (\w+)", reason):
        reason, remedy = sqlite_store.problem(outdated[1].lower(), uri, sqlite_file(uri)) or (reason, remedy)
    reason = reason.partition("\n[SQL: ")[0]  # SQLAlchemy's messages contain the whole statement, which is cut off.
    local = sqlite_file(uri) is not None or uri.startswith("file:") or "://" not in uri
    if re.search(r"error code 40[13]\b|PERMISSION_DENIED|UNAUTHENTICATED", reason):
        remedy = (
            "Give a user who may do this, in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or a token in "
            "MLFLOW_TRACKING_TOKEN"
        )
    remedy = remedy or (
        "Check the file, its folder and the room on its disk" if local else "Check the address and that the server runs"
    )
    text = f"tracking.uri: the MLflow store at {uri} cannot be used: {reason[:500]}. {remedy}, or use "
    other = "tracking=none, or another store: tracking.uri=... (tracking=sqlite, unless MLFLOW_TRACKING_URI is set)"
    return ConfigError(redact_credentials(text + ("tracking=none" if local else other)))
