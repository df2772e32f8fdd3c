"""The figures that a run writes to its directory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.data.input_pipeline import image_batches
from experiments.data.types import Dataset, ImageSet
from experiments.evaluation.evaluate import Report
from experiments.evaluation.training_checks import best_epoch
from experiments.reports import plots
from experiments.training.types import RunComponents, TrainingResult


def save_figures(
    folder: Path, components: RunComponents, dataset: Dataset, result: TrainingResult, reports: Mapping[str, Report],
    first: int = 0,
) -> None:  # fmt: skip
    """Write the figures of a run as PNG files; of a sweep's job only the curves, as the winner has all figures."""
    folder.mkdir(exist_ok=True)
    drawn = {}
    if result.history:
        best = best_epoch(result.history, components.config.monitor, first)
        drawn["learning_curves"] = plots.learning_curves(result.history, best)
    if "augmentation" not in components.config.regime.ignores and not components.config.sweep.job:
        drawn["augmented"] = augmented_sample(components, dataset)
    for split, report in reports.items() if not components.config.sweep.job else ():
        images = dataset.validation if split == "validation" else dataset.test
        assert images is not None
        drawn |= report_figures(report, functools.partial(rows_of, images))
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=100)


def report_figures(report: Report, pixels_of: Callable[[list[int]], np.ndarray]) -> dict[str, Figure]:
    """Return the figures of a report, by the names of their files without suffix; `pixels_of`: see `plots.mistakes`."""
    drawn = {"confusion": plots.confusion_matrix(report), "mistakes": plots.mistakes(report, pixels_of)}
    drawn |= plots.ranking(report)
    return {f"{report.split}_{name}": figure for name, figure in drawn.items()}


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
