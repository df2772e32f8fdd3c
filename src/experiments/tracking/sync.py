"""Upload of what ended runs have left in their tracking buffers, for `experiments sync`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.errors import ConfigError
from experiments.runs.curves import metric_points
from experiments.runs.location import store_of_run
from experiments.runs.run_directory import RunDirectory
from experiments.storage.atomic_files import claim
from experiments.system.redaction import redact_credentials
from experiments.tracking import connection
from experiments.tracking.buffer import TrackingBuffer, read
from experiments.tracking.queries import find_run, trashed
from experiments.tracking.upload import Kind, Message
from experiments.training.checkpoints import Checkpoints
from experiments.training.types import Status


def sync(folder: Path, uri: str | None, *, whole: bool) -> str:
    """Upload the tracking buffer of a run to MLflow and return a message about the result.

    Args:
        folder: the run directory.
        uri: the MLflow store; None: the one that the run was started with or, if that, including its password, is not
            known, that of MLFLOW_TRACKING_URI.
        whole: whether to log all points of the run's curves again, buffered or not; logging is idempotent.

    Raises:
        ConfigError: the run is still going on, or its store is not known, cannot be reached or refuses the upload.
    """
    facts = RunDirectory(folder).facts()
    place = uri or (store_of_run(folder, facts) if facts else None) or os.environ.get(connection.VARIABLE)
    run_id = facts.get("run_id") or ""
    if not run_id and not read(folder):
        return "was not tracked"
    if not place:
        raise ConfigError(f"its store is {facts.get('store') or 'not known'}: give --uri")
    connection.check_exists(place, " (where outputs/ was moved, give --uri)")
    lock = claim(folder)
    try:
        with connection.client(place) as client:
            run = find_run(client, run_id) if run_id else None
            if gone := run and trashed(client, place, run):
                raise ConfigError(gone)
        buffer = TrackingBuffer(run_id, folder)
        for message in buffer.waiting:  # The run may have continued without MLflow after it had been stopped.
            if (message.run_id, message.kind) == (run_id, Kind.END) and facts.get("status") == Status.FINISHED:
                message.content.update(status=Status.FINISHED, failure=None)
        if whole and run_id:
            buffer.waiting.insert(0, Message(run_id, Kind.METRICS, points(folder, facts)))
        buffer.send(last=True)
    finally:
        lock.release()
    if buffer.waiting:
        raise ConfigError(f"{len(buffer.waiting)} messages wait on: {redact_credentials(buffer.reason or '')}")
    return f"all is in {redact_credentials(place)}"


def points(folder: Path, facts: Mapping[str, Any]) -> list[list[Any]]:
    """Return the points of a run's curves as MLflow takes them: name, value, timestamp, step.

    For an unfinished run they end with its last checkpoint, because a resumed run trains later epochs again.
    """
    directory = RunDirectory(folder)
    records = directory.epochs()
    if facts.get("status") != Status.FINISHED:
        checkpoints = Checkpoints(directory.checkpoints)
        while records and not checkpoints.holds(records[-1]):
            records.pop()
    return [point for record in records for point in metric_points(record)]
