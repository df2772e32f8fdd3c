"""The section of a run's report on doubtful labels: the images whose label models doubt most."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments.evaluation.label_quality import Doubt, LabelledImage, count_wrong, have_probabilities, labelled, rank
from experiments.images.decoder_settings import DecoderSettings
from experiments.reports import page
from experiments.runs import candidate_runs
from experiments.runs.predictions import Prediction
from experiments.runs.run_directory import RunDirectory

MOST_IMAGES = 18  # shown, the most doubtful
TRAIN = "train"


def section(
    directory: RunDirectory, classes: Sequence[str], plain: Mapping[str, Any], root: Path | None
) -> dict[str, Any] | None:
    """Return the template's data: sentences, and the images with their labels; None if there are no probabilities.

    Where the run's sweep went over folds, every image has probabilities of models that were not trained on it. Else
    those of validation images come from the run, and those of training images from the run, too, if it recorded them.
    """
    own = directory.predictions("validation")
    if not have_probabilities(own, classes):
        return None  # an old run
    images, sentences = rated(directory, own, classes)
    doubts = rank(images, classes)
    wrong = sum(doubt.probably_wrong for doubt in doubts)
    sentences += [f"{sentence}." for sentence in count_wrong(doubts)]
    shown = doubts[: min(MOST_IMAGES, max(wrong, math.ceil(len(doubts) / 20)))]
    settings = DecoderSettings.of(plain["data"])

    def item(doubt: Doubt) -> tuple[Doubt, str | None]:
        path, sha256 = doubt.image.path, doubt.image.sha256
        return doubt, page.recorded_thumbnail(path, sha256, [root] if root else [], settings)[0]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {"sentences": sentences, "images": list(pool.map(item, shown))}


def rated(
    directory: RunDirectory, own: Sequence[Prediction], classes: Sequence[str]
) -> tuple[list[LabelledImage], list[str]]:
    """Return the images of a run with their probabilities, and sentences about which models these come from."""
    folds = [
        (run.fold, predictions)
        for run in candidate_runs.of_job(directory.folder)  # none if the run is in no sweep over folds
        if run.fold and run.directory.has_predictions("validation")
        if have_probabilities(predictions := run.directory.predictions("validation"), classes)
    ]
    images = labelled((row for _, predictions in folds for row in predictions), classes)
    sentences = []
    hashes = {image.sha256 for image in images}
    given = labelled((row for row in own if row.sha256 not in hashes), classes)
    if folds:
        count = len({fold for fold, _ in folds})
        sentences.append(
            f"{len(images):,} training images, each rated by the models of one of the sweep's folds ({count} of them "
            f"have finished, with {len(folds)} runs), which were not trained on it."
        )
    if given:
        sentences.append(f"{len(given):,} validation images, rated by this model, which was not trained on them.")
    images += given
    if folds:
        if lacking := candidate_runs.unrated(directory.images(), [image.sha256 for image in images]):
            sentences.append(f"{lacking:,} training images are not rated: no finished fold validates with them.")
        return images, sentences
    if directory.has_predictions(TRAIN):
        trained = labelled(directory.predictions(TRAIN), classes, TRAIN)
        images += trained
        sentences.append(
            f"{len(trained):,} training images, rated by this model, trained on their labels: a wrong one may look "
            "right."
        )
    else:
        sentences.append("Training images are not rated.")
    return images, [*sentences, "A sweep over data.fold rates every image by models that were not trained on it."]
