"""The only compile() and fit()."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from experiments.data.pipeline import Batches
from experiments.types import EpochRecord, Watch


def fit(
    model: keras.Model,
    batches: Batches,
    validation: tf.data.Dataset,
    *,
    optimizer: keras.optimizers.Optimizer,
    classes: int,
    phase: str,
    epochs: int,
    first_step: int,
    seed: int,
    watch: Watch,
) -> tuple[EpochRecord, ...]:
    """Trains a model that outputs logits, in one call to Keras over all epochs.

    Args:
        model: inputs -> logits [B, 1] for two classes, [B, classes] for more.
        batches: training batches of exactly `epochs` epochs.
        validation: (inputs, labels [B] int32), scored after every epoch.
        phase: what the curves call this part of the run: scratch, head or finetune.
        first_step: the first epoch's place on the run's axis.
        seed: of dropout, together with the epoch.
        watch: shown the progress and given every epoch's record.

    Returns:
        One record an epoch.
    """
    if classes == 2:
        loss: keras.losses.Loss = keras.losses.BinaryCrossentropy(from_logits=True)
        accuracy: keras.metrics.Metric = keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    model.compile(optimizer=optimizer, loss=loss, metrics=[accuracy])
    with watch.progress.stage(phase, epochs * batches.steps) as advance:
        record = Record(phase, first_step, batches.pictures, watch.record, advance)
        model.fit(
            batches.dataset,
            epochs=epochs,
            steps_per_epoch=batches.steps,
            validation_data=validation,
            shuffle=False,  # the batches are
            callbacks=[EpochSeeds(seed), record],
            verbose=0,
        )
    return tuple(record.history)


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


class Record(keras.callbacks.Callback):
    """Turns Keras's logs into one EpochRecord an epoch and passes it on."""

    def __init__(
        self,
        phase: str,
        first_step: int,
        pictures: int,
        pass_on: Callable[[EpochRecord], None],
        advance: Callable[..., None],
    ) -> None:
        super().__init__()
        self.phase, self.first_step, self.pictures = phase, first_step, pictures
        self.pass_on, self.advance = pass_on, advance
        self.history: list[EpochRecord] = []
        self.began = self.trained = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.trained = time.perf_counter()
        self.advance()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = logs or {}
        # A float32 to its own precision: 1e-4, not 9.99999975e-05.
        learning_rate = float(f"{float(self.model.optimizer.learning_rate):.7g}")
        metrics = {
            "loss": float(logs["loss"]),
            "accuracy": float(logs["accuracy"]),
            "validation_loss": float(logs["val_loss"]),
            "validation_accuracy": float(logs["val_accuracy"]),
            "learning_rate": learning_rate,
            "seconds": time.perf_counter() - self.began,
            "pictures_per_second": self.pictures / (self.trained - self.began),
        }
        record = EpochRecord(self.first_step + epoch, self.phase, epoch, int(time.time() * 1000), metrics)
        self.history.append(record)
        accuracy, speed = metrics["validation_accuracy"], metrics["pictures_per_second"]
        done = f"{epoch + 1}/{self.params['epochs']}"
        self.advance(0, f"{done} loss {metrics['loss']:.3f} validation {accuracy:.1%} {speed:.0f} pictures/s")
        self.pass_on(record)
