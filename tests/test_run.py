"""One run from the command line to its folder."""

from __future__ import annotations

import csv
import gc
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import keras
import mlflow
import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from experiments import run as run_module
from experiments.config import schema
from experiments.data import manifest
from experiments.data.pixel_buffer import PixelBuffer
from experiments.data.types import Dataset, ImageRecord, ImageSet, Manifest
from experiments.deploy import saved_run
from experiments.errors import ConfigError, DataError
from experiments.evaluation import training_checks
from experiments.evaluation.evaluate import evaluate
from experiments.evaluation.training_checks import check_joined
from experiments.images import decoder
from experiments.images.resizing import resize
from experiments.regimes.build import build
from experiments.regimes.data_checks import check_origins, check_shares
from experiments.reports.text import print_results
from experiments.run import read_data, run
from experiments.runs.curves import Curves
from experiments.runs.run_directory import RunDirectory
from experiments.storage.array_cache import Rows
from experiments.storage.csv_files import read_rows, write_rows
from experiments.sweeps.worker_tasks import prepare_jobs
from experiments.system.startup import quiet_start
from experiments.tracking import inputs, sync
from experiments.training.checkpoints import Checkpoints, TrainingState
from experiments.training.types import EpochRecord, TrainingResult

SMALL = (
    "data=folder", "data.image_size=48", "model.weights=null", "model.head.pooling=average", "epochs=2", "batch_size=8",
    "regime.head_epochs=3", "regime.views=1", "progress=none",
)  # fmt: skip
Start = Callable[..., Path]
FIGURES = {f"{split}_{name}.png" for split in ("validation", "test")
           for name in ("confusion", "roc", "calibration", "mistakes", "risk_coverage")}  # fmt: skip


@pytest.fixture(scope="session")
def start(train_here: Callable[..., None]) -> Start:
    """Return a function that trains in this process and returns the run's directory."""

    def call(outputs: Path, name: str, *overrides: str, figures: bool = False) -> Path:
        folder = outputs / "runs" / name
        settings = (*SMALL, f"outputs={outputs}", f"hydra.run.dir={folder}", "hydra/job_logging=none")
        train_here(*settings, *overrides, figures=figures)
        return folder

    return call


@pytest.fixture(scope="module")
def tuned(start: Start, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finetune run without MLflow, its validation metric `loss` the objective."""
    outputs = tmp_path_factory.mktemp("run") / "outputs"
    settings = ("regime=finetune", "tracking=none", "augmentation=light", "objective=loss")
    with pytest.MonkeyPatch.context() as patch:
        returned: list[float] = []

        def listening(config: schema.Config, planned: str | None) -> float:
            returned.append(run(config, planned))
            return returned[-1]

        patch.setattr(run_module, "run", listening)
        folder = start(outputs, "tuned", f"data.root={drawn}", *settings, figures=True)
    (folder / "returned").write_text(str(returned[0]))
    return folder


def test_the_folder_holds_everything(tuned: Path) -> None:
    names = {str(path.relative_to(tuned)) for path in tuned.rglob("*") if path.is_file()}
    assert names - {"returned"} >= {
        "config.yaml", "manifest.csv", "curves.csv", "metrics.json", "predictions_validation.csv",
        "predictions_test.csv", "weights/backbone.weights.h5", "weights/head.weights.h5", ".hydra/overrides.yaml",
        "report.html", "figures/learning_curves.png", "figures/augmented.png", *(f"figures/{name}" for name in FIGURES),
    }  # fmt: skip
    for path in (tuned / "figures").iterdir():
        with Image.open(path) as figure:
            assert figure.format == "PNG" and min(figure.size) >= 100
            assert np.asarray(figure).std() > 1
    assert not list(tuned.parents[1].glob("**/mlflow.db*")) and not (tuned.parents[1] / "mlartifacts").exists()


def test_the_folder_gives_the_model_back(tuned: Path, drawn: Path) -> None:
    run = saved_run.find(str(tuned))
    rows = read_rows(tuned / "predictions_test.csv")
    images = [resize(decoder.decode((drawn / row["path"]).read_bytes()), 48) for row in rows]
    shares = np.asarray(run.model()(np.stack(images).astype("float32")))
    assert run.run_id is None and run.classes == ("blobs", "stripes")
    np.testing.assert_allclose(shares[:, 1], [float(row["p_stripes"]) for row in rows], atol=1e-5)


def test_the_effective_configuration_is_written(tuned: Path) -> None:
    written = yaml.safe_load((tuned / "config.yaml").read_text())
    assert written["regime"]["name"] == "finetune" and written["optimizer"]["name"] == "adamw_finetune"
    assert written["epochs"] == 2 and written["data"]["image_size"] == 48 and written["tracking"]["uri"] is None


def test_the_manifest_lists_every_image(tuned: Path) -> None:
    rows = read_rows(tuned / "manifest.csv")
    assert len(rows) == 2 * (12 + 6 + 4)
    assert {row["class_name"] for row in rows} == {"blobs", "stripes"}
    assert all(len(row["sha256"]) == 64 and row["mode"] == "RGB" and row["width"] == "48" for row in rows)


def test_curves_have_a_row_an_epoch(tuned: Path) -> None:
    rows = read_rows(tuned / "curves.csv")
    assert [(row["step"], row["phase"], row["epoch"]) for row in rows] == [
        ("0", "head", "0"), ("1", "head", "1"), ("2", "head", "2"), ("3", "finetune", "0"), ("4", "finetune", "1"),
    ]  # fmt: skip
    stamps = [int(row["timestamp"]) for row in rows]
    assert stamps == sorted(stamps)
    assert all(np.isfinite(float(row[name])) for row in rows for name in ("loss", "validation_loss", "seconds"))
    metrics = json.loads((tuned / "metrics.json").read_text())
    assert sum(float(row["seconds"]) for row in rows) <= metrics["fit_seconds"] <= metrics["total_seconds"]


def test_predictions_and_metrics_agree(tuned: Path) -> None:
    metrics = json.loads((tuned / "metrics.json").read_text())
    for split, count in (("validation", 12), ("test", 8)):
        rows = read_rows(tuned / f"predictions_{split}.csv")
        assert len(rows) == count
        assert np.mean([row["correct"] == "True" for row in rows]) == pytest.approx(metrics[f"{split}.accuracy"])
        for row in rows:
            shares = {name: float(row[f"p_{name}"]) for name in ("blobs", "stripes")}
            assert sum(shares.values()) == pytest.approx(1)
            assert row["predicted"] == max(shares, key=lambda name: shares[name])
            assert row["path"].startswith(f"{split}/{row['label']}/")
            assert (row["correct"] == "True") == (row["label"] == row["predicted"])
    last = float(read_rows(tuned / "curves.csv")[-1]["validation_loss"])
    assert metrics["validation.loss"] == pytest.approx(last, abs=1e-4)
    assert float((tuned / "returned").read_text()) == metrics["validation.loss"]  # the objective


def test_the_weights_make_the_same_predictions(
    tuned: Path, drawn: Path, config: Callable[..., schema.Config], tmp_path: Path
) -> None:
    weights = tuned / "weights" / "backbone.weights.h5"
    settings = (*SMALL, f"data.root={drawn}", f"outputs={tmp_path}", "regime=bottleneck", f"model.weights={weights}")
    components = build(config(*settings), {})
    head = components.head(2)
    head.load_weights(tuned / "weights" / "head.weights.h5")
    from experiments.models.network import join

    images = read_data(components).validation
    scores = join(components.backbone, "average", head).predict_on_batch(images.pixels[:].astype("float32"))
    written = [
        [float(row["p_blobs"]), float(row["p_stripes"])] for row in read_rows(tuned / "predictions_validation.csv")
    ]
    np.testing.assert_allclose(scores, written, atol=1e-5)


def test_without_test_the_test_split_is_not_read(start: Start, drawn: Path, tmp_path: Path) -> None:
    settings = ("regime=bottleneck", "tracking=none", "evaluate.test=false", "epochs=1")
    folder = start(tmp_path, "untested", f"data.root={drawn}", *settings)
    assert (folder / "predictions_validation.csv").exists() and not (folder / "predictions_test.csv").exists()
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "learning_curves.png",
        *(name for name in FIGURES if name.startswith("validation_")),
    }  # and no augmented images, which bottleneck never sees
    assert not [key for key in json.loads((folder / "metrics.json").read_text()) if key.startswith("test")]
    assert "augmentation" not in yaml.safe_load((folder / "config.yaml").read_text())
    rows = {len(np.load(path, mmap_mode="r")) for path in (tmp_path / "cache").rglob("array.npy")}
    assert rows == {24, 12}  # training and validation images; none of the 8 of test
    trained = read_rows(folder / "predictions_train.csv")
    assert len(trained) == 24 and all(row["path"].startswith(f"train/{row['label']}/") for row in trained)
    assert "24 training images, rated by this model" in (folder / "report.html").read_text()


@pytest.mark.slow  # a fault at a later step is below
def test_a_fault_leaves_the_curves(start: Start, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **options: object) -> NoReturn:
        raise RuntimeError("no more")

    monkeypatch.setattr(run_module, "evaluate", fails)
    with pytest.raises(RuntimeError, match="no more"):
        start(tmp_path, "broken", f"data.root={drawn}", "regime=bottleneck", "tracking=none")
    assert len(read_rows(tmp_path / "runs" / "broken" / "curves.csv")) == 2
    assert (tmp_path / "runs" / "broken" / "weights" / "head.weights.h5").exists()
    assert not (tmp_path / "runs" / "broken" / "metrics.json").exists()


PENALISED = (
    "model.head.l2=0.5", "label_smoothing=0.2", "class_weights={blobs: 1.0, stripes: 3.0}", "best_weights=true",
    "early_stopping=3", "epochs=4", "augmentation=none",
)  # fmt: skip


def assert_reported_loss_is_that_of_the_curve(folder: Path) -> None:
    """The last phase's lowest validation_loss and the final one are equal, and nowhere near what is minimised."""
    rows = read_rows(folder / "curves.csv")
    best = min(float(row["validation_loss"]) for row in rows if row["phase"] == rows[-1]["phase"])
    final = json.loads((folder / "metrics.json").read_text())["validation.loss"]
    assert final == pytest.approx(best, rel=1e-5)
    assert all(float(row["total_loss"]) > float(row["loss"]) + 0.5 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    ("regime=scratch", "model.layers.block1.batch_norm=true", "model.layers.block1.l1=0.01"),
    ("regime=finetune",),
    ("regime=bottleneck", "loss=mse"),
], ids=["scratch", "finetune", "mse"])  # fmt: skip
def test_the_monitored_loss_is_the_reported_one_without_penalties(
    settings: tuple[str, ...], start: Start, drawn: Path, tmp_path: Path
) -> None:
    """Of bottleneck and cross-entropy, the test below shows it."""
    folder = start(tmp_path, "penalised", f"data.root={drawn}", "tracking=none", *PENALISED, *settings)
    assert_reported_loss_is_that_of_the_curve(folder)


def test_what_fails_after_the_training_loses_nothing(
    start: Start, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **options: object) -> NoReturn:
        raise ValueError("no figures")

    monkeypatch.setattr(run_module, "save_figures", fails)
    monkeypatch.setattr(run_module, "write_training_predictions", fails)
    monkeypatch.setattr(training_checks, "TOLERANCES", {"float32": -1.0})
    with pytest.raises(RuntimeError, match="disagree by") as failed:
        start(tmp_path, "kept", f"data.root={drawn}", "regime=bottleneck", "must_reach=1.0", *PENALISED)
    notes = "\n".join(failed.value.__notes__)
    assert "results are written" in notes and "resume=" in notes
    folder = tmp_path / "runs" / "kept"
    assert_reported_loss_is_that_of_the_curve(folder)
    assert len(read_rows(folder / "predictions_validation.csv")) == 12
    assert {path.name for path in (folder / "weights").iterdir()} == {"backbone.weights.h5", "head.weights.h5"}
    facts = json.loads((folder / "run.json").read_text())
    assert facts["status"] == "FAILED" and "model" not in facts
    assert [failure.split(":")[0] for failure in facts["failures"]][0::2] == ["RuntimeError", "ValueError"]
    assert len(facts["failures"]) == 4 and (folder / "report.html").is_file()
    logged = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(facts["run_id"])
    assert logged.info.status == "FAILED" and "disagree by" in logged.data.tags["failure"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert logged.data.metrics["validation.loss"] == pytest.approx(metrics["validation.loss"])
    artifacts = {path.name for path in tmp_path.glob("mlartifacts/**/*") if path.is_file()}
    assert artifacts >= {"metrics.json", "predictions_validation.csv", "head.weights.h5"}


@pytest.mark.slow  # test_runtime.py trains in bfloat16, test_feature_cache.py stores float16
def test_half_precision_trains_to_the_end(start: Start, drawn: Path, tmp_path: Path) -> None:
    """The shipped body, whose scores from stored activations and from pixels differ by more than float32 explains."""
    settings = ("regime=finetune", "runtime.precision=mixed_bfloat16", "regime.activations=float16")
    body = ("model.weights=pretrained", "optimizer.lr=0.01", "tracking=none")
    folder = start(tmp_path, "half", f"data.root={drawn}", *settings, *body)
    assert "validation.accuracy" in json.loads((folder / "metrics.json").read_text())


def test_accumulation_beyond_the_end_is_refused(drawn: Path, config: Callable[..., schema.Config]) -> None:
    root = (*SMALL, f"data.root={drawn}", "regime=finetune")  # 24 training images: three batches an epoch
    read_data(build(config(*root, "optimizer.gradient_accumulation_steps=6"), {}), keep=False)
    for key, steps, epochs in (("optimizer", 7, 2), ("regime.head_optimizer", 10, 3)):
        components = build(config(*root, f"{key}.gradient_accumulation_steps={steps}"), {})
        with pytest.raises(ConfigError, match=rf"{key}\.gradient_accumulation_steps: must be at most {3 * epochs}, "):
            read_data(components, keep=False)
    for unread in ("regime=bottleneck", f"regime.head_from={'a' * 32}"):
        given = config(*root, unread, "regime.head_optimizer.gradient_accumulation_steps=10")
        read_data(build(given, {}), keep=False)
    # A sweep, which reads the data of its jobs once, checks every job.
    jobs = [config(*root, f"optimizer.gradient_accumulation_steps={steps}") for steps in (6, 7)]
    with pytest.raises(ConfigError, match="Received: 7"):
        prepare_jobs(jobs)


def test_a_joined_model_that_disagrees_is_not_reported(drawn: Path, config: Callable[..., schema.Config]) -> None:
    components = build(config(*SMALL, f"data.root={drawn}", "regime=bottleneck"), {})
    dataset = read_data(components)
    inputs = keras.Input((48, 48, 3))
    pooled = keras.layers.Dense(2, activation="softmax")(keras.layers.GlobalAveragePooling2D()(inputs / 255))
    model = keras.Model(inputs, pooled)
    right = np.asarray(model(dataset.validation.pixels[:].astype("float32")))
    check_joined(components.config, TrainingResult(model, (), {"validation": right}), dataset)
    wrong = right.copy()
    wrong[3] += [0.01, -0.01]
    for reduced in ("runtime.precision=mixed_bfloat16", "regime.activations=float16"):
        coarse = config(*SMALL, f"data.root={drawn}", "regime=bottleneck", reduced)
        check_joined(coarse, TrainingResult(model, (), {"validation": (right + 9 * wrong) / 10}), dataset)
    with pytest.raises(RuntimeError, match="disagree by 0.01"):
        check_joined(components.config, TrainingResult(model, (), {"validation": wrong}), dataset)
    wrong[3] = np.nan
    with pytest.raises(RuntimeError, match="disagree by nan"):
        check_joined(components.config, TrainingResult(model, (), {"validation": wrong}), dataset)


def test_a_training_that_diverges_is_a_clear_error(start: Start, drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not finite after epoch 1 of phase scratch.*optimizer\.lr \(now 1e\+30\)"):
        start(tmp_path, "diverged", f"data.root={drawn}", "tracking=none", "optimizer=sgd", "optimizer.lr=1e30")


def test_what_devices_cannot_share_evenly_is_refused(config: Callable[..., schema.Config]) -> None:
    check_shares(None, {"train": 7, "validation": 3})
    check_shares(2, {"train": 8, "validation": 4})
    with pytest.raises(ConfigError, match="multiple of 2: train has 7, validation has 3. Set data.limit"):
        check_shares(2, {"train": 7, "validation": 3})
    with pytest.raises(ConfigError, match=r"batch_size: must be a multiple of runtime\.devices \(2\).*Received: 15"):
        config("runtime.devices=2", "batch_size=15")


@pytest.mark.parametrize("source, head", [("trained in this run", 3.0), ("head cache", 0.0)])
def test_the_time_of_a_run_has_that_of_its_earlier_processes_and_not_that_of_what_it_found(
    source: str, head: float
) -> None:
    epochs = [("head", 0, 1.0), ("head", 1, 2.0), ("finetune", 0, 10.0), ("finetune", 1, 20.0)]
    history = tuple(
        EpochRecord(step, phase, epoch, 1000 * step, {"seconds": seconds})
        for step, (phase, epoch, seconds) in enumerate(epochs)
    )
    result, began = TrainingResult(keras.Model(), history, {}, {"head_source": source}), 2.5
    alone: Any = SimpleNamespace(continued=None)
    assert run_module.earlier_seconds(alone, result, began) == head + 10
    assert run_module.reused_seconds(result) == 3 - head
    further: Any = SimpleNamespace(continued=SimpleNamespace(epochs=lambda: history[2:3]))
    assert run_module.earlier_seconds(further, result, began) == head


def test_times_that_were_recorded_before_a_resume_are_kept() -> None:
    active: Any = SimpleNamespace(facts={"total_seconds": 5.0, "ended": 7})
    result = TrainingResult(keras.Model(), (), {})
    spent, ended = run_module.times(active, result, {"earlier": 0.0, "seconds": {"fit_seconds": 2.0}}, 0.0)
    assert (spent, ended) == ({"total_seconds": 5.0, "fit_seconds": 2.0}, 7)


def test_curves_are_on_disk_before_they_are_tracked(tmp_path: Path) -> None:
    def fails(record: EpochRecord) -> None:
        raise ConnectionError("the server is gone")

    curves = Curves(tmp_path / "curves.csv", fails, lambda record: True)
    for step in range(2):
        with pytest.raises(ConnectionError):
            curves.add(EpochRecord(step, "scratch", step, 5, {"loss": 0.5}))
    rows = read_rows(tmp_path / "curves.csv")
    reported = [{name: value for name, value in row.items() if value} for row in rows]
    expected = {"phase": "scratch", "timestamp": "5", "loss": "0.5"}
    assert reported == [{"step": str(step), "epoch": str(step)} | expected for step in range(2)]


def test_curves_take_records_with_more_and_fewer_metrics(tmp_path: Path) -> None:
    """A head's history may come from another version of this program, or from several devices."""
    curves = Curves(tmp_path / "curves.csv", lambda record: None, lambda record: False)
    curves.add(EpochRecord(0, "head", 0, 5, {"loss": 0.5}))
    curves.add(EpochRecord(1, "finetune", 0, 6, {"input_wait": 0.25, "loss": 0.4}))
    rows = read_rows(tmp_path / "curves.csv")
    assert [(row["loss"], row["input_wait"]) for row in rows] == [("0.5", ""), ("0.4", "0.25")]


ENDED = ("FINISHED", "KILLED")


def epoch_record(step: int, timestamp: int, loss: float = 0.5) -> EpochRecord:
    return EpochRecord(step, "scratch", step, timestamp, {"loss": loss, "seconds": timestamp / 7})


def test_an_epoch_is_logged_once_it_is_committed_and_one_trained_again_keeps_its_row(tmp_path: Path) -> None:
    path, logged, held = tmp_path / "curves.csv", list[EpochRecord](), [0]

    def start() -> Curves:
        return Curves(path, logged.append, lambda record: record.epoch < held[0])

    curves = start()
    for step in range(5):
        held[0] = step + 1 if step in (1, 3) else held[0]
        curves.add(epoch_record(step, 100 + step))
    assert [record.step for record in logged] == [0, 1, 2, 3], "the last is in no checkpoint"
    assert len(path.read_text().splitlines()) == 1 + 5
    with path.open("a") as file:
        file.write("5,scratch,5,105,,,,0.2")  # killed within a row

    # Both checkpoints are damaged: all is trained again, the same to the bit, in other times.
    logged.clear()
    held[0] = 9
    curves = start()
    for step in range(5):
        curves.add(epoch_record(step, 200 + step))
    assert logged == [epoch_record(step, 100 + step) for step in range(5)]
    curves.add(epoch_record(5, 205))
    assert logged[5] == epoch_record(5, 205), "the row that was not whole counts for nothing"
    assert [line.split(",")[3] for line in path.read_text().splitlines()[1:]] == [
        "100",
        "101",
        "102",
        "103",
        "104",
        "205",
    ]

    # Another number of threads: what is trained now is not what was.
    logged.clear()
    curves = start()
    curves.add(epoch_record(0, 300))
    curves.add(epoch_record(1, 301, loss=0.25))
    curves.finish()
    assert logged == [epoch_record(0, 100), epoch_record(1, 301, loss=0.25)]
    assert len(path.read_text().splitlines()) == 1 + 2

    Checkpoints(tmp_path / "checkpoints").save("scratch", TrainingState([], [], {}, False, (epoch_record(0, 100),)))
    steps = {status: {point[3] for point in sync.points(tmp_path, {"status": status})} for status in ENDED}
    assert steps == {"FINISHED": {0, 1}, "KILLED": {0}}, "no epoch that resuming would train again"


def test_csv_cells_are_quoted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"path": 'a,"b"\nc.jpg', "n": 1}, {"path": "Katze 猫.jpg", "n": 2}]
    write_rows(tmp_path / "table.csv", rows)
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [row["path"] for row in rows]


def origin(tmp_path: Path, rows: list[dict[str, str]], key: str) -> dict[str, Path]:
    """The folder with what a run left that read these images."""
    folder = tmp_path / key
    folder.mkdir(parents=True)
    write_rows(folder / "manifest.csv", rows)
    return {key: folder}


@pytest.mark.parametrize(("keep", "test", "stored"), [(True, "true", 3), (True, "false", 2), (False, "true", 0)])
def test_what_is_decoded_to_be_checked_goes_to_the_store_and_nothing_of_it_stays(
    keep: bool, test: str, stored: int, drawn: Path, tmp_path: Path, config: Callable[..., schema.Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made = []

    def decoded(*arguments: Any) -> PixelBuffer:
        made.append(PixelBuffer(*arguments))
        return made[-1]

    monkeypatch.setattr(run_module, "PixelBuffer", decoded)
    arguments = [f"data.root={drawn}", f"outputs={tmp_path}", f"evaluate.test={test}"]
    dataset = read_data(build(config(*SMALL, *arguments), {}), keep=keep)
    assert dataset.test is not None
    assert len(list((tmp_path / "cache").glob("pixels/*"))) == stored
    assert len(made) == keep and not any(image.pixels for image in made)


@pytest.mark.parametrize("key", ["model.weights", "regime.head_from"])
def test_weights_that_were_trained_on_held_out_images_are_refused(
    key: str, drawn: Path, tmp_path: Path, config: Callable[..., schema.Config]
) -> None:
    def dataset(*overrides: str) -> Dataset:
        return read_data(build(config(*SMALL, f"data.root={drawn}", f"outputs={tmp_path}", *overrides), {}))

    first, other = dataset("data.fold=0"), dataset("data.fold=1")
    rows = [{name: str(value) for name, value in row.items()} for row in manifest.to_rows(first.manifest)]
    files = origin(tmp_path, rows, key)
    check_origins(files, first)  # the same split
    with pytest.raises(DataError) as raised:
        check_origins(files, other)
    shared = {entry.path for entry in first.manifest.of("train")} & {entry.path for entry in other.validation.entries}
    assert str(raised.value).startswith(
        f"{key}: the run it names, or one whose weights it began with, was trained on {len(shared)} of the"
    )
    assert len(shared) > 1 and sorted(shared)[0] in str(raised.value)

    renamed = origin(tmp_path / "renamed", [{**row, "class_name": f"other {row['class_name']}"} for row in rows], key)
    if key == "model.weights":
        check_origins(renamed, first)  # a body may come from anywhere
    else:
        with pytest.raises(ConfigError, match=r"was trained for other blobs, other stripes\. Allowed: .*blobs"):
            check_origins(renamed, first)


def test_a_weights_file_in_the_folder_of_a_run_is_known_to_be_that_of_the_run(
    drawn: Path, tmp_path: Path, config: Callable[..., schema.Config]
) -> None:
    def job(*more: str) -> schema.Config:
        given = ("data=folder", f"data.root={drawn}", "data.image_size=48", "regime=bottleneck", f"outputs={tmp_path}")
        return config(*given, *more)

    first = build(job("data.fold=0", "model.weights=null"), {})
    file = tmp_path / "run" / "weights" / "backbone.weights.h5"
    file.parent.mkdir(parents=True)
    first.backbone.model.save_weights(file)
    rows = manifest.to_rows(read_data(first, keep=False).manifest)
    RunDirectory(tmp_path / "run").write_images(rows, [], [], [])
    jobs = [job(f"data.fold={fold}", f"model.weights={file}") for fold in (0, 1)]
    assert len(prepare_jobs(jobs[:1])) == 1
    with pytest.raises(
        DataError, match=r"model\.weights: the run it names, or one .* was trained on \d+ of the images"
    ):
        prepare_jobs(jobs[1:])
    moved = tmp_path / "elsewhere.weights.h5"
    file.rename(moved)
    assert len(prepare_jobs([job("data.fold=1", f"model.weights={moved}")])) == 1


def test_images_that_the_weights_of_the_weights_were_trained_on_are_refused(
    tuned: Path, start: Start, drawn: Path, tmp_path: Path, config: Callable[..., schema.Config]
) -> None:
    """The first run's images are not those of the second, whose weights the third begins with."""
    regime = ("regime=bottleneck", "epochs=1", "tracking=none")
    other = tmp_path / "other"
    for at, file in enumerate(sorted(drawn.glob("*/*/*.jpg"))):
        target = other / file.relative_to(drawn)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 48), (at * 5, 255 - at, at)).save(target)
    weights = RunDirectory(tuned).weights("backbone")
    second = start(tmp_path, "second", f"data.root={other}", f"model.weights={weights}", *regime)
    assert RunDirectory(second).trained_on() > RunDirectory(tuned).trained_on()
    third = [
        config(*SMALL, *regime, f"data.root={drawn}", f"outputs={tmp_path}", f"data.fold={fold}",
               f"model.weights={RunDirectory(second).weights('backbone')}") for fold in ("null", 0)
    ]  # fmt: skip
    assert len(prepare_jobs(third[:1])) == 1
    with pytest.raises(DataError, match=r"or one whose weights it began with, was trained on \d+ of the images"):
        prepare_jobs(third[1:])


def test_a_sweep_refuses_weights_that_were_trained_on_held_out_images_of_one_of_its_jobs(
    drawn: Path, tmp_path: Path, config: Callable[..., schema.Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [config(*SMALL, f"data.root={drawn}", f"outputs={tmp_path}", f"data.fold={fold}") for fold in (0, 1)]
    rows = [
        {name: str(value) for name, value in row.items()}
        for row in manifest.to_rows(read_data(build(jobs[0], {}), keep=False).manifest)
    ]

    def fetch(config: schema.Config, folder: Path) -> dict[str, Path]:
        return origin(folder / "inputs", rows, "model.weights")

    monkeypatch.setattr(inputs, "fetch", fetch)
    assert len(prepare_jobs(jobs[:1])) == 1
    with pytest.raises(
        DataError, match=r"model\.weights: the run it names, or one .* was trained on \d+ of the images"
    ):
        prepare_jobs(jobs)


def test_what_is_loaded_is_not_looked_through_for_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    before = gc.get_freeze_count()
    with quiet_start():
        assert gc.isenabled()
    # "at most": what is frozen is still freed once nothing refers to it
    assert gc.get_freeze_count() <= before, "loaded before: what is left of earlier runs is not kept"
    monkeypatch.delitem(sys.modules, "tensorflow")
    try:
        with pytest.raises(ImportError), quiet_start():
            loaded: list[list[Any]] = [[] for _ in range(100_000)]
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() and gc.get_freeze_count() > before + len(loaded) // 2
    finally:
        gc.unfreeze()
        gc.collect()
        gc.freeze()  # as tests/conftest.py has it


def test_the_last_lines_show_accuracy_beside_the_most_frequent_class(tmp_path: Path) -> None:
    """190 normal and 10 abnormal images: none of the abnormal found, some of them, all of them."""

    def last_line(found: int) -> str:
        entries = tuple(
            ImageRecord(
                f"{at}.png", 1, f"{at:064x}", 8, 8, "RGB", "normal" if at < 190 else "[b]abnormal", "validation"
            )
            for at in range(200)
        )
        labels = np.array([int(at < 190) for at in range(200)], np.int32)
        images = ImageSet("validation", entries, labels, 8, lambda: Rows([np.zeros((200, 8, 8, 3), "uint8")]))
        dataset = Dataset(("[b]abnormal", "normal"), images, images, None, Manifest(Path(), (), entries), "")
        scores = np.array([[0.9, 0.1] if 190 <= at < 190 + found else [0.2, 0.8] for at in range(200)])
        reports = evaluate({"validation": scores}, dataset)
        assert reports["validation"].metrics["accuracy_baseline"] == 0.95
        console = Console(file=io.StringIO(), record=True, width=200)
        print_results(console, tmp_path, reports, None)
        return console.export_text().splitlines()[0]

    line = (
        "validation accuracy 95.0 % (95 % interval 91.0 % to 97.3 %, 200 images), not above always predicting 'normal'"
    )
    assert last_line(0).startswith(f"{line} (95.0 %); loss ")
    assert "accuracy 97.0 %" in last_line(4) and "not significantly above always predicting" in last_line(4)
    assert "200 images), significantly above always predicting 'normal' (95.0 %)" in last_line(10)
