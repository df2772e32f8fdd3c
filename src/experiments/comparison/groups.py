"""Runs of one setting as a group: their scores by image, over seeds and folds, and the interval of a metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.evaluation.statistics import Interval, mean_interval, score_interval


def seed_order(seed: str) -> tuple[int, str]:
    """Return the key by which seeds are sorted: whole numbers, or interpolations."""
    return len(seed), seed


@dataclass(frozen=True)
class Scores:
    """The scores of every image by the runs of one configuration, which differ in seed and fold only."""

    by_seed: Mapping[str, Mapping[Hashable, float]]  # seed -> image -> score; bool if it is a correct classification
    folds: Mapping[Hashable, str]  # image -> the fold in which it was held out; empty without folds

    @property
    def images(self) -> list[Hashable]:
        """The images for which all seeds have a score."""
        first, *others = self.by_seed.values()
        return [image for image in first if all(image in other for other in others)]

    def matrix(self, images: Sequence[Hashable], seeds: Sequence[str] | None = None) -> np.ndarray:
        """Return the scores of `seeds`, by default of all: [S, N] bool or float."""
        chosen = self.by_seed if seeds is None else seeds
        return np.array([[self.by_seed[seed][image] for image in images] for seed in chosen])

    def folds_of(self, images: Sequence[Hashable]) -> list[str] | None:
        """Return the fold of each image; None if there is at most one fold."""
        folds = [self.folds.get(image, "") for image in images]
        return folds if len(set(folds)) > 1 else None

    def interval(self) -> Interval:
        images = self.images
        return score_interval(self.matrix(images), self.folds_of(images))


def gather_scores(runs: Iterable[tuple[str, str, Mapping[Hashable, float]]]) -> Scores:
    """Return the scores of a group of runs from the seed, the fold ("" without folds) and the scores of each."""
    by_seed: dict[str, dict[Hashable, float]] = {}
    folds: dict[Hashable, str] = {}
    for seed, fold, scores in runs:
        by_seed.setdefault(seed, {}).update(scores)
        folds |= dict.fromkeys(scores, fold)
    return Scores(by_seed, folds)


def metric_interval(values: Sequence[tuple[str, str, float]], scores: Scores | None, lowest: float = 0.0) -> Interval:
    """Return the mean of a metric over a group of runs, and its interval.

    A metric that is a mean over images is weighted by the number of images of each fold, as the images are in `scores`.

    Args:
        values: the seed, the fold and the value of the metric of each run, at least one.
        scores: those of the same runs if the metric is a mean over images: the interval is then over images, and over
            seeds or folds if there are several. If None, it is over seeds or folds only, for these images, and the
            metric lies in [lowest, 1].
        lowest: the lowest value of the metric, below which no interval reaches.
    """
    sizes = Counter(scores.folds.values()) if scores is not None else None
    weights = [sizes[fold] for _, fold, _ in values] if sizes else None
    mean = float(np.average([value for *_, value in values], weights=weights))
    if scores is not None:
        found = scores.interval() if len(scores.images) > 1 else Interval(mean)
        low = float(np.maximum(lowest, mean - found.value + found.low))
        return Interval(mean, low, mean - found.value + found.high)
    by_fold = len({fold for _, fold, _ in values}) > 1
    repeats: dict[str, list[float]] = {}
    for seed, fold, value in values:
        repeats.setdefault(fold if by_fold else seed, []).append(value)
    found = mean_interval([float(np.mean(each)) for each in repeats.values()], folds=by_fold)
    return Interval(*map(float, np.clip(found, lowest, 1)))
