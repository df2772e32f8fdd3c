"""Fine-tuning of MobileNetV2 as good users of plain Keras write it. Nothing of `experiments` is imported here.

    python -m benchmarks.finetuning_peers NAME '{"root": "flowers17", "weights": "mobilenet.weights.h5", "seed": 0}'

NAME is keras or fastai. The process trains on ROOT/train and prints the result of `run` as one line of JSON.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

AUTOTUNE = tf.data.AUTOTUNE
SIZE, ALPHA, BATCH_SIZE = 224, 0.35, 32
MIDDLE = "block_6_expand"  # of the block that reduces to 14 x 14 pixels, where fastai splits a ResNet's body, too


def read(root: str, split: str) -> tuple[tf.data.Dataset, list[str]]:
    """Return the images of a split, one at a time, decoded once and cached, and their paths below `root`."""
    files = keras.utils.image_dataset_from_directory(
        str(Path(root) / split), image_size=(SIZE, SIZE), batch_size=None, shuffle=False, verbose=False
    )
    return files.cache(), [str(Path(path).relative_to(root).as_posix()) for path in files.file_paths]


def training_batches(images: tf.data.Dataset, count: int, augmentation: Sequence[layers.Layer]) -> tf.data.Dataset:
    """Return shuffled batches that are augmented in parallel and prefetched."""
    augment = keras.Sequential(augmentation)
    batches = images.shuffle(count).batch(BATCH_SIZE)
    batches = batches.map(lambda pixels, labels: (augment(pixels, training=True), labels), num_parallel_calls=AUTOTUNE)
    return batches.prefetch(AUTOTUNE)


def light_augmentation() -> list[layers.Layer]:
    moved = [layers.RandomRotation(0.05), layers.RandomZoom(0.1), layers.RandomTranslation(0.1, 0.1)]
    return [layers.RandomFlip("horizontal"), *moved]


def fastai_augmentation() -> list[layers.Layer]:
    """Return layers equivalent to fastai's `aug_transforms()`, without its slight change of perspective."""
    moved = [layers.RandomFlip("horizontal"), layers.RandomRotation(10 / 360), layers.RandomZoom((-0.1, 0.0))]
    lit = [layers.RandomBrightness(0.1, value_range=(0, 255)), layers.RandomContrast(0.2, value_range=(0, 255))]
    return moved + lit


def mobilenet(weights: str | None) -> keras.Model:
    return keras.applications.MobileNetV2((SIZE, SIZE, 3), ALPHA, include_top=False, weights=weights)


class Classifier(keras.Model):
    """A network and a head, trained with fixed BatchNorm statistics.

    It is a subclass, because Keras 3.15 overrides `training=False` where a functional model calls another one.
    """

    def __init__(self, base: keras.Model, classes: int) -> None:
        super().__init__()
        self.base = base
        top = layers.Dense(classes, activation="softmax")
        self.head = keras.Sequential([layers.GlobalAveragePooling2D(), layers.Dropout(0.2), top])

    def call(self, pixels: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        inputs = keras.applications.mobilenet_v2.preprocess_input(pixels)
        return self.head(self.base(inputs, training=False), training=training)


class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """fastai's one-cycle schedule: a cosine up to `peak` for a share of the steps, then one down to `peak` / 1e5."""

    def __init__(self, peak: float, steps: int, share: float, div: float) -> None:
        super().__init__()
        self.peak, self.rise, self.fall, self.div = peak, share * steps, (1 - share) * steps, div

    def __call__(self, step: Any) -> tf.Tensor:
        step = tf.cast(step, tf.float32)

        def cosine(start: float, end: float, position: tf.Tensor) -> tf.Tensor:
            return end + (start - end) * (1 + tf.cos(math.pi * position)) / 2

        up = cosine(self.peak / self.div, self.peak, step / self.rise)
        down = cosine(self.peak, self.peak / 1e5, tf.minimum((step - self.rise) / self.fall, 1.0))
        return tf.where(step < self.rise, up, down)


class DiscriminativeAdamW(keras.optimizers.Adam):
    """Adam with decoupled weight decay and a factor of the learning rate for each variable."""

    def __init__(self, schedule: OneCycle, scales: Sequence[float], decay: float = 0.01) -> None:
        super().__init__(schedule, beta_2=0.99, epsilon=1e-5)  # fastai's values
        self.scales, self.decay = scales, decay

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        rate = learning_rate * self.scales[self._get_variable_index(variable)]
        if len(variable.shape) > 1:  # biases and normalization parameters do not decay
            variable.assign(variable * (1 - rate * self.decay))
        super().update_step(gradient, variable, rate)


TRAINED = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
Splits = Mapping[str, tuple[tf.data.Dataset, list[str]]]
Fit = Callable[[keras.Model, tf.data.Dataset, int], Any]  # trains a model for a number of epochs


def plain_keras(splits: Splits, weights: str | None, classes: int, lr: float, epochs: int, fit: Fit) -> keras.Model:
    """Train the head on the frozen network for three epochs, then the whole network, as Keras's guide does."""
    images, paths = splits["train"]
    batches = training_batches(images, len(paths), light_augmentation())
    base = mobilenet(weights)
    model = Classifier(base, classes)
    base.trainable = False
    model.compile(keras.optimizers.Adam(1e-3), **TRAINED)
    fit(model, batches, 3)
    base.trainable = True
    schedule = keras.optimizers.schedules.CosineDecay(lr, epochs * len(batches))
    model.compile(keras.optimizers.AdamW(schedule), **TRAINED)
    fit(model, batches, epochs)
    return model


def fastai(splits: Splits, weights: str | None, classes: int, lr: float, epochs: int, fit: Fit) -> keras.Model:
    """Train as fastai's `vision_learner(...).fine_tune(epochs, base_lr=lr)` does, its head included.

    Source: J. Howard, S. Gugger, "fastai: A Layered API for Deep Learning", Information 11 (2020); `Learner.fine_tune`
    of fastai 2.7: freeze_epochs=1, lr_mult=100, pct_start=0.3, div=5. Momentum stays at 0.9 instead of its cycle.
    """
    images, paths = splits["train"]
    batches = training_batches(images, len(paths), fastai_augmentation())
    base = mobilenet(weights)
    norms = [layer for layer in base.layers if isinstance(layer, layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = 0.9  # PyTorch's default; at Keras's 0.999 the statistics do not adapt within 20 epochs
    pixels = keras.Input((SIZE, SIZE, 3))
    maps = base(keras.applications.mobilenet_v2.preprocess_input(pixels))
    flow = layers.Concatenate()([layers.GlobalMaxPooling2D()(maps), layers.GlobalAveragePooling2D()(maps)])
    flow = layers.Dropout(0.25)(layers.BatchNormalization(momentum=0.9)(flow))
    flow = layers.Dense(512, activation="relu", use_bias=False, kernel_initializer="he_normal")(flow)
    flow = layers.Dropout(0.5)(layers.BatchNormalization(momentum=0.9)(flow))
    model = keras.Model(pixels, layers.Dense(classes, activation="softmax", use_bias=False)(flow))
    names = [layer.name for layer in base.layers]
    lower = {id(variable) for layer in base.layers[: names.index(MIDDLE)] for variable in layer.variables}
    body = {id(variable) for variable in base.variables}

    def cycle(epochs: int, peak: float, share: float, div: float, scales: tuple[float, float, float]) -> None:
        variables = model.trainable_variables
        groups = [0 if id(variable) in lower else 1 if id(variable) in body else 2 for variable in variables]
        schedule = OneCycle(peak, epochs * len(batches), share, div)
        model.compile(DiscriminativeAdamW(schedule, [scales[group] for group in groups]), **TRAINED)
        fit(model, batches, epochs)

    for layer in base.layers:
        layer.trainable = layer in norms  # fastai trains them in a frozen body, too
    cycle(1, lr, 0.99, 25.0, (0.1, 0.1, 1.0))
    base.trainable = True
    cycle(epochs, lr / 2, 0.3, 5.0, (0.01, 0.1, 1.0))
    return model


RECIPES = {"keras": (plain_keras, 2e-4), "fastai": (fastai, 2e-3)}  # with their default learning rates


def run(
    name: str, *, root: str, weights: str | None, seed: int, lr: float | None = None, epochs: int = 20
) -> dict[str, Any]:
    """Train a model with a recipe and evaluate it.

    Returns:
        Validation and test accuracy in [0, 1], the seconds of each epoch, and for each test image, by its path below
        `root`, whether it is classified correctly.
    """
    keras.utils.set_random_seed(seed)
    recipe, default = RECIPES[name]
    splits = {split: read(root, split) for split in ("train", "validation", "test")}
    scored = {split: splits[split][0].batch(BATCH_SIZE).prefetch(AUTOTUNE) for split in ("validation", "test")}
    classes = len([entry for entry in (Path(root) / "train").iterdir() if entry.is_dir()])
    began: list[float] = []
    seconds: list[float] = []  # of each epoch, its validation included
    timer = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: began.append(time.perf_counter()),
        on_epoch_end=lambda epoch, logs: seconds.append(time.perf_counter() - began[-1]),
    )

    def fit(model: keras.Model, batches: tf.data.Dataset, epochs: int) -> None:
        model.fit(batches, epochs=epochs, validation_data=scored["validation"], callbacks=[timer], verbose=0)

    model = recipe(splits, weights, classes, lr or default, epochs, fit)
    correct = {
        split: model.predict(batches, verbose=0).argmax(axis=1)
        == np.array([label for _, label in splits[split][0].as_numpy_iterator()])
        for split, batches in scored.items()
    }
    found: dict[str, Any] = {f"{split}_accuracy": float(hits.mean()) for split, hits in correct.items()}
    by_path = dict(zip(splits["test"][1], correct["test"].tolist(), strict=True))
    return found | {"epoch_seconds": seconds, "correct": by_path}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], **json.loads(sys.argv[2]))))
