"""The figures that a run writes to its directory."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.data.input_pipeline import image_batches
from experiments.data.types import Dataset, ImageSet
from experiments.evaluation import plots
from experiments.evaluation.evaluate import Report
from experiments.evaluation.training_checks import best_epoch
from experiments.training.types import RunComponents, TrainingResult


def save_figures(
    folder: Path, components: RunComponents, dataset: Dataset, result: TrainingResult, reports: Mapping[str, Report]
) -> None:
    """Write the figures of a run as PNG files; of a sweep's job only the curves, as the winner has all figures."""
    folder.mkdir(exist_ok=True)
    drawn = {}
    if result.history:
        best = best_epoch(result.history, components.config.monitor)
        drawn["learning_curves"] = plots.learning_curves(result.history, best)
    if "augmentation" not in components.config.regime.ignores and not components.config.sweep.job:
        drawn["augmented"] = augmented_sample(components, dataset)
    for split, report in reports.items() if not components.config.sweep.job else ():
        images = dataset.validation if split == "validation" else dataset.test
        assert images is not None
        drawn |= {
            f"{split}_confusion": plots.confusion_matrix(report, dataset.classes),
            f"{split}_roc": plots.roc(report, dataset.classes),
            f"{split}_mistakes": plots.mistakes(report, functools.partial(rows_of, images)),
        }
        if "calibration_error" in report.metrics:
            drawn[f"{split}_calibration"] = plots.calibration(report)
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=100)


def rows_of(images: ImageSet, rows: list[int]) -> np.ndarray:
    return images.pixels[rows]


def augmented_sample(components: RunComponents, dataset: Dataset) -> Figure:
    """Return a figure of the first augmented training images of epoch 0, as fresh augmentation produces them."""
    batches = image_batches(
        dataset.train,
        classes=len(dataset.classes),
        augmentation=components.augmentation,
        extra_layers=components.extra_layers,
        batch_size=18,
        seed=components.config.seed,
        epochs=range(1),
    )
    pixels, labels = next(iter(batches.dataset))
    titles = [plots.label_title(label, dataset.classes) for label in np.asarray(labels)]
    return plots.image_grid(np.asarray(pixels), titles)
