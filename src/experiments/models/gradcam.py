"""Grad-CAM: heat maps of the image regions that support a class.

Source: R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
ICCV 2017.
"""

from __future__ import annotations

import keras
import matplotlib
import numpy as np
import tensorflow as tf

from experiments.models.head import POOLING

BATCH = 6  # images in one forward and backward pass, whose memory holds the outputs of all layers


def gradcam(model: keras.Model, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return how much each region of an image supports a class against the others, at image size.

    The feature maps are those that the head pools or flattens; each channel is weighted by the mean gradient of the
    class's log odds, log(p / (1 - p)), and negative values are set to 0. The logit itself would mislead with more than
    two classes: softmax depends only on the differences between logits, and where all logits are negative, no region
    would support any class. Unlike the probability, the log odds have a gradient at p = 1, too.

    Args:
        model: maps pixels to probabilities, as built by `models.network.join`.
        pixels: [N, H, W, 3] in [0, 255], N >= 1.
        classes: [N] int, the class to explain for each image.

    Returns:
        [N, H, W] float32 in [0, 1], with a maximum of 1 for each image; all 0 where nothing supports the class.
    """
    below = model.get_layer("frozen")
    pool, head = below.get_layer(POOLING), model.get_layer("head")
    network = keras.Model(below.inputs[0], keras.Layer.input.fget(pool), name="maps")
    found = []
    for batch in (slice(start, start + BATCH) for start in range(0, len(pixels), BATCH)):
        maps = network(pixels[batch].astype("float32"), training=False)
        with tf.GradientTape() as tape:
            tape.watch(maps)
            logits = head(pool(maps), training=False)  # [B, 1] or [B, classes]
            explained = log_odds(logits, classes[batch])
        gradients = tf.cast(tape.gradient(explained, maps), tf.float32)
        weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(weights * tf.cast(maps, tf.float32), axis=-1, keepdims=True))
        heat = tf.image.resize(heat, pixels.shape[1:3])[..., 0]
        found.append(np.asarray(tf.math.divide_no_nan(heat, tf.reduce_max(heat, axis=(1, 2), keepdims=True))))
    return np.concatenate(found)


def log_odds(logits: tf.Tensor, classes: np.ndarray) -> tf.Tensor:
    """Return the logarithm of p / (1 - p) of a class for each image: [B].

    Args:
        logits: [B, 1] (two classes: the log odds of class 1) or [B, classes].
        classes: [B] int.
    """
    if logits.shape[-1] == 1:
        return logits[:, 0] * tf.where(classes == 1, 1.0, -1.0)
    own = tf.one_hot(classes, logits.shape[-1], on_value=True, off_value=False)
    others = tf.where(own, -np.inf, logits)
    return tf.gather(logits, classes, axis=1, batch_dims=1) - tf.reduce_logsumexp(others, axis=-1)


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay heatmaps over images, more opaque where the heat is higher, and fade what the model has not received.

    Args:
        pixels: [..., H, W, 3] uint8.
        heat: [..., H, W] in [0, 1]; NaN where the image was cut off, see `resizing.map_back`.

    Returns:
        [..., H, W, 3] uint8.
    """
    grey = pixels.mean(axis=-1, keepdims=True)  # The image is gray, so that all colours belong to the heatmap.
    grey = np.where(np.isnan(heat)[..., None], 255 - (255 - grey) / 3, grey)
    heat = np.nan_to_num(heat)
    colors = matplotlib.colormaps["inferno"](0.25 + 0.75 * heat)[..., :3] * 255
    share = 0.75 * heat[..., None] ** 0.8
    laid: np.ndarray = np.rint((1 - share) * grey + share * colors).astype("uint8")
    return laid
