"""Types that the packages for training, regimes and evaluation exchange: plain data, without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import keras
    import numpy as np
    import tensorflow as tf

    from experiments.config.schema import Config
    from experiments.data.input_pipeline import Batches
    from experiments.data.listing import Listing
    from experiments.data.types import Augmentation, Dataset
    from experiments.models.stages import Backbone
    from experiments.runs.run_directory import RunDirectory
    from experiments.training.checkpoints import Checkpoints


class Status(StrEnum):
    """The state of a run, or of a job of a sweep. FINISHED, FAILED, KILLED and RUNNING are MLflow's, too."""

    NEW = "NEW"  # nothing of the job has run
    PARTIAL = "PARTIAL"  # an earlier process has left epochs from which the job can go on
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"
    PRUNED = "PRUNED"  # a search ended it early


UNFINISHED = (Status.NEW, Status.PARTIAL, Status.RUNNING, Status.KILLED)  # of jobs that the same command continues


class PhaseName(StrEnum):
    """A part of a run's training, with a curve of its own."""

    SCRATCH = "scratch"
    HEAD = "head"
    FINETUNE = "finetune"


EPOCH_METRICS = (
    "accuracy",
    "input_wait",  # share of the training time spent waiting for batches (with regime.views=0 this includes the frozen
    # part's forward pass); missing with several devices and with runtime.deterministic
    "learning_rate",
    "loss",  # the same loss as validation_loss, of the training batches
    "images_per_second",
    "seconds",
    "total_loss",  # what the optimizer minimises: the configured loss with label smoothing, class weights, L1, L2
    "validation_accuracy",
    "validation_loss",  # cross entropy (with hinge: hinge loss) of the validation images, the same as in the report
)


@dataclass(frozen=True)
class EpochRecord:
    """One row of a run's curves."""

    step: int  # counts on over the phases: first the epochs of the head, then those of fine-tuning
    phase: str  # scratch | head | finetune
    epoch: int  # within the phase, from 0
    timestamp: int  # milliseconds since 1970, when the epoch ended
    metrics: Mapping[str, float]  # keys from EPOCH_METRICS


def last_phase(history: Sequence[EpochRecord]) -> list[EpochRecord]:
    """Return the epochs of the last phase of a run."""
    return [record for record in history if record.phase == history[-1].phase]


def monitored(history: Sequence[EpochRecord], curve: str) -> list[float]:
    """Return the values of validation_loss or validation_accuracy, negated where higher is better."""
    sign = 1 if curve == "validation_loss" else -1
    return [sign * record.metrics[curve] for record in history]


class Progress(Protocol):
    """Display of a run's progress."""

    def stage(self, label: str, total: int) -> AbstractContextManager[Callable[..., None]]:
        """Display a stage of `total` steps; the context manager yields `advance(steps=1, note="")`."""


@dataclass
class TrainingContext:
    """Connection of training to the rest of a run: progress display, logging of epochs, checkpoints."""

    progress: Progress
    record: Callable[[EpochRecord], None]  # called at the end of every epoch; again for its past epochs after a resume
    checkpoints: Checkpoints | None = None  # of the run; None if none are kept
    fit_seconds: float = 0.0  # that this process has spent in Keras's fit

    def remaining(self, phase: str, epochs: int) -> range:
        """Return the epochs of a phase that are still to be trained: all, unless a checkpoint holds some of them."""
        return self.checkpoints.epochs(phase, epochs) if self.checkpoints else range(epochs)


@dataclass(frozen=True)
class TrainingPhase:
    """Configuration of one phase of training."""

    optimizer: Callable[[], keras.optimizers.Optimizer]
    rate: Callable[[int, Sequence[float]], float]  # epoch, monitored values so far (lower is better) -> learning rate
    epochs: int
    loss: Callable[[int], keras.losses.Loss]  # number of classes -> loss of targets and logits
    class_weights: str | Mapping[str, float] | None  # "balanced", or class name -> weight
    monitor: str  # the curve that decides early stopping and best weights: validation_loss or validation_accuracy
    early_stopping: int | None  # number of epochs without a better value after which the phase ends
    best_weights: bool  # whether the phase ends with the weights of its best epoch, not of its last one
    seed: int  # of dropout
    xla: bool | None  # None: Keras's "auto" on GPUs; on CPUs only for the parts that it makes faster
    decay_bias_and_norm: bool = False  # whether weight decay also applies to vectors (biases, normalisation)
    key: str = "optimizer"  # of the optimizer in the configuration, for messages


@dataclass(frozen=True)
class PhaseInputs:
    """The model that one phase trains, with its data."""

    name: str  # of the phase in the run's curves: scratch, head or finetune
    model: keras.Model  # inputs -> logits: [B, 1] for two classes, [B, classes] for more
    batches: Batches  # (inputs, labels [B] int32 or shares of classes [B, classes] float32)
    validation: tf.data.Dataset  # (inputs, labels [B] int32), evaluated after every epoch
    classes: tuple[str, ...]  # class names, in label order
    first_step: int = 0  # of the phase's first epoch in the run's curves, which count on over the phases
    # `id` of a variable -> factor of its learning rate, if not 1. Weight decay uses the rate without the factor.
    rate_factors: Mapping[int, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """The number of classes."""
        return len(self.classes)


@dataclass(frozen=True)
class RunComponents:
    """The objects that `build` creates from a configuration, before any image is read."""

    config: Config
    # Downloads or creates the data set if need be; returns its root directory, or the listing of its images.
    source: Callable[[], Path | Listing]
    augmentation: Augmentation
    extra_layers: tuple[keras.layers.Layer, ...]  # Keras preprocessing layers applied after the augmentation
    backbone: Backbone
    head: Callable[[int], keras.Model]  # number of classes -> untrained head: pooled features [B, D] -> logits
    phase: TrainingPhase  # of the last phase, or of the only one
    head_phase: TrainingPhase  # of fine-tuning's first phase
    regime: Regime
    head_file: Path | None  # weights of a trained head that another run logged
    continued: RunDirectory | None  # copies of the small files of the finished run that this one trains further
    identity: Callable[[Config, str], str]  # (configuration, fingerprint of the data) -> identity of the run

    @property
    def cache(self) -> Path:
        return self.config.cache

    @property
    def has_trained_head(self) -> bool:
        """Whether the run takes its head from another run, and trains none."""
        return self.head_file is not None or self.continued is not None


@dataclass(frozen=True)
class TrainingResult:
    """The trained model, its history and its predictions, as every regime returns them."""

    model: keras.Model  # pixels [B, H, W, 3] in [0, 255] -> probabilities [B, classes]
    history: tuple[EpochRecord, ...]
    scores: Mapping[str, np.ndarray]  # split -> probabilities [N, classes] float32, rows in the order of ImageSet.ids
    facts: Mapping[str, Any] = field(default_factory=dict)  # logged by the run, such as the origin of a head
    head_scores: np.ndarray | None = None  # validation probabilities [N, classes] of the head before fine-tuning


Regime: TypeAlias = "Callable[[RunComponents, Dataset, TrainingContext], TrainingResult]"
