"""A run's most confident mistakes, with Grad-CAM heatmaps of the evidence for the predicted class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from experiments.data.issues import printable
from experiments.data.pixel_cache import open_image
from experiments.deploy.saved_run import Trained
from experiments.images.resizing import fit, map_back, resize, thumbnail
from experiments.inspection.inspection import Inspection
from experiments.models.gradcam import gradcam, overlay
from experiments.reports import plots
from experiments.reports.figure_style import literal, short
from experiments.runs.predictions import Prediction, mistakes

THUMBNAIL = 240  # pixels of the longer side of an image


class Explained(NamedTuple):
    """A mistake, with its image in the proportions of the file, the longer side of THUMBNAIL pixels."""

    mistake: Prediction
    image: Image.Image
    heated: Image.Image  # the same, with the evidence for the predicted class against the others
    has_evidence: bool


def inspect(run: Trained, *, split: str, count: int, data: Path | None) -> Inspection:
    """Show at most `count` images that a run got wrong with most confidence, with Grad-CAM heatmaps."""
    rows = run.predictions(split)
    wrong = mistakes(rows)
    counts = f"{len(wrong)} mistake{'' if len(wrong) == 1 else 's'} in {len(rows)} {split} images"
    lines = [f"{run.name}: {counts}"]
    name, facts = f"{split}_gradcam", {"count": str(count)}
    if not wrong:
        return Inspection(run.config, name, lines, None)
    shown = explain(run, run.data_root(data), wrong[:count])
    for mistake in wrong[:count]:
        names = f"{printable(mistake.label)} → {printable(mistake.predicted)}"
        lines.append(f"{mistake.confidence:6.1%}  {names}  {printable(mistake.path)}")
    which = "" if len(shown) == len(wrong) else f", the {len(shown)} most confident"
    title = f"{literal(short(run.name, 60))}: {counts}{which}"
    return Inspection(run.config, name, lines, lambda: draw(shown, title), facts)


def explain(run: Trained, root: Path, mistakes: Sequence[Prediction]) -> list[Explained]:
    """Read the images of mistakes again and compute Grad-CAM heatmaps for the predicted classes.

    Raises:
        ConfigError: the model cannot be read, or Grad-CAM does not support it.
        DataError: images are missing or are not those of the run.
    """
    settings, size = run.decoder_settings, run.config.data.image_size
    thumbnails, resized = [], []
    for mistake in mistakes:
        image = open_image(root, mistake.path, mistake.sha256, settings)
        thumbnails.append(thumbnail(image, THUMBNAIL))
        resized.append(resize(image, size, settings.resize))
    predicted = np.array([run.classes.index(mistake.predicted) for mistake in mistakes])
    heatmaps = gradcam(run.model(), np.stack(resized), predicted)
    explained = []
    for mistake, image, heat in zip(mistakes, thumbnails, heatmaps, strict=True):
        heated = overlay(np.asarray(image), map_back(heat, image.size, settings.resize))
        explained.append(Explained(mistake, image, Image.fromarray(heated), bool(heat.any())))
    return explained


def draw(shown: Sequence[Explained], title: str) -> Figure:
    """Draw each mistake beside the same image with its heatmap, both in the proportions of the file."""
    grid, titles = [], []
    for mistake, image, heated, has_evidence in shown:
        grid += [np.asarray(fit(side, THUMBNAIL, "white")) for side in (image, heated)]
        titles += [
            short(mistake.path.rsplit("/", 1)[-1]),
            f"{short(mistake.label)} → {short(mistake.predicted)} {mistake.confidence:.1%}"
            + ("" if has_evidence else "\nno evidence"),
        ]
    figure = plots.image_grid(np.stack(grid), titles)
    figure.suptitle(
        f"{title}\ntrue → predicted; bright: what speaks for the predicted class against the others (Grad-CAM)",
        fontsize=10,
    )
    return figure
