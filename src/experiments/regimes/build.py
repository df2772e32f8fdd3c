"""Building of a run's components from a validated configuration."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from experiments import __version__
from experiments.config import schema
from experiments.config.identity import head_run, run_identity
from experiments.config.schema import Config
from experiments.config.targets import build_source, construct, parameters_of, resolve
from experiments.data.types import Augmentation
from experiments.errors import ConfigError
from experiments.models import network, stages
from experiments.models.backbone import build_backbone
from experiments.models.head import dense_head
from experiments.models.stages import Backbone
from experiments.models.weights_record import check_head
from experiments.runs.continuation import KEY, source_identity
from experiments.runs.run_directory import RunDirectory
from experiments.storage.atomic_files import file_hash
from experiments.training import schedules
from experiments.training.losses import build_loss
from experiments.training.types import RunComponents, TrainingPhase

# These layers run code from a configuration, from a file or from another framework.
RUN_CODE = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
# These layers, for text and categories, read the file that their vocabulary names. None of them takes images.
READ_FILES = ("IndexLookup", "TextVectorization", "FeatureSpace")


def build(config: Config, files: Mapping[str, Path], backbone: Backbone | None = None) -> RunComponents:
    """Build all components of a run from its configuration, before any image is read.

    Args:
        config: a validated configuration.
        files: configuration key -> local file, where the key names a run: model.weights, regime.head_from,
            continue_from (a directory); see `tracking.inputs.fetch`.
        backbone: the backbone of another configuration, if this one has the same; None to build it.

    Raises:
        ConfigError: a component cannot be built; the message names its key and the reason.
    """
    if backbone is None and not tf.distribute.has_strategy():  # Clearing the session would break a strategy's scope.
        keras.utils.clear_session()  # Layer names must not depend on what this process has built before.
    keras.config.set_dtype_policy(config.runtime.precision)  # Clearing the session resets the policy.
    keras.utils.set_random_seed(config.seed)
    if backbone is None:
        weights = backbone_weights(config, files.get("model.weights"))
        backbone = build_backbone(config.model, config.data.image_size, config.trusted_packages, weights)
    if "regime.unfrozen_blocks" not in config.regime.ignores:
        stages.stage_of(backbone.model, backbone.stages, config.regime.unfrozen_blocks)
    continued = RunDirectory(files[KEY]) if KEY in files else None
    head_file = files.get("regime.head_from")
    if head_file is not None:
        check_head(config.model, head_file, backbone)
    hashes = {
        "weights": backbone.identity, "head": file_hash(head_file) if head_file else None, "version": __version__
    }  # fmt: skip
    source = source_identity(continued) if continued else None

    def identity(config: Config, fingerprint: str) -> str:
        facts = {"continued": source} if config.continue_from else {}  # not of the head's run, see `head_run`
        return run_identity(config, data=fingerprint, **hashes, **facts)

    components = RunComponents(
        config=config,
        source=build_source(config),
        augmentation=build_augmentation(config.augmentation, config.trusted_packages),
        extra_layers=build_layers(config.augmentation, config.trusted_packages),
        backbone=backbone,
        head=functools.partial(build_head, config.model.head, backbone, config.seed),
        phase=build_phase(config, "optimizer"),
        head_phase=build_phase(head_run(config), "regime.head_optimizer"),
        regime=resolve(config.trusted_packages, "regime", config.regime.target),
        head_file=head_file,
        continued=continued,
        identity=identity,
    )
    # Both optimizers are built once here so that their errors are raised before the data is read.
    components.phase.optimizer(), components.head_phase.optimizer()
    return components


def backbone_weights(config: Config, file: Path | None) -> str | Path | None:
    """Return the weights of a run's backbone, `file` if another run's; warn if its regime freezes random ones."""
    if "model.weights" in config.regime.ignores:
        return None
    if config.model.weights is None:
        logging.getLogger(__name__).warning(
            "model.weights=null: regime=%s freezes a backbone with RANDOM weights. Its features are arbitrary; "
            "give model.weights a file, imagenet or a run id unless that is what you want to measure.",
            config.regime.name,
        )
    return file or config.model.weights


def build_augmentation(config: schema.Augmentation, trusted_packages: Sequence[str]) -> Augmentation:
    function = resolve(trusted_packages, "augmentation", config.target)
    built: Augmentation = construct("augmentation", function, config.arguments)
    return built


def build_layers(config: schema.Augmentation, trusted_packages: Sequence[str]) -> tuple[keras.layers.Layer, ...]:
    return tuple(build_layer(node, at, trusted_packages) for at, node in enumerate(config.layers))


def build_layer(node: Mapping[str, Any], at: int, trusted_packages: Sequence[str]) -> keras.layers.Layer:
    """Build a Keras preprocessing layer from an item of `augmentation.layers`.

    Raises:
        ConfigError: the layer cannot be built or is not allowed, because it runs code, reads files or takes objects.
    """
    key = f"augmentation.layers.{at}"
    if "_target_" not in node:
        raise ConfigError(f"{key}: needs a _target_, such as keras.layers.RandomContrast. Received: {dict(node)!r}")
    layer = resolve(trusted_packages, key, str(node["_target_"]), keras.layers.Layer)
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


def build_optimizer(node: schema.Optimizer, key: str, trusted_packages: Sequence[str]) -> keras.optimizers.Optimizer:
    """Build a new optimizer; `lr` in the configuration is Keras's `learning_rate`."""
    optimizer = resolve(trusted_packages, key, node.target, keras.optimizers.Optimizer)
    arguments = node.model_dump(exclude={"name", "target", "decay_bias_and_norm"})
    if not arguments["weight_decay"]:
        # Keras's AdamW does not accept None for no weight decay; other optimizers skip its computation with None.
        parameter = parameters_of(optimizer).get("weight_decay")
        arguments["weight_decay"] = 0.0 if parameter and isinstance(parameter.default, float) else None
    return construct(key, optimizer, {"learning_rate": arguments.pop("lr"), **arguments})


def build_phase(config: Config, key: str) -> TrainingPhase:
    """Return the last training phase of a configuration; `key` is that of its optimizer, for messages."""
    schedule = functools.partial(
        resolve(config.trusted_packages, "schedule", config.schedule.target), **config.schedule.arguments
    )
    warmup = schedules.warmup_epochs(config.schedule.warmup, config.epochs)
    rate = functools.partial(schedules.rate, schedule, lr=config.optimizer.lr, epochs=config.epochs, warmup=warmup)
    try:
        rate(warmup, [0.0] * warmup)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"schedule: {error}") from error
    return TrainingPhase(
        optimizer=functools.partial(build_optimizer, config.optimizer, key, config.trusted_packages),
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
        key=key,
    )


def build_head(config: schema.Head, backbone: Backbone, seed: int, classes: int) -> keras.Model:
    """Build a new head for the backbone's pooled features; its initial weights depend only on the seed."""
    keras.utils.set_random_seed(seed)
    return dense_head(network.pooled(backbone, config.pooling).output_shape[-1], config, classes)
