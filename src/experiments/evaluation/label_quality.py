"""How much a model doubts the labels of images.

Source: Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", Journal of
Artificial Intelligence Research 70 (2021), pages 1373-1411, https://arxiv.org/abs/1911.00068.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.evaluation.evaluate import majority_baseline, percent
from experiments.evaluation.statistics import wilson
from experiments.runs.predictions import Prediction


class LabelledImage(NamedTuple):
    """An image with its label and the probabilities of all classes."""

    path: str  # relative to the data root
    sha256: str
    split: str
    label: str
    probabilities: tuple[float, ...]  # in the order of the classes

    @property
    def held_out(self) -> bool:
        """Whether the probabilities come from models that were not trained on the image."""
        return self.split != "train"


class Doubt(NamedTuple):
    """An image with the scores of its label; lower ones are more doubtful."""

    image: LabelledImage
    self_confidence: float  # the probability of the label
    margin: float  # that minus the largest probability of another class, in [-1, 1]
    likely: str  # the most probable other class
    probability: float  # of that class
    probably_wrong: bool  # whether confident learning counts the image for another class than its label


def have_probabilities(predictions: Sequence[Prediction], classes: Sequence[str]) -> bool:
    """Return whether predictions have labels and probabilities of these classes; those of old runs have none."""
    return all(row.label in classes and row.probabilities.keys() == set(classes) for row in predictions)


def labelled(
    predictions: Iterable[Prediction], classes: Sequence[str], split: str = "validation"
) -> list[LabelledImage]:
    """Return the images of predictions in a split, each with the mean probabilities [C] of its predictions."""
    found: dict[tuple[str, str, str], list[list[float]]] = defaultdict(list)
    for row in predictions:
        found[row.path, row.sha256, row.label].append([row.probabilities[name] for name in classes])
    return [
        LabelledImage(path, sha256, split, label, tuple(np.mean(shares, axis=0).tolist()))
        for (path, sha256, label), shares in found.items()
    ]


def rank(images: Sequence[LabelledImage], classes: Sequence[str]) -> list[Doubt]:
    """Return the images with the scores of their labels, the most doubtful first: by self-confidence.

    Confident learning counts an image for the most probable of those classes whose probability is at least the mean
    that the class has among the images labelled with it.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of[image.label] for image in images])
    probabilities = np.array([image.probabilities for image in images])
    rows, count = np.arange(len(labels)), len(classes)
    own = probabilities[rows, labels]
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    likely = others.argmax(axis=1)
    highest = others.max(axis=1)
    sums, members = np.bincount(labels, own, count), np.bincount(labels, minlength=count)
    thresholds = np.where(members > 0, sums / np.maximum(members, 1), np.inf)
    confident = np.where(probabilities >= thresholds, probabilities, -np.inf)
    wrong = np.isfinite(confident).any(axis=1) & (confident.argmax(axis=1) != labels)
    doubts = [
        Doubt(image, float(own[n]), float(own[n] - highest[n]), classes[likely[n]], float(highest[n]), bool(wrong[n]))
        for n, image in enumerate(images)
    ]
    return sorted(doubts, key=lambda doubt: (doubt.self_confidence, doubt.margin, doubt.image.path))


def count_wrong(doubts: Sequence[Doubt]) -> list[str]:
    """Return a sentence on how many labels are probably wrong, and one if the models are too weak to doubt any."""
    wrong = sum(doubt.probably_wrong for doubt in doubts)
    sentences = [f"{wrong:,} of {len(doubts):,} labels are probably wrong, as confident learning counts them"]
    held_out = [doubt for doubt in doubts if doubt.image.held_out]
    right = sum(doubt.margin > 0 for doubt in held_out)
    baseline, low = majority_baseline(doubt.image.label for doubt in held_out), wilson(right, len(held_out))[0]
    if low <= baseline.accuracy:
        accuracy = right / len(held_out)
        sentences.append(
            f"These doubts mean little: of the held-out images {percent(accuracy)} are predicted correctly, "
            f"{baseline.describe(accuracy, low)}"
        )
    return sentences
