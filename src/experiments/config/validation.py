"""Validation of composed configurations: each error names the key, what is allowed, what was received.

All errors are found before Keras is imported, and `read` gathers them into one ConfigError. Where a name is misspelt,
its error also gives the nearest valid one.
"""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, TypeAdapter, ValidationError

from experiments.config.overrides import as_typed
from experiments.config.schema import (
    ARGUMENTS,
    GROUPS,
    PROBABILISTIC,
    Config,
    Metric,
    Model,
    Node,
    Regime,
    Tracking,
    shipped,
)
from experiments.errors import ConfigError
from experiments.system import paths
from experiments.system.redaction import is_concealed, redacted, remember, reveal

# The resolvers that conf/ uses. They are registered here because every composed configuration is validated.
OmegaConf.register_new_resolver("default_outputs", paths.default_outputs, replace=True)
OmegaConf.register_new_resolver("run_name", paths.run_name, replace=True)
OmegaConf.register_new_resolver("tracking_uri", paths.tracking_uri, replace=True)
OmegaConf.register_new_resolver("sqlite_uri", lambda file: paths.sqlite_uri(Path(file)), replace=True)
OmegaConf.register_new_resolver("artifact_location", paths.artifact_location, replace=True)
# Prefixes of `_target_` in version 0.1, as in logged configurations and users' YAMLs, and their present form.
MOVED = {
    "experiments.augmentation.": "experiments.data.augmentation.",
    "experiments.data.cats_vs_dogs.": "experiments.data.sources.cats_vs_dogs.",
    "experiments.data.folder.": "experiments.data.sources.folder.",
    "experiments.data.synthetic.": "experiments.data.sources.synthetic.",
    "experiments.schedules.": "experiments.training.schedules.",
}
MIXING_LAYERS = ("keras.layers.MixUp", "keras.layers.CutMix")


def validate(composed: DictConfig) -> Config:
    """Validate a composed configuration and return it.

    Raises:
        ConfigError: the configuration is invalid; the message names every key that is unknown, missing, of a wrong type
            or out of range.
    """
    composed = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        plain = revealed(OmegaConf.to_container(composed, resolve=True))
    except OmegaConfBaseException as error:
        reason = str(error.msg).splitlines()[0]
        hint = r". Where ${ is meant as text, write \${" if "nterpolation" in reason else ""
        raise ConfigError(format_errors([f"{error.full_key}: {reason}{hint}"])) from None
    assert isinstance(plain, dict)
    plain = with_current_targets(plain)
    lines = [f"{key}: no value. Give one: {key}=..." for key in missing]
    wrong = {key.split(".")[0] for key in missing}
    lost = {key: text for key, text in _texts(plain) if is_concealed(text) and not key.startswith(("tags.", "notes"))}
    lines += [
        f"{key}: its password is missing, as a run's folder holds none. Give the value again: {key}=..., or the "
        f"environment variable that holds it, such as MLFLOW_TRACKING_URI. Received: {text}"
        for key, text in lost.items()
    ]
    try:
        config = Config.model_validate(plain)
    except ValidationError as error:
        found = [fault for fault in error.errors() if _key(fault) not in missing and not _meant_otherwise(fault)]
        lines += [_sentence(fault) for fault in found]
        wrong |= {str(fault["loc"][0]) for fault in found}
    for group in GROUPS:
        lines += _argument_errors(group, plain.get(group), missing)
    if isinstance(plain.get("regime"), dict):
        lines += _argument_errors("optimizer", plain["regime"].get("head_optimizer"), missing, "regime.head_optimizer")
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


def revealed(value: Any, key: str = "", change: Callable[[str, str], str] = reveal) -> Any:
    """Return plain values with the credentials from the command line or the environment restored.

    Args:
        value: a configuration, or the part of it at `key`.
        key: the dotted key of `value`; empty for a whole configuration.
        change: returns the new value of a text, given the text and its dotted key.
    """
    if isinstance(value, str):
        return change(value, key)
    if isinstance(value, dict):
        return {name: revealed(below, f"{key}.{name}".lstrip("."), change) for name, below in value.items()}
    if isinstance(value, list):
        return [revealed(below, f"{key}.{at}", change) for at, below in enumerate(value)]
    return value


def revealed_config(config: Config, change: Callable[[str, str], str] = reveal) -> Config:
    """Return a validated configuration with its texts changed as by `revealed`, validated again."""
    made = Config.model_validate(revealed(config.model_dump(by_alias=True, mode="json"), change=change))
    made._unresolved = config._unresolved
    return made


def concealed_config(config: Config) -> Config:
    """Return a validated configuration with its credentials redacted, to be written to a file.

    `revealed_config` restores them in this process and its children.
    """
    return revealed_config(config, lambda text, key: remember(key, text))


def conceal(node: Any, key: str = "") -> None:
    """Redact the credentials in a composed configuration in place, before Hydra writes it; `read` restores them."""
    for name in node if isinstance(node, DictConfig) else range(len(node)):
        child, path = node._get_node(name), f"{key}.{name!s}".lstrip(".")
        if path == "hydra" or child._is_none() or child._is_missing():
            continue
        if isinstance(child, DictConfig | ListConfig):
            if not child._is_interpolation():
                conceal(child, path)
        elif isinstance(written := child._value(), str) and (hidden := redacted(written, path)) != written:
            remember(path, str(node[name]))  # the value with its interpolations resolved
            child._set_value(hidden)


def from_environment(composed: DictConfig) -> dict[str, str]:
    """Return the unresolved text of every value that depends on an environment variable, by key.

    A value may depend on the variable directly, or through interpolations of other keys.
    """
    raw = dict(_texts(OmegaConf.to_container(composed, resolve=False)))
    calls = r"\$\{\s*(oc\.env|tracking_uri)\b" if os.environ.get("MLFLOW_TRACKING_URI") else r"\$\{\s*oc\.env\b"
    found = {key for key, text in raw.items() if re.search(calls, text)}
    while True:
        # Keys that refer to a key found so far, or to a parent or a child of one.
        through = {
            key
            for key, text in raw.items()
            for named in _named(key, text)
            if any(f"{one}.".startswith(f"{named}.") or f"{named}.".startswith(f"{one}.") for one in found)
        } - found
        if not through:
            return {key: raw[key] for key in sorted(found)}
        found |= through


def _texts(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in nested mappings with its dotted key; a list with interpolations counts as one text."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _texts(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            yield f"{prefix}{name}", value
        elif isinstance(value, list) and "${" in str(value):
            yield f"{prefix}{name}", str(value)


def _named(key: str, text: str) -> Iterator[str]:
    """Yield the keys that a value's interpolations may refer to: ${data.root}, ${data[root]}, ${.root} beside it."""
    if "${" in text:
        for dots, name in re.findall(r"(\.*)([\w.]*\w)", re.sub(r"\[(\w+)\]", r".\1", text)):
            parents = key.split(".")[: -len(dots)] if dots else []
            yield ".".join([*parents, name])


def format_errors(lines: list[str]) -> str:
    """Return one error message with all the lines."""
    return "\n".join(["The configuration cannot be used:", *(f"  {line}" for line in lines)])


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name that is most similar to a misspelt one; None if none is similar enough."""
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_key(key: str, allowed: Iterable[str], received: Any, close: str | None = None) -> str:
    """Return the message for a key that nothing reads; `close` is the full intended key, if the caller knows it."""
    *parents, name = key.split(".")
    names = sorted(set(allowed) - {"name", "target", "_target_", "ignores"})
    sibling = nearest(name, names)
    close = close or (sibling and ".".join([*parents, sibling]))
    hint = f" Nearest: {close}." if close else ""
    return f"{key}: nothing reads this key. Received: {received!r}. Allowed here: {', '.join(names)}.{hint}"


def with_current_targets(node: Any) -> Any:
    """Return plain values with each `_target_` of version 0.1 replaced by its present name, and warn of each."""
    if isinstance(node, list):
        return [with_current_targets(value) for value in node]
    if not isinstance(node, dict):
        return node
    found = {key: with_current_targets(value) for key, value in node.items()}
    target = found.get("_target_")
    if isinstance(target, str):
        for old, new in MOVED.items():
            if target.startswith(old):
                found["_target_"] = new + target.removeprefix(old)
                text = f"_target_: {target} is now called {found['_target_']}; the old name will be removed"
                warnings.warn(text, FutureWarning, stacklevel=2)
    return found


def is_known_key(key: str) -> bool:
    """Return whether the schema accepts a key, even if the composed configuration lacks it, as with tags.question."""
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
    """Return the members of a union, or a list of the annotation itself if it is no union."""
    return list(get_args(annotation)) if get_origin(annotation) is UnionType else [annotation]


def _key(fault: Mapping[str, Any], prefix: str = "") -> str:
    parts = [str(part) for part in fault["loc"]]
    # pydantic adds the member of a union and the side of a mapping, which are not part of the key in the configuration.
    return ".".join(
        [*([prefix] if prefix else []), *(part for part in parts if not re.match(r"literal\[|dict\[|\[key\]", part))]
    )


def _meant_otherwise(fault: Mapping[str, Any]) -> bool:
    """Return whether an error comes from a member of a union that the value was not meant for.

    For example, pydantic also reports that the misspelt text balancd is no mapping.
    """
    members = [str(part).partition("[")[0] for part in fault["loc"] if "[" in str(part)]
    is_mapping = isinstance(fault["input"], Mapping)
    return ("literal" in members and is_mapping) or ("dict" in members and fault["type"] == "dict_type")


def _sentence(fault: Mapping[str, Any], root: Any = Config, prefix: str = "") -> str:
    """Return the message for one of pydantic's errors: key, what is allowed, what was received.

    Args:
        fault: the error.
        root: the model that was validated.
        prefix: the key of `root` in the configuration.
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
    if fault["type"] == "string_pattern_mismatch":
        message = f"of the form {fault['ctx']['pattern']}"
    if key == "class_weights":
        message = "'balanced', null (all alike) or {CLASS: WEIGHT, ...}"
    if fault["type"] == "value_error":
        return f"{key}: {message}"
    line = f"{key}: must be {message}. Received: {fault['input']!r}"
    if fault["type"] == "string_type" and isinstance(fault["input"], int | float | list):
        line += _as_text(key)
    if fault["type"] != "literal_error":
        return line
    close = nearest(str(fault["input"]), re.findall(r"'([^']*)'", fault["ctx"]["expected"]))
    return f"{line}. Nearest: {close}" if close else line


def _as_text(key: str) -> str:
    """Return a hint on how to type as text a value that Hydra has read as a number or a list; empty if unknown."""
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    values = [one.partition("=")[2] for one in typed if one.lstrip("+").startswith(f"{key}=")]
    text = as_typed(key, values[-1]) if values else None
    return f". As text it is typed: {text}" if text else ""


def _model_below(model: type[BaseModel], part: str) -> type[BaseModel]:
    """Return the model one step down an error's path; a step into a mapping stays at the model of its values."""
    field = model.model_fields.get(part)
    if field is None:
        return model
    below = [kind for kind in _kinds(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return below[0]


def _kinds(annotation: Any) -> list[Any]:
    return [annotation, *(inner for kind in get_args(annotation) for inner in _kinds(kind))]


@cache
def _checks(group: str, name: str) -> TypeAdapter[Any]:
    kind = ARGUMENTS[group][name]
    is_model = isinstance(kind, type) and issubclass(kind, BaseModel)
    return TypeAdapter(kind, config=None if is_model else Node.model_config)


def _argument_errors(group: str, node: Any, missing: Iterable[str], prefix: str | None = None) -> list[str]:
    """Return the messages for arguments of a shipped component that its YAML does not list, or that are invalid."""
    prefix = prefix or group
    if not isinstance(node, dict):
        return []
    alike = [choice for choice in shipped(group).values() if choice.get("_target_") == node.get("_target_")]
    if not alike:
        return []  # the user's own component, which `build` validates against its constructor's signature
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
    """Return the kind of a YAML value, as messages name it; None if the value does not determine one."""
    if value is None or (isinstance(value, str) and (value == "???" or value.startswith("${"))):
        return None
    kinds = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "mapping"}
    return kinds.get(type(value))


def _cross_field_errors(model: Model, regime: Regime, tracking: Tracking) -> list[str]:
    """Return the messages for values of model, regime and tracking that are invalid in combination."""
    lines = []
    unfrozen, blocks = regime.unfrozen_blocks, model.blocks or []
    if (
        "regime.unfrozen_blocks" not in regime.ignores
        and isinstance(unfrozen, int)
        and blocks
        and unfrozen > len(blocks)
    ):
        lines.append(
            f"regime.unfrozen_blocks: must be at most {len(blocks)}, as model={model.name} has {len(blocks)} blocks "
            f"({', '.join(blocks)}), or all, or the name of a layer. Received: {unfrozen}"
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
    if redacted(tracking.artifacts) != tracking.artifacts:
        lines.append(
            "tracking.artifacts: must hold no password, as MLflow keeps this address for all to read. Give it by the "
            f"environment variables of that store. Received: {redacted(tracking.artifacts)}"
        )
    for key in regime.ignores:
        if key.split(".")[0] not in Config.model_fields:
            lines.append(f"regime.ignores: {key!r} is no key of the configuration")
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
    if config.loss == "hinge":
        if config.label_smoothing:
            lines.append(f"label_smoothing: must be 0 with loss=hinge. Received: {config.label_smoothing}")
        if config.objective in PROBABILISTIC:
            lines.append(
                f"objective: {config.objective!r} judges probabilities, which loss=hinge does not give. Allowed: "
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
