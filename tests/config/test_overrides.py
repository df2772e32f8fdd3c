"""Quoting of overrides: errors show how to type a value, and what they show is accepted."""

from __future__ import annotations

import errno
import random
import shlex
from collections.abc import Callable

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from experiments.config.hydra_errors import explain
from experiments.config.overrides import as_typed, literal, quoted
from experiments.config.schema import Config


def value_of(override: str) -> str:
    """Return what a configuration holds after an override."""
    return str(OmegaConf.create({"key": OverridesParser.create().parse_override(override).value()}).key)


def test_any_text_can_be_typed() -> None:
    draw = random.Random(0)
    for _ in range(200):
        text = "".join(draw.choice("ab'\"\\${}()[],=#;&~ é1:%\n") for _ in range(draw.randint(1, 7))).lstrip("~")
        for quote in "'\"":
            assert value_of(f"key={quoted(text, quote)}") == text
        typed = as_typed("key", text)
        assert typed is not None
        (word,) = shlex.split(typed)
        assert value_of(word) == text


@pytest.mark.parametrize(
    "text, typed",
    [
        ("/data/plain", "data.root=/data/plain"),
        ("/data/archive (1)", "'data.root=\"/data/archive (1)\"'"),
        ("a=b", "'data.root=\"a=b\"'"),
        ("/Fotos/Hündchen", "'data.root=\"/Fotos/Hündchen\"'"),
        ("a,b", "'data.root=\"a,b\"'"),
        ("2024", "'data.root=\"2024\"'"),
        ("~/x", "data.root=/people/me/x"),
    ],
)
def test_what_is_shown_is_what_works(
    text: str, typed: str, config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/people/me")
    assert as_typed("data.root", text) == typed
    assert config("data=folder", *shlex.split(typed)).data.arguments["root"] == text.replace("~", "/people/me")


@pytest.mark.parametrize(
    "override, line",
    [
        ("data.root=/a (1)", "As text it is typed: 'data.root=\"/a (1)\"'"),
        ("+tags.why=é", "As text it is typed: '+tags.why=\"é\"'"),
        ("data.root=[a", "A list ends with ], and what is special in it is quoted, too. As text it is typed:"),
        ("notes=a,b", "several values are a sweep: add -m. One text: 'notes=\"a,b\"'. A list: 'notes=[a,b]'"),
        ("optimizer=adam,sgd", "optimizer=adam,sgd: several values are a sweep: add -m"),
        ("notes", "notes: not an override that Hydra can read. Allowed: KEY=VALUE, +KEY=VALUE, ~KEY"),
    ],
)
def test_hydras_errors_say_what_to_type(override: str, line: str, config: Callable[..., Config]) -> None:
    with pytest.raises(Exception) as caught:
        config(override)
    text = explain(caught.value, [override])
    assert text is not None and line in text
    if "sgd" in override:
        assert "One text" not in text, "a choice is no text"


def test_an_argument_may_have_the_quotes_of_the_grammar() -> None:
    assert [literal(text) for text in ("'a b'", '"it\'s"', "plain", "it's (1)", "7")] == [
        "a b", "it's", "plain", "it's (1)", "7"
    ]  # fmt: skip


def test_a_path_that_the_system_refuses_is_named() -> None:
    error = OSError(errno.EROFS, "Read-only file system", "/mnt/outputs/runs")
    text = explain(error, [])
    assert text is not None and text.startswith("/mnt/outputs/runs: Read-only file system. ")
    assert "outputs=... or EXPERIMENTS_HOME" in text
    assert explain(OSError(errno.EIO, "Input/output error", "x"), []) is None
