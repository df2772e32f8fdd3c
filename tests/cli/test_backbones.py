"""`experiments backbones`: the backbones it chooses, what it measures and prints; tested with the shipped convnet."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.cli import backbones
from experiments.config.choices import shipped
from experiments.errors import ConfigError
from experiments.inspection import backbones as inspection
from experiments.system import paths


def own_choice(folder: Path) -> Path:
    """A folder for --config-dir with one model in it: the convnet, called mine, of small images."""
    (folder / "model").mkdir(parents=True)
    text = (paths.CONF / "model" / "convnet.yaml").read_text(encoding="utf-8")
    text = text.replace("name: convnet", "name: mine").replace("native_size: 150", "native_size: 40")
    (folder / "model" / "mine.yaml").write_text(text, encoding="utf-8")
    return folder


def test_all_shipped_choices_unless_some_are_named(tmp_path: Path) -> None:
    assert backbones.choose([]) == list(shipped("model"))
    assert backbones.choose(["vgg16", "convnet", "vgg16"]) == ["vgg16", "convnet"]
    assert backbones.choose([], own_choice(tmp_path)) == [*shipped("model"), "mine"]
    assert backbones.choose(["mine"], tmp_path) == ["mine"]


def test_what_is_no_choice_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        backbones.choose(["convnet", "resnet5", "vgg_16"])
    first, second = str(caught.value).splitlines()
    assert "'resnet5'" in first and "Nearest: resnet50" in first and ", ".join(shipped("model")) in first
    assert "'vgg_16'" in second and "Nearest: vgg16" in second
    with pytest.raises(ConfigError, match=rf"--config-dir: there is no model/\*\.yaml in it. Received: {tmp_path}"):
        backbones.choose([], tmp_path)


@pytest.mark.parametrize("name", shipped("model"))
def test_no_weights_are_read(name: str) -> None:
    config = backbones.configuration(name)
    assert config.model.name == name and config.model.weights is None
    assert "model.weights" in config.regime.ignores
    assert config.data.image_size == config.model.native_size


def test_a_backbone_is_measured_at_its_own_size(tmp_path: Path) -> None:
    cost = inspection.measure(backbones.configuration("mine", own_choice(tmp_path)), batch=2, seconds=0)
    assert cost[:-1] == ("mine", 40, 3, 896 + 9_248 + 18_496, 18_496)
    assert cost.images_per_second > 0


def test_the_speed_is_the_batchs_median_after_a_first_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Batches of 0.5, 8 and 1 s: ten images in the middle one's second."""
    config = backbones.configuration("mine", own_choice(tmp_path))
    clock = iter([0.0, 0.5, 10.0, 18.0, 20.0, 21.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert inspection.measure(config, batch=10, seconds=5).images_per_second == 10


def test_the_command_prints_one_row_a_backbone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seen = []

    def measured(config: object, batch: int, seconds: float) -> inspection.Cost:
        seen.append((batch, seconds))
        return inspection.Cost(config.model.name, 40, 3, 1_234_567, 89_000, 12.34)  # type: ignore[attr-defined]

    monkeypatch.setattr(inspection, "measure", measured)
    monkeypatch.setattr(sys, "argv", ["backbones", "mine", "vgg16", "--config-dir", str(own_choice(tmp_path))])
    backbones.main()
    out = capsys.readouterr().out
    assert "32 images a batch" in out, "the batch of activations.py"
    for name in ("mine", "vgg16"):
        (row,) = (line.split() for line in out.splitlines() if name in line)
        assert row == [name, "40", "3", "1,234,567", "89,000", "12.3"]
    assert seen == [(32, 10.0)] * 2


@pytest.mark.parametrize("arguments, code, reported", [
    (["--help"], 0, "images a second"),
    (["mobilenet"], 1, "Nearest: mobilenet_v2"),
    (["convnet", "--threads", "0"], 1, "runtime.threads: must be greater than or equal to 1. Received: 0"),
    (["convnet", "--batch", "0"], 2, "--batch: must be a whole number of 1 or more. Received: '0'"),
])  # fmt: skip
def test_help_and_faults_are_answered_without_tensorflow(arguments: list[str], code: int, reported: str) -> None:
    program = (
        "import atexit, sys; from experiments.__main__ import main; "
        "atexit.register(lambda: print('heavy:', {'tensorflow', 'keras'} & set(sys.modules))); main()"
    )
    command = [sys.executable, "-c", program, "backbones", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"COLUMNS": "300"}, check=False
    )
    assert done.returncode == code, done.stderr
    assert reported in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert "heavy: set()" in done.stdout
