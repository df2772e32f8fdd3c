"""The last blocks trained together with a head that is trained already."""

from __future__ import annotations

from typing import Any

from experiments.activations import activations
from experiments.augmentation import Identity
from experiments.data.pipeline import Batches, in_order, picture_batches, stored_batches, through
from experiments.fit import fit
from experiments.models.network import Cut, cut, join, load, score, stack
from experiments.regimes.bottleneck import TrainedHead, cached_head, train_head
from experiments.schema import head_run
from experiments.types import Fitted, Parts, Splits, Watch


def finetune(parts: Parts, splits: Splits, watch: Watch) -> Fitted:
    """Unfreezes the last blocks by name and trains them and the head in small steps (the tutorial's third experiment).

    It never starts on an untrained head, whose large gradients would spoil the blocks. What lies below the first
    unfrozen block is run once a picture (and augmented view) and stored. The backbone is called with training=False:
    BatchNorm statistics stay fixed, and dropout or drop-path inside the backbone is off.
    """
    config = parts.config
    pool = config.model.head.pooling
    head, facts = obtain_head(parts, splits, watch)
    boundary = cut(parts.backbone, config.regime.unfrozen_blocks, pool)
    boundary.prefix.trainable = False
    boundary.suffix.trainable = True
    model = stack(boundary.suffix, head.model, training=False)

    inputs = {
        pictures.split: activations(parts, boundary, pictures, watch.progress)
        for pictures in splits.scored(config.evaluate.test)
    }
    history = fit(
        model,
        training_batches(parts, splits, watch, boundary),
        in_order(inputs["validation"], splits.validation.labels, config.batch_size),
        recipe=parts.recipe,
        classes=splits.classes,
        phase="finetune",
        first_step=len(head.history),
        watch=watch,
    )
    scores = {split: score(model, rows) for split, rows in inputs.items()}
    return Fitted(join(parts.backbone, pool, head.model), head.history + history, scores, facts)


def obtain_head(parts: Parts, splits: Splits, watch: Watch) -> tuple[TrainedHead, dict[str, Any]]:
    """The trained head: of the run `regime.head_from` names, from the head cache, or trained here as `bottleneck` does.

    Returns:
        The head, and where it came from.
    """
    config = parts.config
    if parts.head_file is not None:
        head = parts.head(len(splits.classes))
        load(head, parts.head_file, "regime.head_from")
        return TrainedHead(head, ()), {"head_source": f"run {config.regime.head_from}"}
    bottleneck_run = head_run(config)
    cached = cached_head(parts, splits, bottleneck_run)
    if cached is not None:
        for record in cached.history:
            watch.record(record)
        return cached, {"head_source": "head cache"}
    frozen = cut(parts.backbone, 0, config.model.head.pooling)
    head = train_head(parts, splits, watch, bottleneck_run, parts.head_recipe, frozen)
    return head, {"head_source": "trained in this run"}


def training_batches(parts: Parts, splits: Splits, watch: Watch, boundary: Cut) -> Batches:
    """Training pictures at the boundary: stored views in turn, or (regime.views=0) fresh ones every epoch."""
    config = parts.config
    epochs = range(config.epochs)
    plain = isinstance(parts.augmentation, Identity) and not parts.extra_layers
    if config.regime.views or plain:
        # No more than the epochs will read.
        views = [None] if plain else list(range(min(config.regime.views, config.epochs)))
        return stored_batches(
            [activations(parts, boundary, splits.train, watch.progress, view) for view in views],
            splits.train.labels,
            batch_size=config.batch_size,
            seed=config.seed,
            epochs=epochs,
        )
    fresh = picture_batches(
        splits.train,
        classes=len(splits.classes),
        augmentation=parts.augmentation,
        extra_layers=parts.extra_layers,
        batch_size=config.batch_size,
        seed=config.seed,
        epochs=epochs,
    )
    return through(fresh, boundary.prefix)
