"""Upload of one message of a run to MLflow. Uploading a message twice is idempotent.

Points of curves have a timestamp; files, tables and tags replace those of the same name; parameters stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.runs.run_directory import CHECKPOINTS, EVALUATIONS, FACTS, INPUTS, TRAINING_FEATURES
from experiments.system.startup import quiet_start
from experiments.tracking import model_logging
from experiments.tracking.private_mlflow_api import table_tag

if TYPE_CHECKING:
    import keras
    from mlflow import MlflowClient

UNSENT, MODEL = "unsent.jsonl", "unsent.keras"  # the tracking buffer's files in the run directory
# Entries there that are not uploaded. Evaluations are runs of their own in MLflow.
LOCAL = (".hydra", INPUTS, CHECKPOINTS, EVALUATIONS, FACTS, TRAINING_FEATURES, UNSENT, MODEL)
BATCH = {"params": 100, "tags": 100, "metrics": 1000}  # MLflow's limits for a request
REJECTED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")


class Kind(StrEnum):
    """What a message of a run contains."""

    PARAMETERS = "parameters"
    TAGS = "tags"
    DATA = "data"
    METRICS = "metrics"
    ARTIFACTS = "artifacts"
    MODEL = "model"
    END = "end"


class Message(NamedTuple):
    """A message of a run: what is to be logged to MLflow."""

    run_id: str
    kind: Kind
    content: Any  # serializable as JSON


def upload(folder: Path, message: Message, model: keras.Model | None) -> None:
    """Upload one message to MLflow; of the kind MODEL, `model` or the one that is saved in the run directory.

    Raises:
        MlflowException, SQLAlchemyError, OSError: the upload has failed.
    """
    import mlflow
    from mlflow.entities import Metric, Param, RunTag

    client = mlflow.MlflowClient()
    run_id, content = message.run_id, message.content
    match message.kind:
        case Kind.PARAMETERS:
            # MLflow refuses another value, such as the path at which a resumed run now finds its images.
            known = client.get_run(run_id).data.params
            new = [Param(name, value) for name, value in content.items() if name not in known]
            log_in_batches(client, run_id, "params", new)
        case Kind.TAGS:
            log_in_batches(client, run_id, "tags", [RunTag(name, str(value)) for name, value in content.items()])
        case Kind.METRICS:
            log_in_batches(client, run_id, "metrics", [Metric(*point) for point in content])
        case Kind.DATA:
            # One input stands for all splits, because MLflow does not store a second input with the same digest.
            log_data(client, run_id, content, "training")
        case Kind.ARTIFACTS:
            log_files(client, run_id, folder, content)
        case Kind.MODEL:
            model_logging.log_model(client, run_id, model or kept_model(folder), content)
        case Kind.END:
            if content["failure"]:
                client.set_tag(run_id, "failure", content["failure"])
            elif "failure" in client.get_run(run_id).data.tags:  # Another process has marked the run as lost.
                client.delete_tag(run_id, "failure")
            client.set_terminated(run_id, content["status"], content["time"])


def log_in_batches(client: MlflowClient, run_id: str, what: str, values: list[Any]) -> None:
    """Log parameters, tags or metrics in requests of at most as many as MLflow accepts."""
    for start in range(0, len(values), BATCH[what]):
        request: dict[str, Any] = {what: values[start : start + BATCH[what]]}
        client.log_batch(run_id, **request)


def log_data(client: MlflowClient, run_id: str, data: Mapping[str, str], context: str) -> None:
    """Log the data set that a run has read: its name, digest and source, and what it was read for."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = Dataset(data["name"], data["digest"], "local", json.dumps({"uri": data["source"]}))
    client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", context)])])


def log_files(client: MlflowClient, run_id: str, folder: Path, tables: Mapping[str, Mapping[str, list[Any]]]) -> None:
    """Log all files of the run directory except LOCAL, and tables in the format of mlflow.log_table.

    mlflow.log_table itself would append to an existing table.
    """
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and inside.parts[0] not in LOCAL and not path.name.startswith("."):  # no temporary files
            client.log_artifact(run_id, str(path), inside.parent.as_posix() if len(inside.parts) > 1 else None)
    for name, table in tables.items():
        rows = [list(row) for row in zip(*table.values(), strict=True)]
        client.log_text(run_id, json.dumps({"columns": list(table), "data": rows}), f"{name}.json")
    client.set_tag(run_id, *table_tag(f"{name}.json" for name in tables))


def kept_model(folder: Path) -> keras.Model:
    """Load the model that could not be uploaded from the run directory, or raise OSError."""
    with quiet_start():
        import keras

    try:
        model: keras.Model = keras.models.load_model(folder / MODEL, compile=False)
    except Exception as error:  # Keras raises exceptions of many classes, for example for an unknown layer.
        raise OSError(f"{folder / MODEL}: the run's model cannot be read: {error}") from None
    return model


def is_unavailable(error: Exception) -> bool:
    """Return whether the store is unavailable; else it has rejected one message, or this machine cannot create it."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError, RequestException

    if isinstance(error, MlflowException):
        return error.error_code not in REJECTED
    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code in (401, 403, 408, 429) or error.response.status_code >= 500
    unsent = (OSError, NotImplementedError, TypeError, ValueError)  # of a file, or a model that Keras cannot save
    return isinstance(error, RequestException) or not isinstance(error, unsent)
