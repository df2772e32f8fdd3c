"""Batch normalisation from scratch: a short training is validated with statistics of its own images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import keras
import pytest

from experiments.regimes.scratch import follow_batches
from experiments.storage.csv_files import read_rows

Run = Callable[..., None]


def momenta(momentum: float | None, steps: int) -> list[float]:
    """The momenta of a nested network's two layers, of 0.99 and 0.9 of their own."""
    inner = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(momentum=0.99)])
    model = keras.Sequential([keras.Input((2,)), inner, keras.layers.BatchNormalization(momentum=0.9)])
    follow_batches(model, momentum, steps)
    return [inner.layers[0].momentum, model.layers[1].momentum]


def test_the_momentum_fits_the_steps_of_the_training() -> None:
    assert momenta(None, 100_000) == [0.99, 0.9]  # the network's own
    assert momenta(None, 1000) == [0.98, 0.9]
    assert momenta(None, 100) == pytest.approx([0.8, 0.8])
    assert momenta(None, 10) == [0.0, 0.0]
    assert momenta(0.95, 10) == [0.95, 0.95]


def accuracies(folder: Path) -> tuple[float, float]:
    """The best training accuracy of a run, and its final validation accuracy."""
    best = max(float(row["accuracy"]) for row in read_rows(folder / "curves.csv"))
    return best, float(json.loads((folder / "metrics.json").read_text())["validation.accuracy"])


@pytest.mark.slow
def test_what_fits_its_training_images_reads_above_chance_on_validation(
    here: tuple[str, ...], run_here: Run, tmp_path: Path
) -> None:
    common = (
        *here, "model=mobilenet_v2", "model.weights=null", "regime=scratch", "augmentation=none", "optimizer=adam",
        "epochs=20", "batch_size=8", "evaluate.test=false", "tracking=none", "progress=none", "model.head.dropout=0",
    )  # fmt: skip
    run_here(*common, f"hydra.run.dir={tmp_path / 'fits'}")
    run_here(*common, f"hydra.run.dir={tmp_path / 'lags'}", "regime.batch_norm_momentum=0.999")
    trained, validated = accuracies(tmp_path / "fits")
    assert trained >= 0.9 and validated >= 0.75
    trained, validated = accuracies(tmp_path / "lags")
    assert trained >= 0.9 and validated <= 0.6, "or this tests nothing"
