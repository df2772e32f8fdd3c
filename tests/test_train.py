"""The command line as a user meets it: one process per command, so few of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.__main__ import VERBS
from experiments.config.hydra_errors import explain
from experiments.system import paths

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("tensorflow", "keras", "mlflow")
Drive = Callable[..., tuple[list[dict[str, Any]], list[str]]]


def shell(*command: str | Path, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **env}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120
    )


WRONG = {
    "optimizer.lrr=1": ["optimizer.lrr: ", "Received: '1'", "Allowed here: ", "momentum", "Nearest: optimizer.lr."],
    "lr=0.1": ["lr: nothing reads this key", "Received: '0.1'", "Nearest: optimizer.lr."],
    "model.dropout=0.1": ["model.dropout: nothing reads", "Nearest: model.head.dropout."],
    "head.l2=0.1": ["head: nothing reads", "Received: 'head.l2=0.1'", "Nearest: model.head.l2."],
    "optimizr=adam": ["optimizr: ", "Received: 'adam'", "Allowed here: ", "Nearest: optimizer."],
    "regime=finetun": [
        "regime: no such choice",
        "Received: 'finetun'",
        "bottleneck, finetune, scratch",
        "Nearest: reg",
    ],
    "experiment=tutoral_scratch": ["experiment: no such choice", "Nearest: experiment=tutorial_scratch."],
    "model=[1,2]": ["model=[1,2]: a list of choices would mix them", "Each in turn: -m model=1,2"],
    "optimizer@regime.head_optimizer=[null]": ["optimizer: no such choice", "Allowed: adagrad, adam"],
    "model.name=vgg16": ["model.name: ", "does not select it: this is model=convnet", "Type: model=vgg16"],
    "regime.head_optimizer.name=sgd": ["head_optimizer=adamw_head.", "Type: optimizer@regime.head_optimizer=sgd"],
    "data=photos": ["data: no such choice", "A folder of images: data.root=photos"],
    "data=/my/photos": ["data: no such choice. Received: '/my/photos'", "A folder of images: data.root=/my/photos"],
    "model=5": ["model: no such choice", "Received: '5'", "Allowed: convnet, "],
    "objective=acuracy": ["objective: ", "'roc_auc'", "Received: 'acuracy'", "Nearest: accuracy"],
    "epochs=ten": ["epochs: must be a valid integer", "Received: 'ten'"],
    "model.head.dropout=1.5": ["model.head.dropout: must be less than 1", "Received: 1.5"],
    "augmentation.zoom=2": ["augmentation.zoom: must be less than or equal to 0.99", "Received: 2"],
    "+foo=1": ["foo: nothing reads this key", "Received: 1", "Allowed here: augmentation, "],
    "+optimizer.momentm=1": ["optimizer.momentm: nothing reads", "Received: 1", "Nearest: optimizer.momentum."],
    "+model.head.dropot=1": ["model.head.dropot: nothing reads", "Received: 1", "Nearest: model.head.dropout."],
    "tags.question=why": ["tags.question: a new key needs a plus", "Received: 'why'", "Allowed: +tags.question=why"],
    "tags={question:why}": ["tags.question: a new key needs a plus", "Allowed: +tags={question:why}"],
    "tags=[baseline]": ["tags: has keys, and cannot be a list", "+tags.KEY=VALUE for a new key", "'[baseline]'"],
    "hydra.launcher.jobs=2": ["hydra.launcher.jobs: nothing reads this key. Received: '2'. Allowed here: no key."],
    "optimizer.lr=${sed}": ["optimizer.lr: ", "'sed' not found"],
    "data=folder": ["data.root: no value", "data.root=..."],
    "epochs=1,2": ["epochs=1,2: several values are a sweep: add -m"],
    "data.classes=a,b": ["several values are a sweep: add -m", "A list: 'data.classes=[a,b]'"],
    "nonsense": ["nonsense: not an override", "KEY=VALUE"],
}
REFUSED = {
    ("data.root=no images",): "data.root does not exist",
    ("data=csv", "data.labels=labels.csv"): "data.labels does not exist",
    ("regime=bottleneck", "model.weights=my.weights.h5"): "model.weights: no such file",
    ("hydra.job.chdir=true",): "hydra.job.chdir: must be false: in the run's folder, relative paths",
    ("-m", "hydra.job.chdir=true", "seed=0,1"): "hydra.job.chdir: must be false: in the run's folder, relative paths",
}


def test_an_error_of_code_beside_hydra_is_no_wrong_choice() -> None:
    with pytest.raises(TypeError) as caught:
        len(5)  # type: ignore[arg-type]
    assert explain(caught.value, ["regime=mine", "model=[1,2]"]) is None


def test_wrong_configurations_are_answered_at_once_and_leave_nothing(tmp_path: Path, drive: Drive) -> None:
    reported, modules = drive("experiments.train", [[override] for override in WRONG], tmp_path)
    for answer, (override, phrases) in zip(reported, WRONG.items(), strict=True):
        text = answer["code"]
        assert isinstance(text, str), f"{override}: ends with the text, which is exit status 1. Received: {text!r}"
        assert text.startswith("The configuration cannot be used:\n"), text
        assert not [phrase for phrase in phrases if phrase not in text], f"{override} printed: {text}"
        assert "Traceback" not in answer["err"]
        assert answer["seconds"] < 5
    assert not set(HEAVY) & set(modules), "TensorFlow, Keras and MLflow are not for telling a typo"
    reported, modules = drive("experiments.train", [list(command) for command in REFUSED], tmp_path)
    for answer, (command, text) in zip(reported, REFUSED.items(), strict=True):
        assert answer["code"].startswith(text), command
    assert not set(HEAVY) & set(modules)
    assert not list(tmp_path.rglob("*")), "a wrong configuration leaves no run folder"


def test_a_wrong_configuration_ends_the_process_with_a_status_and_no_traceback(tmp_path: Path) -> None:
    before = os.times()
    done = shell(sys.executable, "-X", "importtime", "-m", "experiments.train", "epochs=0", cwd=tmp_path)
    after = os.times()
    # Processor time of the ended process, which other work on the machine does not change.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 5
    assert done.returncode == 1
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "hydra" in imported and not set(HEAVY) & imported
    reported = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert reported == [
        "The configuration cannot be used:",
        "  epochs: must be greater than or equal to 1. Received: 0",
    ]
    assert done.stdout == "" and not list(tmp_path.rglob("*"))


def test_help_shows_every_choice_of_every_group_and_typical_commands(tmp_path: Path, drive: Drive) -> None:
    ((answer,), modules) = drive("experiments.train", [["--help"]], tmp_path)
    text: str = answer["out"]
    shown = {}
    for line in text.splitlines():
        group, colon, choices = line.strip().partition(": ")
        if colon and (paths.CONF / group).is_dir():
            shown[group] = set(choices.split(", "))
    expected: dict[str, set[str]] = {}
    for path in paths.CONF.glob("*/*.yaml"):
        expected.setdefault(path.parent.name, set()).add(path.stem)
    expected.pop("hydra", None)
    assert {group: shown.get(group) for group in expected} == expected
    commands = [line.strip() for line in text.splitlines() if line.strip().startswith("python -m experiments.train ")]
    assert len([command for command in commands if "[GROUP=CHOICE]" not in command]) >= 6
    assert not set(HEAVY) & set(modules)


def test_three_ways_to_start_are_the_same_from_any_directory(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("experiments")
    if not script.exists():
        pytest.skip("the console script is not installed")
    arguments = ["regime=finetune", "optimizer.lr=1e-4", "--cfg", "job"]
    starts = [
        ([sys.executable, "-m", "experiments.train"], tmp_path),
        ([sys.executable, "-m", "experiments", "train"], ROOT),
        ([str(script), "train"], tmp_path),
    ]
    reported = [shell(*start, *arguments, cwd=cwd) for start, cwd in starts]
    assert [done.returncode for done in reported] == [0, 0, 0], reported[0].stderr
    composed = yaml.safe_load(reported[0].stdout)
    assert (composed["optimizer"]["name"], composed["regime"]["name"]) == ("adamw_finetune", "finetune")
    assert float(composed["optimizer"]["lr"]) == 1e-4
    assert reported[0].stdout == reported[1].stdout == reported[2].stdout
    assert not list(tmp_path.iterdir())


def test_outputs_are_the_repositorys_the_current_folders_or_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPERIMENTS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(ROOT)
    assert paths.default_outputs() == str(tmp_path / "home")
    monkeypatch.delenv("EXPERIMENTS_HOME")
    assert paths.default_outputs() == str(ROOT / "outputs")
    monkeypatch.chdir(ROOT / "tests")
    assert paths.default_outputs() == str(ROOT / "outputs")
    monkeypatch.chdir(tmp_path)
    assert paths.default_outputs() == str(tmp_path.resolve() / "outputs")


def test_run_names_describe_the_run_and_are_not_shared_between_processes() -> None:
    first = paths.run_name("finetune", "convnet")
    assert first.partition("-finetune-convnet-")[2] and first == paths.run_name("finetune", "convnet")
    code = "from experiments.system import paths; print(paths.run_name('finetune', 'convnet'))"
    assert shell(sys.executable, "-c", code).stdout.strip().rpartition("-")[2] != first.rpartition("-")[2]


def test_every_verb_helps_without_the_heavy_imports_and_a_typo_names_the_nearest(tmp_path: Path, drive: Drive) -> None:
    lines = [[verb, "--help"] for verb in VERBS]
    reported, modules = drive("experiments.__main__", [*lines, ["--help"], ["trian"], []], tmp_path)
    *verbs, usage, typo, nothing = reported
    for verb, answer in zip(VERBS, verbs, strict=True):
        assert answer["code"] == 0 and "experiments" in answer["out"], f"{verb} --help: {answer}"
    assert usage["code"] == 0 and all(f"  {verb} " in usage["out"] for verb in VERBS)
    assert "Received: 'trian'" in typo["code"] and "Nearest: train." in typo["code"]
    assert nothing["code"] == 2
    assert not set(HEAVY) & set(modules)
    assert not list(tmp_path.rglob("*"))
