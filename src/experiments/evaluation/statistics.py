"""Confidence intervals of scores over images, seeds and folds, and calibration; for differences see `significance`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

LEVEL = 0.05  # significance level of every test; intervals have coverage 1 - LEVEL
SMALLEST_P = 1e-12  # the lower bound of p-values; smaller ones are not computed
CALIBRATION_BINS = 15  # as in Guo et al. 2017
RESAMPLES = 1999
RESAMPLED_AT_ONCE = 10_000_000  # values held in memory while bootstrapping, about 160 MB


class Interval(NamedTuple):
    """A mean and its 95 % interval, whose bounds are nan if it is unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def columns(self, name: str) -> dict[str, float]:
        """Return the columns of a table that hold the value and its bounds."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


UNKNOWN = Interval(math.nan)


@dataclass(frozen=True)
class Spread:
    """The variance of a mean: independent contributions, each with the degrees of freedom of its estimate."""

    parts: tuple[tuple[float, float], ...]  # variance, degrees of freedom
    floor: tuple[float, float]  # the same for the images alone: an interval is never narrower than theirs
    source: Literal["images", "seeds", "folds"] = "images"
    residual: float = 0.0  # the interaction of images and seeds, which is part of both contributions

    def margin(self, level: float = LEVEL) -> float:
        """Return half the width of the interval with coverage 1 - level.

        Every variance is multiplied by the squared t-quantile of its own degrees of freedom. The coverage is then at
        least nominal for any ratio of the variances, whereas Satterthwaite's approximation rejects 13 % of true
        equalities with two seeds (simulated).

        Source: K. S. Banerjee, "Approximate confidence interval for linear functions of means of k populations when
        the population variances are not equal", Sankhya 22 (1960).
        """

        def square(variance: float, degrees: float) -> float:
            return float(special.stdtrit(degrees, level / 2)) ** 2 * variance  # `stats.t` is many times slower.

        return math.sqrt(max(sum(square(*part) for part in self.parts), square(*self.floor)))

    def p_value(self, value: float) -> float:
        """Return the level at which the interval around `value` begins to include 0."""
        if value == 0 or math.isinf(self.margin()):
            return 1.0
        return dual_p_value(lambda level: abs(value) - self.margin(level))

    def repeated(self, before: int, after: int) -> Spread:
        """Return the expected spread with `after` instead of `before` seeds, or folds of the same size."""
        if self.source == "seeds":
            (seeds, _), (images, degrees) = self.parts
            residual = self.residual * before / after
            floor = (self.floor[0] - self.residual + residual, self.floor[1])
            return Spread(((seeds * before / after, after - 1.0), (images, degrees)), floor, "seeds", residual)
        overlap = (1 / after + 1 / (after - 1)) / (1 / before + 1 / (before - 1))
        floor = (self.floor[0] * before / after, self.floor[1] * after / before)
        return Spread(((self.parts[0][0] * overlap, after - 1.0),), floor, self.source)

    def on_images(self, factor: float) -> Spread:
        """Return the expected spread on `factor` times as many images; the variance between seeds stays as it is."""
        (training, degrees), *images = self.parts
        shared = min(self.residual, training) if self.source == "seeds" else training
        parts = [(training - shared + shared / factor, degrees)]
        parts += [(variance / factor, number * factor) for variance, number in images]
        floor = (self.floor[0] / factor, self.floor[1] * factor)
        return Spread(tuple(parts), floor, self.source, self.residual / factor)


def dual_p_value(distance: Callable[[float], float]) -> float:
    """Return the level at which the interval of a difference begins to include 0, at least SMALLEST_P.

    Args:
        distance: level -> the distance of the interval with coverage 1 - level from 0, negative if it includes 0.
    """
    if distance(SMALLEST_P) > 0:
        return SMALLEST_P
    return math.exp(
        optimize.brentq(lambda logarithm: distance(math.exp(logarithm)), math.log(SMALLEST_P), 0.0, xtol=1e-12)
    )


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in equal-width bins over [0, 1]; a bin holds low < confidence <= high."""

    edges: np.ndarray  # [bins + 1] float64
    counts: np.ndarray  # [bins] int64, images per bin
    confidence: np.ndarray  # [bins] float64, mean confidence; nan in an empty bin
    accuracy: np.ndarray  # [bins] float64, share of correctly classified images; nan in an empty bin
    error: float  # expected calibration error, in [0, 1]


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the bounds, in [0, 1], of the Wilson score interval of an accuracy, without continuity correction.

    Raises:
        ValueError: if `total` is below 1, `correct` not in [0, total], or `confidence` not in (0, 1).

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927);
    computed by `scipy.stats.binomtest`.
    """
    interval = stats.binomtest(int(correct), int(total)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def spread_of_mean(scores: np.ndarray, counts: bool, folds: Sequence[str] | None = None) -> Spread:
    """Estimate the variance of the mean of `scores` over other images, other seeds and, with folds, training sets.

    Seeds and images are crossed random effects, as readers and cases are in multi-reader studies: the variance is that
    between seeds / S, plus that between images of the means over seeds / N, minus the interaction, which both contain.
    With folds, each value is a fold's mean over its images and seeds; since the folds' training sets overlap, the
    variance between K folds is multiplied by 1 / K + 1 / (K - 1), not by 1 / K. With one seed and no folds only the
    images vary.

    Args:
        scores: [S, N], a score of each of N images for S seeds, or a difference of scores. A single image leaves the
            variance unknown, that is infinite.
        counts: whether the scores count correctly classified images. The images' variance then includes one more image
            that differs, so that models that agree on every image still have an interval.
        folds: [N] the fold in which each image was held out; None or a single fold means no folds.

    Source: B. D. Gallas, "One-shot estimate of MRMC variance: AUC", Academic Radiology 13 (2006), and N. A. Obuchowski,
    H. E. Rockette, Communications in Statistics B 24 (1995), for crossed random effects; C. Nadeau, Y. Bengio,
    "Inference for the generalization error", Machine Learning 52 (2003), for folds; A. Agresti, Y. Min, Statistics in
    Medicine 24 (2005), for the added image.
    """
    values = scores.astype(float)
    runs, images = values.shape
    if images == 1:
        return Spread(((math.inf, 1),), (math.inf, 1))
    columns = values.mean(axis=0)
    between_images = (float(np.sum((columns - columns.mean()) ** 2)) + counts) / (images * (images - 1))
    floor = (between_images, images - 1)
    if folds is not None and len(names := sorted(set(folds))) > 1:
        means = [columns[[fold == name for fold in folds]].mean() for name in names]
        overlap = 1 / len(names) + 1 / (len(names) - 1)
        return Spread(((overlap * float(np.var(means, ddof=1)), len(names) - 1),), floor, "folds")
    if runs == 1:
        return Spread((floor,), floor)
    rows = values.mean(axis=1)
    between_seeds = float(np.var(rows, ddof=1)) / runs
    errors = values - rows[:, None] - columns + columns.mean()
    residual = float(np.sum(errors**2)) / ((runs - 1) * (images - 1)) / values.size
    parts = ((between_seeds, runs - 1), (max(between_images - residual, 0.0), images - 1))
    return Spread(parts, floor, "seeds", residual)


def score_interval(scores: ArrayLike, folds: Sequence[str] | None = None) -> Interval:
    """Return the mean of a per-image score and its interval: Wilson's for a single run's accuracy.

    The scores are [S, N] for S seeds and N images: bool, whether each is classified correctly, or float. For more
    seeds, and for `folds` [N], the fold in which each image was held out, see `spread_of_mean`; the interval of their
    accuracy contains Wilson's of the images, so that runs that agree are not more certain than one of them.
    """
    values = np.atleast_2d(np.asarray(scores))
    mean, boolean = float(values.mean()), values.dtype == bool
    if boolean and len(values) == 1 and len(set(folds or ())) < 2:
        return Interval(mean, *wilson(int(values.sum()), values.size))
    return _around(mean, spread_of_mean(values, boolean, folds).margin(), values.shape[1] if boolean else None)


def _around(mean: float, margin: float, images: int | None) -> Interval:
    """Return the interval of a mean; that of a share of images lies within [0, 1] and contains Wilson's."""
    low, high = mean - margin, mean + margin
    if not images:
        return Interval(mean, low, high)
    lowest, highest = wilson(round(mean * images), images)
    return Interval(mean, max(0.0, min(low, lowest)), min(1.0, max(high, highest)))


def mean_interval(values: Sequence[float], images: int | None = None, *, folds: bool = False) -> Interval:
    """Return the mean of a score over seeds, or folds, and its interval.

    Without `images` the interval is Student's with n - 1 degrees of freedom: the images are taken as fixed, and the
    bounds of a single value are nan. For accuracies, `images` is the number of images on which each is measured, whose
    binomial variance is then included; the interval of a single value is Wilson's, which that of several contains. For
    `folds` see `spread_of_mean`.

    Source: Student, "The probable error of a mean", Biometrika 6 (1908); for the two variances see `Spread.margin`.
    """
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return Interval(mean, *wilson(round(mean * images), images)) if images else Interval(mean)
    factor = 1 / count + (1 / (count - 1) if folds else 0)
    parts = [(factor * float(np.var(values, ddof=1)), float(count - 1))]
    if images:
        parts.append(((mean * (1 - mean) * images + 1) / images**2, math.inf))
    return _around(mean, Spread(tuple(parts), (0.0, 1.0)).margin(), images)


def roc_auc_interval(positive: ArrayLike, negative: ArrayLike) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the area under the ROC curve, resampled within each class.

    The scores are those of the images of the class [P] and of the others [N], P, N >= 2. The bounds are nan if all
    resamples have the same area, as those of scores that separate the classes perfectly.

    Source: the area is the Mann-Whitney U over P * N (J. A. Hanley, B. J. McNeil, Radiology 143 (1982)); computed by
    `scipy.stats.mannwhitneyu` and `scipy.stats.bootstrap`.
    """

    def area(positive: np.ndarray, negative: np.ndarray, axis: int = -1) -> np.ndarray:
        ranked = stats.mannwhitneyu(positive, negative, axis=axis, method="asymptotic")
        found: np.ndarray = ranked.statistic / (positive.shape[axis] * negative.shape[axis])
        return found

    samples = (np.asarray(positive, dtype=float), np.asarray(negative, dtype=float))
    bootstrap = stats.bootstrap(
        samples, area, n_resamples=RESAMPLES, confidence_level=1 - LEVEL, method="percentile",
        batch=max(1, RESAMPLED_AT_ONCE // 10 // (samples[0].size + samples[1].size)), rng=np.random.default_rng(0),
    )  # fmt: skip
    low, high = map(float, bootstrap.confidence_interval)
    return (low, high) if low < high else (math.nan, math.nan)


def reliability(confidence: np.ndarray, correct: np.ndarray) -> Reliability:
    """Bin predictions by confidence and measure the expected calibration error.

    The error is the mean over images of the gap between their bin's accuracy and mean confidence, the probability [N]
    of the predicted class; `correct` [N] bool is whether that class is the true one. The error is biased upward with
    few images: even a perfectly calibrated model has one above 0.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3. (scikit-learn's
    `calibration_curve` returns neither empty bins nor counts.)
    """
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins = np.digitize(confidence, edges[1:-1], right=True)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    sums = [np.bincount(bins, weights, CALIBRATION_BINS) for weights in (confidence, correct)]
    filled = counts > 0
    means, shares = (np.divide(total, counts, out=np.full(CALIBRATION_BINS, np.nan), where=filled) for total in sums)
    return Reliability(edges, counts, means, shares, float(np.sum(np.abs(sums[1] - sums[0])) / confidence.size))
