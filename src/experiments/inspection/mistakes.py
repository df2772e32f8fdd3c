"""A run's most confident mistakes, with Grad-CAM heatmaps of the evidence for the predicted class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from experiments.data.pixel_cache import open_image
from experiments.deploy.export import probabilities
from experiments.deploy.saved_run import Trained
from experiments.images.decoder_settings import DecoderSettings, Resize
from experiments.images.resizing import fit, map_back, resize, thumbnail
from experiments.inspection.inspection import Inspection
from experiments.models.gradcam import gradcam, overlay
from experiments.models.network import inference_function
from experiments.reports import plots
from experiments.reports.figure_style import literal, short
from experiments.runs.predictions import Prediction, mistakes

COLUMNS = 6  # images in a row: three mistakes with their heatmaps
THUMBNAIL = 240  # pixels of the longer side of an image


class Shown(NamedTuple):
    """Mistakes with their pixels and heatmaps."""

    mistakes: Sequence[Prediction]
    thumbnails: Sequence[Image.Image]  # in their own proportions, the longer side of THUMBNAIL pixels
    pixels: np.ndarray  # [N, H, W, 3] uint8, as the model receives them
    heat: np.ndarray  # [N, H, W] float32 in [0, 1]: the evidence for the predicted class against the others
    resize: Resize  # how the images became these pixels
    difference: float  # the largest difference between the recorded confidences and those computed again


def inspect(run: Trained, *, split: str, count: int, data: Path | None) -> Inspection:
    """Show the images that a run got wrong with most confidence, with Grad-CAM heatmaps.

    Args:
        run: the finished run.
        split: "validation" or "test".
        count: how many mistakes to show at most.
        data: where the images are now; None for where they were.
    """
    config = run.config
    wrong, images = find(run, split)
    lines = [f"{run.name}: {len(wrong)} mistakes in {images} {split} images"]
    name, facts = f"{split}_gradcam", {"count": str(count)}
    if not wrong:
        return Inspection(config, name, lines, None)
    shown = explain(run, run.data_root(data), wrong[:count])
    for mistake in shown.mistakes:
        lines.append(f"{mistake.confidence:6.1%}  {mistake.label} → {mistake.predicted}  {mistake.path}")
    if shown.difference > 0.01:
        lines.append(f"the model as it is read now differs from what the run recorded by up to {shown.difference:.1%}")
    return Inspection(config, name, lines, lambda: draw(run, split, shown, len(wrong), images), facts)


def find(run: Trained, split: str) -> tuple[list[Prediction], int]:
    """Return the wrong predictions that a run has recorded, most confident first, and the number of all predictions.

    Raises:
        ConfigError: the run has no predictions for this split.
    """
    rows = run.predictions(split)
    return mistakes(rows), len(rows)


def explain(run: Trained, root: Path, mistakes: Sequence[Prediction]) -> Shown:
    """Read the images of mistakes again and compute Grad-CAM heatmaps for the predicted classes with the run's model.

    Args:
        run: the finished run.
        root: the folder that the paths of its images are relative to.
        mistakes: at least one.

    Raises:
        ConfigError: the model cannot be read, or Grad-CAM does not support it.
        DataError: images are missing or are not those of the run.
    """
    settings, size = DecoderSettings.of(run.plain["data"]), run.config.data.image_size
    thumbnails, resized = [], []
    for mistake in mistakes:
        image = open_image(root, mistake.path, mistake.sha256, settings)
        thumbnails.append(thumbnail(image, THUMBNAIL))
        resized.append(resize(image, size, settings.resize))
    model, pixels = run.model(), np.stack(resized)
    predicted = np.array([run.classes.index(mistake.predicted) for mistake in mistakes])
    confidences = probabilities(inference_function(model), pixels)[np.arange(len(predicted)), predicted]
    recorded = np.array([mistake.confidence for mistake in mistakes])
    difference = float(np.abs(confidences - recorded).max())
    return Shown(mistakes, thumbnails, pixels, gradcam(model, pixels, predicted), settings.resize, difference)


def draw(run: Trained, split: str, shown: Shown, wrong: int, images: int) -> Figure:
    """Draw each mistake beside the same image with its heatmap, both in the proportions of the file.

    Args:
        wrong: the number of all mistakes of the split.
        images: the number of all images of the split.
    """
    grid, titles = [], []
    for mistake, image, heat in zip(shown.mistakes, shown.thumbnails, shown.heat, strict=True):
        heated = Image.fromarray(overlay(np.asarray(image), map_back(heat, image.size, shown.resize)))
        grid += [np.asarray(fit(shown, THUMBNAIL, "white")) for shown in (image, heated)]
        name = mistake.path.rsplit("/", 1)[-1]
        titles += [
            short(name),
            f"{short(mistake.label)} → {short(mistake.predicted)} {mistake.confidence:.1%}"
            + ("" if heat.any() else "\nno evidence"),
        ]
    figure = plots.image_grid(np.stack(grid), titles, columns=COLUMNS)
    which = "" if len(shown.mistakes) == wrong else f", the {len(shown.mistakes)} most confident"
    figure.suptitle(
        f"{literal(short(run.name, 60))}: {wrong} mistakes in {images} {split} images{which}\n"
        "true → predicted; bright: what speaks for the predicted class against the others (Grad-CAM)",
        fontsize=10,
    )
    return figure
