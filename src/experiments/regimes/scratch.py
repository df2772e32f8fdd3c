"""The network trained end to end from random weights."""

from __future__ import annotations

from experiments.data.pipeline import in_order, picture_batches
from experiments.fit import fit
from experiments.models.network import join, pooled, score, stack
from experiments.types import Fitted, Parts, Splits, Watch


def scratch(parts: Parts, splits: Splits, watch: Watch) -> Fitted:
    """Trains backbone and head together on freshly augmented pictures (the tutorial's first experiment).

    BatchNorm statistics follow the batches while training. The weights start random: build loads none for this regime.
    """
    config = parts.config
    pool = config.model.head.pooling
    head = parts.head(len(splits.classes))
    model = stack(pooled(parts.backbone, pool), head, training=None)
    history = fit(
        model,
        picture_batches(
            splits.train,
            classes=len(splits.classes),
            augmentation=parts.augmentation,
            extra_layers=parts.extra_layers,
            batch_size=config.batch_size,
            seed=config.seed,
            epochs=watch.remaining("scratch", config.epochs),
        ),
        in_order(splits.validation.pixels, splits.validation.labels, config.batch_size),
        recipe=parts.recipe,
        classes=splits.classes,
        phase="scratch",
        first_step=0,
        watch=watch,
    )
    scores = {pictures.split: score(model, pictures.pixels) for pictures in splits.scored(config.evaluate.test)}
    return Fitted(join(parts.backbone, pool, head), history, scores)
