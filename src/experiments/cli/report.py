"""`experiments report RUN`: make the HTML page of a finished run again, from its directory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.arguments import add_run, ending, exit_on_error
from experiments.errors import ConfigError

if TYPE_CHECKING:
    from experiments.deploy.saved_run import Trained


@exit_on_error(OSError)
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments report",
        description="Makes the report of a finished run again: one HTML page without scripts, to be viewed without a "
        "network, with its configuration, data, curves, scores of each class, mistakes with Grad-CAM, cost, and how to "
        "use it. Every run but a sweep's jobs has one already, report.html in its folder. Images that are not there, "
        "or have changed, are left out; everything else comes from the run's folder. It is logged to the run's MLflow "
        "run, too.",
    )
    add_run(parser)
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="where the images are now (default: where they were)"
    )
    parser.add_argument(
        "--output", type=ending(".html"), metavar="PATH", help="HTML file, not logged (default: in the run's folder)"
    )
    arguments = parser.parse_args()
    if arguments.data and not arguments.data.is_dir():
        parser.error(f"--data: no such folder. Received: {arguments.data}")
    report(arguments.run, arguments.uri, arguments.data, arguments.output)


def report(named: str, uri: str | None, data: Path | None, output: Path | None) -> None:
    """Write the report of a run, log it unless it was written elsewhere, and print its path.

    Raises:
        ConfigError: there is no such run, or its files do not exist any more.
    """
    from experiments.deploy import saved_run
    from experiments.runs.run_directory import RunDirectory
    from experiments.system.startup import quiet_start

    run = saved_run.find(named, uri)
    if run.folder is None:
        print(logged_report(run))
        return
    directory = RunDirectory(run.folder)
    with quiet_start():
        from experiments.evaluation import run_report
        from experiments.inspection.inspection import log_file
    path = run_report.write(directory, data or run_report.data_root(directory), run.model, output)
    print(path)
    if run.run_id and output is None:
        log_file(run, path)
        print(f"also in MLflow: run {run.run_id}, {path.name}")


def logged_report(run: Trained) -> Path:
    """Return the report that a run on another machine has logged to MLflow, downloaded if need be.

    Raises:
        ConfigError: it has logged none.
    """
    from experiments.runs.run_directory import REPORT
    from experiments.tracking import queries

    assert run.uri is not None and run.run_id is not None, "found by its MLflow id or name"
    path = queries.artifact(run.uri, run.run_id, REPORT)
    if path is None:
        raise ConfigError(
            f"{run.name}: its folder is not on this machine, and it has logged no {REPORT}. Make the report where its "
            "folder is"
        )
    return path


if __name__ == "__main__":
    main()
