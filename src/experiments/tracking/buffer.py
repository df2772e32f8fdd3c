"""Tracking buffer: the messages of a run for MLflow, which are kept while the tracking store is unavailable.

An unavailable store neither stops a run nor loses data. Messages that cannot be uploaded are kept in the run directory,
for the run's next attempt or for `experiments sync`. Uploading a message twice is idempotent: points of curves have a
timestamp, files and tables replace those of the same name.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.errors import ConfigError
from experiments.storage import atomic_files
from experiments.system.redaction import redact_credentials, redacted
from experiments.tracking import connection, model_logging
from experiments.training.types import Status

if TYPE_CHECKING:
    import keras

UNSENT, MODEL = "unsent.jsonl", "unsent.keras"  # in the run directory
LOCAL = (".hydra", "inputs", "checkpoints", "run.json", UNSENT, MODEL)  # entries there that are not uploaded
SEND_EVERY = 1.0  # minimum seconds between two calls that send points of curves
SHARE = 0.1  # the largest share of the time that failing attempts may take

_log = logging.getLogger(__name__)


class Message(NamedTuple):
    """A message of a run: one of the verbs that `deliver` handles, with its data."""

    run_id: str
    verb: str
    given: Any  # serializable as JSON


class TrackingBuffer:
    """The messages of a run that are still to be uploaded, in order.

    Args:
        run_id: the id of the MLflow run.
        folder: the run directory; messages that an earlier process has left there are uploaded, too.
    """

    def __init__(self, run_id: str, folder: Path) -> None:
        self.run_id, self.folder = run_id, folder
        self.waiting = read(folder)
        self.model: keras.Model | None = None  # the model for the message `model`
        self.reason: str | None = None  # why the last attempt failed
        self.next_try = time.monotonic() + SEND_EVERY
        self.kept = 0.0  # the time when the file was last written

    def begin(self, replaced: str | None = None) -> None:
        """Drop buffered messages that are outdated, as a new or resumed run begins in this directory.

        Messages about the end of this run are outdated, as it continues. Artifacts and models of other runs are
        dropped, as their files are no longer in this directory.

        Args:
            replaced: the id of the run that this one replaces because the store no longer has it; all of its messages
                are dropped.
        """
        mine = [message for message in self.waiting if message.run_id == self.run_id and message.verb != "end"]
        others = [message for message in self.waiting if message.run_id not in (self.run_id, replaced)]
        self.waiting = [message for message in others if message.verb not in ("artifacts", "model")] + mine
        if not any(message.verb == "model" for message in mine):
            (self.folder / MODEL).unlink(missing_ok=True)

    def put(self, verb: str, given: Any) -> None:
        given = redacted(given) if verb in ("parameters", "tags", "data", "end") else given
        last = self.waiting[-1] if self.waiting else None
        if last and (last.run_id, last.verb, verb) == (self.run_id, "metrics", "metrics"):
            last.given.extend(given)
        else:
            self.waiting.append(Message(self.run_id, verb, given))

    def send(self, *, points: bool = False, last: bool = False) -> None:
        """Upload the buffered messages in order.

        Args:
            points: whether only points of curves were added, which are sent at most every SEND_EVERY seconds.
            last: whether this is the last attempt, which is made at once. Otherwise, after a failed attempt, the next
                one is made only after ten times the duration of the failed one.
        """
        began = time.monotonic()
        if not last and began < self.next_try and (points or self.reason):
            if self.reason and (not points or began - self.kept > SEND_EVERY):
                self.keep()
            return
        at, reason = 0, None
        while at < len(self.waiting):
            try:
                deliver(self.folder, self.waiting[at], self.model)
            except Exception as error:  # MLflow, a database or a cloud client failed; none of them may stop the run.
                reason = str(error)[:500]
                if away(error):
                    break
                at += 1
            else:
                del self.waiting[at]
        if last:  # The run's end is uploaded even if other messages cannot be, for example without an artifact store.
            for message in [one for one in self.waiting[at + 1 :] if (one.run_id, one.verb) == (self.run_id, "end")]:
                with contextlib.suppress(Exception):
                    deliver(self.folder, message, None)
                    self.waiting.remove(message)
        ended = time.monotonic()
        self.next_try = ended + max(SEND_EVERY, (ended - began) / SHARE if reason else 0)
        if reason and not self.reason and not last:
            _log.warning(
                "MLflow cannot be reached (%s). Training continues; what could not be uploaded is buffered in %s",
                redact_credentials(reason), self.folder / UNSENT,
            )  # fmt: skip
        if self.reason and not reason:
            _log.warning("Everything that was buffered has been uploaded to MLflow")
        self.reason = reason
        self.keep()

    def keep(self) -> None:
        """Write the buffered messages and model to the run directory, or delete the files if there are none."""
        file, aside = self.folder / MODEL, self.folder / f".aside-{MODEL}"
        if not any(message.verb == "model" for message in self.waiting):
            file.unlink(missing_ok=True)
        elif self.model is not None and not file.exists():
            try:
                self.model.save(aside)
                aside.replace(file)
            finally:
                aside.unlink(missing_ok=True)
        write(self.folder, self.waiting)
        self.kept = time.monotonic()


def sync(run_id: str, folder: Path, uri: str, points: list[list[Any]], status: str | None) -> tuple[int, str | None]:
    """Upload the messages that an ended run has left in its directory.

    Args:
        run_id: the id of the MLflow run.
        folder: the run directory.
        uri: the tracking store.
        points: points of its curves, in the format of the message `metrics`, which are uploaded even if they are not
            in the buffer.
        status: how the run has ended according to its directory; it may have continued without MLflow.

    Returns:
        The number of messages that could not be uploaded, and the reason.
    """
    prepare()

    connection.use(uri)
    outbox = TrackingBuffer(run_id, folder)
    for message in outbox.waiting:
        if message.verb == "end" and message.run_id == run_id and status == Status.FINISHED:
            message.given.update(status=status, failure=None)
    if points:
        outbox.waiting.insert(0, Message(run_id, "metrics", points))
    outbox.send(last=True)
    return len(outbox.waiting), outbox.reason


def read(folder: Path) -> list[Message]:
    """Return the buffered messages of a run directory.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        lines = (folder / UNSENT).read_text(encoding="utf-8").splitlines()
        return [Message(*json.loads(line)) for line in lines]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{folder / UNSENT}: is damaged ({error}). Move it away to go on without it") from None


def write(folder: Path, messages: Iterable[Message]) -> None:
    text = "".join(f"{json.dumps(message)}\n" for message in messages)
    if text:
        atomic_files.write_file(folder / UNSENT, text.encode())
    else:
        (folder / UNSENT).unlink(missing_ok=True)


def prepare() -> None:
    """Set MLflow's environment variables and import it; with its defaults, a server that is down blocks for minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A progress bar per file would only be noise, as most files have a few kilobytes.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # `log_model` gives the requirements explicitly.
    import mlflow  # noqa: F401  The import configures MLflow's logging.

    logging.getLogger("mlflow").setLevel(logging.ERROR)


def failures() -> tuple[type[Exception], ...]:
    """Return the exceptions that MLflow raises if its store is unavailable or rejects a request."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError)  # The exceptions of requests are OSErrors.


def away(error: Exception) -> bool:
    """Return whether an error means that the store is unavailable.

    Otherwise only this message has failed: the store has rejected it, or this machine could not create its content.
    """
    from mlflow.exceptions import MlflowException
    from requests import HTTPError, RequestException

    if isinstance(error, MlflowException):
        return error.error_code not in (
            "INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"
        )  # fmt: skip
    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code in (401, 403, 408, 429) or error.response.status_code >= 500
    return isinstance(error, RequestException) or not isinstance(error, OSError)


def deliver(folder: Path, message: Message, model: keras.Model | None) -> None:
    """Upload one message to MLflow.

    Args:
        folder: the run directory.
        message: the message to upload.
        model: the run's model, for the message `model`; None for the one that is saved in the run directory.

    Raises:
        MlflowException, SQLAlchemyError, OSError: the upload has failed.
    """
    import mlflow
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag

    client = mlflow.MlflowClient()
    run_id, given = message.run_id, message.given
    if message.verb == "parameters":
        params = [Param(name, value) for name, value in given.items()]
        for at in range(0, len(params), 100):  # MLflow limits a batch to 100 parameters, 100 tags and 1000 metrics.
            client.log_batch(run_id, params=params[at : at + 100])
    elif message.verb == "tags":
        tags = [RunTag(name, str(value)) for name, value in given.items()]
        for at in range(0, len(tags), 100):
            client.log_batch(run_id, tags=tags[at : at + 100])
    elif message.verb == "data":
        with warnings.catch_warnings(action="ignore"):  # MLflow warns that a path fits two equivalent source classes.
            source = resolve_dataset_source(given["source"])
        data = MetaDataset(source, name=given["name"], digest=given["digest"])  # type: ignore[abstract]
        # One input stands for all splits, because MLflow does not store a second input with the same digest.
        tag = InputTag("mlflow.data.context", "training")
        client.log_inputs(run_id, [DatasetInput(data._to_mlflow_entity(), [tag])])
    elif message.verb == "metrics":
        points = [Metric(*point) for point in given]
        for at in range(0, len(points), 1000):
            client.log_batch(run_id, metrics=points[at : at + 1000])
    elif message.verb == "artifacts":
        log_files(run_id, folder, given)
    elif message.verb == "model":
        model_logging.log_model(run_id, model or pending_count(folder), given)
    elif message.verb == "end":
        if given["failure"]:
            client.set_tag(run_id, "failure", given["failure"])
        elif "failure" in client.get_run(run_id).data.tags:  # Another process has marked the run as lost meanwhile.
            client.delete_tag(run_id, "failure")
        client.set_terminated(run_id, given["status"], given["time"])
    else:
        raise ValueError(f"no such message. Received: {message.verb!r}")


def log_files(run_id: str, folder: Path, tables: Mapping[str, Mapping[str, list[Any]]]) -> None:
    """Log all files of the run directory except LOCAL, and tables in the format of mlflow.log_table.

    mlflow.log_table itself would append to an existing table.
    """
    import mlflow

    client = mlflow.MlflowClient()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and inside.parts[0] not in LOCAL and not path.name.startswith("."):  # no temporary files
            client.log_artifact(run_id, str(path), inside.parent.as_posix() if len(inside.parts) > 1 else None)
    for name, table in tables.items():
        rows = [list(row) for row in zip(*table.values(), strict=True)]
        client.log_text(run_id, json.dumps({"columns": list(table), "data": rows}), f"{name}.json")
    known = [{"path": f"{name}.json", "type": "table"} for name in tables]
    client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(known))


def pending_count(folder: Path) -> keras.Model:
    """Load the model that a run has saved in its directory because it could not be uploaded.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    import keras

    try:
        model: keras.Model = keras.models.load_model(folder / MODEL, compile=False)
    except Exception as error:  # Keras raises exceptions of many classes, for example for an unknown layer.
        raise OSError(f"{folder / MODEL}: the run's model cannot be read: {error}") from None
    return model
