"""`like=RUN`: another run's logged configuration as overrides, which those on the command line come after.

What somebody else has written is data: keys that nothing reads, `hydra.*`, packages to trust and interpolations never
come from there, and every `_target_` is checked as if it had been typed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.journal import quoted, store_of
from experiments.schema import GROUPS, NOT_IDENTITY, Config, shipped
from experiments.types import ConfigError
from experiments.validation import unknown_key

FILE = "config.yaml"
LARGEST = 1_000_000  # bytes
DEEPEST = 20  # levels of nesting
# What of a run's runtime belongs to what it is; the rest is about the machine it ran on.
RUNTIME = ("precision", "xla")


def expand(given: Sequence[str]) -> list[str]:
    """The command line with what `like=` names written out before everything else; the given one without it.

    Raises:
        ConfigError: no such run, or a configuration that cannot be taken over.
    """
    named = [argument.partition("=")[2] for argument in given if argument.startswith("like=")]
    if not named:
        return list(given)
    rest = [argument for argument in given if not argument.startswith("like=")]
    presets = [argument for argument in rest if argument.startswith(("experiment=", "debug="))]
    if presets:
        raise ConfigError(f"like: what it brings would override {' and '.join(presets)}. Give one of them only")
    if len(named) > 1:
        raise ConfigError(f"like: one run at a time. Received: {' and '.join(named)}")
    wanted = read(named[0], rest)
    # A group that is chosen anew is chosen whole.
    chosen = {argument.partition("=")[0] for argument in rest}
    dropped: list[str] = []
    lines = [line for group, line in overrides(wanted, dropped) if group not in chosen]
    if dropped:
        print(f"like: left out, as nothing is taken from the environment: {', '.join(dropped)}", file=sys.stderr)
    options = [argument for argument in rest if argument.startswith("-")]
    return [*options, *lines, *(argument for argument in rest if argument not in options)]


def read(named: str, rest: Sequence[str]) -> dict[str, Any]:
    """The configuration that a run has logged; a run is named by its folder or its MLflow id.

    Raises:
        ConfigError: there is none, or it is none.
    """
    folder = Path(named).expanduser()
    if folder.is_dir():
        path = folder / FILE
        try:
            text = path.read_bytes() if path.stat().st_size <= LARGEST else None
        except OSError as error:
            raise ConfigError(f"like: {path}: {error.strerror}. Give a run's folder, or its MLflow id") from None
    else:
        from experiments.tracking import stored

        text = stored.read_file(store_of(rest), named, FILE, LARGEST)
    where = f"{FILE} of {named}"
    if text is None:
        raise ConfigError(f"like: {where} is larger than {LARGEST:,} bytes: that is no configuration")
    return parse(text, where)


def parse(text: bytes, where: str) -> dict[str, Any]:
    """Plain values out of YAML.

    Raises:
        ConfigError: it is no YAML, no mapping, or made to unfold into more than it looks.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(f"like: {where} has an alias (*{event.anchor}), which no logged configuration has")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ConfigError(f"like: {where} is nested deeper than {DEEPEST} levels")
        plain = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"like: {where} cannot be read: {str(error)[:300]}") from None
    if not isinstance(plain, dict):
        raise ConfigError(f"like: {where} is no mapping")
    return plain


def overrides(plain: Mapping[str, Any], dropped: list[str]) -> Iterator[tuple[str, str]]:
    """Overrides that compose into the same experiment, each with the group that it belongs to.

    Args:
        plain: a logged configuration.
        dropped: takes the keys whose values come from the environment.

    Raises:
        ConfigError: keys that nothing reads.
    """
    known = Config.model_fields
    wrong = [unknown_key(str(key), known, value) for key, value in plain.items() if key not in known and key != "hydra"]
    if wrong:
        raise ConfigError("\n".join(["like: that configuration cannot be used:", *(f"  {line}" for line in wrong)]))
    taken = {key: value for key, value in plain.items() if key in known and key not in NOT_IDENTITY}
    runtime = taken.pop("runtime", None)
    if isinstance(runtime, Mapping):
        taken["runtime"] = {key: runtime[key] for key in RUNTIME if key in runtime}
    for group in GROUPS:
        name = taken[group].get("name") if isinstance(taken.get(group), Mapping) else None
        if isinstance(name, str) and re.fullmatch(r"\w+", name):
            yield group, f"{group}={name}"
        if group == "regime" and name in shipped("regime"):
            head = taken[group].get("head_optimizer")
            if isinstance(head, Mapping) and head.get("name") in shipped("optimizer"):
                yield group, f"optimizer@regime.head_optimizer={head['name']}"
    for key, value in taken.items():
        for path, leaf in leaves(value, key):
            if has_interpolation(leaf):
                dropped.append(path)
            else:
                yield key, f"++{path}={literal(leaf)}"


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Everything below a key that is no mapping, with its dotted key; mappings that have no such key, whole."""
    if isinstance(value, Mapping) and value and all(re.fullmatch(r"\w+", str(name)) for name in value):
        for name, below in value.items():
            yield from leaves(below, f"{path}.{name}")
    else:
        yield path, value


def has_interpolation(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(has_interpolation, (*value, *value.values())))
    if isinstance(value, list):
        return any(map(has_interpolation, value))
    return isinstance(value, str) and "${" in value


def literal(value: Any) -> str:
    """A value as Hydra's grammar reads it back."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{escaped(str(key))}:{literal(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(literal, value)) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, int | float) else quoted(str(value))


def escaped(key: str) -> str:
    """A key of a mapping as Hydra's grammar reads it: there it knows no quotes."""
    return re.sub(r"([\\()\[\]{}:=,\s])", r"\\\1", key)
