"""The figures that a run writes to its directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.data.input_pipeline import image_batches
from experiments.data.types import Dataset, ImageSet
from experiments.evaluation.evaluate import Report
from experiments.reports import plots
from experiments.reports.figure_style import save_figure
from experiments.training.types import EpochRecord, RunComponents


def save_figures(
    folder: Path, components: RunComponents, dataset: Dataset, history: Sequence[EpochRecord],
    best: EpochRecord | None, reports: Mapping[str, Report],
) -> None:  # fmt: skip
    """Write the figures of a run as PNG files; of a sweep's job only the curves, as the winner has all figures."""
    folder.mkdir(exist_ok=True)
    drawn = {"learning_curves": plots.learning_curves(history, best)} if history else {}
    if "augmentation" not in components.config.regime.ignores and not components.config.sweep.job:
        drawn["augmented"] = augmented_sample(components, dataset)
    for images in () if components.config.sweep.job else dataset.scored(test=True):
        if images.split in reports:
            drawn |= report_figures(reports[images.split], rows_of(images))
    for name, figure in drawn.items():
        (folder / f"{name}.png").write_bytes(save_figure(figure))


def report_figures(report: Report, pixels_of: Callable[[list[int]], np.ndarray]) -> dict[str, Figure]:
    """Return the figures of a report, by the names of their files without suffix; `pixels_of`: see `plots.mistakes`."""
    drawn = {"confusion": plots.confusion_matrix(report), "mistakes": plots.mistakes(report, pixels_of)}
    drawn |= plots.ranking(report)
    return {f"{report.split}_{name}": figure for name, figure in drawn.items()}


def rows_of(images: ImageSet) -> Callable[[list[int]], np.ndarray]:
    return lambda rows: images.pixels[rows]


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
