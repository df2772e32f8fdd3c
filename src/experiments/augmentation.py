"""Random transformations of training pictures.

The affine part is ONE bilinear resampling per picture, however many ranges are set: the matrices of rotation, shift,
shear, zoom and flip are multiplied first. Its random numbers are drawn with NumPy and travel with the batch as data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from experiments.types import Augmentation

FILLS = ("nearest", "reflect", "wrap", "constant")


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
        pictures = tf.cast(pixels, tf.float32)
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=pictures,
            transforms=numbers,
            output_shape=tf.shape(pictures)[1:3],
            interpolation="BILINEAR",
            fill_mode=self.fill.upper(),
            fill_value=0.0,
        )


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
    if fill not in FILLS:
        raise ValueError(f"augmentation.fill: must be one of {', '.join(FILLS)}. Received: {fill!r}")
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


def seeded(
    layers: Sequence[keras.layers.Layer],
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Keras preprocessing layers in a row, their draws fixed by a seed given with the batch.

    The returned function takes pixels [B, H, W, 3] and a seed [2] int32, and must not run in parallel with itself:
    it sets the state of the layers' seed generators.
    """
    states = [variable for layer in layers for variable in layer.variables if variable.name == "seed_generator_state"]

    def apply(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        for at, state in enumerate(states):
            state.assign(tf.cast(tf.random.experimental.stateless_fold_in(seed, at), state.dtype))
        for layer in layers:
            pixels = layer(pixels, training=True)
        return tf.clip_by_value(pixels, 0.0, 255.0)

    return apply
