"""`experiments report RUN`: make the HTML page of a finished run again, from its directory."""

from __future__ import annotations

import argparse

from experiments.cli.arguments import add_data, add_run, ending, exit_on_error


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
    add_data(parser)
    parser.add_argument(
        "--output", type=ending(".html"), metavar="PATH", help="HTML file, not logged (default: in the run's folder)"
    )
    arguments = parser.parse_args()
    from experiments.deploy import saved_run
    from experiments.system.startup import quiet_start

    run = saved_run.find(arguments.run, arguments.uri)
    with quiet_start():
        from experiments.inspection.report import write
    path = write(run, arguments.data, arguments.output)
    print(path)
    if run.folder and run.run_id and arguments.output is None:
        print(f"also in MLflow: run {run.run_id}, {path.name}")
