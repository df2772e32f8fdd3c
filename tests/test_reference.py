"""The generated pages are up to date, and docs/configuration.md covers every key of conf/ and the schema."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from experiments.__main__ import VERBS
from experiments.config import schema
from experiments.config.arguments import ARGUMENTS
from experiments.system import paths
from experiments.system.private_api import get_args_parser

ROOT = Path(__file__).resolve().parent.parent
WRITER = runpy.run_path(str(ROOT / "docs" / "configuration.py"))
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([\w.]+)` \|(.*)$", PAGE, re.MULTILINE))
PLACES = {schema.ConvBlock: "BLOCK.", schema.Dense: "LAYER."}  # under names of the user's


@pytest.mark.parametrize("name", ["configuration", "cli"])
def test_the_page_is_up_to_date(name: str) -> None:
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert runpy.run_path(str(ROOT / "docs" / f"{name}.py"))["page"]() == page, f"make reference writes docs/{name}.md"


def test_the_command_line_has_every_verb_and_option() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## (\w+)$", page, re.MULTILINE)) == set(VERBS)
    assert {"cache prune", "inspect data", "inspect labels"} <= set(re.findall(r"^### (.+)$", page, re.MULTILINE))
    assert "| `--reject ACCURACY` | answer 'none'" in page and "| `--output FOLDER` | (required) |" in page
    of_train = re.findall(r"^\| `(--[\w-]+)", page.partition("\n## backbones\n")[0], re.MULTILINE)
    of_hydra = {option for action in get_args_parser()._actions for option in action.option_strings}
    assert len(of_train) == 7 and set(of_train) <= of_hydra


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a model but those of components' `name` and `_target_`, and the head's optimizer's."""
    for name, field in model.model_fields.items():
        models = [value for value in vars(schema).values() if isinstance(value, type) and issubclass(value, BaseModel)]
        below = [value for value in models if re.search(rf"\b{value.__name__}\b", str(field.annotation))]
        if name in ("name", "target"):
            continue
        if name == "head_optimizer" or not below or below[0] in PLACES:
            yield f"{prefix}{name}"
        if below and name != "head_optimizer":
            yield from keys(below[0], f"{prefix}{name}.{PLACES.get(below[0], '')}")


def test_every_key_of_the_schema_has_a_row() -> None:
    wanted = set(keys(schema.Config))
    wanted |= {f"{group}.{name}" for group, node in ARGUMENTS.items() for name in node} - {"data.per_class"}
    assert {"data.limit.train", "model.layers.BLOCK.filters", "model.head.dense.LAYER.l2", "sweep.jobs"} <= wanted
    assert wanted - set(ROWS) == set()


def test_every_file_of_conf_occurs() -> None:
    for path in paths.CONF.glob("*/**/*.yaml"):
        group = path.parent.relative_to(paths.CONF).as_posix()
        alone = len(list(path.parent.glob("*.yaml"))) == 1
        assert (f"\n## {group}\n" if alone else f"{group}={path.stem}") in PAGE


@pytest.mark.parametrize("key, default, allowed", [
    ("optimizer.lr", "`1e-3`; adamw_finetune: `${model.finetune_lr}`; adamw_head: `3e-3`; sgd: `1e-4`",
     "number, above 0"),
    ("model.head.dropout", "`0.5`", "number, at least 0 and below 1"),
    ("data.fold", "`null`", "whole number, at least 0 or `null`"),
    ("data.on_bad", "`error`; cats_vs_dogs: `skip`", "`error`, `skip`"),
    ("augmentation.magnitude", "randaugment: `0.3`", "number, at least 0 and at most 1"),
    ("regime.head_optimizer", "`adamw_head`", "as `optimizer`"),
    ("class_weights", "`null`", "`balanced` or mapping of names to number, above 0 or `null`"),
])  # fmt: skip
def test_a_row_has_what_conf_and_schema_say(key: str, default: str, allowed: str) -> None:
    found = [part.strip() for part in ROWS[key].split(" | ")]
    assert found[:2] == [default, allowed] and len(found[2]) > 5


def test_a_key_that_nothing_explains_is_not_written() -> None:
    line: Any = WRITER["Line"]("5", "", True)
    with pytest.raises(ValueError, match=r"group\.unsaid"):
        WRITER["table"]({"": {"group.unsaid": line}}, {})
