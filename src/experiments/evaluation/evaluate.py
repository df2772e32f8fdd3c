"""Evaluation of predicted probabilities: metrics with confidence intervals, and one prediction per image.

Nothing here logs or writes; `evaluate` returns a Report per split.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from sklearn import metrics as sklearn_metrics

from experiments.config.schema import PROBABILISTIC
from experiments.data.types import SPLITS, Dataset, ImageSet
from experiments.evaluation import decision as decisions
from experiments.evaluation.decision import FEWEST_CLASSES, Decision
from experiments.evaluation.per_class import ClassScore, ConfusedPair, class_scores, confused_pairs, confusion_of
from experiments.evaluation.statistics import reliability, wilson
from experiments.runs.predictions import Prediction
from experiments.storage.csv_files import encodable

# Titles of metrics in tables.
METRICS = {
    "accuracy": "accuracy", "loss": "loss", "roc_auc": "ROC AUC", "precision": "precision", "recall": "recall",
    "f1": "F1", "brier": "Brier score", "calibration_error": "calibration error",
    "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1", "matthews": "Matthews correlation",
    "average_precision": "average precision", "top3_accuracy": "top-3 accuracy",
    "top5_accuracy": "top-5 accuracy",
}  # fmt: skip
IMAGE_METRICS = ("accuracy", "loss", "brier")  # means over images, so that models can be compared image by image
SMALLEST = float(np.finfo(np.float32).eps)  # the lower bound to which the loss clips probabilities
TOLERANCE = 1e-9  # rounding error of accuracies that are means over runs
SUM_TOLERANCE = 1e-3  # The rows of a half-precision softmax differ from 1 by about this much.


@dataclass(frozen=True)
class Report:
    """The evaluation of a model on one split."""

    split: str
    classes: tuple[str, ...]  # [C], in label order
    metrics: Mapping[str, float]  # finite values only; see `evaluate`
    predictions: tuple[Prediction, ...]  # in the order of the split's images
    decision: Decision  # by which `predictions` have their predicted classes

    @cached_property
    def confusion(self) -> np.ndarray:
        """The confusion matrix [C, C] int64; rows are true classes, columns predicted ones."""
        return confusion_of(self.predictions, self.classes)

    @cached_property
    def class_scores(self) -> list[ClassScore]:
        return class_scores(self.confusion, self.classes)

    @cached_property
    def confused_pairs(self) -> list[ConfusedPair]:
        return confused_pairs(self.confusion, self.classes)


class Baseline(NamedTuple):
    """The accuracy of a model that predicts the most frequent class for every image."""

    class_name: str  # empty if only the accuracy is known
    accuracy: float

    def describe(self, accuracy: float, low: float) -> str:
        """Return a phrase that compares an accuracy, with the lower bound of its interval, with this baseline."""
        name = f"'{self.class_name}'" if self.class_name else "the most frequent class"
        above, significant = (value > self.accuracy + TOLERANCE for value in (accuracy, low))
        relation = "not above" if not above else "significantly above" if significant else "not significantly above"
        return f"{relation} always predicting {name} ({percent(self.accuracy)})"


def majority_baseline(labels: Iterable[str]) -> Baseline:
    """Return the baseline for the labels of at least one image; of equally frequent classes, the first by name."""
    counts = Counter(labels)
    name = min(counts, key=lambda label: (-counts[label], label))
    return Baseline(name, counts[name] / counts.total())


def percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def image_score(metric: str, prediction: Prediction) -> float:
    """Return the score of one image, whose mean over all images is the metric, one of IMAGE_METRICS; nan if unknown."""
    if metric == "accuracy":
        return prediction.correct
    shares, label = prediction.probabilities, prediction.label
    if metric == "loss":
        return -math.log(max(shares.get(label, math.nan), SMALLEST))
    if not shares:
        return math.nan
    classes = list(shares)[1:] if len(shares) == 2 else list(shares)
    return math.fsum((shares[name] - (name == label)) ** 2 for name in classes)


def evaluate(
    scores: Mapping[str, np.ndarray], dataset: Dataset, *, probabilities: bool = True, decision: Decision | None = None
) -> dict[str, Report]:
    """Evaluate the scores of the validation split and, if there are any, of the test split; never of training images.

    Rows are rescaled to sum to exactly 1 before anything is computed. The metrics, with C classes:

    * accuracy, accuracy_low, accuracy_high: the accuracy and its 95 % Wilson interval.
    * accuracy_baseline: the share of the most frequent class, that is the accuracy of always predicting it.
    * loss: cross entropy, natural logarithm, mean over images; probabilities are clipped at float32's 1.2e-7 (Keras
      clips at 1e-7), so one certain mistake costs at most 16.
    * precision, recall, f1: C == 2: of the positive class; else the unweighted mean over the classes that occur in
      the split. The precision of a class that is never predicted is 0, as in scikit-learn.
    * balanced_accuracy, macro_f1: the unweighted mean of the recall, and of F1, over the classes that occur.
    * matthews: Matthews correlation coefficient, in [-1, 1]; 0 if only one class occurs or is predicted.
    * top3_accuracy, top5_accuracy: the share of images whose class is among the 3, or 5, most probable ones; for more
      than 3, or 5, classes.
    * roc_auc: C == 2: of the positive class; else one-vs-rest, unweighted mean over classes.
    * average_precision: the area under the precision-recall curve as a sum over thresholds, not interpolated, as
      scikit-learn's `average_precision_score`; C == 2: of the positive class; else one-vs-rest, the unweighted mean
      over the classes that occur.
    * brier: C == 2: mean (p1 - y)^2, in [0, 1]; else the mean over images of the sum over classes of squared
      differences, in [0, 2]. Both as in scikit-learn's `brier_score_loss`.
    * calibration_error: expected calibration error in 15 equal-width bins, see `statistics.reliability`.

    A metric that is undefined for a split is omitted, so that all values are finite: roc_auc if a class does not occur
    among the true labels; with two classes, recall and average_precision if the positive class does not occur, and f1
    if it is not predicted either.

    Args:
        scores: split -> probabilities [N, C] float, rows in the order of that split's images; "validation" is
            required, "train" is ignored.
        probabilities: False for scores that only rank, as those of a hinge loss: loss, brier and calibration_error,
            which evaluate probabilities, are then omitted.
        decision: how the class of an image is predicted; None for `decision.default`.

    Returns:
        The report of each split that has scores.

    Raises:
        ValueError: with all issues, each with split, expected and received: scores without "validation", with another
            name or of no test split, a wrong shape, no images, values that are not finite or negative, or rows that do
            not sum to 1 within 1e-3.
    """
    images = {split.split: split for split in (dataset.validation, dataset.test) if split is not None}
    _check(scores, images, len(dataset.classes))
    decision = decision or decisions.default(dataset.classes)
    reports = {}
    for split in images:
        if split in scores:
            files, labels = [(entry.path, entry.sha256) for entry in images[split].entries], images[split].labels
            reports[split] = report_on(split, files, labels, scores[split], dataset.classes, decision, probabilities)
    return reports


def _check(scores: Mapping[str, np.ndarray], images: Mapping[str, ImageSet], classes: int) -> None:
    """Raise ValueError with all issues of scores of these splits; see `evaluate`."""
    issues = [] if "validation" in scores else [f"expected scores of validation. Received: {sorted(scores)}"]
    issues += [f"{split}: expected one of {SPLITS}. Received: {split!r}" for split in scores if split not in SPLITS]
    if "test" in scores and "test" not in images:
        issues.append("test: expected no scores, the data set has no test split. Received: scores of test")
    for split in images:
        if split in scores and (issue := _score_issue(scores[split], (len(images[split]), classes))):
            issues.append(f"{split}: expected {issue}")
    if issues:
        raise ValueError("Scores cannot be evaluated:\n  " + "\n  ".join(issues))


def _score_issue(probabilities: np.ndarray, shape: tuple[int, int]) -> str:
    """Return the first issue with the scores of one split, from which others may follow; empty if there is none."""
    if shape[0] == 0:
        return "at least one image. Received: an empty split"
    if probabilities.shape != shape:
        return f"shape {shape}, one row per image. Received: {probabilities.shape}"
    faulty = np.flatnonzero(~np.all(np.isfinite(probabilities) & (probabilities >= 0), axis=1))
    if faulty.size:
        received = f"{faulty.size} rows with others; row {faulty[0]}: {probabilities[faulty[0]].tolist()}"
        return f"finite values >= 0. Received: {received}"
    sums = probabilities.sum(axis=1, dtype=np.float64)
    faulty = np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)
    if faulty.size:
        received = f"{faulty.size} rows that do not; row {faulty[0]} sums to {sums[faulty[0]]:g}"
        return f"rows that sum to 1 within {SUM_TOLERANCE:g}. Received: {received}"
    return ""


def report_on(
    split: str, files: Sequence[tuple[str, str]], labels: np.ndarray, scores: np.ndarray, classes: tuple[str, ...],
    decision: Decision, probabilities: bool = True,
) -> Report:  # fmt: skip
    """Return the report on images, whose files are paths with hashes, from valid scores [N, C]; see `evaluate`.

    The true classes of the images are `labels` [N] int; there is at least one.
    """
    shares = scores.astype(np.float64)
    shares /= shares.sum(axis=1, keepdims=True)
    predicted = decision.predict(shares, classes)
    confidence = shares[np.arange(len(predicted)), predicted]
    positive = None if decision.positive is None else classes.index(decision.positive)
    metrics = _metrics(labels, shares, predicted, positive)
    predictions = tuple(
        Prediction(
            path=encodable(path),
            sha256=sha256,
            label=classes[labels[row]],
            predicted=classes[predicted[row]],
            confidence=float(confidence[row]),
            correct=bool(predicted[row] == labels[row]),
            probabilities=dict(zip(classes, shares[row].tolist(), strict=True)),
        )
        for row, (path, sha256) in enumerate(files)
    )
    kept = {name: value for name, value in metrics.items() if probabilities or name not in PROBABILISTIC}
    return Report(split, classes, kept, predictions, decision)


def _metrics(
    labels: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray, positive: int | None
) -> dict[str, float]:
    """Return those metrics that `evaluate` describes which are finite; `positive` is None for more than two classes."""
    count = probabilities.shape[1]
    every_class, occurring = np.arange(count), np.unique(labels)
    counted = occurring if positive is None else [positive]  # The "macro" average over one class is the binary metric.
    correct, most_probable = predicted == labels, probabilities.argmax(axis=1)
    low, high = wilson(int(correct.sum()), len(labels))

    def averaged(metric: Any, classes: Any, undefined: float) -> float:
        return float(metric(labels, predicted, labels=classes, average="macro", zero_division=undefined))

    metrics = {
        "accuracy": float(correct.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_baseline": float(np.bincount(labels).max() / len(labels)),
        # float32, because log_loss clips at the epsilon of the dtype of its input.
        "loss": float(sklearn_metrics.log_loss(labels, probabilities.astype(np.float32), labels=every_class)),
        "precision": averaged(sklearn_metrics.precision_score, counted, 0.0),
        "recall": averaged(sklearn_metrics.recall_score, counted, np.nan),
        "f1": averaged(sklearn_metrics.f1_score, counted, np.nan),
        "balanced_accuracy": averaged(sklearn_metrics.recall_score, occurring, np.nan),
        "macro_f1": averaged(sklearn_metrics.f1_score, occurring, np.nan),
        "matthews": float(sklearn_metrics.matthews_corrcoef(labels, predicted)) if np.ptp([labels, predicted]) else 0.0,
        "brier": float(sklearn_metrics.brier_score_loss(labels, probabilities, labels=every_class)),
        "calibration_error": reliability(probabilities.max(axis=1), most_probable == labels).error,
    }
    ranked = [at for at in counted if at in occurring]
    if ranked:
        areas = [sklearn_metrics.average_precision_score(labels == at, probabilities[:, at]) for at in ranked]
        metrics["average_precision"] = float(np.mean(areas))
    for top, name in ((3, "top3_accuracy"), (5, "top5_accuracy")):
        if count >= FEWEST_CLASSES[name]:
            metrics[name] = float(
                sklearn_metrics.top_k_accuracy_score(labels, probabilities, k=top, labels=every_class)
            )
    if len(occurring) == count:
        of_class = probabilities[:, 1] if count == 2 else probabilities  # the same area for both of two classes
        metrics["roc_auc"] = float(sklearn_metrics.roc_auc_score(labels, of_class, multi_class="ovr"))
    return {name: value for name, value in metrics.items() if np.isfinite(value)}
