"""Grad-CAM highlights the evidence for a class in networks where it is known, and works on every backbone and head."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest

from experiments.config.schema import Config
from experiments.models.backbone import build_backbone
from experiments.models.gradcam import BATCH, gradcam
from experiments.models.head import pooling, probabilities
from experiments.models.network import join
from experiments.regimes.build import build_head

RNG = np.random.default_rng(0)


def corner_network(pool: str, classes: int, weights: np.ndarray, bias: float = 0.0) -> keras.Model:
    """One convolution of 1 x 1 that brightens nothing, on 8 x 8 pixels, pooled, and a head with these weights."""
    inputs = keras.Input((8, 8, 3), name="pixels")
    pixels = keras.Input((8, 8, 3))
    maps = keras.layers.Conv2D(2, 1, use_bias=False, name="maps")(pixels)
    below = keras.Model(pixels, pooling(pool)(maps), name="frozen")
    features = keras.Input((below.output_shape[-1],))
    head = keras.Model(
        features, keras.layers.Dense(1 if classes == 2 else classes, name="logits")(features), name="head"
    )
    model = keras.Model(inputs, probabilities(head(below(inputs))))
    below.get_layer("maps").set_weights([np.array([[1, 0], [0, 1], [0, 0]], "float32").reshape(1, 1, 3, 2)])
    head.get_layer("logits").set_weights([weights.astype("float32"), np.full(weights.shape[1], bias, "float32")])
    return model


def test_the_map_is_hot_where_the_evidence_is() -> None:
    """Red speaks for class 1, green for class 0; red is in one corner, green in the opposite one."""
    pixels = np.zeros((1, 8, 8, 3), "float32")
    pixels[0, :2, :2, 0] = 255
    pixels[0, 6:, 6:, 1] = 255
    model = corner_network("average", 2, np.array([[1.0], [-1.0]]))
    count = BATCH + 1  # of either class: more than two batches
    heat = gradcam(model, np.repeat(pixels, 2 * count, axis=0), np.array([1, 0] * count))
    expected = np.zeros((8, 8))
    expected[:2, :2] = 1
    np.testing.assert_allclose(heat[::2], [expected] * count)
    zero = [expected[::-1, ::-1]] * count
    np.testing.assert_allclose(heat[1::2], zero, err_msg="of two classes the other's logit is the negative")


def test_of_several_classes_each_has_its_own_logit() -> None:
    pixels = np.zeros((3, 8, 8, 3), "float32")
    pixels[:, :2, :2, 0] = 255
    pixels[:, 6:, 6:, 1] = 255
    model = corner_network("average", 3, np.array([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]]))
    red, green, neither = gradcam(model, pixels, np.array([0, 1, 2]))
    assert red[0, 0] == 1 and red[7, 7] == 0 and green[7, 7] == 1 and green[0, 0] == 0
    assert not neither.any(), "all there is speaks against it"


def color_network(colors: np.ndarray) -> keras.Model:
    """A network with a detector for each of its classes' colours, whose logits all fall where anything is seen.

    Args:
        colors: [classes, 3], of length 1, no two alike.
    """
    classes = len(colors)
    inputs, pixels = keras.Input((16, 16, 3), name="pixels"), keras.Input((16, 16, 3))
    maps = keras.layers.Conv2D(classes, 1, activation="relu", name="maps")(pixels)
    below = keras.Model(pixels, pooling("average")(maps), name="frozen")
    features = keras.Input((classes,))
    head = keras.Model(features, keras.layers.Dense(classes, name="logits")(features), name="head")
    model = keras.Model(inputs, probabilities(head(below(inputs))))
    below.get_layer("maps").set_weights([colors.T.reshape(1, 1, 3, classes) / 255, np.full(classes, -0.9)])
    # Each colour lowers the logit of every class, that of its own class the least.
    head.get_layer("logits").set_weights([2000 * np.eye(classes) - 3000, np.full(classes, -5.0)])
    return model


@pytest.mark.parametrize("classes", [3, 10])
def test_the_evidence_for_a_class_against_the_others_is_found_where_every_logit_is_negative(classes: int) -> None:
    """A patch of each of two classes' colours, at places that are known."""
    levels = [1.0, 0.5, 0.0]
    grid = np.array([(r, g, b) for r in levels for g in levels for b in levels if max(r, g, b) == 1 and r + g + b < 2])
    colors = np.concatenate([np.eye(3), grid[~(grid.sum(axis=1) == 1)], [[1, 1, 1]]])[:classes]
    colors = colors / np.linalg.norm(colors, axis=1, keepdims=True)
    assert len(colors) == classes and np.sort((colors @ colors.T).ravel())[-classes - 1] < 0.9
    pixels = np.zeros((4, 16, 16, 3), "float32")
    first, last = np.zeros((16, 16), bool), np.zeros((16, 16), bool)
    first[1:5, 2:6] = last[9:12, 10:15] = True
    pixels[:, first], pixels[:3, last] = 255 * colors[0], 255 * colors[classes - 1]
    model = color_network(colors)
    logits = model.get_layer("head")(model.get_layer("frozen")(pixels))
    assert np.all(np.asarray(logits) < 0)
    heat_first, heat_last, heat_absent, heat_alone = gradcam(model, pixels, np.array([0, classes - 1, 1, 0]))
    np.testing.assert_allclose(heat_first, first)
    np.testing.assert_allclose(heat_last, last)
    assert np.asarray(model(pixels))[3, 0] > 0.9999, "of a probability near 1 the gradient vanishes"
    np.testing.assert_allclose(heat_alone, first)
    assert not heat_absent.any(), "nothing in the image speaks for a class whose colour is not there"


def test_a_flattened_head_that_reads_one_place_alone() -> None:
    """Its gradient is zero elsewhere; the map is the channel's activation, weighted by its mean gradient."""
    weights = np.zeros((8, 8, 2, 1))
    weights[0, 7, 0] = 1
    pixels = np.zeros((1, 8, 8, 3), "float32")
    pixels[0, 0, 7, 0] = 200
    pixels[0, 5, 5, 1] = 255  # of a channel that nothing reads
    model = corner_network("flatten", 2, weights.reshape(-1, 1))
    (heat,) = gradcam(model, pixels, np.array([1]))
    assert heat[0, 7] == 1 and np.count_nonzero(heat) == 1


@pytest.mark.parametrize("classes, overrides", [
    (2, ("model=convnet", "data.image_size=48", "model.head.pooling=flatten")),
    (3, ("model=convnet", "data.image_size=48", "model.head.pooling=max", "+model.head.dense.hidden={units: 8}")),
    (2, ("model=mobilenet_v2", "data.image_size=64")),
    pytest.param(3, ("model=mobilenet_v2", "data.image_size=64", "runtime.precision=mixed_bfloat16"),
                 marks=pytest.mark.slow),
    *(pytest.param(3, (f"model={name}", "data.image_size=64"), marks=pytest.mark.slow)
      for name in ("vgg16", "resnet50", "efficientnet_v2_b0", "convnext_tiny")),
])  # fmt: skip
def test_any_backbone_and_head(overrides: tuple[str, ...], classes: int, config: Callable[..., Config]) -> None:
    read = config("regime=scratch", *overrides)
    keras.utils.clear_session()
    keras.config.set_dtype_policy(read.runtime.precision)
    try:
        backbone = build_backbone(read.model, read.data.image_size, read.trusted_packages, None)
        model = join(backbone, read.model.head.pooling, build_head(read.model.head, backbone, read.seed, classes))
        size = read.data.image_size
        pixels = RNG.uniform(0, 255, (3, size, size, 3)).astype("float32")
        heat = gradcam(model, pixels, np.array([0, 1, classes - 1]))
    finally:
        keras.config.set_dtype_policy("float32")
    assert heat.shape == (3, size, size) and heat.dtype == np.float32
    assert np.isfinite(heat).all() and heat.min() >= 0
    assert all(heatmap.max() in (0, pytest.approx(1)) for heatmap in heat) and heat.any()
