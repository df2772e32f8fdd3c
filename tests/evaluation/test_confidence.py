"""Temperature scaling, risk-coverage curves and rejection thresholds, against scikit-learn and values by hand."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from experiments.evaluation.calibration import (
    RANGE,
    TEMPERATURE,
    arrays_of,
    confidence_metrics,
    fit_temperature,
    scale,
)
from experiments.evaluation.decision import Decision
from experiments.evaluation.evaluate import Report
from experiments.evaluation.selective import reject_for, risk_coverage
from experiments.runs.predictions import Prediction


def softmax_scores(images: int, classes: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a model whose logits are `sharpness` times calibrated ones, with the labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(images, classes)) * 2
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (true.cumsum(axis=1) < rng.random((images, 1))).sum(axis=1)
    scores = np.exp(sharpness * logits)
    return scores / scores.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize(("classes", "sharpness"), [(2, 3.0), (5, 2.0), (5, 0.5)])
def test_the_temperature_undoes_over_and_underconfidence(classes: int, sharpness: float) -> None:
    scores, labels = softmax_scores(20_000, classes, sharpness)
    assert fit_temperature(scores, labels) == pytest.approx(sharpness, rel=0.05)


def test_the_temperature_of_two_classes_is_that_of_scikit_learn() -> None:
    """Temperature scaling of two classes is logistic regression on the log odds, without penalty and intercept."""
    scores, labels = softmax_scores(300, 2, 2.5)
    odds = logit(scores[:, 1])
    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(odds[:, None], labels)
    temperature = fit_temperature(scores, labels)
    assert temperature is not None and temperature == pytest.approx(1 / fitted.coef_[0, 0], rel=1e-4)
    assert_allclose(scale(scores, temperature)[:, 1], expit(odds / temperature))


def test_scaling_lowers_the_loss_and_changes_no_class() -> None:
    scores, labels = softmax_scores(300, 5, 3.0)
    temperature = fit_temperature(scores, labels)
    assert temperature is not None
    scaled = scale(scores, temperature)
    assert_array_equal(scaled.argmax(axis=1), scores.argmax(axis=1))
    assert_allclose(scaled.sum(axis=1), 1)
    assert log_loss(labels, scaled) < log_loss(labels, scores)
    for other in (0.9, 1.1):
        assert log_loss(labels, scaled) < log_loss(labels, scale(scores, temperature * other))
    assert_allclose(scale(scores, 1.0), scores)


def test_certain_mistakes_have_a_temperature_and_images_without_mistakes_have_none() -> None:
    certain = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    temperature = fit_temperature(certain, np.array([0, 1, 1]))
    assert temperature is not None and RANGE[0] < temperature <= RANGE[1]
    assert fit_temperature(certain, np.array([0, 1, 0])) is None


def test_risk_and_coverage_by_hand() -> None:
    """Of ranked images right, wrong, right, wrong, the risks are 0, 1/2, 1/3, 1/2."""
    confidence, correct = np.array([0.6, 0.9, 0.7, 0.8]), np.array([False, True, True, False])
    curve = risk_coverage(confidence, correct)
    assert_array_equal(curve.threshold, [0.9, 0.8, 0.7, 0.6])
    assert_allclose(curve.coverage, [0.25, 0.5, 0.75, 1])
    assert_allclose(curve.risk, [0, 1 / 2, 1 / 3, 1 / 2])
    assert curve.area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_the_curve_does_not_depend_on_the_order_of_images_of_equal_confidence() -> None:
    confidence = np.array([0.9, 0.8, 0.8, 0.8])
    orders = [True, True, False, True], [True, False, True, True]
    curves = [risk_coverage(confidence, np.array(order)) for order in orders]
    assert_array_equal(curves[0].risk, curves[1].risk)
    assert curves[0].area == curves[1].area == pytest.approx((0 + 3 * 1 / 4) / 4)


def test_a_perfect_ranking_has_the_least_area() -> None:
    """The area of a perfect ranking of risk r is r + (1 - r) ln(1 - r) (Geifman et al. 2019, section 4)."""
    images, risk = 10_000, 0.2
    correct = np.arange(images) >= images * risk
    best = risk_coverage(np.arange(images) / images, correct).area
    assert best == pytest.approx(risk + (1 - risk) * np.log(1 - risk), abs=1e-4)
    shuffled = np.random.default_rng(0).permutation(images) / images
    assert risk_coverage(shuffled, correct).area == pytest.approx(risk, abs=0.01)


def test_the_threshold_answers_as_many_images_as_the_wanted_accuracy_allows() -> None:
    confidence = np.array([0.95, 0.9, 0.85, 0.8, 0.7, 0.6])
    correct = np.array([True, True, False, True, True, False])
    found = reject_for(0.8, confidence, correct)
    assert found is not None and found[1:] == (5, 4, 6)
    assert found.threshold == pytest.approx(0.65)  # not above 0.85, which has that accuracy as well
    assert "4 of those correctly: 80.0 %" in found.describe(0.8) and "is not excluded" in found.describe(0.8)
    assert "is not excluded" not in found.describe(0.1)
    higher = reject_for(0.9, confidence, correct)
    assert higher is not None and higher[1:] == (2, 2, 6) and higher.threshold == pytest.approx(0.875)
    assert reject_for(0.5, confidence, correct) == (0.0, 6, 4, 6)
    assert reject_for(0.9, confidence, ~correct) is None


def report(scores: np.ndarray, labels: np.ndarray, *, loss: bool = True) -> Report:
    names = [f"c{label}" for label in range(scores.shape[1])]
    predictions = tuple(
        Prediction("", "", names[label], names[row.argmax()], row.max(), bool(row.argmax() == label),
                   dict(zip(names, row.tolist(), strict=True)))
        for row, label in zip(scores, labels, strict=True)
    )  # fmt: skip
    metrics = {"loss": log_loss(labels, scores)} if loss else {}
    return Report("", tuple(names), metrics, predictions, Decision())


def test_metrics_of_confidence_use_the_temperature_of_the_validation_images() -> None:
    validation, test = (report(*softmax_scores(400, 3, 2.0, seed)) for seed in range(2))
    found = confidence_metrics({"validation": validation, "test": test})
    scores, labels = arrays_of(test.predictions)
    temperature = fit_temperature(*arrays_of(validation.predictions))
    assert temperature is not None and found[TEMPERATURE] == temperature
    assert found["test.scaled_loss"] == pytest.approx(log_loss(labels, scale(scores, temperature)), rel=1e-5)
    assert found["test.scaled_loss"] < test.metrics["loss"]
    assert found["test.scaled_calibration_error"] < 0.1
    assert 0 < found["test.aurc"] < np.mean([not prediction.correct for prediction in test.predictions])
    again = confidence_metrics({"new": test}, temperature)
    assert again == {name.replace("test.", "new."): value for name, value in found.items() if name.startswith("test.")}


def test_scores_that_are_no_probabilities_have_no_temperature() -> None:
    assert set(confidence_metrics({"validation": report(*softmax_scores(50, 2, 1.0), loss=False)})) == {
        "validation.aurc"
    }
