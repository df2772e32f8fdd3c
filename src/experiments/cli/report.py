"""`experiments report RUN`: make the HTML page of a finished run again, from its directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.cli.arguments import add_run, ending, exit_on_error


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
    from experiments.system.startup import quiet_start

    run = saved_run.find(named, uri)
    with quiet_start():
        from experiments.inspection.report import write
    path = write(run, data, output)
    print(path)
    if run.folder and run.run_id and output is None:
        print(f"also in MLflow: run {run.run_id}, {path.name}")


if __name__ == "__main__":
    main()
