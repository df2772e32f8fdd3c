"""The section of a run's report on doubtful labels: the images whose label models doubt most."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments.data.decoder_settings import DecoderSettings
from experiments.errors import ConfigError, DataError
from experiments.evaluation import page
from experiments.evaluation.label_quality import Doubt, labelled, rank
from experiments.reuse import like
from experiments.runs.predictions import Prediction
from experiments.runs.run_directory import CONFIG, SWEEP, RunDirectory
from experiments.training.types import Status

MOST_IMAGES = 18  # shown, the most doubtful
TRAIN = "train"


def section(
    directory: RunDirectory, classes: Sequence[str], plain: Mapping[str, Any], root: Path | None
) -> dict[str, Any] | None:
    """Return the template's data: sentences, and the images with their labels; None if there are no probabilities.

    Where the run's sweep went over folds, every image has probabilities of models that were not trained on it. Else
    those of validation images come from the run, and those of training images from the run, too, if it recorded them.

    Args:
        directory: of the run.
        classes: [C] names in label order.
        plain: the run's configuration as logged.
        root: the directory that holds the images; None if it is not known.
    """
    own = directory.predictions("validation")
    if any(one.label not in classes or one.probabilities.keys() != set(classes) for one in own):
        return None  # an old run
    folds = fold_predictions(directory, classes)
    images = labelled([one for fold in [own, *folds] for one in fold], classes)
    if folds:
        sentences = [
            f"{len(images):,} images, each rated by models of the sweep's {len(folds)} folds, not trained on it."
        ]
    else:
        sentences = [f"{len(images):,} validation images, rated by this model, which was not trained on them."]
        if directory.has_predictions(TRAIN):
            trained = labelled(directory.predictions(TRAIN), classes, TRAIN, held_out=False)
            images += trained
            sentences.append(
                f"{len(trained):,} training images, rated by this model, trained on their labels: a wrong one may "
                "look right."
            )
        else:
            sentences.append("Training images are not rated.")
        sentences.append("A sweep over data.fold rates every image by models that were not trained on it.")
    doubts = rank(images, classes)
    wrong = sum(one.probably_wrong for one in doubts)
    sentences.append(f"{wrong:,} of {len(doubts):,} labels are probably wrong, as confident learning counts them.")
    shown = doubts[: min(MOST_IMAGES, max(wrong, math.ceil(len(doubts) / 20)))]
    settings = DecoderSettings.of(plain["data"])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        items = list(pool.map(lambda one: item(one, root, settings), shown))
    return {"sentences": sentences, "images": items}


def fold_predictions(directory: RunDirectory, classes: Sequence[str]) -> list[list[Prediction]]:
    """Return the validation predictions of the finished folds in the sweep of a run; none if there are no folds."""
    if not (directory.folder.parent / SWEEP).is_file():
        return []
    found = []
    for folder in sorted(directory.folder.parent.iterdir()):
        other = RunDirectory(folder)
        try:
            facts = other.facts()
            if facts is None or facts.get("status") != Status.FINISHED or not other.has_predictions("validation"):
                continue
            plain = like.parse((folder / CONFIG).read_bytes(), CONFIG)
            rows = other.predictions("validation")
        except (ConfigError, OSError, ValueError):  # a job that is damaged, or being written
            continue
        if like.value_at(plain, "data.fold") is not None and rows[0].probabilities.keys() == set(classes):
            found.append(rows)
    return found


def item(doubt: Doubt, root: Path | None, settings: DecoderSettings) -> dict[str, Any]:
    """Return the template's data for one image."""
    image, thumbnail = doubt.image, None
    try:
        opened = page.open_recorded(image.path, image.sha256, [root] if root else [], settings)
        thumbnail = page.base64_text(page.jpeg(opened))
    except (DataError, OSError):
        pass  # the page says "not shown"
    return {
        "path": image.path,
        "thumbnail": thumbnail,
        "label": image.label,
        "confidence": f"{doubt.self_confidence:.1%}",
        "likely": doubt.likely,
        "probability": f"{doubt.probability:.1%}",
        "trained": not image.held_out,
    }
