"""The head trained on stored activations of the frozen backbone."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import keras

from experiments import checkpoints, store
from experiments.activations import Want, activations, extract, versions
from experiments.data import decoder
from experiments.data.pipeline import in_order, stored_batches
from experiments.fit import VERSION, fit
from experiments.models import network
from experiments.models.network import Cut, cut, join, score, stack
from experiments.schema import Config
from experiments.types import EpochRecord, Fitted, Parts, Recipe, Splits, Watch


class TrainedHead(NamedTuple):
    model: keras.Model  # pooled features [B, D] -> logits
    history: tuple[EpochRecord, ...]


def bottleneck(parts: Parts, splits: Splits, watch: Watch) -> Fitted:
    """Runs every picture through the frozen backbone once, trains the head on what comes out, joins the two.

    The tutorial's second experiment: no augmentation, the order of pictures kept in the store. The trained head goes
    to the head cache, where fine-tuning finds it.
    """
    config = parts.config
    frozen = cut(parts.backbone, 0, config.model.head.pooling)
    scored = splits.scored(config.evaluate.test)
    extract(parts, wants(parts, splits, frozen), watch.progress)
    head = train_head(parts, splits, watch, config, parts.recipe, frozen)
    scores = {
        pictures.split: score(head.model, activations(parts, frozen, pictures, watch.progress)) for pictures in scored
    }
    return Fitted(join(parts.backbone, config.model.head.pooling, head.model), head.history, scores)


def wants(parts: Parts, splits: Splits, frozen: Cut) -> list[Want]:
    """What such a run reads from the store."""
    return [Want(frozen, pictures) for pictures in (splits.train, *splits.scored(parts.config.evaluate.test))]


def train_head(parts: Parts, splits: Splits, watch: Watch, config: Config, recipe: Recipe, frozen: Cut) -> TrainedHead:
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
        stored_batches(
            [features], splits.train.labels,
            batch_size=config.batch_size, seed=config.seed, epochs=watch.remaining("head", recipe.epochs),
        ),
        in_order(validation, splits.validation.labels, config.batch_size),
        recipe=recipe,
        classes=splits.classes,
        phase="head",
        first_step=0,
        watch=watch,
    )  # fmt: skip
    checkpoints.save(head_folder(parts, splits, config), head, history)
    return TrainedHead(head, history)


def cached_head(parts: Parts, splits: Splits, config: Config) -> TrainedHead | None:
    """The head that a run of this identity trained earlier, with its history."""
    head = parts.head(len(splits.classes))
    history = checkpoints.load(head_folder(parts, splits, config), head)
    return None if history is None else TrainedHead(head, history)


def head_folder(parts: Parts, splits: Splits, config: Config) -> Path:
    """Where a head is kept: by the run that trains it, and what the pixels and numbers come from."""
    made_by = {
        "run": parts.identity(config, splits.fingerprint), "decoder": decoder.VERSION, "forward": network.VERSION,
        "fit": VERSION, "versions": versions(),
    }  # fmt: skip
    return parts.cache / "heads" / store.key(made_by)
