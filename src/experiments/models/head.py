"""Head of a network: pooling, dense layers to logits, and logits to probabilities."""

from __future__ import annotations

import keras

from experiments.config.schema import Head
from experiments.models.convnet import penalty

POOLING = "pooling"  # the name of the layer that `head.pooling` adds to a backbone


def pooling(kind: str, dtype: keras.DTypePolicy | None = None) -> keras.layers.Layer:
    """Return the layer that pools or flattens feature maps [B, h, w, C] to vectors [B, D].

    Args:
        dtype: the precision in which it computes; None for that of the process.
    """
    layers = keras.layers
    kinds = {"average": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D, "flatten": layers.Flatten}
    return kinds[kind](dtype=dtype, name=POOLING)


def dense_head(features: int, config: Head, classes: int) -> keras.Model:
    """Return hidden dense layers with dropout, followed by one logit for two classes, else one for each.

    Args:
        features: D, the length of a pooled feature vector.
        config: the head's layers; a value that is None in a layer is the head's own value.
        classes: number of classes, two or more.

    Returns:
        A model from vectors [B, D] to logits [B, 1] (two classes: the log odds of class 1) or [B, classes].
    """
    inputs = x = keras.Input((features,), name="features")
    hidden = {name: layer for name, layer in config.dense.items() if layer is not None}
    for name, layer in hidden.items():
        l1 = config.l1 if layer.l1 is None else layer.l1
        l2 = config.l2 if layer.l2 is None else layer.l2
        dropout = config.dropout if layer.dropout is None else layer.dropout
        regularizer = penalty(l1, l2)
        x = keras.layers.Dense(layer.units, layer.activation, kernel_regularizer=regularizer, name=name)(x)
        x = keras.layers.Dropout(dropout, name=f"{name}_dropout")(x)
    if not hidden:
        x = keras.layers.Dropout(config.dropout, name="dropout")(x)
    units = 1 if classes == 2 else classes
    # The loss needs float32 logits under mixed precision, too.
    x = keras.layers.Dense(units, kernel_regularizer=penalty(config.l1, config.l2), dtype="float32", name="logits")(x)
    return keras.Model(inputs, x, name="head")


def probabilities(logits: keras.KerasTensor) -> keras.KerasTensor:
    """Convert logits [B, 1] or [B, classes] to probabilities [B, classes] that sum to 1.

    Margins of a hinge loss become scores in [0, 1] that keep their order.
    """
    if logits.shape[-1] == 1:
        return keras.ops.sigmoid(keras.ops.concatenate([-logits, logits], axis=-1))  # 1 - p would lose digits near 1
    return keras.ops.softmax(logits, axis=-1)
