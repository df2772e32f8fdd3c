"""The affine resampling equals ImageDataGenerator's, in one step."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.preprocessing.image import apply_affine_transform

from experiments.config.arguments import ARGUMENTS
from experiments.data.augmentation import Affine, Identity, affine, resample

FILLS = get_args(ARGUMENTS["augmentation"]["fill"])

TUTORIAL: dict[str, Any] = {
    "rotation": 40.0, "width_shift": 0.2, "height_shift": 0.2, "shear": 0.2, "zoom": 0.2, "horizontal_flip": True,
    "fill": "nearest",
}  # fmt: skip
NONE = dict.fromkeys(("rotation", "width_shift", "height_shift", "shear", "zoom"), 0.0)


@pytest.fixture
def images() -> np.ndarray:
    """[8, 24, 24, 3] uint8, smooth so that interpolation is comparable."""
    rng = np.random.default_rng(0)
    coarse = tf.constant(rng.integers(0, 256, (8, 6, 6, 3)), tf.float32)
    return np.asarray(tf.image.resize(coarse, (24, 24))).astype("uint8")


class Fixed:
    """A random generator that returns given values instead of drawing."""

    def __init__(self, values: dict[str, float]) -> None:
        self.values = values
        self.order = iter(["theta", "shear", "down", "right", "zoom_y", "zoom_x"])

    def uniform(self, low: float, high: float, count: int) -> np.ndarray:
        return np.full(count, self.values.get(next(self.order), 0.0))

    def random(self, count: int) -> np.ndarray:
        return np.full(count, 0.0 if self.values.get("flip") else 1.0)


@pytest.mark.parametrize(
    "values",
    [
        {"theta": 30.0},
        {"down": 0.15},
        {"right": -0.1},
        {"shear": 15.0},
        {"zoom_y": 0.2},
        {"zoom_x": -0.2},
        {"theta": -25.0, "shear": 8.0, "down": 0.1, "right": 0.05, "zoom_y": -0.1, "zoom_x": 0.15},
        {"theta": 10.0, "right": 0.2, "flip": 1.0},
    ],
)
def test_one_resampling_equals_image_data_generator(images: np.ndarray, values: dict[str, float]) -> None:
    numbers = Affine(**TUTORIAL).draw(Fixed(values), len(images), 24)  # type: ignore[arg-type]
    ours = np.asarray(Affine(**TUTORIAL)(images, numbers))
    for image, mine in zip(images.astype("float32"), ours, strict=True):
        peer = apply_affine_transform(
            image,
            theta=values.get("theta", 0),
            tx=values.get("right", 0) * 24,
            ty=values.get("down", 0) * 24,
            shear=values.get("shear", 0),
            zx=1 + values.get("zoom_x", 0),
            zy=1 + values.get("zoom_y", 0),
            row_axis=0,
            col_axis=1,
            channel_axis=2,
            fill_mode="nearest",
            order=1,
        )
        peer = peer[:, ::-1] if values.get("flip") else peer
        assert np.abs(mine - peer).mean() < 0.2  # of 255; single border pixels round differently
        assert np.abs(mine - peer)[2:-2, 2:-2].max() < 1.5


def test_draws_stay_in_their_ranges_and_use_them() -> None:
    only = affine(**(NONE | {"rotation": 40.0}), horizontal_flip=False, fill="nearest")
    numbers = only.draw(np.random.default_rng(0), 4000, 100)
    angles = np.rad2deg(np.arctan2(numbers[:, 3], numbers[:, 0]))
    assert -40 <= angles.min() < -39 and 39 < angles.max() <= 40
    for name, column in (("width_shift", 2), ("height_shift", 5)):
        shift = affine(**(NONE | {name: 0.2}), horizontal_flip=False, fill="nearest")
        moved = shift.draw(np.random.default_rng(0), 4000, 100)[:, [2, 5]]
        assert -20 <= moved.min() < -19.5 and 19.5 < moved.max() <= 20 and not moved[:, [2, 5].index(column) - 1].any()
    sheared = affine(**(NONE | {"shear": 30.0}), horizontal_flip=False, fill="nearest")
    numbers = sheared.draw(np.random.default_rng(0), 4000, 100)
    angles = np.rad2deg(np.arctan2(-numbers[:, 1], numbers[:, 4]))
    assert -30 <= angles.min() < -29 and 29 < angles.max() <= 30
    zoom = affine(**(NONE | {"zoom": 0.2}), horizontal_flip=False, fill="nearest")
    factors = zoom.draw(np.random.default_rng(0), 4000, 100)
    assert abs(np.corrcoef(factors[:, 0], factors[:, 4])[0, 1]) < 0.1  # one factor an axis, independent
    assert 0.8 <= factors[:, [0, 4]].min() < 0.81 and 1.19 < factors[:, [0, 4]].max() <= 1.2


def test_flip_alone_mirrors_about_half_of_the_images(images: np.ndarray) -> None:
    flip = affine(**NONE, horizontal_flip=True, fill="nearest")
    numbers = flip.draw(np.random.default_rng(0), 1000, 24)
    assert 0.45 < (numbers[:, 0] < 0).mean() < 0.55
    out = np.asarray(flip(images, numbers[:8]))
    for image, mine, row in zip(images, out, numbers[:8], strict=True):
        np.testing.assert_allclose(mine, image[:, ::-1] if row[0] < 0 else image, atol=1e-3)


def test_no_range_is_the_identity(images: np.ndarray) -> None:
    none = affine(**NONE, horizontal_flip=False, fill="nearest")
    assert isinstance(none, Identity)
    numbers = none.draw(np.random.default_rng(0), len(images), 24)
    np.testing.assert_array_equal(np.asarray(none(images, numbers)), images)


@pytest.mark.parametrize(("fill", "mode"), list(zip(FILLS, ("edge", "symmetric", "wrap", "constant"), strict=True)))
@pytest.mark.parametrize("shift", [-30, -7, 7, 30])
def test_whole_shifts_fill_as_numpy_pads(images: np.ndarray, fill: str, mode: str, shift: int) -> None:
    maps = np.array([[1, 0, shift, 0, 1, -shift, 0, 0]] * len(images), "float32")
    padded = np.pad(images, ((0, 0), (30, 30), (30, 30), (0, 0)), mode=mode)  # type: ignore[call-overload]
    expected = padded[:, 30 - shift : 54 - shift, 30 + shift : 54 + shift]
    np.testing.assert_array_equal(resample(tf.constant(images), maps, fill), expected)


@pytest.mark.parametrize("fill", ["nearest", "reflect", "constant"])  # its wrap repeats all but the last pixel
def test_the_resampling_equals_tensorflows(images: np.ndarray, fill: str) -> None:
    maps = affine(**TUTORIAL).draw(np.random.default_rng(0), len(images), 24)
    maps[:, 2] += 20  # well beyond an edge
    peer = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32), transforms=maps, output_shape=(24, 24), interpolation="BILINEAR",
        fill_mode=fill.upper(), fill_value=0.0,
    )  # fmt: skip
    for given in (tf.constant(images), tf.cast(images, tf.float32)):
        np.testing.assert_allclose(resample(given, maps, fill), peer, atol=0.01)  # of 255


def test_a_map_of_ones_gives_floats_back_to_the_bit() -> None:
    floats = np.random.default_rng(0).uniform(0, 255, (3, 9, 9, 3)).astype("float32")
    for fill in FILLS:
        np.testing.assert_array_equal(
            resample(tf.constant(floats), np.array([[1, 0, 0, 0, 1, 0, 0, 0]] * 3, "float32"), fill), floats
        )
