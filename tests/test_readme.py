"""The examples of the documentation that are marked as tested run as printed and have the described effect."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import pytest
import yaml

from experiments.config import schema
from experiments.reuse import like
from experiments.storage.csv_files import read_rows

ROOT = Path(__file__).resolve().parent.parent
PAGES = "\n".join(
    path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
)
BLOCK = re.compile(r"```(\w+)\n(.*?)```\n", re.DOTALL)
# What makes a run small, and what it would download not needed.
SMALL = ("debug=fast", "data.image_size=32", "tracking=none", "progress=none", "hydra/job_logging=none")
DRAWN_BY_US = ("data.size=32", "data.per_class={train: 4, validation: 4, test: 0}")


class Example(NamedTuple):
    """Blocks of a page that belong together."""

    files: dict[str, str]  # by their paths, which the blocks' first comments give
    command: str


def examples() -> dict[str, Example]:
    """Those marked <!-- tested: NAME -->: what is fenced from there on, until text comes between."""
    found = {}
    for marker in re.finditer(r"<!-- tested: (\w+) -->\n", PAGES):
        name, files, commands, at = marker[1], dict[str, str](), list[str](), marker.end()
        while block := BLOCK.match(PAGES, at):
            kind, body = block.groups()
            if kind == "sh":
                commands.append(body)
            else:
                path = re.search(r"^# (\S+\.(?:py|yaml))$", body, re.MULTILINE)
                assert path, f"{name}: a file's block begins with a comment that is its path"
                files[path[1]] = body
            at = block.end()
        (command,) = commands
        found[name] = Example(files, command)
    return found


EXAMPLES = examples()


def test_data_and_every_kind_of_component_have_their_example_of_about_ten_lines() -> None:
    data, components = {"folder", "csv", "filenames", "groups"}, {"backbone", "layers", "augmentation", "regime"}
    assert set(EXAMPLES) == data | components | {"network", "optimizer"}
    for name, example in EXAMPLES.items():
        lines = [line for text in example.files.values() for line in text.splitlines() if line and line[0] != "#"]
        code = [line for path, text in example.files.items() if path.endswith(".py") for line in text.splitlines()]
        assert len(lines) <= 20 and len([line for line in code if line and line[0] != "#"]) <= 14, name
        assert max(map(len, lines), default=0) <= 120


def arguments(name: str, drawn: Path, place: Path) -> list[str]:
    """Writes an example's files into a folder; the arguments of its command, with images and made small."""
    example = EXAMPLES[name]
    for path, text in example.files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text, encoding="utf-8")
    if name in ("csv", "groups"):
        rows = ["path,label,patient"]
        for image in sorted(drawn.glob("*/*/*.jpg")):  # names repeat in train/, validation/ and test/
            rows.append(
                f"{image.relative_to(drawn).as_posix()},{image.parent.name},{int(image.stem.split('.')[1]) % 4}"
            )
        (place / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    program, module, entry, *given = shlex.split(example.command.replace("\\\n", " "))
    assert (program, module, entry) == ("python", "-m", "experiments.train")
    given = [text.replace("=PATH", f"={drawn}") for text in given]
    more = [*SMALL, f"hydra.run.dir={place / 'run'}"]
    if name == "regime":  # whose features are to be worth something: our own body, under a head of one layer
        given.remove("model=mobilenet_v2")
        more += ["model.head.pooling=average", "~model.head.dense.dense1"]
    elif any(text.startswith("model=") for text in given):
        more.append("model.weights=null")
    else:
        more.append("model.head.pooling=average")
    return [*given, *more, *([] if any(text.startswith(("data=", "data.root=")) for text in given) else DRAWN_BY_US)]


def check(name: str, place: Path) -> None:
    """What the example is about is in what its run left."""
    config: dict[str, Any] = yaml.safe_load((place / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert json.loads((place / "run" / "run.json").read_bytes())["status"] == "FINISHED"
    metrics = json.loads((place / "run" / "metrics.json").read_bytes())
    assert 0 <= metrics["validation.accuracy"] <= 1
    manifest = read_rows(place / "run" / "manifest.csv")
    classes = {row["class_name"] for row in manifest}
    assert classes == ({"cats", "dogs"} if config["data"]["name"] == "synthetic" else {"blobs", "stripes"})
    curves = place / "run" / "curves.csv"
    if name == "folder":
        assert {row["path"].split("/")[0] for row in manifest} == {"train", "validation", "test"}
        assert config["model"]["name"] == "mobilenet_v2"
    elif name in ("csv", "filenames", "groups"):
        names = {row["path"] for row in manifest if row["path"].split("/")[1] == row["class_name"]}
        assert len(names) == len(manifest) and {path.split("/")[0] for path in names} == {"train", "validation", "test"}
        if name == "groups":
            known, new = (
                {row["group"] for row in manifest if row["split"] == split} for split in ("train", "validation")
            )
            assert known and new and not known & new, "no patient is in both"
    elif name == "backbone":
        assert config["model"]["_target_"] == "keras.applications.DenseNet121"
        assert len(curves.read_text().splitlines()) == 3, "an epoch of the head, one of fine-tuning"
    elif name == "network":
        assert config["model"]["_target_"] == "mynetwork.network" and config["model"]["width"] == 16
    elif name == "layers":
        assert config["augmentation"]["layers"] == [{"_target_": "keras.layers.RandomContrast", "factor": 0.3}]
    elif name == "optimizer":
        assert config["optimizer"]["_target_"] == "myoptimizer.SignDescent" and curves.exists()
    elif name == "augmentation":
        assert config["augmentation"]["_target_"] == "myaugmentation.brightness"
        assert config["augmentation"]["most"] == 40 and (place / "run" / "figures" / "augmented.png").exists()
    else:
        assert config["regime"]["name"] == "logistic" and "optimizer" not in config
        assert not curves.exists(), "it has no epochs"
        assert metrics["validation.accuracy"] > 0.7, "solved, though of eight images"


def test_the_examples_backbone_is_accepted(drawn: Path, tmp_path: Path) -> None:
    """Its run, which is slow, and DenseNet121 in tests/models, tell the rest."""
    arguments("backbone", drawn, tmp_path)
    plain = like.compose(["model=densenet121"], str(tmp_path / "my_conf"))
    model = schema.Model.model_validate(plain["model"])
    assert hasattr(keras.applications, model.target.rpartition(".")[2]) and plain["data"]["image_size"] == 224


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "backbone"])
def test_an_example_runs(
    name: str, drawn: Path, tmp_path: Path, run_here: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(name, drawn, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as `python -m` has it
    mine = [path.removesuffix(".py") for path in EXAMPLES[name].files if path.endswith(".py")]
    try:
        run_here(*given)
        assert all(module in sys.modules for module in mine)
    finally:
        for module in mine:
            sys.modules.pop(module, None)
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_as_it_is_typed(name: str, drawn: Path, tmp_path: Path) -> None:
    """In a process of its own, in the folder that holds its files."""
    command = [sys.executable, "-m", "experiments.train", *arguments(name, drawn, tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check(name, tmp_path)
