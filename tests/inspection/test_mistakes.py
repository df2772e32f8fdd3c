"""`inspect mistakes`: the mistakes that a run recorded, shown for unchanged images and with the run's own model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.cli import inspect
from experiments.config.schema import Config
from experiments.deploy import saved_run
from experiments.errors import ConfigError, DataError
from experiments.inspection import mistakes
from experiments.models.gradcam import overlay
from experiments.runs.predictions import mistakes as recorded_mistakes
from experiments.storage.csv_files import read_rows, write_rows


@pytest.fixture
def run(ended: Any, tmp_path: Path) -> saved_run.Trained:
    """The finished run, with three of its validation predictions made into mistakes."""
    folder = tmp_path / "run"
    shutil.copytree(ended.folder, folder)
    path = folder / "predictions_validation.csv"
    rows = read_rows(path)
    for at, row in enumerate(rows):
        wrong = at in (1, 4, 7)
        other = {"blobs": "stripes", "stripes": "blobs"}[row["predicted"]]
        row |= {"label": other if wrong else row["predicted"], "correct": str(not wrong)}
    write_rows(path, rows)
    return saved_run.find(str(folder))


def test_the_recorded_errors_are_shown_most_confident_first(run: saved_run.Trained) -> None:
    found = recorded_mistakes(run.predictions("validation"))
    assert len(found) == 3 and all(mistake.label != mistake.predicted for mistake in found)
    assert [mistake.confidence for mistake in found] == sorted((mistake.confidence for mistake in found), reverse=True)
    inspection = mistakes.inspect(run, split="validation", count=2, data=None)
    assert inspection.draw is not None
    figure = inspection.draw()
    titles = [panel.get_title() for panel in figure.axes]
    assert titles[0] == found[0].path.rsplit("/", 1)[-1] and len(titles) == 4
    assert f"{found[0].label} → {found[0].predicted} {found[0].confidence:.1%}" in titles[1].replace("\n", " ")
    assert "3 mistakes in 12 validation images, the 2 most confident" in figure.get_suptitle()
    (run.folder / "predictions_test.csv").unlink()  # type: ignore[operator]
    with pytest.raises(ConfigError, match="was not evaluated on its test images"):
        mistakes.inspect(run, split="test", count=2, data=None)


def test_names_are_printed_on_one_line(run: saved_run.Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.folder is not None
    path = run.folder / "predictions_validation.csv"
    write_rows(path, [row | {"path": f"{row['path']}\n 99.9%  blobs → stripes  x.png"} for row in read_rows(path)])
    monkeypatch.setattr(mistakes, "explain", lambda *arguments: [])
    lines = mistakes.inspect(run, split="validation", count=2, data=None).lines
    assert len(lines) == 3 and not any("\n" in str(line) for line in lines)


def test_a_image_that_has_changed_is_not_shown(run: saved_run.Trained, drawn: Path, tmp_path: Path) -> None:
    found = recorded_mistakes(run.predictions("validation"))
    moved = tmp_path / "moved"
    shutil.copytree(drawn, moved)
    (moved / found[0].path).write_bytes((moved / found[1].path).read_bytes())
    with pytest.raises(DataError, match=rf"{found[0].path}: has changed"):
        mistakes.explain(run, moved, found)
    (moved / found[0].path).unlink()
    with pytest.raises(DataError, match=rf"{found[0].path}: cannot be read"):
        mistakes.explain(run, moved, found)


def test_the_images_are_where_the_run_has_recorded_them(run: saved_run.Trained, drawn: Path, tmp_path: Path) -> None:
    """The configuration may name a folder relative to another directory, or a CSV file that is gone."""
    elsewhere = replace(run, plain={**run.plain, "data": {**run.plain["data"], "root": "relative/folder"}})
    assert elsewhere.data_root() == drawn and elsewhere.data_root(tmp_path) == tmp_path
    with pytest.raises(ConfigError, match=r"^--data does not exist"):
        run.data_root(tmp_path / "nothing")
    unrecorded = replace(run, facts={**run.facts, "data_root": None})
    assert unrecorded.data_root() == unrecorded.recorded_root == drawn
    elsewhere_by_environment = {**run.plain, "data": {**run.plain["data"], "root": "${oc.env:PLACE}"}}
    assert replace(unrecorded, plain=elsewhere_by_environment).recorded_root is None
    with pytest.raises(ConfigError, match=r"^data.root does not exist.*relative/folder"):
        replace(elsewhere, facts=unrecorded.facts).data_root()


def test_the_root_of_a_listing_is_that_of_its_paths(drawn: Path, tmp_path: Path, config: Callable[..., Config]) -> None:
    rows = [f"{path},{path.parent.name}" for path in sorted(drawn.glob("train/*/*.jpg"))]  # absolute paths
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    root = saved_run.source_root(config("data=csv", f"data.labels={tmp_path}/labels.csv"))
    assert root == drawn / "train"
    assert saved_run.source_root(config(f"data.root={drawn}", "data=folder")) == drawn


def test_images_that_have_moved_are_looked_for_without_tensorflow(run: saved_run.Trained) -> None:
    """TensorFlow took seconds, and wrote its first lines above the error."""
    assert run.folder is not None
    facts = run.folder / "run.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"data_root": "gone"}))
    code = (
        "import sys; from experiments.deploy import saved_run; print(saved_run.find(sys.argv[1]).data_root())\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.folder)], capture_output=True, text=True)
    assert done.stdout.splitlines() == [run.plain["data"]["root"], "[]"] and not done.stderr


def test_heat_changes_a_image_where_it_is_hot() -> None:
    pixels = np.full((1, 4, 4, 3), 90, "uint8")
    heat = np.zeros((1, 4, 4), "float32")
    heat[0, 0, 0] = 1
    laid = overlay(pixels, heat)
    assert laid.dtype == np.uint8 and (laid[0] == 90).all(axis=-1).sum() == 15 and laid[0, 0, 0].max() > 200
    heat[0, 3] = np.nan  # cut off
    assert (overlay(pixels, heat)[0, 3] == 200).all()


def test_the_command_writes_beside_the_run_wherever_the_images_are(
    run: saved_run.Trained,
    drawn: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "moved").symlink_to(drawn)
    command = ["experiments inspect", "mistakes", str(run.folder), "--count", "2", "--data", str(tmp_path / "moved")]
    monkeypatch.setattr("sys.argv", command)
    inspect.main()
    first, *reported, path = capsys.readouterr().out.splitlines()
    assert first == "run: 3 mistakes in 12 validation images" and len(reported) == 2
    assert Path(path) == run.folder / "figures" / "validation_gradcam.png"  # type: ignore[operator]
    assert Image.open(path).width > 400
