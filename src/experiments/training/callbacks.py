"""Callbacks of `fit`: epoch seeds, learning rates, early stopping, the record of every epoch, checkpoints."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from experiments.errors import ConfigError
from experiments.system.private_api import accumulated_gradients, batch_counter
from experiments.training.checkpoints import TrainingState
from experiments.training.types import EpochRecord, PhaseInputs, TrainingContext, TrainingPhase, monitored

KERAS_NAMES = {"validation_loss": "val_data_loss", "validation_accuracy": "val_accuracy"}
_log = logging.getLogger(__name__)


class InputWaitTimer:
    """Timer of the seconds that training waits for its batches, measured inside the tf.data pipeline."""

    def __init__(self) -> None:
        with tf.device("CPU:0"):  # tf.data prepares the input on the CPU.
            self.seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)

    def timed(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return the same dataset with timing; prefetching after it is turned off, as it would hide the wait."""

        def add_wait(began: tf.Tensor, batch: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
            with tf.control_dependencies([self.seconds.assign_add(tf.timestamp() - began)]):
                return tuple(tf.identity(part) for part in batch)

        began = tf.data.Dataset.counter().map(lambda _: tf.timestamp())
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False
        return tf.data.Dataset.zip((began, dataset)).map(add_wait).with_options(options)


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

    No other code sets the learning rate of a phase, except `lr_finder.LRFinder`.
    """

    def __init__(self, logger: EpochLogger) -> None:
        super().__init__()
        self.logger = logger

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        phase = self.logger.phase
        self.logger.learning_rate = phase.rate(epoch, monitored(self.logger.history, phase.monitor))
        self.model.optimizer.learning_rate = self.logger.learning_rate


def inner_optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    """Return the optimizer that a model was compiled with: under mixed_float16 the one that Keras has wrapped."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


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
        return inner_optimizer(self.model)

    @property
    def batches(self) -> int:
        """The number of batches since the last update of the weights."""
        return int(batch_counter(self.optimizer)) % int(self.optimizer.gradient_accumulation_steps)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        last = (self.epoch, batch) == (self.params["epochs"] - 1, self.params["steps"] - 1)
        if not last or not self.batches or tf.distribute.has_strategy():
            return
        optimizer, batches, steps = self.optimizer, self.batches, self.optimizer.gradient_accumulation_steps
        # Keras is set one batch before an update. The sum of the gradients so far, times `share`, is the gradient of
        # this last batch, which turns Keras's mean over `steps` batches into the mean over the batches there are.
        share = (steps - batches) / batches * (optimizer.loss_scale_factor or 1.0)
        batch_counter(optimizer).assign_add(steps - batches - 1)
        gradients = [share * total for total in accumulated_gradients(optimizer)]
        optimizer.apply(gradients, self.model.trainable_variables)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.batches:
            _log.warning(
                "The gradients of the last %d batches made no step: %d batches make one "
                "(gradient_accumulation_steps), and training ended before",
                self.batches,
                self.optimizer.gradient_accumulation_steps,
            )


class EarlyStopping(keras.callbacks.EarlyStopping):
    """Callback that ends a phase early and restores its best weights, each if the phase is configured so.

    Args:
        phase: the phase of training.
        averages: the callback that validates averaged weights (EMA), if the optimizer has them: these are then kept.
    """

    def __init__(self, phase: TrainingPhase, averages: keras.callbacks.SwapEMAWeights | None) -> None:
        super().__init__(
            monitor=KERAS_NAMES[phase.monitor],
            mode="min" if phase.monitor == "validation_loss" else "max",
            patience=phase.early_stopping or phase.epochs,
            restore_best_weights=phase.best_weights,
        )
        self.averages = averages

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.averages:
            self.averages.on_test_begin()
        super().on_epoch_end(epoch, logs)
        if self.averages:
            self.averages.on_test_end()


class EpochLogger(keras.callbacks.Callback):
    """Callback that converts Keras's logs to one EpochRecord per epoch and advances the progress display.

    Raises:
        ConfigError: a loss is not finite at the end of an epoch.
    """

    def __init__(
        self,
        inputs: PhaseInputs,
        phase: TrainingPhase,
        steps_per_execution: int,
        timer: InputWaitTimer | None,
        advance: Callable[..., None],
    ) -> None:
        super().__init__()
        self.inputs, self.phase = inputs, phase
        self.steps_per_execution, self.timer, self.advance = steps_per_execution, timer, advance
        self.history: list[EpochRecord] = []
        self.learning_rate = 0.0  # of the current epoch; set by LearningRateScheduler
        self.began = self.trained = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.timer:
            self.timer.seconds.assign(0.0)
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.trained = time.perf_counter()
        self.advance(self.steps_per_execution)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = logs or {}
        if not all(math.isfinite(logs[name]) for name in ("loss", "data_loss", "val_loss", "val_data_loss")):
            key = self.phase.key
            # The schedule is that of the last phase: the rate of a head before it is constant.
            others = f"set {key}.clipnorm, or give schedule.warmup" if key == "optimizer" else f"or set {key}.clipnorm"
            raise ConfigError(
                f"The loss is not finite after epoch {epoch + 1} of phase {self.inputs.name}: training has diverged. "
                f"Lower {key}.lr (now {self.learning_rate:g}), {others}"
            )
        metrics = {
            "loss": float(logs["data_loss"]),
            "total_loss": float(logs["loss"]),
            "accuracy": float(logs["accuracy"]),
            "validation_loss": float(logs["val_data_loss"]),
            "validation_accuracy": float(logs["val_accuracy"]),
            "learning_rate": self.learning_rate,
            "seconds": time.perf_counter() - self.began,
            "images_per_second": self.inputs.batches.images / (self.trained - self.began),
        }
        if self.timer:
            metrics["input_wait"] = float(self.timer.seconds) / (self.trained - self.began)
        step, now = self.inputs.first_step + epoch, int(time.time() * 1000)
        self.history.append(EpochRecord(step, self.inputs.name, epoch, now, metrics))
        speed = metrics["images_per_second"]
        accuracies = f"accuracy {metrics['accuracy']:.1%} validation {metrics['validation_accuracy']:.1%}"
        done = f"{epoch + 1}/{self.params['epochs']}"
        self.advance(0, f"{done} loss {metrics['loss']:.3f} {accuracies} {speed:.0f} images/s")


def build_variables(model: keras.Model) -> list[keras.Variable]:
    """Return all variables that an epoch changes: weights, seeds, the optimizer's moments, averages and step.

    Args:
        model: a compiled model; its optimizer's variables are created if they do not exist yet.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    return [*model.variables, *model.optimizer.variables]


def assign_variables(model: keras.Model, state: TrainingState) -> None:
    """Assign the variables of a checkpoint to a compiled model and to its optimizer, unless that starts anew."""
    starts_anew = len(state.variables) == len(model.variables)  # the optimizer, see `TrainingState`
    variables = model.variables if starts_anew else build_variables(model)
    for variable, value in zip(variables, state.variables, strict=True):
        variable.assign(value)


class CheckpointCallback(keras.callbacks.Callback):
    """Callback that saves a checkpoint as an epoch ends and then passes the epoch's record on to be logged.

    It has to be the last callback, so that the checkpoint holds what the others change.
    """

    def __init__(self, logger: EpochLogger, stopping: EarlyStopping | None, context: TrainingContext) -> None:
        super().__init__()
        self.phase, self.logger, self.stopping, self.context = logger.inputs.name, logger, stopping, context

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restore the latest checkpoint and log its epochs again; logging is idempotent."""
        build_variables(self.model)
        state = self.context.checkpoints.latest(self.phase) if self.context.checkpoints else None
        if state is None:
            return
        assign_variables(self.model, state)
        if self.stopping:
            for name, value in state.stopping.items():
                setattr(self.stopping, name, value)
            self.stopping.best_weights = list(state.best) or None
        self.logger.history = list(state.history)
        for record in state.history:
            self.context.record(record)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        last = epoch == self.params["epochs"] - 1 or self.model.stop_training
        if self.context.checkpoints and (last or self.context.checkpoints.due):
            stopping = self.stopping
            counters = {"wait": stopping.wait, "best": float(stopping.best)} if stopping else {}
            self.context.checkpoints.save(
                self.phase,
                TrainingState(
                    variables=[np.asarray(variable) for variable in build_variables(self.model)],
                    best=(stopping and stopping.best_weights) or [],
                    stopping=counters,
                    stopped=bool(self.model.stop_training),
                    history=tuple(self.logger.history),
                ),
            )
        self.context.record(self.logger.history[-1])
