"""`experiments sync [FOLDER ...]`: upload the tracking buffers of runs whose MLflow store could not be reached."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.errors import ConfigError
from experiments.runs.run_directory import FACTS, RunDirectory
from experiments.system.paths import default_outputs
from experiments.system.redaction import redact_credentials
from experiments.training.types import Status


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments sync",
        description="A run continues if its MLflow server is unavailable, and buffers in its folder what it could "
        "not upload. This uploads it: parameters, curves, results, artifacts, the model, the final status. "
        "Uploading is idempotent.",
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER",
        help="of runs; their curves are uploaded again whole (default: all below outputs/ that need it)",
    )  # fmt: skip
    parser.add_argument("--uri", help="the MLflow store, where it is another than the run was started with")
    arguments = parser.parse_args()
    wrong = [folder for folder in arguments.folders if RunDirectory(folder).lacks([FACTS])]
    if wrong:
        parser.error(f"no run's folder, as it has no {FACTS}. Received: {', '.join(map(str, wrong))}")
    failed, variable = 0, os.environ.get("MLFLOW_TRACKING_URI")  # read first, because MLflow sets it when it is used
    for folder in arguments.folders or pending_directories(Path(default_outputs())):
        try:
            print(f"{folder}: {sync(folder.resolve(), arguments.uri, variable, whole=bool(arguments.folders))}")
        except (ConfigError, OSError) as error:  # the other runs may succeed
            failed += 1
            print(f"{folder}: {error}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def pending_directories(outputs: Path) -> list[Path]:
    """Return the directories of runs and sweeps whose tracking buffers are not empty."""
    from experiments.tracking.upload import UNSENT

    return sorted(path.parent for path in outputs.glob(f"*/**/{UNSENT}"))


def sync(folder: Path, uri: str | None, variable: str | None, *, whole: bool) -> str:
    """Upload the tracking buffer of a run to MLflow and return a message about the result.

    Args:
        folder: the run directory.
        uri: the MLflow store; None: the one that the run was started with.
        variable: value of MLFLOW_TRACKING_URI, used if the run's store, including its password, is not known.
        whole: whether to log all points of the run's curves again, buffered or not; logging is idempotent.

    Raises:
        ConfigError: the run is still going on, or its store is not known, cannot be reached or refuses the upload.
    """
    from experiments.runs.location import store_of_run
    from experiments.runs.lock import claim
    from experiments.tracking import buffer, connection

    facts = RunDirectory(folder).facts() or {}
    known = facts.get("store", "")
    place = uri or (store_of_run(folder, facts) if facts else None) or variable
    run_id = facts.get("run_id") or ""
    if not run_id and not buffer.read(folder):
        return "was not tracked"
    if not place:
        raise ConfigError(f"its store is {known or 'not known'}: give --uri")
    if connection.missing(place):
        raise connection.unusable(place, "it is not there (where outputs/ was moved, give --uri)")
    connection.check(place)
    lock = claim(folder)
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

    For an unfinished run they end with its last checkpoint, because a resumed run trains later epochs again.
    """
    from experiments.runs.curves import metric_points
    from experiments.training.checkpoints import Checkpoints

    directory = RunDirectory(folder)
    records = directory.epochs()
    if facts.get("status") != Status.FINISHED:
        checkpoints = Checkpoints(directory.checkpoints)
        while records and not checkpoints.holds(records[-1]):
            records.pop()
    return [point for record in records for point in metric_points(record)]


if __name__ == "__main__":
    main()
