"""Precision, recall and F1 of each class, and the pairs of classes that a model confuses, from a confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import confusion_matrix

from experiments.evaluation.statistics import UNKNOWN, Interval, wilson
from experiments.runs.predictions import Prediction


class ClassScore(NamedTuple):
    """The scores of one class against all others, with 95 % intervals; nan where a score is undefined."""

    name: str
    support: int  # images of the class
    predicted: int  # images that the model assigns to the class
    precision: Interval  # undefined if no image is assigned to the class
    recall: Interval  # undefined if no image is of the class
    f1: Interval  # undefined if both


class ConfusedPair(NamedTuple):
    label: str  # the true class
    predicted: str
    images: int
    share: float  # of the images of the true class

    def __str__(self) -> str:
        return f"{self.label} → {self.predicted} {self.images}"


def class_scores(confusion: np.ndarray, classes: Sequence[str]) -> list[ClassScore]:
    """Return the scores of every class, in label order.

    Precision and recall are shares of images with Wilson's interval. F1 is 2 J / (1 + J), where J is the share of
    the correctly assigned images among those that are of the class or assigned to it (the Jaccard index); its interval
    is Wilson's of J, transformed in the same way. The rows of the confusion matrix [C, C] are true classes.

    Source: K. F. Y. Lam, V. Gopal, J. Qian, "Confidence intervals for the F1 score: a comparison of four methods",
    arXiv:2309.14621 (2023), the Wilson indirect method.
    """
    counts = (confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal())
    scores = []
    for name, support, predicted, right in zip(classes, *(count.tolist() for count in counts), strict=True):
        jaccard = share_interval(right, support + predicted - right)
        f1 = Interval(*(2 * value / (1 + value) for value in jaccard))
        precision, recall = share_interval(right, predicted), share_interval(right, support)
        scores.append(ClassScore(name, support, predicted, precision, recall, f1))
    return scores


def worst_first(scores: Iterable[ClassScore]) -> list[ClassScore]:
    """Return the scores in the order of F1, the lowest first; classes whose F1 is undefined come last."""
    return sorted(scores, key=lambda score: (math.isnan(score.f1.value), score.f1.value))


def share_interval(count: int, total: int) -> Interval:
    """Return a share of images with Wilson's interval; unknown if there are no images."""
    return Interval(count / total, *wilson(count, total)) if total else UNKNOWN


def confused_pairs(confusion: np.ndarray, classes: Sequence[str]) -> list[ConfusedPair]:
    """Return the pairs of classes that are confused at least once, the most frequent first, else in label order."""
    shares = confusion_shares(confusion)
    pairs = [
        ConfusedPair(classes[row], classes[column], int(confusion[row, column]), float(shares[row, column]))
        for row, column in np.argwhere(confusion)
        if row != column
    ]
    return sorted(pairs, key=lambda pair: -pair.images)


def confusion_shares(confusion: np.ndarray) -> np.ndarray:
    """Return the confusion matrix [C, C] as shares of each true class's images; 0 for a class without images."""
    totals = confusion.sum(axis=1, keepdims=True)
    shares: np.ndarray = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    return shares


def confusion_of(predictions: Iterable[Prediction], classes: Sequence[str]) -> np.ndarray:
    """Return the confusion matrix [C, C] int64 of at least one prediction; rows are true classes."""
    labels, predicted = zip(*((row.label, row.predicted) for row in predictions), strict=True)
    confusion: np.ndarray = confusion_matrix(labels, predicted, labels=classes)
    return confusion


def class_columns(scores: Sequence[ClassScore]) -> dict[str, list[Any]]:
    """Return the scores as columns of equal length for a table or a CSV file; None where a score is undefined."""
    columns: dict[str, list[Any]] = {
        "class": [score.name for score in scores],
        "images": [score.support for score in scores],
        "predicted": [score.predicted for score in scores],
    }
    for metric in ("precision", "recall", "f1"):
        for at, suffix in enumerate(("", "_low", "_high")):
            values = [getattr(score, metric)[at] for score in scores]
            columns[metric + suffix] = [None if math.isnan(value) else value for value in values]
    return columns
