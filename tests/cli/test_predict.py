"""`experiments predict`: the files that are read, and the predictions and errors as text, CSV and JSON."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from red_classifier import classifier, expected, save
from rich.cells import cell_len

from experiments.cli import predict as verb
from experiments.deploy import prediction_writers as writers
from experiments.deploy import saved_run
from experiments.deploy.predict import FilePrediction, list_files, predictions
from experiments.errors import ConfigError, DataError
from experiments.evaluation.calibration import TEMPERATURE, arrays_of, fit_temperature, scale
from experiments.evaluation.decision import Decision
from experiments.images.decoder_settings import DEFAULTS
from experiments.runs import predictions as runs
from experiments.storage.csv_files import read_rows

Call = Callable[..., int | str | None]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Four images in two folders, three files that are none, hidden ones."""
    root = tmp_path / "files"
    for at, name in enumerate(("a.png", "b.jpg", "deep/er/c.PNG", "deep/d.bmp")):
        save(root / name, 20 + 70 * at)
    (root / "e.jpg").write_bytes(b"")
    (root / "f.jpg").write_bytes((root / "b.jpg").read_bytes()[:200])
    (root / "deep" / "g.png").write_text("<html>")
    (root / "notes.txt").write_text("of no image type")
    for hidden in (".h.jpg", ".cache/i.jpg", "__MACOSX/j.jpg"):
        save(root / hidden, 9)
    return root


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command on a model of our own; its exit code."""
    plain_run = SimpleNamespace(
        classes=("cats", "dogs"),
        model=classifier,
        decoder_settings=DEFAULTS,
        decision=Decision(),
        gives_probabilities=True,
    )

    def start(*arguments: str | Path, run: SimpleNamespace = plain_run) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(saved_run, "find", lambda named, uri: run)
            patch.setattr(sys, "argv", ["experiments predict", "some-run", *map(str, arguments)])
            with pytest.raises(SystemExit) as left:
                verb.main()
        return left.value.code  # type: ignore[return-value]

    return start


def test_folders_patterns_and_files_are_listed_once_and_in_order(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "deep" / "loop").symlink_to(files)
    found, others = list_files([str(files)])
    (files / "deep" / "loop").unlink()
    assert [os.path.relpath(path, files) for path in found] == [
        "a.png", "b.jpg", "e.jpg", "f.jpg", "deep/d.bmp", "deep/g.png", "deep/er/c.PNG",
    ]  # fmt: skip
    assert others == 1
    monkeypatch.chdir(files)
    assert list_files(["deep/d.bmp", "*.jpg", "b.jpg"])[0] == ["deep/d.bmp", "b.jpg", "e.jpg", "f.jpg"]
    assert list_files(["**/*.PNG", "notes.txt"])[0] == ["deep/er/c.PNG", "notes.txt"]
    assert list_files(["a.png", "deep", "a*.png", "dee*"])[0] == ["a.png", *list_files(["deep"])[0]], "listed before"
    assert list_files([".h.jpg"])[0] == [".h.jpg"]  # named
    (files / "[1].png").write_bytes((files / "a.png").read_bytes())
    assert list_files(["[1].png"])[0] == ["[1].png"]


def test_what_is_not_there_is_reported_at_once(files: Path) -> None:
    (files / "empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        list_files([str(files / "nothing"), str(files / "*.gif"), str(files / "empty"), str(files / "a.png")])
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "nothing: no such file or folder" in lines[0] and "*.gif: no file fits" in lines[1]
    assert "empty: no image (.jpg" in lines[2]


def test_a_folder_that_cannot_be_listed_is_an_error(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def denied(path: str) -> object:
        if str(path).endswith("er"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match=r"deep/er: cannot be listed \(Permission denied\)"):
        list_files([str(files)])


def test_wrong_arguments_import_no_tensorflow(tmp_path: Path) -> None:
    code = (
        "import sys; from experiments.cli import predict\n"
        "try: predict.main()\n"
        "finally: print(sorted({'tensorflow', 'keras'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(tmp_path / "none")], capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 1 and "none: no such file or folder" in done.stderr and done.stderr.startswith("[]")


def test_csv_holds_every_file_and_its_fault(files: Path, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    output = files.parent / "out.csv"
    assert call(files, "--output", output, "--batch-size", 2) == verb.SOME_FAILED
    rows = read_rows(output)
    assert list(rows[0]) == ["path", "class", "probability", "p_cats", "p_dogs", "error"]
    assert [row["path"] for row in rows] == list_files([str(files)])[0]
    for row in rows:
        if row["error"]:
            assert Path(row["path"]).name in ("e.jpg", "f.jpg", "g.png") and row["class"] == row["p_dogs"] == ""
        else:
            shares = expected(Path(row["path"]).read_bytes())[0]
            np.testing.assert_allclose([float(row["p_cats"]), float(row["p_dogs"])], shares, atol=1e-6)
            assert row["class"] == ("cats", "dogs")[shares.argmax()]
            assert float(row["probability"]) == pytest.approx(shares.max(), abs=1e-6)
    shown = capsys.readouterr()
    assert shown.out == "" and "4 images predicted, 3 files could not be used" in shown.err
    assert "Passed over in these folders, as of no image type: 1 file\n" in shown.err


def test_json_is_an_object_a_line(files: Path, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(files / "a.png", files / "e.jpg", "--format", "json") == verb.SOME_FAILED
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert good["class"] == "cats" and good["probability"] == good["probabilities"]["cats"] > 0.5
    assert sum(good["probabilities"].values()) == pytest.approx(1)
    assert bad == {"path": str(files / "e.jpg"), "error": "is empty"}


def test_a_terminal_shows_a_line_each_and_faults_apart(
    files: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(files / "a.png", files / "deep" / "d.bmp") == 0
    assert call(files / "f.jpg", files / "deep" / "d.bmp") == verb.SOME_FAILED
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("cats") and lines[0].endswith("a.png")
    assert f"dogs  {expected((files / 'deep' / 'd.bmp').read_bytes()).max():6.1%}  " in lines[1]
    assert "f.jpg: is cut short" in shown.err or "f.jpg: cannot be decoded" in shown.err


def test_a_file_appears_whole_or_not_at_all(
    files: Path, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "rows.json"
    output.parent.mkdir()
    output.write_text("before")

    def fails(*arguments: object) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setitem(writers.WRITERS, "json", fails)
        assert call(files / "a.png", "--output", output) == "the disk is gone"
    assert output.read_text() == "before" and list(output.parent.iterdir()) == [output]
    assert call(files / "a.png", "--output", output) == 0
    assert json.loads(output.read_text())["class"] == "cats" and list(output.parent.iterdir()) == [output]


def test_an_image_is_not_replaced_by_predictions(files: Path, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    content = (files / "a.png").read_bytes()
    assert call(files / "b.jpg", "--output", files / "a.png") == 2, "as of --output *, which the shell expands"
    assert "--output: has the name of an image" in capsys.readouterr().err and (files / "a.png").read_bytes() == content


@pytest.mark.parametrize(
    "arguments",
    [("--format", "xml"), ("--batch-size", "0"), ("--output", "no/such/folder/x.csv"), ("--output", "."),
     ("--output", "/dev/null")],
)  # fmt: skip
def test_wrong_options_are_reported(call: Call, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("x.jpg", *arguments) == 2
    assert arguments[0] in capsys.readouterr().err


def test_predictions_keep_their_order_whatever_fails(tmp_path: Path) -> None:
    paths = []
    for n in range(25):
        path = save(tmp_path / f"{n:02}.png", 10 * n)
        if n % 3 == 0 or 6 < n < 20:
            path.write_bytes(b"text")
        paths.append(str(path))
    os.mkfifo(tmp_path / "pipe.png")
    paths.append(str(tmp_path / "pipe.png"))
    for batch_size in (1, 4, 32):
        reported = [prediction for some in predictions(classifier(), iter(paths), batch_size) for prediction in some]
        assert [prediction.path for prediction in reported] == paths
        for given, prediction in zip(paths[:-1], reported, strict=False):
            if prediction.probabilities is None:
                assert prediction.error.startswith("is no JPEG") and Path(given).read_bytes() == b"text"
            else:
                np.testing.assert_allclose(prediction.probabilities, expected(Path(given).read_bytes())[0], atol=1e-6)
        assert reported[-1].error == "is not a regular file"


def test_files_are_read_only_so_far_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with their number: no more is decoded than a few batches before the next is asked for."""
    content = io.BytesIO()
    Image.new("RGB", (20, 20)).save(content, "PNG")
    (tmp_path / "a.png").write_bytes(content.getvalue())
    asked = 0

    def many() -> object:
        nonlocal asked
        for _ in range(5000):
            asked += 1
            yield str(tmp_path / "a.png")

    reported: Any = predictions(classifier(), many(), 2)  # type: ignore[arg-type]
    next(reported)
    next(reported)
    assert asked < 30
    reported.close()


def test_names_in_csv_are_what_they_are_and_on_a_terminal_are_shown(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["=cmd().png", "a\nb.png", "a\rb.png", 'q",;x.png', "\x1b[31mx.png", "x?token=secret.png", "[red]y.png"]
    for name in names:
        save(tmp_path / "in" / name, 200)
    output = tmp_path / "out.csv"
    assert call(tmp_path / "in", "--output", output) == 0
    paths = [Path(row["path"]) for row in read_rows(output)]
    assert {path.name for path in paths} == {*names} and {path.parent for path in paths} == {tmp_path / "in"}
    assert b"\r\n" not in output.read_bytes()
    capsys.readouterr()
    assert call(tmp_path / "in") == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(names) and "\x1b" not in out and "\r" not in out
    assert "[red]y.png" in out and "a\\nb.png" in out


def test_class_names_on_a_terminal_stand_in_columns(tmp_path: Path) -> None:
    file = io.StringIO()
    write = writers.terminal_rows(file, writers.Answers(("n" * 200, "d\x1b]0;t\x07", "猫"), Decision()))
    for at in range(3):
        write(FilePrediction("a.png", np.eye(3)[at], ""))
    lines = file.getvalue().splitlines()
    assert [line[-5:] for line in lines] == ["a.png"] * 3 and "\x1b" not in file.getvalue()
    assert {cell_len(line) for line in lines} == {writers.LONGEST + len("  100.0%  a.png")}


def validation(confidences: Sequence[tuple[float, bool]]) -> list[runs.Prediction]:
    """Predictions of cats with these confidences, right or wrong."""
    return [
        runs.Prediction(
            "", "", "cats" if correct else "dogs", "cats", share, correct, {"cats": share, "dogs": 1 - share}
        )
        for share, correct in confidences
    ]


@pytest.fixture
def trained() -> SimpleNamespace:
    """A run with six validation images, whose two least confident answers are wrong."""
    rows = validation([(0.99, True), (0.95, True), (0.8, True), (0.8, True), (0.7, False), (0.6, False)])
    return SimpleNamespace(
        name="some-run", classes=("cats", "dogs"), model=classifier, gives_probabilities=True, metrics={},
        decoder_settings=DEFAULTS, predictions=lambda split: rows, decision=Decision(),
    )  # fmt: skip


def test_images_of_low_confidence_are_rejected_with_their_probability(
    tmp_path: Path, call: Call, trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    for red in (10, 100, 130, 250):
        save(tmp_path / "in" / f"{red:03}.png", red)
    out = tmp_path / "out.csv"
    assert call(tmp_path / "in", "--output", tmp_path / "plain.csv", run=trained) == 0
    assert call(tmp_path / "in", "--output", out, "--reject", "1", run=trained) == 0
    plain, rows = read_rows(tmp_path / "plain.csv"), read_rows(out)
    answers = ["none" if float(row["probability"]) < 0.8 else row["class"] for row in plain]
    assert [row["class"] for row in rows] == answers == ["cats", "none", "none", "dogs"]
    assert [{**row, "class": ""} for row in rows] == [{**row, "class": ""} for row in plain]
    printed = capsys.readouterr().err
    assert "of 6 validation images it answers 4 (66.7 %), and 4 of those correctly: 100.0 %" in printed
    assert f"4 images predicted ({answers.count('none')} of them as none)" in printed
    assert call(tmp_path / "in", "--reject", "1", run=trained) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == answers
    assert call(tmp_path / "in", "--reject", "1", "--format", "json", run=trained) == 0
    assert [json.loads(line)["class"] for line in capsys.readouterr().out.splitlines()] == answers


def test_calibrated_probabilities_are_those_of_the_recorded_or_fitted_temperature(
    tmp_path: Path, call: Call, trained: SimpleNamespace
) -> None:
    save(tmp_path / "a.png", 100)
    fitted = fit_temperature(*arrays_of(trained.predictions("validation")))
    assert fitted is not None
    for metrics, temperature in (({TEMPERATURE: 2.0}, 2.0), ({}, fitted)):
        trained.metrics = metrics
        assert call(tmp_path / "a.png", "--output", tmp_path / "a.csv", "--calibrated", run=trained) == 0
        (row,) = read_rows(tmp_path / "a.csv")
        given = scale(expected((tmp_path / "a.png").read_bytes()), temperature)[0]
        np.testing.assert_allclose([float(row["p_cats"]), float(row["p_dogs"])], given, atol=1e-6)


def test_calibrated_confidences_are_compared_with_a_calibrated_threshold_and_classes_stay(
    tmp_path: Path, call: Call, trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.metrics = {TEMPERATURE: 2.0}
    for red in (10, 100, 130, 250):
        save(tmp_path / "in" / f"{red:03}.png", red)
    both = ("--calibrated", "--reject", "1")
    assert call(tmp_path / "in", "--output", tmp_path / "out.csv", *both, run=trained) == 0
    (low, high) = scale(np.array([[0.7, 0.3], [0.8, 0.2]]), 2.0)[:, 0]
    assert f"Threshold {(low + high) / 2:.4g}: of 6 validation images it answers 4" in capsys.readouterr().err
    rows = read_rows(tmp_path / "out.csv")
    assert [row["class"] == "none" for row in rows] == [float(row["probability"]) < (low + high) / 2 for row in rows]
    assert [row["class"] for row in rows] == ["cats", "none", "none", "dogs"]
    trained.decision = Decision("dogs", 0.85)  # of the probabilities that the run was evaluated with
    assert call(tmp_path / "in", "--output", tmp_path / "plain.csv", run=trained) == 0
    assert call(tmp_path / "in", "--output", tmp_path / "scaled.csv", "--calibrated", run=trained) == 0
    plain, scaled = read_rows(tmp_path / "plain.csv"), read_rows(tmp_path / "scaled.csv")
    assert [row["class"] for row in plain] == [row["class"] for row in scaled] == ["cats", "cats", "cats", "dogs"]
    assert all(float(row["p_dogs"]) < 0.85 for row in scaled)


@pytest.mark.parametrize(
    ("options", "changes", "part"),
    [
        (("--reject", "0.9"), {"predictions": lambda split: validation([(0.9, False), (0.8, True)])}, "is 50.0 %"),
        (("--reject", "0.9"), {"classes": ("cats", "none")}, "a class called 'none'"),
        (
            ("--calibrated",),
            {"predictions": lambda split: validation([(0.9, True)])},
            "all validation images correctly",
        ),
        (("--calibrated",), {"gives_probabilities": False}, "hinge"),
    ],
)
def test_what_cannot_be_rejected_or_calibrated_is_an_error(
    tmp_path: Path, call: Call, trained: SimpleNamespace, options: tuple[str, ...], changes: dict[str, Any], part: str
) -> None:
    trained.__dict__.update(changes)
    assert part in str(call(save(tmp_path / "a.png", 100), *options, run=trained))


def test_scores_of_a_hinge_loss_are_not_given_as_probabilities(
    tmp_path: Path, call: Call, trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(save(tmp_path / "a.png", 100), run=trained) == 0 and "hinge" not in capsys.readouterr().err
    trained.gives_probabilities = False
    assert call(save(tmp_path / "a.png", 100), run=trained) == 0
    assert "a score that only ranks images" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["0", "1.5", "99%", "nan"])
def test_the_wanted_accuracy_is_a_share(call: Call, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("x.jpg", "--reject", given) == 2
    assert f"Received: {given!r}" in capsys.readouterr().err.replace("%%", "%")
