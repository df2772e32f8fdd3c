"""Random transformations of training images.

The affine part is one bilinear resampling per image, however many ranges are set: the matrices of rotation, shift,
shear, zoom and flip are multiplied first. Its random numbers are drawn with NumPy and passed with the batch as data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from experiments.data.types import Augmentation
from experiments.system.private_api import flatten_layers

VERSION = 2  # part of the cache key of augmented views: increase it when equal random numbers give other pixels
MIXING = (keras.layers.MixUp, keras.layers.CutMix)  # they mix the images of a batch, and their labels with them

# The operations of RandAugment and their amounts at a magnitude of 1: the ranges in table 6 of AutoAugment's paper.
COLOURS = {
    "identity": 0.0,
    "auto_contrast": 0.0,
    "equalize": 0.0,
    "solarize": 256.0,  # how far the threshold lies below 256; brighter pixels are inverted
    "posterize": 4.0,  # bits dropped, of 8
    "color": 0.9,  # these four are added to a factor of 1, or subtracted from it
    "contrast": 0.9,
    "brightness": 0.9,
    "sharpness": 0.9,
}
MOVES = {
    "rotate": 30.0,  # degrees, in both directions
    "shear_x": 0.3,  # columns per row, in both directions; shear_y likewise
    "shear_y": 0.3,
    "translate_x": 150 / 331,  # fraction of the width, in both directions; translate_y: of the height
    "translate_y": 150 / 331,
}
OPERATIONS = COLOURS | MOVES
# The same for TrivialAugment: the wide search space of its paper.
WIDE = OPERATIONS | {
    "posterize": 6.0,
    "color": 0.99,
    "contrast": 0.99,
    "brightness": 0.99,
    "sharpness": 0.99,
    "rotate": 135.0,
    "shear_x": 0.99,
    "shear_y": 0.99,
    "translate_x": 32 / 224,  # 32 pixels of an ImageNet image
    "translate_y": 32 / 224,
}
LEVELS = 31  # number of TrivialAugment's magnitudes, evenly spaced from 0 to 1


@dataclass(frozen=True)
class Affine:
    """Affine augmentation within the ranges that `affine` describes."""

    rotation: float
    width_shift: float
    height_shift: float
    shear: float
    zoom: float
    horizontal_flip: bool
    fill: str

    def draw(self, rng: np.random.Generator, count: int, size: int) -> np.ndarray:
        """Return random maps from output to input pixel coordinates: [count, 8] float32.

        A row (a0, a1, a2, b0, b1, b2, 0, 0) maps the output pixel (x, y) to the input position
        (a0 x + a1 y + a2, b0 x + b1 y + b2).
        """

        def uniform(bound: float) -> np.ndarray:
            return rng.uniform(-bound, bound, count)

        theta, shear = np.deg2rad(uniform(self.rotation)), np.deg2rad(uniform(self.shear))
        down, right = uniform(self.height_shift) * size, uniform(self.width_shift) * size
        zoom_y, zoom_x = 1 + uniform(self.zoom), 1 + uniform(self.zoom)
        mirror = np.where(rng.random(count) < 0.5, -1.0, 1.0) if self.horizontal_flip else np.ones(count)

        # The coordinates (x, y) are relative to the centre, and the order is that of ImageDataGenerator:
        # rotation . shift . shear . zoom. The flip comes last: it mirrors the output.
        cos, sin = np.cos(theta), np.sin(theta)
        centre = (size - 1) / 2
        numbers = np.zeros((count, 8))
        numbers[:, 0] = cos * zoom_x * mirror
        numbers[:, 1] = (-cos * np.sin(shear) - sin * np.cos(shear)) * zoom_y
        numbers[:, 2] = cos * right - sin * down + centre - (numbers[:, 0] + numbers[:, 1]) * centre
        numbers[:, 3] = sin * zoom_x * mirror
        numbers[:, 4] = (-sin * np.sin(shear) + cos * np.cos(shear)) * zoom_y
        numbers[:, 5] = sin * right + cos * down + centre - (numbers[:, 3] + numbers[:, 4]) * centre
        return numbers.astype("float32")

    def __call__(self, pixels: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        """Resample images [B, H, W, 3] by maps [B, 8]: float32 in [0, 255]."""
        return resample(pixels, numbers, self.fill)


@tf.function(jit_compile=True)
def resample(images: tf.Tensor, maps: tf.Tensor, fill: str) -> tf.Tensor:
    """Resample images [B, H, W, 3] of any numeric dtype by maps [B, 8] from output to input pixel coordinates.

    The result is float32, interpolated bilinearly. The function is compiled, because XLA fuses the coordinates, the
    four reads and their interpolation into one loop. The identity, a map of 1s and 0s, returns the image bit for bit.
    Every new batch size compiles again, so call it with whole batches of one size.
    """
    height, width = images.shape[1:3]
    y, x = tf.range(height, dtype=tf.float32)[:, None], tf.range(width, dtype=tf.float32)
    each = tf.unstack(maps[:, :, None, None], axis=1)
    across = inside(each[0] * x + each[1] * y + each[2], width, fill)  # [B, H, W]
    down = inside(each[3] * x + each[4] * y + each[5], height, fill)
    left, top = tf.floor(across), tf.floor(down)
    flat = tf.reshape(images, (-1, height * width, 3))

    def read(row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
        near_row, near_column = tf.clip_by_value(row, 0, height - 1), tf.clip_by_value(column, 0, width - 1)
        at = tf.cast(near_row, tf.int32) * width + tf.cast(near_column, tf.int32)
        values = tf.cast(tf.gather(flat, at, batch_dims=1), tf.float32)
        if fill == "constant":
            values *= tf.cast((row == near_row) & (column == near_column), tf.float32)[..., None]
        return values

    def between(first: tf.Tensor, second: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
        return first + share[..., None] * (second - first)

    upper = between(read(top, left), read(top, left + 1), across - left)
    lower = between(read(top + 1, left), read(top + 1, left + 1), across - left)
    return between(upper, lower, down - top)


def inside(position: tf.Tensor, size: int, fill: str) -> tf.Tensor:
    """Return the position to read at along an axis of `size` pixels, for a position that may lie outside of it."""
    if fill == "constant":  # `resample` reads zeros outside
        return position
    if fill == "reflect":  # d c b a | a b c d | d c b a
        along = tf.math.floormod(position + 0.5, 2.0 * size)
        position = tf.minimum(along, 2.0 * size - along) - 0.5
    elif fill == "wrap":  # a b c d | a b c d | a b c d
        position = tf.math.floormod(position, float(size))
    return tf.clip_by_value(position, 0.0, size - 1.0)


@dataclass(frozen=True)
class Identity:
    """No augmentation: the pixel values stay exactly as they are."""

    def draw(self, rng: np.random.Generator, count: int, size: int) -> np.ndarray:
        return np.zeros((count, 0), "float32")

    def __call__(self, pixels: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        return tf.cast(pixels, tf.float32)


def affine(
    *,
    rotation: float,
    width_shift: float,
    height_shift: float,
    shear: float,
    zoom: float,
    horizontal_flip: bool,
    fill: str,
) -> Augmentation:
    """Return rotation, shifts, shear, zoom and flip as one affine resampling.

    Ranges and order are those of Keras's ImageDataGenerator, which the tutorial uses.

    Args:
        rotation: degrees, uniform in +-rotation.
        width_shift: fraction of the width, uniform in +-width_shift; height_shift likewise.
        shear: degrees, uniform in +-shear.
        zoom: a factor for each axis, uniform in [1 - zoom, 1 + zoom].
        horizontal_flip: mirror half of the images.
        fill: what fills the area outside the image: nearest, reflect, wrap or constant (black).
    """
    if not any((rotation, width_shift, height_shift, shear, zoom, horizontal_flip)):
        return Identity()
    return Affine(rotation, width_shift, height_shift, shear, zoom, horizontal_flip, fill)


@dataclass(frozen=True)
class RandAugment:
    """Random operations on each image; its arguments are those of `randaugment` and `trivialaugment`."""

    operations: int
    magnitude: float | None  # None: one of LEVELS magnitudes, drawn for each operation
    horizontal_flip: bool
    fill: str
    ranges: Mapping[str, float]  # operation -> its amount at a magnitude of 1, in the order of OPERATIONS

    def draw(self, rng: np.random.Generator, count: int, size: int) -> np.ndarray:
        """Return the random numbers of `count` images: [count, 1 + 10 operations] float32.

        The first number of a row is 1 where the image is mirrored. Ten numbers follow for each operation: its index in
        OPERATIONS, its amount, and its map from output to input pixel coordinates, as in `Affine.draw`.
        """
        mirror = rng.random((count, 1)) < 0.5 if self.horizontal_flip else np.zeros((count, 1))
        kinds = rng.integers(len(OPERATIONS), size=(count, self.operations))
        magnitudes = rng.integers(LEVELS, size=kinds.shape) / (LEVELS - 1) if self.magnitude is None else self.magnitude
        amounts = magnitudes * np.array(list(self.ranges.values()))[kinds] * rng.choice([-1, 1], size=kinds.shape)

        # All geometric operations are combined into one map; those not drawn for an image have an amount of 0.
        moved = {name: np.where(kinds == list(OPERATIONS).index(name), amounts, 0) for name in MOVES}
        angle, centre = np.deg2rad(moved["rotate"]), (size - 1) / 2
        a0, a1 = np.cos(angle), moved["shear_x"] - np.sin(angle)
        b0, b1 = moved["shear_y"] + np.sin(angle), np.cos(angle)
        right = moved["translate_x"] * size + centre * (1 - a0 - a1)
        down = moved["translate_y"] * size + centre * (1 - b0 - b1)
        none = np.zeros(kinds.shape)
        each = np.stack([kinds, amounts, a0, a1, right, b0, b1, down, none, none], axis=-1)
        return np.concatenate([mirror, each.reshape(count, -1)], axis=1).astype("float32")

    def __call__(self, pixels: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        """Transform images [B, H, W, 3] by numbers [B, 1 + 10 operations]: float32 in [0, 255]."""
        images = tf.cast(pixels, tf.float32)
        images = tf.where(numbers[:, 0, None, None, None] > 0, images[:, :, ::-1], images)
        groups = len(COLOURS) + 1  # one for each color operation, and one for all geometric operations
        for at in range(self.operations):
            drawn = numbers[:, 1 + 10 * at : 11 + 10 * at]
            group = tf.minimum(tf.cast(drawn[:, 0], tf.int32), len(COLOURS))
            rows = tf.dynamic_partition(tf.range(tf.shape(images)[0]), group, groups)
            *coloured, moving = tf.dynamic_partition(images, group, groups)
            amounts = tf.dynamic_partition(drawn[:, 1, None, None, None], group, groups)[:-1]
            changed = map(recolour, COLOURS, coloured, amounts)
            restored = tf.ensure_shape(tf.dynamic_stitch(rows, [*changed, moving]), pixels.shape)
            images = resample(restored, drawn[:, 2:], self.fill)  # color operations have identity maps
        return images


def randaugment(*, operations: int, magnitude: float, horizontal_flip: bool, fill: str) -> Augmentation:
    """Return RandAugment: a number of operations in a row, drawn anew for each image from the 14 in OPERATIONS.

    This is not keras.layers.RandAugment, which (in 3.15) draws one choice for a whole batch, moves and brightens in one
    direction only, equalizes over the batch, and posterizes more the smaller its factor is.

    Args:
        operations: how many operations, one after the other; the same one may be drawn twice.
        magnitude: the strength of each operation, in [0, 1]: the fraction of its range in OPERATIONS.
        horizontal_flip: mirror half of the images first.
        fill: what fills the area outside the image: nearest, reflect, wrap or constant (black).

    Source: E. Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", NeurIPS
    2020; the operations are those of Pillow, computed in floats.
    """
    return RandAugment(operations, magnitude, horizontal_flip, fill, OPERATIONS)


def trivialaugment(*, horizontal_flip: bool, fill: str) -> Augmentation:
    """Return TrivialAugment: one operation at one of 31 magnitudes, both drawn for each image; nothing to tune.

    The operations are those of `randaugment`, the ranges the paper's wide ones (WIDE).

    Args:
        horizontal_flip: mirror half of the images first.
        fill: what fills the area outside the image: nearest, reflect, wrap or constant (black).

    Source: S. Mueller and F. Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021.
    The authors' code draws the factor of colour, contrast, brightness and sharpness from 31 steps between 0.01 and 2,
    this function from 31 steps of 0 to 0.99 above or below 1, as torchvision does.
    """
    return RandAugment(1, None, horizontal_flip, fill, WIDE)


def recolour(name: str, images: tf.Tensor, amount: tf.Tensor) -> tf.Tensor:
    """Apply one operation of COLOURS to images [B, H, W, 3] float32 in [0, 255] by amounts [B, 1, 1, 1]."""
    if name == "identity":
        return images
    if name == "auto_contrast":
        low = tf.reduce_min(images, axis=(1, 2), keepdims=True)
        high = tf.reduce_max(images, axis=(1, 2), keepdims=True)
        return tf.where(high > low, (images - low) * tf.math.divide_no_nan(255.0, high - low), images)
    if name == "equalize":
        return equalize(images)
    if name == "solarize":
        return tf.where(images < 256 - tf.abs(amount), images, 255 - images)
    if name == "posterize":
        step = 2 ** tf.round(tf.abs(amount))
        return tf.floor(images / step) * step
    # The remaining operations interpolate between a second image, made from the first, and the first; a factor above 1
    # moves away from the second.
    if name == "color":
        other = tf.image.rgb_to_grayscale(images)
    elif name == "contrast":
        other = tf.reduce_mean(tf.image.rgb_to_grayscale(images), axis=(1, 2), keepdims=True)
    elif name == "brightness":
        other = tf.zeros_like(images)
    else:
        other = (9 * tf.nn.avg_pool2d(images, 3, 1, "SAME") + 4 * images) / 13  # weights: 5 at the centre, else 1
    return tf.clip_by_value(other + (1 + amount) * (images - other), 0, 255)


def equalize(images: tf.Tensor) -> tf.Tensor:
    """Flatten the histogram of each channel of each image [B, H, W, 3] float32, as Pillow does."""
    shape = tf.shape(images)
    planes = tf.cast(tf.round(tf.reshape(tf.transpose(images, (0, 3, 1, 2)), (-1, shape[1] * shape[2]))), tf.int32)
    counts = tf.math.bincount(planes, minlength=256, maxlength=256, axis=-1)  # [3 B, 256]
    before = tf.cumsum(counts, axis=1, exclusive=True)
    brightest = tf.gather(counts, tf.reduce_max(planes, axis=1)[:, None], batch_dims=1)
    step = (shape[1] * shape[2] - brightest) // 255
    table = tf.where(step > 0, tf.minimum((step // 2 + before) // tf.maximum(step, 1), 255), tf.range(256))
    levels = tf.reshape(tf.gather(table, planes, batch_dims=1), (-1, 3, shape[1], shape[2]))
    return tf.cast(tf.transpose(levels, (0, 2, 3, 1)), tf.float32)


def seeded(layers: Sequence[keras.layers.Layer]) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """Return a function that applies Keras preprocessing layers in a row, with random numbers fixed by a seed.

    The function takes pixels [B, H, W, 3], soft labels [B, C] float32 and a seed [2] int32, and returns pixels and soft
    labels. It must not run in parallel with itself, because it sets the state of the layers' seed generators. The
    layers compute in float32 from here on: bfloat16 is too coarse for values from 0 to 255, and MixUp and CutMix fail
    in it.
    """
    for layer in layers:
        for part in flatten_layers(layer):
            part.dtype_policy = "float32"
    states = [variable for layer in layers for variable in layer.variables if variable.name == "seed_generator_state"]

    def apply(pixels: tf.Tensor, shares: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        for at, state in enumerate(states):
            state.assign(tf.cast(tf.random.experimental.stateless_fold_in(seed, at), state.dtype))
        for layer in layers:
            if isinstance(layer, MIXING):
                mixed = layer({"images": pixels, "labels": shares}, training=True)
                pixels, shares = mixed["images"], mixed["labels"]
            else:
                pixels = layer(pixels, training=True)
        return tf.clip_by_value(pixels, 0.0, 255.0), shares

    return apply
