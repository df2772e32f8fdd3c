"""The images of a run's report: mistakes with Grad-CAM, and right and wrong examples of each class."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from experiments.errors import ConfigError, DataError
from experiments.evaluation.evaluate import Report
from experiments.evaluation.per_class import worst_first
from experiments.images.decoder_settings import DecoderSettings, Resize
from experiments.images.resizing import map_back, resize
from experiments.reports import page
from experiments.runs.predictions import Prediction, mistakes

if TYPE_CHECKING:
    import keras

MOST_MISTAKES = 12  # shown with Grad-CAM
MOST_CLASSES = 40  # of which examples are shown
FEW_CLASSES = 20  # Up to this number of classes, each has two right and two wrong examples, else one of each.
SMALL = 96  # pixels of an example's longer side


class LoadedImage(NamedTuple):
    """An image of the data, if it is there."""

    thumbnail: Image.Image | None = None  # in the proportions of the file
    pixels: np.ndarray | None = None  # [S, S, 3] uint8, as the network sees it; only of a mistake
    missing: str = ""  # why it is not shown


def gallery(
    report: Report, plain: Mapping[str, Any], root: Path | None, model: Callable[[], keras.Model] | None
) -> dict[str, Any]:
    """Return the template's data for the images of a split; the arguments are those of `run_report.write`.

    Returns:
        `mistakes` and `examples` (for each class its right and its wrong ones), each with its prediction and base64 of
        its thumbnail; `heated`, base64 of mistakes with Grad-CAM, by file hash; `wrong`, the number of all mistakes;
        `absent`, why images or Grad-CAM are not shown.
    """
    wrong, chosen = mistakes(report.predictions), examples(report)
    shown_mistakes = wrong[:MOST_MISTAKES]
    large = {row.sha256: row for row in shown_mistakes}
    shown = large | {row.sha256: row for kinds in chosen.values() for kind in kinds for row in kind}
    size, settings = int(plain["data"]["image_size"]), DecoderSettings.of(plain["data"])

    def load(row: Prediction) -> LoadedImage:
        try:
            image = page.open_recorded(row.path, row.sha256, [root] if root else [], settings)
        except DataError as error:
            return LoadedImage(missing=str(error))
        pixels = resize(image, size, settings.resize) if row.sha256 in large else None
        side = page.SIDE if row.sha256 in large else SMALL
        image.thumbnail((side, side))
        return LoadedImage(image, pixels)

    def item(row: Prediction) -> dict[str, Any]:
        image = images[row.sha256].thumbnail
        return {"row": row, "thumbnail": page.thumbnail(image) if image else None}

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = dict(zip(shown, pool.map(load, shown.values()), strict=True))
    absent = sorted({image.missing for image in images.values() if image.missing})[:1]
    heated, reason = explain(shown_mistakes, images, report.classes, settings.resize, model)
    return {
        "split": report.split,
        "mistakes": list(map(item, shown_mistakes)),
        "heated": heated,
        "wrong": len(wrong),
        "examples": [(name, [list(map(item, kind)) for kind in kinds]) for name, kinds in chosen.items()],
        "all_classes": len(chosen) == len(report.classes),
        "absent": [*absent, *([reason] if reason else [])],
    }


def examples(report: Report) -> dict[str, tuple[list[Prediction], list[Prediction]]]:
    """Return right and wrong predictions for each class; of more than MOST_CLASSES, for those with the lowest F1.

    The right ones are the most and the least confident, the wrong ones the most confident.
    """
    names = {score.name for score in worst_first(report.class_scores)[:MOST_CLASSES]}
    count = 2 if len(report.classes) <= FEW_CLASSES else 1
    found = {}
    for name in (name for name in report.classes if name in names):
        rows = [row for row in report.predictions if row.label == name]
        right = sorted((row for row in rows if row.correct), key=lambda row: -row.confidence)
        found[name] = (right[:1] + right[1:][-1:])[:count], mistakes(rows)[:count]
    return found


def explain(
    mistakes: Sequence[Prediction], images: Mapping[str, LoadedImage], classes: Sequence[str], how: Resize,
    model: Callable[[], keras.Model] | None,
) -> tuple[dict[str, str], str]:  # fmt: skip
    """Return thumbnails with Grad-CAM for the predicted class, by file hash; and the reason if there are none."""
    seen = [(row, pixels) for row in mistakes if (pixels := images[row.sha256].pixels) is not None]
    if not seen:
        return {}, ""
    if model is None:
        return {}, "Grad-CAM is not shown: the model does not give the scores of the run"
    try:
        network = model()
        network.get_layer("frozen")
    except (ConfigError, ValueError) as error:  # weights that are gone; a user's regime with a model of its own
        return {}, f"Grad-CAM is not shown: {error}"
    from experiments.models.gradcam import gradcam, overlay  # after `model`, which holds back TensorFlow's first lines

    predicted = np.array([classes.index(row.predicted) for row, _ in seen])
    found = {}
    for (row, _), heat in zip(seen, gradcam(network, np.stack([pixels for _, pixels in seen]), predicted), strict=True):
        image = images[row.sha256].thumbnail
        assert image is not None
        heated = overlay(np.asarray(image), map_back(heat, image.size, how))
        found[row.sha256] = page.thumbnail(Image.fromarray(heated))
    return found, ""
