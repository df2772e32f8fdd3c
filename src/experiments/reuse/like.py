"""Expansion of `like=RUN` and `continue=RUN` to overrides that reproduce another run's logged configuration.

They precede the overrides of the command line, which thus take precedence. The configuration may have been written by
somebody else and is treated as data: unknown keys, `hydra.*`, trusted packages and interpolations are never taken from
it, and every `_target_` is checked as if it had been typed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config import unused
from experiments.config.identity import NOT_IDENTITY, RUNTIME
from experiments.config.messages import unknown_key
from experiments.config.overrides import compose_config, format_value, leaves, quoted, split_key, value_at
from experiments.config.schema import GROUPS, Config
from experiments.errors import ConfigError
from experiments.reuse import resume
from experiments.runs.continuation import KEY
from experiments.runs.location import local_folder, store_of
from experiments.runs.run_directory import CONFIG, CONFIG_END
from experiments.system.paths import CONF
from experiments.system.private_api import get_args_parser
from experiments.tracking import queries

LARGEST = 1_000_000  # bytes
DEEPEST = 20  # levels of nesting
# Keys for where a data source downloads from, or which archive it opens instead.
DOWNLOAD = ("data.url", "data.sha256", "data.bytes", "data.archive")


def expand(given: Sequence[str]) -> list[str]:
    """Return the command line with `like=` or `continue=RUN` replaced by overrides, which precede all others.

    Raises:
        ConfigError: there is no such run, or its configuration cannot be used.
    """
    named, rest = split_key(without_continue(given), "like")
    unused.brought.clear()  # an earlier run of this process may have been like another one
    if not named:
        return rest
    presets = [argument for argument in rest if argument.startswith(("experiment=", "debug="))]
    if presets:
        raise ConfigError(f"like: what it brings would override {' and '.join(presets)}. Give one of them only")
    if len(named) > 1:
        raise ConfigError(f"like: one run at a time. Received: {' and '.join(named)}")
    parsed = get_args_parser().parse_args(rest)
    plain = read(named[0], rest)
    try:
        written, dropped = overrides(plain, parsed.config_dir)
    except (HydraException, OmegaConfBaseException, TypeError, ValueError) as error:
        raise ConfigError(f"like: that configuration cannot be taken over: {str(error)[:300]}") from None
    lines = without_chosen(written, parsed.overrides)
    check_weights(plain, parsed.overrides)
    foreign = [line for line in lines if is_foreign(line)]
    print_skipped(foreign, dropped)
    lines = [line for line in lines if not is_foreign(line)]
    unused.brought[:] = lines
    first = next((at for at, argument in enumerate(rest) if argument in parsed.overrides), len(rest))
    return [*rest[:first], *lines, *rest[first:]]


def without_chosen(written: Mapping[str, str], typed: Sequence[str]) -> list[str]:
    """Return the overrides of a configuration, given with their groups, but for groups that the command line chooses.

    Args:
        written: the overrides, each with its group.
        typed: the overrides of the command line.
    """
    chosen = {argument.partition("=")[0] for argument in typed}
    if "regime" in chosen and not any(line.startswith("optimizer=") for line in written):
        chosen.add("optimizer")  # the old regime had selected it; the new one selects its own
    if HEAD in chosen:
        written = {
            line: group for line, group in written.items() if not line.startswith((HEAD, "++regime.head_optimizer."))
        }
    return [line for line, group in written.items() if group not in chosen]


def is_foreign(line: str) -> bool:
    """Return whether an override names an address or archive to open, or the hash or length of one.

    Hash and length are skipped with the address: they come from the same author and verify nothing.
    """
    key, _, value = line.lstrip("+").partition("=")
    return key in DOWNLOAD or (key.startswith("data.") and "://" in value)


def check_weights(plain: Mapping[str, Any], typed: Sequence[str]) -> None:
    """Raise ConfigError if the weights of a configuration are at an address and the command line gives no others."""
    weights = str(value_at(plain, "model.weights", ""))
    given = {argument.lstrip("+~").partition("=")[0] for argument in typed}
    is_remote = "://" in weights or weights.startswith(("//", "\\\\"))  # a local file is read as data, not code
    if is_remote and not given & {"model", "model.weights"}:
        raise ConfigError(
            f"like: model.weights: that configuration names an address, which is not opened unless you type it "
            f"yourself: model.weights={quoted(weights)}, or give other weights"
        )


def print_skipped(foreign: Sequence[str], dropped: Sequence[str]) -> None:
    """Print to standard error which overrides (`foreign`) and keys from the environment (`dropped`) were skipped."""
    if foreign:
        listed = ", ".join(line.lstrip("+") for line in foreign)
        shown = "".join(letter if letter.isprintable() else "?" for letter in listed)
        print(
            f"like: skipped, because addresses and archives of another configuration are not opened: {shown}. "
            "Type what you want to use",
            file=sys.stderr,
        )
    if dropped:
        print(f"like: skipped, because nothing is taken from the environment: {', '.join(dropped)}", file=sys.stderr)


def without_continue(given: Sequence[str]) -> list[str]:
    """Return the command line with `continue=RUN` replaced by `like=` and the key that names that run's folder."""
    named, rest = split_key(given, "continue")
    if not named:
        return rest
    likes = [argument for argument in rest if argument.startswith("like=")]
    if len(named) > 1 or likes:
        received = [*(f"continue={name}" for name in named), *likes]
        raise ConfigError(
            f"continue: one run at a time, whose configuration is taken over. Received: {' '.join(received)}"
        )
    folder = quoted(str(resume.find(named[0], rest, "continue")))
    return [f"like={folder}", *rest, f"++{KEY}={folder}"]


def read(named: str, rest: Sequence[str]) -> dict[str, Any]:
    """Return the logged configuration of a run, by its directory, MLflow id, or the end of its name; or ConfigError."""
    folder = local_folder(named)
    if folder is not None:
        path = folder / CONFIG
        try:
            if path.exists() and not path.is_file():
                raise ConfigError(f"like: {path}: must be a file, no directory, pipe or device")
            if path.stat().st_size > LARGEST:
                raise ConfigError(f"like: {path} is larger than {LARGEST:,} bytes: that is no configuration")
            text = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"like: {path}: {error.strerror}. Give a run's folder, or its MLflow id") from None
    else:
        uri = store_of(rest)
        run_id = queries.get_run(uri, named, "like").info.run_id
        text = queries.read_files(uri, run_id, [CONFIG], largest=LARGEST)[CONFIG]
    return parse(text, f"{CONFIG} of {named}")


def parse(text: bytes, where: str) -> dict[str, Any]:
    """Return the mapping in a YAML text; ConfigError if it is none, too deep, or has aliases, which may fill memory."""
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
    if not plain.get(CONFIG_END):
        raise ConfigError(f"like: {where} ends before {CONFIG_END}: it is damaged. Restore it from a copy")
    return plain


def overrides(plain: Mapping[str, Any], config_dir: str | None) -> tuple[dict[str, str], list[str]]:
    """Return overrides that compose into the same experiment as a logged configuration, each with its group.

    Only values that differ from those of the chosen groups are written out, so that values that follow from other keys
    still do.

    Returns:
        The overrides; and the keys that were skipped because their values are interpolations.

    Raises:
        ConfigError: a key is unknown, or the value of a group is not a mapping.
    """
    wanted = _identity_keys(plain)
    lines, base = _choices(wanted, config_dir)
    dropped: list[str] = []
    for key, value in wanted.items():
        for path, leaf in leaves(value, key):
            if has_interpolation(leaf):
                dropped.append(path)
            elif value_at(base, path, MISSING) != leaf:
                lines[f"++{path}={format_value(leaf)}"] = key
    for path in OPEN:
        before, after = value_at(base, path), value_at(wanted, path)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines |= {f"~{path}.{key}": path.partition(".")[0] for key in before if key not in after}
    return lines, dropped


def _identity_keys(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a configuration that belong to a run's identity; raise ConfigError as `overrides` does."""
    known = Config.model_fields
    wrong = [unknown_key(str(key), known, value) for key, value in plain.items() if key not in known and key != "hydra"]
    if wrong:
        raise ConfigError("\n".join(["like: that configuration cannot be used:", *(f"  {line}" for line in wrong)]))
    wanted = {key: value for key, value in plain.items() if key in known and key not in NOT_IDENTITY}
    for group in set(GROUPS) & set(wanted):
        if not isinstance(wanted[group], Mapping):
            raise ConfigError(f"like: {group}: must be a mapping. Received: {wanted[group]!r}")
    runtime = wanted.pop("runtime", None)
    if isinstance(runtime, Mapping):
        wanted["runtime"] = {key: runtime[key] for key in RUNTIME if key in runtime}
    return wanted


def _choices(wanted: Mapping[str, Any], config_dir: str | None) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the overrides that choose a configuration's groups, each with its group, and what they compose into.

    A choice that follows from another one (a regime selects its optimizer) is not among them.
    """
    lines: dict[str, str] = {}
    folders = [CONF, *([Path(config_dir)] if config_dir else [])]
    places = {group: (group, group) for group in ("data", "augmentation", "model", "regime", "schedule", "optimizer")}
    places["regime.head_optimizer"] = (HEAD, "regime")
    base = compose([], config_dir)
    for place, (choice, group) in places.items():
        name = value_at(wanted, f"{place}.name")
        if not isinstance(name, str) or not re.fullmatch(r"\w+", name) or value_at(base, f"{place}.name") == name:
            continue
        if any((folder / choice.partition("@")[0] / f"{name}.yaml").is_file() for folder in folders):
            lines[f"{choice}={name}"] = group
            base = compose(list(lines), config_dir)
    return lines, base


MISSING = "???"
HEAD = "optimizer@regime.head_optimizer"
OPEN = ("model.layers", "model.head.dense", "class_weights")  # mappings whose keys are the user's


def compose(lines: Sequence[str], config_dir: str | None) -> dict[str, Any]:
    """Return the plain values that Hydra composes from overrides; a mandatory value that is not given is MISSING."""
    plain: Any = OmegaConf.to_container(compose_config(lines, config_dir), resolve=True)
    return dict(plain)


def has_interpolation(value: Any) -> bool:
    return "${" in str(value)  # also within lists and mappings
