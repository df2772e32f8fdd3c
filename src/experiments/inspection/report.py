"""The report of a finished run, made again from its directory."""

from __future__ import annotations

from pathlib import Path

from experiments.deploy.saved_run import Trained
from experiments.errors import ConfigError
from experiments.reports import run_report
from experiments.runs.run_directory import REPORT, RunDirectory
from experiments.storage import atomic_files
from experiments.tracking.summary_runs import add_file


def write(run: Trained, data: Path | None = None, output: Path | None = None) -> Path:
    """Write the report of a run, log it to its MLflow run unless it is written elsewhere, and return its path.

    Of a run on another machine, it is the report that the run has logged.

    Raises:
        ConfigError: the run's files do not exist any more, or the report cannot be logged.
    """
    if run.folder is None:
        path = run.file(REPORT)
        if path is None:
            raise ConfigError(
                f"{run.name}: its folder is not on this machine, and it has logged no {REPORT}. Make the report where "
                "its folder is"
            )
        if output is not None:
            atomic_files.write_file(output, path.read_bytes())
        return output or path
    path = run_report.write(RunDirectory(run.folder), data or run.recorded_root, run.model, output)
    if run.run_id and output is None:
        try:
            add_file(run.store, run.run_id, path)
        except ConfigError as error:
            raise ConfigError(f"{path}: the report is written, but it is not in MLflow: {error}") from None
    return path
