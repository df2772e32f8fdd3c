"""`experiments ui`: serve the MLflow UI on this machine, for the runs of the local or a given tracking store."""

from __future__ import annotations

import argparse
import os
import socket
import sys

from experiments.cli.arguments import add_uri, exit_on_error, whole
from experiments.errors import ConfigError
from experiments.system.paths import tracking_uri


@exit_on_error()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments ui",
        description="Serves the MLflow UI on 127.0.0.1: this machine only. The addresses it "
        "prints open each experiment's runs with the columns to compare by, and a description of how to read them. Of "
        "an MLflow server, which has a UI already, it prints the addresses only.",
    )
    parser.add_argument("--port", type=whole(1), default=5000)
    add_uri(parser)
    arguments = parser.parse_args()
    from experiments.tracking.view import configure_experiment_view

    uri = arguments.uri or tracking_uri()
    is_server = uri.startswith(("http://", "https://"))
    if not is_server:
        _check(arguments.port)
    experiments = configure_experiment_view(uri)
    place = uri.rstrip("/") if is_server else f"http://127.0.0.1:{arguments.port}"
    for name, path in experiments:
        print(f"{name:12} {place}/{path}")
    if is_server:
        print(f"{'everything':12} {place}   (the server's own UI)")
        return
    print(f"{'everything':12} {place}   (Ctrl-C ends it)", flush=True)
    served = ["--host", "127.0.0.1", "--port", str(arguments.port), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", *served]
    # Without its job executor the server starts in half the time; nothing here uses it.
    # The store's URI, which may contain a password, is passed in the environment, because every user of a machine can
    # read the command lines of processes.
    environment = {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    os.execve(command[0], command, {**os.environ, **environment})


def _check(port: int) -> None:
    """Raise ConfigError if no server can listen on a port of this machine: it is taken, reserved or no port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "ports end at 65535"
            raise ConfigError(f"--port {port}: {reason}. Give another one, such as --port 5001") from None
