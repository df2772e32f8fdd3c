"""The positive class and its threshold: fixed, or chosen by validation images for a recall or a precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.evaluation.decision import (
    Decision,
    choose_threshold,
    decision_of,
    recorded,
    threshold_warnings,
)
from experiments.evaluation.evaluate import evaluate
from tests.evaluation.test_evaluate import FLOWERS, PETS, random_scores, splits_of

Read = Callable[..., Config]
LABELS = np.random.default_rng(3).integers(0, 2, 120)
SCORES = random_scores(LABELS, 2, seed=7)


def test_the_default_is_the_most_probable_class_and_the_second_is_positive(config: Read) -> None:
    assert decision_of(config(), splits_of(PETS, [0, 1])) == Decision("dog", None)
    assert decision_of(config(), splits_of(FLOWERS, [0, 1])) == Decision()
    rows = np.array([[0.5, 0.5], [0.4, 0.6]])
    assert Decision("dog").predict(rows, PETS).tolist() == [0, 1]
    assert Decision().predict(random_scores(LABELS, 3), FLOWERS).shape == (120,)


@pytest.mark.parametrize("positive, predicted", [("dog", [1, 1, 0]), ("cat", [0, 0, 1])])
def test_the_positive_class_is_predicted_from_the_threshold_on(positive: str, predicted: list[int]) -> None:
    share = np.array([0.3, 0.9, 0.2])
    rows = np.stack([1 - share, share] if positive == "dog" else [share, 1 - share], axis=1)
    assert Decision(positive, 0.3).predict(rows, PETS).tolist() == predicted


@pytest.mark.parametrize("positive", PETS)
def test_metrics_are_of_the_positive_class_at_the_threshold(positive: str) -> None:
    dataset, at = splits_of(PETS, LABELS.tolist()), PETS.index(positive)
    report = evaluate({"validation": SCORES}, dataset, decision=Decision(positive, 0.3))["validation"]
    share = SCORES[:, at].astype(float) / SCORES.sum(axis=1, dtype=float)
    truth, predicted = at == LABELS, share >= 0.3
    metrics = report.metrics
    assert metrics["precision"] == pytest.approx(precision_score(truth, predicted))
    assert metrics["recall"] == pytest.approx(recall_score(truth, predicted))
    assert metrics["f1"] == pytest.approx(f1_score(truth, predicted))
    assert metrics["average_precision"] == pytest.approx(average_precision_score(truth, share))
    assert metrics["accuracy"] == pytest.approx(np.mean(truth == predicted))
    assert [row.predicted == positive for row in report.predictions] == predicted.tolist()
    assert [row.confidence for row in report.predictions] == pytest.approx(np.where(predicted, share, 1 - share))
    usual = evaluate({"validation": SCORES}, dataset)["validation"].metrics
    for name in ("roc_auc", "brier", "loss", "calibration_error"):  # do not depend on the decision
        assert metrics[name] == pytest.approx(usual[name])


@pytest.mark.parametrize("positive", PETS)
@pytest.mark.parametrize("wanted", [0.5, 0.9, 0.95, 1.0])
def test_the_highest_threshold_with_the_wanted_recall(positive: str, wanted: float, config: Read) -> None:
    dataset, at = splits_of(PETS, LABELS.tolist()), PETS.index(positive)
    read = config(f"positive={positive}", f"threshold.recall={wanted}")
    found = choose_threshold(read, {"validation": SCORES}, dataset)
    share, truth = SCORES[:, at], at == LABELS
    assert found.threshold is not None
    assert recall_score(truth, share >= found.threshold) >= wanted
    above = share[share >= found.threshold].min()
    assert recall_score(truth, share > above) < wanted
    assert np.abs(share - found.threshold).min() > 1e-6, "between two probabilities"
    report = evaluate({"validation": SCORES}, dataset, decision=found)["validation"]
    assert report.metrics["recall"] >= wanted


def test_the_lowest_threshold_with_the_wanted_precision(config: Read) -> None:
    dataset = splits_of(PETS, LABELS.tolist())
    found = choose_threshold(config("threshold.precision=0.9"), {"validation": SCORES}, dataset)
    share, truth = SCORES[:, 1], LABELS == 1
    assert found.threshold is not None
    assert precision_score(truth, share >= found.threshold) >= 0.9
    assert max(precision_score(truth, share >= threshold) for threshold in share[share < found.threshold]) < 0.9
    assert threshold_warnings(config("threshold.precision=0.9"), found) == []


def test_a_precision_that_no_threshold_reaches_is_a_warning(config: Read) -> None:
    read, dataset = config("threshold.precision=0.9"), splits_of(PETS, [0, 1])
    found = choose_threshold(read, {"validation": np.array([[0.1, 0.9], [0.9, 0.1]])}, dataset)
    assert found == Decision("dog", None)
    assert threshold_warnings(read, found) == [
        "threshold.precision: no threshold reaches a precision of 0.9 for the class 'dog' on the validation images; "
        "the most probable class is predicted instead"
    ]


def test_a_threshold_that_is_given(config: Read) -> None:
    read = config("threshold=0.3")
    assert read.threshold.model_dump() == {"fixed": 0.3, "recall": None, "precision": None}
    assert choose_threshold(read, {}, splits_of(PETS, [0, 1])) == Decision("dog", 0.3)


@pytest.mark.parametrize("overrides, classes, labels, line", [
    (["positive=dgo"], PETS, [0, 1], "positive: no class is called 'dgo'. Allowed: cat, dog. Nearest: dog"),
    (["threshold.recall=0.9"], PETS, [0, 0], "threshold.recall: the threshold is chosen by the validation images, and "
     "none is of the positive class 'dog'. Give validation images of it, positive=CLASS, or threshold.fixed=NUMBER"),
    (["positive=rose"], FLOWERS, [0, 1], "positive: needs a data set of two classes, and this one has 3: leave it out. "
     "Every class has its own precision, recall and F1 in the results. Received: rose"),
    (["threshold.fixed=0.3"], FLOWERS, [0, 1], "threshold.fixed: needs a data set of two classes, and this one has 3: "
     "leave it out. Every class has its own precision, recall and F1 in the results. Received: 0.3"),
    (["objective=top5_accuracy"], FLOWERS, [0, 1], "objective: top5_accuracy needs 6 classes or more. "
     "Received: 3 classes"),
])  # fmt: skip
def test_settings_that_do_not_fit_the_classes(
    overrides: list[str], classes: tuple[str, ...], labels: list[int], line: str, config: Read
) -> None:
    with pytest.raises(ConfigError) as raised:
        decision_of(config(*overrides), splits_of(classes, labels))
    assert str(raised.value) == line


def test_the_fewest_classes_of_an_objective_are_enough(config: Read) -> None:
    assert decision_of(config("objective=top3_accuracy"), splits_of((*FLOWERS, "violet"), [0, 1])) == Decision()


def test_what_a_run_records_is_read_back() -> None:
    for decision in (Decision("cat", 0.25), Decision("cat")):
        assert recorded(decision.facts(), PETS) == decision
    assert recorded(Decision().facts(), FLOWERS) == Decision()
    assert recorded({"threshold": "0.25", "positive": "cat"}, PETS) == Decision("cat", 0.25), "as MLflow tags"
    assert recorded({"status": "FINISHED"}, PETS) == Decision("dog"), "a run of 0.1: the second class"
