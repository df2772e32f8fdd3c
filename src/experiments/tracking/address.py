"""Whether a tracking store is there at all: asked quickly, because MLflow itself waits and tries again for minutes."""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from experiments.redaction import redact_credentials
from experiments.types import ConfigError

WAIT = 5.0  # seconds for a first answer


def database(uri: str) -> Path | None:
    """The file of an SQLite store; None: the store is of another kind."""
    name = uri.removeprefix("sqlite:///")
    return None if name == uri else Path(name)


def missing(uri: str) -> bool:
    """Whether a store is an SQLite file that is not there: MLflow's client would make it."""
    file = database(uri)
    return file is not None and not file.exists()


def check_runs(uri: str) -> None:
    """Asks, as `check`, for a store that runs are to be read from.

    Raises:
        ConfigError: no run has made it yet, or as `check`.
    """
    if missing(uri):
        raise ConfigError(f"No runs yet: there is no {database(uri)}. Train first, or give --uri")
    check(uri)


def check(uri: str | None) -> None:
    """Asks a server or a database's host for any answer.

    Raises:
        ConfigError: there is none.
    """
    try:
        parts = urlsplit(uri or "")
        if parts.scheme in ("http", "https"):
            # Without user and password, which urllib would take for a part of the host.
            plain = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
            urllib.request.urlopen(plain, timeout=WAIT).close()
        elif parts.hostname and (port := parts.port or (5432 if parts.scheme.startswith("postgresql") else None)):
            socket.create_connection((parts.hostname, port), timeout=WAIT).close()
    except (urllib.error.HTTPError, ssl.SSLError):  # it answers; the rest is between it and MLflow
        return
    except (OSError, ValueError, http.client.HTTPException) as error:
        if not isinstance(getattr(error, "reason", None), ssl.SSLError):
            raise unusable(str(uri), str(error)) from None


def unusable(uri: str, reason: str) -> ConfigError:
    """The error for a store that cannot be used."""
    local = uri.startswith(("sqlite:", "file:"))
    remedy = (
        "Check the file, its folder and the room on its disk" if local else "Check the address and that the server runs"
    )
    text = f"tracking.uri: the MLflow store at {uri} cannot be used: {reason[:500]}. {remedy}, or use "
    return ConfigError(redact_credentials(text + ("tracking=none" if local else "tracking=sqlite or tracking=none")))
