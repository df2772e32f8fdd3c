"""Winograd convolutions: 3 x 3 convolutions with fewer multiplications, for training on CPUs.

A training step of 16 images through 512 to 512 channels takes 0.22 s instead of 0.35 s at 18 x 18, and 0.074 s instead
of 0.091 s at 9 x 9 (2 cores; docs/benchmarks.md). `runtime.xla=false` turns it off.

Winograd's minimal filtering F(2 x 2, 3 x 3) (Lavin and Gray, 2016, https://arxiv.org/abs/1509.09308): images are
divided into tiles of 4 x 4 that overlap by two. The tiles and the kernel are transformed, and for 2 x 2 results take 16
multiplications where the definition takes 36. Transforms are sums and halves; the rest is one multiplication of
matrices for each of the 16 positions, and so are both gradients. Results differ from direct sums by some 3e-6 of the
largest number.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

import keras
import tensorflow as tf

from experiments.system.private_api import flatten_layers, replaced_convolutions

CHANNELS = 256  # of inputs and of outputs at least: with fewer, transforms cost what products save
PIXELS = 7  # smallest side: smaller images are mostly padding


def faster_convolutions(model: keras.Model) -> AbstractContextManager[None]:
    """Return a context in which a model's 3 x 3 convolutions of many channels are computed by Winograd's method.

    After it, Keras's own operation is used again. The first steps of every batch size compile, which takes some seconds
    once. Until its gradient is computed, a layer holds four times its inputs, and for a moment four times its results.
    """
    return replaced_convolutions([layer for layer in flatten_layers(model) if suits(layer)], convolution)


def suits(layer: keras.Layer) -> bool:
    """Return whether Winograd's method suits a layer: float32, 3 x 3 with stride 1, same padding, enough channels."""
    return (
        type(layer) is keras.layers.Conv2D
        and layer.built
        and (layer.kernel_size, layer.strides, layer.dilation_rate) == ((3, 3), (1, 1), (1, 1))
        and (layer.padding, layer.data_format, layer.compute_dtype) == ("same", "channels_last", "float32")
        and layer.groups == 1
        and min(layer.kernel.shape[2:]) >= CHANNELS
    )


def convolution(direct: Any, inputs: tf.Tensor, kernel: Any) -> tf.Tensor:
    """Return the convolution of inputs [B, H, W, C] by a kernel [3, 3, C, K]: [B, H, W, K], all float32.

    Args:
        direct: the layer's own operation, used for small images and for those of unknown size.
    """
    height, width = inputs.shape[1:3]
    if height is None or width is None or min(height, width) < PIXELS:
        return direct(inputs, kernel)
    products = tf.linalg.matmul(tiles(inputs), transformed(tf.convert_to_tensor(kernel)))
    return assemble(height, width)(products)


def tiles(inputs: tf.Tensor) -> tf.Tensor:
    """Return images [B, H, W, C] as transformed tiles [16, B h w, C], for h x w places of 2 x 2 results."""
    return across(down(inputs))  # as one function they take longer to compile, and their gradient takes longer to run


@tf.function(jit_compile=True)
def down(inputs: tf.Tensor) -> tf.Tensor:
    """Pad images with zeros and transform them from top to bottom: [4, B, h, w + 1, 2, C]."""
    _, height, width, channels = inputs.shape
    rows, columns = -(-height // 2), -(-width // 2)
    padded = tf.pad(inputs, [[0, 0], [1, 2 * rows + 1 - height], [1, 2 * columns + 1 - width], [0, 0]])
    cells = tf.reshape(padded, [-1, rows + 1, 2, columns + 1, 2, channels])  # two neighbours make a tile
    return tf.stack(four(cells[:, :-1], cells[:, 1:], axis=2))


@tf.function(jit_compile=True)
def across(lines: tf.Tensor) -> tf.Tensor:
    """Transform the result of `down` from left to right, too: [16, B h w, C]."""
    parts = four(lines[:, :, :, :-1], lines[:, :, :, 1:], axis=4)
    return tf.reshape(tf.stack(parts, axis=1), [16, -1, lines.shape[-1]])


def four(first: tf.Tensor, second: tf.Tensor, axis: int) -> tuple[tf.Tensor, ...]:
    """Return the transforms of a tile's four lines along an axis; each of its two cells has two of the lines."""
    (a, b), (c, d) = tf.unstack(first, axis=axis), tf.unstack(second, axis=axis)
    return a - c, b + c, c - b, b - d


@tf.function(jit_compile=True)
def transformed(kernel: tf.Tensor) -> tf.Tensor:
    """Return a kernel [3, 3, C, K] transformed to [16, C, K]."""
    lines = tf.constant([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], tf.float32)
    return tf.reshape(tf.einsum("ai,bj,ijck->abck", lines, lines, kernel), [16, *kernel.shape[2:]])


@functools.cache
def assemble(height: int, width: int) -> Any:
    """Return the function that computes images [B, H, W, K] from products [16, B h w, K]."""
    rows, columns = -(-height // 2), -(-width // 2)

    @tf.function(jit_compile=True)
    def images(products: tf.Tensor) -> tf.Tensor:
        channels = products.shape[-1]
        lines = two(tf.unstack(tf.reshape(products, [4, 4, -1, rows, columns, channels])))
        cells = tf.stack([tf.stack(two(tf.unstack(line)), axis=3) for line in lines], axis=2)
        return tf.reshape(cells, [-1, 2 * rows, 2 * columns, channels])[:, :height, :width]

    return images


def two(products: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the two results of four products along an axis."""
    a, b, c, d = products
    return a + b + c, b - c - d
