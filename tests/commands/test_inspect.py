"""`experiments inspect`: the pictures that a run with this configuration would train on, before it does."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from experiments import paths, schema
from experiments.build import build_layer
from experiments.commands import composed, inspect
from experiments.schema import Config

Read = Callable[..., Config]
Call = Callable[..., list[str]]


@pytest.fixture
def here(drawn: Path) -> tuple[str, ...]:
    """Overrides that lead to the drawn pictures."""
    return "data=folder", f"data.root={drawn}", "data.image_size=48"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`call("augmentation", ...)`: the lines that `experiments inspect augmentation ...` prints."""

    def run(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["experiments inspect", *arguments])
        inspect.main()
        return capsys.readouterr().out.splitlines()

    return run


def test_it_writes_one_png_and_says_where(call: Call, here: tuple[str, ...], own_outputs: Path) -> None:
    command = ("augmentation", *here, "augmentation=strong", "--pictures", "2", "--views", "3", "seed=1")
    (line,) = call(*command)
    path = Path(line)
    assert path.parent == own_outputs / "inspect" and path.name.startswith("augmentation-strong-")
    picture = Image.open(path)
    assert picture.format == "PNG" and picture.width == pytest.approx(175 * 4, abs=2)
    assert call(*command) == [line], "the same command writes the same file"
    others = [call("augmentation", *here, *more, "--pictures", "2", "--views", "3") for more in (
        ("augmentation=strong", "seed=2"), ("augmentation=light", "seed=1"),
        ("augmentation=strong", "seed=1", "augmentation.rotation=5"))]  # fmt: skip
    assert len({line, *(other for (other,) in others)}) == 4
    assert not list(own_outputs.glob("runs/*")) and not list(own_outputs.glob("*.db")), "no run, nothing tracked"


def test_the_output_may_be_elsewhere_and_smaller(call: Call, here: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "new" / "small.png"
    arguments = ("--pictures", "1", "--views", "2", "--dpi", "40", "--output", str(path))
    assert call("augmentation", *arguments, *here) == [str(path)]
    assert Image.open(path).width == pytest.approx(70 * 3, abs=2)


def test_the_sample_takes_the_classes_in_turn_and_makes_no_others_pixels(
    config: Read, here: tuple[str, ...], own_outputs: Path
) -> None:
    read = config(*here)
    shown = inspect.sample(read, 5)
    assert list(shown.train.labels) == [0, 1, 0, 1, 0] and shown.classes == ("blobs", "stripes")
    assert shown.train.pixels.shape == (5, 48, 48, 3)
    stored = [json.loads(meta.read_text())["shape"] for meta in own_outputs.glob("cache/pixels/*/meta.json")]
    assert stored == [[5, 48, 48, 3]]
    assert len(inspect.sample(read, 100).train) == 24, "all there are"
    assert len(inspect.sample(config(*here, "data.limit.train=2"), 100).train) == 4


def test_views_stand_beside_their_originals(config: Read, here: tuple[str, ...]) -> None:
    read = config(*here, "augmentation=none")
    shown = inspect.sample(read, 6)
    for pixels, labels in inspect.augmented_views(read, shown, 3):
        np.testing.assert_array_equal(pixels, shown.train.pixels[:])
        np.testing.assert_array_equal(labels, shown.train.labels)
    read = config(*here, "augmentation=light")
    first, second = (pixels for pixels, _ in inspect.augmented_views(read, shown, 2))
    plain = shown.train.pixels[:].astype("float32")
    assert all(np.any(a != b) and np.any(a != c) for a, b, c in zip(first, second, plain, strict=True))


def test_titles_tell_shares_where_labels_are_mixed(config: Read, here: tuple[str, ...]) -> None:
    def titles(name: str) -> list[str]:
        read = config(*here, f"augmentation={name}")
        figure = inspect.augmentation_figure(read, inspect.sample(read, 4), 3)
        assert figure.get_suptitle() == f"augmentation={name}: originals, and what epochs 1 to 3 show"
        return [panel.get_title() for panel in figure.axes]

    plain = titles("strong")
    assert plain[::4] == ["blobs", "stripes"] * 2 and set(plain) == {"blobs", "stripes", ""}
    mixed = titles("cutmix")
    assert len(mixed) == 16 and mixed[::4] == ["blobs", "stripes"] * 2
    views = [title for at, title in enumerate(mixed) if at % 4]
    assert all("%" in title for title in views) and any("blobs" in title and "stripes" in title for title in views)


def test_a_regime_without_augmentation_is_said(call: Call, here: tuple[str, ...]) -> None:
    said, _ = call("augmentation", *here, "regime=bottleneck", "--pictures", "1", "--views", "1")
    assert said == "regime=bottleneck trains on pictures as they are: it reads no augmentation"


def test_a_users_own_choice_is_found(call: Call, here: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "augmentation"
    folder.mkdir(parents=True)
    text = (paths.CONF / "augmentation" / "light.yaml").read_text().replace("name: light", "name: own")
    (folder / "own.yaml").write_text(text.replace("layers: []", "layers: [{_target_: keras.layers.RandomInvert}]"))
    (line,) = call("augmentation", *here, "augmentation=own", "--config-dir", str(folder.parent), "--pictures", "1")
    assert Path(line).name.startswith("augmentation-own-")


@pytest.mark.parametrize("overrides", [
    ["augmentation=stong"],
    ["augmentation=mixup", "loss=hinge"],
    ["augmentation.rotatoin=3", "data=folder"],
])  # fmt: skip
def test_errors_are_those_of_train(overrides: list[str]) -> None:
    verbs = (["inspect", "augmentation"], ["train"])
    inspected, trained = (
        subprocess.run([sys.executable, "-m", "experiments", *verb, *overrides], capture_output=True, text=True)
        for verb in verbs
    )
    assert inspected.returncode == trained.returncode == 1
    assert inspected.stderr == trained.stderr and "Traceback" not in inspected.stderr
    assert inspected.stderr.startswith("The configuration cannot be used:\n")


def test_an_augmentation_that_cannot_be_built_and_a_folder_that_is_not_there_are_explained(
    call: Call, here: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"augmentation\.layers\.0\.factr: nothing reads this key"):
        call("augmentation", *here, "augmentation.layers=[{_target_:keras.layers.RandomContrast,factor:0.1,factr:1}]")
    with pytest.raises(SystemExit, match="nowhere"):
        call("augmentation", "data=folder", f"data.root={tmp_path / 'nowhere'}")


@pytest.mark.parametrize("arguments, said", [
    ([], "WHAT"),
    (["augmentatoin"], "invalid choice"),
    (["augmentation", "--pictures", "0"], "--pictures: must be a whole number of 1 or more. Received: '0'"),
    (["augmentation", "--views", "x"], "Received: 'x'"),
    (["augmentation", "--output", "a.jpg"], "must end in .png. Received: 'a.jpg'"),
    (["augmentation", "seed=1", "--vews", "3"], "unrecognized arguments: --vews"),
])  # fmt: skip
def test_wrong_arguments_are_refused_at_once(
    arguments: list[str], said: str, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        call(*arguments)
    assert raised.value.code == 2 and said in capsys.readouterr().err


DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", schema.shipped("augmentation"))
def test_the_documentation_shows_every_augmentation(name: str) -> None:
    text = (DOCS / "augmentation.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in text
    if name != "none":
        image = DOCS / "images" / f"augmentation_{name}.png"
        assert f"(images/{image.name})" in text and f"experiments inspect augmentation augmentation={name} " in text
        assert image.stat().st_size < 250_000 and Image.open(image).format == "PNG"


def test_what_the_documentation_says_to_type_is_accepted(tmp_path: Path) -> None:
    text = (DOCS / "augmentation.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith(("    experiments", "    python"))]
    assert len(commands) > 8
    for words in commands:
        composed.read([word for word in words if "=" in word])
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "augmentation").mkdir()
    (tmp_path / "augmentation" / "mine.yaml").write_text(example)
    read = composed.read(["augmentation=mine"], tmp_path)
    assert isinstance(build_layer(read, 0, read.augmentation.layers[0]), keras.layers.RandomGrayscale)
