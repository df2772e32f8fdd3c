"""Selective classification: a model answers only images of enough confidence, and makes fewer mistakes on those.

Source: R. El-Yaniv, Y. Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 11 (2010), and
Y. Geifman, R. El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017: coverage is the share of
images that are answered, risk the share of mistakes among those. The confidence is the probability of the predicted
class ("softmax response").
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from experiments.evaluation.evaluate import percent
from experiments.evaluation.statistics import wilson


class RiskCoverage(NamedTuple):
    """The risk at every coverage, in order of falling thresholds; K is the number of distinct confidences."""

    threshold: np.ndarray  # [K] float64: images of at least this confidence are answered
    answered: np.ndarray  # [K] int64, number of images
    wrong: np.ndarray  # [K] int64, mistakes among those
    coverage: np.ndarray  # [K] float64, share of the images that are answered
    risk: np.ndarray  # [K] float64, share of mistakes among those
    area: float  # AURC, the mean of the risk over the coverages 1/N, 2/N, ..., 1


class Rejection(NamedTuple):
    """A threshold of confidence, and what it does to the images that it was chosen by."""

    threshold: float  # images of at least this confidence are answered
    answered: int
    correct: int  # of those answered
    images: int

    def describe(self, wanted: float) -> str:
        """Return sentences on what the threshold was chosen by, and on how certain the wanted accuracy is."""
        low, high = wilson(self.correct, self.answered)
        certain = "" if low >= wanted else f", so an accuracy below {percent(wanted)} on new images is not excluded"
        return (
            f"Threshold {self.threshold:.4g}: of {self.images} validation images it answers {self.answered} "
            f"({percent(self.answered / self.images)}), and {self.correct} of those correctly: "
            f"{percent(self.correct / self.answered)} (95 % interval {percent(low)} to {percent(high)}{certain}). "
            "It was chosen by these images, and holds for images like them"
        )


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> RiskCoverage:
    """Return the risk-coverage curve of N >= 1 predictions; images of equal confidence are answered together.

    The confidence is [N] float; whether the predictions are correct is [N] bool.

    Source: the area is AURC of Y. Geifman, G. Uziel, R. El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural
    Classifiers", ICLR 2019.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # the last image of each distinct confidence
    answered, wrong = last + 1, np.cumsum(~correct[order])[last]
    coverage, risk = answered / len(ranked), wrong / answered
    area = float(np.sum(np.diff(answered, prepend=0) * risk) / len(ranked))
    return RiskCoverage(ranked[last], answered, wrong, coverage, risk, area)


def reject_for(accuracy: float, confidence: np.ndarray, correct: np.ndarray) -> Rejection | None:
    """Return the lowest threshold at which the accuracy of the answered images is at least the wanted one, in (0, 1].

    It is midway between two confidences that occur, so that rounding errors change no answer; 0 if all images may be
    answered. Return None if the most confident images are not that accurate either.
    """
    curve = risk_coverage(confidence, correct)
    right = curve.answered - curve.wrong
    enough = np.flatnonzero(right >= accuracy * curve.answered - 1e-9)
    if not enough.size:
        return None
    at = int(enough[-1])
    threshold = 0.0 if at == len(right) - 1 else float(curve.threshold[at] + curve.threshold[at + 1]) / 2
    return Rejection(threshold, int(curve.answered[at]), int(right[at]), len(confidence))
