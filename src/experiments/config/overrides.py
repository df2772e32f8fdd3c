"""Overrides: quoting for Hydra's grammar and the shell, values at dotted keys, and what `data.root` alone implies."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig

from experiments.config.schema import GROUPS
from experiments.errors import ConfigError
from experiments.system.paths import CONF
from experiments.system.private_api import without_hydra


def quoted(text: str, quote: Quote = Quote.single) -> str:
    """Return a text in quotes, as Hydra's grammar reads it literally; ${ would be an interpolation there."""
    escaped = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
    return QuotedString(escaped, quote).with_quotes()


def format_value(value: Any) -> str:
    """Return a Python value as it is written in Hydra's grammar; texts are taken literally.

    Raises:
        ConfigError: the value is of a type that the message does not list.
        ValueError: a mapping has a key that this grammar cannot express.
    """
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays, pandas' series
        value = value.tolist()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_format_key(str(key))}:{format_value(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list | tuple | range):
        return "[" + ",".join(map(format_value, value)) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | PurePath):
        return quoted(str(value))
    raise ConfigError(
        f"{value!r}: a configuration has no values of type {type(value).__name__}. Allowed: None, bool, int, float, "
        "str, Path, NumPy scalars and arrays, and lists, tuples and dicts of these"
    )


def _format_key(key: str) -> str:
    """Return a mapping's key with the escapes of Hydra's grammar, which has no quotes for keys."""
    if not re.fullmatch(r"[\w \\()\[\]{}:=,./+$%*@?|-]+", key, re.ASCII):
        raise ValueError(f"{key!r} cannot be written on a command line: give it in a YAML file (--config-dir)")
    return re.sub(r"([\\()\[\]{}:=, ])", r"\\\1", key)


def literal(text: str) -> str:
    """Return a typed value without the quotes of Hydra's grammar, if it has any."""
    try:
        value = OverridesParser.create().parse_override(f"key={text}").value()
    except HydraException:
        return text
    return value if isinstance(value, str) else text


def split_key(arguments: Sequence[str], key: str) -> tuple[list[str], list[str]]:
    """Return the values that a command line gives a key, without quotes, and its other arguments."""
    values = [literal(word.partition("=")[2]) for word in arguments if word.startswith(f"{key}=")]
    return values, [word for word in arguments if not word.startswith(f"{key}=")]


def spelled(override: Override) -> list[str]:
    """Return one override for each value that an override has; raise ConfigError for an interval, or if it has none."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key = override.get_key_element()
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{key}: a grid needs single values, and an interval has no end of them. Received: {override.input_line}. "
            "Use choice or range, or sweep.search=random or tpe"
        )
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise ConfigError(
            f"{key}: a sweep needs at least one value, but no choice fits or the range is empty. "
            f"Received: {override.input_line}"
        )
    return values


def as_typed(key: str, text: str) -> str | None:
    """Return the shell argument that sets a key to a text; None if the key is invalid, so that quoting does not help.

    Args:
        key: the key, with one or two plus signs before it where they are needed.
        text: the value; a leading ~ is expanded, which neither Hydra nor most shells do after an =.
    """
    text = os.path.expanduser(text)
    parser = OverridesParser.create()
    for value in (text, *sorted((quoted(text, Quote.double), quoted(text)), key=lambda value: len(shlex.quote(value)))):
        try:
            override = parser.parse_override(f"{key}={value}")
            found = None if override.is_sweep_override() else override.value()
        except HydraException:
            continue
        if value != text or (isinstance(found, str) and found == text and "${" not in text):
            return shlex.quote(f"{key}={value}")
    return None


def compose_config(
    overrides: Sequence[str], config_dir: str | Path | None = None, config_name: str = "config", **options: bool
) -> DictConfig:
    """Compose the configuration of a command line, also within a Hydra job, whose Hydra is set aside meanwhile.

    `config_dir` and `config_name` are Hydra's options of these names; `options` are those of `hydra.compose`.

    Raises:
        ConfigError: `config_dir` is no folder.
    """
    if config_dir and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir: there is no such folder. Received: {config_dir}")
    place = [f"hydra.searchpath=[{quoted(f'file://{Path(config_dir).resolve()}')}]"] if config_dir else []
    with without_hydra(), initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose(config_name, [*overrides, *place], **options)


def implies_folder(overrides: Sequence[str], config_dir: str | Path | None = None, config_name: str = "config") -> bool:
    """Return whether overrides, also of a sweep, give `data.root` and no choice with it, so that data=folder is meant.

    A choice of `data` is never replaced, be it typed or brought by a preset, nor is anything implied where the
    overrides cannot be composed: the error is that of `train`.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        keys = {override.key_or_group for override in parsed}
        if "data.root" not in keys or "data" in keys:
            return False
        # Only presets bring a choice of data, and presets are choices of the groups that have no slot of their own.
        presets = [
            spelled(override)
            for override in parsed
            if override.key_or_group not in GROUPS
            and any((Path(folder) / override.key_or_group).is_dir() for folder in (CONF, config_dir) if folder)
        ]
        return not any(
            "root" in compose_config(chosen, config_dir, config_name).data.keys()  # noqa: SIM118 (`in` omits ???)
            for chosen in itertools.product(*presets)
        )
    except Exception:
        return False


def value_at(node: Any, path: str, otherwise: Any = None) -> Any:
    """Return the value at a dotted key of nested mappings; `otherwise` if there is none."""
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return otherwise
        node = node[part]
    return node


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every value below a key that is not a mapping, with its dotted key.

    A mapping is yielded whole if it is empty, or if one of its names cannot be part of a dotted key.
    """
    if isinstance(value, Mapping) and value and all(re.fullmatch(r"\w+", str(name)) for name in value):
        for name, below in value.items():
            yield from leaves(below, f"{path}.{name}" if path else str(name))
    else:
        yield path, value
