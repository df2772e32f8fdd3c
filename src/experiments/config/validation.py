"""Validation of composed configurations, before Keras is imported: all errors in one ConfigError."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from experiments.config.arguments import argument_errors
from experiments.config.choices import shipped
from experiments.config.credentials import from_environment, lost_credentials, revealed
from experiments.config.identity import NOT_IDENTITY
from experiments.config.messages import error_key, error_line, format_errors, is_of_other_member
from experiments.config.overrides import leaves, value_at
from experiments.config.schema import GROUPS, PROBABILISTIC, Config, Metric, Model, Regime, Tracking
from experiments.errors import ConfigError
from experiments.system import paths
from experiments.system.redaction import redacted

# The resolvers that conf/ uses. They are registered here because every composed configuration is validated.
_RESOLVERS = (
    paths.default_outputs, paths.run_name, paths.tracking_uri, paths.experiment_name, paths.artifact_location,
)  # fmt: skip
for _resolver in _RESOLVERS:
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)
OmegaConf.register_new_resolver("sqlite_uri", lambda file: paths.sqlite_uri(Path(file)), replace=True)
# Prefixes of `_target_` in version 0.1, as in logged configurations and users' YAMLs, and their present form.
MOVED = {
    "experiments.augmentation.": "experiments.data.augmentation.",
    "experiments.data.cats_vs_dogs.": "experiments.data.sources.cats_vs_dogs.",
    "experiments.data.folder.": "experiments.data.sources.folder.",
    "experiments.data.synthetic.": "experiments.data.sources.synthetic.",
    "experiments.schedules.": "experiments.training.schedules.",
}
# What no regime can ignore: it is needed for every run, and to read what a run has logged.
NEEDED = ("data", "model", "regime", "regime.name", "regime._target_", "regime.ignores")
NEEDED_WITH_ALL_BELOW = (*NOT_IDENTITY, "runtime", "evaluate")
BOUND = 2**31  # whole numbers are less, so that TensorFlow's shapes and seeds hold them
# Tags that a run itself logs to MLflow, and that predictions, comparisons and resumes read from there.
RECORDED_TAGS = re.compile(
    "backbone|backbone_identity|command|comparison|continues|data_fingerprint|data_root|failure|head_source|host|identity|"
    r"positive|regime|run_folder|setting|sweep|threshold|warnings|(git|owner|version)\..*"
)
MIXING_LAYERS = ("keras.layers.MixUp", "keras.layers.CutMix")


def validate(composed: DictConfig) -> Config:
    """Validate a composed configuration and return it, or raise one ConfigError that names every key that is wrong."""
    choices = OmegaConf.select(composed, "hydra.runtime.choices") or {}
    if "hydra" in composed:
        composed = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        plain = revealed(OmegaConf.to_container(composed, resolve=True))
    except OmegaConfBaseException as error:
        reason = str(error.msg).splitlines()[0]
        hint = r". Where ${ is meant as text, write \${" if "nterpolation" in reason else ""
        raise ConfigError(format_errors([f"{error.full_key}: {reason}{hint}"])) from None
    assert isinstance(plain, dict)
    plain = revealed(plain, change=current_target)
    lines = [f"{key}: no value. Give one: {key}=..." for key in missing]
    wrong = {key.split(".")[0] for key in missing}
    lines += [
        f"{key}: its password is missing, as a run's folder holds none. Give the value again: {key}=..., or the "
        f"environment variable that holds it, such as MLFLOW_TRACKING_URI. Received: {text}"
        for key, text in lost_credentials(plain).items()
    ]
    try:
        config = Config.model_validate(plain)
    except ValidationError as error:
        details = error.errors()
        found = [each for each in details if error_key(each) not in missing and not is_of_other_member(each)]
        lines += map(error_line, found)
        wrong |= {str(detail["loc"][0]) for detail in found}
    for key, group in [*zip(GROUPS, GROUPS, strict=True), ("regime.head_optimizer", "optimizer")]:
        lines += argument_errors(key, group, value_at(plain, key), missing)
        slot = key if key == group else f"{group}@{key}"
        name, choice = value_at(plain, f"{key}.name"), choices.get(slot)
        if name != choice and {str(name), choice} <= shipped(group).keys():
            lines.append(
                f"{key}.name: is the name of a choice and does not select it: this is {slot}={choice}. "
                f"Received: {name!r}. Type: {slot}={name}"
            )
    for key, value in leaves(plain, ""):
        if type(value) is int and value >= BOUND and not any(line.startswith(f"{key}:") for line in lines):
            lines.append(f"{key}: must be less than {BOUND}. Received: {value}")
            wrong.add(key.split(".")[0])
    if not wrong & {"model", "regime", "tracking"}:
        model, regime = Model.model_validate(plain["model"]), Regime.model_validate(plain["regime"])
        lines += _cross_field_errors(model, regime, Tracking.model_validate(plain["tracking"]))
    if not wrong:
        lines += _training_errors(config)
        if "${" in config.outputs:
            lines.append(f"outputs: must not have ${{ in it, which Hydra replaces. Received: {config.outputs}")
    if lines:
        raise ConfigError(format_errors(lines))
    config._unresolved = from_environment(composed)
    return config


def current_target(text: str, key: str) -> str:
    """Return the present name of a `_target_` of version 0.1, and warn of it; other texts are returned unchanged."""
    old = next((old for old in MOVED if text.startswith(old)), None)
    if old is None or key.rpartition(".")[2] != "_target_":
        return text
    present = MOVED[old] + text.removeprefix(old)
    warnings.warn(
        f"_target_: {text} is now called {present}; the old name will be removed", FutureWarning, stacklevel=2
    )
    return present


def _cross_field_errors(model: Model, regime: Regime, tracking: Tracking) -> list[str]:
    """Return the messages for values of model, regime and tracking that are invalid in combination."""
    lines = []
    unfrozen, blocks = regime.unfrozen_blocks, model.blocks or []
    is_read = "regime.unfrozen_blocks" not in regime.ignores
    if is_read and isinstance(unfrozen, int) and 0 < len(blocks) < unfrozen:
        lines.append(
            f"regime.unfrozen_blocks: must be at most {len(blocks)}, as model={model.name} has {len(blocks)} blocks "
            f"({', '.join(blocks)}), or all, or the name of a layer. Received: {unfrozen}"
        )
    if model.weights == "pretrained" and model.name != "convnet" and "model.weights" not in regime.ignores:
        lines.append(
            "model.weights: 'pretrained' is the shipped backbone of model=convnet. "
            f"Received: model={model.name}. Allowed: imagenet, a file, an MLflow run id, null"
        )
    if tracking.uri == "???":
        lines.append(
            f"tracking.uri: no value, and tracking={tracking.name} needs one. Give one: "
            "tracking.uri=http://host:5000, or set MLFLOW_TRACKING_URI"
        )
    if redacted(tracking.artifacts) != tracking.artifacts:
        lines.append(
            "tracking.artifacts: must hold no password, as MLflow keeps this address for all to read. Give it by the "
            f"environment variables of that store. Received: {redacted(tracking.artifacts)}"
        )
    for key in regime.ignores:
        if key.split(".")[0] not in Config.model_fields:
            lines.append(f"regime.ignores: {key!r} is no key of the configuration")
        elif key in NEEDED or key.split(".")[0] in NEEDED_WITH_ALL_BELOW:
            lines.append(
                f"regime.ignores: a regime cannot ignore {key!r}. Allowed: what it may read for its training, such as "
                "augmentation, optimizer, schedule, epochs, and keys below data, model and regime"
            )
    return lines


def _training_errors(config: Config) -> list[str]:
    """Return the messages for values of the whole configuration that are invalid in combination."""
    lines = []
    if config.runtime.devices and config.batch_size % config.runtime.devices:
        lines.append(
            f"batch_size: must be a multiple of runtime.devices ({config.runtime.devices}), which share every batch "
            f"evenly. Received: {config.batch_size}"
        )
    if config.schedule.warmup >= config.epochs:
        lines.append(f"schedule.warmup: must be less than epochs ({config.epochs}). Received: {config.schedule.warmup}")
    if config.data.fold is not None and config.data.fold >= config.data.folds:
        lines.append(f"data.fold: must be less than data.folds ({config.data.folds}). Received: {config.data.fold}")
    lines += [
        f"tags.{name}: a run records a tag of this name itself. Give yours another name. Received: {value!r}"
        for name, value in config.tags.items()
        if RECORDED_TAGS.fullmatch(name)
    ]
    if config.loss == "hinge":
        if config.label_smoothing:
            lines.append(f"label_smoothing: must be 0 with loss=hinge. Received: {config.label_smoothing}")
        if config.objective in PROBABILISTIC:
            lines.append(
                f"objective: {config.objective!r} scores probabilities, which loss=hinge does not give. Allowed: "
                + ", ".join(name for name in get_args(Metric) if name not in PROBABILISTIC)
            )
    mixing = [str(layer.get("_target_")) for layer in config.augmentation.layers]
    mixing = [target for target in mixing if target in MIXING_LAYERS]
    if mixing and "augmentation" not in config.regime.ignores:
        if config.loss == "hinge":
            lines.append(f"augmentation.layers: {mixing[0]} mixes labels, and loss=hinge needs whole ones")
        if "regime.views" not in config.regime.ignores and config.regime.views:
            lines.append(
                f"regime.views: must be 0 with {mixing[0]}, which mixes the images of a batch: stored views cannot "
                f"hold that. Received: {config.regime.views}"
            )
    return lines
