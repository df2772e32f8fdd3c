"""Batches: every image once an epoch, in an order and augmentation that follow from (seed, epoch) alone."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from experiments.data.augmentation import Affine, Identity
from experiments.data.input_pipeline import (
    Batches,
    augmented,
    eval_batches,
    feature_batches,
    image_batches,
    map_features,
)
from experiments.data.types import Augmentation, ImageRecord, ImageSet
from experiments.models.network import inference_function
from experiments.storage.array_cache import Rows

COUNT, SIZE = 10, 8
MOVES = Affine(40.0, 0.2, 0.2, 0.2, 0.2, True, "nearest")
Batch = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """Ten images of noise; an image's corner pixel is its number, and its label is that number, too."""
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3)).astype("uint8")
    pixels[:, 0, 0, 0] = np.arange(COUNT)
    entries = tuple(ImageRecord(f"{n}.jpg", 1, f"{n}", SIZE, SIZE, "RGB", "a", "train") for n in range(COUNT))
    return ImageSet("train", entries, np.arange(COUNT, dtype="int32"), SIZE, lambda: Rows([pixels]))


def extra() -> tuple[keras.layers.Layer, ...]:
    return keras.layers.RandomContrast(0.5), keras.layers.RandomBrightness(0.3, value_range=(0, 255))


def fresh(
    images: ImageSet,
    epochs: range,
    augmentation: Augmentation = MOVES,
    layers: tuple[keras.layers.Layer, ...] = (),
    seed: int = 0,
) -> Batches:
    return image_batches(
        images, classes=COUNT, augmentation=augmentation, extra_layers=layers, batch_size=4, seed=seed, epochs=epochs
    )


def drain(dataset: tf.data.Dataset) -> list[Batch]:
    return [(np.asarray(inputs), np.asarray(labels)) for inputs, labels in dataset]


def assert_same(batches: list[Batch], other: list[Batch]) -> None:
    """Bit for bit."""
    assert len(batches) == len(other) > 0
    for a, b in zip(batches, other, strict=True):
        np.testing.assert_array_equal(a[1], b[1])
        np.testing.assert_array_equal(a[0], b[0])


def by_label(batches: list[Batch]) -> np.ndarray:
    """One epoch's images, sorted by their number."""
    pixels, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    return np.asarray(pixels[np.argsort(labels)])


def test_an_epoch_holds_every_image_once_and_ends_with_a_small_batch(images: ImageSet) -> None:
    batches = fresh(images, range(3), Identity())
    assert (batches.steps, batches.images) == (3, COUNT)
    drained = drain(batches.dataset)
    assert [len(labels) for _, labels in drained] == [4, 4, 2] * 3
    orders = []
    for epoch in range(3):
        mine = drained[3 * epoch : 3 * epoch + 3]
        np.testing.assert_array_equal(by_label(mine), images.pixels[:])  # pixels go with their labels, unchanged
        orders.append([int(label) for _, labels in mine for label in labels])
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert drained[0][0].dtype == np.float32 and drained[0][1].dtype == np.int32


def test_seeds_give_other_orders(images: ImageSet) -> None:
    first, other = (drain(fresh(images, range(1), Identity(), seed=seed).dataset) for seed in (0, 1))
    assert [list(labels) for _, labels in first] != [list(labels) for _, labels in other]


@pytest.mark.parametrize("with_layers", [False, True])
def test_an_epoch_repeats_bit_for_bit_wherever_it_starts(images: ImageSet, with_layers: bool) -> None:
    layers = extra() if with_layers else ()
    whole = drain(fresh(images, range(3), layers=layers).dataset)
    assert_same(drain(fresh(images, range(3), layers=layers).dataset), whole)  # the same layers, used before
    assert_same(drain(fresh(images, range(1, 3), layers=extra() if with_layers else ()).dataset), whole[3:])


@pytest.mark.parametrize("augmentation, with_layers", [(MOVES, False), (Identity(), True)])
def test_augmentation_differs_between_epochs_seeds_and_images(
    images: ImageSet, augmentation: Augmentation, with_layers: bool
) -> None:
    layers = extra() if with_layers else ()
    drained = drain(fresh(images, range(2), augmentation, layers).dataset)
    first, second = by_label(drained[:3]), by_label(drained[3:])
    other = by_label(drain(fresh(images, range(1), augmentation, layers, seed=1).dataset))
    plain = images.pixels[:].astype("float32")
    for a, b in ((first, second), (first, other), (first, plain)):
        assert all(np.any(image != two) for image, two in zip(a, b, strict=True))
    assert first.min() >= 0 and first.max() <= 255


def test_through_gives_the_prefix_of_the_same_batches(images: ImageSet) -> None:
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(2, 3)(inputs)
    x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization(momentum=0.1)(x))  # neither acts in a frozen part
    prefix = keras.Model(inputs, x)
    before = [value.copy() for value in prefix.get_weights()]
    batches = map_features(fresh(images, range(2)), inference_function(prefix), prefix.output_shape[1:])
    assert (batches.steps, batches.images) == (3, COUNT)
    drained = drain(batches.dataset)
    plain = drain(fresh(images, range(2)).dataset)
    assert len(drained) == len(plain) == 6
    for (activations, labels), (pixels, expected) in zip(drained, plain, strict=True):
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_allclose(activations, prefix(pixels, training=False), rtol=1e-4, atol=1e-3)
    for value, unchanged in zip(prefix.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, unchanged)


def test_stored_batches_cycle_through_the_views() -> None:
    labels = np.arange(COUNT, dtype="int32")
    views = [np.stack([labels, np.full(COUNT, number)], axis=1).astype("float32") for number in range(3)]
    stored = feature_batches(views, labels, batch_size=4, seed=0, epochs=range(7))
    assert (stored.steps, stored.images) == (3, COUNT)
    drained = drain(stored.dataset)
    assert [int(rows[0, 1]) for rows, _ in drained[::3]] == [0, 1, 2, 0, 1, 2, 0]
    assert all(len(set(rows[:, 1])) == 1 for rows, _ in drained)
    for rows, batch_labels in drained:
        np.testing.assert_array_equal(rows[:, 0], batch_labels)
    orders = [[int(label) for _, part in drained[at : at + 3] for label in part] for at in range(0, 21, 3)]
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    assert len({tuple(order) for order in orders}) == 7
    assert_same(drain(feature_batches(views, labels, batch_size=4, seed=0, epochs=range(4, 7)).dataset), drained[12:])


def test_stored_and_fresh_batches_have_one_order(images: ImageSet) -> None:
    plain = drain(fresh(images, range(2), Identity()).dataset)
    views = [images.pixels[:].astype("float32")]
    assert_same(drain(feature_batches(views, images.labels, batch_size=4, seed=0, epochs=range(2)).dataset), plain)


@pytest.mark.parametrize(
    ("count", "shape", "burst"),
    [(COUNT, (6,), 3), (COUNT, (2, 2, 6), 1), (4 * 256, (1,), 128), (4 * 131, (1,), 1)],
)
def test_light_steps_run_many_in_a_call(count: int, shape: tuple[int, ...], burst: int) -> None:
    rows, labels = np.zeros((count, *shape), "float32"), np.zeros(count, "int32")
    batches = feature_batches([rows], labels, batch_size=4, seed=0, epochs=range(1))
    assert batches.steps_per_execution == burst and batches.steps % burst == 0


def test_eval_batches_keep_the_order_and_have_a_length(images: ImageSet) -> None:
    dataset = eval_batches(images.pixels, images.labels, 4)
    assert int(dataset.cardinality()) == 3
    for _ in range(2):  # Keras reads it after every epoch
        drained = drain(dataset)
        assert [list(labels) for _, labels in drained] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        np.testing.assert_array_equal(np.concatenate([pixels for pixels, _ in drained]), images.pixels[:])
        assert drained[0][0].dtype == np.float32


@pytest.mark.parametrize("with_layers", [False, True])
def test_a_stored_view_is_fixed(images: ImageSet, with_layers: bool) -> None:
    slices = [slice(at, min(at + 4, COUNT)) for at in range(0, COUNT, 4)]

    def view(number: int, seed: int = 0, backwards: bool = False) -> np.ndarray:
        rows = augmented(
            images.pixels, augmentation=MOVES, extra_layers=extra() if with_layers else (), seed=seed, view=number
        )
        parts = {at.start: rows(at) for at in (slices[::-1] if backwards else slices)}
        return np.concatenate([parts[start] for start in sorted(parts)])

    first = view(0)
    assert first.shape == (COUNT, SIZE, SIZE, 3) and first.dtype == np.float32
    np.testing.assert_array_equal(view(0), first)
    np.testing.assert_array_equal(view(0, backwards=True), first)
    for other in (view(1), view(0, seed=1), images.pixels[:].astype("float32")):
        assert all(np.any(image != two) for image, two in zip(first, other, strict=True))


def test_extra_layers_draw_anew_for_every_view_and_seed(images: ImageSet) -> None:
    seen = {
        augmented(images.pixels, augmentation=Identity(), extra_layers=extra(), seed=seed, view=view)(
            slice(0, COUNT)
        ).tobytes()
        for seed, view in ((0, 0), (0, 1), (1, 0), (2**16, 0), (2**40, 0))
    }
    assert len(seen) == 5
    alike = replace(images, _pixels=lambda: Rows([images.pixels[[0] * COUNT]]))  # in whatever order
    first, other = (drain(fresh(alike, range(1), Identity(), extra(), seed).dataset)[0][0] for seed in (0, 1))
    assert not any(np.array_equal(image, two) for image, two in zip(first, other, strict=True))
