"""Batches for `fit`: one tf.data dataset over all epochs, every random number in it derived from (seed, epoch)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from experiments.data.augmentation import MIXING, seeded
from experiments.data.types import Augmentation, ImageSet
from experiments.storage.array_cache import Rows

AHEAD = 4  # batches prefetched while the model trains on one
MAX_STEPS_PER_EXECUTION = 128  # most steps in one call; a run that is interrupted stops only after the call


@dataclass(frozen=True)
class Batches:
    """Training data for `fit`: the batches of all epochs."""

    dataset: tf.data.Dataset  # (inputs, labels [B] int32 or soft labels [B, C] float32), epoch after epoch
    labels: np.ndarray  # [N] int32, of the images in an epoch
    batch_size: int
    short_steps: bool = False  # whether a step takes no longer than Python takes to start it

    @property
    def images(self) -> int:
        """Number of images in an epoch."""
        return len(self.labels)

    @property
    def steps(self) -> int:
        """Number of batches in an epoch; the last batch may be smaller."""
        return math.ceil(self.images / self.batch_size)

    @property
    def steps_per_execution(self) -> int:
        """Number of steps in one call (`steps_per_execution`), so that short steps do not wait for Python.

        It divides the number of steps in an epoch, as Keras requires.
        """
        return max(n for n in range(1, MAX_STEPS_PER_EXECUTION + 1) if self.steps % n == 0) if self.short_steps else 1


def rng(seed: int, epoch: int, stream: int = 0) -> np.random.Generator:
    """Return the generator of an epoch's random numbers, which depend on nothing but the arguments."""
    return np.random.default_rng([seed, epoch, stream])


def shuffled(seed: int, epoch: int, count: int, batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the batches of an epoch over `count` rows: the position of each in the epoch, and its rows [B]."""
    order = rng(seed, epoch).permutation(count)
    for at in range(0, count, batch_size):
        yield at, order[at : at + batch_size]


def image_batches(
    images: ImageSet,
    *,
    classes: int,
    augmentation: Augmentation,
    extra_layers: Sequence[keras.layers.Layer],
    batch_size: int,
    seed: int,
    epochs: range,
) -> Batches:
    """Return freshly augmented images, shuffled anew each epoch: inputs [B, H, W, 3] float32 in [0, 255].

    Where images are mixed with each other (MixUp, CutMix), labels are soft: [B, classes] float32.

    Args:
        images: the images of the split to train on.
        classes: number of classes.
        augmentation: applied to a whole batch at once, in parallel.
        extra_layers: Keras preprocessing layers, applied after it to one batch at a time.
        epochs: numbers of the epochs to yield.
    """
    pixels, labels, size = images.pixels, images.labels, images.image_size

    def batches() -> Iterator[tuple[np.ndarray, ...]]:
        for epoch in epochs:
            numbers = augmentation.draw(rng(seed, epoch, 1), len(labels), size)
            for at, rows in shuffled(seed, epoch, len(labels), batch_size):
                yield pixels[rows], numbers[rows], labels[rows], np.array([epoch, at], "int32")

    width = augmentation.draw(rng(seed, 0), 1, size).shape[1]
    signature = (
        tf.TensorSpec((None, size, size, 3), tf.uint8),
        tf.TensorSpec((None, width), tf.float32),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((2,), tf.int32),
    )
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature).map(
        lambda pixels, numbers, labels, place: (augmentation(pixels, numbers), labels, place),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    if extra_layers:
        apply = seeded(extra_layers)
        mixing = any(isinstance(layer, MIXING) for layer in extra_layers)

        def transform(pixels: tf.Tensor, labels: tf.Tensor, place: tf.Tensor) -> tuple[tf.Tensor, ...]:
            place = tf.random.experimental.stateless_fold_in(place, seed)
            pixels, shares = apply(pixels, tf.one_hot(labels, classes), place)
            return pixels, shares if mixing else labels, place

        dataset = dataset.map(transform)
    dataset = dataset.map(lambda pixels, labels, place: (pixels, labels)).prefetch(AHEAD)
    return Batches(dataset, labels, batch_size)


def map_features(batches: Batches, forward: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> Batches:
    """Return the same batches with a frozen network's features [B, *shape] float32 at its split point as inputs."""

    def features() -> Iterator[tuple[np.ndarray, tf.Tensor]]:
        for pixels, labels in batches.dataset:
            yield forward(pixels.numpy()), labels

    signature = (tf.TensorSpec((None, *shape), tf.float32), batches.dataset.element_spec[1])
    dataset = tf.data.Dataset.from_generator(features, output_signature=signature).prefetch(1)
    return Batches(dataset, batches.labels, batches.batch_size)


def feature_batches(
    views: Sequence[np.ndarray | Rows], labels: np.ndarray, *, batch_size: int, seed: int, epochs: range
) -> Batches:
    """Return batches of cached features, shuffled anew each epoch: inputs [B, ...] float32.

    Epoch e reads view e mod K of `views`, arrays [N, ...] float32 or float16, each from differently augmented images.
    The labels are [N] int32.
    """

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for epoch in epochs:
            view = views[epoch % len(views)]
            for _, rows in shuffled(seed, epoch, len(labels), batch_size):
                yield np.asarray(view[rows], "float32"), labels[rows]

    signature = (tf.TensorSpec((None, *views[0].shape[1:]), tf.float32), tf.TensorSpec((None,), tf.int32))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(AHEAD)
    return Batches(dataset, labels, batch_size, short_steps=len(views[0].shape) == 2)  # vectors


def eval_batches(inputs: np.ndarray | Rows, labels: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Return rows in their order, for validation: inputs [B, ...] float32, labels [B] int32."""

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for at in range(0, len(inputs), batch_size):
            rows = slice(at, at + batch_size)
            yield np.asarray(inputs[rows], "float32"), labels[rows]

    spec = (tf.TensorSpec((None, *inputs.shape[1:]), tf.float32), tf.TensorSpec((None,), tf.int32))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=spec).prefetch(AHEAD)
    return dataset.apply(tf.data.experimental.assert_cardinality(math.ceil(len(inputs) / batch_size)))


def augmented(
    pixels: Rows, *, augmentation: Augmentation, extra_layers: Sequence[keras.layers.Layer], seed: int, view: int
) -> Callable[[slice], np.ndarray]:
    """Return a function of a slice of rows: one fixed augmented view of them [B, H, W, 3] float32 in [0, 255]."""
    numbers = augmentation.draw(rng(seed, view, 2), len(pixels), pixels.shape[1])
    apply = seeded(extra_layers) if extra_layers else None
    layers_seed = int(rng(seed, view, 4).integers(2**31))

    def rows(at: slice) -> np.ndarray:
        images = augmentation(tf.constant(pixels[at]), tf.constant(numbers[at]))
        if apply:
            shares = tf.zeros((len(images), 1))  # with cached views no layer changes labels
            images, _ = apply(images, shares, tf.constant([layers_seed, at.start], tf.int32))
        return np.asarray(images)

    return rows
