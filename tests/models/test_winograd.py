"""Winograd convolutions equal Keras's, gradients included; the layers that use them, and that this is undone."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from experiments.models.winograd import CHANNELS, convolution, faster_convolutions, suits


def direct(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return tf.nn.conv2d(inputs, kernel, 1, "SAME")


def numbers(*shape: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(sum(shape)).normal(size=shape), tf.float32)


@pytest.mark.parametrize("height, width", [pytest.param(8, 12, marks=pytest.mark.slow), (9, 7)])
def test_results_and_gradients_are_those_of_direct_sums(height: int, width: int) -> None:
    inputs, kernel, wanted = numbers(3, height, width, 5), numbers(3, 3, 5, 4), numbers(3, height, width, 4)

    @tf.function(input_signature=[tf.TensorSpec((None, height, width, 5)), tf.TensorSpec((None, height, width, 4))])
    def ours(inputs: tf.Tensor, wanted: tf.Tensor) -> list[tf.Tensor]:
        return step(lambda *given: convolution(direct, *given), inputs, wanted)

    def step(call: Any, inputs: tf.Tensor, wanted: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([inputs, kernel])
            results = call(inputs, kernel)
        return [results, *tape.gradient(results, [inputs, kernel], wanted)]

    for some in (slice(None), slice(2)):  # a last batch is smaller
        expected = step(direct, inputs[some], wanted[some])
        for found, right in zip(ours(inputs[some], wanted[some]), expected, strict=True):
            np.testing.assert_allclose(found, right, atol=1e-5 * float(tf.reduce_max(tf.abs(right))))


@pytest.mark.parametrize("shape", [(2, 6, 9, 5), (None, None, None, 5)])
def test_small_images_and_those_of_unknown_size_are_left_to_the_layer(shape: tuple[int | None, ...]) -> None:
    asked: list[tuple[int, ...]] = []

    def own(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        asked.append(inputs.shape)
        return direct(inputs, kernel)

    call = tf.function(lambda inputs: convolution(own, inputs, numbers(3, 3, 5, 4)))
    call.get_concrete_function(tf.TensorSpec(shape))
    assert [tuple(size) for size in asked] == [shape]


def layer(kind: type[keras.Layer] = keras.layers.Conv2D, inputs: int = CHANNELS, **options: Any) -> keras.Layer:
    made = kind(**{"filters": CHANNELS, "kernel_size": 3, "padding": "same"} | options)
    made.build((None, 8, 8, inputs))
    return made


class Own(keras.layers.Conv2D):
    pass


@pytest.mark.parametrize(
    "other",
    [
        {"filters": CHANNELS - 1}, {"inputs": CHANNELS - 1}, {"kernel_size": 5}, {"kernel_size": 1}, {"strides": 2},
        {"dilation_rate": 2}, {"groups": 2, "inputs": 2 * CHANNELS, "filters": 2 * CHANNELS}, {"padding": "valid"},
        {"dtype": "mixed_bfloat16"}, {"kind": Own},
    ],
    ids=str,
)  # fmt: skip
def test_only_layers_that_gain_are_changed(other: dict[str, Any]) -> None:
    assert suits(layer())
    assert not suits(layer(**other))


def test_a_model_is_faster_within_and_its_own_afterwards() -> None:
    inputs = keras.Input((8, 8, CHANNELS))
    inner = keras.Sequential([keras.layers.Conv2D(CHANNELS, 3, padding="same", activation="relu")])
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3, padding="same")(inner(inputs)))
    images = numbers(2, 8, 8, CHANNELS)
    expected = np.asarray(model(images))

    def multiplications() -> int:
        graph = tf.function(lambda given: model(given)).get_concrete_function(images).graph
        return sum(operation.type.startswith("BatchMatMul") for operation in graph.get_operations())

    assert multiplications() == 0
    with pytest.raises(ZeroDivisionError), faster_convolutions(model):  # whatever happens within
        assert multiplications() == 1
        np.testing.assert_allclose(model(images), expected, atol=1e-4)
        raise ZeroDivisionError
    assert multiplications() == 0
    np.testing.assert_array_equal(model(images), expected)
