"""Generator of docs/cli.md from the argument parsers of the subcommands, run by `make reference`."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import yaml

from experiments.__main__ import VERBS
from experiments.storage import atomic_files
from experiments.system.paths import CONF

PAGE = Path(__file__).with_suffix(".md")
INTRO = """\
# Command-line reference

<!-- Written by `make reference` out of the parsers in src/experiments/cli/: change those, not this page. -->

`experiments VERB ...` runs one subcommand. `experiments VERB --help` prints what this page has, `experiments --help`
the list of verbs. Words in capitals are yours to replace. `RUN` is a run's folder, its MLflow id, its name, or the
beginning of an id or the end of a name; `SWEEP` is a sweep's name, folder or MLflow id. `KEY=VALUE` are overrides as
`train` takes them ([configuration](configuration.md)).

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | an error, which the last lines explain; or the output could not be written |
| 2 | wrong arguments |
| 3 | `predict`, `evaluate`: done, but some files could not be used; each is listed |
| 4 | `evaluate --must-reach`: the accuracy is lower |
| 128 + N | ended by signal N; a run that had begun can be resumed |
"""
TRAIN = """\
Trains one run, or with `-m` a sweep. It is the same as `python -m experiments.train`. Three keys name other runs:
`resume=RUN` goes on with an interrupted run, `like=RUN` starts a new one with the configuration of another, and
`continue=RUN epochs=N` trains a finished one further ([one run](runs.md)). The options are Hydra's; these are the
useful ones:

| argument | meaning |
|---|---|
| `GROUP=CHOICE`, `KEY=VALUE` | the configuration: [configuration](configuration.md) |
| `--multirun, -m` | run a sweep over values that are separated by commas: [sweeps](sweeps.md) |
| `--cfg job` | print the composed configuration and run nothing; `--package model` prints this part only |
| `--config-dir FOLDER` | folder with your own choices, `FOLDER/GROUP/NAME.yaml`: [your own components](components.md) |
| `--info defaults-tree` | print which choice brought which others |
| `--help, -h` | print the groups, their choices and typical commands |
| `--hydra-help` | print Hydra's own options |
| `--shell-completion install=SHELL` | print what enables completion: [getting started](getting_started.md) |
"""


class Interrupted(Exception):
    """The parser of a subcommand, taken when it is about to parse."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def parser_of(module: str) -> argparse.ArgumentParser:
    """Return the parser that the `main` of a module builds, without parsing anything."""

    def interrupt(parser: argparse.ArgumentParser, *arguments: Any, **options: Any) -> NoReturn:
        raise Interrupted(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", interrupt):
        try:
            importlib.import_module(module).main()
        except Interrupted as found:
            return found.parser
    raise AssertionError(f"{module}.main() parses no arguments")


def parts(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the subcommands of a parser with their names, such as `inspect data`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def cell(text: str) -> str:
    """Return a text escaped for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def argument(action: argparse.Action) -> str:
    """Return an argument as it is typed: `RUN ...`, `--output FOLDER`."""
    value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "")
    if not action.option_strings:
        return {"*": f"[{value} ...]", "+": f"{value} ..."}.get(str(action.nargs), str(value))
    if not value and action.nargs != 0:
        value = action.dest.upper()
    return f"{', '.join(action.option_strings)} {value if action.nargs != 0 else ''}".strip()


def table(parser: argparse.ArgumentParser) -> list[str]:
    """Return a Markdown table with a row for each argument and option, `--help` left out."""
    rows = []
    for action in parser._actions:
        if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)) or action.help == argparse.SUPPRESS:
            continue
        about = (action.help or "") % {**vars(action), "prog": parser.prog}
        if action.required and action.option_strings:
            about = f"{about} (required)".strip()
        elif action.default not in (None, False, argparse.SUPPRESS, []) and str(action.default) not in about:
            about = f"{about} (default: {action.default})".strip()
        rows.append(f"| `{argument(action)}` | {cell(about)} |")
    return ["| argument | meaning |", "|---|---|", *rows, ""] if rows else []


def usage(*words: str) -> list[str]:
    """Return a block that shows how a subcommand is typed."""
    return ["```text", " ".join(["experiments", *words, "[OPTION ...]"]), "```", ""]


def section(name: str, parser: argparse.ArgumentParser, level: int = 2) -> list[str]:
    """Return the section on a subcommand: how it is typed, what it does, its arguments, its own subcommands."""
    typed = [argument(action) for action in parser._actions if action.required or not action.option_strings]
    below = list(parts(parser))
    lines = [
        f"{'#' * level} {name}",
        "",
        "```text",
        " ".join([f"experiments {name}", *typed, "[OPTION ...]"]),
        "```",
        "",
    ]
    lines += [cell(parser.description or ""), ""] if parser.description else []
    lines += table(parser)
    lines += [cell(parser.epilog), ""] if parser.epilog else []
    for word, part in below:
        lines += section(f"{name} {word}", part, level + 1)
    return lines


def train_section() -> list[str]:
    """Return the section on `train`, whose typical commands are those of its --help."""
    base = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    examples = base["hydra"]["help"]["template"].partition("Typical commands:\n")[2].split("\n\n")[0]
    lines = [re.sub(r"\s{2,}", "   # ", line.strip()) for line in examples.splitlines()]
    return [
        "## train",
        "",
        *usage("train", "[GROUP=CHOICE ...] [KEY=VALUE ...]"),
        *TRAIN.splitlines(),
        "",
        "```sh",
        *lines,
        "```",
        "",
    ]


def page() -> str:
    """Return the whole text of docs/cli.md."""
    lines = [*INTRO.splitlines(), "", "| verb | what it does |", "|---|---|"]
    lines += [f"| [{verb}](#{verb}) | {cell(about)} |" for verb, (_, about) in VERBS.items()]
    lines += ["", *train_section()]
    for verb, (module, _) in VERBS.items():
        if verb != "train":
            lines += section(verb, parser_of(module))
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    atomic_files.write_file(PAGE, page().encode())
