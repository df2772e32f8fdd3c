"""The only compile() and fit()."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled  # as Keras has it; there is no other

from experiments.data.input_pipeline import Batches
from experiments.errors import ConfigError
from experiments.models.winograd import faster_convolutions
from experiments.training.checkpoints import State
from experiments.training.losses import accuracy, class_weights, loss_of_guessing, reported_loss, targets, weighted
from experiments.training.types import EpochRecord, TrainingContext, TrainingPhase, Tried

LARGE = 2**18  # elements of a variable, a megabyte of float32: about what a core's own cache holds
VERSION = 2  # of what training makes of a recipe, and of what its curves mean: part of the key of a cached head
KERAS_NAMES = {"validation_loss": "val_data_loss", "validation_accuracy": "val_accuracy"}
_log = logging.getLogger(__name__)


def fit(
    model: keras.Model,
    batches: Batches,
    validation: tf.data.Dataset,
    *,
    recipe: TrainingPhase,
    classes: tuple[str, ...],
    phase: str,
    first_step: int,
    watch: TrainingContext,
    rate_factors: Mapping[int, float] = MappingProxyType({}),
) -> tuple[EpochRecord, ...]:
    """Trains a model that outputs logits, in one call to Keras over all epochs.

    Args:
        model: inputs -> logits [B, 1] for two classes, [B, classes] for more.
        batches: training batches of exactly the recipe's epochs.
        validation: (inputs, labels [B] int32), scored after every epoch.
        recipe: how the phase is trained.
        classes: their names, in label order.
        phase: what the curves call this part of the run: scratch, head or finetune.
        first_step: the first epoch's place on the run's axis.
        watch: shown the progress and given every epoch's record; where it has checkpoints, training goes on from the
            last of this phase, whose `watch.remaining` epochs the batches must be of, and leaves one after every epoch.
        rate_factors: what the learning rate is multiplied by, by the `id` of a variable; 1 for others. Weight decay
            follows the rate without it.

    Returns:
        One record an epoch, those before the checkpoint among them.

    Raises:
        Tried: the recipe is of a range test, and this was it.
    """
    count = len(classes)
    weights = class_weights(recipe.class_weights, batches.labels, classes)
    optimizer = recipe.optimizer()
    if optimizer.weight_decay and not recipe.decay_bias_and_norm:
        vectors = [variable for variable in model.trainable_variables if len(variable.shape) < 2]
        optimizer.exclude_from_weight_decay(var_list=vectors)
    if any(id(variable) in rate_factors for variable in model.trainable_variables):
        scale_rates(optimizer, [rate_factors.get(id(variable), 1.0) for variable in model.trainable_variables])
    loss = recipe.loss(count)
    several = tf.distribute.has_strategy()
    # Where Keras leaves XLA off, some parts gain by it.
    partly = recipe.xla is None and not several and only_cpus()
    if partly:
        compile_updates(optimizer)
    computing = faster_convolutions(model) if partly else nullcontext()
    # Of which Keras's replicas cannot make several in a call, and each of a range test has a rate of its own.
    burst = 1 if several or recipe.tried else batches.burst
    model.compile(
        optimizer=optimizer,
        loss=loss,
        metrics=[
            keras.metrics.MeanMetricWrapper(accuracy, name="accuracy"),
            keras.metrics.MeanMetricWrapper(reported_loss(loss), name="data_loss"),
        ],
        jit_compile="auto" if recipe.xla is None else recipe.xla,
        steps_per_execution=burst,
    )
    # Several devices fetch ahead of their own, past any measuring; clocks may not be read with determinism on.
    waiting = None if several or is_op_determinism_enabled() else InputWaitTimer()
    dataset = batches.dataset.map(lambda inputs, labels: weighted(inputs, targets(labels, count), weights))
    if recipe.tried:
        penalties = float(sum(model.losses))
        guessing = loss_of_guessing(loss, batches.labels, weights, count) + penalties
        with watch.progress.stage("range test", len(recipe.tried)) as advance:
            growing = LRFinder(recipe.tried, guessing, advance)
            with computing:
                model.fit(
                    dataset,
                    steps_per_epoch=len(recipe.tried),
                    shuffle=False,
                    callbacks=[EpochSeeds(recipe.seed), growing],
                    verbose=0,
                )
        raise Tried(growing.losses, guessing, trained=first_step > 0)
    averages = keras.callbacks.SwapEMAWeights() if getattr(optimizer, "use_ema", False) else None
    epochs = watch.remaining(phase, recipe.epochs)
    with watch.progress.stage(phase, recipe.epochs * batches.steps) as advance:
        if epochs.start:
            advance(epochs.start * batches.steps)
        record = EpochLogger(phase, recipe.monitor, first_step, batches.pictures, burst, waiting, advance)
        stop = early_stopping(recipe, averages)
        commit = CheckpointCallback(phase, record, stop, watch)
        leftover = LeftoverGradients() if getattr(optimizer, "gradient_accumulation_steps", None) else None
        callbacks = [
            EpochSeeds(recipe.seed),
            LearningRateScheduler(recipe.rate, record),
            averages,
            leftover,
            record,
            stop,
            commit,
        ]
        began = time.perf_counter()
        with computing:
            model.fit(
                waiting.watch(dataset) if waiting else dataset,
                initial_epoch=epochs.start,
                epochs=recipe.epochs,
                steps_per_epoch=batches.steps,
                validation_data=validation.map(lambda inputs, labels: (inputs, targets(labels, count))),
                shuffle=False,  # the batches are
                callbacks=[callback for callback in callbacks if callback is not None],
                verbose=0,
            )
        watch.fitting[phase] = time.perf_counter() - began
    return tuple(record.history)


def only_cpus() -> bool:
    """Whether Keras, asked for "auto", compiles nothing."""
    return all(device.device_type == "CPU" for device in tf.config.list_physical_devices())


def scale_rates(optimizer: keras.optimizers.Optimizer, factors: Sequence[float]) -> None:
    """Have an optimizer change each variable at a learning rate of its own.

    Args:
        factors: of the rate, one for each variable that the optimizer is built with, in order.
    """
    update = optimizer.update_step

    def update_step(gradient: tf.Tensor, variable: tf.Variable, learning_rate: keras.Variable) -> None:
        factor = factors[optimizer._get_variable_index(variable)]  # Keras has no public way to identify a variable
        update(gradient, variable, learning_rate if factor == 1 else keras.ops.multiply(learning_rate, factor))

    optimizer.update_step = update_step


def compile_updates(optimizer: keras.optimizers.Optimizer) -> None:
    """Has large variables updated in one pass over their memory (XLA), where Keras makes one for every operation.

    On two cores the tutorial's head, 8,192 x 256 weights, so takes half the time a step. Only Keras's own optimizers:
    what somebody else's may do in `update_step`, XLA need not know.
    """
    if type(optimizer).__module__.partition(".")[0] != "keras":
        return
    update = optimizer.update_step

    def update_step(gradient: tf.Tensor, variable: tf.Variable, learning_rate: keras.Variable) -> None:
        if variable.shape.num_elements() < LARGE:
            update(gradient, variable, learning_rate)
        else:
            tf.function(lambda given: update(given, variable, learning_rate), jit_compile=True)(gradient)

    optimizer.update_step = update_step


class InputWaitTimer:
    """Seconds that training waits for its batches, measured inside TensorFlow where it asks for each."""

    def __init__(self) -> None:
        with tf.device("CPU:0"):  # where the input is prepared
            self.seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)

    def watch(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """The same dataset, timed. Nothing is fetched ahead of it from here on."""

        def note(asked: tf.Tensor, batch: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
            with tf.control_dependencies([self.seconds.assign_add(tf.timestamp() - asked)]):
                return tuple(tf.identity(part) for part in batch)

        asked = tf.data.Dataset.counter().map(lambda _: tf.timestamp())
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False
        return tf.data.Dataset.zip((asked, dataset)).map(note).with_options(options)


class EpochSeeds(keras.callbacks.Callback):
    """Sets every seed generator in the model (dropout, noise) from (seed, epoch) as an epoch begins.

    So an epoch's random draws do not depend on how many came before it in this process.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        states = [variable for variable in self.model.variables if variable.name == "seed_generator_state"]
        for at, state in enumerate(states):
            state.assign(np.random.default_rng([self.seed, epoch, 3, at]).integers(2**32, size=2, dtype="uint32"))


class LearningRateScheduler(keras.callbacks.Callback):
    """Sets the learning rate as an epoch begins: the one place from which warm-up and schedule do so."""

    def __init__(self, rate: Callable[[int, list[float]], float], record: EpochLogger) -> None:
        super().__init__()
        self.rate, self.record = rate, record

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.record.learning_rate = self.rate(epoch, self.record.monitored)
        self.model.optimizer.learning_rate = self.record.learning_rate


class LeftoverGradients(keras.callbacks.Callback):
    """Make a step of the gradients that are left over after a phase's last batch.

    Keras makes a step of every `gradient_accumulation_steps` batches, across epochs, and drops what remains at the end.
    The last step is that of the mean gradient of the batches that remain.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.epoch = epoch

    @property
    def optimizer(self) -> keras.optimizers.Optimizer:
        """The optimizer that accumulates: under mixed_float16 the one that Keras has wrapped."""
        return getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)

    @property
    def batches(self) -> int:
        """Batches since the last step."""
        return int(self.optimizer._iterations) % int(self.optimizer.gradient_accumulation_steps)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        last = (self.epoch, batch) == (self.params["epochs"] - 1, self.params["steps"] - 1)
        if not last or not self.batches or tf.distribute.has_strategy():
            return
        optimizer, batches, steps = self.optimizer, self.batches, self.optimizer.gradient_accumulation_steps
        # One more batch completes the step. Its gradient makes the mean over `steps` that over the batches there are.
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
    """Gives every batch the next learning rate and keeps its loss, until the loss runs away (Smith, 2017).

    That is where its average, whose weights halve every seven batches, is four times its lowest, as in fastai's finder,
    and above the loss of guessing: four times next to nothing, of a head that fits its images, is one wrong answer.
    """

    KEPT, FIRST, RUNAWAY = 0.9, 10, 4.0  # of the average each time; batches before it counts; times the lowest

    def __init__(self, rates: Sequence[float], guessing: float, advance: Callable[..., None]) -> None:
        super().__init__()
        self.rates, self.guessing, self.advance = rates, guessing, advance
        self.losses: list[float] = []
        self.average, self.lowest = 0.0, math.inf

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.model.reset_metrics()  # else the loss is the mean of all so far
        self.model.optimizer.learning_rate = self.rates[batch]

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.advance()
        loss = float((logs or {})["loss"])
        if not math.isfinite(loss):
            self.model.stop_training = True
            return
        self.losses.append(loss)
        self.average = self.KEPT * self.average + (1 - self.KEPT) * loss
        average = self.average / (1 - self.KEPT ** len(self.losses))  # as if there had been losses before the first
        if len(self.losses) >= self.FIRST:
            self.lowest = min(self.lowest, average)
            self.model.stop_training = average > max(self.RUNAWAY * self.lowest, self.guessing)


class EarlyStopping(keras.callbacks.EarlyStopping):
    """Early stopping that keeps the averaged weights where there are such: those that were validated."""

    averages: keras.callbacks.SwapEMAWeights | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.averages:
            self.averages.on_test_begin()
        super().on_epoch_end(epoch, logs)
        if self.averages:
            self.averages.on_test_end()


def early_stopping(recipe: TrainingPhase, averages: keras.callbacks.SwapEMAWeights | None) -> EarlyStopping | None:
    """What ends a phase early and brings its best weights back, where the recipe wants either."""
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
    """Turns Keras's logs into one EpochRecord an epoch."""

    def __init__(
        self,
        phase: str,
        monitor: str,
        first_step: int,
        pictures: int,
        burst: int,
        waiting: InputWaitTimer | None,
        advance: Callable[..., None],
    ) -> None:
        super().__init__()
        self.phase, self.monitor, self.first_step = phase, monitor, first_step
        self.pictures, self.burst, self.waiting, self.advance = pictures, burst, waiting, advance
        self.history: list[EpochRecord] = []
        self.learning_rate = 0.0  # of the running epoch
        self.began = self.trained = 0.0

    @property
    def monitored(self) -> list[float]:
        """The monitored value of every epoch so far, turned so that lower is better."""
        sign = 1 if self.monitor == "validation_loss" else -1
        return [sign * record.metrics[self.monitor] for record in self.history]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.waiting:
            self.waiting.seconds.assign(0.0)
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.trained = time.perf_counter()
        self.advance(self.burst)

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
            "pictures_per_second": self.pictures / (self.trained - self.began),
        }
        if self.waiting:
            metrics["input_wait"] = float(self.waiting.seconds) / (self.trained - self.began)
        record = EpochRecord(self.first_step + epoch, self.phase, epoch, int(time.time() * 1000), metrics)
        self.history.append(record)
        speed = metrics["pictures_per_second"]
        accuracies = f"accuracy {metrics['accuracy']:.1%} validation {metrics['validation_accuracy']:.1%}"
        done = f"{epoch + 1}/{self.params['epochs']}"
        self.advance(0, f"{done} loss {metrics['loss']:.3f} {accuracies} {speed:.0f} pictures/s")


class CheckpointCallback(keras.callbacks.Callback):
    """Ends an epoch for good, after all other callbacks: the checkpoint first, then the word to everybody else."""

    COUNTED = ("wait", "stopped_epoch", "best", "best_epoch")  # by EarlyStopping

    def __init__(self, phase: str, record: EpochLogger, stop: EarlyStopping | None, watch: TrainingContext) -> None:
        super().__init__()
        self.phase, self.record, self.stop, self.watch = phase, record, stop, watch

    def variables(self) -> list[keras.Variable]:
        """All that an epoch changes: weights, seeds, the optimizer's moments, averages and step."""
        return [*self.model.variables, *self.model.optimizer.variables]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Puts everything back as the checkpoint has it, and tells its records again: nobody minds hearing twice."""
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        state = self.watch.checkpoints.latest(self.phase) if self.watch.checkpoints else None
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
            self.watch.record(record)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        last = epoch == self.params["epochs"] - 1 or self.model.stop_training
        if self.watch.checkpoints and (last or self.watch.checkpoints.due):
            counted = {name: getattr(self.stop, name) for name in self.COUNTED} if self.stop else {}
            if counted and counted["best"] is not None:
                counted["best"] = float(counted["best"])
            self.watch.checkpoints.save(
                self.phase,
                State(
                    variables=[np.asarray(variable) for variable in self.variables()],
                    best=(self.stop and self.stop.best_weights) or [],
                    stopping=counted,
                    stopped=bool(self.model.stop_training),
                    history=tuple(self.record.history),
                ),
            )
        self.watch.record(self.record.history[-1])
