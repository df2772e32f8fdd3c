"""`experiments summarize SWEEP`: write a sweep's table, winner and figures again, from the files of its jobs."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.cli.arguments import exit_on_error
from experiments.errors import ConfigError
from experiments.training.types import UNFINISHED, Status


@exit_on_error()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments summarize",
        description="Writes the summary of a sweep again, also of one that is running or was stopped: the table, the "
        "winner with its interval, and figures; in the sweep's folder and in its MLflow run.",
    )
    parser.add_argument(
        "sweep", metavar="SWEEP", help="the sweep's folder, its name under outputs/sweeps/, or its MLflow run's id"
    )
    arguments = parser.parse_args()
    from experiments.sweeps import sweep_directory

    folder = sweep_directory.find(arguments.sweep)
    from experiments.config.credentials import revealed
    from experiments.sweeps import summary_files
    from experiments.sweeps.terminal import show_summary
    from experiments.system.paths import STORE, default_outputs, sqlite_uri
    from experiments.system.progress import PlainConsole
    from experiments.system.redaction import is_concealed
    from experiments.tracking import connection
    from experiments.tracking.summary_runs import end_sweep

    summary = summary_files.write_summary(folder)
    about = sweep_directory.read(folder)
    show_summary(PlainConsole(), summary, folder)
    if about["parent"] is not None:
        unfinished = any(run["status"] in UNFINISHED for run in summary["runs"])
        status = None if unfinished else Status.FAILED if summary["failures"] else Status.FINISHED
        uri = revealed(about["config"]["tracking"]["uri"], "tracking.uri")
        if is_concealed(uri):
            raise ConfigError(
                f"{folder.name}: the summary is written, but not logged: the password of {uri} is not "
                "kept in a sweep's folder. Set MLFLOW_TRACKING_URI to the whole address"
            )
        if connection.missing(uri):  # outputs/ was moved, with the store in it
            uri = sqlite_uri(Path(default_outputs()) / STORE)
        end_sweep(uri, about["parent"], folder, summary["metrics"], status)
