"""What the rooms hand to each other. Plain data, no behaviour beyond what follows from it, no TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import keras
    import numpy as np

    from experiments.config.schema import Config
    from experiments.data.types import Augmentation, Dataset
    from experiments.models.types import Backbone
    from experiments.training.checkpoints import Checkpoints


class Tried(Exception):
    """A range test has ended this run: the loss of every batch it took, at the learning rate that the batch had."""

    def __init__(self, losses: Sequence[float], guessing: float, trained: bool) -> None:
        """Keep the losses, that of predicting the class frequencies, and whether a phase came before this one."""
        super().__init__(f"range test of {len(losses)} batches")
        self.losses, self.guessing, self.trained = losses, guessing, trained


EPOCH_METRICS = (
    "accuracy",
    "input_wait",  # share of the training time that it waited for batches (with regime.views=0 the frozen part's
    # forward pass is in it); not told of several devices, nor with runtime.deterministic
    "learning_rate",
    "loss",  # of the training batches, as validation_loss
    "pictures_per_second",
    "seconds",
    "total_loss",  # what the optimizer minimises: the configured loss with label smoothing, class weights, L1, L2
    "validation_accuracy",
    "validation_loss",  # cross entropy (with hinge: hinge loss) of the validation images, as the report's loss
)


@dataclass(frozen=True)
class EpochRecord:
    """One row of a run's curves."""

    step: int  # counts on over the phases: head epochs, then fine-tuning epochs
    phase: str  # scratch | head | finetune
    epoch: int  # within the phase, from 0
    timestamp: int  # milliseconds since 1970, when the epoch ended
    metrics: Mapping[str, float]  # of EPOCH_METRICS


class Progress(Protocol):
    """What a person sees while a run works."""

    def stage(self, label: str, total: int) -> AbstractContextManager[Callable[..., None]]:
        """A piece of work of `total` steps; yields `advance(steps=1, note="")`."""


@dataclass(frozen=True)
class TrainingContext:
    """Who is told how a run gets on: the person at the terminal, and the record of its curves."""

    progress: Progress
    record: Callable[[EpochRecord], None]
    checkpoints: Checkpoints | None = None  # of the run; None: none are kept
    fitting: dict[str, float] = field(default_factory=dict)  # by phase: this process's seconds in Keras's fit

    def remaining(self, phase: str, epochs: int) -> range:
        """The epochs of a phase that are still to be trained: all of them, but where a run is resumed."""
        return self.checkpoints.epochs(phase, epochs) if self.checkpoints else range(epochs)


@dataclass(frozen=True)
class TrainingPhase:
    """How one phase of a run is trained."""

    optimizer: Callable[[], keras.optimizers.Optimizer]
    rate: Callable[[int, Sequence[float]], float]  # epoch, monitored values so far (lower is better) -> learning rate
    epochs: int
    loss: Callable[[int], keras.losses.Loss]  # of so many classes: targets and logits -> loss
    class_weights: str | Mapping[str, float] | None  # balanced, or by class name
    monitor: str  # the curve that early stopping and best weights watch: validation_loss or validation_accuracy
    early_stopping: int | None  # epochs without a better value, then the end
    best_weights: bool  # those of the best epoch, not the last
    seed: int  # of dropout
    xla: bool | None  # None: on GPUs as Keras decides, on CPUs the parts that gain
    decay_bias_and_norm: bool = False  # whether weight decay applies to vectors (biases, normalisation), too
    tried: Sequence[float] = ()  # learning rates of a range test, one a batch: `fit` then ends the run with `Tried`


@dataclass(frozen=True)
class RunComponents:
    """What a configuration builds; no picture read yet."""

    config: Config
    source: Callable[[], Path]  # makes the data set available, returns its root folder
    augmentation: Augmentation
    extra_layers: tuple[keras.layers.Layer, ...]  # Keras preprocessing layers applied after the augmentation
    backbone: Backbone
    head: Callable[[int], keras.Model]  # number of classes -> fresh head: pooled features [B, D] -> logits
    recipe: TrainingPhase  # of the last phase, or the only one
    head_recipe: TrainingPhase  # of fine-tuning's first phase
    regime: Callable[[RunComponents, Dataset, TrainingContext], TrainingResult]
    head_file: Path | None  # weights of a trained head that another run logged
    identity: Callable[[Config, str], str]  # of a configuration on the data with this fingerprint

    @property
    def cache(self) -> Path:
        return self.config.cache


@dataclass(frozen=True)
class TrainingResult:
    """What every regime returns."""

    model: keras.Model  # pixels [B, H, W, 3] in [0, 255] -> probabilities [B, classes]
    history: tuple[EpochRecord, ...]
    scores: Mapping[str, np.ndarray]  # per split: probabilities [N, classes] float32, rows as in Pictures.ids
    facts: Mapping[str, Any] = field(
        default_factory=dict
    )  # what the regime wants logged: where its head came from, ...
    head_scores: np.ndarray | None = None  # fine-tuning's head before it: validation probabilities [N, classes] float32
