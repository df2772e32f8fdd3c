"""The regime `bottleneck`: a head trained on cached features of the frozen backbone."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import keras

from experiments.config.schema import Config
from experiments.data import decoder
from experiments.data.input_pipeline import eval_batches, feature_batches
from experiments.data.types import Dataset
from experiments.models import network
from experiments.models.network import NetworkSplit, join, predict_probabilities, split_network, stack
from experiments.regimes.feature_cache import FeatureRequest, activations, extract, versions
from experiments.storage import array_cache
from experiments.training import checkpoints
from experiments.training.fit import VERSION, fit
from experiments.training.types import (
    EpochRecord,
    PhaseName,
    RunComponents,
    TrainingContext,
    TrainingPhase,
    TrainingResult,
)


class TrainedHead(NamedTuple):
    model: keras.Model  # pooled features [B, D] -> logits
    history: tuple[EpochRecord, ...]


def bottleneck(components: RunComponents, dataset: Dataset, context: TrainingContext) -> TrainingResult:
    """Run every image through the frozen backbone once, train the head on its features, and join the two.

    This is the tutorial's second experiment: there is no augmentation, and the feature cache keeps the order of the
    images. The trained head is saved in the head cache, from which fine-tuning loads it.
    """
    config = components.config
    frozen = split_network(components.backbone, 0, config.model.head.pooling)
    scored = dataset.scored(config.evaluate.test)
    extract(components, feature_requests(components, dataset, frozen), context.progress)
    head = train_head(components, dataset, context, config, components.recipe, frozen)
    scores = {
        images.split: predict_probabilities(head.model, activations(components, frozen, images, context.progress))
        for images in scored
    }
    return TrainingResult(join(components.backbone, config.model.head.pooling, head.model), head.history, scores)


def feature_requests(components: RunComponents, dataset: Dataset, frozen: NetworkSplit) -> list[FeatureRequest]:
    """Return the features that a bottleneck run reads from the feature cache."""
    return [
        FeatureRequest(frozen, images) for images in (dataset.train, *dataset.scored(components.config.evaluate.test))
    ]


def train_head(
    components: RunComponents,
    dataset: Dataset,
    context: TrainingContext,
    config: Config,
    recipe: TrainingPhase,
    frozen: NetworkSplit,
) -> TrainedHead:
    """Train a new head on the backbone's pooled features and save it in the head cache.

    Args:
        config: the configuration of the bottleneck run; in a fine-tuning run, the one that `schema.head_run` derives
            from it.
        recipe: the training phase that this configuration describes.
        frozen: the backbone with its split point after the last block, so that all of it is frozen.
    """
    head = components.head(len(dataset.classes))
    features = activations(components, frozen, dataset.train, context.progress)
    validation = activations(components, frozen, dataset.validation, context.progress)
    history = fit(
        stack(frozen.trainable_part, head, training=False),
        feature_batches(
            [features], dataset.train.labels,
            batch_size=config.batch_size, seed=config.seed, epochs=context.remaining(PhaseName.HEAD, recipe.epochs),
        ),
        eval_batches(validation, dataset.validation.labels, config.batch_size),
        recipe=recipe,
        classes=dataset.classes,
        phase=PhaseName.HEAD,
        first_step=0,
        context=context,
    )  # fmt: skip
    checkpoints.save(head_folder(components, dataset, config), head, history)
    return TrainedHead(head, history)


def cached_head(components: RunComponents, dataset: Dataset, config: Config) -> TrainedHead | None:
    """Return the head that an earlier run of this identity has trained, with its history; None if there is none."""
    head = components.head(len(dataset.classes))
    history = checkpoints.load(head_folder(components, dataset, config), head)
    return None if history is None else TrainedHead(head, history)


def head_folder(components: RunComponents, dataset: Dataset, config: Config) -> Path:
    """Return a head's directory in the head cache.

    Its name is a hash of the identity of the run that trains the head and of all code versions that affect its weights.
    """
    made_by = {
        "run": components.identity(config, dataset.fingerprint), "decoder": decoder.VERSION, "forward": network.VERSION,
        "fit": VERSION, "versions": versions(),
    }  # fmt: skip
    return components.cache / "heads" / array_cache.key(made_by)
