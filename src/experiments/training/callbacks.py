"""Callbacks of `fit`: epoch seeds, learning rates, early stopping, the record of every epoch, checkpoints."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from experiments.errors import ConfigError
from experiments.training.checkpoints import State
from experiments.training.types import EpochRecord, TrainingContext, TrainingPhase

KERAS_NAMES = {"validation_loss": "val_data_loss", "validation_accuracy": "val_accuracy"}
_log = logging.getLogger(__name__)


class InputWaitTimer:
    """Timer of the seconds that training waits for its batches, measured inside the tf.data pipeline."""

    def __init__(self) -> None:
        with tf.device("CPU:0"):  # tf.data prepares the input on the CPU.
            self.seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)

    def timed(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return the same dataset with timing; prefetching after it is turned off, as it would hide the wait."""

        def note(asked: tf.Tensor, batch: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
            with tf.control_dependencies([self.seconds.assign_add(tf.timestamp() - asked)]):
                return tuple(tf.identity(part) for part in batch)

        asked = tf.data.Dataset.counter().map(lambda _: tf.timestamp())
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False
        return tf.data.Dataset.zip((asked, dataset)).map(note).with_options(options)


class EpochSeeds(keras.callbacks.Callback):
    """Callback that sets every seed generator of the model (dropout, noise) from (seed, epoch) as an epoch begins.

    An epoch's random numbers therefore do not depend on how many epochs this process has trained before it.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        states = [variable for variable in self.model.variables if variable.name == "seed_generator_state"]
        for at, state in enumerate(states):
            state.assign(np.random.default_rng([self.seed, epoch, 3, at]).integers(2**32, size=2, dtype="uint32"))


class LearningRateScheduler(keras.callbacks.Callback):
    """Callback that sets the learning rate as an epoch begins, from the schedule with its warm-up.

    No other code sets the learning rate of a phase, except `LRFinder`.
    """

    def __init__(self, rate: Callable[[int, list[float]], float], record: EpochLogger) -> None:
        super().__init__()
        self.rate, self.record = rate, record

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.record.learning_rate = self.rate(epoch, self.record.monitored)
        self.model.optimizer.learning_rate = self.record.learning_rate


class LeftoverGradients(keras.callbacks.Callback):
    """Callback that applies the gradients that are left over after the last batch of a phase.

    Keras updates the weights after every `gradient_accumulation_steps` batches, across epochs, and drops what remains
    at the end. This callback adds one last update with the mean gradient of the remaining batches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.epoch = epoch

    @property
    def optimizer(self) -> keras.optimizers.Optimizer:
        """The optimizer that accumulates gradients: under mixed_float16 the one that Keras has wrapped."""
        return getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)

    @property
    def batches(self) -> int:
        """The number of batches since the last update of the weights."""
        return int(self.optimizer._iterations) % int(self.optimizer.gradient_accumulation_steps)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        last = (self.epoch, batch) == (self.params["epochs"] - 1, self.params["steps"] - 1)
        if not last or not self.batches or tf.distribute.has_strategy():
            return
        optimizer, batches, steps = self.optimizer, self.batches, self.optimizer.gradient_accumulation_steps
        # Keras is set one batch before an update. The sum of the gradients so far, times `share`, is the gradient of
        # this last batch, which turns Keras's mean over `steps` batches into the mean over the batches there are.
        share = (steps - batches) / batches * (optimizer.loss_scale_factor or 1.0)
        optimizer._iterations.assign_add(steps - batches - 1)
        optimizer.apply([share * sum_ for sum_ in optimizer._accumulated_gradients], self.model.trainable_variables)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.batches:
            _log.warning(
                "The gradients of the last %d batches made no step: %d batches make one "
                "(gradient_accumulation_steps), and training ended before",
                self.batches,
                self.optimizer.gradient_accumulation_steps,
            )


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


class EarlyStopping(keras.callbacks.EarlyStopping):
    """Early stopping that keeps the averaged weights (EMA) if the optimizer has them, as these were validated."""

    averages: keras.callbacks.SwapEMAWeights | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.averages:
            self.averages.on_test_begin()
        super().on_epoch_end(epoch, logs)
        if self.averages:
            self.averages.on_test_end()


def early_stopping(recipe: TrainingPhase, averages: keras.callbacks.SwapEMAWeights | None) -> EarlyStopping | None:
    """Return the callback that ends a phase early and restores its best weights; None if neither is configured."""
    if recipe.early_stopping is None and not recipe.best_weights:
        return None
    built = EarlyStopping(
        monitor=KERAS_NAMES[recipe.monitor],
        mode="min" if recipe.monitor == "validation_loss" else "max",
        patience=recipe.early_stopping or recipe.epochs,
        restore_best_weights=recipe.best_weights,
    )
    built.averages = averages
    return built


class EpochLogger(keras.callbacks.Callback):
    """Callback that converts Keras's logs to one EpochRecord per epoch and advances the progress display.

    Raises:
        ConfigError: a loss is not finite at the end of an epoch.
    """

    def __init__(
        self,
        phase: str,
        monitor: str,
        first_step: int,
        images: int,
        steps_per_execution: int,
        waiting: InputWaitTimer | None,
        advance: Callable[..., None],
    ) -> None:
        super().__init__()
        self.phase, self.monitor, self.first_step = phase, monitor, first_step
        self.images, self.steps_per_execution, self.waiting, self.advance = (
            images,
            steps_per_execution,
            waiting,
            advance,
        )
        self.history: list[EpochRecord] = []
        self.learning_rate = 0.0  # of the current epoch; set by LearningRateScheduler
        self.began = self.trained = 0.0

    @property
    def monitored(self) -> list[float]:
        """The monitored value of every epoch so far, negated if higher is better."""
        sign = 1 if self.monitor == "validation_loss" else -1
        return [sign * record.metrics[self.monitor] for record in self.history]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.waiting:
            self.waiting.seconds.assign(0.0)
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.trained = time.perf_counter()
        self.advance(self.steps_per_execution)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = logs or {}
        if not all(math.isfinite(logs[name]) for name in ("loss", "data_loss", "val_loss", "val_data_loss")):
            raise ConfigError(
                f"The loss is not finite after epoch {epoch + 1} of phase {self.phase}: training has diverged. Lower "
                f"optimizer.lr (now {self.learning_rate:g}), set optimizer.clipnorm, or give schedule.warmup"
            )
        metrics = {
            "loss": float(logs["data_loss"]),
            "total_loss": float(logs["loss"]),
            "accuracy": float(logs["accuracy"]),
            "validation_loss": float(logs["val_data_loss"]),
            "validation_accuracy": float(logs["val_accuracy"]),
            "learning_rate": self.learning_rate,
            "seconds": time.perf_counter() - self.began,
            "images_per_second": self.images / (self.trained - self.began),
        }
        if self.waiting:
            metrics["input_wait"] = float(self.waiting.seconds) / (self.trained - self.began)
        record = EpochRecord(self.first_step + epoch, self.phase, epoch, int(time.time() * 1000), metrics)
        self.history.append(record)
        speed = metrics["images_per_second"]
        accuracies = f"accuracy {metrics['accuracy']:.1%} validation {metrics['validation_accuracy']:.1%}"
        done = f"{epoch + 1}/{self.params['epochs']}"
        self.advance(0, f"{done} loss {metrics['loss']:.3f} {accuracies} {speed:.0f} images/s")


class CheckpointCallback(keras.callbacks.Callback):
    """Callback that saves a checkpoint as an epoch ends and then passes the epoch's record on to be logged.

    It has to be the last callback, so that the checkpoint holds what the others change.
    """

    COUNTED = ("wait", "stopped_epoch", "best", "best_epoch")  # the attributes of EarlyStopping that a checkpoint holds

    def __init__(self, phase: str, record: EpochLogger, stop: EarlyStopping | None, context: TrainingContext) -> None:
        super().__init__()
        self.phase, self.record, self.stop, self.context = phase, record, stop, context

    def variables(self) -> list[keras.Variable]:
        """Return all variables that an epoch changes: weights, seeds, the optimizer's moments, averages and step."""
        return [*self.model.variables, *self.model.optimizer.variables]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restore the latest checkpoint and log its epochs again; logging is idempotent."""
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        state = self.context.checkpoints.latest(self.phase) if self.context.checkpoints else None
        if state is None:
            return
        for variable, value in zip(self.variables(), state.variables, strict=True):
            variable.assign(value)
        if self.stop:
            for name, value in state.stopping.items():
                setattr(self.stop, name, value)
            self.stop.best_weights = list(state.best) or None
        self.record.history = list(state.history)
        for record in state.history:
            self.context.record(record)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        last = epoch == self.params["epochs"] - 1 or self.model.stop_training
        if self.context.checkpoints and (last or self.context.checkpoints.due):
            counted = {name: getattr(self.stop, name) for name in self.COUNTED} if self.stop else {}
            if counted and counted["best"] is not None:
                counted["best"] = float(counted["best"])
            self.context.checkpoints.save(
                self.phase,
                State(
                    variables=[np.asarray(variable) for variable in self.variables()],
                    best=(self.stop and self.stop.best_weights) or [],
                    stopping=counted,
                    stopped=bool(self.model.stop_training),
                    history=tuple(self.record.history),
                ),
            )
        self.context.record(self.record.history[-1])
