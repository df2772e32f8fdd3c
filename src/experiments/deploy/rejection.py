"""Calibrated probabilities and rejection of a finished run's model, both derived from its validation predictions."""

from __future__ import annotations

import numpy as np

from experiments.deploy.prediction_writers import NONE, Answers
from experiments.deploy.saved_run import Trained
from experiments.errors import ConfigError
from experiments.evaluation import calibration, selective
from experiments.evaluation.evaluate import percent


def temperature(run: Trained) -> float:
    """Return the temperature of a run: the recorded one; of older runs, which recorded none, it is fitted now.

    Raises:
        ConfigError: the run has none.
    """
    if run.plain.get("loss") == "hinge":
        raise ConfigError(f"{run.name}: a hinge loss trains scores that are no probabilities: they have no temperature")
    found = run.metrics.get(calibration.TEMPERATURE) or calibration.temperature_of(run.predictions("validation"))
    if found is None:
        raise ConfigError(
            f"{run.name}: its probabilities cannot be calibrated: it predicts all validation images correctly, so that "
            "no temperature is the best. More validation images would allow it (data.fractions, data.limit)"
        )
    return found


def answers_of(
    run: Trained, accuracy: float | None, calibrated: bool, unlike: bool = False
) -> tuple[Answers, list[str]]:
    """Return how a run's model answers, and sentences on what that rests on.

    Args:
        run: the finished run.
        accuracy: the wanted accuracy of the images that are not rejected, in (0, 1]; None to reject none.
        calibrated: whether the probabilities are scaled by the run's temperature.
        unlike: whether images unlike the training images will be rejected, too; see `unlike.measure`.

    Raises:
        ConfigError: the run's validation predictions do not allow it, or a class has the name of the answer for
            rejected images.
    """
    if NONE in run.classes and (accuracy is not None or unlike):
        raise ConfigError(f"{run.name}: has a class called {NONE!r}, which is also the answer for rejected images")
    answers, sentences = Answers(run.classes, run.decision), []
    if calibrated:
        answers.temperature = temperature(run)
        sentences.append(f"Temperature of the probabilities: {answers.temperature:.3g}")
    if accuracy is not None:
        found = rejection(run, accuracy, answers.temperature)
        answers.threshold = found.threshold
        sentences.append(found.describe(accuracy))
    return answers, sentences


def rejection(run: Trained, accuracy: float, divisor: float) -> selective.Rejection:
    """Return the threshold of confidence at which a run's model has the wanted accuracy on validation images.

    Args:
        run: the finished run.
        accuracy: that of the answered images, in (0, 1].
        divisor: the temperature by which the probabilities are scaled.

    Raises:
        ConfigError: no threshold has that accuracy.
    """
    predictions = run.predictions("validation")
    confidence, correct = calibration.confidences_of(predictions)
    if divisor != 1.0:
        predicted = [run.classes.index(prediction.predicted) for prediction in predictions]
        scaled = calibration.scale(calibration.arrays_of(predictions)[0], divisor)
        confidence = scaled[np.arange(len(predicted)), predicted]
    found = selective.reject_for(accuracy, confidence, correct)
    if found is None:
        curve = selective.risk_coverage(confidence, correct)
        best = int(curve.risk.argmin())
        raise ConfigError(
            f"--reject: no threshold has an accuracy of {percent(accuracy)} on the {len(correct)} validation images of "
            f"{run.name}; the highest is {percent(1 - float(curve.risk[best]))}, with {curve.answered[best]} of them "
            "answered. Give a lower accuracy, or train a better model"
        )
    return found
