"""Runs in MLflow: their parameters, metrics, status and artifacts, and logged models that load."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn, cast

import keras
import mlflow
import numpy as np
import pytest
import requests
from mlflow.entities import Dataset, DatasetInput, Run
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from PIL import Image

from experiments.cli import evaluate, inspect, ui
from experiments.cli import sync as sync_verb
from experiments.config import schema
from experiments.config.identity import logged
from experiments.config.validation import RECORDED_TAGS
from experiments.errors import ConfigError, Pruned
from experiments.images import decoder
from experiments.images.resizing import resize
from experiments.regimes import scratch
from experiments.runs.curves import PHASES, parse
from experiments.storage import atomic_files
from experiments.storage.csv_files import read_rows
from experiments.tracking import (
    buffer,
    connection,
    description,
    inputs,
    liveness,
    mlflow_run,
    model_logging,
    queries,
    sqlite_store,
    summary_runs,
    sync,
    upload,
    view,
)
from experiments.tracking.experiment import open_experiment
from experiments.tracking.upload import Kind
from experiments.training.checkpoints import Checkpoints

METRICS = {
    "loss", "accuracy", "validation_loss", "validation_accuracy", "learning_rate", "seconds", "images_per_second",
    "input_wait", "total_loss",
}  # fmt: skip
SMALL = ("data.image_size=48", "model.head.pooling=average", "epochs=2", "batch_size=8", "progress=none")


class Store(NamedTuple):
    """An MLflow store of this module and the images that its runs read."""

    outputs: Path
    root: Path
    train_here: Callable[..., None]

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.outputs}/mlflow.db"

    def command(self, name: str, *overrides: str) -> list[str]:
        return [
            "data=folder", f"data.root={self.root}", f"outputs={self.outputs}",
            f"hydra.run.dir={self.outputs / 'runs' / name}", "hydra/job_logging=none", *SMALL, *overrides,
        ]  # fmt: skip

    def train(self, name: str, *overrides: str, figures: bool = False) -> None:
        """A run in this process, as its command line would start it."""
        self.train_here(*self.command(name, *overrides), figures=figures)

    def run(self, name: str) -> Run:
        client = mlflow.MlflowClient(self.uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        (found,) = client.search_runs(experiments, f"attributes.run_name = '{name}'")
        return found

    def files(self, run: Run) -> set[str]:
        client = mlflow.MlflowClient(self.uri)
        found: set[str] = set()
        folders = [""]
        while folders:
            for artifact in client.list_artifacts(run.info.run_id, folders.pop() or None):
                (folders.append if artifact.is_dir else found.add)(artifact.path)
        return found


@pytest.fixture(scope="module")
def store(drawn: Path, train_here: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Holds `head` (bottleneck), `tuned` (finetune on head's backbone) and `given` (finetune on head's head)."""
    store = Store(tmp_path_factory.mktemp("tracking") / "outputs", drawn, train_here)
    store.train("head", "regime=bottleneck", "model.weights=null", "optimizer.lr=0.03", "+tags.question=which")
    head = store.run("head").info.run_id
    tuned = ("regime=finetune", f"model.weights='{head}'", "regime.views=1", "evaluate.test=false",
             "tracking.log_model=false")  # fmt: skip
    store.train("tuned", *tuned, "regime.head_epochs=2", "regime.head_optimizer.lr=0.03")
    store.train("given", *tuned, f"regime.head_from='{head}'")
    return store


@pytest.fixture
def predictions(store: Store) -> tuple[np.ndarray, np.ndarray]:
    """Validation images of `head` [N, 48, 48, 3] float32 and what its CSV says of them [N, 2]."""
    rows = read_rows(store.outputs / "runs/head/predictions_validation.csv")
    images = [resize(decoder.decode((store.root / row["path"]).read_bytes()), 48) for row in rows]
    return np.stack(images).astype("float32"), np.array([[row["p_blobs"], row["p_stripes"]] for row in rows], float)


def test_a_run_is_described(store: Store) -> None:
    run = store.run("head")
    params = run.data.params
    assert run.info.status == "FINISHED"
    assert params["regime"] == "bottleneck" and params["model"] == "convnet" and params["optimizer"] == "adamw_head"
    assert float(params["optimizer.lr"]) == 0.03 and params["epochs"] == "2" and params["seed"] == "0"
    assert params["data"] == "folder" and params["data.image_size"] == "48" and params["model.weights"] == "null"
    ignored = ("augmentation", "regime.unfrozen_blocks", "regime.views", "regime.head_")
    assert not [key for key in params if key.startswith(ignored)]
    assert not [key for key in params if key.startswith(("tracking", "outputs", "hydra", "tags")) or "_target_" in key]
    tuned = store.run("tuned").data.params
    assert tuned["regime.unfrozen_blocks"] == "1" and tuned["regime.head_optimizer"] == "adamw_head"
    assert tuned["augmentation"] == "light" and float(tuned["augmentation.rotation"]) == 10


def test_a_run_is_tagged(store: Store) -> None:
    tags = store.run("head").data.tags
    assert re.fullmatch("[0-9a-f]{32}", tags["identity"])
    assert re.fullmatch("[0-9a-f]{64}", tags["data_fingerprint"])
    assert re.fullmatch("[0-9a-f]{64}", tags["backbone_identity"])
    assert tags["regime"] == "bottleneck" and tags["backbone"] == "convnet" and tags["question"] == "which"
    assert tags["version.keras"] == keras.__version__ and tags["version.tensorflow"] and tags["version.python"]
    assert tags["host"] and tags["command"].startswith("train data=folder") and "optimizer.lr=0.03" in tags["command"]
    command = ["git", "rev-parse", "HEAD"] if shutil.which("git") else ["true"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    assert tags.get("git.commit", "") == commit
    if commit:
        assert tags["git.dirty"] in ("true", "false")
    assert Path(tags["run_folder"]) == store.outputs / "runs" / "head"
    assert store.run("tuned").data.tags["head_source"] == "head cache"
    assert store.run("tuned").data.tags["backbone_identity"] == tags["backbone_identity"]
    assert store.run("tuned").data.tags["identity"] != tags["identity"]
    own = {name for name in store.run("tuned").data.tags | tags if not name.startswith("mlflow.")}
    assert {name for name in own if not RECORDED_TAGS.fullmatch(name)} == {"question"}


def test_a_run_names_its_data(store: Store) -> None:
    run = store.run("head")
    (dataset,) = {
        (given.dataset.name, given.dataset.digest, given.dataset.source) for given in run.inputs.dataset_inputs
    }
    assert dataset[:2] == ("folder", run.data.tags["data_fingerprint"][:32])
    assert str(store.root) in dataset[2]
    contexts = {tag.value for given in run.inputs.dataset_inputs for tag in given.tags}
    assert contexts == {"training"}


def test_curves_lie_on_one_axis(store: Store) -> None:
    client = mlflow.MlflowClient(store.uri)

    def curve(name: str, metric: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in client.get_metric_history(store.run(name).info.run_id, metric)]

    for metric in METRICS:
        assert [step for step, _ in curve("head", metric)] == [0, 1]
        assert [step for step, _ in curve("tuned", metric)] == [0, 1, 2, 3]
        assert [step for step, _ in curve("given", metric)] == [0, 1]
    head, finetune = PHASES.index("head"), PHASES.index("finetune")
    assert curve("head", "phase") == [(0, head), (1, head)]
    assert curve("tuned", "phase") == [(0, head), (1, head), (2, finetune), (3, finetune)]
    assert curve("given", "phase") == [(0, finetune), (1, finetune)]
    assert curve("tuned", "loss")[:2] == curve("head", "loss")  # the head that `head` trained
    for name in ("head", "tuned"):
        rows = read_rows(store.outputs / "runs" / name / "curves.csv")
        written = [(int(row["step"]), float(row["validation_loss"])) for row in rows]
        assert written == curve(name, "validation_loss")


def test_curves_of_version_0_1_are_read() -> None:
    text = "step,phase,epoch,timestamp,loss,pictures_per_second\n0,head,0,1000,0.5,120.0\n"
    (record,) = parse(text)
    assert record.metrics == {"loss": 0.5, "images_per_second": 120.0}


def test_results_are_logged(store: Store) -> None:
    metrics = store.run("head").data.metrics
    stored = json.loads((store.outputs / "runs/head/metrics.json").read_text())
    assert {key: metrics[key] for key in stored} == stored
    for split in ("validation", "test"):
        assert metrics[f"{split}.accuracy_low"] <= metrics[f"{split}.accuracy"] <= metrics[f"{split}.accuracy_high"]
    assert metrics["total_seconds"] > metrics["fit_seconds"] > 0
    assert metrics["validation.accuracy"] == pytest.approx(metrics["validation_accuracy"])  # the last epoch's
    assert not [key for key in store.run("tuned").data.metrics if key.startswith("test.")]


def test_the_folder_is_among_the_artifacts(store: Store) -> None:
    run = store.run("head")
    folder = store.outputs / "runs" / "head"
    local = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    wanted = {
        path for path in local if not path.startswith((".hydra", "inputs", "checkpoints", ".run.lock", "run.json"))
    }
    tables = {f"{name}_{split}.json" for name in ("predictions", "per_class") for split in ("validation", "test")}
    assert wanted | tables == store.files(run)
    found = queries.read_predictions(store.uri, queries.find_runs(store.uri, ["head"])[0], "validation")
    rows = read_rows(folder / "predictions_validation.csv")
    assert [prediction.path for prediction in found] == [row["path"] for row in rows]
    assert [str(prediction.correct) for prediction in found] == [row["correct"] for row in rows]
    assert not [path for path in store.files(store.run("tuned")) if path.startswith("inputs")]


def test_the_model_predicts_as_in_training(store: Store, predictions: tuple[np.ndarray, np.ndarray]) -> None:
    mlflow.set_tracking_uri(store.uri)
    model = mlflow.keras.load_model(f"runs:/{store.run('head').info.run_id}/model")
    np.testing.assert_allclose(model.predict(predictions[0], verbose=0), predictions[1], atol=1e-5)
    assert predictions[1].std() > 0.01


def test_the_model_serves_images(store: Store, predictions: tuple[np.ndarray, np.ndarray]) -> None:
    mlflow.set_tracking_uri(store.uri)
    served = mlflow.pyfunc.load_model(f"runs:/{store.run('head').info.run_id}/model")
    assert served.metadata.metadata["classes"] == ["blobs", "stripes"]
    rows = read_rows(store.outputs / "runs/head/predictions_validation.csv")
    files = [(store.root / row["path"]).read_bytes() for row in rows]
    for answer in (served.predict(predictions[0]), served.predict(files)):
        assert list(answer) == served.metadata.signature.outputs.input_names()
        assert list(answer["class"]) == [row["predicted"] for row in rows]
        np.testing.assert_allclose(answer["probability"], predictions[1].max(axis=1), atol=1e-5)
    with pytest.raises(mlflow.MlflowException):
        served.predict(predictions[0][:, :40])
    requirements = Path(
        mlflow.artifacts.download_artifacts(f"runs:/{store.run('head').info.run_id}/model/requirements.txt")
    ).read_text()
    assert f"keras=={keras.__version__}" in requirements.split()


def test_weights_and_head_of_a_run_are_starting_points(store: Store) -> None:
    assert store.run("given").data.tags["head_source"] == f"run {store.run('head').info.run_id}"
    runs = store.outputs / "runs"

    def layers(name: str) -> dict[str, np.ndarray]:
        from experiments.models.convnet import convnet

        blocks = {f"block{n}": schema.ConvBlock(filters=filters) for n, filters in ((1, 32), (2, 32), (3, 64))}
        model = convnet(input_tensor=keras.Input((48, 48, 3)), layers=blocks)
        model.load_weights(runs / name / "weights" / "backbone.weights.h5")
        return {
            f"{layer.name}/{variable.name}": variable.numpy() for layer in model.layers for variable in layer.weights
        }

    head, given = layers("head"), layers("given")
    moved = {name for name in head if not np.array_equal(head[name], given[name])}
    assert moved == {"block3_conv/kernel", "block3_conv/bias"}


@pytest.mark.parametrize("key", ["model.weights", "regime.head_from"])
def test_an_unknown_run_is_a_clear_error(store: Store, key: str) -> None:
    other = "model.weights=null" if key == "regime.head_from" else "regime.head_from=null"
    with pytest.raises(ConfigError) as caught:
        store.train(f"wrong-{key}", "regime=finetune", other, f"{key}='{'0' * 32}'")
    text = str(caught.value)
    assert text.startswith(f"{key}: run {'0' * 32}") and store.uri in text
    assert store.run(f"wrong-{key}").info.status == "FAILED"


def test_a_run_of_another_network_is_a_clear_error(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"model\.weights: .* does not fit convnet"):
        wrong = f"model.weights='{store.run('head').info.run_id}'"
        store.train("misfit", "regime=finetune", wrong, "model.layers.block3.filters=5")


def test_a_run_that_fails_records_why(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **options: object) -> NoReturn:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(scratch, "fit", fails)
    with pytest.raises(RuntimeError, match="on fire"):
        store.train("burnt", "regime=scratch")
    run = store.run("burnt")
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"] == "RuntimeError: the disk is on fire"
    assert mlflow.active_run() is None
    with pytest.raises(ConfigError, match="burnt: no finished run fits"):
        queries.find_runs(store.uri, ["burnt"])


@pytest.mark.parametrize("every, sendings", [(3600.0, [5]), pytest.param(0.0, [1] * 5, marks=pytest.mark.slow)])
def test_short_epochs_are_sent_together_and_none_is_lost_where_a_run_fails(
    store: Store, monkeypatch: pytest.MonkeyPatch, every: float, sendings: list[int]
) -> None:
    sent: list[int] = []
    log_batch = mlflow.MlflowClient.log_batch

    def counted(self: mlflow.MlflowClient, *arguments: Any, **options: Any) -> Any:
        sent.append(len(options.get("metrics", ())))
        return log_batch(self, *arguments, **options)

    def fails(*arguments: object, **options: object) -> NoReturn:
        raise RuntimeError("no report")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", counted)
    monkeypatch.setattr(buffer, "SEND_EVERY", every)
    monkeypatch.setattr(buffer, "SHARE", math.inf)  # however long this machine takes
    monkeypatch.setattr("experiments.run.evaluate", fails)
    with pytest.raises(RuntimeError, match="no report"):
        store.train(f"short{every}", "regime=bottleneck", "model.weights=null", "epochs=5")
    run = store.run(f"short{every}")
    assert run.info.status == "FAILED"
    assert [count for count in sent if count] == [epochs * (len(METRICS) + 1) for epochs in sendings]  # and the phase
    history = mlflow.MlflowClient(store.uri).get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == [0, 1, 2, 3, 4]
    assert "weights/head.weights.h5" in store.files(run)


def test_points_take_a_tenth_of_the_time_on_a_slow_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = [0.0]

    def takes_three_seconds(*arguments: object) -> None:
        clock[0] += 3

    monkeypatch.setattr(buffer, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(upload, "upload", takes_three_seconds)
    run = mlflow_run.MlflowRun("0" * 32, tmp_path)
    for step in range(120):
        clock[0] += 1
        run.buffer.put(Kind.METRICS, [["loss", 1.0, 1000, step]])
        run.buffer.send(points=True)
    assert 120 < clock[0] <= 120 * 1.1 + 3
    run.buffer.send(last=True)
    assert not run.buffer.waiting


@pytest.mark.parametrize("error", [KeyboardInterrupt, Pruned])
def test_a_run_that_is_stopped_is_killed(
    error: type[BaseException], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: object, **options: object) -> NoReturn:
        raise error("behind the others")

    monkeypatch.setattr(scratch, "fit", stopped)
    with pytest.raises(error):
        store.train(f"stopped by {error.__name__}", "regime=scratch")
    assert store.run(f"stopped by {error.__name__}").info.status == "KILLED"


def test_runs_are_found_by_id_beginning_and_name(store: Store) -> None:
    run_id = store.run("head").info.run_id
    for name in (run_id, run_id[:12], "head"):
        assert [run.run_id for run in queries.find_runs(store.uri, [name])] == [run_id]
    assert [run.name for run in queries.find_runs(store.uri, ["tuned", "head"])] == ["tuned", "head"]
    assert {run.name for run in queries.search_runs(store.uri)} == {"head", "tuned", "given"}
    assert [run.name for run in queries.search_runs(store.uri, "tags.question = 'which'")] == ["head"]
    with pytest.raises(ConfigError, match=r"nowhere.*Train first"):
        queries.search_runs("sqlite:////nowhere/mlflow.db")
    with pytest.raises(ConfigError, match="no predictions of split 'test'"):
        queries.read_predictions(store.uri, queries.find_runs(store.uri, ["tuned"])[0], "test")


def test_runs_of_other_tools_in_the_same_store_are_left_alone(store: Store) -> None:
    client = mlflow.MlflowClient(store.uri)
    experiment = client.get_experiment_by_name("experiments").experiment_id
    known = set(queries.finished(store.uri, "experiments"))
    made = [
        client.create_run(experiment, run_name="theirs", tags=tags).info.run_id
        for tags in ({"owner.pid": "x"}, {"owner.pid": "1", "owner.heartbeat": "now"}, {"identity": "1"})
    ]
    client.log_param(made[2], "regime", "theirs")
    client.log_inputs(made[2], [DatasetInput(Dataset("theirs", "1", "local", "no JSON"))])
    client.set_terminated(made[2])
    try:
        mlflow.set_tracking_uri(store.uri)
        liveness.mark_lost(experiment)
        assert {client.get_run(run).info.status for run in made[:2]} == {"RUNNING"}
        assert {run.name for run in queries.search_runs(store.uri)} >= {"head", "tuned", "given"}
        assert set(queries.finished(store.uri, "experiments")) == known
        assert queries.facts(client.get_run(made[2])).data is None
        (shown,) = view.configure_experiment_view(store.uri)
        assert shown[0] == "experiments"
    finally:
        for run in made:
            client.delete_run(run)
    unknown, kept = "0" * 32, store.run("head").info.run_id
    assert queries.deleted(store.uri, [*made, unknown, kept]) == {*made, unknown}
    assert queries.deleted(store.uri, []) == set()


def test_files_of_a_run_are_read_and_a_missing_one_is_no_failure_of_the_store(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = store.run("head").info.run_id
    assert set(queries.read_files(store.uri, run_id, ["metrics.json"], ["no.csv"])) == {"metrics.json"}
    with pytest.raises(ConfigError, match=rf"run {run_id} in .* has no no\.csv"):
        queries.read_files(store.uri, run_id, ["metrics.json", "no.csv"])
    with pytest.raises(ConfigError, match=r"metrics\.json is larger than 10 bytes"):
        queries.read_files(store.uri, run_id, ["metrics.json"], largest=10)
    monkeypatch.setattr(mlflow.MlflowClient, "list_artifacts", no_store)
    with pytest.raises(ConfigError, match="cannot be read from MLflow"):
        queries.read_files(store.uri, run_id, ["metrics.json"], ["no.csv"])


@pytest.mark.parametrize("ended", ["FINISHED", None])
def test_a_run_that_ends_while_lost_runs_are_marked_keeps_its_status(
    store: Store, monkeypatch: pytest.MonkeyPatch, ended: str | None
) -> None:
    """Between the search for RUNNING runs and the look at its process, a run may end, and its process with it."""
    client = mlflow.MlflowClient(store.uri)
    experiment = client.get_experiment_by_name("experiments").experiment_id
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    run_id = client.create_run(experiment, tags=liveness.owner(process.pid) | {"run_folder": "x"}).info.run_id
    lost = liveness.lost

    def end_first(tags: Mapping[str, str]) -> bool:
        if process.poll() is None:
            if ended:
                client.set_terminated(run_id, ended)
            process.kill()
            process.wait()
        return lost(tags)

    monkeypatch.setattr(liveness, "lost", end_first)
    mlflow.set_tracking_uri(store.uri)
    try:
        liveness.mark_lost(experiment)
        run = client.get_run(run_id)
        assert (run.info.status, "failure" in run.data.tags) == ((ended, False) if ended else ("KILLED", True))
    finally:
        client.delete_run(run_id)
    kept = store.run("head").info.run_id
    assert queries.deleted(store.uri, [run_id, kept, "0" * 32]) == {run_id, "0" * 32}


def test_a_run_that_is_continued_while_lost_runs_are_marked_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow.MlflowClient(store.uri)
    experiment = client.get_experiment_by_name("experiments").experiment_id
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        dead = liveness.owner(process.pid)
        process.kill()
    run_id = client.create_run(experiment, tags=dead | {"run_folder": "x"}).info.run_id
    mlflow.set_tracking_uri(store.uri)
    liveness.mark_lost(experiment)
    assert client.get_run(run_id).info.status == "KILLED"
    plain = mlflow.MlflowClient.set_tag

    def mark_first(*arguments: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(mlflow.MlflowClient, "set_tag", plain)
            liveness.mark_lost(experiment)
        plain(*arguments)

    monkeypatch.setattr(mlflow.MlflowClient, "set_tag", mark_first)
    try:
        mlflow_run.reopen(client, client.get_run(run_id), liveness.owner())
        run = client.get_run(run_id)
        assert run.info.status == "RUNNING" and "failure" not in run.data.tags
    finally:
        client.delete_run(run_id)


def test_without_a_store_a_run_id_is_refused(config: Callable[..., schema.Config], tmp_path: Path) -> None:
    wanted = config("regime=finetune", "tracking=none", f"regime.head_from='{'a' * 32}'")
    with pytest.raises(ConfigError, match=r"regime\.head_from: a run id needs a tracking store"):
        inputs.fetch(wanted, tmp_path)
    assert inputs.fetch(config("tracking=none", f"regime.head_from='{'a' * 32}'"), tmp_path) == {}  # scratch


def test_a_store_that_cannot_be_opened_is_a_clear_error(
    config: Callable[..., schema.Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, but long enough to be taken for one" * 100)
    wanted = config(f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", f"outputs={tmp_path}")
    with pytest.raises(ConfigError) as caught, mlflow_run.track(wanted, tmp_path / "run"):
        pass
    assert str(caught.value).startswith("tracking.uri: ") and str(tmp_path / "mlflow.db") in str(caught.value)


def database(folder: Path, version: str | None) -> str:
    """Return the address of a database that has MLflow's tables by name, and this version of its schema."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as made:
        made.execute("CREATE TABLE IF NOT EXISTS experiments (artifact_location)")
        if version is not None:
            made.execute("CREATE TABLE IF NOT EXISTS alembic_version (version_num)")
            made.execute("DELETE FROM alembic_version")
            made.execute("INSERT INTO alembic_version VALUES (?)", [version])
        made.commit()
    return f"sqlite:///{folder}/mlflow.db"


def test_a_database_of_another_version_of_mlflow_is_refused_with_what_to_do(tmp_path: Path) -> None:
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config, _get_latest_schema_revision

    known, newest = sqlite_store.installed_versions()
    assert newest == _get_latest_schema_revision()
    scripts = ScriptDirectory.from_config(_get_alembic_config(""))
    assert known == {script.revision for script in scripts.walk_revisions()}
    place = f"sqlite:///{tmp_path}/mlflow.db"
    upgrade = f"cp {tmp_path}/mlflow.db {tmp_path}/mlflow.db.backup && mlflow db upgrade {place}"
    for version in (None, min(known - {newest})):
        with pytest.raises(ConfigError, match="is older than the installed MLflow") as caught:
            queries.search_runs(database(tmp_path, version))
        assert upgrade in str(caught.value) and f"needs (version {newest})" in str(caught.value)
    with pytest.raises(ConfigError, match=r"version 0123456789ab\) is newer than the installed MLflow 3") as caught:
        connection.check(database(tmp_path, "0123456789ab"))
    assert "pip install --upgrade mlflow" in str(caught.value) and "db upgrade" not in str(caught.value)
    connection.check(database(tmp_path, newest))
    # Of a database on a server MLflow reports both alike.
    report = f"Detected out-of-date database schema (found version {{}}, but expected {newest}). Take a backup"
    newer = str(connection.unusable("postgresql://me:secret@there/runs", report.format("0123456789ab")))
    older = str(connection.unusable("postgresql://me:secret@there/runs", report.format(min(known - {newest}))))
    assert "is newer than" in newer and "mlflow db upgrade postgresql://me:***@there/runs" in older


def test_an_experiment_that_another_machine_makes_meanwhile_is_used(
    store: Store, config: Callable[..., schema.Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each outputs/ has a lock of its own, so several users of one server may look for it before one has made it."""
    made = mlflow.MlflowClient(store.uri).create_experiment("just made")
    look_up, looked = mlflow.MlflowClient.get_experiment_by_name, list[str]()

    def not_yet(self: mlflow.MlflowClient, name: str) -> Any:
        looked.append(name)
        return look_up(self, name) if len(looked) > 1 else None

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", not_yet)
    wanted = config(f"tracking.uri={store.uri}", f"outputs={store.outputs}", "tracking.experiment='just made'")
    assert open_experiment(wanted) == made and looked == ["just made"] * 2


def test_an_experiment_in_the_trash_is_named_with_what_restores_it(
    store: Store, config: Callable[..., schema.Config]
) -> None:
    mlflow.set_tracking_uri(store.uri)
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("short lived")
    run = client.create_run(experiment, run_name="gone with it")
    client.set_terminated(run.info.run_id)
    client.delete_experiment(experiment)
    wanted = config(f"tracking.uri={store.uri}", f"outputs={store.outputs}", "tracking.experiment='short lived'")
    restore = f"MLFLOW_TRACKING_URI={store.uri} mlflow experiments restore --experiment-id {experiment}"
    with pytest.raises(ConfigError, match=r"tracking\.experiment.*'short lived' is in MLflow's trash") as caught:
        open_experiment(wanted)
    assert restore in str(caught.value)
    for restored in (False, True):  # a run that is restored alone stays out of every search
        if restored:
            client.restore_run(run.info.run_id)
        with pytest.raises(ConfigError, match="'short lived' is in MLflow's trash, with its runs") as caught:
            queries.find_runs(store.uri, ["gone with it"])
        assert restore in str(caught.value)
    client.delete_run(run.info.run_id)
    with pytest.raises(ConfigError, match="like: .* 'short lived' is in MLflow's trash, with its runs") as caught:
        queries.get_run(store.uri, run.info.run_id, "like")
    assert restore in str(caught.value)


@pytest.mark.slow  # figures, manifests and tables have tests of such names of their own
def test_names_that_are_no_text_do_not_break_tables(tmp_path: Path, train_here: Callable[..., None]) -> None:
    root = tmp_path / "images"
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for name in ("Käfer", "猫"):
            (root / split / name).mkdir(parents=True)
            for n in range(2):
                path = os.fsencode(root / split / name) + b"/bad\xff%d.png" % n
                with open(path, "wb") as file:
                    Image.fromarray(rng.integers(0, 256, (48, 48, 3)).astype("uint8")).save(file, "PNG")
    store = Store(tmp_path / "outputs", root, train_here)
    settings = ("regime=scratch", "augmentation=none", "epochs=1", "tracking.log_model=false")
    store.train("odd", *settings, figures=True)
    run = store.run("odd")
    assert run.info.status == "FINISHED"
    found = queries.read_predictions(store.uri, queries.find_runs(store.uri, ["odd"])[0], "validation")
    assert sorted(prediction.path for prediction in found) == sorted(
        f"validation/{name}/bad\\udcff{n}.png" for name in ("Käfer", "猫") for n in range(2)
    )
    assert all("Käfer" in prediction.probabilities for prediction in found)
    text = (store.outputs / "runs/odd/predictions_validation.csv").read_text(encoding="utf-8")
    assert "bad\\udcff0.png" in text and "猫" in text


# --- messages in the buffer


def messages(folder: Path) -> list[str]:
    return [message.kind for message in buffer.read(folder)]


def test_what_is_looked_at_of_a_run_joins_its_figures(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_id = store.run("given").info.run_id
    monkeypatch.setattr(sys, "argv", ["experiments inspect", "schedule", "--run", run_id[:8], "--uri", store.uri])
    inspect.main()
    path = store.outputs / "runs/given/figures/schedule-cosine.png"
    reported = capsys.readouterr().out
    assert path.is_file() and "no head phase" in reported and "also in MLflow" in reported
    assert reported.splitlines()[-2] == str(path)
    names = [artifact.path for artifact in mlflow.MlflowClient(store.uri).list_artifacts(run_id, "figures")]
    assert "figures/schedule-cosine.png" in names
    gone = tmp_path / "gone.db"
    with pytest.raises(ConfigError, match="it is not there"):
        summary_runs.add_file(f"sqlite:///{gone}", run_id, path)
    with pytest.raises(ConfigError, match="it is not there"):
        summary_runs.end_sweep(f"sqlite:///{gone}", run_id, tmp_path, {}, "FINISHED")
    assert not gone.exists()


def test_a_sweep_that_went_on_has_no_counts_of_its_first_start(store: Store, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(store.uri)
    run_id = client.create_run("0").info.run_id
    summary_runs.end_sweep(store.uri, run_id, tmp_path, {"jobs_killed": 1.0, "jobs_finished": 1.0}, "KILLED")
    summary_runs.end_sweep(store.uri, run_id, tmp_path, {"jobs_finished": 2.0}, "FINISHED")
    assert client.get_run(run_id).data.metrics == {"jobs_killed": 0, "jobs_finished": 2}


def test_the_run_of_a_sweep_that_was_deleted_is_named_and_restored_as_the_sweep_goes_on(
    store: Store, config: Callable[..., schema.Config], tmp_path: Path
) -> None:
    client = mlflow.MlflowClient(store.uri)
    settings = config(f"tracking.uri={store.uri}", f"outputs={store.outputs}")
    run_id = summary_runs.start_sweep(settings, tmp_path, None, None)
    client.delete_run(run_id)
    restore = f"MLFLOW_TRACKING_URI={store.uri} mlflow runs restore --run-id {run_id}"
    with pytest.raises(ConfigError, match=f"in MLflow's trash. Restore it: {restore}"):
        summary_runs.end_sweep(store.uri, run_id, tmp_path, {}, "FINISHED")
    with pytest.raises(ConfigError, match=f"its MLflow run {'0' * 32} was deleted for good"):
        summary_runs.end_sweep(store.uri, "0" * 32, tmp_path, {}, "FINISHED")
    assert summary_runs.start_sweep(settings, tmp_path, None, run_id) == run_id, "its jobs are children of this run"
    summary_runs.end_sweep(store.uri, run_id, tmp_path, {}, "FINISHED")
    assert client.get_run(run_id).info.lifecycle_stage == "active"
    client.delete_run(run_id)


def test_an_evaluation_is_a_child_of_its_run_with_its_own_images(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, before = store.outputs / "runs" / "head", store.run("head")
    arguments = ["experiments evaluate", str(folder), str(store.root), "--split", "test"]
    for more in ([], ["--no-log"]):
        monkeypatch.setattr(sys, "argv", [*arguments, "--output", str(tmp_path / f"out{len(more)}"), *more])
        with pytest.raises(SystemExit) as left:
            evaluate.main()
        assert left.value.code == 0
    found = re.findall(r"MLflow   (\w+), a child of run (\w+)", capsys.readouterr().out)
    assert [parent for _, parent in found] == [before.info.run_id]
    client = mlflow.MlflowClient(store.uri)
    child = client.get_run(found[0][0])
    assert child.info.status == "FINISHED" and child.info.run_name == f"evaluate-{store.root.stem}_test"
    assert child.data.tags["mlflow.parentRunId"] == before.info.run_id
    assert child.info.experiment_id == before.info.experiment_id
    metrics = json.loads((tmp_path / "out0" / "metrics.json").read_text())
    assert child.data.metrics == pytest.approx(metrics) and "evaluation.accuracy" in metrics
    (data,) = child.inputs.dataset_inputs
    assert data.dataset.name == f"{store.root.stem}_test" and [tag.value for tag in data.tags] == ["evaluation"]
    assert re.fullmatch("[0-9a-f]{32}", data.dataset.digest)
    assert {"predictions_evaluation.csv", "figures/evaluation_confusion.png"} <= store.files(child)
    assert store.run("head").data.metrics == before.data.metrics, "those of the training stay as they are"


@pytest.mark.parametrize("error, status", [(KeyboardInterrupt(), "KILLED"), (OSError("disk"), "FAILED")])
def test_an_evaluation_whose_upload_breaks_off_is_not_running(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, status: str
) -> None:
    run_id = store.run("head").info.run_id
    monkeypatch.setattr(summary_runs, "_log_files", lambda *arguments: (_ for _ in ()).throw(error))
    data = {"name": "images", "digest": "0" * 32, "source": "folder"}
    with pytest.raises((KeyboardInterrupt, ConfigError)):
        summary_runs.log_evaluation(store.uri, run_id, f"broken {status}", data, {}, tmp_path, "")
    with pytest.raises((KeyboardInterrupt, ConfigError)):
        summary_runs.log_comparison(store.uri, "1", f"broken {status}", [], "")
    for name in (f"broken {status}", f"compare-broken {status}"):
        (made,) = mlflow.MlflowClient(store.uri).search_runs(["1"], f"attributes.run_name = '{name}'")
        assert made.info.status == status and made.info.end_time is not None


def test_evaluations_of_a_run_are_not_uploaded_with_its_files(away: tuple[Any, str, Path]) -> None:
    client, run_id, folder = away
    (folder / "evaluations" / "later").mkdir(parents=True)
    for name in ("evaluations/later/metrics.json", "metrics.json", "training_features.npz"):
        (folder / name).write_text("{}")
    upload.log_files(client, run_id, folder, {})
    assert [file.path for file in client.list_artifacts(run_id)] == ["metrics.json"]


@pytest.fixture
def away(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, str, Path]]:
    """A client of `store`, a run there, and a folder for it."""
    mlflow.set_tracking_uri(store.uri)
    client = mlflow.MlflowClient()
    run = client.create_run("1", run_name=tmp_path.name)
    folder = tmp_path / "folder"
    folder.mkdir()
    yield client, run.info.run_id, folder


def no_store(*arguments: object, **options: object) -> NoReturn:
    raise mlflow.MlflowException("Connection refused")


def test_what_waits_is_of_its_own_run_and_how_that_ended_is_forgotten_where_it_goes_on(
    away: tuple[Any, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, first, folder = away
    with monkeypatch.context() as patch:
        patch.setattr(upload, "upload", no_store)
        gone = mlflow_run.MlflowRun(first, folder)
        gone.buffer.put(Kind.METRICS, [["loss", 99.0, 1000, 0]])
        gone.artifacts({})
        gone.end("KILLED", "Stopped: SIGTERM")
    assert messages(folder) == ["metrics", "artifacts", "end"]

    second = client.create_run("1", run_name="second").info.run_id
    other = mlflow_run.MlflowRun(second, folder)  # a new run in the same folder
    other.buffer.put(Kind.METRICS, [["loss", 1.0, 1000, 0]])
    other.buffer.send(last=True)
    assert messages(folder) == []
    assert client.get_run(first).data.metrics == {"loss": 99.0} and client.get_run(second).data.metrics == {"loss": 1.0}
    assert client.get_run(second).info.status == "RUNNING" and "failure" not in client.get_run(second).data.tags
    assert client.get_run(first).info.status == "KILLED"

    with monkeypatch.context() as patch:
        patch.setattr(upload, "upload", no_store)
        mlflow_run.MlflowRun(second, folder).end("KILLED", "Stopped: SIGTERM")
    again = mlflow_run.MlflowRun(second, folder)  # resumed
    again.buffer.send(last=True)
    assert client.get_run(second).info.status == "RUNNING" and messages(folder) == []
    again.end("FINISHED", None)
    assert client.get_run(second).info.status == "FINISHED" and "failure" not in client.get_run(second).data.tags


def test_what_a_run_logs_after_it_was_continued_without_tracking_is_synced(
    store: Store, away: tuple[Any, str, Path], config: Callable[..., schema.Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id, folder = away
    client.update_run(run_id, "KILLED")
    with monkeypatch.context() as patch:
        patch.setattr(upload, "upload", no_store)  # tracking=none uses no store
        with mlflow_run.track(config("tracking=none"), folder, run_id) as tracker:
            assert tracker.run_id == run_id
            tracker.results({"validation.accuracy": 0.5}, {"warnings": "one"}, 1000)
    assert messages(folder) == ["metrics", "tags", "end"] and client.get_run(run_id).info.status == "KILLED"
    (folder / "run.json").write_text(
        json.dumps({"command": {}, "run_id": run_id, "store": store.uri, "status": "FINISHED"})
    )
    assert sync.sync(folder, None, whole=True) == f"all is in {store.uri}" and messages(folder) == []
    found = client.get_run(run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"validation.accuracy": 0.5})
    assert found.data.tags["warnings"] == "one"


@pytest.mark.parametrize("name, level", [
    ("urllib3.connectionpool", logging.WARNING),  # every retry of a request
    ("mlflow.store.db.utils", logging.ERROR),  # every error of a database, with a traceback
])  # fmt: skip
def test_failures_that_the_caller_reports_are_not_logged(tmp_path: Path, name: str, level: int) -> None:
    logger = logging.getLogger(name)
    before = logger.level
    with connection.unchanged():
        connection.use(f"sqlite:///{tmp_path}/mlflow.db")
        assert not logger.isEnabledFor(level) and logger.isEnabledFor(level + 10)
    assert logger.level == before


def test_what_cannot_be_uploaded_is_kept_with_asynchronous_logging_too(
    store: Store, away: tuple[Any, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow then sends points in a thread of its own, where no error reaches the caller."""
    _, _, folder = away
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    with connection.unchanged():
        connection.use(store.uri)
        run = mlflow_run.MlflowRun("0" * 32, folder)  # a run that the store does not have
        run.buffer.put(Kind.METRICS, [["loss", 1.0, 1, 0]])
        run.buffer.send(last=True)
    assert messages(folder) == ["metrics"] and os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] == "true"


def test_one_message_that_is_not_taken_holds_back_no_other(away: tuple[Any, str, Path]) -> None:
    client, run_id, folder = away
    run = mlflow_run.MlflowRun(run_id, folder)
    run.buffer.put(Kind.PARAMETERS, {"a name with ?": "1"})
    run.buffer.put(Kind.MODEL, 2)  # there is no model
    run.buffer.waiting.insert(0, upload.Message("0" * 32, Kind.METRICS, [["loss", 1.0, 1, 0]]))  # whose run was deleted
    run.buffer.put(Kind.TAGS, {"regime": "scratch"})
    run.buffer.send()
    assert (
        messages(folder) == ["metrics", "parameters", "model"]
        and client.get_run(run_id).data.tags["regime"] == "scratch"
    )


@pytest.mark.parametrize("error, away", [
    (mlflow.MlflowException("no connection"), True),
    (mlflow.MlflowException("no such run", RESOURCE_DOES_NOT_EXIST), False),
    (requests.HTTPError(response=cast(Any, SimpleNamespace(status_code=429))), True),
    (requests.HTTPError(response=cast(Any, SimpleNamespace(status_code=503))), True),
    (requests.HTTPError(response=cast(Any, SimpleNamespace(status_code=413))), False),
    (requests.ConnectionError("refused"), True),
    (FileNotFoundError("report.html"), False),
    (NotImplementedError("get_config"), False),
])  # fmt: skip
def test_a_store_that_is_away_and_a_message_that_it_rejects_are_distinguished(error: Exception, away: bool) -> None:
    assert upload.is_unavailable(error) is away


def test_parameters_stay_as_a_run_began(away: tuple[Any, str, Path]) -> None:
    client, run_id, folder = away
    for parameters in ({"data.root": "/scratch/1"}, {"data.root": "/scratch/2", "seed": "0"}):  # started, resumed
        run = mlflow_run.MlflowRun(run_id, folder)
        run.buffer.put(Kind.PARAMETERS, parameters)
        run.buffer.send()
        assert messages(folder) == []
    assert client.get_run(run_id).data.params == {"data.root": "/scratch/1", "seed": "0"}


def test_a_signal_while_messages_are_sent_loses_none(
    away: tuple[Any, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id, folder = away
    run = mlflow_run.MlflowRun(run_id, folder)
    run.buffer.put(Kind.PARAMETERS, {"a name with ?": "1"})
    run.buffer.put(Kind.TAGS, {"regime": "scratch"})
    set_batch = client.log_batch

    def stopped(self: Any, *arguments: Any, **options: Any) -> Any:
        if options.get("tags"):
            raise KeyboardInterrupt
        return set_batch(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mlflow.MlflowClient, "log_batch", stopped)
        run.buffer.send()
    run.end("KILLED", "KeyboardInterrupt: ")
    assert messages(folder) == ["parameters"]
    found = client.get_run(run_id)
    assert found.info.status == "KILLED" and found.data.tags["regime"] == "scratch"


def test_a_model_that_waits_is_given_later_and_changes_nothing_else(
    store: Store, away: tuple[Any, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id, folder = away
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    run = mlflow_run.MlflowRun(run_id, folder)
    with monkeypatch.context() as patch:
        patch.setattr(model_logging, "log_model", no_store)
        run.model(model, ("blobs", "stripes"))
        run.end("FAILED", "ConfigError: must_reach")
    assert {path.name for path in folder.iterdir()} == {upload.UNSENT, upload.MODEL}
    (folder / "run.json").write_text(json.dumps({"command": {}, "run_id": run_id, "store": store.uri}))
    assert sync.sync(folder, None, whole=True) == f"all is in {store.uri}"
    assert {path.name for path in folder.iterdir()} <= {"run.json", ".run.lock"}
    found = client.get_run(run_id)
    assert (found.info.status, found.data.tags["failure"]) == ("FAILED", "ConfigError: must_reach")
    loaded = mlflow.keras.load_model(f"runs:/{run_id}/model")
    inputs = np.ones((3, 4), "float32")
    np.testing.assert_array_equal(loaded.predict(inputs, verbose=0), model.predict(inputs, verbose=0))


def test_the_end_waits_for_no_other_process(away: tuple[Any, str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for a store of artifacts that is away, nor for room on the disk."""
    client, run_id, folder = away
    run = mlflow_run.MlflowRun(run_id, folder)
    with monkeypatch.context() as patch:
        patch.setattr(upload, "log_files", no_store)
        run.artifacts({})
        run.end("FAILED", "RuntimeError: on fire")
    assert messages(folder) == ["artifacts"] and client.get_run(run_id).info.status == "FAILED"

    def full(*arguments: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    other = client.create_run("1").info.run_id
    monkeypatch.setattr(atomic_files, "write_file", full)
    mlflow_run.MlflowRun(other, folder).end("KILLED", "Stopped: SIGTERM")
    found = client.get_run(other)
    assert (found.info.status, found.data.tags["failure"]) == ("KILLED", "Stopped: SIGTERM")


def test_a_model_that_keras_cannot_save_holds_back_neither_other_messages_nor_the_end(
    away: tuple[Any, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id, folder = away

    def fails(*arguments: object) -> NoReturn:
        raise NotImplementedError("Please implement `get_config()`")

    monkeypatch.setattr(model_logging, "log_model", fails)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    monkeypatch.setattr(model, "save", fails)
    run = mlflow_run.MlflowRun(run_id, folder)
    with pytest.raises(NotImplementedError, match="get_config"):
        run.model(model, ("blobs", "stripes"))
    run.buffer.put(Kind.TAGS, {"regime": "mine"})
    run.end("FAILED", "NotImplementedError: Please implement `get_config()`")
    found = client.get_run(run_id)
    assert (found.info.status, found.data.tags["regime"]) == ("FAILED", "mine")


def test_a_run_that_went_on_without_mlflow_and_finished_is_finished(store: Store, away: tuple[Any, str, Path]) -> None:
    client, run_id, folder = away
    end = {"status": "KILLED", "failure": "Stopped: SIGTERM", "time": 5000}
    (folder / upload.UNSENT).write_text(json.dumps([run_id, Kind.END, end]) + "\n")
    facts = {"command": {}, "run_id": run_id, "store": store.uri, "status": "FINISHED"}
    (folder / "run.json").write_text(json.dumps(facts))
    sync.sync(folder, None, whole=False)
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED" and "failure" not in found.data.tags


def test_the_points_of_an_unfinished_run_end_with_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run trains the epochs after it again."""
    rows = ["step,phase,epoch,timestamp,loss", *(f"{at},scratch,{at},{at},0.5" for at in range(4))]
    (tmp_path / "curves.csv").write_text("".join(f"{row}\n" for row in rows))
    monkeypatch.setattr(Checkpoints, "holds", lambda checkpoints, record: record.epoch < 2)

    def steps(status: str) -> set[int]:
        return {step for *_, step in sync.points(tmp_path, {"status": status})}

    assert steps("KILLED") == {0, 1} and steps("FINISHED") == {0, 1, 2, 3}


def test_a_run_in_the_trash_is_synced_once_it_is_restored(store: Store, away: tuple[Any, str, Path]) -> None:
    client, run_id, folder = away
    run = mlflow_run.MlflowRun(run_id, folder)
    client.delete_run(run_id)
    run.results({"validation.accuracy": 0.5}, {}, 1000)
    (folder / "run.json").write_text(json.dumps({"command": {}, "run_id": run_id, "store": store.uri}))
    with pytest.raises(ConfigError, match=f"MLflow's trash. Restore it: .* mlflow runs restore --run-id {run_id}"):
        sync.sync(folder, None, whole=False)
    client.restore_run(run_id)
    assert sync.sync(folder, None, whole=False) == f"all is in {store.uri}" and messages(folder) == []


def test_what_cannot_be_synced_is_reported_for_each_folder(
    store: Store, away: tuple[Any, str, Path], own_outputs: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    _, run_id, folder = away
    (folder / upload.UNSENT).write_text("{")
    whole = folder.with_name("whole")
    whole.mkdir()
    for place in (folder, whole):
        (place / "run.json").write_text(json.dumps({"command": {}, "run_id": run_id, "store": store.uri}))
    monkeypatch.setattr(sys, "argv", ["sync", str(folder), str(whole)])
    with pytest.raises(SystemExit) as ended:
        sync_verb.main()
    reported = capsys.readouterr()
    assert ended.value.code == 1 and f"{folder}: " in reported.err and "is damaged" in reported.err
    assert f"{whole}: all is in {store.uri}" in reported.out
    monkeypatch.setattr(sys, "argv", ["sync"])
    with pytest.raises(SystemExit) as ended:
        sync_verb.main()
    assert ended.value.code == 0 and f"Nothing to upload: no run or sweep in {own_outputs}" in capsys.readouterr().out


def test_addresses_are_checked_before_anything_else() -> None:
    connection.check(None)
    connection.check("sqlite:///somewhere/mlflow.db")
    for files in ("./mlruns", Path("/somewhere/mlruns").as_uri()):
        assert "Check the file, its folder" in str(connection.unusable(files, "in maintenance mode"))
    refused = "API request to endpoint /api/2.0/mlflow/experiments/get-by-name failed with error code 401 != 200."
    for reason in (refused, refused.replace("401", "403"), "PERMISSION_DENIED: no permission for experiment 3"):
        message = str(connection.unusable("http://there:5000", reason))
        assert "MLFLOW_TRACKING_USERNAME" in message and "that the server runs" not in message
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        connection.check(f"postgresql+psycopg://me:secret@127.0.0.1:{port}/runs")
    with pytest.raises(ConfigError) as caught:
        connection.check(f"postgresql://me:secret@127.0.0.1:{port}/runs")
    assert "postgresql://me:***@127.0.0.1" in str(caught.value) and "that the server runs" in str(caught.value)


def test_a_server_has_the_time_to_respond_that_mlflow_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def respond(uri: str, timeout: float) -> io.BytesIO:
        waited.append(timeout)
        return io.BytesIO()

    monkeypatch.setattr("urllib.request.urlopen", respond)
    for given in ("10", "60", "2"):  # the first is the value of this program, which `connection.use` sets
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", given)
        connection.check("http://there:5000")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    connection.check("http://there:5000")
    assert waited == [connection.WAIT, 60, 2, connection.WAIT]


def test_a_run_has_the_same_facts_in_mlflow_and_in_its_folder(store: Store) -> None:
    """So that one that is not in MLflow can be compared with one that is."""
    (tracked,) = queries.find_runs(store.uri, ["tuned"])
    (by_folder,) = queries.find_runs("", [store.outputs / "runs" / "tuned"])
    assert by_folder.params == tracked.params and by_folder.data == tracked.data
    assert by_folder.metrics.items() <= tracked.metrics.items()
    for tag in ("identity", "data_fingerprint", "backbone_identity"):
        assert by_folder.tags[tag] == tracked.tags[tag]
    split = "validation"
    assert queries.read_predictions("", by_folder, split) == queries.read_predictions(store.uri, tracked, split)
    assert queries.read_curves("", by_folder) == queries.read_curves(store.uri, tracked)


def test_names_that_mlflow_does_not_take_are_no_names_of_parameters(config: Callable[..., schema.Config]) -> None:
    found = description.flat_parameters(logged(config("class_weights={c+: 1.0, dogs: 2.0}")))
    assert found["class_weights"] == "{'c+': 1.0, 'dogs': 2.0}"
    found = description.flat_parameters(logged(config(f"class_weights={{{'c' * 250}: 1.0, dogs: 2.0}}")))
    assert found["class_weights"].startswith("{'ccc") and max(map(len, found)) <= 250


def test_a_target_that_no_shipped_choice_has_is_a_parameter(config: Callable[..., schema.Config]) -> None:
    """So that runs of two functions with one `name` are not taken for runs of one setting."""
    given = (
        "optimizer._target_=keras.optimizers.Nadam", "augmentation._target_=mine.blur", "trusted_packages=[mine]",
        "regime.head_optimizer._target_=keras.optimizers.Adam",
    )  # fmt: skip
    usual = description.flat_parameters(logged(config("regime=finetune", "optimizer=adam")))
    found = description.flat_parameters(logged(config("regime=finetune", "optimizer=adam", *given)))
    assert not [key for key in usual if "_target_" in key]
    added = dict(override.split("=", 1) for override in given if "_target_" in override)
    assert {key: value for key, value in found.items() if "_target_" in key} == added
    assert {key: value for key, value in found.items() if key not in added} == usual


def test_the_ui_is_configured_for_what_it_shows_first(store: Store) -> None:
    client = mlflow.MlflowClient(store.uri)
    experiment = client.get_experiment_by_name("experiments")
    assert "Which is better?" in experiment.tags["mlflow.note.content"]
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "ours, by hand")
    client.delete_experiment_tag(experiment.experiment_id, view.SHARED)
    (shown,) = view.configure_experiment_view(store.uri)
    assert shown[0] == "experiments" and f"experiments/{experiment.experiment_id}/runs?" in shown[1]
    tags = client.get_experiment(experiment.experiment_id).tags
    assert tags["mlflow.note.content"] == "ours, by hand"
    columns = json.loads(tags[view.SHARED])["selectedColumns"]
    reported = store.run("tuned").data
    known = {f"metrics.`{name}`" for name in reported.metrics} | {f"params.`{name}`" for name in reported.params}
    assert set(columns) <= known, "every column is one that runs fill"
    sections = json.loads(tags[view.SHARED])["compareRunSections"]
    assert [section["name"] for section in sections if section["display"]] == [view.SECTION], "curves come first"
    runs = client.search_runs([experiment.experiment_id])
    by_class = {name.partition("/")[0] for run in runs for name in run.data.metrics if "/" in name}
    assert {section["name"] for section in sections if not section["display"]} == by_class


def test_a_server_has_its_own_ui(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(view, "configure_experiment_view", lambda uri: [("mine", "#/experiments/1")])
    monkeypatch.setattr(os, "execve", lambda *arguments: pytest.fail("MLflow serves no other server's runs"))
    monkeypatch.setattr(sys, "argv", ["experiments ui", "--uri", "http://there:5000/"])
    ui.main()
    assert "http://there:5000/#/experiments/1\n" in capsys.readouterr().out


def test_the_ui_of_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No runs yet"):
        view.configure_experiment_view(f"sqlite:///{tmp_path}/none.db")
