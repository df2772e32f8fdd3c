"""Every preset runs end to end, debug shows whether a network learns at all, and losses other than the default work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import yaml
from PIL import Image

from experiments.config import schema
from experiments.config.identity import run_identity
from experiments.errors import ConfigError
from experiments.images import decoder
from experiments.images.resizing import resize
from experiments.regimes.build import build
from experiments.storage.csv_files import read_rows
from experiments.system import paths

Start = Callable[..., Path]
PRESETS = {path.stem: path.read_text(encoding="utf-8") for path in (paths.CONF / "experiment").glob("*.yaml")}
DRAWN_BY_US = ("data.size=48", "data.per_class={train: 4, validation: 4, test: 0}")
# One of each regime; the small networks of the others train alike, and each is built by a test of its own.
TRAINED = ("tutorial_scratch", "tutorial_bottleneck")  # and tutorial_finetune in the test of a debug run
PROBABILISTIC = {"validation.loss", "validation.brier", "validation.calibration_error"}


@pytest.fixture
def start(train_here: Callable[..., None]) -> Start:
    """Return a function that trains in this process and returns the run's directory."""

    def call(outputs: Path, name: str, *overrides: str) -> Path:
        folder = outputs / "runs" / name
        train_here(
            f"outputs={outputs}", f"hydra.run.dir={folder}", "hydra/job_logging=none", "progress=none", *overrides
        )
        return folder

    return call


def metrics_of(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    return found


def small(name: str, drawn: Path, *network: str) -> list[str]:
    """A preset on small drawn images, with random weights where it would download some, or on another network."""
    text = PRESETS[name]
    data = [f"data.root={drawn}"] if "override /data: folder" in text else list(DRAWN_BY_US)
    weights = [] if "override /model: convnet" in text else ["model.weights=null"]
    return [f"experiment={name}", *network, "data.image_size=48", *data, *weights]


@pytest.fixture(scope="module")
def tried() -> dict[tuple[str, str], str]:
    """The presets that have run, by the identity and the data that debug=fast leaves them."""
    return {}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_builds(name: str, drawn: Path, config: Callable[..., schema.Config]) -> None:
    """With the small network, as debug=fast trains it."""
    read = config(*small(name, drawn, "model=convnet"), "debug=fast", "tracking=none")
    components = build(read, {})
    assert components.head(3).output_shape == (None, 3)
    phases = [components.phase, *([components.head_phase] if read.regime.name == "finetune" else [])]
    for phase in phases:
        assert phase.epochs == 1 and isinstance(phase.optimizer(), keras.optimizers.Optimizer)
        assert 0 < phase.rate(0, []) < 1


@pytest.mark.parametrize("name, network", [
    pytest.param(name, network, id=f"{name}-{'small' if network else 'own'}",
                 marks=[] if network and name in TRAINED else pytest.mark.slow)
    for network in (("model=convnet",), ()) for name in sorted(PRESETS)
])  # fmt: skip
def test_every_preset_runs(
    start: Start,
    name: str,
    network: tuple[str, ...],
    drawn: Path,
    tmp_path: Path,
    config: Callable[..., schema.Config],
    tried: dict[tuple[str, str], str],
) -> None:
    """With the small network: tests/models and tests/regimes hold that others are built and trained."""
    settings = [*small(name, drawn, *network), "debug=fast", "tracking=none"]
    read = config(*settings)
    if name != tried.setdefault((run_identity(read), str(read.data)), name):
        return  # the same run as another's, but for what debug overrides and how -m sweeps over it
    folder = start(tmp_path, name, *settings)
    effective = yaml.safe_load((folder / "config.yaml").read_text())
    curves = read_rows(folder / "curves.csv")
    phases = {"scratch": ["scratch"], "bottleneck": ["head"], "finetune": ["head", "finetune"]}
    assert [row["phase"] for row in curves] == phases[effective["regime"]["name"]], "one epoch each"
    assert all(np.isfinite(float(row[curve])) for row in curves for curve in ("loss", "validation_loss"))
    metrics, classes = metrics_of(folder), len(effective["data"].get("species") or ("blobs", "stripes"))
    assert 0 <= metrics["validation.accuracy"] <= 1 and np.isfinite(metrics["validation.loss"])
    assert len(read_rows(folder / "predictions_validation.csv")) == 4 * classes
    assert len([row for row in read_rows(folder / "manifest.csv") if row["split"] == "train"]) == 4 * classes
    assert (folder / "weights/head.weights.h5").exists()


@pytest.fixture
def client(tmp_path: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


def runs_of(client: mlflow.MlflowClient, experiment: str) -> dict[str, Any]:
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


def test_a_debug_run_is_in_mlflow_apart_from_the_others(
    start: Start, drawn: Path, tmp_path: Path, client: mlflow.MlflowClient
) -> None:
    folder = start(
        tmp_path, "tried", *small("tutorial_finetune", drawn, "model=convnet"), "debug=fast", "tracking.log_model=false"
    )
    assert [experiment.name for experiment in client.search_experiments() if experiment.name != "Default"] == ["debug"]
    run = runs_of(client, "debug")["tried"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["validation.accuracy"] == metrics_of(folder)["validation.accuracy"]
    history = client.get_metric_history(run.info.run_id, "loss")
    curves = read_rows(folder / "curves.csv")
    assert [metric.step for metric in history] == [int(row["step"]) for row in curves]
    assert [metric.value for metric in history] == pytest.approx([float(row["loss"]) for row in curves])
    assert len(history) == 2  # the head's epoch and fine-tuning's
    assert run.data.params["optimizer"] == "sgd" and run.data.params["epochs"] == "1"


SMALL = ("data=folder", "data.image_size=48", "model.head.pooling=average", "batch_size=8")


@pytest.mark.slow  # a run that does not reach it is below
@pytest.mark.parametrize("settings", [
    ("regime=scratch", "optimizer=adam", "optimizer.lr=3e-3"),
    ("regime=finetune", "optimizer.lr=1e-3", "regime.head_optimizer.lr=1e-2"),
], ids=["scratch", "finetune"])  # fmt: skip
def test_a_handful_of_images_is_learned_by_heart(
    start: Start, settings: tuple[str, ...], drawn: Path, tmp_path: Path
) -> None:
    folder = start(tmp_path, "heart", *SMALL, f"data.root={drawn}", *settings, "debug=overfit", "tracking=none")
    last = read_rows(folder / "curves.csv")[-1]
    assert float(last["accuracy"]) == 1 and last["epoch"] == "59"
    assert len([row for row in read_rows(folder / "manifest.csv") if row["split"] == "train"]) == 16


def test_a_run_that_cannot_learn_fails_and_leaves_its_results(
    start: Start, drawn: Path, tmp_path: Path, client: mlflow.MlflowClient
) -> None:
    settings = ("regime=bottleneck", "debug=overfit", "epochs=2", "optimizer.lr=1e-9", "tracking.log_model=false")
    with pytest.raises(ConfigError) as raised:
        start(tmp_path, "failed", *SMALL, f"data.root={drawn}", *settings)
    folder = tmp_path / "runs" / "failed"
    reached = float(read_rows(folder / "curves.csv")[-1]["accuracy"])
    assert str(raised.value).startswith(
        f"must_reach: after 2 epochs the training accuracy is {reached:.1%}, below the 100.0% asked for."
    )
    assert "optimizer.lr=1e-09" in str(raised.value) and "epochs (2)" in str(raised.value)
    assert len(read_rows(folder / "predictions_validation.csv")) == 8
    assert (folder / "weights/head.weights.h5").exists() and (folder / "figures/validation_confusion.png").exists()
    run = runs_of(client, "debug")["failed"]
    assert run.info.status == "FAILED"
    assert run.data.metrics["validation.accuracy"] == metrics_of(folder)["validation.accuracy"]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ (8, 8 and 4 a class) and validation/ (4 each) of 32-pixel images, red, green or blue."""
    root = tmp_path_factory.mktemp("three")
    rng = np.random.default_rng(0)
    for split, counts in (("train", (8, 8, 4)), ("validation", (4, 4, 4))):
        for channel, (name, count) in enumerate(zip(("red", "green", "blue"), counts, strict=True)):
            (root / split / name).mkdir(parents=True)
            for n in range(count):
                image = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
                image[..., channel] += 150
                Image.fromarray(image).save(root / split / name / f"{n}.png")
    return root


def scores_of(folder: Path) -> np.ndarray:
    rows = read_rows(folder / "predictions_validation.csv")
    return np.array([[float(row[f"p_{name}"]) for name in ("blue", "green", "red")] for row in rows])


def test_three_classes_by_hinge(start: Start, three: Path, tmp_path: Path, client: mlflow.MlflowClient) -> None:
    """Scores are in [0, 1] and rank, but no figure takes them for probabilities; the logged model gives the same."""
    folder = start(
        tmp_path, "hinge", *SMALL, f"data.root={three}", "data.image_size=32", "regime=scratch", "augmentation=none",
        "loss=hinge", "class_weights=balanced", "epochs=12", "optimizer=adam", "optimizer.lr=1e-2", "schedule=cosine",
        "schedule.warmup=2", "best_weights=true", "monitor=validation_accuracy",
    )  # fmt: skip
    metrics = metrics_of(folder)
    assert not PROBABILISTIC & set(metrics) and {"validation.roc_auc", "validation.f1"} < set(metrics)
    assert metrics["validation.accuracy"] > 0.9
    assert not list((folder / "figures").glob("*calibration*")) and list((folder / "figures").glob("*roc*"))

    run = runs_of(client, "experiments")["hinge"]
    assert run.data.params["loss"] == "hinge" and run.data.params["schedule.warmup"] == "2"
    assert not PROBABILISTIC & set(run.data.metrics)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    model = mlflow.keras.load_model(f"runs:/{run.info.run_id}/model")
    rows = read_rows(folder / "predictions_validation.csv")
    images = [resize(decoder.decode((three / row["path"]).read_bytes()), 32) for row in rows]
    scores = model.predict(np.stack(images).astype("float32"), verbose=0)
    assert scores.shape == (12, 3) and scores.min() >= 0 and scores.max() <= 1
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(scores, scores_of(folder), atol=1e-4)
    assert isinstance(model, keras.Model)


@pytest.mark.slow  # tests/training/test_fit.py and test_losses.py have its settings one by one
def test_three_classes_by_squared_error(start: Start, three: Path, tmp_path: Path) -> None:
    folder = start(
        tmp_path, "mse", *SMALL, f"data.root={three}", "data.image_size=32", "regime=bottleneck", "tracking=none",
        "loss=mse", "label_smoothing=0.1", "class_weights={blue: 2.0}", "epochs=12", "optimizer.lr=1e-2",
        "schedule=plateau", "early_stopping=6", "best_weights=true", "optimizer.use_ema=true",
        "optimizer.ema_momentum=0.5",
    )  # fmt: skip
    metrics, scores = metrics_of(folder), scores_of(folder)
    assert set(metrics) > PROBABILISTIC and metrics["validation.accuracy"] > 0.9
    assert scores.shape == (12, 3) and scores.min() >= 0 and scores.max() <= 1
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    curves = read_rows(folder / "curves.csv")
    # The weights of the best epoch are those that were scored, and its loss is the reported one.
    assert min(float(row["validation_loss"]) for row in curves) == pytest.approx(metrics["validation.loss"], rel=1e-3)
    # Squared errors are at most 1, times the largest class weight; cross entropies begin above ln 3.
    assert float(curves[0]["total_loss"]) < 0.6 < float(curves[0]["loss"])
