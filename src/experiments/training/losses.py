"""Losses and metrics of logits, targets in the form that these expect, and class weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn.utils.class_weight import compute_class_weight

from experiments.errors import ConfigError


def build_loss(name: str, label_smoothing: float, classes: int) -> keras.losses.Loss:
    """Return a loss of targets, in the form that `targets` returns, and logits [B, 1] (two classes) or [B, classes].

    Args:
        name: cross_entropy (of sigmoid or softmax), mse (squared error of the same probabilities), or hinge (of the
            logits themselves: Keras's Hinge for two classes, CategoricalHinge for more).
        label_smoothing: the share of each label that is spread evenly over all classes; hinge ignores it.
        classes: the number of classes.
    """
    binary = classes == 2
    if name == "hinge":
        return keras.losses.Hinge() if binary else keras.losses.CategoricalHinge()
    if name == "mse":
        return SquaredError(label_smoothing)
    kind = keras.losses.BinaryCrossentropy if binary else keras.losses.CategoricalCrossentropy
    return kind(from_logits=True, label_smoothing=label_smoothing)


def reported_loss(loss: keras.losses.Loss) -> Callable[[Any, Any], Any]:
    """Return the loss that the curves `loss` and `validation_loss` show, a function of targets and logits to [B].

    It is the cross entropy, whatever loss training minimises; with hinge, whose scores are no probabilities, it is the
    hinge loss. Label smoothing, class weights and penalties are not in it, so that `validation_loss` equals the loss of
    the validation split in the final report.
    """
    if isinstance(loss, (keras.losses.Hinge, keras.losses.CategoricalHinge)):
        margins: Callable[[Any, Any], Any] = loss.fn
        return margins
    return cross_entropy


def cross_entropy(y_true: Any, y_pred: Any) -> Any:
    """Return the cross entropy of each image: [B] float32.

    Probabilities are clipped at float32's epsilon, 1.2e-7, as in scikit-learn's `log_loss` in the final report.
    """
    if y_pred.shape[-1] == 1:
        y_true = keras.ops.concatenate([1 - y_true, y_true], axis=-1)
        logs = keras.ops.log_sigmoid(keras.ops.concatenate([-y_pred, y_pred], axis=-1))
    else:
        logs = keras.ops.log_softmax(y_pred, axis=-1)
    epsilon = float(np.finfo("float32").eps)
    return -keras.ops.sum(y_true * keras.ops.clip(logs, math.log(epsilon), math.log1p(-epsilon)), axis=-1)


class SquaredError(keras.losses.Loss):
    """The mean over outputs of the squared difference between smoothed targets and probabilities."""

    def __init__(self, label_smoothing: float) -> None:
        super().__init__(name="mse")
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        binary = y_pred.shape[-1] == 1
        probabilities = keras.ops.sigmoid(y_pred) if binary else keras.ops.softmax(y_pred)
        even = 1 / (2 if binary else y_pred.shape[-1])
        smoothed = (1 - self.label_smoothing) * y_true + self.label_smoothing * even
        return keras.ops.mean(keras.ops.square(smoothed - probabilities), axis=-1)


def targets(labels: tf.Tensor, classes: int) -> tf.Tensor:
    """Convert labels [B] int32, or shares of classes [B, classes] float32, to the targets of a loss.

    Returns:
        For two classes the share of class 1, [B, 1] float32; for more, the shares of all classes, [B, classes] float32.
    """
    shares = tf.one_hot(labels, classes) if labels.shape.rank == 1 else labels
    return shares[:, 1:] if classes == 2 else shares


def accuracy(y_true: Any, y_pred: Any) -> Any:
    """Return 1 for each image whose largest logit and largest target belong to the same class, else 0: [B] float32."""
    if y_pred.shape[-1] == 1:
        hits = keras.ops.equal(y_true[:, 0] > 0.5, y_pred[:, 0] > 0)
    else:
        hits = keras.ops.equal(keras.ops.argmax(y_true, axis=-1), keras.ops.argmax(y_pred, axis=-1))
    return keras.ops.cast(hits, "float32")


def class_weights(
    setting: str | Mapping[str, float] | None, labels: np.ndarray, classes: Sequence[str]
) -> np.ndarray | None:
    """Return the weight of each class in the training loss: [classes] float32; None if no weights are configured.

    Args:
        setting: `class_weights` of the configuration. "balanced" is scikit-learn's N / (number of classes * number of
            images of the class). In a mapping, the weight of a class that is missing is 1.
        labels: [N] int32, of the training images.
        classes: the class names, in label order.

    Raises:
        ConfigError: a name in the mapping is not a class.
    """
    if setting is None:
        return None
    if isinstance(setting, str):
        weights = compute_class_weight(setting, classes=np.arange(len(classes)), y=labels)
        return np.asarray(weights, "float32")
    unknown = sorted(set(setting) - set(classes))
    if unknown:
        raise ConfigError(
            f"class_weights: no class is called {', '.join(map(repr, unknown))}. Allowed: {', '.join(classes)}, or "
            f"balanced. Received: {dict(setting)!r}"
        )
    return np.array([setting.get(name, 1.0) for name in classes], "float32")


def loss_of_guessing(loss: keras.losses.Loss, labels: np.ndarray, weights: np.ndarray | None, count: int) -> float:
    """Return the training loss of a network that predicts the class frequencies for every image.

    Args:
        loss: a loss of `build_loss`.
        labels: [N] int32.
        weights: of the classes, [count] float32; None if there are none.
        count: the number of classes.
    """
    given = None if weights is None else weights[labels]
    shares = np.maximum(np.bincount(labels, given, minlength=count) / len(labels), 1e-7)
    # Subtracting the mean does not change the probabilities, but the hinge loss, which expects centred logits.
    logits = np.log(shares) - np.log(shares).mean()
    outputs = np.tile(logits[1:] - logits[:1] if count == 2 else logits, (len(labels), 1)).astype("float32")
    return float(loss(targets(tf.constant(labels), count), outputs, sample_weight=given))


def weighted(inputs: tf.Tensor, wanted: tf.Tensor, weights: np.ndarray | None) -> tuple[tf.Tensor, ...]:
    """Return a batch for `fit`: with class weights (inputs, targets, sample weights [B]), without (inputs, targets).

    An image's weight is that of its class, or the mean of the class weights by its shares of the classes.
    """
    if weights is None:
        return inputs, wanted
    shares = tf.concat([1 - wanted, wanted], axis=-1) if wanted.shape[-1] == 1 else wanted
    return inputs, wanted, tf.linalg.matvec(shares, tf.constant(weights))
