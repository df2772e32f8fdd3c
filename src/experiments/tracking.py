"""The only module that knows MLflow. Opened first by `run`, it mirrors what the run's folder holds."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil
from filelock import FileLock

from experiments.paths import CONF, REPOSITORY, default_outputs
from experiments.schema import NOT_IDENTITY, Config, effective
from experiments.types import ConfigError, EpochRecord, Splits

if TYPE_CHECKING:
    import keras
    from mlflow.entities import Metric

RUN_ID = re.compile(r"[0-9a-f]{32}")
# What a run id in the configuration stands for: the key, and the file that the run logged.
REFERENCES = {"model.weights": "weights/backbone.weights.h5", "regime.head_from": "weights/head.weights.h5"}
MANIFEST = "manifest.csv"
HEARTBEAT = 60.0  # seconds
SEND_EVERY = 1.0  # seconds at least between two calls that send points of curves
DESCRIPTION = """\
Image-classification experiments. Each run is one training: `regime` says how (scratch, bottleneck, finetune), `model`
with what. Compare runs by **validation.accuracy** (with its 95 % interval, `validation.accuracy_low` and `_high`); the
curves are `accuracy` and `validation_accuracy` by epoch, figures and predictions are among the artifacts.
"""


class Tracker(Protocol):
    """What a run tells about itself."""

    @property
    def run_id(self) -> str | None: ...

    def files(self, config: Config) -> dict[str, Path]:
        """Local files for the run ids in a configuration, by key; that run's manifest is put into inputs/<key>, too."""

    def describe(self, config: Config, splits: Splits, facts: Mapping[str, str]) -> None:
        """What the run is, before it trains: parameters, tags, data set."""

    def epoch(self, record: EpochRecord) -> None:
        """One point of every curve."""

    def results(self, metrics: Mapping[str, float], facts: Mapping[str, Any], timestamp: int) -> None:
        """The final figures, as of a time [ms since 1970] at which they may be told twice without standing twice."""

    def artifacts(self, folder: Path, tables: Mapping[str, Mapping[str, list[Any]]]) -> None:
        """Everything in the run's folder, and tables to look at in the UI."""

    def model(self, model: keras.Model, classes: int) -> None:
        """The whole model, loadable by mlflow.keras.load_model."""


@contextmanager
def track(config: Config, folder: Path, run_id: str | None = None) -> Iterator[Tracker]:
    """An MLflow run around the work, ended FINISHED, FAILED or KILLED; with tracking=none one that does nothing.

    Args:
        folder: of the run.
        run_id: of the MLflow run to go on with; None: a new one.

    Raises:
        ConfigError: a tracking store that cannot be opened.
    """
    if config.tracking.uri is None:
        yield Untracked()
        return
    # Set before MLflow is imported: with its defaults a server that is down blocks for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # our requirements are given, not looked for
    import mlflow
    from mlflow.exceptions import MlflowException

    logging.getLogger("mlflow").setLevel(logging.ERROR)

    mlflow.set_tracking_uri(config.tracking.uri)
    experiment = open_experiment(config)
    mark_lost(experiment)
    if run_id is None:
        run = mlflow.start_run(
            experiment_id=experiment,
            run_name=run_name(folder),
            tags=dict(config.tags),
            description=config.notes or None,
        )
    else:
        try:
            run = mlflow.start_run(run_id=run_id)
        except MlflowException as error:
            raise ConfigError(
                f"resume: run {run_id} is not in {without_passwords(config.tracking.uri)}: {str(error)[:300]}. "
                "Give the store it was tracked in: tracking.uri=..., or tracking=none"
            ) from None
        if "failure" in run.data.tags:
            mlflow.delete_tag("failure")
    mlflow.set_tags({**owner(), "run_folder": str(folder)})
    tracker = MlflowRun(run.info.run_id, folder)
    alive = Heartbeat(run.info.run_id)
    try:
        yield tracker
        tracker.send()
    except BaseException as error:
        with contextlib.suppress(Exception):  # the curves are in the run's folder; the error is what must be told
            tracker.send()
        killed = isinstance(error, KeyboardInterrupt) or not isinstance(error, Exception | SystemExit)
        mlflow.set_tag("failure", without_passwords(f"{type(error).__name__}: {error}")[:5000])
        mlflow.end_run("KILLED" if killed else "FAILED")
        raise
    finally:
        alive.stop()
    mlflow.end_run("FINISHED")


def artifact_uri(place: str | None) -> str | None:
    """Where artifacts go, as MLflow wants it: a URI as it is, a path as an absolute file URI."""
    return place if place is None or "://" in place else Path(place).resolve().as_uri()


def run_name(folder: Path) -> str:
    """A run is called like its folder; a sweep's job, whose folder is a number, like the sweep and that number."""
    return f"{folder.parent.name}-{folder.name}" if folder.name.isdigit() else folder.name


def open_experiment(config: Config) -> str:
    """The experiment's id; store and experiment are made where they are missing, one process at a time.

    A lock, because processes that initialise one SQLite store together spoil it; MLflow does so when a client is made.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    database = (config.tracking.uri or "").removeprefix("sqlite:///")
    lock = Path(f"{database}.lock" if database != config.tracking.uri else f"{config.outputs}/.mlflow.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            client = mlflow.MlflowClient()
            found = client.get_experiment_by_name(config.tracking.experiment)
            if found is not None:
                return str(found.experiment_id)
            artifacts = artifact_uri(config.tracking.artifacts)
            return str(
                client.create_experiment(
                    config.tracking.experiment, artifacts, tags={"mlflow.note.content": DESCRIPTION}
                )
            )
    except (MlflowException, SQLAlchemyError, OSError) as error:
        text = f"tracking.uri: the MLflow store at {config.tracking.uri} cannot be used: {str(error)[:500]}. "
        text += "Check the address and that the server runs, or use tracking=sqlite or tracking=none"
        raise ConfigError(without_passwords(text)) from None


def owner() -> dict[str, str]:
    """The process that a run belongs to, as tags: what a later start needs to tell whether it still lives."""
    process = psutil.Process()
    return {
        "owner.host": socket.gethostname(),
        "owner.pid": str(process.pid),
        "owner.started": f"{process.create_time():.2f}",
        "owner.heartbeat": str(int(time.time())),
    }


class Heartbeat:
    """Tells every minute that the run's process lives, for those on other machines, who cannot see it."""

    def __init__(self, run_id: str) -> None:
        self._run_id, self._ended = run_id, threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def _beat(self) -> None:
        import mlflow

        client = mlflow.MlflowClient()
        while not self._ended.wait(HEARTBEAT):
            with contextlib.suppress(Exception):  # a store that is down for a while
                client.set_tag(self._run_id, "owner.heartbeat", str(int(time.time())))


def mark_lost(experiment: str) -> None:
    """Ends the runs of an experiment whose process is gone: killed by kill -9, or with its machine."""
    import mlflow
    from mlflow.entities import RunStatus

    client = mlflow.MlflowClient()
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=1000):
        if lost(run.data.tags):
            reason = "its process is gone (kill -9, out of memory, or the machine went down)"
            client.set_tag(run.info.run_id, "failure", reason)
            client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))


def lost(tags: Mapping[str, str]) -> bool:
    """Whether the process that a run's tags name is gone; of runs that name none, nothing is known."""
    if "owner.pid" not in tags:
        return False
    if tags["owner.host"] != socket.gethostname():
        return time.time() - float(tags["owner.heartbeat"]) > 10 * HEARTBEAT
    try:
        return f"{psutil.Process(int(tags['owner.pid'])).create_time():.2f}" != tags["owner.started"]
    except psutil.NoSuchProcess:
        return True


class Untracked:
    """tracking=none: the run's folder is all there is."""

    run_id = None

    def files(self, config: Config) -> dict[str, Path]:
        wanted = _references(config)
        if wanted:
            raise ConfigError(f"{', '.join(wanted)}: a run id needs a tracking store. Received: tracking=none")
        return {}

    def describe(self, config: Config, splits: Splits, facts: Mapping[str, str]) -> None: ...
    def epoch(self, record: EpochRecord) -> None: ...
    def results(self, metrics: Mapping[str, float], facts: Mapping[str, Any], timestamp: int) -> None: ...
    def artifacts(self, folder: Path, tables: Mapping[str, Mapping[str, list[Any]]]) -> None: ...
    def model(self, model: keras.Model, classes: int) -> None: ...


class MlflowRun:
    """The active MLflow run."""

    def __init__(self, run_id: str, folder: Path) -> None:
        self.run_id = run_id
        self.folder = folder
        self.unsent: list[Metric] = []
        self.sent = time.monotonic()  # when they last were

    def files(self, config: Config) -> dict[str, Path]:
        import mlflow
        from mlflow.exceptions import MlflowException

        found = {}
        for key, run_id in _references(config).items():
            place = self.folder / "inputs" / key
            for name in (MANIFEST, REFERENCES[key]):
                try:
                    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(place))
                except (MlflowException, OSError) as error:
                    store = without_passwords(str(config.tracking.uri))
                    raise ConfigError(
                        f"{key}: run {run_id} in {store} has no {name}: {str(error)[:300]}. "
                        "Give the id of a run in this tracking store, or a file"
                    ) from None
            found[key] = Path(path)
        return found

    def describe(self, config: Config, splits: Splits, facts: Mapping[str, str]) -> None:
        import mlflow
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset

        parameters = flat_parameters(config)
        names = sorted(parameters)
        for at in range(0, len(names), 100):  # a batch holds no more
            mlflow.log_params({name: parameters[name] for name in names[at : at + 100]})
        mlflow.set_tags({**environment_tags(), **facts})
        with warnings.catch_warnings(action="ignore"):  # a path fits two of MLflow's sources, which are the same
            source = resolve_dataset_source(str(splits.manifest.root))
        dataset = MetaDataset(  # type: ignore[abstract]
            source, name=config.data.name, digest=splits.fingerprint[:32]
        )
        mlflow.log_input(dataset, context="training")  # all splits; of a second input with its digest MLflow keeps none

    def epoch(self, record: EpochRecord) -> None:
        """Epochs that are shorter than SEND_EVERY are sent together: a head's take less time than a call to MLflow."""
        from mlflow.entities import Metric

        phase = {"phase": float(PHASES.index(record.phase))} if record.phase in PHASES else {}
        values = {**record.metrics, **phase}
        self.unsent += [Metric(name, value, record.timestamp, record.step) for name, value in values.items()]
        if time.monotonic() - self.sent >= SEND_EVERY:
            self.send()

    def send(self) -> None:
        """Sends what has not been sent yet."""
        import mlflow

        client = mlflow.MlflowClient()
        for at in range(0, len(self.unsent), 1000):  # a batch holds no more
            client.log_batch(self.run_id, metrics=self.unsent[at : at + 1000])
        self.unsent, self.sent = [], time.monotonic()

    def results(self, metrics: Mapping[str, float], facts: Mapping[str, Any], timestamp: int) -> None:
        import mlflow

        self.send()
        mlflow.log_metrics(dict(metrics), step=0, timestamp=timestamp)
        mlflow.set_tags(dict(facts))

    def artifacts(self, folder: Path, tables: Mapping[str, Mapping[str, list[Any]]]) -> None:
        import mlflow

        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if path.is_file() and inside.parts[0] not in (".hydra", "inputs", "checkpoints", ".run.lock", "run.json"):
                mlflow.log_artifact(str(path), inside.parent.as_posix() if len(inside.parts) > 1 else None)
        # As mlflow.log_table has them, which would append to what a resumed run has logged before.
        for name, table in tables.items():
            rows = [list(row) for row in zip(*table.values(), strict=True)]
            mlflow.log_text(json.dumps({"columns": list(table), "data": rows}), f"{name}.json")
        mlflow.set_tag(
            "mlflow.loggedArtifacts", json.dumps([{"path": f"{name}.json", "type": "table"} for name in tables])
        )

    def model(self, model: keras.Model, classes: int) -> None:
        import mlflow.keras
        import numpy as np
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype("float32"), (-1, *model.input_shape[1:]), "pixels")]),
            outputs=Schema([TensorSpec(np.dtype("float32"), (-1, classes))]),
        )
        # Given here, because MLflow's own search for them starts a process that imports everything again.
        requirements = [f"{name}=={importlib.metadata.version(name)}" for name in ("tensorflow", "keras", "numpy")]
        mlflow.keras.log_model(model, name="model", signature=signature, pip_requirements=requirements)


PHASES = ("scratch", "head", "finetune")  # as the metric `phase` counts them


def flat_parameters(config: Config) -> dict[str, str]:
    """What the run reads, a key and a text each: `regime` and the like name the choice, `regime.views` its values."""
    plain = effective(config)
    for key in NOT_IDENTITY:
        plain.pop(key)
    plain["runtime"] = {name: plain["runtime"][name] for name in ("precision", "xla")}  # as in a run's identity
    return {key: value[:6000] for key, value in _flatten(plain).items()}


def _flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in node.items():
        if key in ("_target_", "ignores"):
            continue
        if isinstance(value, Mapping):
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
        "command": without_passwords(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))[:5000],
    }
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    if commit:
        tags["git.commit"] = commit
    if commit and changes is not None:
        tags["git.dirty"] = str(bool(changes)).lower()
    return tags


def without_passwords(text: str) -> str:
    """The text with the passwords of addresses in it starred out: scheme://user:***@host."""
    return re.sub(r"(://[^\s:/@]*):\S+@", r"\1:***@", text)


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


# --- reading runs back


@dataclass(frozen=True)
class RunFacts:
    """A finished run as the store remembers it."""

    run_id: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def local_store() -> str:
    """The tracking URI that commands read by default: MLFLOW_TRACKING_URI, else the SQLite file of this place."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{default_outputs()}/mlflow.db"


def find_runs(uri: str, wanted: Sequence[str], tag: tuple[str, str] | None = None) -> list[RunFacts]:
    """Finished runs, in the order asked for.

    Args:
        uri: the tracking store.
        wanted: run ids, the beginnings of them, or run names; none for all.
        tag: only runs with this tag of this value.

    Raises:
        ConfigError: a store that is not there, or names that fit no finished run or several.
    """
    database = uri.removeprefix("sqlite:///")
    if database != uri and not Path(database).exists():
        raise ConfigError(f"No runs yet: there is no {database}. Train first, or give --uri")
    import mlflow

    client = mlflow.MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    query = f"tags.`{tag[0]}` = '{tag[1]}'" if tag else ""
    page = client.search_runs(experiments, query, order_by=["attributes.start_time ASC"], max_results=50000)
    found = [
        RunFacts(run.info.run_id, run.info.run_name, run.data.params, run.data.metrics, run.data.tags)
        for run in page
        if run.info.status == "FINISHED"
    ]
    if not wanted:
        return found
    chosen = []
    for name in wanted:
        fitting = [run for run in found if run.run_id.startswith(name) or run.name == name]
        if len(fitting) != 1:
            known = ", ".join(f"{run.run_id[:8]} ({run.name})" for run in found[-8:])
            what = "no finished run fits" if not fitting else f"{len(fitting)} runs fit"
            raise ConfigError(f"{name}: {what}. Give a run id, its beginning or a run name. The latest runs: {known}")
        chosen.append(fitting[0])
    return chosen


def run_folder(uri: str, run_id: str) -> Path:
    """Where a run, finished or not, keeps its files.

    Raises:
        ConfigError: no such run in the store, or a folder that is not on this machine.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        if not RUN_ID.fullmatch(run_id) or (not Path(uri.removeprefix("sqlite:///")).exists() and "sqlite:" in uri):
            raise MlflowException("no folder has this name, and no run this id")
        folder = mlflow.MlflowClient(uri).get_run(run_id).data.tags.get("run_folder")
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise ConfigError(
            f"resume: must be a run's folder or the id of a run in {without_passwords(uri)} ({str(error)[:300]}). "
            f"Received: {run_id!r}"
        ) from None
    if folder is None or not Path(folder).is_dir():
        raise ConfigError(f"resume: the folder of run {run_id} is not on this machine: {folder}")
    return Path(folder)


def read_predictions(uri: str, run: RunFacts, split: str) -> dict[str, list[Any]]:
    """The columns of a run's stored predictions.

    Raises:
        ConfigError: the run has none for this split.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(uri)
    try:
        table = json.loads(mlflow.artifacts.load_text(f"runs:/{run.run_id}/predictions_{split}.json"))
    except (MlflowException, OSError) as error:
        raise ConfigError(f"{run.name}: no predictions of split {split!r}: {str(error)[:200]}") from None
    rows = table["data"]
    return {name: [row[at] for row in rows] for at, name in enumerate(table["columns"])}


def ui_command(uri: str, port: int) -> list[str]:
    """The command that serves the MLflow UI to this machine only."""
    served = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *served]
