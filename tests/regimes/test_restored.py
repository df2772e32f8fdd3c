"""A run that evaluates the weights of a finished one has the numbers of that run, test scores among them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest

SMALL = (
    "model.head.pooling=average", "batch_size=4", "model.weights=null", "regime.head_epochs=2", "epochs=2",
    "tracking=none", "progress=none",
)  # fmt: skip


def read(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8")


@pytest.mark.slow  # a regime of one's own is in test_declaration.py, whole sweeps with their winners in tests/sweeps
@pytest.mark.parametrize("regime, unfrozen", [("scratch", 1), ("bottleneck", 1), ("finetune", 1), ("finetune", "all")])
def test_the_weights_of_a_job_give_the_scores_that_training_gives(
    regime: str,
    unfrozen: int | str,
    run_here: Callable[..., None],
    here: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("experiments.run.save_figures", lambda *_: None)
    given = (*here, *SMALL, f"regime={regime}", *([f"regime.unfrozen_blocks={unfrozen}"] * (regime == "finetune")))
    trained, evaluated = tmp_path / "trained", tmp_path / "evaluated"
    run_here(*given, f"hydra.run.dir={trained}", "sweep.job=true")
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("trained once more"))
    run_here(*given, f"hydra.run.dir={evaluated}", f"sweep.trained={trained}")
    for name in ("metrics.json", "predictions_test.csv", "predictions_validation.csv", "curves.csv"):
        assert read(evaluated, name) == read(trained, name), name
    assert "test.accuracy" in json.loads(read(evaluated, "metrics.json"))
    assert (evaluated / "weights" / "backbone.weights.h5").is_file(), "the whole model is kept"


def test_the_weights_of_another_run_are_refused(
    run_here: Callable[..., None], here: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(SystemExit, match=r"sweep\.trained: must be the folder of a finished run with the identity"):
        run_here(*here, *SMALL, f"sweep.trained={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}")


def test_a_run_without_the_weights_that_it_has_trained_is_not_continued(
    ended: Any, run_here: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the head is not trained further on the backbone as it was before the fine-tuning."""
    folder = Path(shutil.copytree(ended.folder, tmp_path / "copy"))
    shutil.rmtree(folder / "checkpoints")
    (folder / "weights" / "backbone.weights.h5").unlink()
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(SystemExit, match=r"continue: no such file\. Received: .*copy/weights/backbone\.weights\.h5"):
        run_here(f"continue={folder}", "epochs=5", "tracking=none", f"hydra.run.dir={tmp_path / 'longer'}")
