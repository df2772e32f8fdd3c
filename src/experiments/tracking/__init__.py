"""The only package that knows MLflow. Opened first by `run`, it mirrors what the run's folder holds."""

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

from experiments.config.schema import NOT_IDENTITY, Config, hidden, logged
from experiments.data.types import Dataset
from experiments.errors import ConfigError, Pruned
from experiments.storage.atomic_files import draft, sync
from experiments.system.paths import CONF, REPOSITORY, sqlite_file, sqlite_uri
from experiments.system.redaction import redact_credentials, redacted
from experiments.tracking import buffer, connection, liveness, view
from experiments.tracking.curves import metric_points
from experiments.tracking.queries import RUN_ID, experiment_in_trash, find_run, in_trash, trashed
from experiments.training.types import EpochRecord

if TYPE_CHECKING:
    import keras
    from mlflow import MlflowClient

# What a run id in the configuration stands for: the key, and the file that the run logged.
REFERENCES = {"model.weights": "weights/backbone.weights.h5", "regime.head_from": "weights/head.weights.h5"}
MANIFEST = "manifest.csv"
MLFLOW_NAME = 250  # characters of a parameter's name at most
_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """What a run tells about itself."""

    @property
    def run_id(self) -> str | None: ...

    def files(self, config: Config) -> dict[str, Path]:
        """Local files for the run ids in a configuration, by key; that run's manifest is put into inputs/<key>, too."""

    def describe(self, config: Config, splits: Dataset, facts: Mapping[str, str]) -> None:
        """What the run is, before it trains: parameters, tags, data set."""

    def epoch(self, record: EpochRecord) -> None:
        """One point of every curve."""

    def results(self, metrics: Mapping[str, float], facts: Mapping[str, Any], timestamp: int) -> None:
        """The final figures, as of a time [ms since 1970] at which they may be told twice without standing twice."""

    def artifacts(self, tables: Mapping[str, Mapping[str, list[Any]]]) -> None:
        """Everything in the run's folder, and tables to look at in the UI."""

    def model(self, model: keras.Model, classes: Sequence[str]) -> None:
        """The whole model, for mlflow.keras.load_model and for serving."""


def load() -> None:
    """Imports what a run will need of MLflow, which itself imports it at its first call."""
    import git  # noqa: F401  MLflow's, for a run's commit
    import mlflow.artifacts
    import mlflow.store.db.utils
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


@contextmanager
def track(config: Config, folder: Path, run_id: str | None = None) -> Iterator[Tracker]:
    """An MLflow run around the work, ended FINISHED, FAILED or KILLED; with tracking=none one that does nothing.

    A store that is away while the run goes on costs it nothing: see `outbox`.

    Args:
        folder: of the run.
        run_id: of the MLflow run to go on with; None: a new one.

    Raises:
        ConfigError: a tracking store that cannot be opened.
    """
    if config.tracking.uri is None:
        yield Untracked()
        return
    buffer.prepare()
    connection.use(config.tracking.uri)
    buffer.read(folder)  # its errors belong before the run
    tracker = MlflowRun(start(config, folder, run_id), folder, run_id)
    origin = " (MLFLOW_TRACKING_URI; tracking.uri=... for another)" if "tracking.uri" in config.unresolved else ""
    _log.info("MLflow store: %s%s", redact_credentials(config.tracking.uri), origin)
    alive = liveness.Heartbeat(tracker.run_id)
    status, reason = "FINISHED", None
    try:
        yield tracker
    except BaseException as error:
        failed = isinstance(error, Exception | SystemExit) and not isinstance(error, Pruned)
        status = "FAILED" if failed else "KILLED"
        reason = redact_credentials(hidden(config, f"{type(error).__name__}: {error}"))[:5000]
        raise
    finally:
        alive.stop()
        tracker.end(status, reason)


def start(config: Config, folder: Path, run_id: str | None) -> str:
    """Start an MLflow run, or go on with one; return its id.

    A run that was put into MLflow's trash is restored; for one that is not in the store, a new one takes its place: a
    resumed run logs all of its epochs again. Not MLflow's active run: at the end of the process that would become
    FINISHED, however this one ended.

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
        client.update_run(run_id, status="RUNNING")
        for name, value in tags.items():
            client.set_tag(run_id, name, value)
        if "failure" in before.data.tags:
            client.delete_tag(run_id, "failure")
        return run_id
    except buffer.failures() as error:
        raise connection.unusable(uri, str(error)) from None


def start_sweep(config: Config, folder: Path, pid: int | None, run_id: str | None) -> str:
    """Starts the MLflow run that a sweep's jobs are children of, or goes on with it; its id.

    Args:
        pid: of the sweep's process. It sends no heartbeat: only its own machine can tell that it is gone.

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
            with contextlib.suppress(mlflow.exceptions.MlflowException):  # deleted since
                client.update_run(run_id, status="RUNNING")
                for name, value in tags.items():
                    client.set_tag(run_id, name, value)
                if "failure" in client.get_run(run_id).data.tags:  # of a sweep that was killed
                    client.delete_tag(run_id, "failure")
                return run_id
        told = logged(config)["tags"]
        return str(client.create_run(experiment, run_name=folder.name, tags=redacted({**told, **tags})).info.run_id)
    except buffer.failures() as error:
        raise connection.unusable(str(config.tracking.uri), str(error)) from None


def end_sweep(config: Config, run_id: str, folder: Path, metrics: Mapping[str, float], status: str) -> None:
    """Gives a sweep's MLflow run the conclusion, and ends it."""
    buffer.prepare()
    import mlflow

    connection.use(str(config.tracking.uri))
    client = mlflow.MlflowClient()
    before = client.get_run(run_id)
    liveness.mark_lost(before.info.experiment_id)  # jobs that kill -9 ended
    for name, value in metrics.items():
        if before.data.metrics.get(name) != value:  # else a sweep that is concluded again has each value twice
            client.log_metric(run_id, name, value)
    text = folder / "summary.md"
    files = sorted([*folder.glob("summary.*"), *folder.glob("figures/*.png")])
    _add_files(client, run_id, files, text.read_text(encoding="utf-8") if text.exists() else None)
    client.set_terminated(run_id, status)


def _add_files(client: MlflowClient, run_id: str, files: Sequence[Path], text: str | None) -> None:
    """Logs files, figures in a folder of their own, and the text that the UI shows on a run's page, if any."""
    for path in files:
        client.log_artifact(run_id, str(path), "figures" if path.suffix == ".png" else None)
    if text is not None:
        client.set_tag(run_id, view.NOTE, text[:8000])


def add_figure(uri: str, run_id: str, path: Path) -> None:
    """Puts a picture that was drawn of a run after its end among its figures.

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
    """Logs a comparison's files as a run beside those it compares; the same one again takes the place of the old.

    Args:
        experiment: its MLflow id.
        digest: of what is compared: in the run's name, and a tag of it.
        files: to log, figures in a folder of their own.
        text: Markdown, that the UI shows on the run's page.

    Returns:
        The MLflow run's id.

    Raises:
        ConfigError: the store does not take it.
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
    """Where artifacts go, as MLflow wants it: a URI as it is, a path as an absolute file URI."""
    return place if place is None or "://" in place else Path(place).resolve().as_uri()


def run_name(folder: Path) -> str:
    """A run is called like its folder; a sweep's job, whose folder is a number, like the sweep and that number."""
    return f"{folder.parent.name}-{folder.name}" if folder.name.isdigit() else folder.name


def open_experiment(config: Config) -> str:
    """The experiment's id; store and experiment are made where they are missing, one process at a time.

    A lock, because processes that initialise one SQLite store together spoil it; MLflow does so when a client is made.

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
    """Makes a SQLite store that appears whole: one whose first use was killed half-way can never be used again."""
    import mlflow

    for torn in database.parent.glob(f".{database.name}.*"):  # by now only of processes that were killed
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
    """Local files for the run ids in a configuration, by key, put with those runs' manifests into inputs/<key>.

    Raises:
        ConfigError: a run that is not there, or there is no tracking store.
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
        with contextlib.suppress(MlflowException):  # which the artifacts below report
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
    """tracking=none: the run's folder is all there is."""

    run_id = None

    def files(self, config: Config) -> dict[str, Path]:
        return fetch(config, Path())

    def describe(self, config: Config, splits: Dataset, facts: Mapping[str, str]) -> None: ...
    def epoch(self, record: EpochRecord) -> None: ...
    def results(self, metrics: Mapping[str, float], facts: Mapping[str, Any], timestamp: int) -> None: ...
    def artifacts(self, tables: Mapping[str, Mapping[str, list[Any]]]) -> None: ...
    def model(self, model: keras.Model, classes: Sequence[str]) -> None: ...


class MlflowRun:
    """The active MLflow run."""

    def __init__(self, run_id: str, folder: Path, before: str | None = None) -> None:
        self.run_id = run_id
        self.folder = folder
        self.outbox = buffer.TrackingBuffer(run_id, folder)
        self.outbox.begin(before if before != run_id else None)

    def files(self, config: Config) -> dict[str, Path]:
        return fetch(config, self.folder)

    def describe(self, config: Config, splits: Dataset, facts: Mapping[str, str]) -> None:
        source = config.unresolved.get("data.root", str(splits.manifest.root))
        self.outbox.put("parameters", flat_parameters(config))
        self.outbox.put("tags", {**environment_tags(), **facts})
        digest = splits.fingerprint[:32]  # MLflow takes no longer one
        self.outbox.put("data", {"source": source, "name": config.data.name, "digest": digest})
        self.outbox.send()

    def epoch(self, record: EpochRecord) -> None:
        """Epochs that are shorter than SEND_EVERY are sent together: a head's take less time than a call to MLflow."""
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
        """Ends the run, and says what of it MLflow does not have.

        What is to be told is on the disk first: whoever stops a process may not wait for a server.
        """
        self.outbox.put("end", {"status": status, "failure": reason, "time": int(time.time() * 1000)})
        for tell in (self.outbox.keep, functools.partial(self.outbox.send, last=True)):
            with contextlib.suppress(OSError):  # on a full disk; why the run ended is being told already
                tell()
        if self.outbox.waiting:
            _log.warning(
                "Not all of this run is in MLflow (%s). When the store is back: experiments sync %s",
                redact_credentials(self.outbox.reason or ""), shlex.quote(str(self.folder)),
            )  # fmt: skip


def flat_parameters(config: Config) -> dict[str, str]:
    """What makes the run what it is, a key and a text each: `regime` and the like name the choice, `regime.views` its
    values."""
    plain = logged(config)
    for key in NOT_IDENTITY:
        plain.pop(key)
    plain.pop("evaluate")
    plain["runtime"] = {name: plain["runtime"][name] for name in ("precision", "xla")}  # as in a run's identity
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
    """Where and by what a run was made: versions, host, command line, git commit."""
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
    """What git says of this package's checkout, or of the current directory where the package is installed."""
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
