"""The schema of the composed configuration: types, ranges and choices of every key that this package reads.

Component slots (`_target_`) accept further keys, the arguments of their constructors; those of the shipped components
have their types in `arguments`. docs/configuration.md shows the comment on a field's line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

LOWER_IS_BETTER = ("loss", "brier", "calibration_error")
Metric = Literal[
    "accuracy", "loss", "precision", "recall", "f1", "roc_auc", "brier", "calibration_error", "balanced_accuracy",
    "macro_f1", "matthews", "average_precision", "top3_accuracy", "top5_accuracy",
]  # fmt: skip
LOWEST = {"matthews": -1.0}  # the lowest value of a metric that is not bounded by 0
Loss = Literal["cross_entropy", "mse", "hinge"]
# Metrics that are undefined with loss=hinge, whose scores are not probabilities.
PROBABILISTIC = ("loss", "brier", "calibration_error")
Activation = Literal[
    "celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu", "linear", "mish", "relu", "relu6",
    "selu", "sigmoid", "silu", "softplus", "softsign", "swish", "tanh",
]  # fmt: skip
Positive = Field(ge=1)
Fraction = Field(ge=0, lt=1)
Penalty = Field(ge=0)


class Node(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Component(Node):
    """A slot filled by a constructor or by one of our factories; keys that are not fields are its arguments."""

    model_config = ConfigDict(extra="allow")
    name: str
    target: str = Field(alias="_target_")

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Fractions(Node):
    train: float = Field(gt=0, le=1)
    validation: float = Field(gt=0, lt=1)
    test: float = Fraction

    @model_validator(mode="after")
    def sum_to_one(self) -> Fractions:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, validation and test must sum to 1; they sum to {total:g}")
        return self


class Limit(Node):
    train: int | None = Positive
    validation: int | None = Positive
    test: int | None = Positive


class Data(Component):
    image_size: int = Field(ge=8)
    fractions: Fractions
    limit: Limit
    folds: int = Field(ge=2)
    fold: int | None = Field(ge=0)
    split_seed: int = Field(ge=0)
    on_bad: Literal["error", "skip"]
    group: str | None = Field(min_length=1)
    classes: list[str] | dict[str, list[str]] | None
    min_per_class: int | None = Positive
    on_leak: Literal["warn", "error", "group"]
    gray_range: list[float] | None = Field(min_length=2, max_length=2)
    resize: Literal["squash", "pad", "crop"]
    max_pixels: int = Positive

    @model_validator(mode="after")
    def ascend(self) -> Data:
        if self.gray_range and not self.gray_range[0] < self.gray_range[1]:
            raise ValueError(f"gray_range must be [black, white], black below white. Received: {self.gray_range}")
        return self

    @field_validator("classes", mode="before")
    @classmethod
    def names_are_text(cls, value: Any) -> Any:
        """Convert class names to text, because Hydra reads a class called 0 as a number."""
        if value is None:
            return None
        if isinstance(value, list) and value:
            return [str(name) for name in value]
        if isinstance(value, Mapping) and value:
            merged = {str(new): old if isinstance(old, list) else [old] for new, old in value.items()}
            return {new: [str(name) for name in old] for new, old in merged.items()}
        raise ValueError(
            "must be a list of classes, [cats,dogs], or new classes with those that they merge, {pets: [cats,dogs]}, "
            f"or null. Received: {value!r}"
        )

    @property
    def merged_classes(self) -> dict[str, list[str]] | None:
        """The new classes in the order of their labels, each with the classes that are merged into it; None for all."""
        return {name: [name] for name in self.classes} if isinstance(self.classes, list) else self.classes


class Augmentation(Component):
    layers: list[dict[str, Any]]
    seed: int = Field(ge=0)


class ConvBlock(Node):
    """One convolutional block of the small convnet."""

    filters: int = Positive  # output channels
    kernel: int = Field(3, ge=1)  # side of the convolution, pixels
    stride: int = Field(1, ge=1)  # of the first convolution
    padding: Literal["valid", "same"] = "valid"  # same: only stride and pool change the size
    convolutions: int = Field(1, ge=1)  # one after the other
    separable: bool = False  # depthwise, then pointwise
    batch_norm: bool = False  # after each convolution
    residual: bool = False  # a shortcut around the convolutions; needs padding: same
    activation: Activation = "relu"  # after each convolution
    pool: int = Field(2, ge=1)  # side and stride of the max pooling; 1: none
    dropout: float = Field(0.0, ge=0, lt=1)  # after the pooling
    l1: float = Field(0.0, ge=0)  # penalty on the kernels
    l2: float = Field(0.0, ge=0)  # penalty on the kernels

    @model_validator(mode="after")
    def fits_its_shortcut(self) -> ConvBlock:
        if self.residual and self.padding != "same":
            raise ValueError(f"residual: true needs padding: same. Received: padding: {self.padding}")
        return self


class Dense(Node):
    """One hidden layer of the head; a value that is None is taken from the head."""

    units: int = Positive  # outputs
    activation: Activation = "relu"  # of the layer
    dropout: float | None = Field(None, ge=0, lt=1)  # null: the head's
    l1: float | None = Field(None, ge=0)  # null: the head's
    l2: float | None = Field(None, ge=0)  # null: the head's


class Head(Node):
    pooling: Literal["flatten", "average", "max"]
    dropout: float = Fraction  # after every hidden layer; before the last layer where there is none
    l1: float = Penalty  # penalty on the kernels of all its layers
    l2: float = Penalty  # penalty on the kernels of all its layers
    dense: dict[str, Dense | None]  # hidden layers by name, in order; null removes one: model.head.dense.dense1=null


class Model(Component):
    native_size: int = Field(ge=8)  # side in pixels that the network is made for; the default of data.image_size
    finetune_lr: float = Field(gt=0)  # the default of optimizer.lr for fine-tuning the network
    weights: str | None = Field(min_length=1)
    preprocessing: Literal["rescale", "tf", "caffe", "torch", "none"]
    blocks: list[str] | None = Field(None, min_length=1)  # prefixes of layer names; null: stages by resolution
    layers: dict[str, ConvBlock] | None = None
    head: Head


class Optimizer(Component):
    lr: float = Field(gt=0)  # learning rate
    weight_decay: float | None = Penalty  # share of the weights, times lr, that each step subtracts; null: none
    decay_bias_and_norm: bool = False  # true: biases and normalisation (vectors) decay, too
    clipnorm: float | None = Field(gt=0)  # largest norm of one gradient; set at most one of the three clips
    clipvalue: float | None = Field(gt=0)  # largest absolute value in a gradient
    global_clipnorm: float | None = Field(gt=0)  # largest norm of all gradients together
    use_ema: bool  # average the weights over the steps; the averages are validated and kept
    ema_momentum: float = Field(ge=0, le=1)  # share of the old average in the new one
    ema_overwrite_frequency: int | None = Positive  # number of steps after which the averages replace the weights
    loss_scale_factor: float | None = Field(gt=0)  # factor of the loss while gradients are computed, against underflow
    gradient_accumulation_steps: int | None = Field(ge=2)  # batches whose mean gradient makes one step


class Schedule(Component):
    warmup: int | float  # epochs of linear rise before the schedule; below 1: a share of all epochs, rounded down

    @field_validator("warmup", mode="before")
    @classmethod
    def epochs_or_a_share(cls, value: Any) -> Any:
        if (type(value) is int and value >= 0) or (type(value) is float and 0 <= value < 1):
            return value
        raise ValueError(f"must be a number of epochs, at least 0, or a share of them below 1. Received: {value!r}")


class Regime(Component):
    ignores: list[str]
    unfrozen_blocks: int | str
    lr_decay: float = Field(1.0, gt=0, le=1)  # learning rate of each stage, as a multiple of that of the stage above it
    views: int = Field(ge=0)
    activations: Literal["float32", "float16"]
    batch_norm_momentum: float | None = Field(None, ge=0, lt=1)  # of moving statistics; null: lower in short runs
    head_from: str | None = Field(pattern="^[0-9a-f]{32}$")  # a full MLflow run id
    head_epochs: int = Positive
    head_optimizer: Optimizer  # for the head, in finetune; another choice: optimizer@regime.head_optimizer=adam

    @field_validator("unfrozen_blocks", mode="before")
    @classmethod
    def stages_or_a_name(cls, value: Any) -> Any:
        if (isinstance(value, str) and value) or (type(value) is int and value >= 1):
            return value
        raise ValueError(
            "must be how many stages, at least 1, or all, or the name of a layer or block that training begins with. "
            f"Received: {value!r}"
        )


class Evaluate(Node):
    test: bool


class Runtime(Node):
    threads: int | None = Positive
    memory: float = Field(ge=0)
    devices: int | None = Positive
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"]
    xla: bool | None
    deterministic: bool


class Tracking(Node):
    name: str
    uri: str | None
    artifacts: str | None
    experiment: str = Field(min_length=1)
    log_model: bool


class Sweep(Node):
    """How a sweep (-m) is planned, run and concluded; conf/sweep/default.yaml describes every key."""

    search: Literal["grid", "random", "tpe"]
    rungs: dict[str, list[str]] | None
    climb: Literal["significant", "all"]
    jobs: int = Positive
    timeout: float | None = Field(gt=0)
    on_error: Literal["continue", "stop"]
    rerun: bool
    dry_run: bool
    final: bool
    max_minutes: float | None = Field(gt=0)
    target: float | None
    trials: int = Positive
    seed: int = Field(ge=0)
    pruner: Literal["none", "median", "hyperband"]
    storage: str
    job: bool
    parent: str | None
    trial: str | None
    trained: str | None


class Threshold(Node):
    """The probability from which the positive one of two classes is predicted; at most one key is given."""

    fixed: float | None = Field(gt=0, lt=1)
    recall: float | None = Field(gt=0, le=1)
    precision: float | None = Field(gt=0, le=1)

    @model_validator(mode="after")
    def at_most_one(self) -> Threshold:
        given = [f"{name}={value}" for name, value in self if value is not None]
        if len(given) > 1:
            raise ValueError(f"give one of fixed, recall, precision; the others null. Received: {', '.join(given)}")
        return self


class Config(Node):
    """The whole configuration of one run; field names are the keys of conf/config.yaml."""

    data: Data
    augmentation: Augmentation
    model: Model
    optimizer: Optimizer
    schedule: Schedule
    regime: Regime
    runtime: Runtime
    tracking: Tracking
    sweep: Sweep
    seed: int = Field(ge=0)
    batch_size: int = Positive
    epochs: int = Positive
    loss: Loss
    label_smoothing: float = Fraction
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None
    monitor: Literal["validation_loss", "validation_accuracy"]
    early_stopping: int | None = Positive
    best_weights: bool
    must_reach: float | None = Field(gt=0, le=1)
    objective: Metric
    positive: str | None
    threshold: Threshold
    evaluate: Evaluate
    trusted_packages: list[str]
    tags: dict[str, str]
    notes: str
    progress: Literal["auto", "none"]
    outputs: str = Field(min_length=1)  # an empty one would be the root of the file system
    resume: str | None
    continue_from: str | None
    _unresolved: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @property
    def unresolved(self) -> Mapping[str, str]:
        """The unresolved text of values from the environment, by key, which is logged in place of the values."""
        return self._unresolved

    @field_validator("class_weights", mode="before")
    @classmethod
    def names_are_text(cls, value: Any) -> Any:
        """Convert class names to text, because Hydra reads a class called 0 as a number."""
        return {str(name): weight for name, weight in value.items()} if isinstance(value, Mapping) else value

    @field_validator("threshold", mode="before")
    @classmethod
    def number_is_fixed(cls, value: Any) -> Any:
        """Accept threshold=0.3 for threshold.fixed=0.3."""
        return {"fixed": value, "recall": None, "precision": None} if isinstance(value, int | float) else value

    @property
    def cache(self) -> Path:
        return Path(self.outputs) / "cache"


GROUPS: dict[str, type[Component]] = {
    "data": Data, "augmentation": Augmentation, "model": Model, "optimizer": Optimizer, "schedule": Schedule,
    "regime": Regime,
}  # fmt: skip
