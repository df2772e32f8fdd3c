"""Random transformations of training pictures.

The affine part is ONE bilinear resampling per picture, however many ranges are set: the matrices of rotation, shift,
shear, zoom and flip are multiplied first. Its random numbers are drawn with NumPy and travel with the batch as data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from experiments.data.types import Augmentation

VERSION = 2  # part of the key of stored views: raise whenever the same numbers would give other pixels
FILLS = ("nearest", "reflect", "wrap", "constant")
MIXING = (keras.layers.MixUp, keras.layers.CutMix)

# RandAugment's operations and what a magnitude of 1 means: the ranges of AutoAugment, its table 6.
COLOURS = {
    "identity": 0.0,
    "auto_contrast": 0.0,
    "equalize": 0.0,
    "solarize": 256.0,  # below the top of the scale: what is brighter is inverted
    "posterize": 4.0,  # bits dropped of eight
    "color": 0.9,  # these four: added to a factor of 1, or taken from it
    "contrast": 0.9,
    "brightness": 0.9,
    "sharpness": 0.9,
}
MOVES = {
    "rotate": 30.0,  # degrees, either way
    "shear_x": 0.3,  # columns per row, either way; shear_y likewise
    "shear_y": 0.3,
    "translate_x": 150 / 331,  # fraction of the width, either way; translate_y of the height
    "translate_y": 150 / 331,
}
OPERATIONS = COLOURS | MOVES
# The same for TrivialAugment: the wide space of its paper.
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
LEVELS = 31  # of TrivialAugment's magnitudes, evenly from 0 to 1


@dataclass(frozen=True)
class Affine:
    """Ranges as `affine` takes them."""

    rotation: float
    width_shift: float
    height_shift: float
    shear: float
    zoom: float
    horizontal_flip: bool
    fill: str

    def draw(self, rng: np.random.Generator, count: int, size: int) -> np.ndarray:
        """The maps from output to input pixel coordinates: [count, 8] float32.

        A row (a0, a1, a2, b0, b1, b2, 0, 0) takes the input at (a0 x + a1 y + a2, b0 x + b1 y + b2).
        """

        def uniform(bound: float) -> np.ndarray:
            return rng.uniform(-bound, bound, count)

        theta, shear = np.deg2rad(uniform(self.rotation)), np.deg2rad(uniform(self.shear))
        down, right = uniform(self.height_shift) * size, uniform(self.width_shift) * size
        zoom_y, zoom_x = 1 + uniform(self.zoom), 1 + uniform(self.zoom)
        mirror = np.where(rng.random(count) < 0.5, -1.0, 1.0) if self.horizontal_flip else np.ones(count)

        # In (x, y) about the centre, as ImageDataGenerator composes them: rotation . shift . shear . zoom;
        # the flip comes last, in the output.
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
        """Resamples pictures [B, H, W, 3] by maps [B, 8]; float32 in [0, 255]."""
        return resample(pixels, numbers, self.fill)


@tf.function(jit_compile=True)
def resample(pictures: tf.Tensor, maps: tf.Tensor, fill: str) -> tf.Tensor:
    """Pictures [B, H, W, 3] of any number by maps [B, 8] from output to input pixel coordinates: float32, bilinear.

    Compiled, because XLA fuses coordinates, the four reads and their mixing into one loop. A map of 1s and 0s gives
    the picture back to the bit. A whole batch of one size is one compilation: don't call it with a few pictures more
    or less each time.
    """
    height, width = pictures.shape[1:3]
    y, x = tf.range(height, dtype=tf.float32)[:, None], tf.range(width, dtype=tf.float32)
    each = tf.unstack(maps[:, :, None, None], axis=1)
    across = inside(each[0] * x + each[1] * y + each[2], width, fill)  # [B, H, W]
    down = inside(each[3] * x + each[4] * y + each[5], height, fill)
    left, top = tf.floor(across), tf.floor(down)
    flat = tf.reshape(pictures, (-1, height * width, 3))

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
    """Where to read for a position along an axis of so many pixels; `constant` reads outside, and finds nothing."""
    if fill == "constant":
        return position
    if fill == "reflect":  # d c b a | a b c d | d c b a
        along = tf.math.floormod(position + 0.5, 2.0 * size)
        position = tf.minimum(along, 2.0 * size - along) - 0.5
    elif fill == "wrap":  # a b c d | a b c d | a b c d
        position = tf.math.floormod(position, float(size))
    return tf.clip_by_value(position, 0.0, size - 1.0)


@dataclass(frozen=True)
class Identity:
    """No augmentation; pictures stay exactly as they are."""

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
    """Rotation, shifts, shear, zoom and flip as one affine resampling.

    Ranges and order are those of Keras's ImageDataGenerator, which the tutorial uses.

    Args:
        rotation: degrees, uniform in +-rotation.
        width_shift: fraction of the width, uniform in +-width_shift; height_shift likewise.
        shear: degrees, uniform in +-shear.
        zoom: a factor for each axis, uniform in [1 - zoom, 1 + zoom].
        horizontal_flip: mirror half of the pictures.
        fill: what lies outside the picture: nearest, reflect, wrap or constant (black).

    Raises:
        ValueError: a range that is negative or would turn a picture inside out, or an unknown fill.
    """
    check_fill(fill)
    limits = {"rotation": 180.0, "width_shift": 1.0, "height_shift": 1.0, "shear": 89.0, "zoom": 0.99}
    ranges = {
        "rotation": rotation, "width_shift": width_shift, "height_shift": height_shift, "shear": shear, "zoom": zoom
    }  # fmt: skip
    for name, value in ranges.items():
        if not 0 <= value <= limits[name]:
            raise ValueError(f"augmentation.{name}: must be in [0, {limits[name]:g}]. Received: {value}")
    if not horizontal_flip and not any(ranges.values()):
        return Identity()
    return Affine(**ranges, horizontal_flip=horizontal_flip, fill=fill)


@dataclass(frozen=True)
class RandAugment:
    """Random operations on each image; arguments as in `randaugment` and `trivialaugment`."""

    operations: int
    magnitude: float | None  # None: one of LEVELS, drawn for each operation
    horizontal_flip: bool
    fill: str
    ranges: Mapping[str, float]  # operation -> its amount at a magnitude of 1, in the order of OPERATIONS

    def draw(self, rng: np.random.Generator, count: int, size: int) -> np.ndarray:
        """[count, 1 + 10 operations] float32: 1 to mirror the picture, then of each operation its place in OPERATIONS,
        its amount, and its map from output to input pixel coordinates (as `Affine.draw`)."""
        mirror = rng.random((count, 1)) < 0.5 if self.horizontal_flip else np.zeros((count, 1))
        kinds = rng.integers(len(OPERATIONS), size=(count, self.operations))
        magnitudes = rng.integers(LEVELS, size=kinds.shape) / (LEVELS - 1) if self.magnitude is None else self.magnitude
        amounts = magnitudes * np.array(list(self.ranges.values()))[kinds] * rng.choice([-1, 1], size=kinds.shape)

        # Every kind of move as one map; those that a picture does not make are of amount 0.
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
        """Changes pictures [B, H, W, 3] by numbers [B, 1 + 10 operations]; float32 in [0, 255]."""
        pictures = tf.cast(pixels, tf.float32)
        pictures = tf.where(numbers[:, 0, None, None, None] > 0, pictures[:, :, ::-1], pictures)
        groups = len(COLOURS) + 1  # each its own, and all moves together
        for at in range(self.operations):
            drawn = numbers[:, 1 + 10 * at : 11 + 10 * at]
            group = tf.minimum(tf.cast(drawn[:, 0], tf.int32), len(COLOURS))
            rows = tf.dynamic_partition(tf.range(tf.shape(pictures)[0]), group, groups)
            *coloured, moving = tf.dynamic_partition(pictures, group, groups)
            amounts = tf.dynamic_partition(drawn[:, 1, None, None, None], group, groups)[:-1]
            changed = [
                recolour(name, some, amount) for name, some, amount in zip(COLOURS, coloured, amounts, strict=True)
            ]
            restored = tf.ensure_shape(tf.dynamic_stitch(rows, [*changed, moving]), pixels.shape)
            pictures = resample(restored, drawn[:, 2:], self.fill)  # the maps of all that do not move change nothing
        return pictures


def randaugment(*, operations: int, magnitude: float, horizontal_flip: bool, fill: str) -> Augmentation:
    """RandAugment: so many operations in a row, drawn for each picture anew from the fourteen in OPERATIONS.

    Not keras.layers.RandAugment, which (3.15) draws one choice for a whole batch, moves and brightens one way only,
    equalizes over the batch, and posterizes the more the smaller its factor.

    Args:
        operations: how many, one after the other; one may be drawn twice.
        magnitude: in [0, 1], how far each of them goes: the share of its range in OPERATIONS.
        horizontal_flip: mirror half of the pictures first.
        fill: what lies outside the picture: nearest, reflect, wrap or constant (black).

    Raises:
        ValueError: an argument out of its range.

    Source: E. Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", NeurIPS
    2020; the operations as Pillow has them, in floats.
    """
    check_fill(fill)
    if operations != int(operations) or operations < 1:
        raise ValueError(f"augmentation.operations: must be a whole number of 1 or more. Received: {operations}")
    if not 0 <= magnitude <= 1:
        raise ValueError(f"augmentation.magnitude: must be in [0, 1]. Received: {magnitude}")
    return RandAugment(int(operations), magnitude, horizontal_flip, fill, OPERATIONS)


def trivialaugment(*, horizontal_flip: bool, fill: str) -> Augmentation:
    """Return TrivialAugment: one operation at one of 31 magnitudes, both drawn for each image; nothing to tune.

    The operations are those of `randaugment`, the ranges the paper's wide ones (WIDE).

    Args:
        horizontal_flip: mirror half of the images first.
        fill: what lies outside the image: nearest, reflect, wrap or constant (black).

    Raises:
        ValueError: an unknown fill.

    Source: S. Mueller and F. Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021.
    The authors' code draws the factor of colour, contrast, brightness and sharpness from 31 steps between 0.01 and 2,
    this function from 31 steps of 0 to 0.99 above or below 1, as torchvision does.
    """
    check_fill(fill)
    return RandAugment(1, None, horizontal_flip, fill, WIDE)


def check_fill(fill: str) -> None:
    """Raise ValueError where `augmentation.fill` is none of FILLS."""
    if fill not in FILLS:
        raise ValueError(f"augmentation.fill: must be one of {', '.join(FILLS)}. Received: {fill!r}")


def recolour(name: str, pictures: tf.Tensor, amount: tf.Tensor) -> tf.Tensor:
    """One of COLOURS on pictures [B, H, W, 3] float32, by amounts [B, 1, 1, 1]; in [0, 255] like its input."""
    if name == "identity":
        return pictures
    if name == "auto_contrast":
        low = tf.reduce_min(pictures, axis=(1, 2), keepdims=True)
        high = tf.reduce_max(pictures, axis=(1, 2), keepdims=True)
        return tf.where(high > low, (pictures - low) * tf.math.divide_no_nan(255.0, high - low), pictures)
    if name == "equalize":
        return equalize(pictures)
    if name == "solarize":
        return tf.where(pictures < 256 - tf.abs(amount), pictures, 255 - pictures)
    if name == "posterize":
        step = 2 ** tf.round(tf.abs(amount))
        return tf.floor(pictures / step) * step
    # What is left mixes a picture with another made from it; factors beyond 1 lead away from that one.
    if name == "color":
        other = tf.image.rgb_to_grayscale(pictures)
    elif name == "contrast":
        other = tf.reduce_mean(tf.image.rgb_to_grayscale(pictures), axis=(1, 2), keepdims=True)
    elif name == "brightness":
        other = tf.zeros_like(pictures)
    else:
        other = (9 * tf.nn.avg_pool2d(pictures, 3, 1, "SAME") + 4 * pictures) / 13  # its centre weighs 5, the rest 1
    return tf.clip_by_value(other + (1 + amount) * (pictures - other), 0, 255)


def equalize(pictures: tf.Tensor) -> tf.Tensor:
    """The histogram of each channel of each picture flattened, as Pillow does it: [B, H, W, 3] float32."""
    shape = tf.shape(pictures)
    planes = tf.cast(tf.round(tf.reshape(tf.transpose(pictures, (0, 3, 1, 2)), (-1, shape[1] * shape[2]))), tf.int32)
    counts = tf.math.bincount(planes, minlength=256, maxlength=256, axis=-1)  # [3 B, 256]
    before = tf.cumsum(counts, axis=1, exclusive=True)
    brightest = tf.gather(counts, tf.reduce_max(planes, axis=1)[:, None], batch_dims=1)
    step = (shape[1] * shape[2] - brightest) // 255
    table = tf.where(step > 0, tf.minimum((step // 2 + before) // tf.maximum(step, 1), 255), tf.range(256))
    levels = tf.reshape(tf.gather(table, planes, batch_dims=1), (-1, 3, shape[1], shape[2]))
    return tf.cast(tf.transpose(levels, (0, 2, 3, 1)), tf.float32)


def seeded(layers: Sequence[keras.layers.Layer]) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """Keras preprocessing layers in a row, their draws fixed by a seed given with the batch.

    The returned function takes pixels [B, H, W, 3], shares of classes [B, C] float32 and a seed [2] int32, and returns
    pixels and shares. It must not run in parallel with itself: it sets the state of the layers' seed generators.
    The layers compute in float32 from here on: bfloat16 tells 0 to 255 apart badly, and MixUp and CutMix fail in it.
    """
    for layer in layers:
        for part in layer._flatten_layers():
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


def mixes(layers: Sequence[keras.layers.Layer]) -> bool:
    """Whether pictures of a batch are mixed with each other, and their labels with them."""
    return any(isinstance(layer, MIXING) for layer in layers)
