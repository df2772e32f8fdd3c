"""The section of a run's report on doubtful labels: the images whose label models doubt most."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments.evaluation.label_quality import Doubt, Labelled, count_wrong, have_probabilities, labelled, rank
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

    Args:
        directory: of the run.
        classes: [C] names in label order.
        plain: the run's configuration as logged.
        root: the directory that holds the images; None if it is not known.
    """
    own = directory.predictions("validation")
    if not have_probabilities(own, classes):
        return None  # an old run
    folds = fold_predictions(directory, classes)
    if folds:
        images, sentences = rated_by_folds(directory, own, folds, classes)
    else:
        images, sentences = rated_by_run(directory, own, classes)
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


def fold_predictions(directory: RunDirectory, classes: Sequence[str]) -> list[tuple[str, list[Prediction]]]:
    """Return the fold and the validation predictions of each finished job of a run's candidate, see `candidate_runs`.

    There are none if the run is in no sweep over folds.
    """
    runs = [(run.fold, run.directory) for run in candidate_runs.of_job(directory.folder)]
    found = [
        (fold, other.predictions("validation")) for fold, other in runs if fold and other.has_predictions("validation")
    ]
    return [(fold, predictions) for fold, predictions in found if have_probabilities(predictions, classes)]


def rated_by_folds(
    directory: RunDirectory, own: Sequence[Prediction], folds: Sequence[tuple[str, Sequence[Prediction]]],
    classes: Sequence[str],
) -> tuple[list[Labelled], list[str]]:  # fmt: skip
    """Return the images with their probabilities, and sentences about which models these come from.

    Args:
        directory: of the run.
        own: the run's validation predictions.
        folds: as from `fold_predictions`; those of the run are among them if it is a job of a fold.
        classes: [C] names in label order.
    """
    images = labelled((row for _, predictions in folds for row in predictions), classes)
    hashes = {image.sha256 for image in images}
    given = labelled((row for row in own if row.sha256 not in hashes), classes)
    count = len({fold for fold, _ in folds})
    sentences = [
        f"{len(images):,} training images, each rated by the models of one of the sweep's folds ({count} of them have "
        f"finished, with {len(folds)} runs), which were not trained on it."
    ]
    if given:
        sentences.append(f"{len(given):,} validation images, rated by this model, which was not trained on them.")
    if lacking := candidate_runs.unrated(directory.images(), hashes | {image.sha256 for image in given}):
        sentences.append(f"{lacking:,} training images are not rated: no finished fold validates with them.")
    return [*images, *given], sentences


def rated_by_run(
    directory: RunDirectory, own: Sequence[Prediction], classes: Sequence[str]
) -> tuple[list[Labelled], list[str]]:
    """Return the images of a run outside sweeps over folds, as `rated_by_folds` does."""
    images = labelled(own, classes)
    sentences = [f"{len(images):,} validation images, rated by this model, which was not trained on them."]
    if directory.has_predictions(TRAIN):
        trained = labelled(directory.predictions(TRAIN), classes, TRAIN, held_out=False)
        images += trained
        sentences.append(
            f"{len(trained):,} training images, rated by this model, trained on their labels: a wrong one may look "
            "right."
        )
    else:
        sentences.append("Training images are not rated.")
    return images, [*sentences, "A sweep over data.fold rates every image by models that were not trained on it."]
