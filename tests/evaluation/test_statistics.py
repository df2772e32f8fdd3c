"""Intervals and tests against published examples and analytic values."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.metrics import roc_auc_score

from experiments.comparison.groups import gather_scores, metric_interval
from experiments.comparison.significance import compare_runs
from experiments.config.schema import LOWEST
from experiments.evaluation.statistics import mean_interval, reliability, roc_auc_interval, score_interval, wilson


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


def test_roc_auc_interval_is_as_wide_as_hanley_and_mcneil_say() -> None:
    generator = np.random.default_rng(0)
    positive, negative = generator.exponential(4, 300), generator.exponential(1, 200)  # the distributions they assume
    low, high = roc_auc_interval(positive, negative)
    area = roc_auc_score([True] * 300 + [False] * 200, np.concatenate([positive, negative]))
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + 299 * (q1 - area**2) + 199 * (q2 - area**2)) / (300 * 200)
    assert low < area < high and roc_auc_interval(positive, negative) == (low, high)
    assert_allclose(high - low, 2 * 1.96 * math.sqrt(variance), rtol=0.15)
    assert all(map(math.isnan, roc_auc_interval([0.9, 0.8, 0.7], [0.1, 0.2]))), "three and two images prove nothing"


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


def test_one_seed_has_wilsons_interval_and_agreeing_seeds_keep_that_of_the_images() -> None:
    correct = np.arange(400) < 386
    mean, low, high = score_interval(correct)
    assert mean == 0.965 and (low, high) == wilson(386, 400)
    _, three_low, three_high = score_interval(np.stack([correct] * 3))
    assert_allclose((three_low, three_high), (low, high), atol=0.006), "seeds that agree do not add images"
    _, many_low, many_high = score_interval(np.ones((3, 50), bool))
    assert many_high == 1 and 0.9 < many_low < 0.97, "nor is a perfect score certain"


def test_runs_that_agree_are_not_more_certain_than_one_of_them() -> None:
    """Of 50 images, for every number of correct ones; the lower bound is above the true accuracy in 3 % of cases."""
    images = 50
    counts, folds = np.arange(images + 1), [str(at % 2) for at in range(images)]
    for of_runs in (
        lambda correct: score_interval(np.stack([correct] * 3)),
        lambda correct: score_interval(correct, folds),
        lambda correct: mean_interval([float(correct.mean())] * 3, images),
    ):
        found = np.array([of_runs(np.arange(images) < count) for count in counts])
        alone = np.array([wilson(count, images) for count in range(images + 1)])
        assert np.all(found[:, 1] <= alone[:, 0]) and np.all(found[:, 2] >= alone[:, 1])
        assert np.all((found[:, 1] >= 0) & (found[:, 2] <= 1))
        for accuracy in np.linspace(0.5, 0.999, 500):
            probability = stats.binom.pmf(counts, images, accuracy)
            assert probability[found[:, 1] > accuracy].sum() < 0.035, accuracy


def test_the_interval_of_several_seeds_has_the_variance_between_them() -> None:
    """Two seeds, 60 and 70 of 100 right on images drawn independently: t(0.975, 1) = 12.706, in every table."""
    rng = np.random.default_rng(0)
    correct = np.stack([rng.permutation(np.arange(100) < count) for count in (60, 70)])
    mean, low, high = score_interval(correct)
    assert mean == 0.65 and high == 1 and low < 0.65 - 12.706 * 0.05
    # for counts alone: the binomial variance of the images, 0.65 * 0.35 / 100, and one image more
    margin = math.sqrt((12.706 * 0.05) ** 2 + 1.96**2 * (0.65 * 0.35 / 100 + 1e-4))
    assert mean_interval([0.6, 0.7], 100) == pytest.approx((0.65, max(0, 0.65 - margin), 1), abs=1e-4)
    assert mean_interval([0.6], 100) == (0.6, *wilson(60, 100))


def test_folds_are_corrected_for_training_sets_that_overlap() -> None:
    """Nadeau and Bengio 2003, eq. 9: 1 / K + n_test / n_train in place of 1 / K, and K - 1 degrees of freedom."""
    values = [0.80, 0.84, 0.85, 0.87, 0.89]
    expected = 2.776 * np.std(values, ddof=1) * math.sqrt(1 / 5 + 1 / 4)
    mean, low, high = mean_interval(values, folds=True)
    assert_allclose((mean - low, high - mean), expected, rtol=1e-3)
    correct = np.concatenate([np.arange(1000) < 1000 * value for value in values])[None]
    folds = [str(at // 1000) for at in range(5000)]
    found = score_interval(correct, folds)
    assert_allclose(found, (mean, low, high), atol=1e-9)
    assert score_interval(correct, ["0"] * 5000) == score_interval(correct), "a single fold is none"


def test_a_metric_of_several_runs_has_its_interval_over_seeds_or_folds() -> None:
    folds = [("0", str(fold), value) for fold, value in enumerate((0.80, 0.81, 0.82))]
    assert metric_interval(folds, None) == pytest.approx(mean_interval([0.80, 0.81, 0.82], folds=True))
    seeds = [("0", "", 0.80), ("1", "", 0.84), ("2", "", 0.89)]
    assert metric_interval(seeds, None) == pytest.approx(mean_interval([0.80, 0.84, 0.89]))
    assert metric_interval([("0", "", 0.9), ("1", "", 1.0)], None).high == 1
    assert metric_interval([("0", "", 0.1), ("1", "", 0.2)], None).low == 0
    matthews = metric_interval([("0", "", 0.1), ("1", "", 0.2)], None, LOWEST["matthews"])
    assert matthews == pytest.approx(mean_interval([0.1, 0.2])) and matthews.low < 0
    assert math.isnan(metric_interval([("0", "", 0.9)], None).low)
    scores = gather_scores((str(seed), "", {at: at < 30 + seed for at in range(40)}) for seed in range(2))
    mean, low, high = scores.interval()
    shifted = metric_interval([("0", "", 0.7), ("1", "", 0.7)], scores)
    assert shifted == pytest.approx((0.7, 0.7 - mean + low, 0.7 - mean + high)), "the logged mean, the images' interval"
    uneven = gather_scores(
        ("0", fold, dict.fromkeys(images, fold == "0")) for fold, images in {"0": "abc", "1": "d"}.items()
    )
    assert metric_interval([("0", "0", 1.0), ("0", "1", 0.0)], uneven).value == uneven.interval().value == 0.75
    brier = gather_scores((str(seed), "", dict.fromkeys(range(40), 0.1 + 0.2 * seed)) for seed in range(2))
    assert metric_interval([("0", "", 0.1), ("1", "", 0.3)], brier).low == 0 > brier.interval().low


def test_calibration_error_by_hand() -> None:
    # bin (9/15, 10/15]: 0.62 wrong, 0.66 right -> |0.5 - 0.64| = 0.14 for 2 images;
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


def test_a_single_image_shows_nothing_about_settings() -> None:
    first, other = (
        gather_scores((seed, "", {"the image": right}) for seed, right in zip("01", of, strict=True))
        for of in ((True, False), (True, True))
    )
    assert first.interval() == (0.5, 0, 1)
    found = compare_runs(first, other)
    assert found.p_value == 1 and found.interval == (0.5, -1, 1)
