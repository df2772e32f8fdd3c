"""Backbones with their preprocessing, their split into a frozen and a trainable part, and joined models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from experiments.errors import ConfigError
from experiments.models import stages, weights
from experiments.models.architecture import PREPROCESSING, SHOWN, architecture, differences
from experiments.models.head import POOLING, pooling, probabilities
from experiments.models.stages import Backbone
from experiments.storage.array_cache import Rows

# Constants of keras.applications.imagenet_utils.preprocess_input. They are applied by layers, so that saved models
# include the preprocessing.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)
VERSION = 2  # of the arithmetic in `inference_functions`, on which cached features depend
PIXELS = "pixels"  # the split point of a network in which nothing is frozen
CONSTANTS = 2**28  # bytes of weights in a graph at most; fine-tuning may hold three such graphs


def preprocess(pixels: keras.KerasTensor, kind: str) -> keras.KerasTensor:
    """Convert RGB pixels [B, H, W, 3] in [0, 255] to the inputs that a backbone was trained on.

    Args:
        kind: rescale ([0, 1]), tf ([-1, 1]), torch (ImageNet's mean and standard deviation), caffe (BGR, mean
            subtracted), none.
    """
    if kind == "none":
        return pixels
    if kind == "caffe":
        pixels = keras.ops.flip(pixels, axis=-1)
    scale, offset = {
        "rescale": (1 / 255, 0.0),
        "tf": (1 / 127.5, -1.0),
        "torch": ([1 / (255 * std) for std in IMAGENET_STD],
                  [-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]),
        "caffe": (1.0, [-mean for mean in IMAGENET_MEAN_BGR]),
    }[kind]  # fmt: skip
    return keras.layers.Rescaling(scale, offset=offset, name=PREPROCESSING)(pixels)


def weights_hash(model: keras.Model) -> str:
    """Return the sha256 over the values of all weights, in order."""
    digest = hashlib.sha256()
    for value in model.get_weights():
        digest.update(value.tobytes())
    return digest.hexdigest()


class NetworkSplit(NamedTuple):
    """A network split into a frozen part and a trainable part, which share their layers with the whole network."""

    frozen_part: keras.Model  # pixels -> features at the split point
    trainable_part: keras.Model  # features at the split point -> pooled features [B, D]
    split_point: str  # first layer of the trainable part; POOLING where all is frozen, PIXELS where nothing is

    @property
    def frozen(self) -> bool:
        """True if anything is frozen, so that there are features to cache."""
        return self.split_point != PIXELS


def split_network(backbone: Backbone, unfrozen: int | str, pool: str) -> NetworkSplit:
    """Split a backbone before its last `unfrozen` stages; 0 freezes all of it and puts pooling into the frozen part.

    Args:
        unfrozen: the value of `regime.unfrozen_blocks`, or 0.

    Raises:
        ConfigError: if no split is possible there; the message has the next possible one.
    """
    model = backbone.model
    if unfrozen == 0:
        frozen_part = pooled(backbone, pool)
        features = keras.Input(frozen_part.output_shape[1:], name="boundary")
        return NetworkSplit(frozen_part, keras.Model(features, features, name="unfrozen"), POOLING)
    stage = stages.stage_of(model, backbone.stages, unfrozen)
    entering, pixels = stage.entering, model.inputs[0]
    split_point = PIXELS if entering is pixels else stages.consumers(model, entering)[0].name
    trainable_part = keras.Model(entering, pooling(pool, model.dtype_policy)(model.output), name="unfrozen")
    return NetworkSplit(keras.Model(pixels, entering, name="frozen"), trainable_part, split_point)


def pooled(backbone: Backbone, pool: str) -> keras.Model:
    """Return a model from pixels [B, H, W, 3] to pooled features [B, D], in the precision of the backbone.

    The precision of the process may be another one: a sweep builds the networks of all of its jobs.
    """
    model = backbone.model
    return keras.Model(model.inputs[0], pooling(pool, model.dtype_policy)(model.output), name="frozen")


def stack(below: keras.Model, head: keras.Model, *, training: bool | None) -> keras.Model:
    """Return the model that `fit` trains: from the input of `below` through pooled features to the head's logits.

    Args:
        training: False keeps BatchNorm statistics fixed (and drop-path off) while weights are trained; None lets
            them follow the batches, as training from scratch needs.
    """
    inputs = keras.Input(below.input_shape[1:], name="inputs")
    features = below(inputs) if training is None else Always(below, training)(inputs)
    return keras.Model(inputs, head(features), name="training")


class Always(keras.layers.Layer):
    """A layer that calls a model with one fixed value of `training`.

    A functional model passes its own `training` to its layers and so overrides the value that one of them was called
    with (Keras 3.15, `functional.operation_fn`): below(inputs, training=False) would train with batch statistics after
    all.
    """

    def __init__(self, model: keras.Model, training: bool) -> None:
        super().__init__(name=f"always_{model.name}")
        self.model, self.training_mode = model, training
        self.built = True

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return self.model(inputs, training=self.training_mode)


def join(backbone: Backbone, pool: str, head: keras.Model) -> keras.Model:
    """Join backbone and head into a model from pixels [B, H, W, 3] in [0, 255] to probabilities [B, classes]."""
    inputs = keras.Input(backbone.model.input_shape[1:], name="pixels")
    logits = head(pooled(backbone, pool)(inputs, training=False))
    return keras.Model(inputs, probabilities(logits), name="classifier")


def inference_function(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Return a compiled inference function for one model; see `inference_functions`."""
    run = inference_functions([model])
    return lambda inputs: run(inputs)[0]


def inference_functions(models: Sequence[keras.Model]) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Return a compiled function that runs several models with the same input, without training.

    It takes a batch [B, ...] float32 and returns an output for each model, float32; layers that the models share run
    once. The weights must not change while the function is used. The weights of a network that normalises by fixed
    statistics are constants in the graph, so that TensorFlow folds normalisation and activation into the convolutions
    before them: MobileNetV2 takes two thirds of the time. Other networks would gain nothing by it.

    It is used in place of `predict_on_batch`, which under a distribution strategy runs every batch on each of its
    devices.
    """
    whole = keras.Model(models[0].inputs[0], [model.outputs[0] for model in models], name=models[0].name)
    normalises = any(variable.name == "moving_variance" for variable in whole.variables)
    is_constant = normalises and whole.count_params() * 4 <= CONSTANTS
    variables = (whole.trainable_variables, whole.non_trainable_variables) if is_constant else ((), ())
    trained, fixed = ([np.asarray(variable) for variable in some] for some in variables)

    @tf.function(input_signature=[tf.TensorSpec(whole.input_shape, tf.float32)])
    def run(inputs: tf.Tensor) -> list[tf.Tensor]:
        if is_constant:
            outputs, _ = whole.stateless_call(trained, fixed, inputs, training=False)
        else:
            outputs = whole(inputs, training=False)
        return [tf.cast(output, tf.float32) for output in tf.nest.flatten(outputs)]

    return lambda inputs: [np.asarray(output) for output in run(inputs)]


def predict_probabilities(model: keras.Model, inputs: np.ndarray | Rows, batch_size: int = 64) -> np.ndarray:
    """Return probabilities [N, classes] float32 of a model that outputs logits, for inputs [N, ...]."""
    run = inference_function(model)
    starts = range(0, len(inputs), batch_size)
    logits = [run(np.asarray(inputs[at : at + batch_size], "float32")) for at in starts]
    return np.asarray(probabilities(keras.ops.convert_to_tensor(np.concatenate(logits))))


def load_weights(model: keras.Model, path: Path, key: str) -> None:
    """Load a weights file into a model.

    Args:
        key: the configuration key that named the file, for the error message.

    Raises:
        ConfigError: if the file does not exist, is no weights file, or belongs to another network.
    """
    contents = weights.read(path, key)
    recorded = weights.recorded_architecture(contents)
    wrong = differences(recorded, architecture(model)) if recorded is not None else []
    if wrong:
        raise ConfigError(
            f"{key}: {path} does not fit {model.name}, it belongs to another network: {'; '.join(wrong[:SHOWN])}"
        )
    weights.load(model, contents, key)


def reference_images(model: keras.Model) -> np.ndarray:
    """Return noise images [2, H, W, 3] float32 in [0, 255], whose probabilities are stored with every model."""
    return np.random.default_rng(0).integers(0, 256, (2, *model.input_shape[1:])).astype("float32")
