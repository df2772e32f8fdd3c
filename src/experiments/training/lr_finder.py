"""Learning rate range test: one batch at each learning rate, and the losses (Smith, 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras

from experiments.training.callbacks import EpochSeeds, assign_variables
from experiments.training.checkpoints import TrainingState
from experiments.training.fit import compile_model, fast_convolutions
from experiments.training.losses import class_weights, loss_of_guessing
from experiments.training.types import PhaseInputs, Progress, TrainingPhase


def range_test(
    inputs: PhaseInputs,
    phase: TrainingPhase,
    rates: Sequence[float],
    progress: Progress,
    state: TrainingState | None = None,
) -> tuple[list[float], float]:
    """Train the model of a phase on one batch at each learning rate, until the loss diverges.

    Args:
        inputs: the model, and at least as many batches as there are rates.
        phase: how the model is trained; its learning rates are not used.
        rates: the learning rates, one per batch.
        state: the checkpoint that the phase goes on from; None if it begins.

    Returns:
        The loss of every batch, each at its learning rate, and the loss of predicting the class frequencies.
    """
    dataset = compile_model(inputs, phase, steps_per_execution=1)  # The learning rate changes with every step.
    if state is not None:
        assign_variables(inputs.model, state)
    model, labels = inputs.model, inputs.batches.labels
    weights = class_weights(phase.class_weights, labels, inputs.classes)
    guessing = loss_of_guessing(model.loss, labels, weights, inputs.count) + float(sum(model.losses))
    with progress.stage("range test", len(rates)) as advance, fast_convolutions(inputs, phase):
        finder = LRFinder(rates, guessing, advance)
        model.fit(
            dataset, steps_per_epoch=len(rates), shuffle=False, callbacks=[EpochSeeds(phase.seed), finder], verbose=0
        )
    return finder.losses, guessing


class LRFinder(keras.callbacks.Callback):
    """Callback that trains every batch with the next learning rate and keeps its loss, until it diverges (Smith, 2017).

    The loss has diverged when its moving average, whose weights halve every seven batches, is above four times its
    minimum, as in fastai's finder, and also above the loss of predicting the class frequencies (`guessing`). Without
    the second condition, a head that already fits its images, with a loss near zero, would stop at its first mistake.
    """

    # The decay of the moving average, the batches before divergence is checked, and the ratio that counts as divergence
    KEPT, FIRST, RUNAWAY = 0.9, 10, 4.0

    def __init__(self, rates: Sequence[float], guessing: float, advance: Callable[..., None]) -> None:
        super().__init__()
        self.rates, self.guessing, self.advance = rates, guessing, advance
        self.losses: list[float] = []
        self.average, self.lowest = 0.0, math.inf

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.model.reset_metrics()  # Otherwise Keras reports the mean loss of all batches so far.
        self.model.optimizer.learning_rate = self.rates[batch]

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.advance()
        loss = float((logs or {})["loss"])
        if not math.isfinite(loss):
            self.model.stop_training = True
            return
        self.losses.append(loss)
        self.average = self.KEPT * self.average + (1 - self.KEPT) * loss
        average = self.average / (1 - self.KEPT ** len(self.losses))  # bias correction for the start at 0, as in Adam
        if len(self.losses) >= self.FIRST:
            self.lowest = min(self.lowest, average)
            self.model.stop_training = average > max(self.RUNAWAY * self.lowest, self.guessing)
