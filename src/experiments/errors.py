"""Exceptions that users meet: each message names what is wrong, where, what is allowed and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class ConfigError(ValueError):
    """A value in the configuration that cannot work; the message names key, allowed, received and what to do."""


class DataError(ValueError):
    """Pictures that cannot be used; the message names every path and what to do about it."""


class Pruned(Exception):
    """A search ended this run early: its curve is behind."""
