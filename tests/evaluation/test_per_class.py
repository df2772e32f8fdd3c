"""Scores by class: as scikit-learn computes them, their intervals, undefined ones, and confused pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from experiments.evaluation.per_class import class_columns, class_scores, confused_pairs, confusion_of
from experiments.evaluation.statistics import wilson
from experiments.runs.predictions import Prediction

FLOWERS = ("daisy", "rose", "tulip")


def prediction(label: str, predicted: str) -> Prediction:
    return Prediction(f"{label}.jpg", "0", label, predicted, 0.8, label == predicted, {})


def test_scores_as_sklearn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    predicted = np.where(rng.random(300) < 0.7, labels, rng.integers(0, 5, 300))
    scores = class_scores(confusion_matrix(labels, predicted), "abcde")
    expected = precision_recall_fscore_support(labels, predicted)
    assert [score.name for score in scores] == list("abcde")
    for found, values in zip(("precision", "recall", "f1"), expected, strict=False):
        assert [getattr(score, found).value for score in scores] == pytest.approx(values)
    assert [score.support for score in scores] == expected[3].tolist()
    assert [score.predicted for score in scores] == np.bincount(predicted).tolist()
    for score in scores:
        for low, high in ((score.precision.low, score.precision.high), (score.f1.low, score.f1.high)):
            assert 0 < low < high < 1
        assert score.recall[1:] == wilson(round(score.recall.value * score.support), score.support)


def test_the_interval_of_f1_by_hand() -> None:
    # 8 right, 3 missed, 1 false alarm: F1 = 16 / 20; the Jaccard index is 8 / 12.
    (_, score) = class_scores(np.array([[20, 1], [3, 8]]), ("no", "yes"))
    low, high = wilson(8, 12)
    assert score.f1 == pytest.approx((16 / 20, 2 * low / (1 + low), 2 * high / (1 + high)))


def test_the_interval_of_f1_covers_the_true_one_as_often_as_it_claims() -> None:
    shares = np.array([0.30, 0.06, 0.04, 0.60])  # right, missed, false alarm, the rest
    true = 2 * shares[0] / (2 * shares[0] + shares[1] + shares[2])
    draws = np.random.default_rng(0).multinomial(80, shares, 300)
    found = [class_scores(np.array([[rest, alarm], [miss, right]]), "ab")[1].f1 for right, miss, alarm, rest in draws]
    covered = sum(interval.low <= true <= interval.high for interval in found)
    assert stats.binomtest(covered, 300, 0.95).pvalue > 0.001


def test_undefined_scores_are_nan_and_none_in_the_table() -> None:
    scores = class_scores(np.array([[2, 0, 0], [1, 0, 0], [0, 0, 0]]), FLOWERS)
    daisy, rose, tulip = scores
    assert (daisy.precision.value, daisy.recall.value) == (2 / 3, 1)
    assert math.isnan(rose.precision.value)
    assert (rose.recall.value, rose.f1.value) == (0, 0)
    assert all(math.isnan(interval.value) for interval in (tulip.precision, tulip.recall, tulip.f1))
    columns = class_columns(scores)
    assert columns["precision"] == [2 / 3, None, None]
    assert columns["recall_low"][2] is None
    assert columns["images"] == [2, 1, 0]
    assert {len(column) for column in columns.values()} == {3}


def test_pairs_the_most_confused_first_and_equal_ones_in_label_order() -> None:
    pairs = confused_pairs(np.array([[5, 1, 2], [0, 7, 0], [1, 1, 0]]), FLOWERS)
    assert [str(pair) for pair in pairs] == ["daisy → tulip 2", "daisy → rose 1", "tulip → daisy 1", "tulip → rose 1"]
    assert [pair.share for pair in pairs] == [2 / 8, 1 / 8, 1 / 2, 1 / 2]
    assert confused_pairs(np.diag([3, 4]), ("a", "b")) == []


def test_the_confusion_of_recorded_predictions_has_the_order_of_the_labels() -> None:
    rows = [prediction("rose", "daisy"), prediction("daisy", "daisy")]
    assert confusion_of(rows, ("tulip", "rose", "daisy")).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 1]]
