"""Backbones from their constructors, cut at a block, and joined with a head."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from experiments.models.head import pooling, probabilities
from experiments.types import Backbone, ConfigError

# As keras.applications.imagenet_utils.preprocess_input, as layers, so that a saved model holds them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)


def preprocess(pixels: keras.KerasTensor, kind: str) -> keras.KerasTensor:
    """Pixels [B, H, W, 3] in [0, 255], RGB, to what a backbone was trained on.

    Args:
        kind: rescale ([0, 1]), tf ([-1, 1]), torch (ImageNet's mean and deviation), caffe (BGR, mean subtracted), none.
    """
    if kind == "rescale":
        return keras.layers.Rescaling(1 / 255, name="preprocessing")(pixels)
    if kind == "tf":
        return keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="preprocessing")(pixels)
    if kind == "torch":
        scale = [1 / (255 * std) for std in IMAGENET_STD]
        offset = [-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
        return keras.layers.Rescaling(scale, offset=offset, name="preprocessing")(pixels)
    if kind == "caffe":
        offset = [-mean for mean in IMAGENET_MEAN_BGR]
        return keras.layers.Rescaling(1.0, offset=offset, name="preprocessing")(keras.ops.flip(pixels, axis=-1))
    return pixels


def first_layers(model: keras.Model, blocks: Sequence[str]) -> dict[str, str]:
    """Each block's first layer: the first named like the block, or like it with an underscore and more.

    Raises:
        ConfigError: a block that no layer is named after, or blocks out of order.
    """
    names = [layer.name for layer in model.layers]
    found: dict[str, str] = {}
    for block in blocks:
        layers = [name for name in names if name == block or name.startswith(f"{block}_")]
        if not layers:
            raise ConfigError(
                f"model.blocks: no layer of {model.name} is named {block!r} or begins with '{block}_'. "
                f"Its layers: {', '.join(names)}"
            )
        found[block] = layers[0]
    positions = [names.index(name) for name in found.values()]
    if positions != sorted(positions):
        raise ConfigError(f"model.blocks: must be in the network's order. Received: {', '.join(blocks)}")
    return found


def weights_hash(model: keras.Model) -> str:
    """sha256 over the values of all weights, in order."""
    digest = hashlib.sha256()
    for value in model.get_weights():
        digest.update(value.tobytes())
    return digest.hexdigest()


class Cut(NamedTuple):
    """A network in two: below the boundary frozen, above it trained. Layers are shared with the whole."""

    prefix: keras.Model  # pixels -> activations at the boundary
    suffix: keras.Model  # activations at the boundary -> pooled features [B, D]
    boundary: str  # the first layer of the suffix's first block; "pooling" where all is frozen


def cut(backbone: Backbone, unfrozen: int, pool: str) -> Cut:
    """Cuts a backbone below its last `unfrozen` blocks; 0 leaves only pooling above, done by the prefix.

    The boundary is the tensor that enters the first unfrozen block's first layer.

    Raises:
        ConfigError: a block whose first layer's input is not the only way up, so that no cut is possible there.
    """
    if unfrozen == 0:
        prefix = pooled(backbone, pool)
        features = keras.Input(prefix.output_shape[1:], name="boundary")
        return Cut(prefix, keras.Model(features, features, name="unfrozen"), "pooling")
    model = backbone.model
    block = list(backbone.blocks)[-unfrozen]
    first = model.get_layer(backbone.blocks[block])
    try:
        prefix = keras.Model(model.inputs[0], first.input, name="frozen")
        suffix = keras.Model(first.input, pooling(pool)(model.output), name="unfrozen")
    except ValueError as error:
        raise ConfigError(f"model.blocks: {model.name} cannot be cut at {block!r} ({first.name}): {error}") from None
    return Cut(prefix, suffix, first.name)


def pooled(backbone: Backbone, pool: str) -> keras.Model:
    """Pixels [B, H, W, 3] to pooled features [B, D]."""
    model = backbone.model
    return keras.Model(model.inputs[0], pooling(pool)(model.output), name="frozen")


def stack(below: keras.Model, head: keras.Model, *, training: bool | None) -> keras.Model:
    """A model from `below`'s input through pooled features to the head's logits: what `fit` trains.

    Args:
        training: False keeps BatchNorm statistics fixed (and drop-path off) while weights are trained; None lets
            them follow the batches, as training from scratch needs.
    """
    inputs = keras.Input(below.input_shape[1:], name="inputs")
    features = below(inputs) if training is None else Always(below, training)(inputs)
    return keras.Model(inputs, head(features), name="training")


class Always(keras.layers.Layer):
    """A model called with one fixed `training`.

    A functional model hands its own `training` down and so overrides what a part of it was called with (Keras 3.15,
    `functional.operation_fn`): below(inputs, training=False) would train with batch statistics after all.
    """

    def __init__(self, model: keras.Model, training: bool) -> None:
        super().__init__(name=f"always_{model.name}")
        self.model, self.training_mode = model, training
        self.built = True

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return self.model(inputs, training=self.training_mode)


def join(backbone: Backbone, pool: str, head: keras.Model) -> keras.Model:
    """The whole: pixels [B, H, W, 3] in [0, 255] to probabilities [B, classes]."""
    inputs = keras.Input(backbone.model.input_shape[1:], name="pixels")
    logits = head(pooled(backbone, pool)(inputs, training=False))
    return keras.Model(inputs, probabilities(logits), name="classifier")


def score(model: keras.Model, inputs: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Probabilities [N, classes] float32 of a model that outputs logits, for rows of its inputs [N, ...]."""
    starts = range(0, len(inputs), batch_size)
    logits = [model.predict_on_batch(np.asarray(inputs[at : at + batch_size], "float32")) for at in starts]
    return np.asarray(probabilities(keras.ops.convert_to_tensor(np.concatenate(logits))))


def load(model: keras.Model, path: Path, key: str) -> None:
    """Loads a weights file into a model.

    Args:
        key: the configuration key that named the file, for the error.

    Raises:
        ConfigError: a file that does not exist, is no weights file or does not fit the model.
    """
    if not path.is_file():
        raise ConfigError(f"{key}: no such file. Received: {path}")
    if path.suffixes[-2:] != [".weights", ".h5"]:
        raise ConfigError(f"{key}: must be a Keras weights file, *.weights.h5. Received: {path}")
    try:
        model.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        layers = ", ".join(
            f"{layer.name} {[tuple(w.shape) for w in layer.weights]}" for layer in model.layers if layer.weights
        )
        raise ConfigError(
            f"{key}: {path} does not fit {model.name}: {str(error).splitlines()[0]}. The weights must be of the same "
            f"network with the same layers: {layers[:600]}"
        ) from None
