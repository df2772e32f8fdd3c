"""Comparison of searches on a recorded grid: the budget of a study, and the results that are reported to it."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
pytest.importorskip("optuna", reason="the extra `search` is not installed")

from benchmarks import search  # noqa: E402
from experiments.errors import ConfigError  # noqa: E402

EPOCHS = 10
RATES, HEADS = ("1e-4", "3e-4", "1e-3", "3e-3", "1e-2"), ("relu", "gelu")


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """A grid whose best is 1e-3 with gelu; its curves rise towards their scores, after a first phase of the head."""
    (tmp_path / "sweep.json").write_text(json.dumps({"objective": "accuracy", "command": "a command"}))
    for number, (rate, head) in enumerate(itertools.product(RATES, HEADS)):
        folder = tmp_path / str(number)
        folder.mkdir()
        top = 0.9 - 0.1 * abs(math.log10(float(rate)) + 3) - (0.02 if head == "relu" else 0)
        job = {"number": number, "values": {"optimizer.lr": rate, "head": head}, "overrides": [], "status": "FINISHED",
               "identity": f"job {number}"}  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job | {"folder": str(folder)}))
        (folder / "run.json").write_text(json.dumps({"command": {}, "status": "FINISHED", "identity": job["identity"]}))
        (folder / "metrics.json").write_text(json.dumps({"validation.accuracy": top}))
        (folder / "predictions_validation.csv").write_text(
            "path,sha256,label,predicted,correct,confidence,p_a,p_b\na,b,a,a,True,0.9,0.9,0.1\nc,d,b,b,True,0.9,0.1,0.9\n"
        )
        lines = ["step,phase,epoch,validation_accuracy,validation_loss", "0,head,0,0.1,0.9"]
        lines += [f"{at + 1},finetune,{at},{top * (at + 1) / EPOCHS},0" for at in range(EPOCHS)]
        (folder / "curves.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_recorded_grid_is_read_by_its_last_phase(grid: Path) -> None:
    read = search.read(grid)
    assert read.keys == ["head", "optimizer.lr"]
    assert read.levels == [["gelu", "relu"], list(RATES)], "numbers by size"
    best = read.found["gelu", "1e-3"]
    assert (best.score, best.epochs) == (0.9, EPOCHS)
    assert read.epochs == len(RATES) * len(HEADS) * EPOCHS


def test_studies_spend_no_more_than_their_epochs(grid: Path) -> None:
    read = search.read(grid)
    random = search.replay(read, "random", "none", 0, 3 * EPOCHS + 5)
    assert (random.trials, random.pruned) == (3, 0), "the fourth is not paid for, and has no score"
    for name, pruner, seed in itertools.product(("random", "tpe"), ("median", "hyperband"), range(3)):
        study = search.replay(read, name, pruner, seed, 60)
        assert study.epochs <= 60
        assert study == search.replay(read, name, pruner, seed, 60), "a study is repeatable"
        assert study.best in {found.score for found in read.found.values()}
    everything = search.replay(read, "random", "none", 0, 10**6)
    assert (everything.best, everything.trials, everything.epochs) == (0.9, 10, read.epochs), "twice drawn, once paid"


def test_the_comparison_counts_who_is_better(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search.main([str(grid), "--budget-epochs", "50", "--studies", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("seed ") == 2 and "TPE better in " in printed and " of 2" in printed


def test_a_grid_with_a_hole_is_refused(grid: Path) -> None:
    (grid / "4" / "run.json").write_text(json.dumps({"command": {}, "status": "KILLED"}))
    job = json.loads((grid / "4" / "job.json").read_text())
    (grid / "4" / "job.json").write_text(json.dumps(job | {"status": "PARTIAL"}))
    with pytest.raises(ConfigError, match="9 finished, 1 missing, such as relu 1e-3"):
        search.read(grid)
