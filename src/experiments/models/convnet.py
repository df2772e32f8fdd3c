"""The tutorial's small convolutional network, with its layers given by the configuration."""

from __future__ import annotations

from collections.abc import Mapping

import keras

from experiments.config.schema import ConvBlock


def convnet(*, input_tensor: keras.KerasTensor, layers: Mapping[str, ConvBlock]) -> keras.Model:
    """Return a stack of convolutional blocks: convolutions, each with its activation, max pooling, dropout.

    A block can also have batch normalisation after every convolution, depthwise separable convolutions, and a shortcut
    around the block: a 1 x 1 convolution with the block's stride, added before its last activation (as in Chollet's
    Xception, 2017).

    Args:
        input_tensor: preprocessed images [B, H, W, 3].
        layers: the blocks by name, in order.

    Returns:
        A model from the input's source to feature maps [B, h, w, filters of the last block].

    Raises:
        ValueError: if the images are too small for so many blocks.
    """
    x = input_tensor
    for name, block in layers.items():
        lost = block.kernel - 1 if block.padding == "valid" else 0
        side = (min(x.shape[1:3]) - lost - 1) // block.stride + 1 - (block.convolutions - 1) * lost
        if side < (1 if block.residual else block.pool):
            raise ValueError(
                f"model.layers.{name}: feature maps of {x.shape[1]} x {x.shape[2]} pixels are too small for "
                f"{block.convolutions} {block.kernel} x {block.kernel} convolutions and {block.pool} x {block.pool} "
                "pooling. Use larger images (data.image_size) or fewer blocks"
            )
        below = x
        for at in range(block.convolutions):
            number = "" if block.convolutions == 1 else str(at + 1)
            after_sum = block.residual and at == block.convolutions - 1
            inside = not (block.batch_norm or after_sum)
            x = convolution(block, block.stride if at == 0 else 1, inside, f"{name}_conv{number}")(x)
            if block.batch_norm:
                x = keras.layers.BatchNormalization(name=f"{name}_norm{number}")(x)
            if not inside and not after_sum:
                x = keras.layers.Activation(block.activation, name=f"{name}_activation{number}")(x)
        if block.pool > 1:
            # The size must be that of the shortcut's strided convolution.
            padding = "same" if block.residual else "valid"
            x = keras.layers.MaxPooling2D(block.pool, padding=padding, name=f"{name}_pool")(x)
        if block.residual:
            shortcut = keras.layers.Conv2D(
                block.filters, 1, strides=block.stride * block.pool, use_bias=not block.batch_norm,
                kernel_regularizer=penalty(block.l1, block.l2), name=f"{name}_shortcut",
            )(below)  # fmt: skip
            if block.batch_norm:
                shortcut = keras.layers.BatchNormalization(name=f"{name}_shortcut_norm")(shortcut)
            x = keras.layers.Add(name=f"{name}_sum")([x, shortcut])
            x = keras.layers.Activation(block.activation, name=f"{name}_activation")(x)
        if block.dropout:
            x = keras.layers.Dropout(block.dropout, name=f"{name}_dropout")(x)
    return keras.Model(keras.utils.get_source_inputs(input_tensor)[0], x, name="convnet")


def convolution(block: ConvBlock, stride: int, activated: bool, name: str) -> keras.layers.Layer:
    """Return one convolution of a block, with its activation where nothing comes between the two."""
    if block.separable:
        layer, penalised = keras.layers.SeparableConv2D, ["depthwise_regularizer", "pointwise_regularizer"]
    else:
        layer, penalised = keras.layers.Conv2D, ["kernel_regularizer"]
    return layer(
        block.filters,
        block.kernel,
        strides=stride,
        padding=block.padding,
        activation=block.activation if activated else None,
        use_bias=not block.batch_norm,
        name=name,
        **dict.fromkeys(penalised, penalty(block.l1, block.l2)),
    )


def penalty(l1: float, l2: float) -> keras.regularizers.Regularizer | None:
    """Return L1 and L2 penalties on a layer's kernel; None where both are 0."""
    return keras.regularizers.L1L2(l1=l1, l2=l2) if l1 or l2 else None
