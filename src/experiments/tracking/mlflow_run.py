"""The MLflow run that mirrors a run directory: opening it, logging to it, ending it."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock

from experiments.config.identity import NOT_IDENTITY, hidden, logged
from experiments.config.schema import Config
from experiments.data.types import Dataset
from experiments.errors import ConfigError, Pruned
from experiments.storage.atomic_files import draft, sync
from experiments.system.paths import CONF, REPOSITORY, sqlite_file, sqlite_uri
from experiments.system.redaction import redact_credentials, redacted
from experiments.tracking import buffer, connection, liveness, view
from experiments.tracking.curves import metric_points
from experiments.tracking.queries import RUN_ID, experiment_in_trash, find_run, in_trash, trashed
from experiments.training.types import EpochRecord, Status

if TYPE_CHECKING:
    import keras
    from mlflow import MlflowClient

# Configuration keys whose value may be a run id -> the artifact of that run which is used.
REFERENCES = {"model.weights": "weights/backbone.weights.h5", "regime.head_from": "weights/head.weights.h5"}
MANIFEST = "manifest.csv"
MLFLOW_NAME = 250  # maximum length of an MLflow parameter's name, in characters
_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Logging of a run: what it is, its epochs, results, files and model."""

    @property
    def run_id(self) -> str | None: ...

    def files(self, config: Config) -> dict[str, Path]:
        """Download the files for the run ids in a configuration and return their paths by key.

        The manifests of these runs are downloaded to inputs/<key>, too.
        """

    def describe(self, config: Config, dataset: Dataset, facts: Mapping[str, str]) -> None:
        """Log parameters, tags and the data set before the training."""

    def epoch(self, record: EpochRecord) -> None:
        """Log one point of every curve."""

    def results(self, metrics: Mapping[str, float], facts: Mapping[str, Any], timestamp: int) -> None:
        """Log the final metrics and facts.

        Args:
            metrics: final metrics by name.
            facts: become tags.
            timestamp: of the metrics, in ms since 1970. Logging them again with the same timestamp is idempotent.
        """

    def artifacts(self, tables: Mapping[str, Mapping[str, list[Any]]]) -> None:
        """Log all files of the run directory, and tables that the UI can display."""

    def model(self, model: keras.Model, classes: Sequence[str]) -> None:
        """Log the whole model, for mlflow.keras.load_model and for serving."""


def load() -> None:
    """Import the modules of MLflow that a run will need; MLflow itself imports them only when they are first used."""
    import git  # noqa: F401  MLflow uses it to find a run's commit.
    import mlflow.artifacts
    import mlflow.store.db.utils
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


@contextmanager
def track(config: Config, folder: Path, run_id: str | None = None) -> Iterator[Tracker]:
    """Open an MLflow run and end it as FINISHED, FAILED or KILLED; with tracking=none, yield a tracker without effect.

    If the tracking store becomes unavailable during the run, training continues and messages are kept, see `buffer`.

    Args:
        folder: the run directory.
        run_id: the id of the MLflow run to continue; None for a new one.

    Raises:
        ConfigError: the tracking store cannot be opened, or the tracking buffer in the run directory is damaged.
    """
    if config.tracking.uri is None:
        yield Untracked()
        return
    buffer.prepare()
    connection.use(config.tracking.uri)
    buffer.read(folder)  # An error of a damaged buffer has to be raised before the run starts.
    tracker = MlflowRun(start(config, folder, run_id), folder, run_id)
    origin = " (MLFLOW_TRACKING_URI; tracking.uri=... for another)" if "tracking.uri" in config.unresolved else ""
    _log.info("MLflow store: %s%s", redact_credentials(config.tracking.uri), origin)
    alive = liveness.Heartbeat(tracker.run_id)
    status, reason = Status.FINISHED, None
    try:
        yield tracker
    except BaseException as error:
        failed = isinstance(error, Exception | SystemExit) and not isinstance(error, Pruned)
        status = Status.FAILED if failed else Status.KILLED
        reason = redact_credentials(hidden(config, f"{type(error).__name__}: {error}"))[:5000]
        raise
    finally:
        alive.stop()
        tracker.end(status, reason)


def start(config: Config, folder: Path, run_id: str | None) -> str:
    """Start an MLflow run, or continue one, and return its id.

    A run in MLflow's trash is restored. A run that is not in the tracking store is replaced with a new one, as a
    resumed run logs all of its epochs again. The run is not MLflow's active run, because MLflow marks that one as
    FINISHED at the end of the process, even if the run has failed.

    Raises:
        ConfigError: the store cannot be used.
    """
    import mlflow
    from mlflow.tracking.context.registry import resolve_tags

    uri, told = str(config.tracking.uri), logged(config)
    tags = {**liveness.owner(), "run_folder": str(folder)}
    if config.sweep.parent:
        tags["mlflow.parentRunId"] = config.sweep.parent
    try:
        experiment = open_experiment(config)
        liveness.mark_lost(experiment)
        client = mlflow.MlflowClient()
        before = None if run_id is None else find_run(client, run_id)
        if before is None:
            notes = {"mlflow.note.content": told["notes"]} if told["notes"] else {}
            run = client.create_run(
                experiment, run_name=run_name(folder), tags=redacted(resolve_tags({**told["tags"], **notes, **tags}))
            )
            if run_id is not None:
                _log.warning(
                    "MLflow run %s is not in %s (it was deleted for good, or is in another store): this run goes on as "
                    "MLflow run %s", run_id, redact_credentials(uri), run.info.run_id,
                )  # fmt: skip
            return str(run.info.run_id)
        run_id = str(before.info.run_id)
        if in_trash(before):
            client.restore_run(run_id)
            _log.warning("MLflow run %s was in MLflow's trash: it is restored", run_id)
        client.update_run(run_id, status=Status.RUNNING)
        for name, value in tags.items():
            client.set_tag(run_id, name, value)
        if "failure" in before.data.tags:
            client.delete_tag(run_id, "failure")
        return run_id
    except buffer.failures() as error:
        raise connection.unusable(uri, str(error)) from None


def start_sweep(config: Config, folder: Path, pid: int | None, run_id: str | None) -> str:
    """Start or continue a sweep's MLflow run, the parent of its jobs' runs, and return its id.

    Args:
        pid: of the sweep's process, which sends no heartbeat: only its own machine can find out that it has ended.

    Raises:
        ConfigError: the store cannot be used.
    """
    buffer.prepare()
    import mlflow

    connection.use(str(config.tracking.uri))
    tags = {**liveness.owner(pid), "owner.heartbeat": "inf", "run_folder": str(folder), "sweep": folder.name}
    try:
        experiment = open_experiment(config)
        liveness.mark_lost(experiment)
        client = mlflow.MlflowClient()
        if run_id is not None:
            with contextlib.suppress(mlflow.exceptions.MlflowException):  # The run may have been deleted.
                client.update_run(run_id, status=Status.RUNNING)
                for name, value in tags.items():
                    client.set_tag(run_id, name, value)
                if "failure" in client.get_run(run_id).data.tags:  # The sweep was killed before.
                    client.delete_tag(run_id, "failure")
                return run_id
        told = logged(config)["tags"]
        return str(client.create_run(experiment, run_name=folder.name, tags=redacted({**told, **tags})).info.run_id)
    except buffer.failures() as error:
        raise connection.unusable(str(config.tracking.uri), str(error)) from None


def end_sweep(config: Config, run_id: str, folder: Path, metrics: Mapping[str, float], status: str) -> None:
    """Log a sweep's metrics and summary to its MLflow run, and end it."""
    buffer.prepare()
    import mlflow

    connection.use(str(config.tracking.uri))
    client = mlflow.MlflowClient()
    before = client.get_run(run_id)
    liveness.mark_lost(before.info.experiment_id)  # Jobs may have been ended by kill -9.
    for name, value in metrics.items():
        if before.data.metrics.get(name) != value:  # A sweep that is summarized again would have each value twice.
            client.log_metric(run_id, name, value)
    text = folder / "summary.md"
    files = sorted([*folder.glob("summary.*"), *folder.glob("figures/*.png")])
    _add_files(client, run_id, files, text.read_text(encoding="utf-8") if text.exists() else None)
    client.set_terminated(run_id, status)


def _add_files(client: MlflowClient, run_id: str, files: Sequence[Path], text: str | None) -> None:
    """Log files, figures in the directory `figures`, and the text that the UI shows on a run's page, if any."""
    for path in files:
        client.log_artifact(run_id, str(path), "figures" if path.suffix == ".png" else None)
    if text is not None:
        client.set_tag(run_id, view.NOTE, text[:8000])


def add_figure(uri: str, run_id: str, path: Path) -> None:
    """Add a figure that was drawn after the end of a run to its MLflow artifacts.

    Raises:
        ConfigError: the store cannot be used, or has no such run.
    """
    connection.check(uri)
    buffer.prepare()
    import mlflow

    if connection.missing(uri):
        raise connection.unusable(uri, "it is not there")
    try:
        connection.use(uri)
        mlflow.MlflowClient(uri).log_artifact(run_id, str(path), "figures")
    except buffer.failures() as error:
        raise connection.unusable(uri, str(error)) from None


def log_comparison(uri: str, experiment: str, digest: str, files: Sequence[Path], text: str) -> str:
    """Log a comparison's files as an MLflow run; logging the same comparison again replaces its files.

    Args:
        experiment: the MLflow id of the experiment.
        digest: the hash of the comparison, which becomes part of the run's name and one of its tags.
        files: the files to log; figures are logged to the directory `figures`.
        text: Markdown that the UI shows on the run's page.

    Returns:
        The MLflow run's id.

    Raises:
        ConfigError: the store cannot be used.
    """
    buffer.prepare()
    import mlflow
    from mlflow.tracking.context.registry import resolve_tags

    client = mlflow.MlflowClient(uri)
    try:
        before = client.search_runs([experiment], f"tags.comparison = '{digest}'", max_results=1)
        if before:
            run_id = str(before[0].info.run_id)
        else:
            tags = redacted(resolve_tags({"comparison": digest}))
            run_id = str(client.create_run(experiment, run_name=f"compare-{digest}", tags=tags).info.run_id)
        _add_files(client, run_id, files, text)
        client.set_terminated(run_id)
    except buffer.failures() as error:
        raise connection.unusable(uri, str(error)) from None
    return run_id


def artifact_uri(place: str | None) -> str | None:
    """Return the artifact location in the form that MLflow expects: a URI unchanged, a path as an absolute file URI."""
    return place if place is None or "://" in place else Path(place).resolve().as_uri()


def run_name(folder: Path) -> str:
    """Return the name of a run: the name of its directory or, if that is a number as in a sweep, SWEEP-NUMBER."""
    return f"{folder.parent.name}-{folder.name}" if folder.name.isdigit() else folder.name


def open_experiment(config: Config) -> str:
    """Return the experiment's id; a missing store or experiment is created under a lock.

    The lock is needed because processes that initialise one SQLite store concurrently damage it; MLflow initialises it
    when a client is created.

    Raises:
        ConfigError: the experiment is in MLflow's trash.
    """
    import mlflow

    database = sqlite_file(str(config.tracking.uri))
    lock = database.with_name(f"{database.name}.lock") if database else Path(config.outputs) / ".mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if database and not database.exists():
            make_tables(database)
        client = mlflow.MlflowClient()
        found = client.get_experiment_by_name(config.tracking.experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            raise ConfigError(
                f"tracking.experiment: {experiment_in_trash(str(config.tracking.uri), found)}; or choose another name: "
                "tracking.experiment=NAME"
            )
        if found is not None:
            return str(found.experiment_id)
        artifacts = artifact_uri(config.tracking.artifacts)
        return str(client.create_experiment(config.tracking.experiment, artifacts, tags=view.tags()))


def make_tables(database: Path) -> None:
    """Create an SQLite store atomically: one whose initialisation was interrupted could never be used again."""
    import mlflow

    # The caller holds the lock, so that temporary files can only be left from killed processes.
    for torn in database.parent.glob(f".{database.name}.*"):
        torn.unlink(missing_ok=True)
    aside = draft(database)
    try:
        mlflow.MlflowClient(sqlite_uri(aside))
        sync(aside)
        os.replace(aside, database)
        sync(database.parent)
    finally:
        aside.unlink(missing_ok=True)


def fetch(config: Config, folder: Path) -> dict[str, Path]:
    """Download the files for the run ids in a configuration, with those runs' manifests, to inputs/<key>.

    Returns:
        Key of the configuration -> downloaded file.

    Raises:
        ConfigError: a run or its file is missing, or there is no tracking store.
    """
    wanted = _references(config)
    if not wanted:
        return {}
    if config.tracking.uri is None:
        raise ConfigError(f"{', '.join(wanted)}: a run id needs a tracking store. Received: tracking=none")
    buffer.prepare()
    import mlflow
    from mlflow.exceptions import MlflowException

    connection.use(config.tracking.uri)
    client = mlflow.MlflowClient()
    found = {}
    for key, run_id in wanted.items():
        with contextlib.suppress(MlflowException):  # The download below reports the same error.
            run = find_run(client, run_id)
            if run is not None and in_trash(run):
                raise ConfigError(f"{key}: {run_id}: {trashed(config.tracking.uri, run)}")
        place = folder / "inputs" / key
        for name in (MANIFEST, REFERENCES[key]):
            try:
                path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(place))
            except (MlflowException, OSError) as error:
                store = redact_credentials(str(config.tracking.uri))
                raise ConfigError(
                    f"{key}: run {run_id} in {store} has no {name}: {str(error)[:300]}. "
                    "Give the id of a run in this tracking store, or a file"
                ) from None
        found[key] = Path(path)
    return found


class Untracked:
    """Tracker for tracking=none, which logs nothing: the run directory is the only record."""

    run_id = None

    def files(self, config: Config) -> dict[str, Path]:
        return fetch(config, Path())

    def describe(self, config: Config, dataset: Dataset, facts: Mapping[str, str]) -> None: ...
    def epoch(self, record: EpochRecord) -> None: ...
    def results(self, metrics: Mapping[str, float], facts: Mapping[str, Any], timestamp: int) -> None: ...
    def artifacts(self, tables: Mapping[str, Mapping[str, list[Any]]]) -> None: ...
    def model(self, model: keras.Model, classes: Sequence[str]) -> None: ...


class MlflowRun:
    """Tracker that logs to an MLflow run through a tracking buffer."""

    def __init__(self, run_id: str, folder: Path, before: str | None = None) -> None:
        self.run_id = run_id
        self.folder = folder
        self.outbox = buffer.TrackingBuffer(run_id, folder)
        self.outbox.begin(before if before != run_id else None)

    def files(self, config: Config) -> dict[str, Path]:
        return fetch(config, self.folder)

    def describe(self, config: Config, dataset: Dataset, facts: Mapping[str, str]) -> None:
        source = config.unresolved.get("data.root", str(dataset.manifest.root))
        self.outbox.put("parameters", flat_parameters(config))
        self.outbox.put("tags", {**environment_tags(), **facts})
        digest = dataset.fingerprint[:32]  # MLflow does not accept a longer one.
        self.outbox.put("data", {"source": source, "name": config.data.name, "digest": digest})
        self.outbox.send()

    def epoch(self, record: EpochRecord) -> None:
        """Log an epoch; those shorter than SEND_EVERY are sent together.

        An epoch of a head takes less time than a call to MLflow.
        """
        self.outbox.put("metrics", metric_points(record))
        self.outbox.send(points=True)

    def results(self, metrics: Mapping[str, float], facts: Mapping[str, Any], timestamp: int) -> None:
        self.outbox.put("metrics", [[name, value, timestamp, 0] for name, value in metrics.items()])
        self.outbox.put("tags", dict(facts))
        self.outbox.send()

    def artifacts(self, tables: Mapping[str, Mapping[str, list[Any]]]) -> None:
        self.outbox.put("artifacts", tables)
        self.outbox.send()

    def model(self, model: keras.Model, classes: Sequence[str]) -> None:
        self.outbox.model = model
        self.outbox.put("model", list(classes))
        self.outbox.send()

    def end(self, status: str, reason: str | None) -> None:
        """End the run, and log a warning if messages could not be uploaded.

        The messages are written to the disk first, because a process that is being stopped may be killed while it
        waits for a server.
        """
        self.outbox.put("end", {"status": status, "failure": reason, "time": int(time.time() * 1000)})
        for tell in (self.outbox.keep, functools.partial(self.outbox.send, last=True)):
            with contextlib.suppress(OSError):  # The disk may be full; the error that ended the run is raised anyway.
                tell()
        if self.outbox.waiting:
            _log.warning(
                "Not all of this run is in MLflow (%s). When the server is back: experiments sync %s",
                redact_credentials(self.outbox.reason or ""), shlex.quote(str(self.folder)),
            )  # fmt: skip


def flat_parameters(config: Config) -> dict[str, str]:
    """Return the settings that define the run as MLflow parameters: key -> text.

    `regime` and the other groups have the name of the choice, `regime.views` and the like its values.
    """
    plain = logged(config)
    for key in NOT_IDENTITY:
        plain.pop(key)
    plain.pop("evaluate")
    plain["runtime"] = {name: plain["runtime"][name] for name in ("precision", "xla")}  # the same as in its identity
    return {key: value[:6000] for key, value in _flatten(plain).items()}


def _flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in node.items():
        if key in ("_target_", "ignores"):
            continue
        if isinstance(value, Mapping) and all(
            re.fullmatch(r"[\w .:/-]+", name, re.ASCII) and len(prefix + key + name) < MLFLOW_NAME for name in value
        ):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif key == "name":
            flat[prefix.rstrip(".")] = str(value)
        else:
            flat[prefix + key] = "null" if value is None else str(value)
    return flat


def environment_tags() -> dict[str, str]:
    """Return the tags that describe a run's environment: versions, host, command line, git commit."""
    packages = ("experiments", "tensorflow", "keras", "mlflow", "hydra-core", "numpy", "pillow")
    tags = {f"version.{name}": importlib.metadata.version(name) for name in packages}
    tags |= {
        "version.python": platform.python_version(),
        "host": socket.gethostname(),
        "command": redact_credentials(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))[:5000],
    }
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    if commit:
        tags["git.commit"] = commit
    if commit and changes is not None:
        tags["git.dirty"] = str(bool(changes)).lower()
    return tags


def _git(*arguments: str) -> str | None:
    """Return git's output for this package's checkout, or for the current directory if the package is installed.

    Return None if git fails.
    """
    place = REPOSITORY if CONF.parent == REPOSITORY else Path.cwd()
    try:
        done = subprocess.run(["git", *arguments], cwd=place, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _references(config: Config) -> dict[str, str]:
    values = {"model.weights": config.model.weights, "regime.head_from": config.regime.head_from}
    return {
        key: value
        for key, value in values.items()
        if value is not None and RUN_ID.fullmatch(value) and key not in config.regime.ignores
    }
