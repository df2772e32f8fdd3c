"""The public API: `experiments.__all__` names what exists, is light, and covers what the pages' examples import."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import experiments

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


@pytest.mark.parametrize("name", experiments.__all__)
def test_a_public_name_is_that_of_its_module(name: str) -> None:
    found = getattr(experiments, name)
    assert getattr(importlib.import_module(found.__module__), name) is found
    assert found.__module__.startswith("experiments.") and name in dir(experiments)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'experiments' has no attribute 'no_such'"):
        experiments.no_such  # noqa: B018


def test_the_import_is_light() -> None:
    code = "import json, sys, experiments; experiments.ConfigError; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not modules & {"hydra", "keras", "mlflow", "numpy", "omegaconf", "pydantic", "tensorflow"}


def test_what_examples_import_is_public() -> None:
    blocks = [
        block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    ]
    imports = [
        (node.module, alias.name) for block in blocks for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("experiments") for alias in node.names
    ]  # fmt: skip
    assert imports
    for module, name in imports:
        assert name in experiments.__all__, f"{module}.{name}"
        assert getattr(experiments, name) is getattr(importlib.import_module(str(module)), name)
