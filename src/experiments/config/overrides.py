"""Quoting of values for Hydra's override grammar and the shell, so that a text arrives unchanged."""

from __future__ import annotations

import os
import re
import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException


def quoted(text: str, quote: str = "'") -> str:
    r"""Return a text in quotes, as Hydra's grammar reads it literally.

    In that grammar a backslash is an escape only before a quote, and before ${, which would be an interpolation.
    """
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
    before_quotes = re.sub(rf"(\\*){quote}", lambda found: found[1] * 2 + "\\" + quote, text)
    whole = re.sub(r"(\\+)\Z", lambda found: found[1] * 2, before_quotes)
    return f"{quote}{whole}{quote}"


def literal(text: str) -> str:
    """Return a typed value without the quotes of Hydra's grammar, if it has any."""
    try:
        value = OverridesParser.create().parse_override(f"key={text}")._value
    except HydraException:
        return text
    return value.text if isinstance(value, QuotedString) else text


def as_typed(key: str, text: str) -> str | None:
    """Return the shell argument that sets a key to a text; None if the key is invalid, so that quoting does not help.

    Args:
        key: the key, with one or two plus signs before it where they are needed.
        text: the value; a leading ~ is expanded, which neither Hydra nor most shells do after an =.
    """
    text = os.path.expanduser(text)
    parser = OverridesParser.create()
    for value in (text, *sorted((quoted(text, '"'), quoted(text)), key=lambda value: len(shlex.quote(value)))):
        try:
            override = parser.parse_override(f"{key}={value}")
            found = None if override.is_sweep_override() else override.value()
        except HydraException:
            continue
        if value != text or (isinstance(found, str) and found == text and "${" not in text):
            return shlex.quote(f"{key}={value}")
    return None
