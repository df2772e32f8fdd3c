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

    from experiments.checkpoints import Checkpoints
    from experiments.models.stages import Stage
    from experiments.schema import Config
    from experiments.store import Rows


class ConfigError(ValueError):
    """A value in the configuration that cannot work; the message names key, allowed, received and what to do."""


class DataError(ValueError):
    """Pictures that cannot be used; the message names every path and what to do about it."""


class Pruned(Exception):
    """A search ended this run early: its curve is behind."""


class Tried(Exception):
    """A range test has ended this run: the loss of every batch it took, at the learning rate that the batch had."""

    def __init__(self, losses: Sequence[float], guessing: float, trained: bool) -> None:
        """Keep the losses, that of predicting the class frequencies, and whether a phase came before this one."""
        super().__init__(f"range test of {len(losses)} batches")
        self.losses, self.guessing, self.trained = losses, guessing, trained


SPLITS = ("train", "validation", "test")

GrayRange = tuple[float, float]  # the values of 16- and 32-bit grays that become black and white


@dataclass(frozen=True)
class Entry:
    """One picture of a manifest."""

    path: str  # relative to the data root, with forward slashes; the picture's id
    bytes: int
    sha256: str
    width: int  # as stored in the file, before orientation and resizing
    height: int
    mode: str  # Pillow's mode of the file: RGB, L, RGBA, CMYK, ...
    class_name: str
    split: str  # one of SPLITS


@dataclass(frozen=True)
class LeftOut:
    """A file that `data.on_bad=skip` left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ImageWarning:
    """An image that is used, though its owner should look at it, and why."""

    path: str
    text: str


@dataclass(frozen=True)
class Manifest:
    """Every picture of a data set, checked: hashed, fully decoded once, in one split only."""

    root: Path
    classes: tuple[str, ...]  # sorted; the index of a name is its label
    entries: tuple[Entry, ...]  # sorted by split (SPLITS order), then path
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[ImageWarning, ...] = ()  # of entries, by path
    gray_range: GrayRange | None = None  # that 16- and 32-bit grays are decoded with

    def of(self, split: str) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.split == split)


@dataclass(frozen=True)
class Pictures:
    """The pictures of one split: ids and labels at hand, pixels decoded when first asked for."""

    split: str
    entries: tuple[Entry, ...]
    labels: np.ndarray  # [N] int32
    image_size: int
    _pixels: Callable[[], Rows]
    gray_range: GrayRange | None = None  # as the manifest's

    @property
    def ids(self) -> list[str]:
        return [entry.path for entry in self.entries]

    @property
    def pixels(self) -> Rows:
        """[N, H, W, 3] uint8, RGB; in memory or, beyond `runtime.memory`, on disk."""
        return self._pixels()

    def __len__(self) -> int:
        return len(self.entries)


@dataclass(frozen=True)
class Splits:
    """A data set as the regimes see it."""

    classes: tuple[str, ...]
    train: Pictures
    validation: Pictures
    test: Pictures | None
    manifest: Manifest
    fingerprint: str  # sha256 over split, path and file hash of every picture

    def scored(self, test: bool) -> list[Pictures]:
        """The splits that a run is judged on: validation, and test where there is one and `test` says so."""
        return [self.validation, *([self.test] if test and self.test else [])]


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
class Watch:
    """Who is told how a run gets on: the person at the terminal, and the record of its curves."""

    progress: Progress
    record: Callable[[EpochRecord], None]
    checkpoints: Checkpoints | None = None  # of the run; None: none are kept
    fitting: dict[str, float] = field(default_factory=dict)  # by phase: this process's seconds in Keras's fit

    def remaining(self, phase: str, epochs: int) -> range:
        """The epochs of a phase that are still to be trained: all of them, but where a run is resumed."""
        return self.checkpoints.epochs(phase, epochs) if self.checkpoints else range(epochs)


class Augmentation(Protocol):
    """Random numbers are drawn apart from their use, so that the use can run in parallel and stay repeatable."""

    def draw(self, rng: np.random.Generator, count: int, size: int) -> np.ndarray:
        """The random numbers for `count` pictures of `size` pixels: [count, K] float32."""

    def __call__(self, pixels: Any, numbers: Any) -> Any:
        """Pixels [B, H, W, 3] uint8 and numbers [B, K] to augmented pixels [B, H, W, 3] float32 in [0, 255]."""


@dataclass(frozen=True)
class Backbone:
    """A network without its head, preprocessing inside."""

    model: keras.Model  # pixels [B, H, W, 3] in [0, 255] -> feature maps [B, h, w, C]
    stages: tuple[Stage, ...]  # in order; a stage ends where the next begins
    identity: str  # hash of architecture and weights' values


@dataclass(frozen=True)
class Recipe:
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
class Parts:
    """What a configuration builds; no picture read yet."""

    config: Config
    source: Callable[[], Path]  # makes the data set available, returns its root folder
    augmentation: Augmentation
    extra_layers: tuple[keras.layers.Layer, ...]  # Keras preprocessing layers applied after the augmentation
    backbone: Backbone
    head: Callable[[int], keras.Model]  # number of classes -> fresh head: pooled features [B, D] -> logits
    recipe: Recipe  # of the last phase, or the only one
    head_recipe: Recipe  # of fine-tuning's first phase
    regime: Callable[[Parts, Splits, Watch], Fitted]
    head_file: Path | None  # weights of a trained head that another run logged
    identity: Callable[[Config, str], str]  # of a configuration on the data with this fingerprint

    @property
    def cache(self) -> Path:
        return self.config.cache


@dataclass(frozen=True)
class Fitted:
    """What every regime returns."""

    model: keras.Model  # pixels [B, H, W, 3] in [0, 255] -> probabilities [B, classes]
    history: tuple[EpochRecord, ...]
    scores: Mapping[str, np.ndarray]  # per split: probabilities [N, classes] float32, rows as in Pictures.ids
    facts: Mapping[str, Any] = field(
        default_factory=dict
    )  # what the regime wants logged: where its head came from, ...
    head_scores: np.ndarray | None = None  # fine-tuning's head before it: validation probabilities [N, classes] float32
