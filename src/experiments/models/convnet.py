"""The tutorial's small convolutional network, its layers in configuration."""

from __future__ import annotations

from collections.abc import Mapping

import keras

from experiments.schema import ConvBlock


def convnet(*, input_tensor: keras.KerasTensor, layers: Mapping[str, ConvBlock]) -> keras.Model:
    """A stack of convolutional blocks: convolution, max pooling, dropout.

    Args:
        input_tensor: preprocessed pictures [B, H, W, 3].
        layers: the blocks by name, in order.

    Returns:
        A model from the input's source to feature maps [B, h, w, filters of the last block].

    Raises:
        ValueError: pictures too small for so many blocks.
    """
    x = input_tensor
    for name, block in layers.items():
        if min(x.shape[1:3]) < block.kernel * block.pool and block.padding == "valid":
            raise ValueError(
                f"model.layers.{name}: feature maps of {x.shape[1]} x {x.shape[2]} pixels are too small for a "
                f"{block.kernel} x {block.kernel} convolution and {block.pool} x {block.pool} pooling. "
                "Use larger pictures (data.image_size) or fewer blocks"
            )
        x = keras.layers.Conv2D(
            block.filters,
            block.kernel,
            strides=block.stride,
            padding=block.padding,
            activation=block.activation,
            kernel_regularizer=penalty(block.l1, block.l2),
            name=f"{name}_conv",
        )(x)
        if block.pool > 1:
            x = keras.layers.MaxPooling2D(block.pool, name=f"{name}_pool")(x)
        if block.dropout:
            x = keras.layers.Dropout(block.dropout, name=f"{name}_dropout")(x)
    return keras.Model(keras.utils.get_source_inputs(input_tensor)[0], x, name="convnet")


def penalty(l1: float, l2: float) -> keras.regularizers.Regularizer | None:
    """L1 and L2 penalties on a layer's kernel; None where both are 0."""
    return keras.regularizers.L1L2(l1=l1, l2=l2) if l1 or l2 else None
