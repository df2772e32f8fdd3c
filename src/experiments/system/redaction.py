"""Redaction of credentials and escaping of control characters in everything that is printed, logged or written.

Credentials are recognised by their form or by their value, and replaced by ***: in the streams and log records of a
process (`install`), in the command line (`conceal_arguments`) and in the composed configuration
(`credentials.conceal`), from which everything that a run writes is made. Those of the latter two stay in the
environment of this process and its children, so that `reveal` can restore them where they are used.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TextIO, cast
from urllib.parse import quote, quote_plus, unquote, unquote_plus, urlsplit

from experiments.system.startup import protect_streams

STARS = "***"
VARIABLE = "EXPERIMENTS_CREDENTIALS"  # the values given to `remember`, as JSON; Ray and SLURM jobs inherit it

_SCHEME = r"\b\w[\w+.-]{0,30}://"
# A password may contain any character; it ends where the next item of a list begins.
_ANY = rf"(?:(?!['\"]?,\s?['\"]?{_SCHEME})(?!['\"],)\S)"
# Digits and a slash after the colon of a web address are a port and a path, which may contain an @, unless a host
# follows the @: then they are a password.
_PORT_AND_PATH = r"https?://[^\s:/@]*:\d{1,5}/(?!\S*@(?:[\w.-]+:\d|localhost\b|\d+\.\d+\.))"
_USERINFO = re.compile(
    rf"(?P<scheme>(?!{_PORT_AND_PATH}){_SCHEME})(?P<user>[^\s/:?#\"'<>]*):(?!\$\{{[^}}]*\}}@){_ANY}*@"
)
_TOKEN_AS_USER = re.compile(r"(https?://)[^\s/:?#@\"'<>]{20,}@")
# An address that was cut off inside its password; `host:8080`, `host:PORT` and `[::1]:80` do not match.
_CUT_OFF = re.compile(
    rf"({_SCHEME}(?!\[)[^\s/:?#@\"'<>]*:)(?!\d*(?:[^\w*]|$))(?![A-Z]+\b)[^\s@,;)\]}}\"']+(?![^\s@]*@)"
)
_NAME = (
    r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key(?:[_-]?id)?|account[_-]?key"
    r"|signature|credentials?)"
)
_QUERY = re.compile(rf"([?&;](?:{_NAME}|sig|key|auth|pass|sas)=)(?!\$\{{)(?:(?!,{_SCHEME})[^&\s\"'<>])+", re.IGNORECASE)
_ASSIGNED_NAME = (
    r"[\w.-]*(?:password|passwd|passphrase|secret|api_?key|access_?key(?:_?id)?|account_?key"
    r"|(?:access|api|auth|bearer|refresh|security|session|tracking)_?token)"
)
_ASSIGNED = re.compile(
    rf"((?<![\w.?&;-]){_ASSIGNED_NAME}\s?=\s?)(?!\$\{{)('(?:\\'|[^'])*'|\"[^\"]*\"|[^\s'\"]\S*)", re.IGNORECASE
)
_HEADER = re.compile(r"(authorization\W{1,6}(?:bearer|basic|token)\s+)[^\s'\"]+", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(
    r"(?:PASSWORD|PASSWD|PASSPHRASE|TOKEN|SECRET|API_?KEY|(?:ACCESS|ACCOUNT|SECRET)_KEY|CONNECTION_STRING)$"
)
_WHOLE_ADDRESS = re.compile(r"\s*\w[\w+.-]*://[^/:]*:(.*)@", re.DOTALL)


def redact_credentials(text: str) -> str:
    """Return the text with *** in place of every credential.

    Credentials are passwords of addresses (scheme://user:***@host), values of query parameters and assignments that
    are named password, token, signature and the like, and, wherever they occur, the values of credentials in this
    process's environment or command line.
    """
    if known := _known_values():
        text = known.sub(STARS, text)
    if "://" in text:
        text = _USERINFO.sub(_without_password, text)
        text = _CUT_OFF.sub(rf"\1{STARS}", _TOKEN_AS_USER.sub(rf"\1{STARS}@", text))
    if "=" in text:
        text = _ASSIGNED.sub(rf"\1{STARS}", _QUERY.sub(rf"\1{STARS}", text))
    return _HEADER.sub(rf"\1{STARS}", text)


def _without_password(found: re.Match[str]) -> str:
    whole = found[0].removesuffix("@")
    alone = whole.endswith((":", ":x-oauth-basic"))  # the user name is a token, and thus the credential
    return f"{found['scheme']}{STARS if alone and found['user'] else found['user']}:{STARS}@"


def redacted(value: Any, name: str = "") -> Any:
    """Return the plain values of a configuration (mappings, lists, texts) redacted.

    Only addresses, and texts whose name in their mapping is that of a credential, are redacted: a path may look like an
    assignment.
    """
    if isinstance(value, str):
        if value and "${" not in value and re.fullmatch(_ASSIGNED_NAME, name, re.IGNORECASE):
            return STARS
        return redact_credentials(value) if "://" in value else value
    if isinstance(value, Mapping):
        return {key: redacted(below, str(key)) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(below, name) for below in value]
    return value


# --- Values of credentials known to this process


@cache
def _known_values() -> re.Pattern[str] | None:
    """Return a pattern that matches the credentials of the environment, which takes a while; None if there are none."""
    values: set[str] = set()
    for hidden, text in _table().items():
        if STARS in hidden:  # unresolved text without *** stands for any value, such as a path
            values |= {*_forms(text, whole="://" not in text)}
    for name, value in os.environ.items():
        if name != VARIABLE and ("://" in value or _SECRET_VARIABLE.search(name)):
            is_path = value.startswith(("/", "~")) and os.path.exists(os.path.expanduser(value))
            values |= {*_forms(value, whole=bool(_SECRET_VARIABLE.search(name)) and not is_path)}
    known = sorted(filter(_distinct, values), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, known))) if known else None


def _table() -> dict[str, str]:
    """Return the values given to `remember`, by their redacted form and by `key=redacted form`."""
    table: dict[str, str] = json.loads(os.environ.get(VARIABLE) or "{}")
    return table


def _forms(text: str, *, whole: bool) -> Iterator[str]:
    """Yield the credentials of an address, or a text that is one as a `whole`, percent-encoded and not."""
    found = [text] if whole else []
    if (address := _WHOLE_ADDRESS.match(text)) and _USERINFO.sub("", text) != text:
        found.append(address[1])
    with contextlib.suppress(ValueError):
        found.append(urlsplit(text).password or "")
    found += [match[0][len(match[1]) :] for match in _QUERY.finditer(text)]
    for value in found:
        plain = unquote(value)
        yield from (value, plain, unquote_plus(value), quote(plain, safe=""), quote(plain), quote_plus(plain))


def _distinct(value: str) -> bool:
    """Return whether a value is no ordinary word or number, which would be replaced in unrelated text, too."""
    kinds = sum(bool(re.search(kind, value)) for kind in ("[a-z]", "[A-Z]", "[0-9]", r"[^\w]"))
    return (len(value) >= 6 and kinds >= 2) or len(value) >= 12


# --- Configuration values: redacted where they are written, restored where they are used


def remember(key: str, value: str, written: str | None = None) -> str:
    """Return a configuration value redacted; store the original for `reveal` in this process and its children.

    Of a value from the environment, its unresolved text (`written`) is returned.
    """
    hidden: str = redacted(value if written is None else written, key)
    if hidden != value:
        by_text = {} if hidden == STARS or written is not None else {hidden: value}
        os.environ[VARIABLE] = json.dumps(_table() | by_text | {f"{key}={hidden}": value})
        _known_values.cache_clear()
    return hidden


def reveal(text: str, key: str = "") -> str:
    """Return a configuration value with its credentials, taken from `remember` or from an environment variable.

    A text, redacted or unresolved, is returned unchanged if the original is not known.
    """
    if STARS not in text and "${" not in text:
        return text
    table = _table()
    if found := table.get(f"{key}={text}") or table.get(text):
        return found
    addresses = (value for name, value in os.environ.items() if "://" in value and name != VARIABLE)
    return next((value for value in addresses if redact_credentials(value) == text), text)


def is_concealed(text: str) -> bool:
    """Return whether a credential of a value was replaced by ***."""
    return text == STARS or re.search(r"://\S*:\*{3}@|://\*{3}@|=\*{3}(?:&|$)", text) is not None


def conceal_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line of Hydra overrides with its credentials redacted; `reveal` can restore them afterwards."""
    # Not imported at the top, because the other verbs of `experiments` start without Hydra.
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    parser = OverridesParser.create()

    def conceal(argument: str) -> str:
        if redact_credentials(argument) == argument or argument.lstrip("+~").startswith("hydra"):
            return argument
        try:
            override = parser.parse_override(argument)
        except OverrideParseException:  # Hydra reports the error, and writes nothing
            return argument
        values = _texts(override.get_key_element().lstrip("+~"), override.value())
        changed = [remember(key, value) != value for key, value in values]
        return redact_credentials(argument) if any(changed) else argument

    return [conceal(argument) for argument in arguments]


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield every text in an override's value with its dotted key."""
    from hydra.core.override_parser.types import ChoiceSweep, QuotedString

    if isinstance(value, QuotedString):
        yield key, value.text
    elif isinstance(value, str):
        yield key, value
    elif isinstance(value, ChoiceSweep):
        for choice in value.list:
            yield from _texts(key, choice)
    elif isinstance(value, list):
        for at, below in enumerate(value):
            yield from _texts(f"{key}.{at}", below)
    elif isinstance(value, dict):
        for name, below in value.items():
            yield from _texts(f"{key}.{name}", below)


# --- Control characters, shown as escapes

_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # they reorder the text around them
_UNPRINTED = rf"\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f{_BIDIRECTIONAL}\u2028\u2029\ufeff\U000e0000-\U000e007f"
_CONTROL = re.compile(rf"[{_UNPRINTED}\x1b\r\ud800-\udfff]")
# Live displays need the escape sequences for colours and the cursor (ESC [ ...) and carriage returns.
_CONTROL_OF_STREAM = re.compile(rf"[{_UNPRINTED}]|\x1b(?!\[[0-9;?]*[A-Za-z])")


def visible(text: str, control: re.Pattern[str] = _CONTROL) -> str:
    r"""Return the text with control characters written as escapes, such as \x1b; line ends and tabs stay.

    Otherwise a name that others chose could change the terminal's colours, title, links or text direction.
    """
    return control.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


# --- Standard streams and log records


class RedactingStream:
    """A text stream that redacts credentials and escapes control characters in everything that is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(visible(redact_credentials(text), _CONTROL_OF_STREAM))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class RedactedRecord(logging.LogRecord):
    """A log record without credentials and control characters in its message and traceback, for every handler."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if self.exc_info and self.exc_info[0]:
            text = "".join(traceback.format_exception(*self.exc_info)).rstrip("\n")
            self.exc_text = visible(redact_credentials(text))  # formatters use this text if it is set

    def getMessage(self) -> str:
        return visible(redact_credentials(super().getMessage()))


@contextmanager
def redacting() -> Iterator[None]:
    """Redact what this process prints to standard output and logs in the block; it may be that of a notebook.

    Standard error is left as it is, because absl closes the one that it knows when it is replaced.
    """
    _known_values.cache_clear()
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(RedactedRecord)
    try:
        with contextlib.redirect_stdout(cast(TextIO, RedactingStream(sys.stdout))):
            yield
    finally:
        logging.setLogRecordFactory(before)


def install() -> None:
    """Redact what this process prints and logs from now on, after `protect_streams`."""
    protect_streams()
    _known_values.cache_clear()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, RedactingStream):
            setattr(sys, name, cast(TextIO, RedactingStream(stream)))
    logging.setLogRecordFactory(RedactedRecord)
