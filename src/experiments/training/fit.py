"""Training of a Keras model: the only place that compiles models, and one of two that call `fit` (`lr_finder`)."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import keras
import tensorflow as tf

from experiments.models.winograd import faster_convolutions
from experiments.system.private_api import is_deterministic, variable_index, wrap_update_step
from experiments.training.callbacks import (
    CheckpointCallback,
    EarlyStopping,
    EpochLogger,
    EpochSeeds,
    InputWaitTimer,
    LearningRateScheduler,
    LeftoverGradients,
    inner_optimizer,
)
from experiments.training.compiled_updates import compile_updates, only_cpus
from experiments.training.losses import accuracy, class_weights, reported_loss, targets, weighted
from experiments.training.types import EpochRecord, PhaseInputs, TrainingContext, TrainingPhase

# VERSION is part of the key of a cached head. It has to change whenever the same `TrainingPhase` leads to other
# weights, or when the meaning of a curve or the form of a cached head changes.
VERSION = 3


def fit(inputs: PhaseInputs, phase: TrainingPhase, context: TrainingContext) -> tuple[EpochRecord, ...]:
    """Train a model that outputs logits, in one call of Keras's `fit` over all epochs.

    Args:
        inputs: the model, with batches of exactly the epochs that are to be trained: `context.remaining` of the phase.
        phase: how the model is trained.
        context: displays the progress and receives the record of every epoch. If it has checkpoints, training continues
            from the latest one of this phase and saves new ones as epochs end.

    Returns:
        One record per epoch, including the epochs before the checkpoint from which training continued.

    Raises:
        ConfigError: the loss is not finite after an epoch, or `class_weights` names an unknown class.
    """
    model, batches = inputs.model, inputs.batches
    # Keras cannot run several steps per call on several devices.
    steps_per_execution = 1 if tf.distribute.has_strategy() else batches.steps_per_execution
    dataset = compile_model(inputs, phase, steps_per_execution)
    # With several devices, tf.distribute prefetches after the timed dataset, which hides the wait from the timer.
    # With op determinism on, TensorFlow does not allow reading the clock.
    timer = None if tf.distribute.has_strategy() or is_deterministic() else InputWaitTimer()
    epochs = context.remaining(inputs.name, phase.epochs)
    with context.progress.stage(inputs.name, phase.epochs * batches.steps) as advance:
        if epochs.start:
            advance(epochs.start * batches.steps)
        logger = EpochLogger(inputs, phase, steps_per_execution, timer, advance)
        began = time.perf_counter()
        with fast_convolutions(inputs, phase):
            model.fit(
                timer.timed(dataset) if timer else dataset,
                initial_epoch=epochs.start,
                epochs=phase.epochs,
                steps_per_epoch=batches.steps,
                validation_data=inputs.validation.map(lambda rows, labels: (rows, targets(labels, inputs.count))),
                shuffle=False,  # The batches are already shuffled.
                callbacks=build_callbacks(logger, context),
                verbose=0,
            )
        context.fit_seconds += time.perf_counter() - began
    return tuple(logger.history)


def compile_model(inputs: PhaseInputs, phase: TrainingPhase, steps_per_execution: int) -> tf.data.Dataset:
    """Compile the model of a phase.

    Returns:
        Its batches as the compiled model takes them: (inputs, targets), with class weights also (..., weights [B]).
    """
    loss = phase.loss(inputs.count)
    inputs.model.compile(
        optimizer=build_optimizer(phase, inputs.model, inputs.rate_factors),
        loss=loss,
        metrics=[
            keras.metrics.MeanMetricWrapper(accuracy, name="accuracy"),
            keras.metrics.MeanMetricWrapper(reported_loss(loss), name="data_loss"),
        ],
        jit_compile="auto" if phase.xla is None else phase.xla,
        steps_per_execution=steps_per_execution,
    )
    weights = class_weights(phase.class_weights, inputs.batches.labels, inputs.classes)
    return inputs.batches.dataset.map(lambda rows, labels: weighted(rows, targets(labels, inputs.count), weights))


def build_optimizer(
    phase: TrainingPhase, model: keras.Model, rate_factors: Mapping[int, float]
) -> keras.optimizers.Optimizer:
    """Return a phase's optimizer for the trainable variables of a model."""
    optimizer = phase.optimizer()
    if optimizer.weight_decay and not phase.decay_bias_and_norm:
        vectors = [variable for variable in model.trainable_variables if len(variable.shape) < 2]
        optimizer.exclude_from_weight_decay(var_list=vectors)
    factors = [rate_factors.get(id(variable), 1.0) for variable in model.trainable_variables]
    if set(factors) - {1.0}:
        wrap_update_step(optimizer, functools.partial(scaled_update, optimizer, factors))
    if _compiles_parts(phase):
        compile_updates(optimizer)
    return optimizer


def scaled_update(
    optimizer: keras.optimizers.Optimizer,
    factors: Sequence[float],
    update: Callable[..., None],
    gradient: tf.Tensor,
    variable: tf.Variable,
    learning_rate: keras.Variable,
) -> None:
    """Update a variable as `update` does, with the learning rate multiplied by the variable's own factor."""
    factor = factors[variable_index(optimizer, variable)]
    update(gradient, variable, learning_rate if factor == 1 else keras.ops.multiply(learning_rate, factor))


def fast_convolutions(inputs: PhaseInputs, phase: TrainingPhase) -> AbstractContextManager[None]:
    """Return the context in which a phase's model computes its large convolutions by Winograd's method, on CPUs."""
    return faster_convolutions(inputs.model) if _compiles_parts(phase) else nullcontext()


def _compiles_parts(phase: TrainingPhase) -> bool:
    """Return whether parts of the computation are compiled by XLA: the large updates and some convolutions.

    On CPUs Keras's "auto" leaves XLA off, although compiling these parts saves time.
    """
    return phase.xla is None and not tf.distribute.has_strategy() and only_cpus()


def build_callbacks(logger: EpochLogger, context: TrainingContext) -> list[keras.callbacks.Callback]:
    """Return the callbacks of `fit` in the order in which Keras calls them."""
    phase, optimizer = logger.phase, inner_optimizer(logger.inputs.model)
    averages = keras.callbacks.SwapEMAWeights() if getattr(optimizer, "use_ema", False) else None
    stopping = EarlyStopping(phase, averages) if phase.early_stopping or phase.best_weights else None
    found = [
        EpochSeeds(phase.seed),
        LearningRateScheduler(logger),
        averages,
        LeftoverGradients() if getattr(optimizer, "gradient_accumulation_steps", None) else None,
        logger,
        stopping,
        CheckpointCallback(logger, stopping, context),
    ]
    return [callback for callback in found if callback is not None]
