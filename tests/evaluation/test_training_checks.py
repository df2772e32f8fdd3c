"""Checks of a finished training: warnings with advice, and none for a normal run."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest

from experiments.config import schema
from experiments.evaluation.training_checks import best_epoch, candidate_epochs, past_the_best, warnings_of
from experiments.training.types import EpochRecord, TrainingResult

Read = Callable[..., schema.Config]
LABELS = (np.arange(40) % 2).astype("int32")


def scores(right: int, confidence: float = 0.8) -> np.ndarray:
    """Probabilities of 40 images, the first `right` of which are classified correctly."""
    of_label = np.where(np.arange(40) < right, confidence, 1 - confidence)
    return np.stack([np.where(label == LABELS, of_label, 1 - of_label) for label in (0, 1)], axis=1)


def fitted(
    losses: Sequence[float], validation: Sequence[float], accuracies: Sequence[float] | None = None, **more: Any
) -> TrainingResult:
    """A training with these curves, after a head's, which count for nothing."""
    head = EpochRecord(0, "head", 0, 0, {"loss": 90.0, "validation_loss": 0.001, "validation_accuracy": 1.0})
    history = tuple(
        EpochRecord(
            epoch + 1,
            "finetune",
            epoch,
            0,
            {
                "loss": loss,
                "validation_loss": validation[epoch],
                "validation_accuracy": accuracies[epoch] if accuracies else 0.9,
            },
        )
        for epoch, loss in enumerate(losses)
    )
    return dataclasses.replace(TrainingResult(cast(Any, None), (head, *history), {"validation": scores(36)}), **more)


def found_in(config: schema.Config, outcome: TrainingResult, labels: np.ndarray) -> list[str]:
    best = best_epoch(candidate_epochs(outcome.history, 0), config.monitor)
    return warnings_of(config, outcome, best, labels)


NORMAL: dict[str, tuple[tuple[str, ...], TrainingResult]] = {
    "one epoch of a beginning": ((), fitted([1.3], [1.4])),
    "a slow beginning": ((), fitted([0.9, 0.8, 0.75], [0.74, 0.71, 0.70])),
    "hardly anything learnt yet": ((), fitted([0.70, 0.694, 0.696, 0.695], [0.694, 0.695, 0.694, 0.694])),
    "overfitted to the end, by noise": ((), fitted([0.6, 0.4, 0.3, 0.2, 0.1], [0.6, 0.50, 0.52, 0.53, 0.55])),
    "its best epoch just before the last": ((), fitted([0.6, 0.4, 0.3, 0.2], [0.6, 0.5, 0.3, 0.5])),
    "accuracies that differ by an image or two": (
        ("monitor=validation_accuracy",), fitted([0.5] * 8, [0.5] * 8, [0.5, 0.9, 0.85, 0.87, 0.85, 0.9, 0.85, 0.85]),
    ),
    "the best epoch is what is kept": (("best_weights=true",), fitted([0.5] * 20, [0.3, *[0.9] * 19])),
    "as good as its head": ((), fitted([0.3], [0.3], head_scores=scores(36))),
    "better than its head": ((), fitted([0.3], [0.3], head_scores=scores(20))),
    "worse than its head by an image": ((), fitted([0.3], [0.3], head_scores=scores(37, 0.75))),
    "worse than its head by an image, certain images a little less so, mistakes less certain": (
        (), fitted([0.3], [0.3], scores={"validation": scores(35, 0.999)}, head_scores=scores(36, 0.9999)),
    ),
    "worse than its head by six images, one of two tests significant at 5 % but not at half of it": (
        (), fitted([0.3], [0.3], scores={"validation": scores(30, 0.6)}, head_scores=scores(36, 0.999)),
    ),
    "worse than its head by an image, and far more certain of the others": (
        (), fitted([0.3], [0.3], scores={"validation": scores(39, 0.95)}, head_scores=scores(40, 0.6)),
    ),
    "a mistake after an epoch without any": (
        ("monitor=validation_accuracy",), fitted([0.5] * 8, [0.5] * 8, [0.5, 1.0, *[0.975] * 6]),
    ),
    "a hinge loss below that of guessing": (("loss=hinge",), fitted([0.9, 0.8, 0.85], [0.9, 0.95, 0.9])),
    "no epochs": ((), TrainingResult(cast(Any, None), (), {"validation": scores(36)})),
}  # fmt: skip
OFF: dict[str, tuple[tuple[str, ...], TrainingResult, tuple[str, ...]]] = {
    "diverged": (
        ("optimizer.lr=3",), fitted([0.6, 5.0, 7.0], [0.7, 9.0, 8.0]),
        (r"diverged: its loss is 7, that of validation 8; guessing has 0\.693\. Try a lower optimizer\.lr \(now 3\)",),
    ),
    "far above chance at once": ((), fitted([50.0], [40.0]), ("diverged",)),
    "just above chance for long": ((), fitted([9.0, 0.7, 0.71, 0.72, 0.71, 0.73], [0.8] * 6), ("diverged",)),
    "falling from far above": ((), fitted([15.0, 9.0, 4.0], [15.0, 9.0, 3.0]), ("diverged",)),
    "diverged hinge": (("loss=hinge",), fitted([0.9, 3.0, 3.5], [0.9, 2.0, 2.0]), ("guessing has 1",)),
    "long past its best": (
        (), fitted([0.5] * 12, [0.6, 0.41, 0.3, *[0.6] * 8, 0.93]),
        (r"The best epoch was 3 of 12 \(validation_loss 0\.3\).*worse \(0\.93\)\. Try best_weights=true",),
    ),
    "long past its best accuracy": (
        ("monitor=validation_accuracy",), fitted([0.5] * 8, [0.5] * 8, [0.7, 0.95, *[0.6] * 6]),
        (r"The best epoch was 2 of 8 \(validation_accuracy 0\.95\)",),
    ),
    "worse than its head": (
        (), fitted([0.3], [0.3], scores={"validation": scores(20)}, head_scores=scores(36)),
        (r"40 validation images: accuracy 50\.0%, before 90\.0% \(p = 3\.1e-05\); log loss 0\.916, before 0\.362",),
    ),
    "a little worse, all of it less certain": (
        (), fitted([0.3], [0.3], scores={"validation": scores(33, 0.6)}, head_scores=scores(36, 0.9)),
        (r"worse than the head it started from.*\(p = 0\.25\); log loss 0\.582, before 0\.325 \(p = 0\.00",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMAL)
def test_a_normal_run_has_no_warning(name: str, config: Read) -> None:
    settings, outcome = NORMAL[name]
    assert found_in(config("regime=finetune", *settings), outcome, LABELS) == []


@pytest.mark.parametrize("name", OFF)
def test_what_is_off_has_a_sentence_with_what_to_try(name: str, config: Read) -> None:
    settings, outcome, patterns = OFF[name]
    found = found_in(config("regime=finetune", *settings), outcome, LABELS)
    assert len(found) == len(patterns)
    for sentence, pattern in zip(found, patterns, strict=True):
        assert re.search(pattern, sentence), sentence


def test_chance_is_that_of_the_number_of_classes(config: Read) -> None:
    ten = {"validation": np.full((40, 10), 0.1)}
    curves = ([1.0, 1.5, 1.6, 1.7, 1.8, 2.0], [2.0] * 6)
    assert all(value < math.log(10) for curve in curves for value in curve)
    assert found_in(config("regime=finetune"), fitted(*curves, scores=ten), LABELS % 10) == []


@pytest.mark.parametrize("best, last, after, before, warned", [
    (0.10, 0.16, 3, 9, True), (0.10, 0.13, 3, 9, False), (1.00, 1.19, 3, 9, False), (1.00, 1.21, 3, 9, True),
    (0.10, 0.16, 2, 9, False), (0.10, 0.16, 10, 30, True), (0.10, 0.16, 9, 31, False),
])  # fmt: skip
def test_a_last_epoch_past_the_best_one(
    best: float, last: float, after: int, before: int, warned: bool, config: Read
) -> None:
    """Worse by a fifth and by 0.05, and at least three epochs and a quarter of all after the best one."""
    monitored = [*np.linspace(2, best, before), *np.linspace(best, last, after + 1)[1:]]
    found = past_the_best(config(), monitored, before - 1, 40)
    assert (found is not None) == warned
    assert found is None or f"The best epoch was {before} of {before + after}" in found
