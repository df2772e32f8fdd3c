"""Intervals and tests against published examples and analytic values."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats  # type: ignore[import-untyped]
from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

from experiments.statistics import (
    mean_interval,
    paired_difference,
    pictures_needed,
    reliability,
    roc_auc_interval,
    unpaired_difference,
    wilson,
)


def pairs(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Correctness of two models with the given counts of a paired 2 x 2 table."""
    counts = [both, only_a, only_b, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


# R. G. Newcombe, "Two-sided confidence intervals for the single proportion: comparison of seven methods", Statistics in
# Medicine 17 (1998), table I, method 3 (score method without continuity correction)
@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_published_intervals(correct: int, total: int, low: float, high: float) -> None:
    assert_allclose(wilson(correct, total), (low, high), atol=5e-5)


def test_wilson_of_eight_out_of_ten() -> None:
    z = stats.norm.ppf(0.975)  # Wilson 1927: centre and half width in closed form
    centre, half = (8 + z**2 / 2) / (10 + z**2), z / (10 + z**2) * math.sqrt(8 * 2 / 10 + z**2 / 4)
    assert_allclose(wilson(8, 10), (centre - half, centre + half), rtol=1e-12)


def test_wilson_widens_with_confidence() -> None:
    (low, high), (lower, higher) = wilson(8, 10, 0.9), wilson(8, 10, 0.99)
    assert lower < low < 0.8 < high < higher


@pytest.mark.parametrize(("correct", "total"), [(-1, 10), (11, 10), (0, 0)])
def test_wilson_refuses_impossible_counts(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"Received: {correct} of {total}"):
        wilson(correct, total)


# M. W. Fagerland, S. Lydersen, P. Laake, "The McNemar test for binary matched-pairs data", BMC Medical Research
# Methodology 13:91 (2013): airway hyper-responsiveness (Bentur 2009) and complete response (Cavo 2012), the exact
# conditional test
@pytest.mark.parametrize(
    ("table", "p_value"),
    [((1, 1, 7, 12), 0.0703), ((59, 6, 16, 80), 0.0525)],
)
def test_mcnemar_gives_the_published_exact_p_values(table: tuple[int, int, int, int], p_value: float) -> None:
    paired = paired_difference(*pairs(*table))
    assert paired.p_value == pytest.approx(p_value, abs=5e-5)
    assert (paired.only_a, paired.only_b, paired.pictures) == (table[1], table[2], sum(table))
    assert paired.difference == pytest.approx((table[2] - table[1]) / sum(table))


def test_bootstrap_agrees_with_the_normal_interval_on_many_pictures() -> None:
    a, b = pairs(2400, 250, 350, 1000)
    differences = b.astype(float) - a
    expected = stats.norm.interval(0.95, differences.mean(), differences.std() / math.sqrt(differences.size))
    paired = paired_difference(a, b)
    assert_allclose((paired.low, paired.high), expected, atol=4e-4)  # half width is 0.012
    narrower = paired_difference(a, b, confidence=0.5)
    assert paired.low < narrower.low < narrower.difference < narrower.high < paired.high


def test_same_seed_same_interval_and_swapping_models_mirrors_it() -> None:
    a, b = pairs(60, 5, 15, 20)
    paired, mirrored = paired_difference(a, b), paired_difference(b, a)
    assert paired == paired_difference(a, b)
    assert mirrored.difference == -paired.difference
    assert (mirrored.only_a, mirrored.only_b, mirrored.p_value) == (paired.only_b, paired.only_a, paired.p_value)
    assert_allclose((mirrored.low, mirrored.high), (-paired.high, -paired.low), atol=0.011)  # one picture of 100


@pytest.mark.filterwarnings("error")
def test_models_right_on_the_same_pictures_differ_by_exactly_nothing() -> None:
    right, _ = pairs(7, 0, 0, 3)
    paired = paired_difference(right, right)
    assert (paired.difference, paired.low, paired.high, paired.p_value) == (0, 0, 0, 1)


def test_several_seeds_are_averaged_per_picture() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.random((3, 400)) < 0.8, generator.random((3, 400)) < 0.85
    paired = paired_difference(a, b)
    assert paired.difference == pytest.approx(b.mean() - a.mean())
    assert (paired.p_value, paired.only_a, paired.only_b, paired.pictures) == (None, None, None, 400)
    spread = (b.mean(axis=0) - a.mean(axis=0)).std() / math.sqrt(400)
    assert_allclose(paired.high - paired.low, 2 * 1.96 * spread, rtol=0.05)
    intervals = {(other.low, other.high) for other in (paired_difference(a, b, seed=seed) for seed in range(8))}
    assert len(intervals) > 1  # the draws do depend on the seed


def test_repeating_a_seed_is_no_new_evidence() -> None:
    a, b = pairs(60, 5, 15, 20)
    once, thrice = paired_difference(a, b), paired_difference(np.tile(a, (3, 1)), np.tile(b, (3, 1)))
    assert_allclose((thrice.low, thrice.high), (once.low, once.high), atol=1e-12)


def test_one_seed_as_a_row_is_the_same_as_no_seed_axis() -> None:
    a, b = pairs(60, 5, 15, 20)
    assert paired_difference(a[None], b[None]) == paired_difference(a, b)


def test_paired_difference_names_what_it_cannot_compare() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        paired_difference([True] * 3, [True] * 4)
    with pytest.raises(ValueError, match=r"N >= 2 .* shape \(1,\)"):
        paired_difference([True], [False])
    with pytest.raises(ValueError, match=r"\[seeds, N\].* shape \(2, 2, 2\)"):
        paired_difference(np.ones((2, 2, 2), bool), np.ones((2, 2, 2), bool))
    with pytest.raises(ValueError, match="bool.* float64 and bool"):
        paired_difference([0.9, 0.1], [True, False])


def test_the_bootstrap_is_scipys_with_pictures_resampled() -> None:
    a, b = pairs(60, 5, 15, 20)
    expected = stats.bootstrap(
        (b.astype(float) - a,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    paired = paired_difference(a, b)
    assert_allclose((paired.low, paired.high), (expected.low, expected.high), atol=1e-12)


def test_equally_good_models_differ_by_exactly_nothing_over_seeds() -> None:
    a = np.array([[True, True, False], [True, False, False], [True, False, False]])
    paired = paired_difference(a, a[:, [1, 0, 2]])  # a mean of thirds, which floats do not hold
    assert paired.difference == 0 and pictures_needed(paired.difference, paired.discordant) is None


# R. J. Connor's formula (Biometrics 43 (1987), p. 209) with discordant shares 0.45 and 0.05, 5 % two-sided, 80 % power:
# 23 at powersamplesize.com (McNemar's Z-test, 2-sided equality); 22.0 before rounding up in the tests of R's package
# MESS (power_mcnemar_test(paid = 0.05, psi = 45 / 5, power = 0.8))
def test_pictures_needed_gives_the_published_example() -> None:
    assert pictures_needed(0.45 - 0.05, 0.45 + 0.05) == pictures_needed(-0.40, 0.50) == 23


def test_pictures_needed_has_the_power_it_promises() -> None:
    # the exact test's own power at that number of pictures, over all outcomes of one draw of discordant pictures
    share, difference = 0.06, 0.03
    pictures = pictures_needed(difference, share)
    assert pictures is not None
    counts = np.random.default_rng(0).multinomial(
        pictures, [(share + difference) / 2, (share - difference) / 2, 1 - share], size=4000
    )
    found = stats.binom.cdf(counts[:, :2].min(axis=1), counts[:, :2].sum(axis=1), 0.5) * 2 < 0.05
    assert 0.74 < found.mean() < 0.84


def test_pictures_needed_grow_as_the_difference_shrinks_and_refuse_what_cannot_be() -> None:
    numbers = [pictures_needed(difference, 0.1) for difference in (0.1, 0.05, 0.01)]
    assert numbers == sorted(numbers) and pictures_needed(0.0, 0.1) is None
    for difference, discordant in ((0.5, 0.1), (0.1, 1.5)):
        with pytest.raises(ValueError, match="discordant"):
            pictures_needed(difference, discordant)


def test_what_is_real_follows_the_exact_test_and_over_seeds_the_interval() -> None:
    assert not paired_difference(*pairs(80, 1, 6, 13)).real  # p = 0.125
    assert paired_difference(*pairs(80, 1, 9, 10)).real  # p = 0.021
    a, b = pairs(80, 1, 9, 10)
    several = paired_difference(np.stack([a, a]), np.stack([b, b]))
    assert several.p_value is None and several.low > 0 and several.real


# R. G. Newcombe, "Interval estimation for the difference between independent proportions: comparison of eleven
# methods", Statistics in Medicine 17 (1998), table II, method 10 (score method without continuity correction)
@pytest.mark.parametrize(
    ("b", "a", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_unpaired_difference_gives_newcombes_published_intervals(
    b: tuple[int, int], a: tuple[int, int], low: float, high: float
) -> None:
    difference = b[0] / b[1] - a[0] / a[1]
    assert_allclose(unpaired_difference(*a, *b), (difference, low, high), atol=5e-5)


def test_roc_auc_interval_is_as_wide_as_hanley_and_mcneil_say() -> None:
    generator = np.random.default_rng(0)
    positive, negative = generator.exponential(4, 300), generator.exponential(1, 200)  # the distributions they assume
    low, high = roc_auc_interval(positive, negative)
    area = roc_auc_score([True] * 300 + [False] * 200, np.concatenate([positive, negative]))
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + 299 * (q1 - area**2) + 199 * (q2 - area**2)) / (300 * 200)
    assert low < area < high and roc_auc_interval(positive, negative) == (low, high)
    assert_allclose(high - low, 2 * 1.96 * math.sqrt(variance), rtol=0.15)


def test_mean_interval_is_students() -> None:
    # t(0.975, 2 degrees of freedom) = 4.303, in every table of the distribution; the standard error is 1 / sqrt(3)
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert_allclose((low, high), (2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)), atol=5e-4)


@pytest.mark.filterwarnings("error")
def test_mean_interval_of_one_seed_is_unknown_and_of_equal_seeds_a_point() -> None:
    mean, low, high = mean_interval([0.9])
    assert mean == 0.9 and math.isnan(low) and math.isnan(high)
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_calibration_error_by_hand() -> None:
    # bin (9/15, 10/15]: 0.62 wrong, 0.66 right -> |0.5 - 0.64| = 0.14 for 2 pictures;
    # bin (14/15, 1]: 0.95 right, 0.97 wrong, 1.0 right -> |2/3 - 2.92/3| = 0.92/3 for 3
    bins = reliability(np.array([0.62, 0.66, 0.95, 0.97, 1.0]), np.array([False, True, True, False, True]))
    assert bins.error == pytest.approx((2 * 0.14 + 0.92) / 5)
    assert bins.counts.tolist() == [0] * 9 + [2] + [0] * 4 + [3]
    assert_allclose(bins.accuracy[[9, 14]], [0.5, 2 / 3])
    assert_allclose(bins.confidence[[9, 14]], [0.64, 2.92 / 3])
    assert np.isnan(bins.accuracy[0]) and np.isnan(bins.confidence[0])


def test_calibration_bins_are_closed_on_the_right() -> None:
    edge = np.linspace(0, 1, 16)[9]  # 9/15; Guo et al.: bin m is ((m - 1) / M, m / M]
    assert reliability(np.array([edge]), np.array([True])).counts.argmax() == 8


def test_calibrated_predictions_have_little_error_and_boastful_ones_much() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1, 50_000)
    assert reliability(confidence, generator.random(50_000) < confidence).error < 0.01
    assert reliability(np.full(1000, 0.99), generator.random(1000) < 0.6).error == pytest.approx(0.39, abs=0.05)


def test_reliability_refuses_what_does_not_match() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        reliability(np.zeros(3), np.zeros(2, bool))
