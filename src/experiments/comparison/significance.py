"""Significance tests of differences between models and between settings; each interval is the dual of its p-value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from experiments.comparison.groups import Scores, seed_order
from experiments.evaluation.statistics import (
    LEVEL,
    SMALLEST_P,
    Interval,
    Spread,
    dual_p_value,
    spread_of_mean,
    wilson,
)

POWER = 0.8  # the power for which the needed number of images or seeds is estimated
MOST_IMAGES = 10_000_000  # A difference that needs more images is treated as none: no data set could show it.
NUDGE = 1e-9  # distance from the observed difference, at which the score test has another root


@dataclass(frozen=True)
class Difference:
    """The mean of a per-image score of b minus that of a; the interval and the p-value are duals of each other."""

    value: float  # for accuracies in [-1, 1]
    low: float
    high: float
    p_value: float  # two-sided; below 0.05 exactly if the 95 % interval excludes 0
    source: Literal["images", "seeds", "folds"]  # what varies: images alone (two trained models), or training too
    images: int  # number of images, that of the smaller side if they differ
    only_a: int | None = None  # images that only a classified correctly; None unless each side is one model
    only_b: int | None = None
    paired: bool = True  # whether both sides were evaluated on the same images
    partly: bool = False  # whether a side was also evaluated on images that the other lacks, which are not compared
    runs: tuple[int, int] = (1, 1)  # number of seeds of either side
    some_seeds: bool = False  # whether a side has further seeds, which are not compared
    by_seed: tuple[float, ...] = ()  # the difference for each seed that both sides have, if there are several
    # Of `value`; None for accuracies of two trained models, and in `compare_runs` for sides with other seeds or images.
    spread: Spread | None = field(default=None, repr=False)

    @property
    def interval(self) -> Interval:
        return Interval(self.value, self.low, self.high)

    @property
    def significant(self) -> bool:
        return self.p_value < LEVEL

    @property
    def about_setting(self) -> bool:
        """Whether the interval includes training noise, so that it supports a claim about the setting."""
        return self.source != "images"

    @property
    def needed(self) -> int | None:
        """The number of images that would show such a difference between two models; None if that is unknown."""
        if self.only_a is None or self.only_b is None:
            return None
        return images_needed(self.value, (self.only_a + self.only_b) / self.images)

    def repeats_needed(self, repeats: int, most: int) -> int | None:
        """Return how many seeds, or folds, would show a difference as large as this one with a power of 80 %.

        The measured variances are taken as the true ones. None if `most` would not be enough, or if the variance
        between repeats is unknown.

        Args:
            repeats: the present number of seeds or folds (see `source`), at least 2, the same on both sides.
            most: the largest number that is possible.
        """
        if (spread := self.spread) is None:
            return None
        counts = range(repeats + 1, most + 1)
        return next((n for n in counts if shown_difference(spread.repeated(repeats, n)) <= abs(self.value)), None)


def shown_difference(spread: Spread) -> float:
    """Return the size of the difference that is significant with a power of 80 %, if its spread is this one."""
    return spread.margin() + spread.margin(2 * (1 - POWER))


def images_for_spread(spread: Spread, difference: float, images: float) -> float | None:
    """Return how many images would show a difference with a power of 80 %, which the present `images` do not.

    The spread is that on the present images. None if even `MOST_IMAGES` would not be enough, as the variance between
    seeds remains.
    """

    def missing(number: float) -> float:
        return shown_difference(spread.on_images(number / images)) - abs(difference)

    return None if missing(MOST_IMAGES) > 0 else float(optimize.brentq(missing, images, MOST_IMAGES, rtol=1e-3))


def compare_runs(first: Scores, other: Scores) -> Difference:
    """Return the difference of the scores of `other` minus those of `first`, over the images that both have.

    Several seeds on each side, or the same folds on both, support a claim about the setting; seeds that both sides have
    are compared with each other. If a side has a single run, or the sides have different folds, two models are
    compared, of the same seed if possible, the lowest of several. Without common images the comparison is unpaired.
    """

    def lowest(of: Iterable[str]) -> list[str]:
        return [min(of, key=seed_order)]

    known = set(other.images)
    common = [image for image in first.images if image in known]
    seeds = [seed for seed in first.by_seed if seed in other.by_seed]
    sides, least = (first, other), min(len(first.by_seed), len(other.by_seed))
    matched, folded = False, first.folds_of(common)
    if len(common) < 2:
        folds = first.folds_of(first.images), other.folds_of(other.images)
        single = least == 1 and not all(folds)
        a, b = (side.matrix(side.images, lowest(side.by_seed) if single else None) for side in sides)
        found = replace(unpaired_difference(a, b, folds=folds if all(folds) else (None, None)), paired=False)
    else:
        if folded != other.folds_of(common):
            folded, least = None, 1
        matched = folded is None and least > 1 and len(seeds) > 1
        if folded is None and least == 1:
            a, b = (side.matrix(common, lowest(seeds or side.by_seed)) for side in sides)
        else:
            a, b = (side.matrix(common, seeds if matched else None) for side in sides)
        by_seed = tuple((b.mean(axis=1) - a.mean(axis=1)).tolist()) if matched else ()
        partly = len(common) < max(len(first.images), len(known))
        found = replace(difference(a, b, folds=folded, matched_seeds=matched), partly=partly, by_seed=by_seed)
    some_seeds = len(a) < len(first.by_seed) or len(b) < len(other.by_seed)
    spread = found.spread if matched or folded else None  # else it does not show what more seeds or folds would change
    return replace(found, runs=(len(a), len(b)), some_seeds=some_seeds, spread=spread)


def difference(
    scores_a: ArrayLike, scores_b: ArrayLike, *, folds: Sequence[str] | None = None, matched_seeds: bool = True
) -> Difference:
    """Compare two configurations on the same images: difference of a score, its interval and the dual p-value.

    With one run per side, two trained models are compared, which allows no conclusion about the settings that they were
    trained with. The accuracies of two models have Tango's score interval and its dual, McNemar's test. With several
    seeds or folds, the interval includes the variance of training; see `spread_of_mean`, applied to the differences.

    Args:
        scores_a: [N] or [S, N] for S seeds, N >= 2 images: bool, whether a classified each correctly, or any float
            score, such as the loss.
        scores_b: the same for b, images in the same order.
        folds: [N] the fold in which each image was held out, the same for both.
        matched_seeds: whether both sides have the same seeds, in the same order; their differences are then taken seed
            by seed. If False, S may differ, and is 2 or more on both sides.

    Source: T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998); Q. McNemar, Psychometrika 12 (1947). Both are recommended by M. W.
    Fagerland, S. Lydersen, P. Laake, Statistics in Medicine 33 (2014); the test rejects at most 5.4 % of true
    equalities, where the exact one is needlessly conservative (BMC Medical Research Methodology 13:91 (2013)).
    """
    a, b = (np.atleast_2d(np.asarray(scores)) for scores in (scores_a, scores_b))
    by_fold = folds is not None and len(set(folds)) > 1
    boolean = a.dtype == bool
    if boolean and len(a) == 1 and not by_fold:
        return _compare_models(a[0], b[0])
    a, b = a.astype(float), b.astype(float)
    seed_means = b.mean(axis=0) - a.mean(axis=0)
    if by_fold:
        spread = spread_of_mean(seed_means[None], boolean, folds)
    elif matched_seeds or len(a) == len(b) == 1:
        spread = spread_of_mean(b - a, boolean)
    else:
        both = spread_of_mean(a, boolean), spread_of_mean(b, boolean)
        floor, degrees = spread_of_mean(seed_means[None], boolean).floor
        own_images = max(floor - sum(side.residual for side in both), 0.0)
        parts = (*(side.parts[0] for side in both), (own_images, degrees))
        spread = Spread(parts, (floor, degrees), "seeds")
    value = 0.0 if len(a) == len(b) and a.sum() == b.sum() else float(b.mean() - a.mean())
    return _difference(value, spread, a.shape[1], boolean)


def _compare_models(a: np.ndarray, b: np.ndarray) -> Difference:
    """Return the difference in accuracy of two models from their correct classifications, [N] bool."""
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    low, high = tango(only_b, only_a, a.size)
    discordant = only_a + only_b
    distance = abs(only_b - only_a) / math.sqrt(discordant) if discordant else 0.0
    p_value = max(SMALLEST_P, float(2 * stats.norm.sf(distance)))
    return Difference((only_b - only_a) / a.size, low, high, p_value, "images", a.size, only_a, only_b)


def _difference(value: float, spread: Spread, images: int, boolean: bool) -> Difference:
    margin, most = spread.margin(), 1.0 if boolean else math.inf
    low, high = max(-most, value - margin), min(most, value + margin)
    return Difference(value, low, high, spread.p_value(value), spread.source, images, spread=spread)


def tango(only_b: int, only_a: int, images: int) -> tuple[float, float]:
    """Return Tango's score interval of accuracy b - accuracy a on the same images; McNemar's test is its dual.

    Args:
        only_b, only_a: the number of images that only this model classified correctly.
        images: the number of all images.

    Source: Tango (1998), see `difference`; equations 10 to 12, solved by `scipy.optimize.brentq`.
    """
    square = float(stats.norm.isf(LEVEL / 2)) ** 2

    def excess(assumed: float) -> float:
        """Return the squared distance from an assumed difference, minus the squared quantile times its variance."""
        linear = 2 * images * assumed - (only_b + only_a) - (only_b - only_a) * assumed
        root = math.sqrt(max(0.0, linear**2 + 8 * images * only_a * assumed * (1 - assumed)))
        # The maximum likelihood estimate, under the assumed difference, of the share of images that only a gets right.
        share = (root - linear) / (4 * images)
        variance = images * (2 * share + assumed * (1 - assumed))
        return (only_b - only_a - images * assumed) ** 2 - square * variance

    value = (only_b - only_a) / images
    low = optimize.brentq(excess, -1.0, value - NUDGE, xtol=1e-14) if value - NUDGE > -1 else -1.0
    high = optimize.brentq(excess, value + NUDGE, 1.0, xtol=1e-14) if value + NUDGE < 1 else 1.0
    return float(low), float(high)


def unpaired_difference(
    scores_a: ArrayLike, scores_b: ArrayLike, *, folds: Sequence[Sequence[str] | None] = (None, None)
) -> Difference:
    """Compare two configurations that were evaluated on different images; see `difference`.

    The accuracies of two models have Newcombe's interval and the p-value that is its dual; for others see
    `spread_of_mean`, applied to each side. `folds` are those of the images of a, and of b. Either both sides have
    several seeds, or folds, or neither has.

    Source: R. G. Newcombe, "Interval estimation for the difference between independent proportions: comparison of
    eleven methods", Statistics in Medicine 17 (1998), method 10: from the two Wilson intervals.
    """
    a, b = (np.atleast_2d(np.asarray(scores)) for scores in (scores_a, scores_b))
    boolean, images, value = a.dtype == bool, min(a.shape[1], b.shape[1]), float(b.mean() - a.mean())
    if boolean and len(a) == len(b) == 1 and not any(folds):
        counts = int(a.sum()), a.size, int(b.sum()), b.size

        def distance(level: float) -> float:
            below, above = newcombe(*counts, 1 - level)
            return below if value > 0 else -above

        return Difference(value, *newcombe(*counts), dual_p_value(distance) if value else 1.0, "images", images)
    both = [spread_of_mean(scores, boolean, own) for scores, own in zip((a, b), folds, strict=True)]
    floor = (sum(side.floor[0] for side in both), min(side.floor[1] for side in both))
    return _difference(value, Spread(both[0].parts + both[1].parts, floor, both[0].source), images, boolean)


def newcombe(
    correct_a: int, total_a: int, correct_b: int, total_b: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return Newcombe's interval of accuracy b - accuracy a on different images; see `unpaired_difference`.

    Args:
        correct_a, total_a: the number of images that model a classified correctly, and of all its images.
        correct_b, total_b: the same for model b.
        confidence: coverage of the interval, in (0, 1).
    """
    low_a, high_a = wilson(correct_a, total_a, confidence)
    low_b, high_b = wilson(correct_b, total_b, confidence)
    a, b = correct_a / total_a, correct_b / total_b
    return b - a - math.hypot(b - low_b, high_a - a), b - a + math.hypot(high_b - b, a - low_a)


def images_needed(difference: float, discordant: float) -> int | None:
    """Return how many images a two-sided McNemar test needs to show a difference in accuracy with the power `POWER`.

    The two shares are assumed to be the true ones, as if they had been known beforehand. Estimates of a small
    difference are mostly noise, and so is the number that follows from them: read it as an order of magnitude. None if
    the difference is 0, or too small to be shown by `MOST_IMAGES`.

    Args:
        difference: in accuracy, in [-1, 1].
        discordant: the share of images that one of the two models gets right and the other wrong, in [|difference|, 1].

    Source: R. J. Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics
    43 (1987), p. 209, by the normal approximation; the exact test needs a few more.
    """
    under_equality = float(stats.norm.isf(LEVEL / 2)) * math.sqrt(discordant)
    as_observed = float(stats.norm.isf(1 - POWER)) * math.sqrt(max(0.0, discordant - difference**2))
    root = under_equality + as_observed
    if difference == 0 or root > abs(difference) * math.sqrt(MOST_IMAGES):
        return None
    return math.ceil((root / difference) ** 2)
