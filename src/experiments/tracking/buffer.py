"""What a run has to tell MLflow, as messages: a store that is away costs the run nothing, and loses nothing.

What cannot be delivered waits in the run's folder, for the run's next try or for `experiments sync`. Every message may
be told twice without standing twice: points of curves are told with their time, files and tables lie where they lay.
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

if TYPE_CHECKING:
    import keras

UNSENT, MODEL = "unsent.jsonl", "unsent.keras"  # in the run's folder
LOCAL = (".hydra", "inputs", "checkpoints", "run.json", UNSENT, MODEL)  # what is no artifact there
SEND_EVERY = 1.0  # seconds at least between two calls that send points of curves
SHARE = 0.1  # of the time, that trying in vain may take

_log = logging.getLogger(__name__)


class Message(NamedTuple):
    """A verb that `deliver` knows, and what goes with it, as JSON holds it; of which run."""

    run_id: str
    verb: str
    given: Any


class TrackingBuffer:
    """A run's messages in their order, until MLflow has them.

    Args:
        run_id: of the MLflow run.
        folder: of the run; what an earlier process left undelivered there is delivered, too.
    """

    def __init__(self, run_id: str, folder: Path) -> None:
        self.run_id, self.folder = run_id, folder
        self.waiting = read(folder)
        self.model: keras.Model | None = None  # of the message `model`
        self.reason: str | None = None  # why the last try failed
        self.next_try = time.monotonic() + SEND_EVERY
        self.kept = 0.0  # when the file was last written

    def begin(self, replaced: str | None = None) -> None:
        """Make ready for a run that goes on from here, in a folder that an earlier one may have used.

        How that one ended is no longer so; the files that another run was to send from this folder are gone.

        Args:
            replaced: the run that this one goes on for, because the store does not have it any more.
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
        """Delivers what waits, in its order.

        Args:
            points: only points of curves have come: there is no hurry.
            last: there will be no other time. Otherwise a store that is away is not asked again before ten times as
                long as it was waited for.
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
            except Exception as error:  # of MLflow, a database, a client of somebody's cloud: none is worth a run
                reason = str(error)[:500]
                if away(error):
                    break
                at += 1
            else:
                del self.waiting[at]
        if last:  # what keeps the others waiting may not keep the end: a store for artifacts that is away, say
            for message in [one for one in self.waiting[at + 1 :] if (one.run_id, one.verb) == (self.run_id, "end")]:
                with contextlib.suppress(Exception):
                    deliver(self.folder, message, None)
                    self.waiting.remove(message)
        ended = time.monotonic()
        self.next_try = ended + max(SEND_EVERY, (ended - began) / SHARE if reason else 0)
        if reason and not self.reason and not last:
            _log.warning(
                "MLflow cannot be told (%s). Training goes on; what is to be told waits in %s",
                redact_credentials(reason), self.folder / UNSENT,
            )  # fmt: skip
        if self.reason and not reason:
            _log.warning("MLflow has been told everything that had waited")
        self.reason = reason
        self.keep()

    def keep(self) -> None:
        """Writes what waits into the run's folder; nothing waits: no file."""
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
    """Delivers what an ended run left in its folder.

    Args:
        run_id: of the MLflow run.
        folder: of the run.
        uri: the MLflow store.
        points: of its curves, as the message `metrics` has them, that are to be told whether they wait or not.
        status: how it ended, as its folder says; it may have gone on without MLflow.

    Returns:
        How many messages wait on, and why.
    """
    prepare()

    connection.use(uri)
    outbox = TrackingBuffer(run_id, folder)
    for message in outbox.waiting:
        if message.verb == "end" and message.run_id == run_id and status == "FINISHED":
            message.given.update(status=status, failure=None)
    if points:
        outbox.waiting.insert(0, Message(run_id, "metrics", points))
    outbox.send(last=True)
    return len(outbox.waiting), outbox.reason


def read(folder: Path) -> list[Message]:
    """The messages that wait in a run's folder.

    Raises:
        ConfigError: the file is not what this program writes.
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
    """Imports MLflow, set up for us; with its defaults a server that is down blocks for minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one a file, of a few kilobytes mostly
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # our requirements are given, not looked for
    import mlflow  # noqa: F401  sets up its logging

    logging.getLogger("mlflow").setLevel(logging.ERROR)


def failures() -> tuple[type[Exception], ...]:
    """What MLflow raises where its store is away or does not want something."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError)  # requests' errors are OSErrors


def away(error: Exception) -> bool:
    """Whether the store is away; else it only would not take, or this machine could not make, this one message."""
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
    """Tells MLflow one message.

    Args:
        folder: of the run.
        message: what to tell.
        model: the run's, for the message `model`; None: the one that was left in the folder.

    Raises:
        MlflowException, SQLAlchemyError, OSError: it could not be told.
    """
    import mlflow
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag

    client = mlflow.MlflowClient()
    run_id, given = message.run_id, message.given
    if message.verb == "parameters":
        params = [Param(name, value) for name, value in given.items()]
        for at in range(0, len(params), 100):  # a batch holds no more
            client.log_batch(run_id, params=params[at : at + 100])
    elif message.verb == "tags":
        tags = [RunTag(name, str(value)) for name, value in given.items()]
        for at in range(0, len(tags), 100):
            client.log_batch(run_id, tags=tags[at : at + 100])
    elif message.verb == "data":
        with warnings.catch_warnings(action="ignore"):  # a path fits two of MLflow's sources, which are the same
            source = resolve_dataset_source(given["source"])
        data = MetaDataset(source, name=given["name"], digest=given["digest"])  # type: ignore[abstract]
        tag = InputTag("mlflow.data.context", "training")  # all splits; of a second input of this digest none is kept
        client.log_inputs(run_id, [DatasetInput(data._to_mlflow_entity(), [tag])])
    elif message.verb == "metrics":
        points = [Metric(*point) for point in given]
        for at in range(0, len(points), 1000):
            client.log_batch(run_id, metrics=points[at : at + 1000])
    elif message.verb == "artifacts":
        log_files(run_id, folder, given)
    elif message.verb == "model":
        model_logging.log_model(run_id, model or left(folder), given)
    elif message.verb == "end":
        if given["failure"]:
            client.set_tag(run_id, "failure", given["failure"])
        elif "failure" in client.get_run(run_id).data.tags:  # it was taken for lost meanwhile
            client.delete_tag(run_id, "failure")
        client.set_terminated(run_id, given["status"], given["time"])
    else:
        raise ValueError(f"no such message. Received: {message.verb!r}")


def log_files(run_id: str, folder: Path, tables: Mapping[str, Mapping[str, list[Any]]]) -> None:
    """Everything in the run's folder but LOCAL, and tables as mlflow.log_table has them, which would append instead."""
    import mlflow

    client = mlflow.MlflowClient()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and inside.parts[0] not in LOCAL and not path.name.startswith("."):  # drafts
            client.log_artifact(run_id, str(path), inside.parent.as_posix() if len(inside.parts) > 1 else None)
    for name, table in tables.items():
        rows = [list(row) for row in zip(*table.values(), strict=True)]
        client.log_text(run_id, json.dumps({"columns": list(table), "data": rows}), f"{name}.json")
    known = [{"path": f"{name}.json", "type": "table"} for name in tables]
    client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(known))


def left(folder: Path) -> keras.Model:
    """The model that a run left in its folder, because MLflow could not be given it.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    import keras

    try:
        model: keras.Model = keras.models.load_model(folder / MODEL, compile=False)
    except Exception as error:  # Keras raises many: of a layer that is not known here, say
        raise OSError(f"{folder / MODEL}: the run's model cannot be read: {error}") from None
    return model
