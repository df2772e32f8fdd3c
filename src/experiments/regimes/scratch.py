"""The regime `scratch`: the network trained end to end from random weights."""

from __future__ import annotations

import keras

from experiments.data.input_pipeline import Batches, eval_batches, image_batches
from experiments.data.types import Dataset
from experiments.models.network import join, pooled, predict_probabilities, stack
from experiments.regimes.declaration import Declaration, Trains, declare
from experiments.system.private_api import flatten_layers
from experiments.training.fit import fit
from experiments.training.types import PhaseInputs, PhaseName, RunComponents, TrainingContext, TrainingResult

# Unless regime.batch_norm_momentum is set, a run lasts at least this many time constants of the moving statistics.
TIME_CONSTANTS = 20


def augmented_batches(components: RunComponents, dataset: Dataset, epochs: range) -> Batches:
    """Return batches of the training images, augmented anew in every epoch."""
    return image_batches(
        dataset.train,
        classes=len(dataset.classes),
        augmentation=components.augmentation,
        extra_layers=components.extra_layers,
        batch_size=components.config.batch_size,
        seed=components.config.seed,
        epochs=epochs,
    )


def prepare(components: RunComponents, dataset: Dataset, context: TrainingContext) -> PhaseInputs:
    """Return the network with a new head, and batches of images that are augmented anew in every epoch."""
    config = components.config
    head = components.head(len(dataset.classes))
    model = stack(pooled(components.backbone, config.model.head.pooling), head, training=None)
    batches = augmented_batches(components, dataset, context.remaining(PhaseName.SCRATCH, config.epochs))
    follow_batches(model, config.regime.batch_norm_momentum, config.epochs * batches.steps)
    validation = eval_batches(dataset.validation.pixels, dataset.validation.labels, config.batch_size)
    return PhaseInputs(PhaseName.SCRATCH, model, batches, validation, dataset.classes)


@declare(Declaration(trains=Trains.ALL, last_phase=PhaseName.SCRATCH, prepare=prepare))
def scratch(components: RunComponents, dataset: Dataset, context: TrainingContext) -> TrainingResult:
    """Train backbone and head together on images that are augmented anew in every epoch.

    This is the tutorial's first experiment. BatchNorm statistics follow the batches during training, see
    `follow_batches`. The weights are random at the start: `build` loads none for this regime.
    """
    config = components.config
    inputs = prepare(components, dataset, context)
    history = fit(inputs, components.phase, context)
    scores = {
        images.split: predict_probabilities(inputs.model, images.pixels)
        for images in dataset.scored(config.evaluate.test)
    }
    joined = join(components.backbone, config.model.head.pooling, inputs.model.get_layer("head"))
    return TrainingResult(joined, history, scores)


def follow_batches(model: keras.Model, momentum: float | None, steps: int) -> None:
    """Set the momentum of a network's batch normalisation, that is how fast its moving statistics follow the batches.

    Validation uses the moving statistics. With Keras's momentum of 0.99 (0.999 in MobileNet) they need hundreds of
    steps to leave their initial values, so a short training would be validated with statistics that describe no image.

    Args:
        momentum: the share of the old value in the new one. None keeps the network's own momentum, limited so that a
            time constant, 1 / (1 - momentum) steps, is at most a twentieth of the training.
        steps: the number of batches of the whole training.
    """
    for layer in flatten_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            longest = max(0.0, 1 - TIME_CONSTANTS / steps)
            layer.momentum = min(layer.momentum, longest) if momentum is None else momentum
