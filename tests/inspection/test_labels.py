"""`inspect labels`: the labels that a run, or the runs of several folds, doubt most."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.cli import inspect
from experiments.deploy import saved_run
from experiments.errors import ConfigError, DataError
from experiments.inspection import labels
from experiments.runs import candidate_runs
from experiments.storage.csv_files import read_rows, write_rows
from experiments.system.progress import Terminal


def copied(ended: Any, folder: Path, shares: dict[int, tuple[float, float]]) -> saved_run.Trained:
    """Return a copy of the finished run with other probabilities (of blobs, of stripes) for some validation images."""
    shutil.copytree(ended.folder, folder)
    path = folder / "predictions_validation.csv"
    rows = read_rows(path)
    for at, (blobs, stripes) in shares.items():
        rows[at] |= {"p_blobs": str(blobs), "p_stripes": str(stripes)}
    write_rows(path, rows)
    return saved_run.find(str(folder))


def test_a_run_lists_validation_and_training_images(
    ended: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(ended, tmp_path / "run", {0: (0.01, 0.99)})  # the first validation image is labelled blobs
    monkeypatch.setattr("sys.argv", ["inspect", "labels", str(run.folder), "--count", "5"])
    inspect.main()
    assert run.folder
    rows = read_rows(run.folder / "figures" / "labels.csv")
    assert (run.folder / "figures" / "labels.png").stat().st_size > 5000
    assert [row["split"] for row in rows].count("train") == 24 and len(rows) == 36
    first = rows[0]
    assert (first["label"], first["likely"], float(first["self_confidence"])) == ("blobs", "stripes", 0.01)
    assert (first["held_out"], first["probably_wrong"]) == ("True", "True")
    assert {row["held_out"] for row in rows if row["split"] == "train"} == {"False"}
    confidences = [float(row["self_confidence"]) for row in rows]
    assert confidences == sorted(confidences)
    printed = capsys.readouterr().out
    assert "12 validation images, by a model not trained on them" in printed
    assert "24 training images, by the run's own model, which was trained on their labels" in printed
    assert "  1.0%  blobs, rather stripes 99.0%" in printed


def test_folds_of_a_sweep_are_averaged_and_no_training_image_is_needed(
    ended: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    # Two folds of the winner, its final run, and a fold of another candidate.
    shares = (0.1, 0.3, 0.05, 0.9)
    runs = [copied(ended, sweep / str(at), {0: (share, 1 - share)}) for at, share in enumerate(shares)]
    (sweep / "sweep.json").write_text(json.dumps({"objective": "accuracy", "parent": None}))
    for at, run in enumerate(runs):
        assert run.folder
        job = {
            "number": at, "final": at == 2, "overrides": [],
            "values": {"optimizer.lr": str(at // 3)} | ({"data.fold": str(at % 3)} if at != 2 else {}),
            "folder": str(run.folder), "status": "FINISHED",
            "identity": json.loads((run.folder / "run.json").read_text())["identity"],
        }  # fmt: skip
        (run.folder / "job.json").write_text(json.dumps(job))
    monkeypatch.setattr("sys.argv", ["inspect", "labels", str(sweep)])
    inspect.main()
    rows = read_rows(sweep / "figures" / "labels.csv")
    assert len(rows) == 12 and {row["held_out"] for row in rows} == {"True"}
    assert float(rows[0]["self_confidence"]) == pytest.approx(0.15), "the final run rates its validation images, too"
    printed = capsys.readouterr().out
    assert "12 images, each by models not trained on it, of 3 runs of one candidate" in printed
    assert "24 training images are not rated: no finished run validates with them" in printed
    monkeypatch.setattr("sys.argv", ["inspect", "labels", str(sweep / "3")])
    inspect.main()
    found = {row["path"]: float(row["self_confidence"]) for row in read_rows(sweep / "figures" / "labels.csv")}
    assert found[rows[0]["path"]] == pytest.approx(0.9), "by the runs of that job's candidate"
    for path in sweep.glob("*/job.json"):
        job = json.loads(path.read_text())
        path.write_text(json.dumps({**job, "values": {"optimizer.lr": job["values"]["optimizer.lr"]}}))
    alone = candidate_runs.of_candidate(sweep, {"optimizer.lr": "0"})
    assert [run.directory.folder.name for run in alone] == ["0", "1"], "without folds a final run has their images"


def test_what_cannot_be_listed(ended: Any, tmp_path: Path, drawn: Path) -> None:
    run = copied(ended, tmp_path / "run", {})
    moved = tmp_path / "moved"
    shutil.copytree(drawn, moved)
    (moved / run.images()[0]["path"]).unlink()
    with pytest.raises(DataError, match=r"cannot be read.*--data FOLDER"):
        labels.inspect([run], sweep=None, count=3, data=moved, progress=Terminal(Console(quiet=True)))
    path = tmp_path / "run" / "predictions_validation.csv"
    write_rows(path, [{name: row[name] for name in row if not name.startswith("p_")} for row in read_rows(path)])
    with pytest.raises(ConfigError, match="no labels and probabilities of blobs, stripes"):
        labels.held_out([run])
