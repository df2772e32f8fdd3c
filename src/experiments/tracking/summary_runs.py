"""MLflow runs about other runs: sweeps, the parents of their jobs' runs; comparisons; evaluations on further images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.config.identity import logged
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.runs.run_directory import FIGURES
from experiments.system.redaction import redacted
from experiments.tracking import connection, liveness
from experiments.tracking.experiment import open_experiment
from experiments.tracking.mlflow_run import reopen
from experiments.tracking.private_mlflow_api import NOTE, PARENT_RUN, context_tags
from experiments.tracking.queries import find_run, trashed
from experiments.tracking.upload import log_data, log_in_batches
from experiments.training.types import Status

if TYPE_CHECKING:
    from mlflow import MlflowClient


def start_sweep(config: Config, folder: Path, pid: int | None, run_id: str | None) -> str:
    """Start or continue a sweep's MLflow run, the parent of its jobs' runs, and return its id.

    The sweep's process `pid` sends no heartbeat: only its own machine can find out that it has ended. A run in the
    trash is restored, as the runs of finished jobs are its children. A new one is started if `run_id` is None, or was
    deleted for good.
    """
    experiment = open_experiment(config)
    tags = {**liveness.owner(pid), "owner.heartbeat": "inf", "run_folder": str(folder), "sweep": folder.name}
    with connection.client(str(config.tracking.uri)) as client:
        before = find_run(client, run_id) if run_id is not None else None
        if before is not None:
            return reopen(client, before, tags)
        tags = redacted({**logged(config)["tags"], **tags})
        return str(client.create_run(experiment, run_name=folder.name, tags=tags).info.run_id)


def end_sweep(uri: str, run_id: str, folder: Path, metrics: Mapping[str, float], status: str | None) -> None:
    """Log a sweep's metrics and summary to its MLflow run, and end it, unless its status is to stay (None).

    Raises:
        ConfigError: the run was deleted.
    """
    connection.check_exists(uri)
    with connection.client(uri) as client:
        before = find_run(client, run_id)
        if before is None:
            raise ConfigError(f"{folder.name}: its MLflow run {run_id} was deleted for good, or is in another store")
        if gone := trashed(client, uri, before):
            raise ConfigError(f"{folder.name}: {gone}")
        liveness.mark_lost(before.info.experiment_id)  # Jobs may have been ended by kill -9.
        outdated = {name: 0.0 for name in before.data.metrics if name.startswith("jobs_")}  # such as jobs_killed
        for name, value in (outdated | dict(metrics)).items():
            if before.data.metrics.get(name) != value:  # A sweep that is summarized again would have each value twice.
                client.log_metric(run_id, name, value)
        text = folder / "summary.md"
        _log_files(client, run_id, sorted([*folder.glob("summary.*"), *folder.glob(f"{FIGURES}/*.png")]))
        if text.exists():
            client.set_tag(run_id, NOTE, text.read_text(encoding="utf-8")[:8000])
        if status is not None:
            client.set_terminated(run_id, status)


def log_comparison(uri: str, experiment: str, digest: str, files: Sequence[Path], text: str) -> str:
    """Log a comparison's files, and a text for the run's page in the UI, as an MLflow run, and return its id.

    If a comparison with this hash was logged before, its files are replaced.
    """
    with connection.client(uri) as client:
        before = client.search_runs([experiment], f"tags.comparison = '{digest}'", max_results=1)
        if before:
            run_id = str(before[0].info.run_id)
        else:
            tags = redacted(context_tags({"comparison": digest}))
            run_id = str(client.create_run(experiment, run_name=f"compare-{digest}", tags=tags).info.run_id)
        with _ending(client, run_id):
            _log_files(client, run_id, files)
            client.set_tag(run_id, NOTE, text[:8000])
    return run_id


def log_evaluation(
    uri: str, run_id: str, name: str, data: Mapping[str, str], metrics: Mapping[str, float], folder: Path, text: str
) -> str:
    """Log the evaluation of a finished run's model on further images as a child of that run, and return its id.

    The metrics of the run itself stay those of its training, however often its model is evaluated.

    Args:
        uri: the tracking store, which has the run.
        run_id: the MLflow id of the run.
        name: of the new MLflow run.
        data: `name`, `digest` and `source` of the images.
        metrics: named evaluation.METRIC.
        folder: the directory whose files are logged.
        text: what the UI shows on the new run's page.
    """
    from mlflow.entities import Metric

    connection.check_runs(uri)
    now = int(time.time() * 1000)
    with connection.client(uri) as client:
        experiment = client.get_run(run_id).info.experiment_id
        tags = redacted(context_tags({PARENT_RUN: run_id, NOTE: text[:8000]}))
        child = str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)
        with _ending(client, child):
            log_data(client, child, data, "evaluation")
            log_in_batches(client, child, "metrics", [Metric(key, value, now, 0) for key, value in metrics.items()])
            _log_files(client, child, sorted(path for path in folder.rglob("*") if path.is_file()))
    return child


@contextmanager
def _ending(client: MlflowClient, run_id: str) -> Iterator[None]:
    """End an MLflow run as FINISHED, FAILED or KILLED, as the block ends."""
    try:
        yield
    except BaseException as error:
        with suppress(Exception):  # The store may be unavailable, which is the block's own error.
            client.set_terminated(run_id, Status.FAILED if isinstance(error, Exception) else Status.KILLED)
        raise
    client.set_terminated(run_id)


def add_file(uri: str, run_id: str, path: Path) -> None:
    """Add a file that was made after the end of a run to its MLflow artifacts."""
    connection.check_exists(uri)
    with connection.client(uri) as client:
        _log_files(client, run_id, [path])


def _log_files(client: MlflowClient, run_id: str, files: Sequence[Path]) -> None:
    """Log files to a run, figures in the directory `figures`."""
    for path in files:
        client.log_artifact(run_id, str(path), FIGURES if path.suffix == ".png" else None)
