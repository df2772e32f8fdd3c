"""The regime `finetune`: the backbone's last stages trained together with an already trained head."""

from __future__ import annotations

from experiments.data.augmentation import Identity
from experiments.data.input_pipeline import Batches, eval_batches, feature_batches, map_features
from experiments.data.types import Dataset
from experiments.models import stages
from experiments.models.network import (
    NetworkSplit,
    inference_function,
    join,
    load_weights,
    predict_probabilities,
    split_network,
    stack,
)
from experiments.models.stages import Backbone
from experiments.regimes.bottleneck import (
    TRAINED_HERE,
    TrainedHead,
    cached_head,
    frozen_backbone,
    head_components,
    head_folder,
    predict_splits,
    train_head,
)
from experiments.regimes.declaration import Declaration, Trains, declare
from experiments.regimes.feature_cache import FeatureRequest, cached_features, extract
from experiments.regimes.scratch import augmented_batches
from experiments.storage.array_cache import writing
from experiments.training import checkpoints
from experiments.training.fit import fit
from experiments.training.types import PhaseInputs, PhaseName, RunComponents, TrainingContext, TrainingResult


def feature_requests(components: RunComponents, dataset: Dataset) -> list[FeatureRequest]:
    """Return the features that a fine-tuning run reads from the feature cache, the head's if it is still to train."""
    config, requests = components.config, []
    network_split = split_backbone(components)
    if network_split.frozen:
        requests += [FeatureRequest(network_split, images) for images in dataset.scored(config.evaluate.test)]
        requests += [
            FeatureRequest(network_split, dataset.train, view) for view in stored_views(components, network_split)
        ]
    if not components.has_trained_head and not head_folder(head_components(components), dataset).is_dir():
        frozen = frozen_backbone(components)
        requests += [FeatureRequest(frozen, images) for images in (dataset.train, dataset.validation)]
    return requests


def split_backbone(components: RunComponents) -> NetworkSplit:
    """Return the backbone with its split point before the first unfrozen block."""
    config = components.config
    return split_network(components.backbone, config.regime.unfrozen_blocks, config.model.head.pooling)


@declare(
    Declaration(
        features=feature_requests,
        trains=Trains.UNFROZEN_BLOCKS,
        head_first=True,
        last_phase=PhaseName.FINETUNE,
        prepare=lambda components, dataset, context: prepare(components, dataset, context)[1],
    )
)
def finetune(components: RunComponents, dataset: Dataset, context: TrainingContext) -> TrainingResult:
    """Unfreeze the last stages and train them with the head (the tutorial's third experiment).

    Fine-tuning never starts with an untrained head, whose large gradients would destroy the pretrained weights of the
    stages. The frozen part runs once for each image (and augmented view), and its features are cached. The backbone is
    called with training=False: BatchNorm statistics stay fixed, and dropout or drop-path inside the backbone is off.
    """
    head, inputs = prepare(components, dataset, context)
    network_split = split_backbone(components)
    validation = cached_features(components, network_split, dataset.validation, context.progress)
    # The weights of a continued run come with its first checkpoint, and not from its head phase.
    head_scores = None if components.continued else predict_probabilities(inputs.model, validation)
    history = fit(inputs, components.phase, context)
    scores = predict_splits(components, dataset, context, network_split, inputs.model)
    joined = join(components.backbone, components.config.model.head.pooling, head.model)
    return TrainingResult(joined, head.history + history, scores, {"head_source": head.source}, head_scores)


def prepare(components: RunComponents, dataset: Dataset, context: TrainingContext) -> tuple[TrainedHead, PhaseInputs]:
    """Find or train the head, and return it with the phase that trains it together with the unfrozen stages."""
    config = components.config
    known = find_trained_head(components, dataset, context)
    # One pass over the images computes all features; the calls below read them from the feature cache.
    extract(components, feature_requests(components, dataset), context.progress)
    head = known or train_new_head(components, dataset, context)
    network_split = split_backbone(components)
    network_split.frozen_part.trainable = False
    network_split.trainable_part.trainable = True
    validation = cached_features(components, network_split, dataset.validation, context.progress)
    return head, PhaseInputs(
        PhaseName.FINETUNE,
        stack(network_split.trainable_part, head.model, training=False),
        training_batches(components, dataset, context, network_split),
        eval_batches(validation, dataset.validation.labels, config.batch_size),
        dataset.classes,
        first_step=len(head.history),
        rate_factors=rate_factors(components.backbone, config.regime.lr_decay),
    )


def train_new_head(components: RunComponents, dataset: Dataset, context: TrainingContext) -> TrainedHead:
    """Train the head under a lock, so that concurrent runs train it once, and save it in the head cache.

    If another run has trained the same head while this one was waiting for the lock, it is loaded from the head cache.
    """
    of_head = head_components(components)
    folder = head_folder(of_head, dataset)
    with writing(components.cache, "heads", folder.name):
        head = find_trained_head(components, dataset, context)
        if head is None:
            head = train_head(of_head, dataset, context)
            checkpoints.save(folder, head.model, head.history)
    return head


def find_trained_head(components: RunComponents, dataset: Dataset, context: TrainingContext) -> TrainedHead | None:
    """Load the head of the run that `regime.head_from` names, or the one in the head cache.

    The history of a cached head is logged as part of this run. Of a run that is continued, the head phase is not
    repeated: its history is logged, and `fit` restores the weights of the head. Return None if the head is still to be
    trained.
    """
    if components.continued is not None:
        history = tuple(record for record in components.continued.epochs() if record.phase == PhaseName.HEAD)
        for record in history:
            context.record(record)
        return TrainedHead(components.head(len(dataset.classes)), history, "the continued run")
    if components.head_file is not None:
        head = components.head(len(dataset.classes))
        load_weights(head, components.head_file, "regime.head_from")
        return TrainedHead(head, (), f"run {components.config.regime.head_from}")
    of_head = head_components(components)
    cached = cached_head(of_head, dataset)
    if cached is None:
        return None
    for record in cached.history:
        context.record(record)
    # A checkpoint of the whole head phase shows that this run has trained the head, before it was interrupted.
    is_own = not context.remaining(PhaseName.HEAD, of_head.config.epochs)
    return cached._replace(source=TRAINED_HERE) if is_own else cached


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
    components: RunComponents, dataset: Dataset, context: TrainingContext, network_split: NetworkSplit
) -> Batches:
    """Return training batches of features at the split point.

    They come from the cached views in turn or, if there are none, from images that are augmented anew in every epoch.
    """
    config = components.config
    epochs = context.remaining(PhaseName.FINETUNE, config.epochs)
    if views := stored_views(components, network_split):
        tables = [cached_features(components, network_split, dataset.train, context.progress, view) for view in views]
        return feature_batches(
            tables, dataset.train.labels, batch_size=config.batch_size, seed=config.seed, epochs=epochs
        )
    fresh = augmented_batches(components, dataset, epochs)
    if not network_split.frozen:
        return fresh
    return map_features(
        fresh, inference_function(network_split.frozen_part), network_split.frozen_part.output_shape[1:]
    )
