"""The regime `bottleneck`: a head trained on cached features of the frozen backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from experiments.config.identity import effective, head_run
from experiments.config.targets import own_code
from experiments.data.input_pipeline import eval_batches, feature_batches
from experiments.data.types import Dataset
from experiments.images import decoder
from experiments.models import network
from experiments.models.network import NetworkSplit, join, predict_probabilities, split_network, stack
from experiments.regimes.declaration import Declaration, Trains, declare
from experiments.regimes.feature_cache import FeatureRequest, cached_features, extract, versions
from experiments.storage import array_cache
from experiments.training import checkpoints
from experiments.training.fit import VERSION, fit
from experiments.training.types import (
    EpochRecord,
    PhaseInputs,
    PhaseName,
    RunComponents,
    TrainingContext,
    TrainingResult,
)

TRAINED_HERE = "trained in this run"  # the source of a head


class TrainedHead(NamedTuple):
    model: keras.Model  # pooled features [B, D] -> logits
    history: tuple[EpochRecord, ...]
    source: str  # where it comes from, for the run's facts


def frozen_backbone(components: RunComponents) -> NetworkSplit:
    """Return the backbone with its split point after the last block, so that all of it is frozen."""
    return split_network(components.backbone, 0, components.config.model.head.pooling)


def feature_requests(components: RunComponents, dataset: Dataset) -> list[FeatureRequest]:
    """Return the features that a bottleneck run reads from the feature cache."""
    frozen = frozen_backbone(components)
    scored = dataset.scored(components.config.evaluate.test)
    return [FeatureRequest(frozen, images) for images in (dataset.train, *scored)]


def head_inputs(components: RunComponents, dataset: Dataset, context: TrainingContext) -> PhaseInputs:
    """Return a new head, and batches of the training images' pooled features."""
    config, frozen = components.config, frozen_backbone(components)
    features = cached_features(components, frozen, dataset.train, context.progress)
    validation = cached_features(components, frozen, dataset.validation, context.progress)
    epochs = context.remaining(PhaseName.HEAD, config.epochs)
    return PhaseInputs(
        PhaseName.HEAD,
        stack(frozen.trainable_part, components.head(len(dataset.classes)), training=False),
        feature_batches(
            [features], dataset.train.labels, batch_size=config.batch_size, seed=config.seed, epochs=epochs
        ),
        eval_batches(validation, dataset.validation.labels, config.batch_size),
        dataset.classes,
    )


@declare(Declaration(feature_requests, Trains.HEAD, last_phase=PhaseName.HEAD, prepare=head_inputs))
def bottleneck(components: RunComponents, dataset: Dataset, context: TrainingContext) -> TrainingResult:
    """Run every image through the frozen backbone once, train the head on its features, and join the two.

    This is the tutorial's second experiment: there is no augmentation, and the feature cache keeps the order of the
    images. The trained head is saved in the head cache, from which fine-tuning loads it.
    """
    extract(components, feature_requests(components, dataset), context.progress)
    head = train_head(components, dataset, context)
    folder = head_folder(components, dataset)
    # A run that obtains the lock removes what is being written, see `writing`.
    with array_cache.writing(components.cache, "heads", folder.name):
        checkpoints.save(folder, head.model, head.history)
    frozen = frozen_backbone(components)
    scores = predict_splits(components, dataset, context, frozen, head.model)
    # The training images' features are those of the images themselves, so that their scores cost next to nothing.
    trained = predict_probabilities(head.model, cached_features(components, frozen, dataset.train, context.progress))
    joined = join(components.backbone, components.config.model.head.pooling, head.model)
    return TrainingResult(joined, head.history, {**scores, "train": trained})


def predict_splits(
    components: RunComponents, dataset: Dataset, context: TrainingContext, network_split: NetworkSplit,
    model: keras.Model,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return the probabilities [N, classes] float32 of every evaluated split, by its name.

    Args:
        network_split: its frozen part computes the features, which the feature cache keeps.
        model: features at the split point -> logits.
    """
    return {
        images.split: predict_probabilities(model, cached_features(components, network_split, images, context.progress))
        for images in dataset.scored(components.config.evaluate.test)
    }


def head_components(components: RunComponents) -> RunComponents:
    """Return the components of the bottleneck run that trains the head of a fine-tuning run."""
    return replace(components, config=head_run(components.config), phase=components.head_phase)


def train_head(components: RunComponents, dataset: Dataset, context: TrainingContext) -> TrainedHead:
    """Train a new head on the backbone's pooled features."""
    inputs = head_inputs(components, dataset, context)
    history = fit(inputs, components.phase, context)
    return TrainedHead(inputs.model.get_layer("head"), history, TRAINED_HERE)


def cached_head(components: RunComponents, dataset: Dataset) -> TrainedHead | None:
    """Return the head that an earlier run of this identity has trained, with its history; None if there is none."""
    head = components.head(len(dataset.classes))
    history = checkpoints.load(head_folder(components, dataset), head)
    return None if history is None else TrainedHead(head, history, "head cache")


def head_folder(components: RunComponents, dataset: Dataset) -> Path:
    """Return the directory of a bottleneck run's head in the head cache.

    Its name is a hash of the identity of the run and of all code versions that affect the head's weights.
    """
    config = components.config
    made_by = {
        "run": components.identity(config, dataset.fingerprint), "decoder": decoder.VERSION, "forward": network.VERSION,
        "fit": VERSION, "versions": versions(), **own_code(config.trusted_packages, effective(config)),
    }  # fmt: skip
    return components.cache / "heads" / array_cache.key(made_by)
