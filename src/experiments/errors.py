"""Exceptions that are shown to users: each message names what is wrong, where, what is allowed and what to do."""

from __future__ import annotations


class ConfigError(ValueError):
    """Raised for an invalid configuration; the message names key, allowed, received and what to do."""


class DataError(ValueError):
    """Raised for images that cannot be used; the message names every path and what to do about it."""


class Pruned(Exception):
    """Raised to end a run early because a search's pruner found its learning curve behind those of other trials."""
