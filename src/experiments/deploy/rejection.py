"""Calibrated probabilities and rejection of a finished run's model, both derived from its validation predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from experiments.deploy.prediction_writers import NONE, Answers, Confidence
from experiments.deploy.saved_run import Trained
from experiments.errors import ConfigError
from experiments.evaluation import calibration, selective
from experiments.evaluation.evaluate import percent

if TYPE_CHECKING:
    import keras

    from experiments.deploy.predict import Distances
    from experiments.training.types import Progress


def temperature(run: Trained) -> float:
    """Return the temperature of a run, fitted now if it recorded none; raise ConfigError if it has none."""
    if not run.gives_probabilities:
        raise ConfigError(f"{run.name}: a hinge loss trains scores that are no probabilities: they have no temperature")
    found = run.metrics.get(calibration.TEMPERATURE)
    found = found or calibration.fit_temperature(*calibration.arrays_of(run.predictions("validation")))
    if found is None:
        raise ConfigError(
            f"{run.name}: its probabilities cannot be calibrated: it predicts all validation images correctly, so that "
            "no temperature is the best. More validation images would allow it (data.fractions, data.limit)"
        )
    return found


def prepare(
    run: Trained, confidence: Confidence, load: Callable[[], keras.Model], progress: Progress
) -> tuple[keras.Model, Distances | None, Answers, list[str]]:
    """Prepare a run's model for the prediction of images.

    Returns:
        The model, loaded after the validation predictions have been used; how the distances of images from the
        training images are computed, None without `confidence.unlike`; how the model answers; and sentences about it.

    Raises:
        ConfigError: the run's validation predictions or its images do not allow it, or a class has the name of the
            answer for rejected images.
    """
    if NONE in run.classes and (confidence.reject is not None or confidence.unlike is not None):
        raise ConfigError(f"{run.name}: has a class called {NONE!r}, which is also the answer for rejected images")
    answers, sentences, distances = Answers(run.classes, run.decision), [], None
    if not run.gives_probabilities:
        sentences.append("The run's loss is hinge: what is given as probability is a score that only ranks images")
    if confidence.calibrated:
        answers.temperature = temperature(run)
        sentences.append(f"Temperature of the probabilities: {answers.temperature:.3g}")
    if confidence.reject is not None:
        found = rejection(run, confidence.reject, answers.temperature)
        answers.threshold = found.threshold
        sentences.append(found.describe(confidence.reject))
    model = load()
    if confidence.unlike is not None:
        from experiments.deploy.unlike import measure

        model, distances, answers.farthest, sentence = measure(run, model, confidence.unlike, progress, confidence.data)
        sentences.append(sentence)
    return model, distances, answers, sentences


def rejection(run: Trained, accuracy: float, divisor: float) -> selective.Rejection:
    """Return the threshold of confidence at which the answered validation images have this accuracy, in (0, 1].

    Args:
        run: the finished run.
        accuracy: that of the answered images.
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
