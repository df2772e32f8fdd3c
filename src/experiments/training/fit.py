"""Training of a Keras model: the only place that calls `compile` and `fit`, and the callbacks that it uses."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from types import MappingProxyType

import keras
import tensorflow as tf

from experiments.data.input_pipeline import Batches
from experiments.models.winograd import faster_convolutions
from experiments.system.private_api import is_deterministic
from experiments.training.callbacks import (
    CheckpointCallback,
    EpochLogger,
    EpochSeeds,
    InputWaitTimer,
    LearningRateScheduler,
    LeftoverGradients,
    LRFinder,
    early_stopping,
)
from experiments.training.losses import accuracy, class_weights, loss_of_guessing, reported_loss, targets, weighted
from experiments.training.optimizer_updates import compile_updates, only_cpus, scale_rates
from experiments.training.types import EpochRecord, RangeTestEnded, TrainingContext, TrainingPhase

# VERSION is part of the key of a cached head. It has to change whenever the same `TrainingPhase` leads to other
# weights, or when the meaning of a curve changes.
VERSION = 2
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
    context: TrainingContext,
    rate_factors: Mapping[int, float] = MappingProxyType({}),
) -> tuple[EpochRecord, ...]:
    """Train a model that outputs logits, in one call of Keras's `fit` over all epochs.

    Args:
        model: inputs -> logits [B, 1] for two classes, [B, classes] for more.
        batches: training batches of exactly the epochs that are to be trained: `context.remaining` of the phase.
        validation: (inputs, labels [B] int32), evaluated after every epoch.
        recipe: how the phase is trained.
        classes: the class names, in label order.
        phase: name of this part of the run in its curves: scratch, head or finetune.
        first_step: step of the phase's first epoch in the run's curves, which count on over the phases.
        context: displays the progress and receives the record of every epoch. If it has checkpoints, training continues
            from the latest one of this phase and saves new ones as epochs end.
        rate_factors: maps the `id` of a variable to the factor of its learning rate; 1 for variables that are not in
            it. Weight decay uses the learning rate without the factor.

    Returns:
        One record per epoch, including the epochs before the checkpoint from which training continued.

    Raises:
        RangeTestEnded: the learning rate range test that `recipe.range_test_rates` requests has ended.
        ConfigError: the loss is not finite after an epoch, or `class_weights` names an unknown class.
    """
    count = len(classes)
    weights = class_weights(recipe.class_weights, batches.labels, classes)
    optimizer = build_optimizer(recipe, model, rate_factors)
    loss = recipe.loss(count)
    several = tf.distribute.has_strategy()
    # On CPUs Keras's "auto" leaves XLA off, although compiling large updates and some convolutions saves time.
    partly = recipe.xla is None and not several and only_cpus()
    if partly:
        compile_updates(optimizer)
    computing = faster_convolutions(model) if partly else nullcontext()
    # Keras cannot run several steps per call on several devices, and a range test sets another learning rate per step.
    steps_per_execution = 1 if several or recipe.range_test_rates else batches.steps_per_execution
    model.compile(
        optimizer=optimizer,
        loss=loss,
        metrics=[
            keras.metrics.MeanMetricWrapper(accuracy, name="accuracy"),
            keras.metrics.MeanMetricWrapper(reported_loss(loss), name="data_loss"),
        ],
        jit_compile="auto" if recipe.xla is None else recipe.xla,
        steps_per_execution=steps_per_execution,
    )
    # With several devices, tf.distribute prefetches after the timed dataset, which hides the wait from the timer.
    # With op determinism on, TensorFlow does not allow reading the clock.
    waiting = None if several or is_deterministic() else InputWaitTimer()
    dataset = batches.dataset.map(lambda inputs, labels: weighted(inputs, targets(labels, count), weights))
    if recipe.range_test_rates:
        guessing = loss_of_guessing(loss, batches.labels, weights, count) + float(sum(model.losses))
        with computing:
            raise RangeTestEnded(
                range_test(model, dataset, recipe, guessing, context), guessing, trained=first_step > 0
            )
    averages = keras.callbacks.SwapEMAWeights() if getattr(optimizer, "use_ema", False) else None
    epochs = context.remaining(phase, recipe.epochs)
    with context.progress.stage(phase, recipe.epochs * batches.steps) as advance:
        if epochs.start:
            advance(epochs.start * batches.steps)
        record = EpochLogger(phase, recipe.monitor, first_step, batches.images, steps_per_execution, waiting, advance)
        stop = early_stopping(recipe, averages)
        commit = CheckpointCallback(phase, record, stop, context)
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
                waiting.timed(dataset) if waiting else dataset,
                initial_epoch=epochs.start,
                epochs=recipe.epochs,
                steps_per_epoch=batches.steps,
                validation_data=validation.map(lambda inputs, labels: (inputs, targets(labels, count))),
                shuffle=False,  # The batches are already shuffled.
                callbacks=[callback for callback in callbacks if callback is not None],
                verbose=0,
            )
        context.fitting[phase] = time.perf_counter() - began
    return tuple(record.history)


def build_optimizer(
    recipe: TrainingPhase, model: keras.Model, rate_factors: Mapping[int, float]
) -> keras.optimizers.Optimizer:
    """Return a phase's optimizer for the trainable variables of a model."""
    optimizer = recipe.optimizer()
    if optimizer.weight_decay and not recipe.decay_bias_and_norm:
        vectors = [variable for variable in model.trainable_variables if len(variable.shape) < 2]
        optimizer.exclude_from_weight_decay(var_list=vectors)
    if any(id(variable) in rate_factors for variable in model.trainable_variables):
        scale_rates(optimizer, [rate_factors.get(id(variable), 1.0) for variable in model.trainable_variables])
    return optimizer


def range_test(
    model: keras.Model, dataset: tf.data.Dataset, recipe: TrainingPhase, guessing: float, context: TrainingContext
) -> list[float]:
    """Train one batch at each learning rate of `recipe.range_test_rates`, and return the losses.

    Args:
        guessing: the loss of predicting the class frequencies; a multiple of it ends the test early.
    """
    with context.progress.stage("range test", len(recipe.range_test_rates)) as advance:
        finder = LRFinder(recipe.range_test_rates, guessing, advance)
        model.fit(
            dataset,
            steps_per_epoch=len(recipe.range_test_rates),
            shuffle=False,
            callbacks=[EpochSeeds(recipe.seed), finder],
            verbose=0,
        )
    return finder.losses
