"""Queries: reading runs, their artifacts and their models from MLflow."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import ConfigError
from experiments.runs import curves, predictions
from experiments.runs.run_directory import CURVES
from experiments.system.paths import tracking_uri
from experiments.system.redaction import redact_credentials
from experiments.tracking import connection
from experiments.training.types import EpochRecord, Status

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class RunFacts:
    """A finished run with its logged parameters, metrics and tags."""

    run_id: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    experiment: str = ""  # the id of its MLflow experiment
    data: str | None = None  # the directory of its images


def local_store() -> str:
    """Return the default store of all commands: MLFLOW_TRACKING_URI, else the database in the local outputs/."""
    return tracking_uri()


def find_runs(uri: str, wanted: Sequence[str], tag: tuple[str, str] | None = None) -> list[RunFacts]:
    """Return finished runs, in the order of `wanted`.

    Args:
        uri: the tracking store.
        wanted: run ids, prefixes of them, run names, or what follows a dash in these, up to the end; empty for all
            runs.
        tag: name and value of a tag that the runs must have.

    Raises:
        ConfigError: the store does not exist, or a name fits no finished run or several.
    """
    found = search_runs(uri, f"tags.`{tag[0]}` = '{tag[1]}'" if tag else "")
    if not wanted:
        return found
    chosen = []
    for name in wanted:
        fitting = [run for run in found if name in (run.run_id, run.name)] or [
            run for run in found if _is_part(name, run.run_id, run.name)
        ]
        if len(fitting) != 1:
            known = ", ".join(f"{run.run_id[:8]} ({run.name})" for run in found[-8:]) or "none"
            what = _why_not(uri, name) if not fitting else f"{len(fitting)} runs fit"
            raise ConfigError(
                f"{name}: {what}. Give a run id, its beginning, a run name or its end. The latest runs in "
                f"{redact_credentials(uri)}: {known}"
            )
        chosen.append(fitting[0])
    return chosen


def _is_part(text: str, run_id: str, name: str) -> bool:
    """Return whether a text is the beginning of a run's id or, after a dash, the end of its name."""
    return run_id.startswith(text) or name == text or name.endswith(f"-{text.removeprefix('-')}")


def _why_not(uri: str, name: str) -> str:
    """Return why no finished run has this id or name: it is in the trash, is not finished, or does not exist."""
    with connection.client(uri) as client:
        from mlflow.entities import ViewType

        experiments = [experiment.experiment_id for experiment in client.search_experiments(ViewType.ALL)]
        for run in _every_run(client, experiments, "", ViewType.ALL):
            if _is_part(name, run.info.run_id, run.info.run_name):
                if in_trash(run):
                    experiment = client.get_experiment(run.info.experiment_id)
                    gone = experiment.lifecycle_stage == "deleted"
                    return experiment_in_trash(uri, experiment) if gone else trashed(uri, run)
                if run.info.status != Status.FINISHED:
                    return f"no finished run fits: this one is {run.info.status}"
                return "no finished run fits: this one is no training"
    return "no finished run fits"


def search_runs(uri: str, query: str = "") -> list[RunFacts]:
    """Return the finished training runs that fit a query in MLflow's syntax, the oldest first.

    Other MLflow runs, such as those of sweeps and comparisons, are not returned.

    Raises:
        ConfigError: the store does not exist or cannot be used, or MLflow cannot parse the query.
    """
    connection.check_runs(uri)
    with connection.client(uri) as client:
        from mlflow.exceptions import MlflowException

        try:
            experiments = [experiment.experiment_id for experiment in client.search_experiments()]
            runs = _every_run(client, experiments, query)
            return [facts(run) for run in runs if run.info.status == Status.FINISHED and "regime" in run.data.params]
        except MlflowException as error:
            if not query or error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise ConfigError(
                f"The query cannot be used: {str(error)[:500]}. Write it as MLflow does, for example: "
                "params.regime = 'finetune' and metrics.`validation.accuracy` > 0.9. "
                f"Received: {query!r}"
            ) from None


def _every_run(client: MlflowClient, experiments: list[str], query: str, view: int | None = None) -> Iterator[Run]:
    """Yield the runs of experiments that fit a query, the oldest first, from all pages of MLflow's response.

    Args:
        client: of the store.
        experiments: the ids of the experiments.
        query: in MLflow's syntax.
        view: MLflow's ViewType; None for runs that are not in the trash.
    """
    shown: dict[str, Any] = {} if view is None else {"run_view_type": view}
    token: str | None = ""
    while token is not None and experiments:
        page = client.search_runs(
            experiments, query, order_by=["attributes.start_time ASC"], max_results=1000, page_token=token or None,
            **shown,
        )  # fmt: skip
        yield from page
        token = page.token or None


def facts(run: Run) -> RunFacts:
    """Return the facts of an MLflow run."""
    data = None
    for dataset_input in run.inputs.dataset_inputs if run.inputs else ():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # Another tool may have logged the source.
            data = data or str(json.loads(dataset_input.dataset.source)["uri"])
    return RunFacts(
        run.info.run_id, run.info.run_name, run.data.params, run.data.metrics, run.data.tags, run.info.experiment_id,
        data,
    )  # fmt: skip


def in_trash(run: Run) -> bool:
    """Return whether a run was deleted in MLflow's UI, where it can be restored."""
    return str(run.info.lifecycle_stage) == "deleted"


def trashed(uri: str, run: Run) -> str:
    """Return a message about a run in MLflow's trash, with the command that restores it."""
    place, run_id = shlex.quote(redact_credentials(uri)), run.info.run_id
    return (
        f"this run is in MLflow's trash. Restore it: MLFLOW_TRACKING_URI={place} mlflow runs restore --run-id {run_id} "
        "(or in MLflow's UI: the filter State: Deleted)"
    )


def experiment_in_trash(uri: str, experiment: Experiment) -> str:
    """Return a message about an experiment in MLflow's trash, with the command that restores it."""
    command = f"MLFLOW_TRACKING_URI={shlex.quote(redact_credentials(uri))} mlflow experiments restore"
    return (
        f"the MLflow experiment {experiment.name!r} is in MLflow's trash, with its runs. Restore it: "
        f"{command} --experiment-id {experiment.experiment_id}"
    )


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """Return a run, even one in the trash; None if the store has no run with this id."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def recorded_folder(uri: str, named: str, key: str) -> tuple[str, str | None]:
    """Return the id and the recorded run directory of a run, finished or not; it may have been moved since.

    Args:
        uri: the tracking store.
        named: see `whole_id`.
        key: for the error message.

    Raises:
        ConfigError: there is no such run in the store, or several fit.
    """
    run = get_run(uri, whole_id(uri, named, key), key, trash=True)
    return run.info.run_id, run.data.tags.get("run_folder")


def read_file(uri: str, named: str, name: str, largest: int, key: str) -> bytes | None:
    """Return the content of an artifact of the run that a key of the command line names, see `whole_id`.

    Returns:
        None if the artifact has more bytes than `largest`.

    Raises:
        ConfigError: there is no such run in the store, it has no such artifact, or the store cannot be used.
    """
    run_id = whole_id(uri, named, key)
    get_run(uri, run_id, key)
    with (
        connection.client(uri, f"{key}: {name} of run {run_id} cannot be read from MLflow") as client,
        tempfile.TemporaryDirectory() as folder,
    ):
        sizes = {file.path: file.file_size for file in client.list_artifacts(run_id)}
        if name not in sizes:
            raise ConfigError(f"{key}: run {run_id} has no {name}, only {', '.join(sizes) or 'nothing'}")
        if (sizes[name] or 0) > largest:
            return None
        path = Path(client.download_artifacts(run_id, name, folder))
        return path.read_bytes() if path.stat().st_size <= largest else None


def logged_model(uri: str, run_id: str) -> Path | None:
    """Return the directory of the model that a run has logged, downloaded if need be; None if it has logged none.

    Raises:
        ConfigError: the store cannot be used, or the download fails.
    """
    with connection.client(uri, f"run {run_id}: its model cannot be read from MLflow") as client:
        from mlflow.artifacts import download_artifacts
        from mlflow.entities import LoggedModelStatus

        experiment = client.get_run(run_id).info.experiment_id
        found = client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND name = 'model'")
        ready = [model for model in found if model.status == LoggedModelStatus.READY]
        return Path(download_artifacts(f"models:/{ready[0].model_id}")) if ready else None


def artifact(uri: str, run_id: str, name: str, folder: str | None = None) -> Path | None:
    """Return the path of an artifact of a run; None if the run has no such artifact.

    Args:
        uri: the tracking store.
        run_id: of the run.
        name: path of the artifact.
        folder: receives a copy; None: an artifact that is not on this machine is downloaded to a new directory.

    Raises:
        ConfigError: the store cannot be used, or the download fails.
    """
    with connection.client(uri, f"run {run_id}: {name} cannot be read from MLflow") as client:
        known = {file.path for file in client.list_artifacts(run_id)}
        return Path(client.download_artifacts(run_id, name, folder)) if name in known else None


def read_files(uri: str, run_id: str, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, bytes]:
    """Return the contents of artifacts of a run, by name; of the optional ones, those that exist.

    Raises:
        ConfigError: one of `names` does not exist, or the store cannot be used.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: artifact(uri, run_id, name, folder) for name in (*names, *optional)}
        if missing := [name for name in names if paths[name] is None]:
            raise ConfigError(f"run {run_id} in {redact_credentials(uri)} has no {', '.join(missing)}")
        return {name: path.read_bytes() for name, path in paths.items() if path is not None}


def whole_id(uri: str, named: str, key: str) -> str:
    """Return the id of the run, finished or not, that a text names in one of the ways of `find_runs`.

    The text is returned unchanged if it is a whole id, or names no run.

    Raises:
        ConfigError: several runs fit.
    """
    if RUN_ID.fullmatch(named) or not named or connection.missing(uri):
        return named
    with connection.client(uri) as client:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        infos = [run.info for run in _every_run(client, experiments, "tags.run_folder != ''")]
    fitting = [info for info in infos if named == info.run_name] or [
        info for info in infos if _is_part(named, info.run_id, info.run_name)
    ]
    if len(fitting) > 1:
        known = ", ".join(f"{info.run_id[:8]} ({info.run_name}, {info.status})" for info in fitting[-8:])
        raise ConfigError(f"{key}: {len(fitting)} runs fit {named!r}: {known}. Give more of the id or of the name")
    return str(fitting[0].run_id) if fitting else named


def get_run(uri: str, run_id: str, key: str, *, trash: bool = False) -> Run:
    """Return a run by its id, which is the value of the configuration's `key`.

    Args:
        uri: the tracking store.
        run_id: the whole id.
        key: for the error message.
        trash: whether to accept a run in MLflow's trash.

    Raises:
        ConfigError: there is no such run, or the store cannot be used.
    """
    reason = "no folder has this name, and no run there has such an id or name"
    if RUN_ID.fullmatch(run_id):
        reason = "there is no such file"
        if not connection.missing(uri):
            connection.check(uri)
            with connection.client(uri) as client:
                found = find_run(client, run_id)
            if found is not None and in_trash(found) and not trash:
                raise ConfigError(f"{key}: {run_id}: {trashed(uri, found)}")
            if found is not None:
                return found
            reason = "it has no run of this id: it was deleted for good, or is in another store"
    raise ConfigError(
        f"{key}: must be a run's folder, or the id or the end of the name of a run in {redact_credentials(uri)} "
        f"({reason}). Received: {run_id!r}. Another store: tracking.uri=..., MLFLOW_TRACKING_URI, or EXPERIMENTS_HOME "
        "for another outputs/"
    )


def read_predictions(uri: str, run: RunFacts, split: str) -> list[predictions.Prediction]:
    """Return a run's logged predictions.

    Raises:
        ConfigError: the run has no predictions for this split, or the store cannot be used.
    """
    name = f"{predictions.stem(split)}.json"
    found = read_files(uri, run.run_id, (), (name,))
    if name not in found:
        raise ConfigError(f"{run.name}: no predictions of split {split!r}")
    table = json.loads(found[name])
    return predictions.from_rows(dict(zip(table["columns"], row, strict=True)) for row in table["data"])


def read_curves(uri: str, run: RunFacts) -> list[EpochRecord]:
    """Return a run's epochs from its logged curves; an empty list if it has logged none.

    Raises:
        ConfigError: the store cannot be used.
    """
    text = read_files(uri, run.run_id, (), (CURVES,)).get(CURVES)
    return curves.parse(text.decode(errors="replace")) if text else []


def deleted(uri: str, run_ids: Sequence[str]) -> set[str]:
    """Return the ids of those runs that are in the tracking store's trash or not in the store.

    Raises:
        ConfigError: the store cannot be used.
    """
    connection.check(uri)
    with connection.client(uri) as client:
        from mlflow.entities import ViewType

        experiments = [experiment.experiment_id for experiment in client.search_experiments(ViewType.ALL)]
        wanted = ", ".join(f"'{run_id}'" for run_id in run_ids)
        runs = _every_run(client, experiments, f"attributes.run_id IN ({wanted})") if run_ids else ()
        return set(run_ids) - {run.info.run_id for run in runs}


def ui_command(port: int) -> list[str]:
    """Return the command that serves the MLflow UI, to this machine only, for the store in MLFLOW_BACKEND_STORE_URI."""
    served = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *served]


def finished(uri: str, experiment: str) -> dict[str, RunFacts]:
    """Return the finished runs of an experiment by their identity; an empty mapping if there is no store yet.

    Of several runs with the same identity, the latest is returned.

    Raises:
        ConfigError: the store cannot be used.
    """
    if connection.missing(uri):
        return {}
    with connection.client(uri) as client:
        known = client.get_experiment_by_name(experiment)
        runs = _every_run(client, [known.experiment_id] if known else [], "attributes.status = 'FINISHED'")
        # Runs without these tags belong to another tool.
        needed = {"identity", "data_fingerprint", "run_folder"}
        return {run.data.tags["identity"]: facts(run) for run in runs if needed <= run.data.tags.keys()}
