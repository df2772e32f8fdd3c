"""`experiments inspect` from the command line: what each part prints and writes, and what it refuses."""

from __future__ import annotations

import errno
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
from PIL import Image

from experiments.cli import inspect
from experiments.cli.arguments import exit_on_error
from experiments.config import choices, composing, identity
from experiments.config.schema import Config
from experiments.regimes.build import build_layer
from experiments.storage.atomic_files import writing_file
from experiments.system import paths

Call = Callable[..., list[str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`call("augmentation", ...)`: the lines that `experiments inspect augmentation ...` prints."""

    def run(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["experiments inspect", *arguments])
        inspect.main()
        return capsys.readouterr().out.splitlines()

    return run


def test_what_cannot_be_written_is_named_as_the_user_typed_it(
    own_outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", deny)  # the tests' user may be root, who may write everywhere
    with pytest.raises(SystemExit) as raised, exit_on_error(OSError), writing_file(tmp_path / "a.csv"):
        pass
    assert raised.value.code == f"{tmp_path / 'a.csv'}: Permission denied", "the name of no temporary file"
    with pytest.raises(SystemExit, match="EXPERIMENTS_HOME"), exit_on_error(OSError), writing_file(own_outputs / "a"):
        pass


def test_it_writes_one_png_and_prints_its_path(call: Call, here: tuple[str, ...], own_outputs: Path) -> None:
    command = ("augmentation", *here, "augmentation=light", "--images", "2", "--views", "3", "seed=1")
    (line,) = call(*command)
    path = Path(line)
    assert path.parent == own_outputs / "inspect" and path.name.startswith("augmentation-light-")
    image = Image.open(path)
    assert image.format == "PNG" and image.width == pytest.approx(175 * 4, abs=2)
    assert call(*command) == [line], "the same command writes the same file"
    others = [call("augmentation", *here, *more, "--images", "2", "--views", "3") for more in (
        ("augmentation=light", "seed=2"), ("augmentation=tutorial", "seed=1"),
        ("augmentation=light", "seed=1", "augmentation.rotation=5"))]  # fmt: skip
    assert len({line, *(other for (other,) in others)}) == 4
    assert not list(own_outputs.glob("runs/*")) and not list(own_outputs.glob("*.db")), "no run, nothing tracked"


def test_the_output_may_be_elsewhere_and_smaller(call: Call, here: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "new" / "small.png"
    arguments = ("--images", "1", "--views", "2", "--dpi", "40", "--output", str(path))
    assert call("augmentation", *arguments, *here) == [str(path)]
    assert Image.open(path).width == pytest.approx(70 * 3, abs=2)


def test_a_figure_that_cannot_be_written_is_an_error(call: Call, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"would have 150,000 pixels a side, at most 65,536 .* lower --dpi"):
        call("schedule", "--dpi", "20000", "--output", str(tmp_path / "a.png"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="file"):
        call("schedule", "--output", str(tmp_path / "file" / "a.png"))
    assert not list(tmp_path.rglob("*.png*"))


def test_a_regime_without_augmentation_is_reported(call: Call, here: tuple[str, ...]) -> None:
    printed, _ = call("augmentation", *here, "regime=bottleneck", "--images", "1", "--views", "1")
    assert printed == "regime=bottleneck trains on images as they are: it reads no augmentation"


def test_a_users_own_choice_is_found(call: Call, here: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "augmentation"
    folder.mkdir(parents=True)
    text = (paths.CONF / "augmentation" / "light.yaml").read_text().replace("name: light", "name: own")
    (folder / "own.yaml").write_text(text.replace("layers: []", "layers: [{_target_: keras.layers.RandomInvert}]"))
    (line,) = call("augmentation", *here, "augmentation=own", "--config-dir", str(folder.parent), "--images", "1")
    assert Path(line).name.startswith("augmentation-own-")


def test_errors_are_those_of_train(drive: Callable[..., Any], tmp_path: Path) -> None:
    wrong = [["augmentation=stong"], ["augmentation=mixup", "loss=hinge"], ["augmentation.rotatoin=3", "data=folder"]]
    inspected, trained = (
        drive("experiments.__main__", [[*verb, *overrides] for overrides in wrong], tmp_path)[0]
        for verb in (["inspect", "augmentation"], ["train"])
    )
    for overrides, ours, trains in zip(wrong, inspected, trained, strict=True):
        assert isinstance(ours["code"], str) and ours["code"] == trains["code"], overrides
        assert ours["err"] == trains["err"] == "" and ours["code"].startswith("The configuration cannot be used:\n")


def test_an_augmentation_that_cannot_be_built_and_a_folder_that_is_not_there_are_explained(
    call: Call, here: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"augmentation\.layers\.0\.factr: nothing reads this key"):
        call("augmentation", *here, "augmentation.layers=[{_target_:keras.layers.RandomContrast,factor:0.1,factr:1}]")
    with pytest.raises(SystemExit, match="nowhere"):
        call("augmentation", "data=folder", f"data.root={tmp_path / 'nowhere'}")


@pytest.mark.parametrize("arguments, printed", [
    ([], "WHAT"),
    (["augmentatoin"], "invalid choice"),
    (["augmentation", "--images", "0"], "--images/--pictures: must be a whole number of 1 or more. Received: '0'"),
    (["augmentation", "--views", "x"], "Received: 'x'"),
    (["augmentation", "--output", "a.jpg"], "must end in .png. Received: 'a.jpg'"),
    (["augmentation", "seed=1", "--vews", "3"], "unrecognized arguments: --vews"),
    (["model", "--classes", "1"], "--classes: must be a whole number of 2 or more"),
    (["lr", "--from", "0"], "must be a learning rate above 0"),
    (["mistakes"], "RUN"),
    (["mistakes", "a", "seed=1"], "unrecognized arguments: seed=1"),
    (["mistakes", "a", "--split", "train"], "invalid choice"),
    (["schedule", "epochs=3", "--run", "a"], "--run: its configuration is inspected without overrides"),
])  # fmt: skip
def test_wrong_arguments_are_refused_at_once(
    arguments: list[str], printed: str, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        call(*arguments)
    assert raised.value.code == 2 and printed in capsys.readouterr().err


DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", choices.shipped("augmentation"))
def test_the_documentation_shows_every_augmentation(name: str) -> None:
    text = (DOCS / "augmentation.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in text
    if name != "none":
        image = DOCS / "images" / f"augmentation_{name}.png"
        assert f"(images/{image.name})" in text and f"experiments inspect augmentation augmentation={name} " in text
        assert image.stat().st_size < 250_000 and Image.open(image).format == "PNG"


def test_the_documentations_augmentation_is_accepted(tmp_path: Path) -> None:
    text = (DOCS / "augmentation.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "augmentation").mkdir()
    (tmp_path / "augmentation" / "mine.yaml").write_text(example)
    read = composing.read(["augmentation=mine"], tmp_path)
    assert isinstance(build_layer(read.augmentation.layers[0], 0, ()), keras.layers.RandomGrayscale)


def test_each_part_writes_an_image_and_prints_its_path(call: Call, here: tuple[str, ...], own_outputs: Path) -> None:
    small = (*here, "regime=bottleneck", "model.weights=null", "batch_size=8")
    for part, name, options in [
        ("data", "data-folder", ()),
        ("model", "model-convnet", ("--layers", "--classes", "5")),
        ("schedule", "schedule-constant", ()),
        ("lr", "lr-bottleneck-adamw_head", ("--batches", "15", "--from", "1e-4")),
    ]:
        *reported, line = call(part, *small, *options)
        path = Path(line)
        assert reported and path.parent == own_outputs / "inspect" and path.name.startswith(f"{name}-"), part
        assert Image.open(path).format == "PNG"
    assert not list(own_outputs.glob("runs/*")) and not list(own_outputs.glob("*.db")), "no run, nothing tracked"


def test_the_overrides_are_expanded_as_those_of_train(
    call: Call, config: Callable[..., Config], own_outputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(identity.dump_yaml(identity.logged(config("schedule=cosine", "epochs=7"))))
    *_, line = call("schedule", f"like={tmp_path}", "epochs=3")
    assert Path(line).name.startswith("schedule-cosine-") and Path(line).parent == own_outputs / "inspect"
    with pytest.raises(SystemExit, match="max_epochs: nothing reads this key.*Type: epochs=3"):
        call("schedule", "max_epochs=3")
    with pytest.raises(SystemExit, match="continue: .* is no run's folder"):
        call("lr", f"continue={tmp_path}", "epochs=9")


def test_a_data_set_that_a_run_would_refuse_is_exit_code_1(
    call: Call, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(drawn, tmp_path / "bad")
    (tmp_path / "bad" / "train" / "blobs" / "blobs.0.jpg").write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        call("data", "data=folder", f"data.root={tmp_path / 'bad'}")
    reported = capsys.readouterr().out
    assert ended.value.code == 1 and "train/blobs/blobs.0.jpg: is empty" in reported and ".png" in reported


def test_rates_that_do_not_grow_and_runs_that_are_not_there_are_explained(call: Call) -> None:
    with pytest.raises(SystemExit, match="the lowest rate .--from. must be above 0 and below"):
        call("lr", "--from", "1", "--to", "0.1")
    with pytest.raises(SystemExit, match="No runs yet"):
        call("mistakes", "nobody")
