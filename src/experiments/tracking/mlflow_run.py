"""The MLflow run that mirrors a run directory: starting it, logging to it, ending it."""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config.identity import hidden, logged
from experiments.config.schema import Config
from experiments.data.types import Dataset
from experiments.errors import Pruned
from experiments.runs.curves import metric_points
from experiments.system.redaction import redact_credentials, redacted
from experiments.tracking import buffer, connection, liveness
from experiments.tracking.description import environment_tags, flat_parameters, run_name
from experiments.tracking.experiment import open_experiment
from experiments.tracking.private_mlflow_api import NOTE, PARENT_RUN, context_tags
from experiments.tracking.queries import find_run, in_trash
from experiments.tracking.upload import Kind
from experiments.training.types import EpochRecord, Status

if TYPE_CHECKING:
    import keras
    from mlflow import MlflowClient
    from mlflow.entities import Run

_log = logging.getLogger(__name__)


@contextmanager
def track(config: Config, folder: Path, run_id: str | None = None) -> Iterator[MlflowRun]:
    """Open an MLflow run and end it as FINISHED, FAILED or KILLED; with tracking=none, yield one without effect.

    `run_id` is that of the MLflow run to continue; None for a new one. If the tracking store becomes unavailable during
    the run, training continues and messages are kept, see `buffer`; also if a run is continued with tracking=none.
    """
    uri = config.tracking.uri
    if uri is None and run_id is None:
        yield MlflowRun(None, folder)
        return
    buffer.read(folder)  # An error of a damaged buffer has to be raised before the run starts.
    started = run_id if uri is None else start_run(config, open_experiment(config), folder, run_id)
    tracker = MlflowRun(started, folder, run_id, keeps=uri is None)
    tracker.buffer.send()  # what an earlier process has left
    status, reason = Status.FINISHED, None
    try:
        with _alive(config, str(started)) if uri is not None else contextlib.nullcontext():
            yield tracker
    except BaseException as error:
        failed = isinstance(error, Exception | SystemExit) and not isinstance(error, Pruned)
        status = Status.FAILED if failed else Status.KILLED
        reason = redact_credentials(hidden(config, f"{type(error).__name__}: {error}"))[:5000]
        raise
    finally:
        tracker.end(status, reason)


def _alive(config: Config, run_id: str) -> contextlib.AbstractContextManager[None]:
    """Log which store a run uses, and send its heartbeat during the returned context."""
    import mlflow

    origin = " (MLFLOW_TRACKING_URI; tracking.uri=... for another)" if "tracking.uri" in config.unresolved else ""
    _log.info("MLflow store: %s%s", redact_credentials(str(config.tracking.uri)), origin)
    return liveness.heartbeat(lambda now: mlflow.MlflowClient().set_tag(run_id, "owner.heartbeat", now))


def start_run(config: Config, experiment: str, folder: Path, run_id: str | None) -> str:
    """Start an MLflow run, or continue one, and return its id.

    A run that is not in the tracking store is replaced with a new one, as a resumed run logs all of its epochs again.
    The run is not MLflow's active run, which MLflow marks as FINISHED at the end of the process, even after a failure.
    """
    uri, plain = str(config.tracking.uri), logged(config)
    tags = {**liveness.owner(), "run_folder": str(folder)}
    if config.sweep.parent:
        tags[PARENT_RUN] = config.sweep.parent
    with connection.client(uri) as client:
        before = None if run_id is None else find_run(client, run_id)
        if before is not None:
            return reopen(client, before, tags)
        notes = {NOTE: plain["notes"]} if plain["notes"] else {}
        tags = redacted(context_tags({**plain["tags"], **notes, **tags}))
        started = str(client.create_run(experiment, run_name=run_name(folder), tags=tags).info.run_id)
    if run_id is not None:
        _log.warning(
            "MLflow run %s is not in %s (it was deleted for good, or is in another store): this run goes on as "
            "MLflow run %s", run_id, redact_credentials(uri), started,
        )  # fmt: skip
    return started


def reopen(client: MlflowClient, run: Run, tags: Mapping[str, str]) -> str:
    """Mark an ended run as RUNNING again, with new tags, and return its id; a run in the trash is restored."""
    run_id = str(run.info.run_id)
    if in_trash(run):
        client.restore_run(run_id)
        _log.warning("MLflow run %s was in MLflow's trash: it is restored", run_id)
    for name, value in tags.items():
        client.set_tag(run_id, name, value)
    if "failure" in run.data.tags:
        client.delete_tag(run_id, "failure")
    client.update_run(run_id, status=Status.RUNNING)  # last: with the tags of its former process it would count as lost
    return run_id


class MlflowRun:
    """The MLflow run of a run directory, to which a tracking buffer is uploaded.

    Args:
        run_id: the id of the MLflow run; None with tracking=none: the run directory is the only record.
        folder: the run directory.
        before: the id of the MLflow run that the directory had before, if any.
        keeps: see `TrackingBuffer`.
    """

    def __init__(self, run_id: str | None, folder: Path, before: str | None = None, *, keeps: bool = False) -> None:
        self.run_id, self.folder = run_id, folder
        self.buffer = buffer.TrackingBuffer(run_id, folder, keeps=keeps)
        if run_id is not None:
            self.buffer.drop_outdated(before if before != run_id else None)

    def describe(self, config: Config, dataset: Dataset, facts: Mapping[str, str]) -> None:
        """Log parameters, tags and the data set before the training."""
        source = config.unresolved.get("data.root", str(dataset.manifest.root))
        digest = dataset.fingerprint[:32]  # MLflow does not accept a longer one.
        self.buffer.put(Kind.PARAMETERS, flat_parameters(logged(config)))
        self.buffer.put(Kind.TAGS, {**environment_tags(), **facts})
        self.buffer.put(Kind.DATA, {"source": source, "name": config.data.name, "digest": digest})
        self.buffer.send()

    def epoch(self, record: EpochRecord) -> None:
        """Log one point of every curve; epochs that are shorter than SEND_EVERY are sent together."""
        self.buffer.put(Kind.METRICS, metric_points(record))
        self.buffer.send(points=True)

    def results(self, metrics: Mapping[str, float], facts: Mapping[str, Any], timestamp: int) -> None:
        """Log the final metrics, and facts as tags.

        Logging metrics again with the same timestamp, in ms since 1970, is idempotent.
        """
        self.buffer.put(Kind.METRICS, [[name, value, timestamp, 0] for name, value in metrics.items()])
        self.buffer.put(Kind.TAGS, dict(facts))
        self.buffer.send()

    def artifacts(self, tables: Mapping[str, Mapping[str, list[Any]]]) -> None:
        """Log all files of the run directory, and tables that the UI can display."""
        self.buffer.put(Kind.ARTIFACTS, tables)
        self.buffer.send()

    def model(self, model: keras.Model, classes: Sequence[str]) -> None:
        """Log the whole model, for mlflow.keras.load_model and for serving."""
        self.buffer.model = model
        self.buffer.put(Kind.MODEL, list(classes))
        self.buffer.send()

    def end(self, status: str, reason: str | None) -> None:
        """End the run, and log a warning if messages could not be uploaded."""
        self.buffer.put(Kind.END, {"status": status, "failure": reason, "time": int(time.time() * 1000)})
        # The disk may be full, or Keras cannot save the model; an error that has ended the run is raised anyway.
        with contextlib.suppress(Exception):
            self.buffer.keep()  # first, because a process that is being stopped may be killed while it waits below
        with contextlib.suppress(Exception):
            self.buffer.send(last=True)
        if self.buffer.waiting:
            _log.warning(
                "Not all of this run is in MLflow (%s). When it can be: experiments sync %s",
                redact_credentials(self.buffer.reason or ""), shlex.quote(str(self.folder)),
            )  # fmt: skip
