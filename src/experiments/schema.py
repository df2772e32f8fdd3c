"""What a composed configuration may say: types, ranges and choices of everything our code reads.

Component slots (`_target_`) hold further keys, the constructor's arguments; those of shipped components are checked
against the shipped YAML, so that no error waits for Keras to be imported. `read` gathers all faults into one error.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from experiments.paths import CONF
from experiments.types import ConfigError

Metric = Literal["accuracy", "loss", "precision", "recall", "f1", "roc_auc", "brier", "calibration_error"]
Activation = Literal[
    "celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu", "linear", "mish", "relu", "relu6",
    "selu", "sigmoid", "silu", "softplus", "softsign", "swish", "tanh",
]  # fmt: skip
Species = Literal["bears", "cats", "cows", "dogs", "foxes", "lions", "mice", "owls", "pigs", "rabbits"]
Positive = Field(ge=1)
Fraction = Field(ge=0, lt=1)
Penalty = Field(ge=0)


class Node(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Component(Node):
    """A slot that a constructor or one of our factories fills; keys that are no fields are its arguments."""

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
    split_seed: int = Field(ge=0)
    on_bad: Literal["error", "skip"]


class Augmentation(Component):
    layers: list[dict[str, Any]]
    seed: int = Field(ge=0)


class ConvBlock(Node):
    """One convolutional block of the small convnet."""

    filters: int = Positive
    kernel: int = Field(3, ge=1)
    stride: int = Field(1, ge=1)
    padding: Literal["valid", "same"] = "valid"
    activation: Activation = "relu"
    pool: int = Field(2, ge=1)  # side and stride of the max pooling; 1: none
    dropout: float = Field(0.0, ge=0, lt=1)
    l1: float = Field(0.0, ge=0)
    l2: float = Field(0.0, ge=0)


class Dense(Node):
    """One hidden layer of the head; what is None comes from the head."""

    units: int = Positive
    activation: Activation = "relu"
    dropout: float | None = Field(None, ge=0, lt=1)
    l1: float | None = Field(None, ge=0)
    l2: float | None = Field(None, ge=0)


class Head(Node):
    pooling: Literal["flatten", "average", "max"]
    dropout: float = Fraction
    l1: float = Penalty
    l2: float = Penalty
    dense: dict[str, Dense]


class Model(Component):
    native_size: int = Field(ge=8)
    weights: str | None
    preprocessing: Literal["rescale", "tf", "caffe", "torch", "none"]
    blocks: list[str] = Field(min_length=1)
    layers: dict[str, ConvBlock] | None = None
    head: Head


class Optimizer(Component):
    lr: float = Field(gt=0)
    weight_decay: float | None = Penalty
    clipnorm: float | None = Field(gt=0)
    clipvalue: float | None = Field(gt=0)
    global_clipnorm: float | None = Field(gt=0)
    use_ema: bool
    ema_momentum: float = Field(ge=0, le=1)
    ema_overwrite_frequency: int | None = Positive
    loss_scale_factor: float | None = Field(gt=0)
    gradient_accumulation_steps: int | None = Field(ge=2)


class Regime(Component):
    ignores: list[str]
    unfrozen_blocks: int = Positive
    views: int = Field(ge=0)
    head_from: str | None
    head_epochs: int = Positive
    head_optimizer: Optimizer


class Evaluate(Node):
    test: bool


class Runtime(Node):
    threads: int | None = Positive


class Tracking(Node):
    name: str
    uri: str | None
    artifacts: str | None
    experiment: str = Field(min_length=1)
    log_model: bool


class Config(Node):
    """One run, whole. Field names are the keys of conf/config.yaml."""

    data: Data
    augmentation: Augmentation
    model: Model
    optimizer: Optimizer
    regime: Regime
    runtime: Runtime
    tracking: Tracking
    seed: int = Field(ge=0, lt=2**31)
    batch_size: int = Positive
    epochs: int = Positive
    objective: Metric
    evaluate: Evaluate
    trusted_packages: list[str]
    tags: dict[str, str]
    notes: str
    progress: Literal["auto", "none"]
    outputs: str


class PerClass(Node):
    """Drawn pictures of each class."""

    train: int = Positive
    validation: int = Positive
    test: int = Field(ge=0)


# The shipped components' own arguments, so that no fault of theirs waits for Keras. What is not listed must be of the
# kind that its YAML has.
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "data": {
        "root": str,
        "species": Annotated[list[Species], Field(min_length=2)],
        "per_class": PerClass,
        "seed": Annotated[int, Field(ge=0)],
        "size": Annotated[int, Field(ge=8)],
    },
    "augmentation": {
        "rotation": Annotated[float, Field(ge=0, le=180)],
        "width_shift": Share,
        "height_shift": Share,
        "shear": Annotated[float, Field(ge=0, le=89)],
        "zoom": Annotated[float, Field(ge=0, le=0.99)],
        "fill": Literal["nearest", "reflect", "wrap", "constant"],
    },
    "model": {"alpha": Annotated[float, Field(gt=0)]},
    "optimizer": {
        "momentum": Share,
        "rho": Decay,
        "beta_1": Decay,
        "beta_2": Decay,
        "epsilon": Annotated[float, Field(gt=0)],
        "initial_accumulator_value": Annotated[float, Field(ge=0)],
    },
}

# What says where and how a run happens, not what it is (DESIGN §3).
NOT_IDENTITY = ("tracking", "runtime", "notes", "tags", "outputs", "progress", "trusted_packages", "objective")
GROUPS: dict[str, type[Component]] = {
    "data": Data,
    "augmentation": Augmentation,
    "model": Model,
    "optimizer": Optimizer,
    "regime": Regime,
}


def read(composed: DictConfig) -> Config:
    """The composed configuration, checked.

    Raises:
        ConfigError: naming every key that is unknown, missing, of a wrong type or out of range.
    """
    composed = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        plain = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(faults([f"{error.full_key}: {error.msg}"])) from None
    assert isinstance(plain, dict)
    lines = [f"{key}: no value. Give one: {key}=..." for key in missing]
    wrong = {key.split(".")[0] for key in missing}
    try:
        config = Config.model_validate(plain)
    except ValidationError as error:
        found = [fault for fault in error.errors() if _key(fault) not in missing]
        lines += [_sentence(fault) for fault in found]
        wrong |= {str(fault["loc"][0]) for fault in found}
    for group in GROUPS:
        lines += _argument_faults(group, plain.get(group), missing)
    if isinstance(plain.get("regime"), dict):
        lines += _argument_faults("optimizer", plain["regime"].get("head_optimizer"), missing, "regime.head_optimizer")
    if not wrong & {"model", "regime", "tracking"}:
        model, regime = Model.model_validate(plain["model"]), Regime.model_validate(plain["regime"])
        lines += _cross_faults(model, regime, Tracking.model_validate(plain["tracking"]))
    if lines:
        raise ConfigError(faults(lines))
    return config


def faults(lines: list[str]) -> str:
    """One error text out of all its lines."""
    return "\n".join(["The configuration cannot be used:", *(f"  {line}" for line in lines)])


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name that a typo most likely meant."""
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_key(key: str, allowed: Iterable[str], received: Any, close: str | None = None) -> str:
    """The line for a key that nothing reads; `close` is the whole key that was meant, where the caller knows."""
    *parents, name = key.split(".")
    names = sorted(set(allowed) - {"name", "target", "_target_", "ignores"})
    sibling = nearest(name, names)
    close = close or (sibling and ".".join([*parents, sibling]))
    hint = f" Nearest: {close}." if close else ""
    return f"{key}: nothing reads this key. Received: {received!r}. Allowed here: {', '.join(names)}.{hint}"


def reads(key: str) -> bool:
    """Whether there is a place for a key, though the composed configuration may not have it: tags.question."""
    places: list[Any] = [Config]
    for part in key.split("."):
        below: list[Any] = []
        for place in places:
            if get_origin(place) is dict:
                below += _options(get_args(place)[1])
            elif isinstance(place, type) and issubclass(place, BaseModel) and part in place.model_fields:
                below += _options(place.model_fields[part].annotation)
        places = below
    return bool(places)


def _options(annotation: Any) -> list[Any]:
    """The members of a union; anything else as it is."""
    return list(get_args(annotation)) if get_origin(annotation) is UnionType else [annotation]


def _key(fault: Mapping[str, Any], prefix: str = "") -> str:
    return ".".join([*([prefix] if prefix else []), *(str(part) for part in fault["loc"])])


def _sentence(fault: Mapping[str, Any], root: Any = Config, prefix: str = "") -> str:
    """One of pydantic's errors as: key, what is allowed, what was received.

    Args:
        fault: the error.
        root: the model that was checked, which lies at `prefix` in the configuration.
    """
    key = _key(fault, prefix)
    if fault["type"] == "extra_forbidden":
        model: Any = root
        for part in fault["loc"][:-1]:
            model = _model_below(model, str(part))
        return unknown_key(key, model.model_fields, fault["input"])
    if fault["type"] == "missing":
        return f"{key}: no value, and the run needs one. Give one: +{key}=..."
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    message = message.partition(" or instance of ")[0]
    if fault["type"] == "value_error":
        return f"{key}: {message}"
    line = f"{key}: must be {message}. Received: {fault['input']!r}"
    if fault["type"] != "literal_error":
        return line
    close = nearest(str(fault["input"]), re.findall(r"'([^']*)'", fault["ctx"]["expected"]))
    return f"{line}. Nearest: {close}" if close else line


def _model_below(model: type[BaseModel], part: str) -> type[BaseModel]:
    """The model one step down an error's path; a step into a mapping of models stays at its values' model."""
    field = model.model_fields.get(part)
    if field is None:
        return model
    below = [kind for kind in _kinds(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return below[0]


def _kinds(annotation: Any) -> list[Any]:
    return [annotation, *(inner for kind in get_args(annotation) for inner in _kinds(kind))]


@cache
def shipped(group: str) -> dict[str, dict[str, Any]]:
    """The shipped choices of a group by their name: raw YAML, interpolations unresolved."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((CONF / group).glob("*.yaml")):
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        found[path.stem] = content.get(group, content)
    return found


@cache
def _checks(group: str, name: str) -> TypeAdapter[Any]:
    kind = ARGUMENTS[group][name]
    is_model = isinstance(kind, type) and issubclass(kind, BaseModel)
    return TypeAdapter(kind, config=None if is_model else Node.model_config)


def _argument_faults(group: str, node: Any, missing: Iterable[str], prefix: str | None = None) -> list[str]:
    """Constructor arguments of a shipped component that its YAML does not list, or that cannot be right."""
    prefix = prefix or group
    if not isinstance(node, dict):
        return []
    alike = [choice for choice in shipped(group).values() if choice.get("_target_") == node.get("_target_")]
    if not alike:
        return []  # the user's own component: build checks it against the constructor's signature
    fields = {field.alias or name for name, field in GROUPS[group].model_fields.items()}
    known = alike[0]
    lines = []
    for name, value in node.items():
        key = f"{prefix}.{name}"
        if name in fields or key in missing:
            continue
        if name not in known:
            lines.append(unknown_key(key, {*known, *fields}, value))
        elif name in ARGUMENTS.get(group, {}):
            try:
                _checks(group, name).validate_python(value)
            except ValidationError as error:
                lines += [_sentence(fault, ARGUMENTS[group][name], key) for fault in error.errors()]
        elif (kind := _kind(known[name])) and kind != _kind(value):
            lines.append(f"{key}: must be a {kind}, as in {group}={node.get('name')}. Received: {value!r}")
    return lines


def _kind(value: Any) -> str | None:
    """A value's kind as a user names it; None where the YAML does not fix one."""
    if value is None or (isinstance(value, str) and (value == "???" or value.startswith("${"))):
        return None
    kinds = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "mapping"}
    return kinds.get(type(value))


def _cross_faults(model: Model, regime: Regime, tracking: Tracking) -> list[str]:
    """What single values cannot tell."""
    lines = []
    if "regime.unfrozen_blocks" not in regime.ignores and regime.unfrozen_blocks > len(model.blocks):
        lines.append(
            f"regime.unfrozen_blocks: must be at most {len(model.blocks)}, as model={model.name} has "
            f"{len(model.blocks)} blocks ({', '.join(model.blocks)}). Received: {regime.unfrozen_blocks}"
        )
    if model.weights == "pretrained" and model.name != "convnet" and "model.weights" not in regime.ignores:
        lines.append(
            "model.weights: 'pretrained' is our body of model=convnet. "
            f"Received: model={model.name}. Allowed: imagenet, a file, an MLflow run id, null"
        )
    if tracking.uri == "???":
        lines.append(
            f"tracking.uri: no value, and tracking={tracking.name} needs one. Give one: "
            "tracking.uri=http://host:5000, or set MLFLOW_TRACKING_URI"
        )
    for key in regime.ignores:
        if key.split(".")[0] not in Config.model_fields:
            lines.append(f"regime.ignores: {key!r} is no key of the configuration")
    return lines


def effective(config: Config) -> dict[str, Any]:
    """What the run reads: the configuration without what its regime ignores. Plain values, `_target_` as in YAML."""
    plain = config.model_dump(by_alias=True, mode="json")
    for key in config.regime.ignores:
        *parents, last = key.split(".")
        node = plain
        for parent in parents:
            node = node.get(parent, {})
        node.pop(last, None)
    return plain


def identity(config: Config, **facts: str | None) -> str:
    """The hash that says two runs are the same experiment: what is read, plus `facts` of its inputs.

    Args:
        config: a checked configuration.
        facts: hashes of what the configuration only names: data fingerprint, weights, package version.
    """
    plain = {key: value for key, value in effective(config).items() if key not in NOT_IDENTITY}
    plain.pop("evaluate")
    plain["regime"].pop("ignores")
    # What only names an input: the hashes among `facts` say what it is.
    plain["data"] = {"image_size": config.data.image_size}
    plain["model"].pop("weights", None)
    plain["regime"].pop("head_from", None)
    return hashlib.sha256(json.dumps({"config": plain, **facts}, sort_keys=True).encode()).hexdigest()[:32]


def head_run(config: Config) -> Config:
    """The bottleneck run whose head a fine-tuning run starts from."""
    bottleneck = shipped("regime")["bottleneck"]
    regime = config.regime.model_copy(
        update={"name": "bottleneck", "target": bottleneck["_target_"], "ignores": bottleneck["ignores"]}
    )
    return config.model_copy(
        update={"regime": regime, "optimizer": config.regime.head_optimizer, "epochs": config.regime.head_epochs}
    )


def dump_yaml(plain: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(plain), sort_keys=False, allow_unicode=True)


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


class ValidateBeforeRun(Callback):
    """Checks the configuration before Hydra makes the run's folder: a wrong one leaves nothing behind.

    Hydra turns a callback's exceptions into warnings; SystemExit passes.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            read(config)
        except ConfigError as error:
            raise SystemExit(str(error)) from None
