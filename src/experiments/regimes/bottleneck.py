"""The head trained on stored activations of the frozen backbone."""

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
from experiments.training.types import EpochRecord, RunComponents, TrainingContext, TrainingPhase, TrainingResult


class TrainedHead(NamedTuple):
    model: keras.Model  # pooled features [B, D] -> logits
    history: tuple[EpochRecord, ...]


def bottleneck(parts: RunComponents, splits: Dataset, watch: TrainingContext) -> TrainingResult:
    """Runs every picture through the frozen backbone once, trains the head on what comes out, joins the two.

    The tutorial's second experiment: no augmentation, the order of pictures kept in the store. The trained head goes
    to the head cache, where fine-tuning finds it.
    """
    config = parts.config
    frozen = split_network(parts.backbone, 0, config.model.head.pooling)
    scored = splits.scored(config.evaluate.test)
    extract(parts, wants(parts, splits, frozen), watch.progress)
    head = train_head(parts, splits, watch, config, parts.recipe, frozen)
    scores = {
        pictures.split: predict_probabilities(head.model, activations(parts, frozen, pictures, watch.progress))
        for pictures in scored
    }
    return TrainingResult(join(parts.backbone, config.model.head.pooling, head.model), head.history, scores)


def wants(parts: RunComponents, splits: Dataset, frozen: NetworkSplit) -> list[FeatureRequest]:
    """What such a run reads from the store."""
    return [FeatureRequest(frozen, pictures) for pictures in (splits.train, *splits.scored(parts.config.evaluate.test))]


def train_head(
    parts: RunComponents,
    splits: Dataset,
    watch: TrainingContext,
    config: Config,
    recipe: TrainingPhase,
    frozen: NetworkSplit,
) -> TrainedHead:
    """A fresh head trained on the backbone's pooled features, saved in the head cache.

    Args:
        config: the bottleneck run: its own configuration, or what `schema.head_run` makes of a fine-tuning run's.
        recipe: how that configuration trains.
        frozen: the backbone cut above its last block.
    """
    head = parts.head(len(splits.classes))
    features = activations(parts, frozen, splits.train, watch.progress)
    validation = activations(parts, frozen, splits.validation, watch.progress)
    history = fit(
        stack(frozen.suffix, head, training=False),
        feature_batches(
            [features], splits.train.labels,
            batch_size=config.batch_size, seed=config.seed, epochs=watch.remaining("head", recipe.epochs),
        ),
        eval_batches(validation, splits.validation.labels, config.batch_size),
        recipe=recipe,
        classes=splits.classes,
        phase="head",
        first_step=0,
        watch=watch,
    )  # fmt: skip
    checkpoints.save(head_folder(parts, splits, config), head, history)
    return TrainedHead(head, history)


def cached_head(parts: RunComponents, splits: Dataset, config: Config) -> TrainedHead | None:
    """The head that a run of this identity trained earlier, with its history."""
    head = parts.head(len(splits.classes))
    history = checkpoints.load(head_folder(parts, splits, config), head)
    return None if history is None else TrainedHead(head, history)


def head_folder(parts: RunComponents, splits: Dataset, config: Config) -> Path:
    """Where a head is kept: by the run that trains it, and what the pixels and numbers come from."""
    made_by = {
        "run": parts.identity(config, splits.fingerprint), "decoder": decoder.VERSION, "forward": network.VERSION,
        "fit": VERSION, "versions": versions(),
    }  # fmt: skip
    return parts.cache / "heads" / array_cache.key(made_by)
