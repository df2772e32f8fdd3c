"""`experiments evaluate`: the report on further images, what it is compared with, and what is an error."""

from __future__ import annotations

import json
import os
import shutil
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from red_classifier import classifier, expected, save
from sklearn.metrics import accuracy_score, f1_score, log_loss

from experiments.cli import evaluate as verb
from experiments.comparison.significance import newcombe
from experiments.data.listing import ListedImage
from experiments.data.validation import hash_files
from experiments.deploy import evaluate as evaluations
from experiments.deploy import labelled_images, predict, saved_run
from experiments.errors import ConfigError
from experiments.evaluation.decision import Decision
from experiments.evaluation.evaluate import Report
from experiments.images.decoder_settings import DEFAULTS
from experiments.runs.predictions import Prediction
from experiments.runs.run_directory import RunDirectory
from experiments.storage.csv_files import read_rows, write_rows

Call = Callable[..., int | str | None]
CLASSES = ("cats", "dogs")
REDS = {"cats": (5, 40, 90, 200), "dogs": (160, 210, 250, 30)}  # the last of each is a mistake


def sha256(path: Path) -> str:
    return hash_files(path.parent, [ListedImage(path.name, "")], [])[path.name][0]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images of either class, of which one is a mistake; in folders, with files that are no images."""
    root = tmp_path / "images"
    for name, reds in REDS.items():
        for red in reds:
            save(root / name / "deep" / f"{red}.png", red)
    (root / "cats" / "notes.txt").write_text("no image")
    save(root / ".hidden" / "a.png", 9)
    return root


@pytest.fixture
def run(tmp_path: Path) -> SimpleNamespace:
    """A run with ten validation images, nine of which it predicts correctly."""
    write_rows(tmp_path / "manifest.csv", [{"sha256": "0" * 64, "split": "train"}])
    validation = [
        Prediction(f"{at}.png", f"{at:064x}", "cats", "cats" if at else "dogs", 0.8, at > 0,
                   {"cats": 0.8, "dogs": 0.2} if at else {"cats": 0.2, "dogs": 0.8})
        for at in range(10)
    ]  # fmt: skip
    (tmp_path / "run").mkdir()
    return SimpleNamespace(
        name="some-run", classes=CLASSES, model=classifier, gives_probabilities=True, decoder_settings=DEFAULTS,
        metrics={"validation.temperature": 2.0}, predictions=lambda split: validation,
        decision=Decision("dogs"), manifest=tmp_path / "manifest.csv",
        images=lambda split: read_rows(tmp_path / "manifest.csv"), earlier_training_images=set,
        folder=tmp_path / "run", run_id=None, merged_classes={"cats": ["tabbies", "siamese"]},
    )  # fmt: skip


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, run: SimpleNamespace) -> Call:
    """The command on that run; its exit code."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: file.write(b""))
    monkeypatch.setattr(saved_run, "find", lambda named, uri: run)

    def start(*arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["experiments evaluate", "some-run", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            verb.main()
        return left.value.code  # type: ignore[return-value]

    return start


def test_the_report_is_that_of_scikit_learn(images: Path, call: Call, run: SimpleNamespace) -> None:
    assert call(images, "--batch-size", 3) == 0
    (output,) = (run.folder / "evaluations").iterdir()
    rows = read_rows(output / "predictions_evaluation.csv")
    assert [row["path"] for row in rows] == [
        f"{name}/deep/{red}.png" for name, reds in REDS.items() for red in sorted(reds, key=str)
    ]
    scores = expected(*((images / row["path"]).read_bytes() for row in rows))
    np.testing.assert_allclose([[float(row["p_cats"]), float(row["p_dogs"])] for row in rows], scores, atol=1e-6)
    labels, predicted = [row["label"] for row in rows], [CLASSES[at] for at in scores.argmax(axis=1)]
    assert [row["predicted"] for row in rows] == predicted
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["evaluation.accuracy"] == accuracy_score(labels, predicted) == 0.75
    assert metrics["evaluation.f1"] == pytest.approx(f1_score(labels, predicted, pos_label="dogs"))
    assert metrics["evaluation.loss"] == pytest.approx(log_loss(labels, scores), rel=1e-4)
    assert metrics["evaluation.scaled_loss"] < metrics["evaluation.loss"]
    assert {path.name for path in (output / "figures").iterdir()} >= {
        f"evaluation_{name}.png" for name in ("confusion", "roc", "calibration", "mistakes", "risk_coverage")
    }
    assert {row["class"] for row in read_rows(output / "per_class_evaluation.csv")} == set(CLASSES)


def test_the_threshold_and_the_loss_of_the_run_decide(images: Path, call: Call, run: SimpleNamespace) -> None:
    run.decision, run.gives_probabilities = Decision("dogs", 0.7), False
    assert call(images) == 0
    (output,) = (run.folder / "evaluations").iterdir()
    rows = read_rows(output / "predictions_evaluation.csv")
    assert [row["predicted"] == "dogs" for row in rows] == [float(row["p_dogs"]) >= 0.7 for row in rows]
    assert any(0.5 < float(row["p_dogs"]) < 0.7 for row in rows)
    metrics = json.loads((output / "metrics.json").read_text())
    assert "evaluation.accuracy" in metrics and "evaluation.loss" not in metrics, "its scores are no probabilities"


def test_the_images_that_earlier_runs_were_trained_on_are_known(tmp_path: Path) -> None:
    run = saved_run.Trained("run", None, None, tmp_path, tmp_path / "manifest.csv", {}, {}, {})
    assert run.earlier_training_images() == set()
    RunDirectory(tmp_path).write_earlier(["1" * 64, "2" * 64])
    assert run.earlier_training_images() == {"1" * 64, "2" * 64}


def test_the_digest_is_that_of_the_images_with_their_labels() -> None:
    one, other = (Prediction("", sha, label, "cats", 0.8, True, {}) for sha, label in (("1", "cats"), ("2", "dogs")))

    def digest(*rows: Prediction) -> str:
        return evaluations.digest(Report("", CLASSES, {}, rows, Decision()))

    assert digest(one, other) == digest(other, one) != digest(one, replace(other, label="cats"))


def test_the_output_names_mistakes_and_the_difference_from_validation(
    images: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(images) == 0
    printed = capsys.readouterr()
    low, high = newcombe(9, 10, 6, 8)
    assert (
        "On these images the accuracy differs by -15.0 points from that on the 10 validation images (90.0 %)"
        in printed.out
    )
    assert (
        f"interval {100 * low:+.1f} to {100 * high:+.1f}" in printed.out
        and "not significantly different" in printed.out
    )
    mistakes = printed.out.partition("2 mistakes")[2].splitlines()[1:3]
    assert ["cats → dogs" in line for line in mistakes] == ["200.png" in line for line in mistakes]
    assert [float(line.split("%")[0]) for line in mistakes] == sorted(
        (float(line.split("%")[0]) for line in mistakes), reverse=True
    )
    assert "8 images evaluated, 0 files could not be used" in printed.err
    assert "no image type or outside the folders of classes: 1 file" in printed.err


def test_copies_are_named(images: Path, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(images) == 0 and "files are copies" not in capsys.readouterr().out
    shutil.copy(images / "cats" / "deep" / "40.png", images / "cats" / "deep" / "41.png")
    assert call(images) == 0
    expected = "1 of these 9 files are copies of others, such as cats/deep/41.png of cats/deep/40.png: these images"
    assert expected in capsys.readouterr().out.replace("\n", " ")


def test_images_of_the_run_are_recognized_by_content(
    images: Path, call: Call, run: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    hashes = {path.stem: sha256(path) for path in images.rglob("*/deep/*.png")}
    write_rows(run.manifest, [{"sha256": hashes[name], "split": "train"} for name in ("5", "200")])
    assert call(images) == 0
    out = capsys.readouterr().out
    assert "2 of these 8 images are training images of the run" in out and "Accuracy on the other 6: 83.3 %" in out
    run.earlier_training_images = lambda: {hashes["40"]}
    assert call(images) == 0
    out = capsys.readouterr().out
    assert "3 of these 8 images are training images of the run, or of one whose weights it began with, such as" in out
    run.earlier_training_images = set
    labels = {path.stem: path.parts[-3] for path in images.rglob("*/deep/*.png")}
    recorded = [Prediction("", sha, labels[name], "cats", 0.8, labels[name] == "cats", {"cats": 0.8, "dogs": 0.2})
                for name, sha in hashes.items()]  # fmt: skip
    run.predictions = lambda split: recorded
    write_rows(run.manifest, [{"sha256": "0" * 64, "split": "train"}])
    assert call(images) == 0
    assert "All 8 images are validation images of the run: the accuracy differs from the recorded one by +25.0" in (
        capsys.readouterr().out
    )
    run.predictions = lambda split: [prediction for prediction in recorded if prediction.label == "cats"]
    assert call(images) == 0
    assert "4 of these images are validation images of the run. On the 4 new images the accuracy differs by -25.0" in (
        capsys.readouterr().out
    )
    write_rows(run.manifest, [{"sha256": hashes[name], "split": "train"} for name in ("160", "210")])
    assert call(images) == 0
    assert "On the 2 new images the accuracy differs by -50.0" in capsys.readouterr().out
    write_rows(run.manifest, [{"sha256": sha, "split": "train"} for sha in hashes.values()])
    run.predictions = lambda split: [Prediction("", "", "cats", "cats", 0.8, True, {"cats": 0.8, "dogs": 0.2})] * 4
    assert call(images) == 0
    out = capsys.readouterr().out
    assert "All 8 images are training images of the run" in out and "differs" not in out


def test_files_that_cannot_be_used_are_recorded_and_the_exit_code_is_one(
    images: Path, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "dogs" / "broken.jpg").write_bytes(b"text")
    assert call(images, "--output", tmp_path / "out") == verb.SOME_FAILED
    (row,) = read_rows(tmp_path / "out" / "left_out.csv")
    assert row["path"] == "dogs/broken.jpg" and "is no JPEG" in row["reason"]
    assert "dogs/broken.jpg: is no JPEG" in capsys.readouterr().err
    assert len(read_rows(tmp_path / "out" / "predictions_evaluation.csv")) == 8
    assert call(images, "--output", tmp_path / "out") == 2  # is there already


def test_rows_of_a_table_that_cannot_be_used_are_recorded_as_files_are(
    images: Path, call: Call, tmp_path: Path
) -> None:
    """Of one class, whose images are in a class that training has merged into it; one file does not exist."""
    (images / "labels.csv").write_text("path,label\ncats/deep/5.png,tabbies\ncats/deep/40.png,cats\ngone.png,cats\n")
    assert call(images / "labels.csv", "--output", tmp_path / "out") == verb.SOME_FAILED
    (row,) = read_rows(tmp_path / "out" / "left_out.csv")
    assert row["path"] == "gone.png" and "no such file; it is on line 4 of labels.csv" in row["reason"]
    rows = read_rows(tmp_path / "out" / "predictions_evaluation.csv")
    assert [(row["path"], row["label"]) for row in rows] == [("cats/deep/40.png", "cats"), ("cats/deep/5.png", "cats")]


def test_a_place_that_cannot_be_written_is_an_error_before_the_model_is_read(
    images: Path, call: Call, run: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.model = lambda: pytest.fail("the model was read")
    (tmp_path / "file").touch()
    assert "cannot be written (File exists). Say where to write" in str(
        call(images, "--output", tmp_path / "file" / "a")
    )
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written (no permission, or a read-only disk)" in str(call(images))


def test_an_accuracy_can_be_required(images: Path, call: Call) -> None:
    assert call(images, "--must-reach", "0.75") == 0
    assert call(images, "--must-reach", "0.76") == verb.NOT_REACHED


@pytest.mark.parametrize(
    ("change", "options", "parts"),
    [
        (lambda root: save(root / "catz" / "a.png", 9), (), ("catz (1 images). Nearest: cats", "--ignore-unknown")),
        (lambda root: shutil.rmtree(root), (), ("does not exist",)),
        (lambda root: [shutil.rmtree(root / name) for name in CLASSES], (), ("no image of the model's classes",)),
        (lambda root: [save(root / "a.png", 9), *(shutil.rmtree(root / name) for name in CLASSES)], (),
         ("outside the folders of classes: ", "Allowed: a folder with a folder for each class, or a CSV file")),
        (lambda root: None, ("--split", "test"), ("--split", "no folder for test")),
        (lambda root: save(root / "Testing" / "cats" / "a.png", 9), (), ("choose one with --split. Allowed: test",)),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_an_error_before_any_work(
    images: Path, call: Call, run: SimpleNamespace, change: Any, options: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    change(images)
    message = str(call(images, *options))
    assert all(part in message for part in parts), message
    assert not (run.folder / "evaluations").exists()


def test_a_run_without_its_recorded_predictions_is_an_error_before_any_work(
    images: Path, call: Call, run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(split: str) -> list[Prediction]:
        raise ConfigError("there is no predictions_validation.csv")

    run.predictions = missing
    monkeypatch.setattr(evaluations, "hash_files", lambda *_: pytest.fail("files were hashed"))
    assert call(images) == "there is no predictions_validation.csv"


def test_mistakes_are_drawn_whatever_the_names_of_their_files(
    images: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.fsdecode(b"caf\xe9.png")  # Latin-1, not UTF-8
    for old, label in (("200.png", "cats"), ("30.png", "dogs")):
        (images / label / "deep" / old).rename(images / label / "deep" / name)
    drawn: dict[str, np.ndarray] = {}

    def figures(report: Report, pixels_of: Callable[[list[int]], np.ndarray]) -> dict[str, Figure]:
        rows = [at for at, prediction in enumerate(report.predictions) if not prediction.correct]
        drawn.update(zip((report.predictions[row].path for row in rows), pixels_of(rows), strict=True))
        return {}

    monkeypatch.setattr(evaluations, "report_figures", figures)
    assert call(images) == 0
    assert drawn.keys() == {f"{label}/deep/caf\\udce9.png" for label in CLASSES}, "as tables hold them"
    assert [image[0, 0].tolist() for image in drawn.values()] == [[200, 40, 90], [30, 40, 90]]


def test_evaluation_holds_the_pixels_of_a_few_batches(
    tmp_path: Path, run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, most, lock = weakref.WeakValueDictionary[int, np.ndarray](), 0, Lock()

    def read(path: str, size: int, settings: object) -> np.ndarray:
        nonlocal most
        pixels = np.full((size, size, 3), 9, "uint8")
        with lock:
            alive[id(pixels)] = pixels
            most = max(most, len(alive))
        return pixels

    monkeypatch.setattr(predict, "read_image", read)
    names = [f"{at}.png" for at in range(300)]
    for name in names:
        (tmp_path / name).write_text(name)
    labelled = labelled_images.LabelledFiles(tmp_path, tmp_path, [(name, "cats") for name in names], [])
    found = evaluations.evaluate(run, classifier(), labelled, 4, lambda _: None)  # type: ignore[arg-type]
    assert len(found.report.predictions) == 300
    assert most <= (predict.AHEAD + 1) * 4 + 2, "those decoded ahead and those that the network takes"


def test_splits_unknown_classes_and_names_that_look_the_same(images: Path) -> None:
    save(images / "catz" / "a.png", 9)
    found = labelled_images.find(images, (*CLASSES, "birds"), None, True)
    assert {name for _, name in found.files} == set(CLASSES) and len(found.files) == 8
    assert any("1 images of 1 classes" in note and "catz" in note for note in found.notes)
    assert "Without images: birds" in found.notes
    save(images.parent / "split" / "Val" / "cafe\u0301" / "a.png", 9)
    split = labelled_images.find(images.parent / "split", ("caf\u00e9", "tea"), "validation", False)
    assert split.files == [("cafe\u0301/a.png", "caf\u00e9")] and split.root.name == "Val"
    save(images.parent / "split" / "validation" / "tea" / "b.png", 9)
    with pytest.raises(ConfigError, match="several folders for validation: Val and validation"):
        labelled_images.find(images.parent / "split", ("caf\u00e9", "tea"), "validation", False)


def test_the_rows_of_a_table_are_evaluated(images: Path) -> None:
    table = images / "labels.csv"
    lines = [
        f"{name}/deep/{red}.png,{name},{'test' if red > 100 else 'train'}"
        for name, reds in REDS.items()
        for red in reds
    ]
    table.write_text("\n".join(["path,label,split", *lines]))
    found = labelled_images.find(table, CLASSES, None, False)
    assert sorted(found.files) == sorted((line.split(",")[0], line.split(",")[1]) for line in lines)
    found = labelled_images.find(table, CLASSES, "test", False)
    assert sorted(path for path, _ in found.files) == sorted(
        line.split(",")[0] for line in lines if line.endswith("test")
    )
    with pytest.raises(ConfigError, match=r"--split: .* has no rows of validation. Allowed here: train, test$"):
        labelled_images.find(table, CLASSES, "validation", False)
    table.write_text("\n".join(["path,label,split", *lines[-1:], "elsewhere.png,cats,test"]))
    found = labelled_images.find(table, CLASSES, "train", False)
    assert found.files == [("dogs/deep/30.png", "dogs")] and not found.issues, "of that split, though one class only"
    table.write_text("\n".join(["path,label", lines[0].rpartition(",")[0], f"{lines[0].split(',')[0]},dogs"]))
    with pytest.raises(ConfigError, match=r"cats/deep/5.png has two classes or splits, on lines 2 and 3"):
        labelled_images.find(table, CLASSES, None, False)
    table.write_text("where,what,why\na.png,cats,0")
    with pytest.raises(ConfigError, match="no column has a usual name.* found by their names, such as path and label"):
        labelled_images.find(table, CLASSES, None, False)


def test_a_trained_run_on_its_own_test_images_has_the_scores_that_it_recorded(
    ended: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["evaluate", str(ended.folder), str(drawn), "--split", "test", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as left:
        verb.main()
    assert left.value.code == 0
    recorded = json.loads((ended.folder / "metrics.json").read_text())
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(found) > 15
    for name, value in found.items():
        assert value == pytest.approx(recorded[name.replace("evaluation.", "test.")], abs=1e-4), name
    assert [row["predicted"] for row in read_rows(tmp_path / "out" / "predictions_evaluation.csv")] == [
        row["predicted"] for row in read_rows(ended.folder / "predictions_test.csv")
    ]
