"""Credentials are redacted in whatever form they come, and reach the place where they are used; foreign names."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from experiments.config import credentials, schema, validation
from experiments.errors import ConfigError
from experiments.system import redaction
from experiments.system.progress import PlainConsole, Terminal
from experiments.system.redaction import (  # fmt: skip
    conceal_arguments,
    is_concealed,
    redact_credentials,
    redacted,
    remember,
    reveal,
    visible,
)

SECRET = "S3cr3t"
PASSWORDS = (
    SECRET, f"{SECRET}@x", f"a:{SECRET}", f"{SECRET}/y", f"{SECRET}?z", f"{SECRET}#1", f"2024/{SECRET}", f"%40{SECRET}",
    quote(f"p@:/?#{SECRET}", safe=""), f"'{SECRET}", f"{SECRET}&b=c", f"{SECRET}%2F", f"*{SECRET}", f"$,{SECRET}",
)  # fmt: skip
ADDRESSES = (
    "http://user:{}@host:5000", "https://user:{}@host/mlflow/#/x", "http://me@corp.com:{}@host:80/a",
    "postgresql://user:{}@host:5432/db", "postgresql+psycopg://me@corp:{}@host/db?sslmode=require", "redis://:{}@host",
    "mysql+pymysql://user:{}@[::1]:3306/db", "ftp://user:{}@host/artifacts",
)  # fmt: skip
QUERIES = (
    "postgresql://host/db?user=me&password={}", "postgresql://host/db?sslpassword={}&user=me", "http://h/x?token={}",
    "https://h/a.zip?api_key={}", "https://h/a.zip?X-Amz-Algorithm=A&X-Amz-Signature={}&X-Amz-Date=1",
    "https://h/a.zip?X-Amz-Security-Token={}", "https://acc.blob.core.windows.net/c/a.zip?sv=1&sig={}&se=2",
    "https://h/a?client_secret={}", "https://h/a?x-goog-signature={}",
)  # fmt: skip
FRAMES = (
    "{}", "tracking.uri={}", "tracking.uri='{}'", "uri: {}", "cannot reach {} (refused)", '{{"uri": "{}", "n": 1}}',
    "  File x, line 1\nValueError: {}\n", "a, {}", "[{}]", "see {}.", "🏃 View run x at: {}/#/experiments/1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in os.environ.items():
        if "://" in value:
            monkeypatch.delenv(name)
    monkeypatch.setenv(redaction.VARIABLE, "{}")
    redaction._known_values.cache_clear()
    yield
    redaction._known_values.cache_clear()


@pytest.mark.parametrize("frame", FRAMES)
def test_no_form_of_an_address_shows_its_password(frame: str) -> None:
    for address, password in itertools.product(ADDRESSES, PASSWORDS):
        if address.startswith("https://user:{}@host/") and password.startswith("2024/"):
            continue  # https://user:2024/x@host/ is a host, its port and a path
        text = redact_credentials(frame.format(address.format(password)))
        assert SECRET not in text and "***" in text, (address, password, text)
        assert redact_credentials(text) == text, "idempotent"
    for query, password in itertools.product(QUERIES, (SECRET, f"a%2F{SECRET}", f"a:{SECRET}", f"a@{SECRET}/b")):
        text = redact_credentials(frame.format(query.format(password)))
        assert SECRET not in text, (query, password, text)
        assert text.split("?")[0] == frame.format(query).split("?")[0], "all else stays"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tracking.uri=postgresql://me:s3/c@r3t@host:5432/db", "tracking.uri=postgresql://me:***@host:5432/db"),
        ("postgresql+psycopg://me:2024/x@db/runs", "postgresql+psycopg://me:***@db/runs"),
        ("uri: https://x:y@z", "uri: https://x:***@z"),
        ("http://me@corp.com:y@z/a", "http://me@corp.com:***@z/a"),
        ("http://host/a:b@c https://host:80/a@c", "http://host/a:b@c https://host:80/a@c"),
        ("http://a:b@c,http://d:e@f", "http://a:***@c,http://d:***@f"),
        ("x='http://a:b@c','http://d:e@f'", "x='http://a:***@c','http://d:***@f'"),
        ("https://ghp_0123456789abcdefghij@github.com/x", "https://***@github.com/x"),
        ("https://token:x-oauth-basic@github.com/x", "https://***:***@github.com/x"),
        ("postgresql://me:cut off he", "postgresql://me:*** off he"),
        ("postgresql://h/db?password=x&sslpassword=y&a=z", "postgresql://h/db?password=***&sslpassword=***&a=z"),
        ("with url: /a.zip?X-Amz-Signature=x&a=b (Caused", "with url: /a.zip?X-Amz-Signature=***&a=b (Caused"),
        ("host=h password='a b' user=u", "host=h password=*** user=u"),
        ("Authorization: Basic dTpw, x", "Authorization: Basic *** x"),
        ("+data.api_key=x seed=1", "+data.api_key=*** seed=1"),
        *((text, text) for text in (
            "http://[::1]:5000/x", "http://127.0.0.1:5000.", "(http://host:5000)", "http://HOST:PORT/",
            "file:" + "///a:b@c",
            "sqlite:////x/y.db", "s3://bucket/key:a@b", "me@host:a/b", "postgresql://me:${oc.env:PW}@host/db",
            "model.head.dropout=0.5 augmentation=strong", "git@github.com:x/y.git", "ssh://git@host/x",
            "http://host:5000/?page=2", "1 token, 3 passwords: none", "",
        )),
    ],
)  # fmt: skip
def test_what_is_replaced_and_what_stays(text: str, expected: str) -> None:
    assert redact_credentials(text) == expected


def test_known_values_are_replaced_wherever_they_stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    password = "corr ect@Horse/1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:{quote(password, safe='')}@host/db")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:Pr0xy-pw@proxy:3128")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tok-12345")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "mlflow")  # a word that stands in many texts
    monkeypatch.setenv("SIGNING_SECRET", str(tmp_path))  # the path of a file with it is none itself
    redaction._known_values.cache_clear()
    assert redact_credentials(f"in {tmp_path}") == f"in {tmp_path}"
    for form in (password, quote(password), quote_plus(password), "Pr0xy-pw", "tok-12345"):
        assert redact_credentials(f"login with {form!r} failed") == "login with '***' failed", form
    assert redact_credentials("mlflow.exceptions") == "mlflow.exceptions"


def test_arguments_without_credentials_and_back() -> None:
    given = [
        "tracking.uri=postgresql://me:pa:ss@host/db", "sweep.storage='postgresql://me:it\\'s@host/db?password=x'",
        "data.url='https://h/a.zip?sig=1','https://h/a.zip?sig=2'", "+data.api_key=XYZ", "outputs='/tmp/a?token=b'",
        "hydra.run.dir='/tmp/a?token=b/1'", "+x=[http://a:1@h,http://b:2@h]", "seed=1", "-m", "not an override",
        "tracking.uri='postgresql://u:${oc.env:PW}@h/db'", "notes='mail me@x.org: http://h:80/a'",
    ]  # fmt: skip
    hidden = conceal_arguments(given)
    assert hidden == [
        "tracking.uri=postgresql://me:***@host/db", "sweep.storage='postgresql://me:***@host/db?password=***'",
        "data.url='https://h/a.zip?sig=***','https://h/a.zip?sig=***'", "+data.api_key=***", *given[4:6],
        "+x=[http://a:***@h,http://b:***@h]", *given[7:],
    ]  # fmt: skip
    assert reveal("postgresql://me:***@host/db", "tracking.uri") == "postgresql://me:pa:ss@host/db"
    assert reveal("postgresql://me:***@host/db?password=***") == "postgresql://me:it's@host/db?password=x"
    assert reveal("***", "data.api_key") == "XYZ"
    assert reveal("***", "data.other") == "***" and is_concealed("***")
    assert reveal("http://b:***@h", "x.1") == "http://b:2@h"
    assert conceal_arguments(["+y={a:http://a:3@h}"]) == ["+y={a:http://a:***@h}"]
    assert reveal("http://a:***@h", "y.a") == "http://a:3@h"
    assert conceal_arguments(hidden) == hidden, "as the jobs of a sweep get them"


def test_texts_that_are_alike_once_redacted_or_unresolved_have_a_value_for_each_key() -> None:
    for key, number in (("tracking.uri", 1), ("sweep.storage", 2)):
        assert remember(key, f"http://me:pw-{number}@h") == "http://me:***@h"
        assert remember(f"{key}.name", f"value-{number}", "${.name}") == "${.name}"
    assert reveal("http://me:***@h", "tracking.uri") == "http://me:pw-1@h"
    assert reveal("${.name}", "tracking.uri.name") == "value-1"
    assert reveal("${.name}", "data.name") == "${.name}"


def test_the_environment_gives_back_what_a_file_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_concealed(text := "http://me:***@host:5000") and reveal(text) == text
    assert is_concealed("https://***@host/x") and is_concealed("https://host/x?sig=***&b=c")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pw@host:5000")
    assert reveal(text) == "http://me:pw@host:5000"


def test_plain_values_keep_what_is_no_credential() -> None:
    plain = {
        "uri": "http://a:b@c", "tags": {"password": "x", "other": 1}, "list": ["http://a:b@c", None], "api_key": "",
        "outputs": "/tmp/api_key=x/y?token=z", "password": "${oc.env:PW}",
    }  # fmt: skip
    assert redacted(plain) == plain | {
        "uri": "http://a:***@c", "tags": {"password": "***", "other": 1}, "list": ["http://a:***@c", None],
    }  # fmt: skip


def test_a_composed_configuration_is_concealed_and_read_whole(
    composed: Callable[..., DictConfig], config: Callable[..., schema.Config]
) -> None:
    given = ("tracking.uri=postgresql://me:pw-1@${data.name}/db", "+tags.api_key=xyz")
    made = composed(*given)
    credentials.conceal(made)
    assert "pw-1" not in str(made) and "xyz" not in str(made)
    read = validation.validate(made)
    assert read.tracking.uri == "postgresql://me:pw-1@synthetic/db" and read.tags["api_key"] == "xyz"
    with pytest.raises(ConfigError, match=r"tracking.uri: its password is missing.* MLFLOW_TRACKING_URI. Received: ht"):
        config("tracking.uri=http://me:***@elsewhere")
    with pytest.raises(ConfigError, match=r"tracking.artifacts: must hold no password.* Received: ftp://me:\*\*\*@h/a"):
        config("tracking.artifacts=ftp://me:pw@h/a")


def test_values_from_the_environment_are_found_through_other_keys() -> None:
    written = {
        "data": {"root": "${oc.env:IMAGES}", "images": "${.root}/a", "labels": "${data.images}/b", "pattern": "x"},
        "copy": "${data}", "layers": ["${oc.env:LAYER}"], "first": "${layers[0]}", "seed": "${data.pattern}",
    }  # fmt: skip
    assert credentials.from_environment(OmegaConf.create(written)) == {
        "data.root": "${oc.env:IMAGES}", "data.images": "${.root}/a", "data.labels": "${data.images}/b",
        "copy": "${data}", "layers": "['${oc.env:LAYER}']", "first": "${layers[0]}",
    }  # fmt: skip


def test_streams_and_records_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    out, log = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    factory = logging.getLogRecordFactory()
    handler = logging.StreamHandler(log)
    logger = logging.getLogger("experiments.test")
    logger.addHandler(handler)
    try:
        redaction.install()
        redaction.install()
        assert not isinstance(sys.stdout.stream, redaction.RedactingStream)
        print("http://a:pw@c", end="")
        sys.stdout.writelines(["http://a:pw@c\n"])
        try:
            raise ValueError("postgresql://a:pw@c")
        except ValueError:
            logger.exception("at %s", "http://a:pw@c")
    finally:
        logger.removeHandler(handler)
        logging.setLogRecordFactory(factory)
    assert out.getvalue() == "http://a:***@chttp://a:***@c\n"
    assert log.getvalue().startswith("at http://a:***@c\nTraceback")
    assert log.getvalue().endswith("ValueError: postgresql://a:***@c\n")


def everything_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_fails_before_it_starts_leaves_no_credential(
    drive: Callable[..., tuple[list[dict[str, Any]], list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "mine" / "tracking"
    group.mkdir(parents=True)
    (group / "own.yaml").write_text(f"defaults: [server]\nuri: http://me:{SECRET}-2@127.0.0.1:9\n")
    given = f"tracking.uri='http://me@corp.com:{SECRET}:/?@127.0.0.1:9'"
    lines = [
        ["tracking=server", given, "hydra.run.dir=typed"],
        ["--config-dir", str(tmp_path / "mine"), "tracking=own", "hydra.run.dir=own"],
        ["tracking=server", given, "--cfg", "job"],
        ["tracking=server", given, "optimizer.lrr=1"],
        ["resume=begun"],
    ]
    begun = {
        "command": {"directory": str(tmp_path), "config_dir": None, "overrides": ["tracking=server"]},
        "outputs": str(tmp_path), "status": "FAILED", "threads": 1, "store": "http://me:***@127.0.0.1:9",
    }  # fmt: skip
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text(json.dumps(begun))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}-3@127.0.0.1:9")
    reported, _ = drive("experiments.train", lines, tmp_path)
    assert "***@127.0.0.1:9" in reported[0]["err"] + str(reported[0]["code"])
    assert "uri: http://me@corp.com:***@127.0.0.1:9" in reported[2]["out"]
    assert "http://me:***@127.0.0.1:9 cannot be used" in str(reported[4]["code"]), (
        "the resumed run reached for its store"
    )
    written = everything_below(tmp_path)
    files = (".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "train.log")
    assert {f"{folder}/{name}" for folder in ("typed", "own", "begun") for name in files} <= set(written)
    del written["mine/tracking/own.yaml"]
    for name, content in written.items():
        assert SECRET.encode() not in content, name
    assert SECRET not in str([(result["out"], result["err"]) for result in reported])


# --- Names that strangers chose

HOSTILE = (
    "[red]x[/red]", "$\\frac{", "a\nb", "\x1b[31mx", "<script>x</script>", "a|b", "..", "-rf", "n" * 200, "😀", "שלום",
    "\u202egpj.exe", "\x1b]0;title\x07", "\x1b]8;;http://x\x1b\\link", "_under", "=cmd()", "a\rb", ":cat:",
    "\x9b31m", "b\bb", "bad\udcff",
)  # fmt: skip
OBEYED = set("\x1b\r\b\x07\x9b\u202e\udcff")  # by a terminal


@pytest.mark.parametrize("name", HOSTILE)
def test_a_foreign_name_is_shown_and_not_obeyed(name: str) -> None:
    file = io.StringIO()
    console = PlainConsole(file=file, width=400, force_terminal=True, color_system=None)
    table = Table("name")
    table.add_row(name)
    console.print(f"a {name} b", soft_wrap=True)
    console.print(table)
    with Terminal(console).stage(name[:40], 2) as advance:
        advance(note=name[:40])
    progress_of_rich = ("\x1b[?25l", "\x1b[?25h", "\x1b[2K", "\x1b[1A", "\r")
    text = file.getvalue()
    for command in progress_of_rich:
        text = text.replace(command, "")
    assert not OBEYED & set(text)
    assert f"a {visible(name)} b" in text
    assert not OBEYED & set(visible(name)) and visible("a\tb\n é 😀👩\u200d🔬") == "a\tb\n é 😀👩\u200d🔬"


def test_a_stream_passes_on_colours_and_nothing_else_of_a_terminal() -> None:
    file = io.StringIO()
    stream = redaction.RedactingStream(file)
    stream.write("\r\x1b[2K\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b]8;;http://x\x1b\\ \x9b31m \b \u202e\n")
    assert file.getvalue() == (
        "\r\x1b[2K\x1b[31mred\x1b[0m \\x1b]0;title\\x07\\x1b]8;;http://x\\x1b\\ \\x9b31m \\x08 \\u202e\n"
    )
