"""Backbones built from a configuration: the network with its preprocessing, and its weights from a file or download."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import keras

from experiments.config.schema import Model
from experiments.config.targets import APPLICATIONS, construct, resolve
from experiments.errors import ConfigError
from experiments.models import network, stages, weights
from experiments.models.architecture import SHOWN, architecture, differences, layers_of, setting_differences
from experiments.models.head import POOLING
from experiments.models.stages import Backbone
from experiments.models.weights import Contents
from experiments.models.weights_record import network_settings
from experiments.system import paths
from experiments.system.private_api import KERAS_GET_FILE

PRETRAINED = paths.PACKAGE / "weights" / "convnet.weights.h5"


def build_backbone(
    config: Model, image_size: int, trusted_packages: Sequence[str], weights: str | Path | None
) -> Backbone:
    """Build a backbone with its preprocessing and weights.

    Args:
        weights: a file, "pretrained" or "imagenet"; None for random ones. `config.weights` is not read.

    Raises:
        ConfigError: the network cannot be built, or its weights are missing or belong to another network.
    """
    build = functools.partial(build_network, config, trusted_packages)
    if weights is None or weights == "imagenet":
        model = build(image_size, weights)
    elif weights == "pretrained":
        model = _with_weights(config, image_size, build, PRETRAINED, "model.weights=pretrained")
    else:
        model = _with_weights(config, image_size, build, Path(weights).expanduser(), "model.weights")
    description = hashlib.sha256(model.to_json().encode()).hexdigest()
    identity = hashlib.sha256(f"{description} {network.weights_hash(model)}".encode()).hexdigest()
    named = stages.named_stages(model, config.blocks) if config.blocks else stages.find_stages(model)
    return Backbone(model, named, identity)


def build_network(
    config: Model, trusted_packages: Sequence[str], size: int | None, weights: str | None, *, download: bool = True
) -> keras.Model:
    """Build the backbone's network with its preprocessing in front.

    Args:
        size: side of the images in pixels; None for any.
        weights: "imagenet" builds the network that keras.applications builds for ImageNet weights, which in some cases
            has additional layers (EfficientNet: a rescaling); None builds it without them.
        download: False leaves the weights random.
    """
    pixels = keras.Input((size, size, 3), name="pixels")
    arguments = {"input_tensor": network.preprocess(pixels, config.preprocessing), **config.arguments}
    if config.layers is not None:
        arguments["layers"] = config.layers
    constructor = resolve(trusted_packages, "model", config.target)
    if config.target.startswith(APPLICATIONS):
        arguments |= {"include_top": False, "input_shape": (size, size, 3), "weights": weights}
        with contextlib.nullcontext() if weights is None or download else _random_weights():
            built = _with_download(config.name, constructor, arguments)
    elif weights is not None:
        raise ConfigError(
            f"model.weights: {weights!r} is Keras's download for keras.applications, not for "
            f"model={config.name}. Allowed: pretrained (model=convnet), a file, an MLflow run id, null"
        )
    else:
        built = construct("model", constructor, arguments)
    return _checked(built, pixels, config.target)


def _checked(built: Any, pixels: keras.KerasTensor, target: str) -> keras.Model:
    """Return what a constructor has built; raise ConfigError unless it maps the pixels to feature maps.

    `keras.Model(input_tensor, ...)` would have an input of its own, and its preprocessing would be lost.
    """
    inputs, output = (getattr(built, name, None) for name in ("inputs", "output"))
    issue = None
    if not isinstance(built, keras.Model) or not inputs or inputs[0] is not pixels:
        issue = (
            "must return a functional keras.Model whose input is that of the preprocessing before input_tensor: "
            "keras.Model(keras.utils.get_source_inputs(input_tensor)[0], output)"
        )
    elif len(getattr(output, "shape", ())) != 4:
        issue = f"must return feature maps [B, h, w, channels], one tensor, which the head pools. Received: {output}"
    elif POOLING in [layer.name for layer in built.layers]:
        issue = f"must have no layer called {POOLING!r}, which is the name of the head's first layer"
    if issue:
        raise ConfigError(f"model: {target} {issue}")
    return built


@contextmanager
def _random_weights() -> Iterator[None]:
    """Prevent keras.applications from downloading and loading ImageNet weights inside the context."""
    with (
        mock.patch(KERAS_GET_FILE, lambda *arguments, **options: ""),
        mock.patch.object(keras.Model, "load_weights", lambda *arguments, **options: None),
    ):
        yield


def _with_weights(
    config: Model, image_size: int, build: Callable[..., keras.Model], path: Path, key: str
) -> keras.Model:
    """Return the network with the weights of a file, after checking that the file belongs to the network.

    If keras.applications builds another network for ImageNet weights than without, the file decides which is built.

    Raises:
        ConfigError: the file belongs to another network, or does not show to which of the two it belongs.
    """
    contents = weights.read(path, key)
    in_file = weights.rescalings(contents.layers)
    target = config.target
    published = path.name == f"{target.rpartition('.')[2].lower()}_notop.h5"
    graphs = [None, "imagenet"] if target.startswith(APPLICATIONS) else [None]
    built = []
    for graph in reversed(graphs) if published or in_file > 1 else graphs:
        model = build(image_size, graph, download=False)
        wrong = _differences(config, contents, model, functools.partial(build, weights=graph, download=False))
        if not wrong and (_rescalings(model) == in_file or (published and graph)):
            weights.load(model, contents, key)
            return model
        built.append((model, wrong))
    model, wrong = built[0]
    if not wrong and len({_rescalings(other) for other, _ in built}) > 1:
        wrong = (
            f"keras.applications builds {model.name} in one way for ImageNet weights and in another without, and "
            "the file does not show which it is. Give the backbone saved whole (*.keras), or a run"
        )
    if wrong:
        reason = weights.mismatch(contents, model)
        raise ConfigError(
            f"{key}: {path} does not fit {model.name}, it belongs to another network: "
            f"{wrong}{f'. {reason}' if reason else ''}"
        )
    weights.load(model, contents, key)
    return model


def _rescalings(model: keras.Model) -> int:
    return weights.rescalings(weights.layers_in(model, "keras"))


def _differences(
    config: Model, contents: Contents, model: keras.Model, build: Callable[[int | None], keras.Model]
) -> str | None:
    """Return how the network that a file's weights belong to differs from a model.

    Args:
        build: builds the model for images of another size.

    Returns:
        A phrase for an error message; None if there is no difference, as far as the file shows.
    """
    recorded = weights.recorded_architecture(contents)
    if recorded is None:
        return None if weights.mismatch(contents, model) else weights.other_layers(contents, model)
    found = differences(recorded, architecture(model))
    size = weights.recorded_size(contents)
    if found and size != model.input_shape[1]:  # The padding of some networks depends on the size of their images.
        with contextlib.suppress(ConfigError):
            model = build(size)
            found = differences(recorded, architecture(model))
    if found and contents.record is None:  # A network that Keras saved does not have this project's preprocessing.
        bare = layers_of(json.loads(model.to_json())["config"], preprocessing=False)
        found = found if differences(recorded, bare) else []
    settings = setting_differences((contents.record or {}).get("model", {}), network_settings(config))
    return "; ".join((settings or found)[:SHOWN]) if found else None


def _with_download(name: str, constructor: Any, arguments: dict[str, Any]) -> keras.Model:
    """Build a keras.applications network; Keras takes ImageNet weights from its cache or downloads and verifies them.

    Raises:
        ConfigError: the weights cannot be downloaded; the message names the file that Keras expects in its cache.
    """
    try:
        return construct("model", constructor, arguments)
    except ConfigError:
        raise
    except Exception as error:  # Keras raises a plain Exception when a server cannot be reached.
        failure = re.match(r"URL fetch failure on (\S+?):? (.*)", str(error), re.DOTALL)
        if failure is None and not isinstance(error, OSError):
            raise
        folder = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models"
        reason = failure[2] if failure else str(error)
        wanted = folder / failure[1].rsplit("/", 1)[-1] if failure else f"its file in {folder}"
        raise ConfigError(
            f"model.weights: the ImageNet weights of model={name} could not be downloaded "
            f"({reason}). Keras looks for {wanted}: put that file there. "
            "Or use another choice: model.weights=FILE (*.weights.h5), an MLflow run id, null (random weights), or "
            "model=convnet model.weights=pretrained, which needs no network"
        ) from None
