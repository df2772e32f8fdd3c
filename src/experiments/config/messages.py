"""Messages about invalid keys and values: key, what is allowed, what was received, nearest name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, get_args, get_origin

from hydra.core.hydra_config import HydraConfig
from pydantic import BaseModel

from experiments.config.choices import shipped
from experiments.config.overrides import as_typed
from experiments.config.schema import GROUPS, Config

_TITLE = "The configuration cannot be used:"


def format_errors(lines: list[str]) -> str:
    """Return one error message with all the lines."""
    return "\n".join([_TITLE, *(f"  {line}" for line in lines)])


def lines_of(text: str) -> list[str]:
    """Return the lines of a message of `format_errors`; of any other message the whole text as one."""
    lines = text.removeprefix(f"{_TITLE}\n  ")
    return [text] if lines == text else lines.split("\n  ")


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name that is most similar to a misspelt one; None if none is similar enough."""
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return matches[0] if matches else None


def nearest_hint(name: str, allowed: Iterable[str], prefix: str = "") -> str:
    """Return ". Nearest: ..." for the end of a sentence that lists the allowed names; empty if none is similar."""
    close = nearest(name, allowed)
    return f". Nearest: {prefix}{close}" if close else ""


def unknown_key(key: str, allowed: Iterable[str], received: Any, close: str | None = None) -> str:
    """Return the message for a key that nothing reads; `close` is the full intended key, if the caller knows it."""
    *parents, name = key.split(".")
    names = sorted(set(allowed) - {"name", "target", "_target_", "ignores"})
    group = parents[0] if len(parents) == 1 and parents[0] in GROUPS else None
    having = [f"{group}={choice}" for choice, keys in shipped(group).items() if name in keys] if group else []
    sibling = nearest(name, names) if not having else None
    close = close or (sibling and ".".join([*parents, sibling]))
    hint = f" A key of {', '.join(having)}." if having else ""
    hint += f" Nearest: {close}." if close else ""
    return f"{key}: nothing reads this key. Received: {received!r}. Allowed here: {', '.join(names) or 'no key'}.{hint}"


def is_known_key(key: str) -> bool:
    """Return whether the schema accepts a key, even if the composed configuration lacks it, as with tags.question."""
    return bool(_types_at(key.split("."), Config))


def is_node(key: str) -> bool:
    """Return whether a key of the schema holds further keys."""
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in _types_at(key.split("."), Config))


def is_number(key: str) -> bool:
    """Return whether the schema accepts nothing but a number or a boolean at a key, or null."""
    types = _types_at(key.split("."), Config)
    return bool(types) and set(types) <= {int, float, bool, type(None)}


def _types_at(path: Iterable[str | int], root: Any) -> list[Any]:
    """Return the types that the schema allows at a path of keys below a type, the members of unions one by one."""
    types = [root]
    for part in path:
        below: list[Any] = []
        for kind in types:
            if get_origin(kind) is dict:
                below.append(get_args(kind)[1])
            elif isinstance(kind, type) and issubclass(kind, BaseModel) and part in kind.model_fields:
                below.append(kind.model_fields[str(part)].annotation)
        types = [kind for found in below for kind in (get_args(found) if get_origin(found) is UnionType else [found])]
    return types


def error_key(error: Mapping[str, Any], prefix: str = "") -> str:
    """Return the key of the configuration that one of pydantic's errors is about."""
    parts = [str(part) for part in error["loc"]]
    # pydantic adds the member of a union and the side of a mapping, which are not part of the key in the configuration.
    named = [part for part in parts if not re.match(r"literal\[|dict\[|\[key\]", part)]
    return ".".join([prefix, *named] if prefix else named)


def is_of_other_member(error: Mapping[str, Any]) -> bool:
    """Return whether an error comes from a member of a union that the value was not meant for.

    For example, pydantic also reports that the misspelt text balancd is no mapping.
    """
    members = [str(part).partition("[")[0] for part in error["loc"] if "[" in str(part)]
    is_mapping = isinstance(error["input"], Mapping)
    return ("literal" in members and is_mapping) or ("dict" in members and error["type"] == "dict_type")


def error_line(error: Mapping[str, Any], root: Any = Config, prefix: str = "") -> str:
    """Return the message for one of `ValidationError.errors()` of the model `root`, at the key `prefix`."""
    key = error_key(error, prefix)
    if error["type"] == "extra_forbidden":
        model = _types_at(error["loc"][:-1], root)[0]  # a model is the first member of its union with None
        return unknown_key(key, model.model_fields, error["input"])
    if error["type"] == "missing":
        return f"{key}: no value, and the run needs one. Give one: +{key}=..."
    if error["type"] == "value_error":
        return f"{key}: {error['msg'].removeprefix('Value error, ')}"
    # Pydantic says "Input should be ...", "List should have at least 2 items after validation, not 1".
    message = re.split(" or instance of | after validation", error["msg"].partition(" should ")[2])[0]
    if error["type"] == "model_type":
        names = next(kind.model_fields for kind in _types_at(error["loc"], root) if hasattr(kind, "model_fields"))
        message = f"be given by its keys: {', '.join(f'{key}.{name}' for name in names)}"
    if error["type"] == "string_pattern_mismatch":
        message = f"be of the form {error['ctx']['pattern']}"
    if key == "class_weights":
        message = "be 'balanced', null (all alike) or {CLASS: WEIGHT, ...}"
    line = f"{key}: must {message}. Received: {error['input']!r}"
    if error["type"] == "string_type" and isinstance(error["input"], int | float | list):
        line += _as_text(key)
    if error["type"] in ("int_type", "float_type", "bool_type") and isinstance(error["input"], list):
        values = ",".join(str(value) for value in error["input"])
        line += f". The values of a sweep (-m) are typed without brackets: {key}={values}"
    if error["type"] != "literal_error":
        return line
    return line + nearest_hint(str(error["input"]), re.findall(r"'([^']*)'", error["ctx"]["expected"]))


def _as_text(key: str) -> str:
    """Return a hint on how to type as text a value that Hydra has read as a number or a list; empty if unknown."""
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    values = [override.partition("=")[2] for override in typed if override.lstrip("+").startswith(f"{key}=")]
    text = as_typed(key, values[-1]) if values else None
    return f". As text it is typed: {text}" if text else ""
