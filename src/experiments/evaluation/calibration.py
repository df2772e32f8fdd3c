"""Temperature scaling: one number, fitted on the validation images, that makes a model's probabilities more truthful.

The temperature divides the logits. It changes no predicted class, so accuracy and confusion matrix stay as they are.

Source: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2 (J. Platt, 1999, for two
classes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import optimize, special
from sklearn.metrics import log_loss

from experiments.evaluation.evaluate import Report
from experiments.evaluation.selective import risk_coverage
from experiments.evaluation.statistics import reliability
from experiments.runs.predictions import Prediction

RANGE = (0.05, 20.0)  # temperatures among which the best is searched
SMALLEST = float(np.finfo(np.float32).tiny)  # the lower bound of probabilities whose logarithm is taken
TEMPERATURE = "validation.temperature"  # name of the metric


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities [N, C] float64 after division of their logits by a temperature."""
    scaled: np.ndarray = special.softmax(logits_of(probabilities) / temperature, axis=1)
    return scaled


def logits_of(probabilities: np.ndarray) -> np.ndarray:
    """Return the logits of probabilities [N, C], but for a term that all classes share, which has no effect."""
    return np.log(np.maximum(np.asarray(probabilities, np.float64), SMALLEST))


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the temperature, within RANGE, with the lowest cross entropy on images that the model was not trained on.

    It is None if the model predicts every image correctly, as ever lower temperatures would then have an ever lower
    cross entropy. The probabilities are [N, C], the labels [N] int.
    """
    logits = logits_of(probabilities)
    if (logits.argmax(axis=1) == labels).all():
        return None
    rows = np.arange(len(labels))

    def cross_entropy(inverse: float) -> float:
        scaled = logits * inverse
        return float(np.mean(special.logsumexp(scaled, axis=1) - scaled[rows, labels]))

    # The cross entropy is convex in the inverse of the temperature, so the minimum that is found is the global one.
    bounds = (1 / RANGE[1], 1 / RANGE[0])
    found = optimize.minimize_scalar(cross_entropy, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return float(1 / found.x)


def arrays_of(predictions: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities [N, C] float64 of predictions and their labels [N] int."""
    classes = {name: label for label, name in enumerate(predictions[0].probabilities)}
    probabilities = np.array([list(prediction.probabilities.values()) for prediction in predictions])
    return probabilities, np.array([classes[prediction.label] for prediction in predictions])


def confidence_metrics(reports: Mapping[str, Report], temperature: float | None = None) -> dict[str, float]:
    """Return metrics of what a model's confidence is worth, named `split.metric`, for the reports of its splits.

    * aurc: the area under the risk-coverage curve, see `selective.risk_coverage`.
    * temperature: fitted to the validation images, unless it is given; scaled_loss and scaled_calibration_error: loss
      and calibration error after scaling by it, computed as in `evaluate`. Those of the validation images are slightly
      too low; those of other images are not. Scores that are no probabilities have none.
    """
    found = {f"{split}.aurc": risk_coverage(*confidences_of(one.predictions)).area for split, one in reports.items()}
    if any("loss" not in report.metrics for report in reports.values()):
        return found
    if temperature is None and "validation" in reports:
        temperature = fit_temperature(*arrays_of(reports["validation"].predictions))
        if temperature is not None:
            found[TEMPERATURE] = temperature
    if temperature is None:
        return found
    for split, report in reports.items():
        probabilities, labels = arrays_of(report.predictions)
        scaled = scale(probabilities, temperature)
        right = scaled.argmax(axis=1) == labels
        every_class = np.arange(scaled.shape[1])
        found[f"{split}.scaled_loss"] = float(log_loss(labels, scaled.astype(np.float32), labels=every_class))
        found[f"{split}.scaled_calibration_error"] = reliability(scaled.max(axis=1), right).error
    return found


def confidences_of(predictions: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """Return the confidence [N] float and the correctness [N] bool of predictions."""
    return np.array([row.confidence for row in predictions]), np.array([row.correct for row in predictions])
