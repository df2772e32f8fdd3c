"""Credentials and values from the environment in a configuration: redacted where it is written, restored where used."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from pydantic import BaseModel

from experiments.config.schema import Config
from experiments.system.redaction import is_concealed, redacted, remember, reveal


def revealed(value: Any, key: str = "", change: Callable[[str, str], str] = reveal) -> Any:
    """Return a configuration with the credentials from the command line or the environment restored.

    Args:
        value: a configuration, validated or as plain values, or the part of it at `key`.
        key: the dotted key of `value`; empty for a whole configuration.
        change: returns the new value of a text, given the text and its dotted key.
    """
    if isinstance(value, str):
        return change(value, key)
    if isinstance(value, list):
        return [revealed(below, f"{key}.{at}", change) for at, below in enumerate(value)]
    if isinstance(value, dict | BaseModel):
        below = value.items() if isinstance(value, dict) else value
        found = {name: revealed(part, f"{key}.{name}".lstrip("."), change) for name, part in below}
        return found if isinstance(value, dict) else value.model_copy(update=found)
    return value


def concealed_config(config: Config) -> Config:
    """Return a configuration to be written to a file, with `revealed` as inverse in this process and its children.

    Credentials are redacted. Values from the environment become their unresolved text, which may be invalid there.
    """

    def conceal(text: str, key: str) -> str:
        above = (written for name, written in config.unresolved.items() if f"{key}.".startswith(f"{name}."))
        return remember(key, text, next(above, None))

    concealed: Config = revealed(config, change=conceal)
    return concealed


def conceal(composed: DictConfig) -> None:
    """Redact the credentials in a composed configuration in place, before Hydra writes it; `validate` restores them."""
    _conceal(composed, {name: raw for name, raw in _plain(composed).items() if name != "hydra"})


def _conceal(node: Any, written: Any, key: str = "") -> None:
    """Redact the credentials in a node, whose value before interpolations are resolved is `written`."""
    for name, below in written.items() if isinstance(written, dict) else enumerate(written):
        path = f"{key}.{name!s}".lstrip(".")
        if isinstance(below, dict | list):
            _conceal(node[name], below, path)
        elif isinstance(below, str) and below != MISSING and (hidden := redacted(below, path)) != below:
            remember(path, str(node[name]))  # the value with its interpolations resolved
            node[name] = hidden


def _plain(composed: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(composed, resolve=False)
    return dict(plain)


def lost_credentials(plain: Mapping[str, Any]) -> dict[str, str]:
    """Return the values whose credentials are redacted and could not be restored, by dotted key."""
    texts = {key: text for key, text in _texts(plain) if not key.startswith(("tags.", "notes"))}
    return {key: text for key, text in texts.items() if is_concealed(text)}


def from_environment(composed: DictConfig) -> dict[str, str]:
    """Return the unresolved text of every value that depends on an environment variable, be it through other keys."""
    raw = dict(_texts(_plain(composed)))
    calls = r"\$\{\s*(oc\.env|tracking_uri)\b" if os.environ.get("MLFLOW_TRACKING_URI") else r"\$\{\s*oc\.env\b"
    found = {key for key, text in raw.items() if re.search(calls, text)}
    while True:
        # Keys that refer to a key found so far, or to a parent or a child of one.
        through = {
            key
            for key, text in raw.items()
            for named in _named(key, text)
            if any(f"{other}.".startswith(f"{named}.") or f"{named}.".startswith(f"{other}.") for other in found)
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
