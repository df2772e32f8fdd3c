"""Differences between models and between settings: published examples, exact duality, and error rates by simulation."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from experiments.comparison.groups import Scores
from experiments.comparison.significance import (
    Difference,
    compare_runs,
    difference,
    images_for_spread,
    images_needed,
    newcombe,
    tango,
    unpaired_difference,
)
from experiments.comparison.text import SINGLE, difference_sentence, limitations, points
from experiments.evaluation.statistics import SMALLEST_P, Spread, spread_of_mean


def pairs(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Correctness of two models with the given counts of a paired 2 x 2 table."""
    counts = [both, only_a, only_b, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


# M. W. Fagerland, S. Lydersen, P. Laake, "Recommended tests and confidence intervals for paired binomial proportions",
# Statistics in Medicine 33 (2014): airway hyper-responsiveness (Bentur 2009), 1, 1, 7, 12; McNemar's asymptotic test
# and Tango's interval
def test_two_models_have_mcnemars_test_and_tangos_interval_as_published() -> None:
    found = difference(*pairs(1, 1, 7, 12))
    assert found.p_value == pytest.approx(0.0339, abs=5e-5)
    assert_allclose((found.low, found.high), (0.026, 0.517), atol=5e-4)
    assert (found.only_a, found.only_b, found.images, found.value) == (1, 7, 21, 6 / 21)
    assert found.significant and not found.about_setting


def test_tangos_bounds_where_the_score_test_is_solved_in_closed_form() -> None:
    square = stats.norm.isf(0.025) ** 2
    for images in (2, 50, 4000):
        end = square / (images + square)  # without a discordant image
        assert_allclose(tango(0, 0, images), (-end, end), rtol=1e-9)
        least = (images - square) / (images + square)  # with nothing but discordant images of one kind
        assert_allclose(tango(images, 0, images), (least, 1), atol=1e-9)
        assert_allclose(tango(0, images, images), (-1, -least), atol=1e-9)


def coherent(found: Difference) -> bool:
    excludes = not found.low <= 0 <= found.high
    return found.significant == excludes == (found.p_value < 0.05) and found.low <= found.value <= found.high


def test_a_p_value_is_never_zero() -> None:
    found = difference(*pairs(0, 0, 1600, 2400))
    assert found.p_value == SMALLEST_P and found.significant


def test_a_difference_in_loss_is_not_rounded_to_zero() -> None:
    loss = np.random.default_rng(0).uniform(1e-4, 2e-4, (3, 400))
    found = difference(loss, loss + 2e-5)
    assert found.significant and "b is worse than a by 0.00002 in loss" in difference_sentence("b", "a", found, "loss")
    assert points(found, "loss") == "+0.00002 [+0.00002, +0.00002]"
    assert points(difference(loss, loss), "loss") == "+0.0000 [+0.0000, +0.0000]"
    unknown = unpaired_difference(loss[0], loss[0, :1])
    assert points(unknown, "loss").endswith("[-inf, +inf]")


def test_interval_p_value_and_significance_never_contradict_each_other() -> None:
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(3000):
        table = rng.multinomial(rng.integers(2, 400), rng.dirichlet([1, 0.3, 0.3, 1]))
        found = difference(*pairs(*table.tolist()))
        assert coherent(found), table
        outcomes.add(found.significant)
    for _ in range(150):
        sizes = rng.integers(2, 300, 2)
        a, b = (rng.random(size) < rng.random() for size in sizes)
        assert coherent(unpaired_difference(a, b)), (a.sum(), b.sum(), sizes)
    for _ in range(300):  # seeds, matched or not, folds, and scores that are no counts
        seeds, images = rng.integers(2, 6), rng.integers(4, 60)
        a, b = (rng.random((seeds, images)) < rng.random() for _ in range(2))
        folds = list("01" * images)[:images] if rng.random() < 0.3 else None
        assert coherent(difference(a, b, folds=folds))
        assert coherent(difference(a, b[1:] if seeds > 2 else b, matched_seeds=False))
        assert coherent(difference(rng.normal(size=images), rng.normal(0.3, 1, images)))
        assert coherent(unpaired_difference(a, b[:, 1:]))
    assert outcomes == {True, False}


def trained(rng: np.random.Generator, seeds: int, images: np.ndarray, noise: float, better: float = 0.0) -> np.ndarray:
    """Correctness of models of one setting: images differ in difficulty, seeds in quality, and both interact."""
    quality = 1.1 + better + noise * rng.normal(size=(seeds, 1))
    return np.asarray(quality + images + 0.5 * rng.normal(size=(seeds, images.size)) > 0)


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("matched", [True, False])
def test_equal_settings_are_called_different_in_at_most_a_twentieth(seeds: int, noise: float, matched: bool) -> None:
    """With noise 0.5, seeds differ by 8 points: over the images alone, most of the equal settings would differ."""
    rng = np.random.default_rng(seeds)
    rejected, naive, repeats = 0, 0, 250
    for _ in range(repeats):
        images = rng.normal(size=200)
        a, b = (trained(rng, seeds, images, noise) for _ in range(2))
        found = difference(a, b, matched_seeds=matched)
        assert found.about_setting and found.source == "seeds"
        rejected += found.significant
        naive += difference(a.mean(axis=0), b.mean(axis=0)).significant
    assert rejected <= stats.binom.isf(0.001, repeats, 0.05)
    assert noise < 0.5 or naive > 0.5 * repeats


def test_a_true_difference_is_found_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(0)
    found, held, repeats = 0, 0, 150
    for _ in range(repeats):
        images = rng.normal(size=400)
        test = difference(trained(rng, 3, images, 0.05), trained(rng, 3, images, 0.05, better=0.8))
        scale = math.sqrt(1 + 0.05**2 + 0.5**2)
        held += test.low <= stats.norm.cdf(1.9 / scale) - stats.norm.cdf(1.1 / scale) <= test.high
        found += test.significant
    assert found > 0.9 * repeats and held >= stats.binom.ppf(0.001, repeats, 0.95)


def test_folds_that_share_training_images_are_not_independent() -> None:
    """Two learners that are equal but for noise, on five folds: the class with the nearer mean, of random features."""
    rng = np.random.default_rng(0)
    folds = np.arange(60) % 5
    repeats, rejected = 200, 0

    def held_out(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        correct = np.zeros(60, bool)
        for fold in range(5):
            used, train = rng.permutation(8)[:3], folds != fold
            means = [features[train & (labels == label)][:, used].mean(axis=0) for label in (0, 1)]
            distances = [np.linalg.norm(features[~train][:, used] - mean, axis=1) for mean in means]
            correct[~train] = (distances[1] < distances[0]) == labels[~train]
        return correct

    for _ in range(repeats):
        labels = rng.permutation(np.arange(60) // 30)
        features = rng.normal(size=(60, 8)) + 0.5 * labels[:, None]
        found = difference(held_out(features, labels), held_out(features, labels), folds=[str(fold) for fold in folds])
        assert found.source == "folds" and found.about_setting
        rejected += found.significant
    assert rejected <= stats.binom.isf(0.001, repeats, 0.05)


@pytest.mark.filterwarnings("error")
def test_models_right_on_the_same_images_are_not_certain_to_be_equal() -> None:
    right, _ = pairs(7, 0, 0, 3)
    for scores in (right, np.stack([right] * 3)):
        found = difference(scores, scores)
        assert found.value == 0 and found.p_value == 1 and found.low == pytest.approx(-found.high) and found.high > 0.1


def test_swapping_the_sides_mirrors_the_result() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 100)) < 0.8, rng.random((3, 100)) < 0.9
    for first, second in ((a, b), (a[0], b[0])):
        found, mirrored = difference(first, second), difference(second, first)
        expected = (-found.value, -found.high, -found.low, found.p_value)
        assert_allclose((mirrored.value, mirrored.low, mirrored.high, mirrored.p_value), expected, atol=1e-9)


def test_sides_without_common_seeds_or_images_have_the_variances_of_both() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 40)) < 0.6, rng.random((2, 40)) < 0.8
    sides = [spread_of_mean(side, True) for side in (a, b)]
    found = difference(a, b, matched_seeds=False).spread
    assert found is not None and found.parts[:2] == (sides[0].parts[0], sides[1].parts[0])
    means = b.mean(axis=0) - a.mean(axis=0)
    images = (float(np.sum((means - means.mean()) ** 2)) + 1) / (40 * 39) - sides[0].residual - sides[1].residual
    assert found.parts[2] == pytest.approx((images, 39)) and images > 0
    apart = unpaired_difference(a, b[:, :10])
    assert apart.spread is not None and len(apart.spread.parts) == 4
    assert apart.spread.floor[1] == 9 and apart.images == 10, "those of the side with fewer images"


def test_repeating_a_seed_adds_no_images() -> None:
    a, b = pairs(120, 10, 30, 40)
    once, thrice = difference(a, b), difference(np.tile(a, (3, 1)), np.tile(b, (3, 1)))
    assert_allclose((thrice.low, thrice.high), (once.low, once.high), atol=0.005)


def test_equally_good_settings_differ_by_exactly_nothing() -> None:
    a = np.array([[True, True, False], [True, False, False], [True, False, False]])
    assert difference(a, a[:, [1, 0, 2]]).value == 0, "a mean of thirds, which floats do not hold"


def of(*counts: int, seeds: Sequence[str] = "012", first: int = 0, folds: int = 0) -> Scores:
    """Runs that classify the first images correctly, so many of 40, one for each seed."""
    scores: Any = {
        seed: {first + at: at < count for at in range(40)} for seed, count in zip(seeds, counts, strict=False)
    }
    return Scores(scores, {first + at: str(at % folds) for at in range(40)} if folds else {})


def test_runs_are_compared_as_settings_only_where_both_have_several() -> None:
    found = compare_runs(of(20, 22, 24), of(34, 36, 38))
    assert (
        found.about_setting
        and found.runs == (3, 3)
        and not found.some_seeds
        and found.by_seed == pytest.approx([0.35] * 3)
    )
    found = compare_runs(of(20, 22, 24), of(38, seeds="2"))
    assert not found.about_setting and found.value == pytest.approx(14 / 40), "the same seed on both sides"
    assert found.some_seeds and ", 40 images, one seed of each)" in difference_sentence("b", "a", found)
    found = compare_runs(of(20, 22, 24), of(34, 36, seeds="34"))
    assert (
        found.about_setting and found.runs == (3, 2) and found.by_seed == () and found.value == pytest.approx(13 / 40)
    )
    found = compare_runs(of(20, 22, 24), of(34, 36, seeds="12"))
    assert found.runs == (2, 2) and found.value == pytest.approx(12 / 40), "the seeds that both have"
    assert found.some_seeds and ", 40 images, the 2 seeds that both have)" in difference_sentence("b", "a", found)
    found = compare_runs(of(20, folds=4), of(34, folds=4))
    assert found.source == "folds" and found.about_setting
    assert not compare_runs(of(20, 22, folds=4), of(34, 36, folds=2)).about_setting, "not the same training sets"
    models, settings = compare_runs(of(20), of(34)), compare_runs(of(20, 22), of(34, 36))
    assert limitations([settings], "More seeds") == []
    assert limitations([settings, models], "More seeds")[:2] == [SINGLE, "More seeds"], "if any compares two models"


def test_the_order_of_runs_and_sides_does_not_change_which_seed_is_compared() -> None:
    several, swapped = of(20, 22, seeds="01"), of(22, 20, seeds="10")
    for other in (of(30, seeds="7"), of(30, seeds="7", first=100)):  # no seed in common; no image either
        assert compare_runs(several, other) == compare_runs(swapped, other)
        assert compare_runs(several, other).value == pytest.approx(10 / 40), "seed 0"
    one, another = of(20, 22, folds=4), of(36, 34, seeds="10", folds=2)  # other folds: one seed of each
    assert compare_runs(one, another).value == -compare_runs(another, one).value == pytest.approx(14 / 40)
    assert compare_runs(of(1, 2, 3, seeds=["2", "10", "9"]), of(39, seeds="0")).value == pytest.approx(38 / 40)


def test_runs_without_common_images_are_compared_unpaired() -> None:
    found = compare_runs(of(20), of(30, first=100))
    assert not found.paired and (found.low, found.high) == newcombe(20, 40, 30, 40) and found.needed is None
    several = compare_runs(of(20, 21), of(30, 33, first=100))
    assert several.about_setting and not several.paired and several.low < found.low
    assert not compare_runs(of(20, 21), of(30, first=100)).about_setting
    partly = compare_runs(of(20), of(40, first=10))
    assert partly.paired and partly.partly and partly.images == 30


# R. J. Connor's formula (Biometrics 43 (1987), p. 209) with discordant shares 0.45 and 0.05, 5 % two-sided, 80 % power:
# 23 at powersamplesize.com (McNemar's Z-test, 2-sided equality); 22.0 before rounding up in the tests of R's package
# MESS (power_mcnemar_test(paid = 0.05, psi = 45 / 5, power = 0.8))
def test_images_needed_gives_the_published_example() -> None:
    assert images_needed(0.45 - 0.05, 0.45 + 0.05) == images_needed(-0.40, 0.50) == 23


def test_images_needed_has_the_power_it_promises() -> None:
    # the exact test's own power at that number of images, over all outcomes of one draw of discordant images
    share, difference = 0.06, 0.03
    images = images_needed(difference, share)
    assert images is not None
    counts = np.random.default_rng(0).multinomial(
        images, [(share + difference) / 2, (share - difference) / 2, 1 - share], size=4000
    )
    found = stats.binom.cdf(counts[:, :2].min(axis=1), counts[:, :2].sum(axis=1), 0.5) * 2 < 0.05
    assert 0.74 < found.mean() < 0.84


def test_images_needed_grow_as_the_difference_shrinks() -> None:
    numbers = [images_needed(each, 0.1) or 0 for each in (0.1, 0.05, 0.01)]
    assert 0 not in numbers and numbers == sorted(numbers) and images_needed(0.0, 0.1) is None
    assert images_needed(1e-5, 0.1) is None and images_needed(1e-200, 1e-200) is None, "more than any data set has"
    assert images_needed(0.0, 0.0) is None


def test_more_images_do_not_reduce_the_variance_between_seeds() -> None:
    images = Spread(((1e-6, 19.0), (1e-4, 399.0)), (1e-4, 399.0), "seeds", 1e-6)  # between seeds, only the interaction
    assert images_for_spread(images, 0.005, 400) == pytest.approx(400 * (2.8 * 0.01 / 0.005) ** 2, rel=0.12)
    assert images.on_images(1) == images
    assert images.on_images(4) == Spread(((2.5e-7, 19.0), (2.5e-5, 1596.0)), (2.5e-5, 1596.0), "seeds", 2.5e-7)
    seeds = Spread(((1e-4, 19.0), (1e-8, 399.0)), (1e-8, 399.0), "seeds")
    assert images_for_spread(seeds, 0.005, 400) is None, "the means of the seeds differ by more"


def test_more_folds_reduce_the_variance_by_as_much_as_their_overlap_allows() -> None:
    three = Spread(((0.005, 2.0),), (0.001, 299.0), "folds")
    (between, degrees), floor = three.repeated(3, 5).parts[0], three.repeated(3, 5).floor
    assert (between, degrees) == pytest.approx((0.005 * (1 / 5 + 1 / 4) / (1 / 3 + 1 / 2), 4))
    assert floor == pytest.approx((0.001 * 3 / 5, 299 * 5 / 3)), "each fold brings images of its own"
    assert three.on_images(4) == Spread(((0.00125, 2.0),), (0.00025, 1196.0), "folds")


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
def test_different_images_have_newcombes_published_intervals(
    b: tuple[int, int], a: tuple[int, int], low: float, high: float
) -> None:
    assert_allclose(newcombe(*a, *b), (low, high), atol=5e-5)
