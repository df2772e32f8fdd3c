"""Every command on every page is valid: its verb and options exist, its configuration composes, its target is there.

Whole runs of the examples that are marked as tested are in test_readme.py. Commands of other programs are listed here
with where they are run, or why they are not.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import composition
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments import train  # noqa: F401 (registers the sweeper and the launchers)
from experiments.__main__ import VERBS
from experiments.config import foreign_options
from experiments.config.arguments import ARGUMENTS
from experiments.config.messages import is_known_key
from experiments.errors import ConfigError
from experiments.sweeps.search.space import dimension
from experiments.system.paths import CONF
from experiments.system.private_api import get_args_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PARSER_OF: Callable[[str], argparse.ArgumentParser] = cache(runpy.run_path(str(ROOT / "docs" / "cli.py"))["parser_of"])
BLOCK = re.compile(r"^```([\w{}-]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TESTED = re.compile(r"<!-- tested: \w+ -->\n.*?^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LANGUAGES = {"sh", "console", "text", "python", "yaml", "{toctree}", "{eval-rst}"}
# Programs that the pages use besides ours -> where they are run, or why they are not.
OTHERS = {
    "source": "a shell's own", "export": "a shell's own", "eval": "a shell's own; completion is in tests/test_main.py",
    "pip": "installs; tests/test_install.py builds and installs the package",
    "uv": "as pip", "uvx": "as pip", "jupyter": "a browser; tests/api/test_notebooks.py executes the notebooks",
    "curl": "tests/tracking/test_serving.py sends such a request",
    "initdb": "PostgreSQL: tests/reliability/test_cluster.py", "pg_ctl": "as initdb", "createdb": "as initdb",
    "mlflow": "its servers: tests/tracking/test_serving.py, tests/reliability/test_server.py",
    "ray": "a cluster of several machines: docs/cluster.md says that this is not tested",
}  # fmt: skip
FAILS = "optimizer.lrr=1e-4"  # the command of docs/runs.md that shows an error


class Command(NamedTuple):
    page: str
    text: str  # one line, without comment and prompt


def blocks() -> Iterator[tuple[str, str, str]]:
    """Yield each page's fenced blocks: page, language, text."""
    for page in PAGES:
        for language, body in BLOCK.findall(page.read_text(encoding="utf-8")):
            yield page.name, language, body


def command_lines(body: str) -> list[str]:
    """Return the lines of a block, with continued lines joined, without comments."""
    lines = re.sub(r"\\\n\s*", " ", body).splitlines()
    return [re.split(r"\s+#\s", line)[0].strip() for line in lines if line.strip()]


def commands_of(language: str, body: str) -> list[str]:
    """Return the commands in a block."""
    if language == "sh":
        return command_lines(body)
    return [line[2:] for line in command_lines(body) if line.startswith("$ ")] if language == "console" else []


def commands() -> list[Command]:
    """Return the commands in the pages' blocks and between backticks in their sentences, each once."""
    found = [Command(page, line) for page, language, body in blocks() for line in commands_of(language, body)]
    for path in PAGES:
        for text in INLINE.findall(BLOCK.sub("", path.read_text(encoding="utf-8"))):
            line = " ".join(text.split())
            if re.match(r"(experiments [a-z]|make [a-z]|python -m \w)", line):
                found.append(Command(path.name, line))
    return list({command.text: command for command in found}.values())


COMMANDS = commands()


def check_configuration(arguments: list[str]) -> None:
    """Compose and validate what `train` would; of a sweep, the job that has the first value of each swept key.

    Raises:
        ConfigError: the configuration is invalid.
    """
    overrides = []
    for override in OverridesParser.create().parse_overrides(arguments):
        swept = dimension(override) if override.is_sweep_override() else None
        overrides.append(f"{swept.element}={swept.ends[0]}" if swept else str(override.input_line))
    keys = {override.partition("=")[0] for override in overrides}
    source = ["data=folder"] if "data.root" in keys and "data" not in keys else []
    compose_once(
        *source, *(override for override in overrides if not override.startswith(("like=", "resume=", "continue=")))
    )


@cache
def compose_once(*overrides: str) -> None:
    if overrides:  # tests/config composes the defaults
        composition.configured(*overrides)


def check_command(text: str) -> None:
    """Raise an error if a command cannot be typed as it stands, placeholders aside."""
    program, *words = shlex.split(re.sub(r"^(?:[A-Z_]+=\S+ )+", "", text))
    words = ["." if word == "FOLDER" else word for word in words if word != "..."]  # a folder that exists
    if words[:2] == ["-m", "experiments"]:
        program, words = "experiments", words[2:]
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[0] in targets
    elif program == "experiments" and (words[0] in ("-sc", "--help", "VERB") or words in [[verb] for verb in VERBS]):
        return  # the name of a verb in a sentence, or no verb
    elif program == "experiments" and words[0] != "train":
        given, more = PARSER_OF(VERBS[words[0]][0]).parse_known_args(words[1:])
        assert not [word for word in more if word.startswith("-") or "=" not in word]
        check_configuration([*(getattr(given, "overrides", None) or []), *more])
    elif program == "experiments" or words[:2] == ["-m", "experiments.train"]:
        arguments = words[1:] if program == "experiments" else words[2:]
        foreign_options.check(arguments)
        check_configuration(get_args_parser().parse_args(arguments).overrides)
    elif program == "python":
        module, *arguments = words[1:] if words[0] == "-m" else words
        path = ROOT / (module if module.endswith(".py") else f"{module.replace('.', '/')}.py")
        source = path.read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in arguments if word.startswith("--")), f"an option of {path.name}"
    else:
        assert program in OTHERS


def test_every_block_names_its_language() -> None:
    assert {(page, language) for page, language, _ in blocks() if language not in LANGUAGES} == set()
    assert len(COMMANDS) > 100


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # which tracking=server needs


def test_every_command_of_every_page_is_valid(server: None) -> None:
    run = {line for page in PAGES for body in TESTED.findall(page.read_text("utf-8")) for line in command_lines(body)}
    assert len(run) > 8
    wrong = []
    for command in COMMANDS:
        if command.text in run:
            continue  # test_readme.py writes the files that belong to it, and runs it
        try:
            check_command(command.text)
        except (Exception, SystemExit) as error:
            if FAILS not in command.text:
                wrong.append(f"{command.page}: {command.text}\n    {type(error).__name__}: {error}")
        else:
            assert FAILS not in command.text
    assert not wrong, "\n".join(wrong)


def test_every_setting_in_the_table_of_settings_is_valid(server: None) -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = [row.rpartition(" | ")[2] for row in re.findall(r"^\| (?!what|-)(.*) \|$", page, re.MULTILINE)]
    settings = [text for row in rows for text in INLINE.findall(row) if "=" in text and not text.startswith("exp")]
    assert len(settings) > 30
    wrong = []
    for text in settings:
        try:
            check_configuration(shlex.split(text))
        except ConfigError as error:
            wrong.append(f"{text}: {error}")
    assert not wrong, "\n".join(wrong)


def test_every_key_between_backticks_is_one_of_the_configuration() -> None:
    """Keys such as `optimizer.lr=1e-4`; those of hydra and of a choice alone are looked up in conf/."""
    text = "".join(path.read_text(encoding="utf-8") for path in CONF.glob("**/*.yaml"))
    arguments = {f"{group}.{name}" for group, node in ARGUMENTS.items() for name in node}
    keys = {
        (page.name, key)
        for page in PAGES
        for code in INLINE.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))
        for key in re.findall(r"(?:^|(?<=[\s']))[+~]*([a-z_]+(?:\.[a-z_0-9]+)+)=", code)
    }
    assert len(keys) > 60
    wrong = [
        (page, key)
        for page, key in sorted(keys)
        if key not in arguments and not is_known_key(key)
        and not re.search(rf"^\s*(- )?{key.rpartition('.')[2]}:", text, re.MULTILINE)
    ]  # fmt: skip
    assert wrong == [("security.md", "data.api_key")], "the last is an example of a name that sounds secret"


@pytest.mark.parametrize("language", ["python", "yaml"])
def test_files_shown_on_pages_can_be_parsed(language: str) -> None:
    parse = ast.parse if language == "python" else yaml.safe_load
    bodies = [body for _, found, body in blocks() if found == language]
    assert bodies
    for body in bodies:
        parse(body)


def texts_of_the_source() -> list[str]:
    """Return the text literals of src/; what is formatted into one is a zero character."""
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sd]", "\0", node.value))
    return found


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_program() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = [line for language, body in BLOCK.findall(page) if language == "text" for line in body.splitlines()]
    assert len(messages) > 25
    source = texts_of_the_source()
    for message in messages:
        parts = [part.strip() for part in re.split(r"\.\.\.|^optimizer\.lrr", message)]
        assert max(map(len, parts)) > 15, "a message can be recognised"
        order = re.compile(".*".join(re.escape(part) for part in parts if part.strip(" .:,;()")), re.DOTALL)
        assert any(order.search(text) for text in source), message


@pytest.mark.slow
@pytest.mark.parametrize("page", ["cats_and_dogs", "flowers"])
def test_the_commands_of_a_tutorial_run_one_after_the_other(page: str, drawn: Path, tmp_path: Path) -> None:
    """On drawn images, with the shipped backbone; RUN and SWEEP are the latest ones; large grids are only planned."""
    home = tmp_path / "home"
    places = {"PATH": str(drawn), "FOLDER": str(drawn / "validation"), "model=mobilenet_v2": "model=convnet"}
    ran = 0
    for language, body in BLOCK.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")):
        for line in commands_of(language, body):
            # The environment is active; reproduce has tests of its own; the sweep over VGG16's preprocessing needs its
            # weights.
            if line.startswith(("source", "experiments reproduce", "experiments train -m experiment=tutorial_")):
                continue
            latest = {
                word: sorted((home / folder).glob("*"), key=lambda path: path.stat().st_mtime)
                for word, folder in (("RUN", "runs"), ("SWEEP", "sweeps"))
            }
            words = shlex.split(line.replace("model.weights=FILE", "model.weights=pretrained"))
            words = [latest[word].pop().name if word in latest else places.get(word, word) for word in words]
            words = [word.replace("=PATH", f"={drawn}") for word in words]
            if "train" in words or "experiments.train" in words:
                words += ["data.image_size=48", "model.head.pooling=average", "progress=none"]
            if any(word in ("experiment=ladder", "experiment=above_95") for word in words):
                words.append("sweep.dry_run=true")
            command = [sys.executable, "-m", "experiments", *words[1:]] if words[0] == "experiments" else words
            command[0] = sys.executable
            done = subprocess.run(
                command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"EXPERIMENTS_HOME": str(home)}
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            ran += 1
    assert ran > 8
