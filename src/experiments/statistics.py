"""How sure a score is: intervals for one model, paired comparisons of two, intervals over seeds, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats  # type: ignore[import-untyped]

CALIBRATION_BINS = 15  # as in Guo et al. 2017
RESAMPLES = 9999
RESAMPLES_OF_RANKS = 1999  # which take longer
RESAMPLED_AT_ONCE = 10_000_000  # values held in memory while bootstrapping, some 160 MB


@dataclass(frozen=True)
class Paired:
    """Model b against model a on the same pictures; differences and bounds are accuracies, so lie in [-1, 1]."""

    difference: float  # accuracy of b - accuracy of a
    low: float
    high: float
    p_value: float | None  # exact McNemar test; None for several seeds
    only_a: int | None  # pictures only a got right; None for several seeds
    only_b: int | None
    pictures: int
    discordant: float  # share of pictures that one of the two got right; of several seeds the mean squared difference

    @property
    def real(self) -> bool:
        """Whether it is more than chance at the 5 % level: by the exact test where there is one, else the interval."""
        return self.p_value < 0.05 if self.p_value is not None else not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in equal-width bins over [0, 1]; a bin holds low < confidence <= high."""

    edges: np.ndarray  # [bins + 1] float64
    counts: np.ndarray  # [bins] int64, pictures per bin
    confidence: np.ndarray  # [bins] float64, mean confidence; nan in an empty bin
    accuracy: np.ndarray  # [bins] float64, share of correct pictures; nan in an empty bin
    error: float  # expected calibration error, in [0, 1]


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of an accuracy, without continuity correction.

    Args:
        correct: number of pictures classified correctly, in [0, total].
        total: number of pictures, at least 1.
        confidence: coverage, in (0, 1).

    Returns:
        Lower and upper bound, each in [0, 1].

    Raises:
        ValueError: if `correct`, `total` or `confidence` is out of range.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927);
    computed by `scipy.stats.binomtest`.
    """
    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"`correct` must lie in [0, total] and `total` be >= 1. Received: {correct} of {total}")
    interval = stats.binomtest(int(correct), int(total)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def paired_difference(correct_a: ArrayLike, correct_b: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Paired:
    """Compare two models on the same pictures: difference in accuracy, bootstrap interval, exact McNemar test.

    Pictures are what is resampled. With several seeds a picture's correctness is first averaged over the seeds, so the
    interval says how the difference would vary over other pictures, for these seeds.

    Args:
        correct_a: [N] bool, or [S, N] bool for S seeds: whether model a got each of N >= 2 pictures right.
        correct_b: the same for model b, the same shape, pictures in the same order.
        confidence: coverage of the interval, in (0, 1).
        seed: of the bootstrap's draws; the same seed gives the same interval.

    Returns:
        A `Paired`: mean(b) - mean(a) with its percentile bootstrap interval. Percentile, because BCa is undefined where
        all differences are equal; two models right on the same pictures get the interval (0, 0). With one seed
        (S == 1 or [N]) also the two-sided exact McNemar p-value and the counts of discordant pictures.

    Raises:
        ValueError: if the shapes differ, are neither [N] nor [S, N], hold fewer than two pictures, or are not bool.

    Source: B. Efron, R. Tibshirani, "An Introduction to the Bootstrap" (1993), ch. 13; Q. McNemar, Psychometrika 12
    (1947), the exact form being a sign test; computed by `scipy.stats.bootstrap` and `scipy.stats.binomtest`.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.shape != b.shape:
        raise ValueError(f"`correct_a` and `correct_b` must have the same shape. Received: {a.shape} and {b.shape}")
    if a.ndim not in (1, 2) or a.shape[-1] < 2 or a.shape[0] < 1:
        raise ValueError(f"`correct_a` must be [N] or [seeds, N] with N >= 2 pictures. Received: shape {a.shape}")
    if a.dtype != bool or b.dtype != bool:
        raise ValueError(f"`correct_a` and `correct_b` must hold bool. Received: {a.dtype} and {b.dtype}")

    a, b = np.atleast_2d(a), np.atleast_2d(b)
    differences = b.mean(axis=0) - a.mean(axis=0)
    bootstrap = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, RESAMPLED_AT_ONCE // differences.size),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    p_value = only_a = only_b = None
    if len(a) == 1:
        only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
        # without a discordant picture nothing speaks against equality, and binomtest takes no empty sample
        p_value = float(stats.binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
    interval = bootstrap.confidence_interval
    return Paired(
        difference=(int(b.sum()) - int(a.sum())) / a.size,  # exactly 0 where they are equally good
        low=float(interval.low),
        high=float(interval.high),
        p_value=p_value,
        only_a=only_a,
        only_b=only_b,
        pictures=differences.size,
        discordant=float(np.mean(differences**2)),
    )


def pictures_needed(difference: float, discordant: float, power: float = 0.8, level: float = 0.05) -> int | None:
    """How many pictures a two-sided McNemar test would need to see a difference in accuracy.

    Args:
        difference: in accuracy, in [-1, 1].
        discordant: share of pictures that one of the two models gets right and the other wrong, in [|difference|, 1].
            With d, the difference in correctness on a picture, it is the mean of d squared; so it also serves where d
            is a mean over seeds.
        power: chance of seeing it, in (0, 1).
        level: of the test, in (0, 1).

    Returns:
        A number of pictures, by the normal approximation: the exact test wants a few more. None where there is no
        difference to be seen.

    Raises:
        ValueError: if the shares cannot be.

    Source: R. J. Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics
    43 (1987), p. 209; quantiles by `scipy.stats.norm`.
    """
    if not difference**2 <= discordant + 1e-9 <= 1 + 2e-9:
        raise ValueError(f"`discordant` must lie in [difference ** 2, 1]. Received: {discordant} with {difference}")
    if difference == 0:
        return None
    under_equality = float(stats.norm.isf(level / 2)) * math.sqrt(discordant)
    as_seen = float(stats.norm.isf(1 - power)) * math.sqrt(max(0.0, discordant - difference**2))
    return math.ceil(((under_equality + as_seen) / difference) ** 2)


def unpaired_difference(
    correct_a: int, total_a: int, correct_b: int, total_b: int, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Compare the accuracies of two models that were judged on different pictures.

    Args:
        correct_a, total_a: pictures that model a got right, of how many; as `wilson`.
        correct_b, total_b: the same for model b.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        Accuracy of b - accuracy of a, lower and upper bound, each in [-1, 1].

    Raises:
        ValueError: as `wilson`.

    Source: R. G. Newcombe, "Interval estimation for the difference between independent proportions: comparison of
    eleven methods", Statistics in Medicine 17 (1998), method 10: from the two Wilson intervals.
    """
    low_a, high_a = wilson(correct_a, total_a, confidence)
    low_b, high_b = wilson(correct_b, total_b, confidence)
    a, b = correct_a / total_a, correct_b / total_b
    return b - a, b - a - math.hypot(b - low_b, high_a - a), b - a + math.hypot(high_b - b, a - low_a)


def roc_auc_interval(
    positive: ArrayLike, negative: ArrayLike, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the area under the ROC curve, resampled within each class.

    Args:
        positive: [P] float, P >= 2, scores of the pictures of the class.
        negative: [N] float, N >= 2, scores of the others.
        confidence: coverage, in (0, 1).
        seed: of the bootstrap's draws.

    Returns:
        Lower and upper bound, each in [0, 1].

    Source: the area is the Mann-Whitney U over P * N (J. A. Hanley, B. J. McNeil, Radiology 143 (1982)); computed by
    `scipy.stats.mannwhitneyu` and `scipy.stats.bootstrap`.
    """

    def area(positive: np.ndarray, negative: np.ndarray, axis: int = -1) -> np.ndarray:
        ranked = stats.mannwhitneyu(positive, negative, axis=axis, method="asymptotic")
        found: np.ndarray = ranked.statistic / (positive.shape[axis] * negative.shape[axis])
        return found

    samples = (np.asarray(positive, dtype=float), np.asarray(negative, dtype=float))
    bootstrap = stats.bootstrap(
        samples,
        area,
        n_resamples=RESAMPLES_OF_RANKS,
        batch=max(1, RESAMPLED_AT_ONCE // 10 // (samples[0].size + samples[1].size)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(bootstrap.confidence_interval.low), float(bootstrap.confidence_interval.high)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of a score over seeds and its Student-t interval, n - 1 degrees of freedom.

    Args:
        values: one score per seed, at least one, in any unit.
        confidence: coverage, in (0, 1).

    Returns:
        Mean, lower and upper bound, in the unit of `values`; the bounds are nan for a single value.

    Raises:
        ValueError: if `values` is empty.

    Source: Student, "The probable error of a mean", Biometrika 6 (1908); computed by `scipy.stats`.
    """
    if len(values) == 0:
        raise ValueError(f"`values` must hold at least one number. Received: {values!r}")
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, float("nan"), float("nan")
    # not t.interval(scale=sem): that is nan when all seeds agree
    margin = float(stats.sem(values) * stats.t.ppf((1 + confidence) / 2, df=len(values) - 1))
    return mean, mean - margin, mean + margin


def reliability(confidence: np.ndarray, correct: np.ndarray) -> Reliability:
    """Bin predictions by confidence and measure the expected calibration error.

    The error is the mean over pictures of the gap between their bin's accuracy and mean confidence. It is biased upward
    on few pictures: even a perfectly calibrated model scores above 0.

    Args:
        confidence: [N] float, N >= 1, probability of the predicted class, in [0, 1].
        correct: [N] bool, whether that class is the true one.

    Returns:
        A `Reliability` with 15 bins.

    Raises:
        ValueError: if the two are not one-dimensional, of one shape and at least one long.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3. (sklearn's `calibration_curve`
    leaves out empty bins and counts.)
    """
    if confidence.ndim != 1 or confidence.shape != correct.shape or confidence.size == 0:
        raise ValueError(
            "`confidence` and `correct` must both be [N] with N >= 1. "
            f"Received: shapes {confidence.shape} and {correct.shape}"
        )
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins = np.digitize(confidence, edges[1:-1], right=True)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    sums = [np.bincount(bins, weights, CALIBRATION_BINS) for weights in (confidence, correct)]
    filled = counts > 0
    means = [np.divide(total, counts, out=np.full(CALIBRATION_BINS, np.nan), where=filled) for total in sums]
    return Reliability(
        edges=edges,
        counts=counts,
        confidence=means[0],
        accuracy=means[1],
        error=float(np.sum(np.abs(sums[1] - sums[0])) / confidence.size),
    )
