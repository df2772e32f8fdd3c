"""The training result of a finished run, restored from its weights instead of trained again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.data.types import Dataset
from experiments.errors import ConfigError
from experiments.models.network import join, load_backbone, predict_probabilities, split_network, stack
from experiments.regimes.bottleneck import bottleneck
from experiments.regimes.feature_cache import FeatureRequest, activations, extract
from experiments.regimes.finetune import finetune
from experiments.runs.run_directory import RunDirectory
from experiments.training.types import RunComponents, TrainingContext, TrainingResult


def restore(components: RunComponents, dataset: Dataset, context: TrainingContext, folder: Path) -> TrainingResult:
    """Return the trained model of a finished run with its scores, computed in the same way as by its regime.

    Args:
        folder: the directory of a finished run with the same identity as this one, trained by one of the shipped
            regimes; `facts_of` checks it.

    Raises:
        ConfigError: the weights are missing or do not fit.
    """
    directory = RunDirectory(folder)
    config, pool = components.config, components.config.model.head.pooling
    unfrozen = config.regime.unfrozen_blocks if components.regime is finetune else "all"
    network_split = split_network(components.backbone, 0 if components.regime is bottleneck else unfrozen, pool)
    head = components.head(len(dataset.classes))
    weights = {"head": head, "backbone": components.backbone.model, "unfrozen": network_split.trainable_part}
    for name, model in weights.items():  # A sweep's job saves only the weights that it has trained.
        path = directory.weights(name)
        if name == "head" or path.is_file():
            load_backbone(model, path, "sweep.trained")
    for record in (history := tuple(directory.epochs())):
        context.record(record)
    scored = dataset.scored(config.evaluate.test)
    if network_split.frozen:
        extract(components, [FeatureRequest(network_split, images) for images in scored], context.progress)
    model = stack(network_split.trainable_part, head, training=False)
    scores = {
        images.split: predict_probabilities(model, activations(components, network_split, images, context.progress))
        for images in scored
    }
    source = {"head_source": f"the weights of {folder}"} if components.regime is finetune else {}
    return TrainingResult(join(components.backbone, pool, head), history, scores, {"evaluated": str(folder), **source})


def facts_of(folder: Path, identity: str) -> dict[str, Any]:
    """Return what a run directory records about its training: `seconds` (metric -> value) and `warnings`.

    Raises:
        ConfigError: the directory does not hold a finished run of this identity.
    """
    directory = RunDirectory(folder)
    metrics, facts = directory.finished(identity), directory.facts()
    if metrics is None or facts is None:
        raise ConfigError(
            f"sweep.trained: must be the folder of a finished run with the identity {identity}. Received: {folder}, "
            "which does not hold it. Give the sweep's command again"
        )
    seconds = {name: metrics[name] for name in ("total_seconds", "fit_seconds") if name in metrics}
    return {"seconds": seconds, "warnings": facts.get("warnings", [])}
