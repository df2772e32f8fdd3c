"""Hydra's errors, rewritten in our form: key, what is allowed, what was received, nearest name."""

from __future__ import annotations

import re
import shlex
import traceback
from collections.abc import Sequence
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from experiments.config.choices import shipped
from experiments.config.messages import format_errors, is_known_key, is_number, nearest_hint, unknown_key
from experiments.config.overrides import as_typed, leaves, literal, quoted
from experiments.system.paths import CONF
from experiments.system.private_api import config_root


def explain(error: Exception, overrides: Sequence[str]) -> str | None:
    """Return the message for an error raised while a command line was composed; None for any other error."""
    cause = error.__cause__
    if isinstance(error, ValueError) and str(error).startswith("Only one of --run"):
        return (
            "--cfg, --info and --multirun (-m) exclude each other. For the plan of a sweep: -m ... sweep.dry_run=true. "
            "For the configuration of one of its jobs: its values without -m, and --cfg job"
        )
    if isinstance(error, ValueError) and str(error).startswith("The --resolve flag"):
        return f"--resolve: {error}"
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        name = str(error.missing_cfg_file)
        group, _, choice = name.partition("/") if name.startswith("data/") else name.rpartition("/")
        return format_errors([_no_choice(group, choice, error.options)])
    is_refused = isinstance(error, ValueError) and str(error).startswith("Config group override")
    place = "".join(frame.filename for frame in traceback.extract_tb(error.__traceback__)[-1:])
    if is_refused or (isinstance(error, TypeError) and place.endswith("hydra/_internal/defaults_list.py")):
        # For a choice that is no text (regime=5, regime=null, regime=[1]), Hydra names neither group nor choices.
        given = [(name.partition("@")[0], value) for name, value in map(_split, overrides)]
        wrong = [(name, value, sorted(shipped(name))) for name, value in given if name and (CONF / name).is_dir()]
        lines = [_no_choice(name, value, choices) for name, value, choices in wrong if value not in choices]
        return format_errors(lines or [str(error)]) if lines or is_refused else None
    if isinstance(error, OverrideParseException):
        return format_errors([_unread(str(error.override), overrides, error)])
    if isinstance(error, HydraException) and str(error).startswith("Ambiguous value for argument"):
        return format_errors([_several(override) for override in overrides if _is_sweep(override)])
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and cause.full_key:
        return format_errors([_unknown(cause, overrides)])
    if isinstance(cause, OmegaConfBaseException) and isinstance(error, ConfigCompositionException):
        key, reason = cause.full_key, str(cause.msg).splitlines()[0]
        if reason == "Cannot merge DictConfig with ListConfig":
            reason = f"has keys, and cannot be a list. Allowed: {key}.KEY=VALUE, and +{key}.KEY=VALUE for a new key"
        return format_errors([f"{key}: {reason}. Received: {_received(str(key), overrides)!r}"])
    if isinstance(error, yaml.YAMLError):  # its text has the file, the line and the column
        return format_errors([f"A YAML file cannot be read: {' '.join(str(error).split())}"])
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return format_errors(str(error).splitlines())
    return None


def _unread(override: str, overrides: Sequence[str], error: OverrideParseException) -> str:
    """Return the message for an override that Hydra's grammar cannot parse, with the quoting that makes it valid."""
    key, equals, value = override.partition("=")
    typed = as_typed(key, value) if equals else None
    whole = _undivided(override, overrides)
    divided = f"The shell divides arguments at spaces. As one argument: {whole}" if whole else ""
    if typed is None:
        reason = divided or str(error).splitlines()[0].removeprefix("LexerNoViableAltException: ")
        return f"{override}: not an override that Hydra can read. Allowed: KEY=VALUE, +KEY=VALUE, ~KEY. {reason}"
    closing = {"[": "list ends with ]", "{": "mapping ends with }"}.get(value[:1])
    listed = _with_quoted_items(key, value)
    hint = (
        f"A {closing}, and what is special in it is quoted, too{f': {listed}' if listed else ''}. " if closing else ""
    )
    return (
        f"{override}: Hydra cannot read this value: it has characters that mean something to Hydra, or begins with "
        f"what it does not end. {divided or f'{hint}As text it is typed: {typed}'}"
    )


def _with_quoted_items(key: str, value: str) -> str | None:
    """Return the shell argument that sets a key to lists, with quotes where an item needs them; None if that fails."""

    def quote(found: re.Match[str]) -> str:
        items = re.findall(r'\s*("(?:\\.|[^"\\])*"|[^,]+)', found[1])
        return f"[{','.join(item if _is_readable(f'{key}={item}') else quoted(item, Quote.double) for item in items)}]"

    override = f"{key}=" + re.sub(r"\[([^\[\]{}]*)\]", quote, value)
    return shlex.quote(override) if value[:1] in ("[", "{") and _is_readable(override) else None


def _is_readable(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _undivided(override: str, overrides: Sequence[str]) -> str | None:
    """Return the shell argument that an override is a part of, if it is followed by parts or is one; else None.

    A part has neither an = nor a ~ before it: the shell has divided `data.root=My images` and `data.classes=[a, b]`.
    """
    begin = end = list(overrides).index(override) if override in overrides else 0
    while begin > 0 and "=" not in overrides[begin]:
        begin -= 1
    while end + 1 < len(overrides) and "=" not in overrides[end + 1] and not overrides[end + 1].startswith("~"):
        end += 1
    if begin == end:
        return None
    whole = " ".join(overrides[begin : end + 1])
    if _is_readable(whole):
        return shlex.quote(whole)
    key, equals, value = whole.partition("=")
    return _with_quoted_items(key, value) or as_typed(key, value) if equals else None


def _is_sweep(override: str) -> bool:
    try:
        return OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException:
        return False


def _several(override: str) -> str:
    """Return the message for an override with several values on a command line without -m."""
    key, _, value = override.partition("=")
    line = f"{override}: several values are a sweep: add -m"
    if (CONF / key.lstrip("+").partition("@")[0]).is_dir() or is_number(key.lstrip("+")):
        return line
    return f"{line}. One text: {as_typed(key, value)}. A list: {shlex.quote(f'{key}=[{value}]')}"


def _no_choice(group: str, received: str, choices: Sequence[str]) -> str:
    hint = nearest_hint(received, choices, prefix=f"{group}=")
    folder = f" A folder of images: {as_typed('data.root', received)}" if group == "data" and not hint else ""
    return f"{group}: no such choice. Received: {received!r}. Allowed: {', '.join(choices)}{hint}.{folder}"


def _unknown(cause: OmegaConfBaseException, overrides: Sequence[str]) -> str:
    key, received = str(cause.full_key), _received(str(cause.full_key), overrides)
    if is_known_key(key):
        into = received if received in overrides else f"{key}={received}"
        return f"{key}: a new key needs a plus. Received: {received!r}. Allowed: +{into}"
    parent: Any = cause.parent_node
    received = literal(received)
    if parent is None:
        return unknown_key(key, [], received)
    typed = next((name for name, _ in map(_split, overrides) if f"{name}.".startswith(f"{key}.")), key)
    leaf = typed.rpartition(".")[2]
    everything: Any = OmegaConf.to_container(config_root(parent), resolve=False)
    everything.pop("hydra", None)
    elsewhere = [path for path, _ in leaves(everything, "") if path.rpartition(".")[2] == leaf]
    close = min(elsewhere, key=lambda path: (not path.endswith(f".{typed}"), path.count(".")), default=None)
    text = unknown_key(key, [str(name) for name in parent if name != "hydra"], received, close)
    return f"{text} For the images of a folder leave out the other data source." if key == "data.root" else text


def _split(override: str) -> tuple[str, str]:
    name, _, value = override.lstrip("+~").partition("=")
    return name, value


def _received(key: str, overrides: Sequence[str]) -> str:
    """Return the value that the command line gives a key, or the override of a key below it, or of a mapping above it.

    If there is none, the text is empty.
    """
    for override in overrides:
        name, value = _split(override)
        if name == key:
            return value
        if name.startswith(f"{key}.") or (key.startswith(f"{name}.") and value.startswith("{")):
            return override
    return ""
