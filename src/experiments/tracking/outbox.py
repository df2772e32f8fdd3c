"""What a run has to tell MLflow, as messages: a store that is away costs the run nothing, and loses nothing.

What cannot be delivered waits in the run's folder, for the run's next try or for `experiments sync`. Every message may
be told twice without standing twice: points of curves are told with their time, files and tables lie where they lay.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments import store
from experiments.quiet import without_passwords

if TYPE_CHECKING:
    import keras

UNSENT, MODEL = "unsent.jsonl", "unsent.keras"  # in the run's folder
LOCAL = (".hydra", "inputs", "checkpoints", ".run.lock", "run.json", UNSENT, MODEL)  # what is no artifact there
SEND_EVERY = 1.0  # seconds at least between two calls that send points of curves
SHARE = 0.1  # of the time, that trying in vain may take

_log = logging.getLogger(__name__)


class Message(NamedTuple):
    """A verb that `deliver` knows, and what goes with it, as JSON holds it."""

    verb: str
    given: Any


class Outbox:
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

    def put(self, verb: str, given: Any) -> None:
        if verb == "metrics" and self.waiting and self.waiting[-1].verb == "metrics":
            self.waiting[-1].given.extend(given)
        else:
            self.waiting.append(Message(verb, given))

    def send(self, at_once: bool = True) -> None:
        """Delivers what waits; otherwise than `at_once`, only where it is time for it.

        A store that is away is not asked again before ten times as long as it was waited for.
        """
        began = time.monotonic()
        if not at_once and began < self.next_try:
            if self.reason:
                self.keep()
            return
        failed, reason = [], None
        while self.waiting:
            try:
                deliver(self.run_id, self.folder, self.waiting[0], self.model)
            except failures() as error:
                reason = str(error)[:500]
                failed.append(self.waiting.pop(0))
                if not refused(error):
                    break
            else:
                self.waiting.pop(0)
        self.waiting = failed + self.waiting
        ended = time.monotonic()
        self.next_try = ended + max(SEND_EVERY, (ended - began) / SHARE if reason else 0)
        if reason and not self.reason:
            _log.warning(
                "MLflow cannot be told (%s). Training goes on; what is to be told waits in %s",
                without_passwords(reason), self.folder / UNSENT,
            )  # fmt: skip
        if self.reason and not reason:
            _log.warning("MLflow has been told everything that had waited")
        self.reason = reason
        self.keep()

    def keep(self) -> None:
        """Writes what waits into the run's folder; nothing waits: no file."""
        write(self.folder, self.waiting)
        file = self.folder / MODEL
        if not any(message.verb == "model" for message in self.waiting):
            file.unlink(missing_ok=True)
        elif self.model is not None and not file.exists():
            aside = self.folder / f"aside-{MODEL}"
            self.model.save(aside)
            aside.replace(file)


def sync(run_id: str, folder: Path, uri: str, points: list[list[Any]]) -> tuple[int, str | None]:
    """Delivers what an ended run left in its folder.

    Args:
        run_id: of the MLflow run.
        folder: of the run.
        uri: the MLflow store.
        points: of its curves, as the message `metrics` has them, that are to be told whether they wait or not.

    Returns:
        How many messages wait on, and why.
    """
    prepare()
    import mlflow

    mlflow.set_tracking_uri(uri)
    outbox = Outbox(run_id, folder)
    if points:
        outbox.waiting.insert(0, Message("metrics", points))
    outbox.send()
    return len(outbox.waiting), outbox.reason


def read(folder: Path) -> list[Message]:
    """The messages that wait in a run's folder."""
    try:
        lines = (folder / UNSENT).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [Message(*json.loads(line)) for line in lines]


def write(folder: Path, messages: Iterable[Message]) -> None:
    text = "".join(f"{json.dumps(message)}\n" for message in messages)
    if text:
        store.write_file(folder / UNSENT, text.encode())
    else:
        (folder / UNSENT).unlink(missing_ok=True)


def prepare() -> None:
    """Imports MLflow, set up for us; with its defaults a server that is down blocks for minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # our requirements are given, not looked for
    import mlflow  # noqa: F401  sets up its logging

    logging.getLogger("mlflow").setLevel(logging.ERROR)


def failures() -> tuple[type[Exception], ...]:
    """What MLflow raises where its store is away or does not want something."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError)  # requests' errors are OSErrors


def refused(error: Exception) -> bool:
    """Whether the store was there and would not take this one message; others it may take."""
    return getattr(error, "error_code", None) in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")


def deliver(run_id: str, folder: Path, message: Message, model: keras.Model | None) -> None:
    """Tells MLflow one message.

    Args:
        run_id: of the MLflow run.
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
    given = message.given
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
        log_model(run_id, model or left(folder), given)
    elif message.verb == "end":
        client.set_terminated(run_id, given["status"], given["time"])
        if given["status"] == "FINISHED" and "failure" in client.get_run(run_id).data.tags:  # taken for lost meanwhile
            client.delete_tag(run_id, "failure")
    else:
        raise ValueError(f"no such message. Received: {message.verb!r}")


def log_files(run_id: str, folder: Path, tables: Mapping[str, Mapping[str, list[Any]]]) -> None:
    """Everything in the run's folder but LOCAL, and tables as mlflow.log_table has them, which would append instead."""
    import mlflow

    client = mlflow.MlflowClient()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and inside.parts[0] not in LOCAL:
            client.log_artifact(run_id, str(path), inside.parent.as_posix() if len(inside.parts) > 1 else None)
    for name, table in tables.items():
        rows = [list(row) for row in zip(*table.values(), strict=True)]
        client.log_text(run_id, json.dumps({"columns": list(table), "data": rows}), f"{name}.json")
    known = [{"path": f"{name}.json", "type": "table"} for name in tables]
    client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(known))


def left(folder: Path) -> keras.Model:
    """The model that a run left in its folder, because MLflow could not be given it."""
    import keras

    if not (folder / MODEL).is_file():
        raise OSError(f"{folder / MODEL}: the run's model is not there")
    model: keras.Model = keras.models.load_model(folder / MODEL, compile=False)
    return model


def log_model(run_id: str, model: keras.Model, classes: int) -> None:
    """The whole model, loadable by mlflow.keras.load_model; one that was begun before is replaced."""
    import mlflow.keras
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    client = mlflow.MlflowClient()
    info = client.get_run(run_id).info
    begun = client.search_logged_models([info.experiment_id], f"source_run_id = '{run_id}'")
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("float32"), (-1, *model.input_shape[1:]), "pixels")]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, classes))]),
    )
    # Given here, because MLflow's own search for them starts a process that imports everything again.
    requirements = [f"{name}=={importlib.metadata.version(name)}" for name in ("tensorflow", "keras", "numpy")]
    with contextlib.nullcontext() if mlflow.active_run() else mlflow.start_run(run_id=run_id):
        mlflow.keras.log_model(model, name="model", signature=signature, pip_requirements=requirements)
    if info.status != "RUNNING":  # which it became once more
        client.set_terminated(run_id, info.status, info.end_time)
    for old in begun:
        client.delete_logged_model(old.model_id)
