"""`experiments sync [FOLDER ...]`: tells MLflow what it could not be told while runs went on."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.errors import ConfigError
from experiments.system.paths import default_outputs
from experiments.system.redaction import redact_credentials


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments sync",
        description="A run whose MLflow store is away goes on, and leaves what it has to tell in its folder. This "
        "tells it: parameters, curves, results, artifacts, the model, how it ended. Nothing stands twice.",
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER",
        help="of runs; their curves are told again whole (default: all below outputs/ that have something to tell)",
    )  # fmt: skip
    parser.add_argument("--uri", help="the MLflow store, where it is another than the run was started with")
    arguments = parser.parse_args()
    wrong = [folder for folder in arguments.folders if not (folder / "run.json").is_file()]
    if wrong:
        parser.error(f"no run's folder, as it has no run.json. Received: {', '.join(map(str, wrong))}")
    failed, variable = 0, os.environ.get("MLFLOW_TRACKING_URI")  # which MLflow sets as it is used
    for folder in arguments.folders or waiting(Path(default_outputs())):
        try:
            print(f"{folder}: {sync(folder.resolve(), arguments.uri, variable, whole=bool(arguments.folders))}")
        except (ConfigError, OSError) as error:  # the others may do better
            failed += 1
            print(f"{folder}: {error}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def waiting(outputs: Path) -> list[Path]:
    """The folders of runs and sweeps that have something to tell."""
    from experiments.tracking.buffer import UNSENT

    return sorted(path.parent for path in outputs.glob(f"*/**/{UNSENT}"))


def sync(folder: Path, uri: str | None, variable: str | None, *, whole: bool) -> str:
    """Tells MLflow what waits in a run's folder; what it did, in words.

    Args:
        folder: of the run.
        uri: the store; None: the one that the run was started with.
        variable: the store, where that one is not known with its password.
        whole: its curves, too, whether they wait or not.

    Raises:
        ConfigError: the run still goes on, the store is not known, or does not take it.
    """
    from experiments.runs import run_directory
    from experiments.tracking import buffer, connection

    facts = run_directory.read_record(folder) or {}
    known = facts.get("store", "")
    place = uri or (run_directory.store_of_run(folder, facts) if facts else None) or variable
    run_id = facts.get("run_id") or ""
    if not run_id and not buffer.read(folder):
        return "was not tracked"
    if not place:
        raise ConfigError(f"its store is {known or 'not known'}: give --uri")
    if connection.missing(place):
        raise connection.unusable(place, "it is not there (where outputs/ was moved, give --uri)")
    connection.check(place)
    lock = run_directory.claim(folder)
    try:
        wait, reason = buffer.sync(
            run_id, folder, place, points(folder, facts) if whole and run_id else [], facts.get("status")
        )
    finally:
        lock.release()
    if wait:
        raise ConfigError(f"{wait} messages wait on: {redact_credentials(reason or '')}")
    return f"all is in {redact_credentials(place)}"


def points(folder: Path, facts: Mapping[str, Any]) -> list[list[Any]]:
    """Return the points of a run's curves as MLflow takes them: name, value, timestamp, step.

    Of a run that can be resumed only up to its checkpoint: the epochs after that one are trained again.
    """
    from experiments.runs.run_directory import CHECKPOINTS
    from experiments.tracking import curves
    from experiments.training.checkpoints import Checkpoints

    records = curves.read(folder / curves.FILE)
    if facts.get("status") != "FINISHED":
        checkpoints = Checkpoints(folder / CHECKPOINTS)
        while records and not checkpoints.holds(records[-1]):
            records.pop()
    return [point for record in records for point in curves.metric_points(record)]


if __name__ == "__main__":
    main()
