"""Hydra's errors in the words of this project: key, allowed, received, nearest."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from experiments.schema import faults, nearest, unknown_key


def explain(error: Exception, overrides: Sequence[str]) -> str | None:
    """The text for an error of composing the configuration; None for an error of another kind.

    Args:
        error: what Hydra raised.
        overrides: the command line, to tell what was received.
    """
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        close = nearest(choice, error.options)
        hint = f" Nearest: {group}={close}." if close else ""
        return faults([f"{group}: no such choice. Received: {choice!r}. Allowed: {', '.join(error.options)}.{hint}"])
    if isinstance(error, OverrideParseException):
        return faults(
            [f"{error.override}: not an override Hydra can read. Allowed: KEY=VALUE, +KEY=VALUE, ~KEY. {error}"]
        )
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and cause.full_key:
        return faults([_unknown(cause, overrides)])
    if isinstance(cause, OmegaConfBaseException) and isinstance(error, ConfigCompositionException):
        key = cause.full_key
        return faults([f"{key}: {str(cause.msg).splitlines()[0]}. Received: {_received(str(key), overrides)!r}"])
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return faults(str(error).splitlines())
    return None


def _unknown(cause: OmegaConfBaseException, overrides: Sequence[str]) -> str:
    key = str(cause.full_key)
    parent = cause.parent_node
    allowed = [str(name) for name in parent if name != "hydra"] if parent is not None else []  # type: ignore[attr-defined]
    return unknown_key(key, allowed, _received(key, overrides))


def _received(key: str, overrides: Sequence[str]) -> str:
    """The value that the command line gives a key, or the override that led into it."""
    for override in overrides:
        name, _, value = override.lstrip("+~").partition("=")
        if name == key:
            return value
        if name.startswith(f"{key}."):
            return override
    return ""
