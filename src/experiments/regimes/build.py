"""Building of a run's components from a validated configuration; only here are `_target_` names resolved."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from experiments.config import messages
from experiments.config.identity import head_run, run_identity
from experiments.config.schema import Component, Config
from experiments.data.types import Augmentation
from experiments.errors import ConfigError, DataError
from experiments.models import network, stages, weights
from experiments.models.architecture import SHOWN, architecture, differences, layers_of, setting_differences
from experiments.models.head import dense_head
from experiments.models.types import Backbone
from experiments.models.weights import Contents
from experiments.system import paths
from experiments.system.private_api import KERAS_GET_FILE
from experiments.training import schedules
from experiments.training.checkpoints import file_hash
from experiments.training.losses import build_loss
from experiments.training.types import RunComponents, TrainingPhase

APPLICATIONS = "keras.applications."
PRETRAINED = paths.PACKAGE / "weights" / "convnet.weights.h5"
# These layers run code from a configuration, from a file or from another framework.
RUN_CODE = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
# These layers, for text and categories, read the file that their vocabulary names. None of them takes images.
READ_FILES = ("IndexLookup", "TextVectorization", "FeatureSpace")
OURS = {
    "data": "experiments.data.",
    "augmentation": "experiments.data.augmentation.",
    "model": "experiments.models.",
    "schedule": "experiments.training.schedules.",
    "regime": "experiments.regimes.",
}


def build(config: Config, files: Mapping[str, Path], backbone: Backbone | None = None) -> RunComponents:
    """Build all components of a run from its configuration, before any image is read.

    Args:
        config: a validated configuration.
        files: configuration key -> local file, where the key's value is a run id: model.weights, regime.head_from.
        backbone: the backbone of another configuration, if this one has the same; None to build it.

    Raises:
        ConfigError: a component cannot be built; the message names its key and the reason.
    """
    if backbone is None and not tf.distribute.has_strategy():  # Clearing the session would break a strategy's scope.
        keras.utils.clear_session()  # Layer names must not depend on what this process has built before.
    keras.config.set_dtype_policy(config.runtime.precision)  # Clearing the session resets the policy.
    keras.utils.set_random_seed(config.seed)
    backbone = backbone or build_backbone(config, files.get("model.weights"))
    if "regime.unfrozen_blocks" not in config.regime.ignores:
        stages.stage_of(backbone.model, backbone.stages, config.regime.unfrozen_blocks)
    head_file = files.get("regime.head_from")
    if head_file is not None:
        check_head(config, head_file, backbone)
    components = RunComponents(
        config=config,
        source=build_source(config),
        augmentation=build_augmentation(config),
        extra_layers=tuple(build_layer(config, at, node) for at, node in enumerate(config.augmentation.layers)),
        backbone=backbone,
        head=functools.partial(build_head, config, backbone),
        recipe=build_recipe(config, "optimizer"),
        head_recipe=build_recipe(head_run(config), "regime.head_optimizer"),
        regime=resolve(config, "regime", config.regime.target),
        head_file=head_file,
        identity=functools.partial(_identity, backbone.identity, file_hash(head_file) if head_file else None),
    )
    # Both optimizers are built once here so that their errors are raised before the data is read.
    components.recipe.optimizer(), components.head_recipe.optimizer()
    return components


def resolve(config: Config, key: str, target: str, kind: type | None = None) -> Any:
    """Return the class or function that a `_target_` names, if it is allowed there.

    Args:
        key: the key in the configuration that has the `_target_`.
        target: the dotted name.
        kind: the Keras class whose subclass it must be; None for keys that take a function of this project.

    Raises:
        ConfigError: the name is not allowed for this key, which is checked before anything is imported (Keras only for
            subclasses of `kind` and for applications, this project only for the functions of the key's group, anything
            else only from `trusted_packages`); the name does not exist; or it is a class of another kind.
    """
    group = key.split(".")[0]
    allowed = [f"{name}." for name in config.trusted_packages]
    if kind is not None:
        allowed.append("keras.")
    else:
        allowed.append(OURS[group])
    if group == "model":
        allowed.append(APPLICATIONS)
    if not target.startswith(tuple(allowed)):
        raise ConfigError(
            f"{key}._target_: must begin with {' or '.join(allowed)} (a package of yours: trusted_packages=[NAME]). "
            f"Received: {target!r}"
        )
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}._target_: there is no {target!r}: {error}") from None
    if kind is not None and not (inspect.isclass(found) and issubclass(found, kind)):
        raise ConfigError(f"{key}._target_: must name a {kind.__module__}.{kind.__name__}. Received: {target!r}")
    # Names that a module of this project has imported from elsewhere are not allowed.
    borrowed = target.startswith("experiments.") and getattr(found, "__module__", None) != module
    if kind is None and (borrowed or not inspect.isfunction(found)):
        raise ConfigError(f"{key}._target_: must name a function. Received: {target!r}")
    return found


def construct(key: str, function: Any, arguments: Mapping[str, Any]) -> Any:
    """Call a class or function with arguments from the configuration.

    Raises:
        ConfigError: an argument is unknown, or the call raises a TypeError or ValueError; the message names the key.
    """
    parameters = inspect.signature(function).parameters
    named = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    unknown = [name for name in arguments if name not in (*named, "dtype", "name", "trainable")]
    # Keras's classes pass their **kwargs on to a base class, which accepts little else than the three names above.
    if unknown and (inspect.isclass(function) or len(named) == len(parameters)):
        lines = [messages.unknown_key(f"{key}.{name}", named, arguments[name]) for name in unknown]
        raise ConfigError(messages.format_errors(lines))
    # YAML and the command line yield the integer 0 for 0.0, which Keras's SGD does not accept as momentum.
    numbers = {name for name, parameter in parameters.items() if type(parameter.default) is float}
    typed = {
        name: float(value) if name in numbers and type(value) is int else value for name, value in arguments.items()
    }
    try:
        return function(**typed)
    except (ConfigError, DataError):
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {error}") from error


def build_source(config: Config) -> Any:
    """Return a function of no arguments that makes the data set available and returns its root directory."""
    function = resolve(config, "data", config.data.target)
    return functools.partial(construct, "data", function, config.data.arguments | {"cache": config.cache})


def build_augmentation(config: Config) -> Augmentation:
    function = resolve(config, "augmentation", config.augmentation.target)
    built: Augmentation = construct("augmentation", function, config.augmentation.arguments)
    return built


def build_layer(config: Config, at: int, node: Mapping[str, Any]) -> keras.layers.Layer:
    """Build a Keras preprocessing layer from an item of `augmentation.layers`.

    Raises:
        ConfigError: the layer cannot be built or is not allowed, because it runs code, reads files or takes objects.
    """
    key = f"augmentation.layers.{at}"
    if "_target_" not in node:
        raise ConfigError(f"{key}: needs a _target_, such as keras.layers.RandomContrast. Received: {dict(node)!r}")
    layer = resolve(config, key, str(node["_target_"]), keras.layers.Layer)
    families = {base.__name__ for base in layer.__mro__}
    if families & set(RUN_CODE):
        raise ConfigError(f"{key}._target_: {layer.__name__} runs code of its own and is not allowed here")
    if families & set(READ_FILES):
        raise ConfigError(f"{key}._target_: {layer.__name__} reads files, takes no images and is not allowed here")
    nested = [name for name, value in node.items() if _holds_object(value)]
    if nested:  # Keras would instantiate any class that such a value names, and some classes read files.
        raise ConfigError(
            f"{key}.{nested[0]}: must be plain values, no Keras object. Received: {node[nested[0]]!r:.200}"
        )
    built: keras.layers.Layer = construct(key, layer, {name: node[name] for name in node if name != "_target_"})
    return built


def _holds_object(value: Any) -> bool:
    """Return whether a value is, or holds, an object in Keras's serialized form."""
    if isinstance(value, Mapping):
        return "class_name" in value or any(map(_holds_object, value.values()))
    return isinstance(value, list) and any(map(_holds_object, value))


def build_optimizer(config: Config, node: Component, key: str) -> keras.optimizers.Optimizer:
    """Build a new optimizer; `lr` in the configuration is Keras's `learning_rate`."""
    optimizer = resolve(config, key, node.target, keras.optimizers.Optimizer)
    arguments = node.model_dump(exclude={"name", "target", "decay_bias_and_norm"})
    if not arguments["weight_decay"]:
        # Keras's AdamW does not accept None for no weight decay; other optimizers skip its computation with None.
        parameter = inspect.signature(optimizer).parameters.get("weight_decay")
        arguments["weight_decay"] = 0.0 if parameter and isinstance(parameter.default, float) else None
    return construct(key, optimizer, {"learning_rate": arguments.pop("lr"), **arguments})


def build_recipe(config: Config, optimizer: str) -> TrainingPhase:
    """Return the last training phase of a configuration; `optimizer` is the key of its optimizer, for messages."""
    schedule = functools.partial(resolve(config, "schedule", config.schedule.target), **config.schedule.arguments)
    warmup = schedules.warmup_epochs(config.schedule.warmup, config.epochs)
    rate = functools.partial(schedules.rate, schedule, lr=config.optimizer.lr, epochs=config.epochs, warmup=warmup)
    try:
        rate(warmup, [0.0] * warmup)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"schedule: {error}") from error
    return TrainingPhase(
        optimizer=functools.partial(build_optimizer, config, config.optimizer, optimizer),
        rate=rate,
        epochs=config.epochs,
        loss=functools.partial(build_loss, config.loss, config.label_smoothing),
        class_weights=config.class_weights,
        monitor=config.monitor,
        early_stopping=config.early_stopping,
        best_weights=config.best_weights,
        seed=config.seed,
        xla=config.runtime.xla,
        decay_bias_and_norm=config.optimizer.decay_bias_and_norm,
    )


def build_head(config: Config, backbone: Backbone, classes: int) -> keras.Model:
    """Build a new head for the backbone's pooled features; its initial weights depend only on the seed."""
    keras.utils.set_random_seed(config.seed)
    features = network.pooled(backbone, config.model.head.pooling).output_shape[-1]
    return dense_head(features, config.model.head, classes)


def build_backbone(config: Config, file: Path | None) -> Backbone:
    """Build the backbone with its preprocessing and weights.

    Args:
        file: the weights file, if `model.weights` is a run id.

    Raises:
        ConfigError: the network cannot be built, or its weights are missing or belong to another network.
    """
    weights_of = None if "model.weights" in config.regime.ignores else config.model.weights
    if weights_of == "imagenet":
        model = build_network(config, "imagenet")
    elif weights_of is None:
        model = build_network(config)
        if "model.weights" not in config.regime.ignores:
            logging.getLogger(__name__).warning(
                "model.weights=null: regime=%s freezes a backbone with RANDOM weights. Its features are arbitrary; "
                "give model.weights a file, imagenet or a run id unless that is what you want to measure.",
                config.regime.name,
            )
    elif weights_of == "pretrained":
        model = _with_weights(config, PRETRAINED, "model.weights=pretrained")
    else:
        model = _with_weights(config, file or Path(weights_of).expanduser(), "model.weights")
    description = hashlib.sha256(model.to_json().encode()).hexdigest()
    identity = hashlib.sha256(f"{description} {network.weights_hash(model)}".encode()).hexdigest()
    blocks = config.model.blocks
    return Backbone(model, stages.named_stages(model, blocks) if blocks else stages.find_stages(model), identity)


def build_network(config: Config, weights: str | None = None, *, download: bool = True) -> keras.Model:
    """Build the backbone's network with its preprocessing in front.

    Args:
        weights: "imagenet" builds the network that keras.applications builds for ImageNet weights, which in some cases
            has additional layers (EfficientNet: a rescaling); None builds it without them.
        download: False leaves the weights random.
    """
    model_config, size = config.model, config.data.image_size
    pixels = keras.Input((size, size, 3), name="pixels")
    arguments = {"input_tensor": network.preprocess(pixels, model_config.preprocessing), **model_config.arguments}
    if model_config.layers is not None:
        arguments["layers"] = model_config.layers
    constructor = resolve(config, "model", model_config.target)
    if model_config.target.startswith(APPLICATIONS):
        arguments |= {"include_top": False, "input_shape": (size, size, 3), "weights": weights}
        if weights is not None and not download:
            with _random_weights():
                return construct("model", constructor, arguments)
        return _with_download(config, constructor, arguments)
    if weights is not None:
        raise ConfigError(
            f"model.weights: {weights!r} is Keras's download for keras.applications, not for "
            f"model={model_config.name}. Allowed: pretrained (model=convnet), a file, an MLflow run id, null"
        )
    model: keras.Model = construct("model", constructor, arguments)
    return model


@contextmanager
def _random_weights() -> Iterator[None]:
    """Prevent keras.applications from downloading and loading ImageNet weights inside the context."""
    with (
        mock.patch(KERAS_GET_FILE, lambda *arguments, **options: ""),
        mock.patch.object(keras.Model, "load_weights", lambda *arguments, **options: None),
    ):
        yield


def _with_weights(config: Config, path: Path, key: str) -> keras.Model:
    """Return the network with the weights of a file, after checking that the file belongs to the network.

    If keras.applications builds another network for ImageNet weights than without, the file decides which is built.

    Raises:
        ConfigError: the file belongs to another network, or does not show to which of the two it belongs.
    """
    contents = weights.read(path, key)
    in_file = weights.rescalings(contents.layers)
    target = config.model.target
    published = path.name == f"{target.rpartition('.')[2].lower()}_notop.h5"
    graphs = [None, "imagenet"] if target.startswith(APPLICATIONS) else [None]
    built = []
    for graph in reversed(graphs) if published or in_file > 1 else graphs:
        model = build_network(config, graph, download=False)
        wrong = _differences(config, contents, model, graph)
        built.append((model, wrong))
        if not wrong and (_rescalings(model) == in_file or (published and graph)):
            break
    else:
        model, wrong = built[0]
        if not wrong and len({_rescalings(one) for one, _ in built}) > 1:
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


def _differences(config: Config, contents: Contents, model: keras.Model, graph: str | None = None) -> str | None:
    """Return how the network that a file's weights belong to differs from a model.

    Args:
        graph: the argument `weights` of `build_network` with which the model was built.

    Returns:
        A phrase for an error message; None if there is no difference, as far as the file shows.
    """
    recorded = weights.recorded_architecture(contents)
    if recorded is None:
        return None if weights.mismatch(contents, model) else weights.other_layers(contents, model)
    found = differences(recorded, architecture(model))
    size = weights.recorded_size(contents)
    if found and size != config.data.image_size:  # The padding of some networks depends on the size of their images.
        data = config.data.model_copy(update={"image_size": size})
        with contextlib.suppress(ConfigError):
            model = build_network(config.model_copy(update={"data": data}), graph, download=False)
            found = differences(recorded, architecture(model))
    if found and contents.record is None:  # A network that Keras saved does not have this project's preprocessing.
        bare = layers_of(json.loads(model.to_json())["config"], preprocessing=False)
        found = found if differences(recorded, bare) else []
    settings = setting_differences((contents.record or {}).get("model", {}), network_settings(config))
    return "; ".join((settings or found)[:SHOWN]) if found else None


def network_settings(config: Config) -> dict[str, Any]:
    """Return the settings of a configuration that determine the backbone's network, by their full key."""
    plain = config.model_dump(by_alias=True, mode="json")["model"]
    return {
        f"model.{key}": value
        for key, value in plain.items()
        if key not in ("name", "weights", "head", "blocks", "native_size")
    }


def network_record(config: Config, model: keras.Model) -> dict[str, Any]:
    """Return the description of the network that is stored with a backbone's weights."""
    return {
        "model": network_settings(config),
        "image_size": config.data.image_size,
        "architecture": architecture(model),
    }


def head_record(config: Config, backbone: Backbone, head: keras.Model, model: keras.Model) -> dict[str, Any]:
    """Return the record that is stored with a head's weights.

    It describes the head and its backbone, and holds the probabilities that both give for the reference images.

    Args:
        backbone: the backbone at the end of the run.
        model: backbone and head joined.
    """
    return {
        "architecture": architecture(head),
        "pooling": config.model.head.pooling,
        "backbone": network_record(config, backbone.model) | {"weights": network.weights_hash(backbone.model)},
        "reference": np.asarray(model(network.reference_images(model), training=False)).tolist(),
    }


def backbone_differences(config: Config, record: Mapping[str, Any], backbone: Backbone) -> list[str]:
    """Return the differences between the backbone that a head was trained on and a run's backbone.

    Args:
        record: the record of the head, see `head_record`.

    Returns:
        One phrase per difference, beginning with the key; an empty list if both are the same.
    """
    there, here = record["backbone"], network_record(config, backbone.model)
    found = setting_differences(
        {"data.image_size": there["image_size"], "model.head.pooling": record["pooling"]},
        {"data.image_size": here["image_size"], "model.head.pooling": config.model.head.pooling},
    )
    network_differs = differences(there["architecture"], here["architecture"])
    if network_differs:
        found += setting_differences(there["model"], here["model"]) or ([] if found else network_differs[:SHOWN])
    if not found and there["weights"] != network.weights_hash(backbone.model):
        found.append("model.weights: the weights' values there are not those here")
    return found


def check_head(config: Config, file: Path, backbone: Backbone) -> None:
    """Check that the head of `regime.head_from` was trained on features of this run's backbone.

    Raises:
        ConfigError: the head was trained on features of another backbone, or its record is damaged.
    """
    record = weights.read(file, "regime.head_from").record
    if record is None:  # Early versions of this project stored no record.
        return
    try:
        wrong = backbone_differences(config, record, backbone)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"regime.head_from: {file}: its record is damaged ({error!r})") from None
    if wrong:
        raise ConfigError(
            "regime.head_from: that run's head was trained on features of another backbone: "
            f"{'; '.join(wrong)}. Give the run whose backbone this is (model.weights, model.preprocessing, "
            "data.image_size, ... as there), or regime.head_from=null, which trains a head first"
        )


def _with_download(config: Config, constructor: Any, arguments: dict[str, Any]) -> keras.Model:
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
            f"model.weights: the ImageNet weights of model={config.model.name} could not be downloaded "
            f"({reason}). Keras looks for {wanted}: put that file there. "
            "Or use another choice: model.weights=FILE (*.weights.h5), an MLflow run id, null (random weights), or "
            "model=convnet model.weights=pretrained, which needs no network"
        ) from None


def _identity(backbone: str, head: str | None, config: Config, fingerprint: str) -> str:
    version = importlib.metadata.version("experiments")
    return run_identity(config, data=fingerprint, weights=backbone, head=head, version=version)
