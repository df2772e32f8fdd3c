"""Evaluation of a finished run's model on further labelled images, in memory that does not grow with their pixels."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.comparison.significance import difference, unpaired_difference
from experiments.comparison.text import p_text, signed
from experiments.data.issues import DataIssue, printable
from experiments.data.listing import ListedImage
from experiments.data.validation import hash_files
from experiments.deploy.labelled_images import LabelledFiles
from experiments.deploy.predict import predictions, read_image
from experiments.deploy.saved_run import Trained
from experiments.errors import DataError
from experiments.evaluation.calibration import TEMPERATURE, confidence_metrics
from experiments.evaluation.evaluate import Report, percent, report_on
from experiments.evaluation.per_class import class_columns
from experiments.reports.figure_style import save_figure
from experiments.reports.figures import report_figures
from experiments.runs.predictions import Prediction
from experiments.runs.run_directory import RunDirectory
from experiments.storage import atomic_files

if TYPE_CHECKING:
    import keras

EARLIER = "of one whose weights it began with"
SPLIT = "evaluation"  # what the images are called in the names of files and metrics


@dataclass(frozen=True)
class Evaluation:
    """A model's report on labelled images."""

    report: Report
    paths: list[str]  # of the images of `report`, relative to the root; names that are not UTF-8 are as they are
    metrics: dict[str, float]  # named evaluation.METRIC
    skipped: list[DataIssue]  # files that cannot be used
    sentences: list[str]  # comparison with the run's validation images


def evaluate(
    run: Trained, model: keras.Model, labelled: LabelledFiles, batch_size: int, advance: Callable[[int], None]
) -> Evaluation:
    """Evaluate a run's model on labelled images, which are decoded ahead of the network as by `predict`.

    Args:
        advance: receives the number of images that were processed since its last call.

    Raises:
        ConfigError: the run has no predictions for its validation images.
        DataError: none of the images can be used.
    """
    validation = run.predictions("validation")
    trained = {row["sha256"] for row in run.images("train")}
    earlier = run.earlier_training_images()
    skipped = list(labelled.issues)
    hashes = hash_files(labelled.root, [ListedImage(*file) for file in labelled.files], skipped)
    class_of = {path: name for path, name in labelled.files if path in hashes}
    shares: dict[str, np.ndarray] = {}  # probabilities by path
    relative = {str(labelled.root / path): path for path in class_of}
    for batch in predictions(model, relative, batch_size, run.decoder_settings):
        for prediction in batch:
            path = relative[prediction.path]
            if prediction.probabilities is None:
                skipped.append(DataIssue(path, prediction.error, skippable=True, class_name=class_of[path]))
            else:
                shares[path] = prediction.probabilities
        advance(len(batch))
    if not shares:
        first = skipped[0]
        raise DataError(f"None of the {len(skipped)} images can be used. {printable(first.path)}: {first.text}")
    labels = np.array([run.classes.index(class_of[path]) for path in shares])
    files = [(path, hashes[path][0]) for path in shares]
    scores = np.stack(list(shares.values()))
    report = report_on(SPLIT, files, labels, scores, run.classes, run.decision, run.gives_probabilities)
    metrics = {f"{SPLIT}.{name}": value for name, value in report.metrics.items()}
    metrics |= confidence_metrics({SPLIT: report}, run.metrics.get(TEMPERATURE))
    known = [prediction for prediction in report.predictions if prediction.sha256 in trained | earlier]
    whose = "of the run" if trained.issuperset(row.sha256 for row in known) else f"of the run, or {EARLIER}"
    sentences = repeated_sentences(report) + known_sentences(report, known, whose) + compare(report, known, validation)
    return Evaluation(report, list(shares), metrics, skipped, sentences)


def repeated_sentences(report: Report) -> list[str]:
    """Return a sentence about duplicates, if there are any; a training data set has none."""
    first: dict[str, Prediction] = {}
    repeated = [row for row in report.predictions if first.setdefault(row.sha256, row) is not row]
    if not repeated:
        return []
    original = first[repeated[0].sha256]
    count = f"{len(repeated)} of these {len(report.predictions)} files are copies of others"
    return [
        f"{count}, such as {printable(repeated[0].path)} of {printable(original.path)}: these images count more than "
        "once, and all intervals are too narrow. Remove the copies."
    ]


def known_sentences(report: Report, known: Sequence[Prediction], whose: str) -> list[str]:
    """Return a sentence about images that the model was trained on, if there are any; `whose` is the run's phrase."""
    if not known:
        return []
    others = len(report.predictions) - len(known)
    count = f"{len(known)} of these {len(report.predictions)}" if others else f"All {len(known)}"
    text = f"{count} images are training images {whose}, such as "
    text += f"{printable(known[0].path)}: the scores on them say nothing about new images."
    if others:
        right = sum(row.correct for row in report.predictions) - sum(row.correct for row in known)
        text += f" Accuracy on the other {others}: {percent(right / others)}."
    return [text]


def compare(report: Report, known: Sequence[Prediction], validation: Sequence[Prediction]) -> list[str]:
    """Return a sentence that compares the accuracy with that on the run's validation images.

    If all images are validation images, the two are compared image by image; they differ if labels or the model's
    files do. Otherwise the images that the model was neither trained on (`known`) nor validated with are compared with
    its validation images, as different samples.
    """
    before = {row.sha256: row for row in validation}
    shared = [row for row in report.predictions if row.sha256 in before]
    of_run = before.keys() | {row.sha256 for row in known}
    is_same = len(shared) == len(report.predictions)
    compared = shared if is_same else [row for row in report.predictions if row.sha256 not in of_run]
    if min(len(validation), len(compared)) < 2:
        return []
    now = np.array([row.correct for row in compared])
    if is_same:
        then = np.array([before[row.sha256].correct for row in compared])
        text = f"All {len(now)} images are validation images of the run"
        if (then == now).all():
            return [f"{text}, and the model is right on the same ones."]
        found = difference(then, now)
        text += f": the accuracy differs from the recorded one by {signed(found.value)} points"
    else:
        then = np.array([row.correct for row in validation])
        found = unpaired_difference(then, now)
        text = f"{len(shared)} of these images are validation images of the run. " if shared else ""
        text += "On these images" if len(now) == len(report.predictions) else f"On the {len(now)} new images"
        text += f" the accuracy differs by {signed(found.value)} points from that on the {len(validation)} validation "
        text += f"images ({percent(float(then.mean()))})"
    result = "significantly different" if found.significant else "not significantly different"
    bounds = f"{signed(found.low)} to {signed(found.high)}"
    return [f"{text} (95 % interval {bounds}, {p_text(found.p_value)}): {result}."]


def digest(report: Report) -> str:
    """Return a hash of the evaluated images: their contents and labels, in whatever order."""
    lines = sorted(f"{row.sha256} {row.label}" for row in report.predictions)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]  # MLflow accepts no longer digest


def write(evaluation: Evaluation, run: Trained, labelled: LabelledFiles, image_size: int, folder: Path) -> None:
    """Write metrics, predictions, class scores, skipped files and figures to a new directory, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = atomic_files.draft(folder)
    directory, report = RunDirectory(aside), evaluation.report

    def pixels_of(rows: list[int]) -> np.ndarray:
        paths = [os.path.join(labelled.root, evaluation.paths[row]) for row in rows]
        images = [read_image(path, image_size, run.decoder_settings) for path in paths]
        blank = np.zeros((image_size, image_size, 3), np.uint8)  # in place of a file that has changed since
        return np.stack([blank if isinstance(image, str) else image for image in images])

    try:
        aside.mkdir()
        directory.write_metrics(evaluation.metrics)
        directory.write_predictions(SPLIT, report.predictions)
        pairs = [pair._asdict() for pair in report.confused_pairs]
        directory.write_class_scores(SPLIT, class_columns(report.class_scores), pairs)
        directory.write_images([], [{"path": issue.path, "reason": issue.text} for issue in evaluation.skipped], [], [])
        directory.figures.mkdir()
        for name, figure in report_figures(report, pixels_of).items():
            (directory.figures / f"{name}.png").write_bytes(save_figure(figure))
        os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
