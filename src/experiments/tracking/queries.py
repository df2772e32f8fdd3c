"""Queries: reading runs, their artifacts and their models from MLflow."""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from experiments.errors import ConfigError
from experiments.runs import curves, predictions
from experiments.runs.run_directory import CONFIG, CURVES, METRICS, RunDirectory
from experiments.system.redaction import redact_credentials
from experiments.tracking import connection
from experiments.tracking.description import flat_parameters
from experiments.training.types import EpochRecord, Status

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class RunFacts:
    """A run with its logged parameters, metrics and tags."""

    run_id: str  # of a run that is not in MLflow: the path of its directory
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, Any]
    experiment: str = ""  # the id of its MLflow experiment
    data: str | None = None  # the directory of its images
    status: str = Status.FINISHED
    folder: Path | None = None  # the directory of a run that is not in MLflow


def find_runs(uri: str, wanted: Sequence[str | Path]) -> list[RunFacts]:
    """Return finished runs, in the order of `wanted`.

    These are run ids, prefixes of them, run names, or what follows a dash in names, up to the end. One that fits no
    finished run, or several, is a ConfigError. A path is the directory of a run that is not in MLflow.
    """
    found, chosen = search_runs(uri) if any(isinstance(name, str) for name in wanted) else [], list[RunFacts]()
    for name in wanted:
        if isinstance(name, Path):
            chosen.append(_untracked(name))
            continue
        fitting = _fitting(found, name)
        if len(fitting) != 1:
            known = ", ".join(f"{run.run_id[:8]} ({run.name})" for run in found[-8:]) or "none"
            what = _why_not(uri, name) if not fitting else f"{len(fitting)} runs fit"
            raise ConfigError(
                f"{name}: {what}. Give a run id, its beginning, a run name or its end. The latest runs in "
                f"{redact_credentials(uri)}: {known}"
            )
        chosen += fitting
    return chosen


def _untracked(folder: Path) -> RunFacts:
    directory = RunDirectory(folder)
    facts = directory.facts_of_finished((CONFIG, METRICS))
    params = flat_parameters(directory.config())
    return RunFacts(
        str(folder), folder.name, params, directory.metrics(), facts, data=facts.get("data_root"), folder=folder
    )


def _fitting(runs: Iterable[RunFacts], text: str) -> list[RunFacts]:
    """Return the runs with this id or name; if there are none, those whose id or name it abbreviates."""
    runs, end = list(runs), f"-{text.removeprefix('-')}"
    return [run for run in runs if text in (run.run_id, run.name)] or [
        run for run in runs if text and (run.run_id.startswith(text) or run.name.endswith(end))
    ]


def _why_not(uri: str, name: str) -> str:
    """Return why no finished run has this id or name: it is in the trash, is not finished, or does not exist."""
    with connection.client(uri) as client:
        import mlflow
        from mlflow.entities import ViewType

        experiments = [experiment.experiment_id for experiment in client.search_experiments(ViewType.ALL)]
        for run in mlflow.search_runs(experiments, run_view_type=ViewType.ALL, output_format="list"):
            if _fitting([facts(run)], name):
                if gone := trashed(client, uri, run):
                    return gone
                status = run.info.status
                return f"no finished run fits: this one is {'no training' if status == Status.FINISHED else status}"
    return "no finished run fits"


def search_runs(uri: str, query: str = "") -> list[RunFacts]:
    """Return the finished training runs that fit a query in MLflow's syntax, the oldest first.

    Other MLflow runs, such as those of sweeps and comparisons, are not returned. A query that MLflow cannot parse is a
    ConfigError.
    """
    connection.check_runs(uri)
    with connection.client(uri):
        from mlflow.exceptions import MlflowException

        try:
            found = map(facts, _all_runs(query))
            return [run for run in found if run.status == Status.FINISHED and "regime" in run.params]
        except MlflowException as error:
            if not query or error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise ConfigError(
                f"The query cannot be used: {str(error)[:500]}. Write it as MLflow does, for example: "
                "params.regime = 'finetune' and metrics.`validation.accuracy` > 0.9. "
                f"Received: {query!r}"
            ) from None


def _all_runs(query: str, experiment: str | None = None) -> list[Run]:
    """Return the runs of one or all experiments that fit a query and are not in the trash, the oldest first."""
    import mlflow

    return mlflow.search_runs(
        filter_string=query, experiment_names=[experiment] if experiment else None, search_all_experiments=True,
        order_by=["attributes.start_time ASC"], output_format="list",
    )  # fmt: skip


def facts(run: Run) -> RunFacts:
    """Return the facts of an MLflow run."""
    data = None
    for dataset_input in run.inputs.dataset_inputs if run.inputs else ():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # Another tool may have logged the source.
            data = data or str(json.loads(dataset_input.dataset.source)["uri"])
    return RunFacts(
        run.info.run_id, run.info.run_name, run.data.params, run.data.metrics, run.data.tags, run.info.experiment_id,
        data, run.info.status,
    )  # fmt: skip


def in_trash(run: Run) -> bool:
    """Return whether a run was deleted in MLflow's UI, where it can be restored."""
    return str(run.info.lifecycle_stage) == "deleted"


def trashed(client: MlflowClient, uri: str, run: Run) -> str | None:
    """Return a message about a run that is in MLflow's trash, or whose experiment is, with the command to restore it.

    It is None for other runs.
    """
    experiment = client.get_experiment(run.info.experiment_id)
    if experiment.lifecycle_stage == "deleted":
        return experiment_in_trash(uri, experiment)
    if not in_trash(run):
        return None
    command = f"{_mlflow(uri)} runs restore --run-id {run.info.run_id}"
    return f"this run is in MLflow's trash. Restore it: {command} (or in MLflow's UI: the filter State: Deleted)"


def experiment_in_trash(uri: str, experiment: Experiment) -> str:
    """Return a message about an experiment in MLflow's trash, with the command that restores it."""
    command = f"{_mlflow(uri)} experiments restore --experiment-id {experiment.experiment_id}"
    return f"the MLflow experiment {experiment.name!r} is in MLflow's trash, with its runs. Restore it: {command}"


def _mlflow(uri: str) -> str:
    return f"MLFLOW_TRACKING_URI={shlex.quote(redact_credentials(uri))} mlflow"


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """Return a run, even one in the trash; None if the store has no run with this id."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def logged_model(uri: str, run_id: str) -> Path | None:
    """Return the directory of the model that a run has logged, downloaded if need be; None if it has logged none."""
    with connection.client(uri, f"run {run_id}: its model cannot be read from MLflow") as client:
        from mlflow.artifacts import download_artifacts
        from mlflow.entities import LoggedModelStatus

        experiment = client.get_run(run_id).info.experiment_id
        found = client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND name = 'model'")
        ready = [model for model in found if model.status == LoggedModelStatus.READY]
        if not ready:
            return None
        place = _place_for(ready[0].artifact_location)
        return Path(download_artifacts(f"models:/{ready[0].model_id}", dst_path=place))


def _place_for(location: str) -> str | None:
    """Return a directory for downloads from a location, removed as the process ends; None if it is on this machine."""
    if urlsplit(location).scheme in ("", "file"):
        return None
    folder = tempfile.mkdtemp()  # without a directory, MLflow makes one that nothing removes
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def artifact(uri: str, run_id: str, name: str, folder: str | None = None, largest: float = math.inf) -> Path | None:
    """Return the path of an artifact of a run; None if the run has no such artifact.

    Args:
        uri: the tracking store.
        run_id: of the run.
        name: path of the artifact.
        folder: receives a copy; None: an artifact that is not on this machine is downloaded to a new directory.
        largest: the number of bytes that it may have; a larger one is a ConfigError.
    """
    with connection.client(uri, f"run {run_id}: {name} cannot be read from MLflow") as client:
        sizes = {file.path: file.file_size or 0 for file in client.list_artifacts(run_id)}
        if sizes.get(name, 0) > largest:
            raise ConfigError(f"run {run_id}: {name} is larger than {largest:,} bytes")
        if name not in sizes:
            return None
        folder = folder or _place_for(client.get_run(run_id).info.artifact_uri)
        return Path(client.download_artifacts(run_id, name, folder))


def read_files(
    uri: str, run_id: str, names: Sequence[str], optional: Sequence[str] = (), largest: float = math.inf
) -> dict[str, bytes]:
    """Return the contents of artifacts of a run, by name; of the optional ones, those that exist.

    Raises:
        ConfigError: one of `names` does not exist, or one has more bytes than `largest`.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: artifact(uri, run_id, name, folder, largest) for name in (*names, *optional)}
        if missing := [name for name in names if paths[name] is None]:
            raise ConfigError(f"run {run_id} in {redact_credentials(uri)} has no {', '.join(missing)}")
        return {name: path.read_bytes() for name, path in paths.items() if path is not None}


def get_run(uri: str, named: str, key: str, *, trash: bool = False) -> Run:
    """Return the run, finished or not, that a key of the command line names in one of the ways of `find_runs`.

    A run in MLflow's trash is accepted with `trash`, and found by its whole id only.

    Raises:
        ConfigError: there is no such run, or several fit.
    """
    is_id = RUN_ID.fullmatch(named)
    reason = "there is no such file" if is_id else "no folder has this name, and no run there has such an id or name"
    if named and not connection.missing(uri):
        connection.check(uri)
        with connection.client(uri) as client:
            run_id = named if is_id else _whole_id(named, key)
            if found := find_run(client, run_id) if run_id else None:
                if in_trash(found) and not trash:
                    raise ConfigError(f"{key}: {run_id}: {trashed(client, uri, found)}")
                return found
        if is_id:
            reason = "it has no run of this id: it was deleted for good, or is in another store"
    raise ConfigError(
        f"{key}: must be a run's folder, or the id or the end of the name of a run in {redact_credentials(uri)} "
        f"({reason}). Received: {named!r}. Another store: tracking.uri=..., MLFLOW_TRACKING_URI, or EXPERIMENTS_HOME "
        "for another outputs/"
    )


def _whole_id(named: str, key: str) -> str | None:
    """Return the id of the run in the store in use that a text names, finished or not; None if there is none."""
    fitting = _fitting(map(facts, _all_runs("tags.run_folder != ''")), named)
    if len(fitting) > 1:
        known = ", ".join(f"{run.run_id[:8]} ({run.name}, {run.status})" for run in fitting[-8:])
        raise ConfigError(f"{key}: {len(fitting)} runs fit {named!r}: {known}. Give more of the id or of the name")
    return fitting[0].run_id if fitting else None


def read_predictions(uri: str, run: RunFacts, split: str) -> list[predictions.Prediction]:
    """Return a run's logged predictions; a run without any for this split is a ConfigError."""
    if run.folder and RunDirectory(run.folder).has_predictions(split):
        return RunDirectory(run.folder).predictions(split)
    name = f"{predictions.stem(split)}.json"
    found = {} if run.folder else read_files(uri, run.run_id, (), (name,))
    if name not in found:
        raise ConfigError(f"{run.name}: no predictions of split {split!r}")
    table = json.loads(found[name])
    return predictions.from_rows(dict(zip(table["columns"], row, strict=True)) for row in table["data"])


def read_curves(uri: str, run: RunFacts) -> list[EpochRecord]:
    """Return a run's epochs from its logged curves; an empty list if it has logged none."""
    if run.folder:
        return RunDirectory(run.folder).epochs()
    text = read_files(uri, run.run_id, (), (CURVES,)).get(CURVES)
    return curves.parse(text.decode(errors="replace")) if text else []


def deleted(uri: str, run_ids: Sequence[str]) -> set[str]:
    """Return the ids of those runs that are in the tracking store's trash or not in the store."""
    connection.check(uri)
    with connection.client(uri):
        wanted = ", ".join(f"'{run_id}'" for run_id in run_ids)
        known = _all_runs(f"attributes.run_id IN ({wanted})") if run_ids else ()
        return set(run_ids) - {run.info.run_id for run in known}


def finished(uri: str, experiment: str) -> dict[str, RunFacts]:
    """Return the latest finished run of an experiment for each identity; an empty mapping if there is no store yet."""
    if connection.missing(uri):
        return {}
    with connection.client(uri):
        runs = map(facts, _all_runs("attributes.status = 'FINISHED'", experiment))
        # Runs without these tags belong to another tool.
        needed = {"identity", "data_fingerprint", "run_folder"}
        return {run.tags["identity"]: run for run in runs if needed <= run.tags.keys()}
