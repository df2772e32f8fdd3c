"""The regime `finetune`: the backbone's last stages trained together with an already trained head."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.config.identity import head_run
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
from experiments.training.types import PhaseName, RunComponents, TrainingContext, TrainingResult


def finetune(components: RunComponents, dataset: Dataset, context: TrainingContext) -> TrainingResult:
    """Unfreeze the last stages and train them with the head (the tutorial's third experiment).

    Fine-tuning never starts with an untrained head, whose large gradients would destroy the pretrained weights of the
    stages. The frozen part runs once for each image (and augmented view), and its features are cached. The backbone is
    called with training=False: BatchNorm statistics stay fixed, and dropout or drop-path inside the backbone is off.
    """
    config = components.config
    pool = config.model.head.pooling
    frozen, network_split = (
        split_network(components.backbone, 0, pool),
        split_network(components.backbone, config.regime.unfrozen_blocks, pool),
    )
    scored = dataset.scored(config.evaluate.test)
    views = stored_views(components, network_split)
    known = find_trained_head(components, dataset, context)

    # One pass over the images computes all features; the calls below read them from the feature cache.
    extract(
        components,
        feature_requests(components, dataset, network_split, frozen if known is None else None),
        context.progress,
    )

    head, source = known or train_new_head(components, dataset, context, frozen)
    network_split.frozen_part.trainable = False
    network_split.trainable_part.trainable = True
    model = stack(network_split.trainable_part, head.model, training=False)
    inputs = {images.split: activations(components, network_split, images, context.progress) for images in scored}
    head_scores = predict_probabilities(model, inputs["validation"])
    history = fit(
        model,
        training_batches(components, dataset, context, network_split, views),
        eval_batches(inputs["validation"], dataset.validation.labels, config.batch_size),
        recipe=components.recipe,
        classes=dataset.classes,
        phase=PhaseName.FINETUNE,
        first_step=len(head.history),
        context=context,
        rate_factors=rate_factors(components.backbone, config.regime.lr_decay),
    )
    scores = {split: predict_probabilities(model, rows) for split, rows in inputs.items()}
    joined = join(components.backbone, pool, head.model)
    return TrainingResult(joined, head.history + history, scores, {"head_source": source}, head_scores)


def feature_requests(
    components: RunComponents, dataset: Dataset, network_split: NetworkSplit, frozen: NetworkSplit | None
) -> list[FeatureRequest]:
    """Return the features that a fine-tuning run reads from the feature cache.

    Args:
        network_split: the backbone with its split point before the first unfrozen block.
        frozen: the backbone with its split point after the last block, if the head is still to be trained; else None.
    """
    found = []
    if network_split.frozen:
        found += [FeatureRequest(network_split, images) for images in dataset.scored(components.config.evaluate.test)]
        found += [
            FeatureRequest(network_split, dataset.train, view) for view in stored_views(components, network_split)
        ]
    return found + [FeatureRequest(frozen, images) for images in (dataset.train, dataset.validation) if frozen]


def train_new_head(
    components: RunComponents, dataset: Dataset, context: TrainingContext, frozen: NetworkSplit
) -> tuple[TrainedHead, str]:
    """Train the head under a lock, so that concurrent runs train it once.

    Returns:
        The head and a description of its origin. If another run has trained the same head while this one was waiting
        for the lock, it is the head from the head cache.
    """
    config = head_run(components.config)
    with writing(components.cache, "heads", head_folder(components, dataset, config).name):
        found = find_trained_head(components, dataset, context)
        return found or (
            train_head(components, dataset, context, config, components.head_recipe, frozen),
            "trained in this run",
        )


def find_trained_head(
    components: RunComponents, dataset: Dataset, context: TrainingContext
) -> tuple[TrainedHead, str] | None:
    """Load the head of the run that `regime.head_from` names, or the one in the head cache.

    The history of a cached head is logged as part of this run.

    Returns:
        The head and a description of its origin; None if the head is still to be trained.
    """
    config = components.config
    if components.head_file is not None:
        head = components.head(len(dataset.classes))
        load_backbone(head, components.head_file, "regime.head_from")
        return TrainedHead(head, ()), f"run {config.regime.head_from}"
    cached = cached_head(components, dataset, head_run(config))
    if cached is None:
        return None
    for record in cached.history:
        context.record(record)
    return cached, "head cache"


def stored_views(components: RunComponents, network_split: NetworkSplit) -> list[int | None]:
    """Return the views of the training images whose features are cached: at most one per epoch.

    Without augmentation this is [None], the unaugmented images. The list is empty if images are augmented anew in every
    epoch: with `regime.views=0`, and if nothing is frozen, as caching would save nothing then.
    """
    if not network_split.frozen:
        return []
    if isinstance(components.augmentation, Identity) and not components.extra_layers:
        return [None]
    return list(range(min(components.config.regime.views, components.config.epochs)))


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
    components: RunComponents,
    dataset: Dataset,
    context: TrainingContext,
    network_split: NetworkSplit,
    views: Sequence[int | None],
) -> Batches:
    """Return training batches of features at the split point.

    They come from the cached views in turn or, if `views` is empty, from images that are augmented anew in every epoch.
    """
    config = components.config
    epochs = context.remaining(PhaseName.FINETUNE, config.epochs)
    if views:
        return feature_batches(
            [activations(components, network_split, dataset.train, context.progress, view) for view in views],
            dataset.train.labels,
            batch_size=config.batch_size,
            seed=config.seed,
            epochs=epochs,
        )
    fresh = image_batches(
        dataset.train,
        classes=len(dataset.classes),
        augmentation=components.augmentation,
        extra_layers=components.extra_layers,
        batch_size=config.batch_size,
        seed=config.seed,
        epochs=epochs,
    )
    if not network_split.frozen:
        return fresh
    return map_features(
        fresh, inference_function(network_split.frozen_part), network_split.frozen_part.output_shape[1:]
    )
