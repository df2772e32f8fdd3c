"""The tasks of a sweep that need TensorFlow or MLflow, run in processes of their own so that the sweep's stays small.

`processes.run_worker_task` calls them through `respond`; what they return is JSON.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.filesize import decimal

from experiments import run
from experiments.config.schema import Config
from experiments.data import manifest
from experiments.data.types import Dataset
from experiments.errors import ConfigError, DataError
from experiments.models.stages import Backbone
from experiments.regimes import bottleneck
from experiments.regimes.build import build
from experiments.regimes.data_checks import check_data, check_origins
from experiments.regimes.declaration import declaration_of
from experiments.regimes.feature_cache import FeatureTable, extract
from experiments.runs.location import store_of_run
from experiments.runs.run_directory import CONFIG, METRICS, RunDirectory, predictions_file
from experiments.storage import atomic_files
from experiments.sweeps import summary_files
from experiments.sweeps.launchers import processes
from experiments.sweeps.sweep_directory import folders
from experiments.system import machine_errors, signals
from experiments.system.progress import PlainConsole, Terminal
from experiments.system.redaction import redact_credentials
from experiments.tracking import connection, inputs, queries, summary_runs
from experiments.tracking.queries import RunFacts
from experiments.tracking.upload import UNSENT
from experiments.training import runtime
from experiments.training.types import RunComponents, Status


class PreparedJob(NamedTuple):
    """A job with its components built and its data read."""

    components: RunComponents
    dataset: Dataset
    identity: str


def respond(function: processes.WorkerTask, arguments: Sequence[Any], file: Path) -> None:
    """Call a function of this module and write {"result": ...} to a file or, if it fails, {"error": message}.

    Errors of configuration, data and machine are reported in this way; all other exceptions are raised.
    """
    signals.install()
    try:
        response = {"result": globals()[function](*arguments)}
    except (ConfigError, DataError) as error:
        response = {"error": str(error)}
    except Exception as error:
        text = machine_errors.explain(error)  # a full disk, a read-only outputs/, too little memory
        if text is None:
            raise
        response = {"error": text}
    atomic_files.write_json(file, response)


def prepare_jobs(configs: Sequence[Config]) -> list[PreparedJob]:
    """Build the components of jobs and read their data; raise ConfigError or DataError if one of them cannot be run.

    The weights of other runs are fetched once and compared with each data set once, each backbone is built once, and
    each data set is read once.
    """
    fetched: dict[str, tuple[RunDirectory, dict[str, Path]]] = {}
    backbones: dict[str, Backbone] = {}
    data: dict[str, Dataset] = {}
    compared: set[tuple[str, str]] = set()  # weights and data sets for which `check_origins` has passed
    prepared = []
    with tempfile.TemporaryDirectory() as folder:
        for config in configs:
            named = inputs.run_ids(config), inputs.file_of_run(config), config.continue_from
            inputs_key = _key(config.tracking.uri, *named)
            if inputs_key not in fetched:
                place = Path(folder) / str(len(fetched))
                fetched[inputs_key] = RunDirectory(place), inputs.fetch(config, place)
            directory, files = fetched[inputs_key]
            random = config.model.weights is None or "model.weights" in config.regime.ignores
            backbone_key = _key(
                config.model.model_dump(exclude={"head"}), random, config.data.image_size, config.runtime.precision,
                config.seed if random else None, config.trusted_packages,
            )  # fmt: skip
            components = build(config, files, backbones.get(backbone_key))
            backbones[backbone_key] = components.backbone
            data_key = _key(config.data.model_dump(), config.outputs)
            if data_key in data:
                check_data(config, data[data_key])
            else:
                data[data_key] = run.read_data(components, keep=False)
            dataset = data[data_key]
            if (inputs_key, data_key) not in compared:
                check_origins({key: directory.inputs(key) for key in files}, dataset)
                compared.add((inputs_key, data_key))
            prepared.append(PreparedJob(components, dataset, components.identity(config, dataset.fingerprint)))
    return prepared


def identity(config: Config) -> str:
    """Build the networks and read the data of a configuration, and return the identity of the run that it describes.

    This process may execute that run afterwards: the settings that have to precede TensorFlow's start are those of the
    run, except a strategy for several devices, of which a process can have one.
    """
    runtime.apply(config.runtime.model_copy(update={"devices": None}))
    (job,) = prepare_jobs([config])
    return job.identity


def _key(*components: Any) -> str:
    return json.dumps(components, sort_keys=True, default=str)


def inspect_jobs(configs: Sequence[Config]) -> dict[str, Any]:
    """Find the jobs' identities, their existing runs, and what they share.

    Returns:
        jobs: a mapping for each job: `identity`; `status`, `folder`, `run_id` and `threads` of an existing run;
            `deleted`, the id of a deleted MLflow run, if there is no other run.
        lines, features_missing, seconds, held_out: see `plan.InspectedJobs`.
    """
    first = configs[0]
    uri = first.tracking.uri
    runtime.apply(first.runtime)
    connection.check(uri)
    jobs = prepare_jobs(configs)
    finished = queries.finished(uri, first.tracking.experiment) if uri else {}
    known = known_runs(first, {job.identity for job in jobs}, finished)
    done = [run for run in known.values() if run.get("status") == Status.FINISHED and run["folder"]]
    if unsent := sum((Path(run["folder"]) / UNSENT).exists() for run in done):
        logging.getLogger(__name__).warning(
            "%d finished runs of these jobs are not completely in MLflow. To upload the rest: experiments sync", unsent
        )
    manifests = {job.dataset.fingerprint: job.dataset.manifest for job in jobs}
    lines, features_missing = shared(jobs)
    return {
        "jobs": [{"identity": job.identity, **known.get(job.identity, {})} for job in jobs],
        "lines": [*manifest.warning_sentences(list(manifests.values())), *lines],
        "features_missing": features_missing,
        "seconds": usual_seconds(first, jobs[0].dataset.fingerprint, finished),
        "held_out": all(job.dataset.test for job in jobs),
    }


def known_runs(config: Config, identities: set[str], finished: Mapping[str, RunFacts]) -> dict[str, dict[str, Any]]:
    """Return the existing runs of these identities: `finished` ones of MLflow, others from the outputs directory.

    Of several finished ones there, it is the latest: `sweep.rerun` trains again what has changed unnoticed.
    """
    known: dict[str, dict[str, Any]] = {}
    latest: dict[str, int] = {}  # when the training of the finished runs in `known` ended
    untracked: dict[str, str] = {}  # ids of MLflow runs that are not finished, by identity
    uri = config.tracking.uri
    tracked_ids = {run.run_id for run in finished.values()}
    for folder in folders(Path(config.outputs)):
        try:
            facts = RunDirectory(folder).facts()
        except ConfigError:
            continue
        own, run_id, status = facts.get("identity", ""), facts.get("run_id"), facts.get("status")
        if own not in identities or status == Status.PRUNED:
            continue
        # The recorded URI is read where outputs/ was moved since.
        stored_in = store_of_run(folder, facts) or facts.get("store")
        if redact_credentials(stored_in or "") != redact_credentials(uri or ""):
            continue
        done = status == Status.FINISHED
        unsent = (folder / UNSENT).exists()  # MLflow may not have received the end of the run
        if done and uri is not None and run_id not in tracked_ids and not unsent:
            untracked.setdefault(own, str(run_id))
        elif own not in latest or (done and facts.get("ended", 0) > latest[own]):
            if done:
                latest[own] = facts.get("ended", 0)
            known[own] = {"status": status, "folder": str(folder), "run_id": run_id, "threads": facts.get("threads")}
    for identity in identities & set(finished):
        if known.get(identity, {}).get("status") != Status.FINISHED:
            tracked = finished[identity]
            folder_tag = tracked.tags.get("run_folder", "")
            known[identity] = {"status": Status.FINISHED, "folder": folder_tag, "run_id": tracked.run_id}
    # Deleted runs are not reported if another run of their identity exists.
    gone = set(untracked.values())
    if gone and not connection.missing(str(uri)):
        gone = queries.deleted(str(uri), list(gone))
    return {identity: {"deleted": run_id} for identity, run_id in untracked.items() if run_id in gone} | known


def shared(jobs: Sequence[PreparedJob]) -> tuple[list[str], bool]:
    """Return lines on the features and heads that jobs share, and whether features are still to be computed."""
    lines = []
    by_job = list(map(feature_tables, jobs))
    tables = {name: table for of_job in by_job for name, table in of_job.items()}
    missing = sum(table.lacking_bytes for table in tables.values())
    if tables:
        lines.append(
            f"features: {len(tables)} tables for {sum(map(len, by_job))} readings by jobs"
            + (f"; to be computed: {decimal(missing)}" if missing else "; all cached")
        )
    head_folders = [
        bottleneck.head_folder(bottleneck.head_components(job.components), job.dataset)
        for job in jobs
        if declaration_of(job.components.regime).head_first and not job.components.has_trained_head
    ]
    heads = set(head_folders)
    if heads:
        trained = sum(folder.is_dir() for folder in heads)
        lines.append(
            f"head phases: {len(heads)} for {len(head_folders)} jobs"
            + (f", {trained} of them in the head cache" if trained else "")
        )
    return lines, bool(missing)


def feature_tables(job: PreparedJob) -> dict[str, FeatureTable]:
    """Return the tables of the feature cache that a job reads, as its regime declares them, by name."""
    requests = declaration_of(job.components.regime).features(job.components, job.dataset)
    tables = (FeatureTable(job.components, request) for request in requests)
    return {table.name: table for table in tables}


def share(configs: Sequence[Config]) -> None:
    """Compute the features that jobs read, those of one backbone and data set in one pass over its images."""
    runtime.apply(configs[0].runtime)
    progress = Terminal(PlainConsole(quiet=configs[0].progress == "none"))
    passes: dict[str, tuple[RunComponents, dict[str, FeatureTable]]] = {}
    for job in prepare_jobs(configs):
        config = job.components.config
        key = _key(
            job.components.backbone.identity, job.dataset.fingerprint, config.data.image_size,
            job.dataset.manifest.decoder_settings.pixels_key(), config.augmentation.model_dump(),
            config.regime.activations, config.model.head.pooling,
        )  # fmt: skip
        passes.setdefault(key, (job.components, {}))[1].update(feature_tables(job))
    for components, tables in passes.values():
        extract(components, [table.request for table in tables.values()], progress)


def usual_seconds(config: Config, fingerprint: str, finished: Mapping[str, RunFacts]) -> float | None:
    """Return the median seconds of finished runs on these images with the same regime, model, epochs and batch size."""
    alike = {
        "regime": config.regime.name, "model": config.model.name, "epochs": str(config.epochs),
        "batch_size": str(config.batch_size),
    }  # fmt: skip
    seconds = [
        run.metrics["total_seconds"]
        for run in finished.values()
        if run.tags.get("data_fingerprint") == fingerprint
        and all(run.params.get(name) == value for name, value in alike.items())
        and "total_seconds" in run.metrics
    ]
    return statistics.median(seconds) if seconds else None


def fetch(uri: str, runs: Sequence[tuple[str, str, Path]]) -> None:
    """Download what a summary reads of runs on other machines: MLflow run id, identity, target directory of each."""
    # Only the winner's final runs have predictions for the test split.
    required, optional = (METRICS, predictions_file("validation")), (predictions_file("test"), CONFIG)
    for run_id, own, folder in runs:
        RunDirectory(folder).write_fetched(queries.read_files(uri, run_id, required, optional), own, run_id)


def deleted(uri: str, run_ids: Sequence[str]) -> list[str]:
    return sorted(queries.deleted(uri, run_ids))


conclude = summary_files.write_summary


def open_run(config: Config, folder: Path, before: str | None) -> str:
    """Start the sweep's own MLflow run or, if `before` names one, continue that, and return its id."""
    return summary_runs.start_sweep(config, folder, getattr(multiprocessing.parent_process(), "pid", None), before)


def close_run(uri: str, run_id: str, folder: Path, metrics: Mapping[str, float], status: str) -> None:
    """Log the content of the sweep's directory to the sweep's MLflow run, and end that run."""
    try:
        summary_runs.end_sweep(uri, run_id, folder, metrics, status)
    except ConfigError as error:
        logging.getLogger(__name__).warning(
            "The sweep's summary is not in MLflow (%s). When it can be: experiments summarize %s",
            redact_credentials(str(error))[:300], folder,
        )  # fmt: skip
        sys.stderr.flush()
