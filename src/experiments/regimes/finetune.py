"""The regime `finetune`: the backbone's last stages trained together with an already trained head."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.config.schema import head_run
from experiments.data.augmentation import Identity
from experiments.data.input_pipeline import Batches, eval_batches, feature_batches, image_batches, map_features
from experiments.data.types import Dataset
from experiments.models import stages
from experiments.models.network import (
    NetworkSplit,
    inference_function,
    join,
    load_backbone,
    predict_probabilities,
    split_network,
    stack,
)
from experiments.models.types import Backbone
from experiments.regimes.bottleneck import TrainedHead, cached_head, head_folder, train_head
from experiments.regimes.feature_cache import FeatureRequest, activations, extract
from experiments.storage.array_cache import writing
from experiments.training.fit import fit
from experiments.training.types import RunComponents, TrainingContext, TrainingResult


def finetune(parts: RunComponents, splits: Dataset, watch: TrainingContext) -> TrainingResult:
    """Unfreeze the last stages and train them with the head (the tutorial's third experiment).

    Fine-tuning never starts with an untrained head, whose large gradients would destroy the pretrained weights of the
    stages. The frozen part runs once for each image (and augmented view), and its features are cached. The backbone is
    called with training=False: BatchNorm statistics stay fixed, and dropout or drop-path inside the backbone is off.
    """
    config = parts.config
    pool = config.model.head.pooling
    frozen, boundary = (
        split_network(parts.backbone, 0, pool),
        split_network(parts.backbone, config.regime.unfrozen_blocks, pool),
    )
    scored = splits.scored(config.evaluate.test)
    views = stored_views(parts, boundary)
    known = known_head(parts, splits, watch)

    # One pass over the images computes all features; the calls below read them from the feature cache.
    extract(parts, wants(parts, splits, boundary, frozen if known is None else None), watch.progress)

    head, source = known or new_head(parts, splits, watch, frozen)
    boundary.prefix.trainable = False
    boundary.suffix.trainable = True
    model = stack(boundary.suffix, head.model, training=False)
    inputs = {images.split: activations(parts, boundary, images, watch.progress) for images in scored}
    head_scores = predict_probabilities(model, inputs["validation"])
    history = fit(
        model,
        training_batches(parts, splits, watch, boundary, views),
        eval_batches(inputs["validation"], splits.validation.labels, config.batch_size),
        recipe=parts.recipe,
        classes=splits.classes,
        phase="finetune",
        first_step=len(head.history),
        watch=watch,
        rate_factors=rate_factors(parts.backbone, config.regime.lr_decay),
    )
    scores = {split: predict_probabilities(model, rows) for split, rows in inputs.items()}
    joined = join(parts.backbone, pool, head.model)
    return TrainingResult(joined, head.history + history, scores, {"head_source": source}, head_scores)


def wants(
    parts: RunComponents, splits: Dataset, boundary: NetworkSplit, frozen: NetworkSplit | None
) -> list[FeatureRequest]:
    """Return the features that a fine-tuning run reads from the feature cache.

    Args:
        boundary: the backbone with its split point before the first unfrozen block.
        frozen: the backbone with its split point after the last block, if the head is still to be trained; else None.
    """
    found = []
    if boundary.frozen:
        found += [FeatureRequest(boundary, images) for images in splits.scored(parts.config.evaluate.test)]
        found += [FeatureRequest(boundary, splits.train, view) for view in stored_views(parts, boundary)]
    return found + [FeatureRequest(frozen, images) for images in (splits.train, splits.validation) if frozen]


def new_head(
    parts: RunComponents, splits: Dataset, watch: TrainingContext, frozen: NetworkSplit
) -> tuple[TrainedHead, str]:
    """Train the head under a lock, so that concurrent runs train it once.

    Returns:
        The head and a description of its origin. If another run has trained the same head while this one was waiting
        for the lock, it is the head from the head cache.
    """
    config = head_run(parts.config)
    with writing(parts.cache, "heads", head_folder(parts, splits, config).name):
        found = known_head(parts, splits, watch)
        return found or (
            train_head(parts, splits, watch, config, parts.head_recipe, frozen),
            "trained in this run",
        )


def known_head(parts: RunComponents, splits: Dataset, watch: TrainingContext) -> tuple[TrainedHead, str] | None:
    """Load the head of the run that `regime.head_from` names, or the one in the head cache.

    The history of a cached head is logged as part of this run.

    Returns:
        The head and a description of its origin; None if the head is still to be trained.
    """
    config = parts.config
    if parts.head_file is not None:
        head = parts.head(len(splits.classes))
        load_backbone(head, parts.head_file, "regime.head_from")
        return TrainedHead(head, ()), f"run {config.regime.head_from}"
    cached = cached_head(parts, splits, head_run(config))
    if cached is None:
        return None
    for record in cached.history:
        watch.record(record)
    return cached, "head cache"


def stored_views(parts: RunComponents, boundary: NetworkSplit) -> list[int | None]:
    """Return the views of the training images whose features are cached: at most one per epoch.

    Without augmentation this is [None], the unaugmented images. The list is empty if images are augmented anew in every
    epoch: with `regime.views=0`, and if nothing is frozen, as caching would save nothing then.
    """
    if not boundary.frozen:
        return []
    if isinstance(parts.augmentation, Identity) and not parts.extra_layers:
        return [None]
    return list(range(min(parts.config.regime.views, parts.config.epochs)))


def rate_factors(backbone: Backbone, decay: float) -> dict[int, float]:
    """Return the factors of the learning rate that differ from 1, by the `id` of the variable.

    Early stages compute general features and should change least (discriminative learning rates: Howard and Ruder 2018,
    ULMFiT; layer-wise decay: Bao et al. 2022, BEiT).

    Args:
        decay: the learning rate of a stage divided by that of the next stage; the last stage keeps the full rate.
    """
    numbers = stages.stage_numbers(backbone.model, backbone.stages)
    last = len(backbone.stages) - 1
    return {
        id(variable): decay ** (last - max(numbers[layer.name], 0))
        for layer in backbone.model.layers
        for variable in layer.trainable_variables
        if decay != 1 and numbers[layer.name] < last
    }


def training_batches(
    parts: RunComponents, splits: Dataset, watch: TrainingContext, boundary: NetworkSplit, views: Sequence[int | None]
) -> Batches:
    """Return training batches of features at the split point.

    They come from the cached views in turn or, if `views` is empty, from images that are augmented anew in every epoch.
    """
    config = parts.config
    epochs = watch.remaining("finetune", config.epochs)
    if views:
        return feature_batches(
            [activations(parts, boundary, splits.train, watch.progress, view) for view in views],
            splits.train.labels,
            batch_size=config.batch_size,
            seed=config.seed,
            epochs=epochs,
        )
    fresh = image_batches(
        splits.train,
        classes=len(splits.classes),
        augmentation=parts.augmentation,
        extra_layers=parts.extra_layers,
        batch_size=config.batch_size,
        seed=config.seed,
        epochs=epochs,
    )
    if not boundary.frozen:
        return fresh
    return map_features(fresh, inference_function(boundary.prefix), boundary.prefix.output_shape[1:])
