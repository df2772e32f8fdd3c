"""How much a model doubts the labels of images.

Source: Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", Journal of
Artificial Intelligence Research 70 (2021), pages 1373-1411, https://arxiv.org/abs/1911.00068.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelQuality:
    """Scores of the labels of N images; lower ones are more doubtful."""

    self_confidence: np.ndarray  # [N] the probability of the label
    margin: np.ndarray  # [N] that minus the largest probability of another class, in [-1, 1]
    likely: np.ndarray  # [N] int, the most probable other class
    probably_wrong: np.ndarray  # [N] bool, whether confident learning counts the image for another class than its label


def label_quality(labels: np.ndarray, probabilities: np.ndarray) -> LabelQuality:
    """Return how much a model doubts the labels of images, which it should not have been trained on.

    Confident learning counts an image for the most probable of those classes whose probability is at least the mean
    that the class has among the images labelled with it.

    Args:
        labels: [N] int.
        probabilities: [N, C] float, C >= 2.
    """
    rows, count = np.arange(len(labels)), probabilities.shape[1]
    own = probabilities[rows, labels]
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    likely = others.argmax(axis=1)
    sums, images = np.bincount(labels, own, count), np.bincount(labels, minlength=count)
    thresholds = np.where(images > 0, sums / np.maximum(images, 1), np.inf)
    confident = np.where(probabilities >= thresholds, probabilities, -np.inf)
    wrong = np.isfinite(confident).any(axis=1) & (confident.argmax(axis=1) != labels)
    return LabelQuality(own, own - probabilities[rows, likely], likely, wrong)
