"""Scores -> Report: metrics with intervals and one prediction row per picture. Computes and returns; logs nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from sklearn import metrics as sklearn_metrics  # type: ignore[import-untyped]

from experiments.config.schema import PROBABILISTIC
from experiments.data.types import SPLITS, Dataset, ImageSet
from experiments.evaluation.statistics import reliability, wilson

IMAGE_METRICS = ("accuracy", "loss", "brier")  # means over images, so that models can be compared image by image
SMALLEST = float(np.finfo(np.float32).eps)  # to which a probability is clipped in the loss
TOLERANCE = 1e-9  # of accuracies that are means over runs
SUM_TOLERANCE = 1e-3  # half-precision softmax rows miss 1 by about this much


@dataclass(frozen=True)
class Prediction:
    """What the model said about one picture."""

    path: str  # relative to the data root, the picture's id; bytes that are not UTF-8 as backslash escapes
    sha256: str  # of the file
    label: str  # the true class
    predicted: str  # the most probable class; of equally probable ones the first
    confidence: float  # its probability
    correct: bool
    probabilities: Mapping[str, float]  # class -> probability, in label order


@dataclass(frozen=True)
class Report:
    """How well a model does on one split."""

    split: str
    metrics: Mapping[str, float]  # finite values only; see `evaluate`
    confusion: np.ndarray  # [C, C] int64; rows true, columns predicted
    predictions: tuple[Prediction, ...]  # rows as in Pictures.entries

    @property
    def baseline(self) -> Baseline:
        return majority_baseline(prediction.label for prediction in self.predictions)


class Baseline(NamedTuple):
    """The accuracy of a model that gives every image the same class, the most frequent one."""

    class_name: str  # empty where only the accuracy is known
    accuracy: float

    def beside(self, accuracy: float, low: float) -> str:
        """Return how an accuracy, with the lower bound of its interval, compares with this one, in words."""
        name = f"'{self.class_name}'" if self.class_name else "the most frequent class"
        always = f"always answering {name} ({percent(self.accuracy)})"
        if accuracy <= self.accuracy + TOLERANCE:
            return f"not above {always}"
        return (
            f"not significantly above {always}" if low <= self.accuracy + TOLERANCE else f"significantly above {always}"
        )


def majority_baseline(labels: Iterable[str]) -> Baseline:
    """Return the baseline of at least one image; of equally frequent classes the first in alphabetical order."""
    counts = Counter(labels)
    name = min(counts, key=lambda label: (-counts[label], label))
    return Baseline(name, counts[name] / counts.total())


def percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def image_score(metric: str, prediction: Prediction) -> float:
    """Return what an image contributes to a metric that is a mean over images, one of IMAGE_METRICS.

    Returns:
        bool for accuracy; nan where the probabilities are unknown.
    """
    if metric == "accuracy":
        return prediction.correct
    shares, label = prediction.probabilities, prediction.label
    if metric == "loss":
        return -math.log(max(shares.get(label, math.nan), SMALLEST))
    if not shares:
        return math.nan
    classes = list(shares)[1:] if len(shares) == 2 else list(shares)
    return math.fsum((shares[name] - (name == label)) ** 2 for name in classes)


def evaluate(scores: Mapping[str, np.ndarray], splits: Dataset, *, probabilities: bool = True) -> dict[str, Report]:
    """Report on the validation split and, where it was scored, on the test split; never on training pictures.

    Rows are rescaled to sum to exactly 1 before anything is computed. The metrics, with C classes:

    * accuracy, accuracy_low, accuracy_high: with its 95 % Wilson interval.
    * accuracy_baseline: the share of the most frequent class, which always answering that class would reach.
    * loss: cross entropy, natural logarithm, mean over pictures; probabilities clipped at float32's 1.2e-7 (Keras
      clips at 1e-7), so one certain mistake costs at most 16.
    * precision, recall, f1: C == 2: of class 1; else the unweighted mean over the classes that occur in the split.
      The precision of a class never predicted is 0, as in scikit-learn.
    * roc_auc: C == 2: of class 1; else one-vs-rest, unweighted mean over classes.
    * brier: C == 2: mean (p1 - y)^2, in [0, 1]; else the mean over pictures of the sum over classes of squared
      differences, in [0, 2]. Both as scikit-learn's `brier_score_loss`.
    * calibration_error: expected calibration error in 15 equal-width bins, see `statistics.reliability`.

    A metric that the split does not define is left out, so all values are finite: roc_auc where a class does not occur
    among the true labels; with two classes recall, where class 1 does not occur, and f1, where it is not predicted
    either.

    Args:
        scores: per split, [N, C] float probabilities, rows in the order of that split's pictures; "validation" is
            needed, "train" is ignored.
        splits: the data set the scores belong to.
        probabilities: False for scores that only rank, as a hinge loss gives: loss, brier and calibration_error, which
            judge probabilities, are left out.

    Returns:
        "validation" and, if `scores` has it, "test" -> Report.

    Raises:
        ValueError: naming split, expected and received, all faults at once: validation scores missing, a name that is
            no split, test scores without a test split, a wrong shape or no pictures at all, values that are not finite
            or negative, rows that do not sum to 1 within 1e-3.
    """
    pictures = {split.split: split for split in (splits.validation, splits.test) if split is not None}
    faults = [] if "validation" in scores else [f"expected scores of validation. Received: {sorted(scores)}"]
    faults += [f"{split}: expected one of {SPLITS}. Received: {split!r}" for split in scores if split not in SPLITS]
    if "test" in scores and splits.test is None:
        faults.append("test: expected no scores, the data set has no test split. Received: scores of test")
    scored = [split for split in pictures if split in scores]
    for split in scored:
        faults += _faults(split, scores[split], (len(pictures[split]), len(splits.classes)))
    if faults:
        raise ValueError("Scores cannot be evaluated:\n  " + "\n  ".join(faults))
    reports = {split: _report(pictures[split], scores[split], splits.classes) for split in scored}
    if probabilities:
        return reports
    return {
        split: replace(report, metrics=_without(report.metrics, PROBABILISTIC)) for split, report in reports.items()
    }


def predictions_table(report: Report) -> dict[str, list[Any]]:
    """The report's predictions as columns of one length, for a table or a CSV file.

    Returns:
        path, sha256, label, predicted (str), correct (bool), confidence (float), then p_<class> (float) per class.
    """
    names = ("path", "sha256", "label", "predicted", "correct", "confidence")
    table: dict[str, list[Any]] = {name: [getattr(row, name) for row in report.predictions] for name in names}
    for class_name in report.predictions[0].probabilities:
        table[f"p_{class_name}"] = [row.probabilities[class_name] for row in report.predictions]
    return table


def _without(metrics: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in names}


def _faults(split: str, probabilities: np.ndarray, shape: tuple[int, int]) -> list[str]:
    """What is wrong with the scores of one split; the first fault hides those that follow from it."""
    if shape[0] == 0:
        return [f"{split}: expected at least one picture. Received: an empty split"]
    if probabilities.shape != shape:
        return [f"{split}: expected shape {shape}, one row per picture. Received: {probabilities.shape}"]
    faulty = np.flatnonzero(~np.all(np.isfinite(probabilities) & (probabilities >= 0), axis=1))
    if faulty.size:
        received = f"{faulty.size} rows with others; row {faulty[0]}: {probabilities[faulty[0]].tolist()}"
        return [f"{split}: expected finite values >= 0. Received: {received}"]
    sums = probabilities.sum(axis=1, dtype=np.float64)
    faulty = np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)
    if faulty.size:
        received = f"{faulty.size} rows that do not; row {faulty[0]} sums to {sums[faulty[0]]:g}"
        return [f"{split}: expected rows that sum to 1 within {SUM_TOLERANCE:g}. Received: {received}"]
    return []


def _report(pictures: ImageSet, scores: np.ndarray, classes: tuple[str, ...]) -> Report:
    """The report on one split, from scores that have been checked."""
    probabilities = scores.astype(np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels = pictures.labels
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    return Report(
        split=pictures.split,
        metrics=_metrics(labels, probabilities),
        confusion=sklearn_metrics.confusion_matrix(labels, predicted, labels=np.arange(len(classes))),
        predictions=tuple(
            Prediction(
                path=entry.path.encode(errors="backslashreplace").decode(),
                sha256=entry.sha256,
                label=classes[labels[row]],
                predicted=classes[predicted[row]],
                confidence=float(confidence[row]),
                correct=bool(predicted[row] == labels[row]),
                probabilities=dict(zip(classes, probabilities[row].tolist(), strict=True)),
            )
            for row, entry in enumerate(pictures.entries)
        ),
    )


def _metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The finite ones of the metrics that `evaluate` lists; labels [N] int, probabilities [N, C] float64."""
    count = probabilities.shape[1]
    every_class = np.arange(count)
    occurring = np.unique(labels)
    counted = [1] if count == 2 else occurring  # "macro" over class 1 alone is the binary metric
    predicted = probabilities.argmax(axis=1)
    correct = predicted == labels
    low, high = wilson(int(correct.sum()), len(labels))

    def averaged(metric: Any, undefined: float) -> float:
        return float(metric(labels, predicted, labels=counted, average="macro", zero_division=undefined))

    metrics = {
        "accuracy": float(correct.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_baseline": float(np.bincount(labels).max() / len(labels)),
        # float32, because log_loss clips at the epsilon of the dtype it is given
        "loss": float(sklearn_metrics.log_loss(labels, probabilities.astype(np.float32), labels=every_class)),
        "precision": averaged(sklearn_metrics.precision_score, 0.0),
        "recall": averaged(sklearn_metrics.recall_score, np.nan),
        "f1": averaged(sklearn_metrics.f1_score, np.nan),
        "brier": float(sklearn_metrics.brier_score_loss(labels, probabilities, labels=every_class)),
        "calibration_error": reliability(probabilities.max(axis=1), correct).error,
    }
    if len(occurring) == count:
        ranked = probabilities[:, 1] if count == 2 else probabilities
        metrics["roc_auc"] = float(sklearn_metrics.roc_auc_score(labels, ranked, multi_class="ovr"))
    return {name: value for name, value in metrics.items() if np.isfinite(value)}
