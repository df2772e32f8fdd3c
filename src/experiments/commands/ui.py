"""`experiments ui`: the MLflow UI on this place's runs."""

from __future__ import annotations

import argparse
import os

from experiments.tracking.stored import local_store, ui_command


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments ui", description="Serves the MLflow UI on 127.0.0.1: this machine only."
    )
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument(
        "--uri", help="MLflow tracking store (default: MLFLOW_TRACKING_URI, or this place's SQLite file)"
    )
    arguments = parser.parse_args()
    command = ui_command(arguments.uri or local_store(), arguments.port)
    # Without its job executor the server starts in half the time; nothing here uses it.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    print(f"http://127.0.0.1:{arguments.port}   (Ctrl-C ends it)", flush=True)
    os.execve(command[0], command, {**os.environ, **environment})


if __name__ == "__main__":
    main()
