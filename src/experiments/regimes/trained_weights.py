"""The weights that a run has trained: saved in its directory, and restored to evaluate a sweep's winner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from experiments.data.types import Dataset
from experiments.errors import ConfigError
from experiments.models.network import NetworkSplit, join, load_weights, split_network, stack
from experiments.models.weights import save
from experiments.models.weights_record import head_record, network_record
from experiments.regimes.bottleneck import predict_splits
from experiments.regimes.declaration import Trains, declaration_of
from experiments.regimes.feature_cache import FeatureRequest, extract
from experiments.runs.run_directory import RunDirectory
from experiments.training.types import RunComponents, TrainingContext, TrainingResult


def save_weights(directory: RunDirectory, components: RunComponents, result: TrainingResult) -> list[str]:
    """Write the trained weights of a run; called before the evaluation, whose failure must not lose them.

    A sweep's job saves only the weights that its regime declares to train: a sweep of VGG16 would store a gigabyte of
    frozen weights.

    Returns:
        The names of the weights from which `restore` builds the trained model; none if the regime declares no `trains`.
    """
    config, backbone = components.config, components.backbone
    trains = declaration_of(components.regime).trains
    names = ["head"]
    directory.weights("head").parent.mkdir(exist_ok=True)
    if config.sweep.job and trains == Trains.UNFROZEN_BLOCKS:
        names.append("unfrozen")
        network_split = split_network(backbone, trains.unfrozen(config), config.model.head.pooling)
        network_split.trainable_part.save_weights(directory.weights("unfrozen"))
    elif not (config.sweep.job and trains == Trains.HEAD):
        names.append("backbone")
        save(backbone.model, directory.weights("backbone"), network_record(config.model, backbone.model))
    head: keras.Model = result.model.get_layer("head")
    save(head, directory.weights("head"), head_record(config.model, backbone, head, result.model))
    return names if trains else []


def restore(components: RunComponents, dataset: Dataset, context: TrainingContext, folder: Path) -> TrainingResult:
    """Return the trained model of a finished run with its scores, computed in the same way as by its regime.

    Args:
        folder: the directory of a finished run with the same identity as this one; `facts_of` checks it.

    Raises:
        ConfigError: the weights are missing or do not fit, or the regime does not declare what it trains.
    """
    directory = RunDirectory(folder)
    config, pool = components.config, components.config.model.head.pooling
    declaration = declaration_of(components.regime)
    if declaration.trains is None:
        raise ConfigError(f"sweep.trained: regime={config.regime.name} does not declare which weights it trains")
    network_split = split_network(components.backbone, declaration.trains.unfrozen(config), pool)
    head = components.head(len(dataset.classes))
    load_trained(components, network_split, head, directory, "sweep.trained")
    for record in (history := tuple(directory.epochs())):
        context.record(record)
    if network_split.frozen:
        scored = dataset.scored(config.evaluate.test)
        extract(components, [FeatureRequest(network_split, images) for images in scored], context.progress)
    model = stack(network_split.trainable_part, head, training=False)
    scores = predict_splits(components, dataset, context, network_split, model)
    source = {"head_source": f"the weights of {folder}"} if declaration.head_first else {}
    return TrainingResult(join(components.backbone, pool, head), history, scores, {"evaluated": str(folder), **source})


def load_trained(
    components: RunComponents, network_split: NetworkSplit, head: keras.Model, directory: RunDirectory, key: str
) -> None:
    """Load the trained weights of a run into the backbone and a head; `key` of the configuration is for messages.

    A sweep's job has saved only the weights that it has trained.

    Raises:
        ConfigError: the weights are missing or do not fit.
    """
    weights = {"head": head, "backbone": components.backbone.model, "unfrozen": network_split.trainable_part}
    kept = [name for name in weights if directory.weights(name).is_file()]
    trained = ["unfrozen" if "unfrozen" in kept else "backbone"] if network_split.trainable_part.weights else []
    for name, model in weights.items():
        if name in ("head", *trained, *kept):
            load_weights(model, directory.weights(name), key)


def facts_of(folder: Path, identity: str) -> dict[str, Any]:
    """Return what a run directory records about its training.

    Returns:
        `seconds` (metric -> value), `reused_seconds`, `warnings` and `first_candidate` (see `candidate_epochs`).

    Raises:
        ConfigError: the directory does not hold a finished run of this identity.
    """
    directory = RunDirectory(folder)
    metrics, facts = directory.finished(identity), directory.facts()
    if metrics is None or not facts:
        raise ConfigError(
            f"sweep.trained: must be the folder of a finished run with the identity {identity}. Received: {folder}, "
            "which does not hold it. Give the sweep's command again"
        )
    seconds = {name: metrics[name] for name in ("total_seconds", "fit_seconds") if name in metrics}
    return {
        "seconds": seconds, "reused_seconds": facts.get("reused_seconds", 0.0), "warnings": facts.get("warnings", []),
        "first_candidate": facts.get("first_candidate"),
    }  # fmt: skip
