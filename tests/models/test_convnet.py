"""The small convnet: what a block is made of, and which images are large enough for it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from experiments.config.schema import ConvBlock
from experiments.models.convnet import convnet


def of(size: int, *blocks: dict[str, Any], **common: Any) -> keras.Model:
    """A convnet of narrow blocks on images of `size` pixels."""
    layers = {f"block{n}": ConvBlock(**{"filters": 2, **common, **block}) for n, block in enumerate(blocks, 1)}
    return convnet(input_tensor=keras.Input((size, size, 3)), layers=layers)


def test_a_block_without_batch_normalisation_activates_in_its_convolution() -> None:
    model = of(16, {"dropout": 0.2})
    assert [layer.name for layer in model.layers[1:]] == ["block1_conv", "block1_pool", "block1_dropout"]
    assert model.get_layer("block1_conv").use_bias
    assert model.get_layer("block1_conv").activation is keras.activations.relu


def test_a_block_with_batch_normalisation_activates_after_it_and_needs_no_bias() -> None:
    model = of(16, {}, {"pool": 1}, batch_norm=True, activation="elu")
    assert [layer.name for layer in model.layers[1:]] == [
        "block1_conv", "block1_norm", "block1_activation", "block1_pool",
        "block2_conv", "block2_norm", "block2_activation",
    ]  # fmt: skip
    for name in ("block1", "block2"):
        convolution = model.get_layer(f"{name}_conv")
        assert not convolution.use_bias and len(convolution.weights) == 1
        assert convolution.activation is keras.activations.linear
        assert model.get_layer(f"{name}_norm").momentum == 0.99
        assert model.get_layer(f"{name}_activation").activation is keras.activations.elu


def test_batch_statistics_follow_the_batches_with_a_momentum_of_99_hundredths() -> None:
    model = of(8, {"batch_norm": True})
    images = np.random.default_rng(0).normal(2, 1, (16, 8, 8, 3)).astype("float32")
    maps = np.asarray(model.get_layer("block1_conv")(images))
    model(images, training=True)
    norm = model.get_layer("block1_norm")
    np.testing.assert_allclose(norm.moving_mean, 0.01 * maps.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, 0.99 + 0.01 * maps.var((0, 1, 2)), rtol=1e-3)


@pytest.mark.parametrize("size", range(22, 30))
def test_the_three_blocks_of_the_tutorial_fit_images_of_22_pixels(size: int) -> None:
    model = of(size, {}, {}, {})
    assert model.output_shape == (None, 1, 1, 2)
    assert model(np.ones((1, size, size, 3), "float32")).shape == (1, 1, 1, 2)


@pytest.mark.parametrize("size, blocks, named, pixels", [
    (21, [{}, {}, {}], "block3", 3),
    (17, [{}, {}, {}], "block3", 2),
    (9, [{}, {}], "block2", 3),
    (8, [{"kernel": 9}], "block1", 8),
    (8, [{"pool": 7}], "block1", 8),
    (8, [{"stride": 3}, {"padding": "same"}], "block2", 1),
    (8, [{"pool": 2}, {"pool": 2}, {"pool": 2}, {"pool": 2}], "block2", 3),
])  # fmt: skip
def test_images_too_small_are_refused_by_the_block_that_cannot_have_them(
    size: int, blocks: list[dict[str, Any]], named: str, pixels: int
) -> None:
    with pytest.raises(ValueError) as raised:
        of(size, *blocks)
    assert str(raised.value).startswith(f"model.layers.{named}: feature maps of {pixels} x {pixels} pixels are too")
    assert "data.image_size" in str(raised.value)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_refused_is_what_keras_cannot_build_and_nothing_else(padding: str, kernel: int, stride: int) -> None:
    for pool in (1, 2, 3):
        for size in range(2, 9):
            block = {"kernel": kernel, "stride": stride, "padding": padding, "pool": pool}
            kept = (size - kernel) // stride + 1 if padding == "valid" else -(-size // stride)
            if kept >= pool:
                assert of(size, block).output_shape == (None, kept // pool, kept // pool, 2)
            else:
                with pytest.raises(ValueError, match="too small"):
                    of(size, block)


def test_same_padding_lets_four_blocks_see_images_of_16_pixels() -> None:
    assert of(16, {}, {}, {}, {}, padding="same").output_shape == (None, 1, 1, 2)
    with pytest.raises(ValueError, match="block4: feature maps of 1 x 1"):
        of(15, {}, {}, {}, {}, padding="same")


@pytest.mark.parametrize("size", [8, 9, 15])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_shortcut_is_added_before_the_last_activation(size: int, batch_norm: bool) -> None:
    block = {
        "padding": "same", "convolutions": 2, "separable": True, "residual": True, "batch_norm": batch_norm, "l2": 1e-3
    }  # fmt: skip
    model = of(size, block)
    side = -(-size // 2)
    assert model.output_shape == (None, side, side, 2)
    names = [layer.name for layer in model.layers]
    assert {"block1_conv1", "block1_conv2", "block1_shortcut", "block1_sum"} <= set(names)
    assert names[-1] == "block1_activation" and names[-2] == "block1_sum"
    assert isinstance(model.get_layer("block1_conv1"), keras.layers.SeparableConv2D)
    below = keras.Model(model.input, model.get_layer("block1_sum").input)
    images = np.random.default_rng(0).normal(0, 1, (2, size, size, 3)).astype("float32")
    main, shortcut = below(images)
    np.testing.assert_allclose(model(images), np.maximum(np.asarray(main) + np.asarray(shortcut), 0), atol=1e-6)
    assert len(model.losses) == 5  # depthwise and pointwise kernels twice, and the shortcut's


def test_a_shortcut_needs_same_padding() -> None:
    with pytest.raises(ValueError, match="residual: true needs padding: same. Received: padding: valid"):
        ConvBlock(filters=2, residual=True)
