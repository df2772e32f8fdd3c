"""Runs from Python: the same results as from the command line, in a process that stays as it was."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.utils import autologging_utils
from PIL import Image, ImageFile

import experiments as ex
from experiments.api.process import executing, unchanged_libraries
from experiments.cli import predict
from experiments.runs.curves import Curves
from experiments.system import hardware, keras_settings, signals

ROOT = Path(__file__).resolve().parents[2]
# The settings of the page's first example, as on the command line.
TYPED = ("regime=bottleneck", "optimizer.lr=1e-3", "epochs=5", "data.image_size=64", "model.head.pooling=average")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("python") / "outputs"


@pytest.fixture(autouse=True)
def one_home(
    outputs: Path, own_outputs: Path, draw_nothing: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let all tests use the runs of one place; blank images stand for figures, whose rendering takes half the time."""
    monkeypatch.setenv("EXPERIMENTS_HOME", str(outputs))
    draw_nothing(monkeypatch)


@pytest.fixture(scope="module")
def page(drawn: Path, outputs: Path, draw_nothing: Callable[..., None]) -> dict[str, Any]:
    """The names that the examples of docs/notebooks.md define; all but those of a sweep, which start processes.

    What a notebook has set of Keras, Pillow and MLflow has no effect on them, and is as it was afterwards.
    """
    text = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    examples = [
        example for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "ex.sweep(" not in example
    ]
    assert len(examples) == 6
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPERIMENTS_HOME", str(outputs))
        draw_nothing(patch)
        patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        keras.config.set_max_epochs(1)
        mlflow.tensorflow.autolog()
        before = state()
        for example in examples:
            exec(compile(example.replace("PATH", str(drawn)), "docs/notebooks.md", "exec"), names)
        assert state() == before
        assert not mlflow.MlflowClient(f"sqlite:///{outputs}/mlflow.db").search_runs(["0"]), "autologging has logged"
        mlflow.tensorflow.autolog(disable=True)
        keras.config.set_max_epochs(None)
    return names


@pytest.fixture(scope="module")
def run(page: dict[str, Any]) -> ex.Run:
    found = page["run"]
    assert isinstance(found, ex.Run)
    return found


def test_the_bits_and_the_identity_are_those_of_the_command_line(
    run: ex.Run, drawn: Path, tmp_path: Path, train_here: Callable[..., None],
    outcome_of: Callable[[Path], dict[str, Any]],
) -> None:  # fmt: skip
    folder = tmp_path / "typed"
    train_here(
        *TYPED, "data=folder", f"data.root={drawn}", f"hydra.run.dir={folder}", "tracking=none", "progress=none",
        "hydra/job_logging=none",
    )  # fmt: skip
    assert run.folder is not None and outcome_of(run.folder) == outcome_of(folder)
    facts = [json.loads((directory / "run.json").read_bytes()) for directory in (run.folder, folder)]
    assert facts[0]["identity"] == facts[1]["identity"] and facts[0]["threads"] == hardware.cores()


def test_a_run_is_found_again_by_id_name_and_directory(run: ex.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.id is not None and run.folder is not None
    mlflow.set_tracking_uri("http://team")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    before = state()
    for named in (run.id, run.id[:9], run.name, run.name[-6:], run.folder):
        assert ex.load(named).folder == run.folder
    assert state() == before and mlflow.get_tracking_uri() == "http://team"
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    with pytest.raises(ex.ConfigError, match="no finished run fits"):
        ex.load("no_such")
    assert ex.train(resume=run).folder == run.folder, "it is finished, and returned as it is"


def test_the_results_are_those_of_the_files(run: ex.Run) -> None:
    assert run.folder is not None
    assert run.metrics == json.loads((run.folder / "metrics.json").read_bytes())
    assert run.config.epochs == 5 and run.config.optimizer.lr == 1e-3 and run.classes == ("blobs", "stripes")
    written = pd.read_csv(run.folder / "curves.csv")
    pd.testing.assert_frame_equal(run.curves[written.columns], written)
    predictions = run.predictions("test")
    assert len(predictions) == 8 and predictions.correct.dtype == bool
    assert predictions.correct.mean() == pytest.approx(run.metrics["test.accuracy"])
    scores = run.per_class
    assert list(scores.split) == ["validation", "validation", "test", "test"]
    recall = scores[scores.split == "test"].set_index("class").recall
    for name in run.classes:
        assert recall[name] == predictions[predictions.label == name].correct.mean()
    assert run.figure("confusion", "test").size == run.figure("learning_curves").size == (8, 8)
    with pytest.raises(ex.ConfigError, match="no figure 'confusoin'.*validation_confusion"):
        run.figure("confusoin")
    with pytest.raises(ex.ConfigError, match="not evaluated on its other images"):
        run.predictions("other")


def test_a_notebook_shows_run_and_report(run: ex.Run) -> None:
    html = run._repr_html_()
    assert run.name in html and f"<td>{run.metrics['validation.accuracy']:.4g}</td>" in html and "<th>test</th>" in html
    page = run.report()
    assert run.folder is not None and page.path == run.folder / "report.html" and Path(page) == page.path
    shown = page._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and "<html" not in shown, "the page is escaped"


def test_files_arrays_and_images_are_predicted_alike(run: ex.Run, drawn: Path) -> None:
    known = run.predictions("validation")
    assert run.data_root == drawn and isinstance(run.model, keras.Model)
    found = run.predict([drawn / path for path in known.path], batch_size=5)
    columns = [f"p_{name}" for name in run.classes]
    np.testing.assert_allclose(found[columns], known[columns], atol=1e-5)
    assert list(found.predicted) == list(known.predicted) and (found.error == "").all()
    images = [Image.open(path) for path in found.path[:3]]
    pixels = np.stack([np.asarray(image) for image in images])
    for same in (pixels, list(pixels), images, str(drawn / "validation" / "blobs" / "blobs.[0-2].jpg")):
        np.testing.assert_allclose(run.predict(same)[columns], found[columns][:3], atol=1e-6)
    gray = run.predict([images[0].convert("L"), np.asarray(images[0].convert("L"))])
    np.testing.assert_array_equal(gray[columns].iloc[0], gray[columns].iloc[1])
    with pytest.raises(ex.ConfigError, match=r"Received: \[48, 48, 3\] float64. For values from 0 to 1"):
        run.predict(pixels[0] / 255)
    with pytest.raises(ex.ConfigError, match=r"\[3, 48, 48\] uint8. Of several gray images .*: list\(array\)"):
        run.predict(pixels[..., 0])
    for wrong in (b"image", 3, [[[0, 0, 0]]]):
        with pytest.raises(ex.ConfigError, match="images: must be paths, uint8 arrays, PIL images"):
            run.predict(wrong)  # type: ignore[arg-type]
    with pytest.raises(ex.ConfigError, match="batch_size: must be 1 or more. Received: 0"):
        run.predict(pixels, batch_size=0)
    assert list(run.predict([]).columns) == list(found.columns)


def test_images_are_rejected_as_by_the_command(
    run: ex.Run, run_verb: Callable[..., None], drawn: Path, tmp_path: Path
) -> None:
    files = [*sorted((drawn / "validation").rglob("*.jpg")), tmp_path / "noise.png"]
    Image.effect_noise((48, 48), 90).convert("RGB").save(files[-1])
    found = run.predict(files, unlike=0.9)
    assert run.folder is not None and (found.distance > 0).all()
    run_verb(predict, run.folder, *files, "--output", tmp_path / "rows.csv", "--unlike", 0.9)
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert list(found.predicted) == list(rows["class"]) and list(found.unlike) == list(rows.unlike)
    assert found.unlike.sum() == (found.predicted == "none").sum() >= 1
    assert "of 12 validation images, 11" in found.attrs["sentences"][0]
    with pytest.raises(ex.ConfigError, match="reject: must be above 0, at most 1.*Received: 99"):
        run.predict(files, reject=99)


def test_an_unusable_file_is_a_row_with_the_reason(run: ex.Run, drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    found = run.predict([tmp_path / "broken.jpg", drawn / "test" / "blobs" / "blobs.0.jpg"])
    assert list(found.predicted.isna()) == [True, False] and found.error[0] and not found.error[1]
    with pytest.raises(ex.ConfigError, match="gone.jpg: no such file or folder\n.*lost.jpg: no such file"):
        run.predict([tmp_path / "gone.jpg", tmp_path / "lost.jpg"])


def state() -> list[Any]:
    """Return what a call must leave as it was."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    logs = logging.getLogRecordFactory(), list(logging.root.handlers), logging.root.level
    process = sys.argv, sys.stdout, sys.stderr, os.getcwd(), os.environ.get("HYDRA_FULL_ERROR")
    tracking = mlflow.get_tracking_uri(), logging.getLogger("mlflow").level, {
        name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")
    }  # fmt: skip
    of_keras = keras.config.dtype_policy().name, keras_settings.current()
    autologs = not autologging_utils._AUTOLOGGING_GLOBALLY_DISABLED
    return [process, handlers, logs, of_keras, ImageFile.LOAD_TRUNCATED_IMAGES, tracking, autologs, gc.isenabled()]


@pytest.mark.parametrize("overrides, keys, message", [
    ((), {"model": {"head": {"dropot": 0.5}}}, "head.dropot: nothing reads this key.*Nearest: model.head.dropout"),
    (("seed=0,1",), {}, "seed=0,1: several values are a sweep"),
    (("max_epochs=3",), {}, "max_epochs: nothing reads this key.*Type: epochs=3"),
    ((), {"runtime": {"threads": 97}, "tracking": {"uri": None}}, "TensorFlow has started in this process with"),
    (("resume=no_such",), {}, "resume: must be a run's folder"),
])  # fmt: skip
def test_errors_are_those_of_the_command_line(
    overrides: tuple[str, ...], keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    log = logging.FileHandler(tmp_path / "own.log", mode="w")
    before = state()
    with pytest.raises(ex.ConfigError, match=message):
        ex.train(*overrides, **keys)
    assert state() == before
    log.handle(logging.makeLogRecord({"msg": "afterwards"}))
    log.close()
    assert (tmp_path / "own.log").read_text() == "afterwards\n"


def test_an_interrupted_run_is_continued_to_the_same_bits(
    page: dict[str, Any],
    run: ex.Run,
    drawn: Path,
    outcome_of: Callable[[Path], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process is afterwards what it was."""
    before, add = state(), Curves.add

    def interrupted(self: Curves, record: Any) -> None:
        add(self, record)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Curves, "add", interrupted)
        with pytest.raises(KeyboardInterrupt, match="ex.train.resume='(.*)'.") as stopped:
            ex.train(*TYPED, resume=None, data={"root": drawn}, tracking={"uri": None})
    folder = Path(str(stopped.value).split("'")[1])
    assert json.loads((folder / "run.json").read_bytes())["status"] == "KILLED" and state() == before
    assert len(stopped.traceback) < 10, "without the frames of TensorFlow"
    continued = ex.train(resume=folder)
    assert continued.folder == folder and run.folder is not None and folder != run.folder and state() == before
    assert outcome_of(folder) == outcome_of(run.folder)
    assert continued.id is None and "Comparison(2 runs" in repr(ex.compare(page["other"], continued)), (
        "one is not in MLflow"
    )


def test_a_call_during_that_of_another_thread_is_an_error_and_an_error_has_no_frames_of_hydra() -> None:
    found: list[BaseException] = []

    def composed() -> None:
        try:
            ex.compose()
        except ex.ConfigError as error:
            found.append(error)

    with pytest.raises(ex.DataError, match="an image") as raised, executing([]):
        threads = [threading.Thread(target=composed) for _ in range(2)]
        for thread in threads:
            thread.start()
            thread.join()
        hydra_like(ex.DataError("an image"))
    assert len(found) == 2 and all("one call at a time" in str(error) for error in found)
    assert "hydra_like" not in [entry.name for entry in raised.traceback]
    assert ex.compose(epochs=2).epochs == 2


def hydra_like(error: Exception) -> None:
    raise error


def test_an_interrupted_import_is_finished_before_the_interrupt() -> None:
    """NumPy, say, cannot be imported again in a process in which its import was interrupted."""
    handler = signal.getsignal(signal.SIGINT)
    done = []
    with pytest.raises(KeyboardInterrupt), signals.interruptible(), signals.loading():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("loaded")
    assert done == ["loaded"] and signal.getsignal(signal.SIGINT) == handler


def test_the_precision_of_a_run_is_not_that_of_the_process() -> None:
    before = state()
    with unchanged_libraries():
        keras.config.set_dtype_policy("mixed_bfloat16")  # as a run does
    assert state() == before


def test_no_garbage_of_the_user_is_kept() -> None:
    gc.unfreeze()
    with unchanged_libraries():
        gc.freeze()  # as `quiet_start` does
    assert gc.get_freeze_count() == 0


def test_every_interrupt_is_an_exception_and_is_not_lost() -> None:
    handler = signal.getsignal(signal.SIGINT)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), signals.interruptible():
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                raise ValueError("as TensorFlow replaces it") from None
    signals.check()
    assert signal.getsignal(signal.SIGINT) is handler


def test_runs_are_compared(page: dict[str, Any], run: ex.Run) -> None:
    other, found = page["other"], page["comparison"]
    assert (other.config.optimizer.lr, other.config.seed, other.config.epochs) == (3e-3, 1, 5), "like the first"
    assert list(found.table.images) == [12, 12] and list(found.table["optimizer.lr"]) == [0.001, 0.003]
    (difference,) = found.significance.to_dict("records")
    assert difference["about"] == "models" and difference["images"] == 12
    change = other.metrics["validation.accuracy"] - run.metrics["validation.accuracy"]
    assert difference["difference"] == pytest.approx(change)
    html = found._repr_html_()
    assert found.sentences[0] in html and "<td>optimizer.lr</td>" in html
    assert run.name in found.page(images=2, log=False).path.read_text("utf-8")
    assert run.folder is not None and ex.compare(run.folder, other.name, split="test").split == "test"


def test_parts_are_inspected(run: ex.Run, drawn: Path) -> None:
    found = ex.inspect("data", data={"root": drawn, "image_size": 48}, images=2)
    assert "blobs" in str(found) and not found.is_refused and found.figure is not None
    assert found._repr_html_().count("<img ") == 1 and "stripes" in found._repr_html_()
    assert any("2 classes" in line for line in ex.inspect("model", run=run).sentences)
    with pytest.raises(ex.ConfigError, match="Received: 'dat'.*Nearest: data"):
        ex.inspect("dat")
    with pytest.raises(ex.ConfigError, match="a run is inspected as it was.*Received: epochs"):
        ex.inspect("model", run=run, epochs=3)
    for part, option, value in (
        ("augmentation", "images", 0), ("data", "images", -1), ("model", "classes", 1), ("augmentation", "views", 2.5),
        ("data", "images", "3"), ("data", "images", None), ("lr", "batches", 9.0),
    ):  # fmt: skip
        with pytest.raises(ex.ConfigError, match=rf"inspect: {option} must be a whole number of .*Received: {value!r}"):
            ex.inspect(part, data={"root": drawn}, **dict[str, Any]({option: value}))
    with pytest.raises(ex.ConfigError, match="inspect: lowest must be a number. Received: 'a'"):
        ex.inspect("lr", data={"root": drawn}, lowest="a")
    with pytest.raises(
        ex.ConfigError, match=r"mistakes are those of a finished run: ex.inspect\('mistakes', run=RUN\)"
    ):
        ex.inspect("mistakes")
    with pytest.raises(ex.ConfigError, match=r"this run is finished. Inspect it by ex.inspect\('model', run=RUN\)"):
        ex.inspect("model", resume=run)
    with pytest.raises(ex.ConfigError, match=f"{drawn}_moved"):
        ex.inspect("labels", run=run, data=f"{drawn}_moved")
    for part in ("labels", "model"):
        with pytest.raises(ex.ConfigError, match=r"No runs yet: there is no .*other.db"):
            ex.inspect(part, run=run.name, uri=f"sqlite:///{drawn}/other.db")


def test_compose_returns_the_checked_configuration(page: dict[str, Any], run: ex.Run, tmp_path: Path) -> None:
    config = page["config"]
    assert (config.regime.name, config.seed, config.epochs) == ("finetune", 1, 5)
    with pytest.raises(ex.ConfigError, match="epochs: must be"):
        ex.compose(epochs=0)
    with pytest.raises(ex.ConfigError, match="regime=scratch loads no such weights"):
        ex.compose("regime=scratch", **{"model.weights": "pretrained"})
    with pytest.raises(ex.ConfigError, match="epochs: must be more than 5"):
        ex.compose("epochs=5", f"continue={run.folder}")
    assert ex.compose(like=run, tracking={"uri": f"sqlite:///{tmp_path}/other.db"}).optimizer.lr == 1e-3


# Trains a run for each argument, and prints the resident memory in bytes after each.
MEMORY = """
import gc, psutil, sys
import experiments as ex
for seed in range(int(sys.argv[1])):
    ex.train("regime=scratch", "data.size=32", "data.image_size=32", "epochs=1", "progress=none", seed=seed,
             data={"per_class": {"train": 4, "validation": 4, "test": 4}})
    gc.collect()
    print("memory", psutil.Process().memory_info().rss, flush=True)
"""


@pytest.mark.slow
def test_memory_is_steady_over_twenty_runs(tmp_path: Path) -> None:
    environment = os.environ | {"EXPERIMENTS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", MEMORY, "20"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    used = [int(line.split()[1]) / 1e6 for line in done.stdout.splitlines() if line.startswith("memory")]
    assert len(used) == 20 and used[-1] - used[4] < 100, used
