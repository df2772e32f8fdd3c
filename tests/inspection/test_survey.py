"""`inspect data`: the report on folders with valid and invalid images."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments.config.schema import Config
from experiments.config.targets import build_source
from experiments.data.types import NearDuplicatePair
from experiments.errors import ConfigError, DataError
from experiments.inspection import data, near_duplicates
from experiments.run import read_manifest

Read = Callable[..., Config]


@pytest.fixture
def damaged(drawn: Path, tmp_path: Path) -> Path:
    """The drawn images with three files at fault, and one that is grey and small."""
    root = tmp_path / "damaged"
    shutil.copytree(drawn, root)
    (root / "train" / "blobs" / "blobs.3.jpg").write_bytes(b"no image")
    cut = root / "train" / "stripes" / "stripes.5.jpg"
    cut.write_bytes(cut.read_bytes()[:-40])
    shutil.copy(root / "train" / "blobs" / "blobs.0.jpg", root / "train" / "blobs" / "twice.jpg")
    Image.fromarray(np.full((20, 60), 80, "uint8")).save(root / "validation" / "blobs" / "grey.png")
    return root


def test_every_file_at_fault_is_listed_with_its_reason(damaged: Path, config: Read) -> None:
    read = config("data=folder", f"data.root={damaged}", "data.image_size=48")
    looked = data.inspect_data(read)
    assert [fault.path for fault in looked.issues] == [
        "train/blobs/blobs.3.jpg", "train/blobs/twice.jpg", "train/stripes/stripes.5.jpg"
    ]  # fmt: skip
    assert looked.fatal == looked.issues, "data.on_bad=error"
    first, *lines = data.issue_lines(looked, "error")
    assert first == "3 issues; a run with data.on_bad=error refuses them. data.on_bad=skip would skip all of them:"
    assert "is no JPEG" in lines[0] and "same image as train/blobs/blobs.0.jpg" in lines[1]
    assert "whole copy" in lines[2]
    with pytest.raises(DataError) as refused:
        read_manifest(read, build_source(read)())
    assert all(line in str(refused.value) for line in lines), "in the words of a run"


def test_with_skip_they_are_left_out(damaged: Path, config: Read) -> None:
    read = config("data=folder", f"data.root={damaged}", "data.image_size=48", "data.on_bad=skip")
    looked = data.inspect_data(read)
    assert len(looked.issues) == 3 and not looked.fatal
    assert looked.manifest.entries == read_manifest(read, build_source(read)()).entries
    assert data.issue_lines(looked, "skip")[0] == "3 issues, skipped by a run (data.on_bad=skip):"


def test_the_table_and_the_words_count_what_is_there(damaged: Path, config: Read) -> None:
    read = config("data=folder", f"data.root={damaged}", "data.image_size=48")
    found = data.inspect_data(read).manifest
    text = Console(file=io.StringIO(), width=100)
    text.print(data.counts(found))
    assert isinstance(text.file, io.StringIO)
    rows = [line.split() for line in text.file.getvalue().splitlines() if line.strip()]
    assert ["blobs", "11", "7", "4", "22"] in rows and ["stripes", "11", "6", "4", "21"] in rows
    assert ["all", "22", "13", "8", "43"] in rows
    printed = "\n".join(data.sentences(found, 48))
    assert "width 48 to 60 pixels (median 48), height 20 to 48 (48)" in printed and "1 images are enlarged" in printed
    assert "RGB 42, L 1" in printed and "smallest 60 x 20" in printed and "validation/blobs/grey.png" in printed


def test_more_than_an_error_shows_are_listed_and_a_folder_that_is_not_there(tmp_path: Path, config: Read) -> None:
    for split in ("train", "validation"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for n in range(15):
                (tmp_path / split / name / f"{n}.jpg").write_bytes(f"{split}{name}{n}".encode())
    looked = data.inspect(config("data=folder", f"data.root={tmp_path}"), images=2)
    assert sum("is no JPEG" in str(line) for line in looked.lines) == 60
    assert looked.is_refused and looked.draw is None
    with pytest.raises(ConfigError, match="does not exist"):
        data.inspect_data(config("data=folder", f"data.root={tmp_path}/gone"))


def test_the_figure_shows_images_of_every_class(drawn: Path, config: Read) -> None:
    looked = data.inspect_data(config("data=folder", f"data.root={drawn}", "data.image_size=48"))
    figure = data.draw(looked, 4)
    assert figure.get_suptitle() == "44 images, no issues"
    shown = [panel.get_images()[0].get_size() for panel in figure.axes if panel.get_images()]
    assert shown == [(48, 48)] * 8
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["blobs", "stripes"]


@pytest.mark.parametrize("on_bad", ["error", "skip"])
@pytest.mark.parametrize("splits", [("train", "validation"), ("validation",)])
def test_a_class_without_a_usable_image_is_shown_as_such(
    damaged: Path, config: Read, splits: tuple[str, ...], on_bad: str
) -> None:
    for split in splits:
        for path in (damaged / split / "blobs").iterdir():
            path.write_bytes(b"no image: " + bytes(path))
    looked = data.inspect_data(
        config("data=folder", f"data.root={damaged}", "data.image_size=48", f"data.on_bad={on_bad}", "data.fold=0")
    )
    assert {fault.path for fault in looked.fatal} >= {f"{split}/blobs" for split in splits if split == "train"}
    assert data.draw(looked, 2).get_suptitle().endswith(f"{len(looked.issues)} issues")
    assert data.issue_lines(looked, on_bad)[0].endswith(":") and ".:" not in data.issue_lines(looked, on_bad)[0]


def test_images_that_should_be_looked_at_are_listed(drawn: Path, tmp_path: Path, config: Read) -> None:
    root = tmp_path / "odd"
    shutil.copytree(drawn, root)
    Image.new("L", (20, 20)).save(root / "train" / "blobs" / "black.png")
    clear = Image.new("RGBA", (20, 20), (200, 40, 30, 0))
    clear.save(root / "train" / "blobs" / "clear.png")
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff"
    Image.open(root / "train" / "blobs" / "blobs.1.jpg").save(root / "train" / "blobs" / "exif.jpg", exif=exif)
    for _ in range(2):  # decoded first, then read from the cached validation results
        lines = data.inspect(config("data=folder", f"data.root={root}", "data.image_size=48"), images=1).lines
        at = lines.index("used, with a warning: 2")
        assert "train/blobs/clear.png: is fully transparent" in str(lines[at - 1])
        assert lines[at + 1 : at + 3] == [
            "  train/blobs/black.png: is blank: all its pixels are of the color (0, 0, 0)",
            "  train/blobs/exif.jpg: its EXIF is damaged, and the orientation cannot be read: "
            "it is used as it is stored",
        ]
    clean = data.inspect(config("data=folder", f"data.root={drawn}"), images=1).lines
    assert not any("with a warning" in str(line) for line in clean)


def test_near_duplicates_are_listed_and_shown_side_by_side(drawn: Path, tmp_path: Path, config: Read) -> None:
    root = tmp_path / "copied"
    shutil.copytree(drawn, root)
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (12, 12, 3)), np.ones((8, 8, 1))).astype("uint8")
    Image.fromarray(pixels).save(root / "train" / "blobs" / "scene.png")
    Image.fromarray(pixels[:, ::-1]).save(root / "validation" / "stripes" / "scene.jpg", quality=60)
    report = data.inspect_data(config("data=folder", f"data.root={root}", "data.image_size=48"))
    first, line, *_ = near_duplicates.lines(report.manifest, "warn")
    assert "1 in two splits: a run warns of these (data.on_leak=warn)" in first
    assert line.startswith(
        "  train/blobs/scene.png  validation/stripes/scene.jpg: train and validation, in two classes"
    )
    assert line.endswith(", mirrored")
    titles = [panel.get_title(loc="left") for figure in data.draw(report, 4).subfigs for panel in figure.axes]
    assert titles.count("train and validation: blobs and stripes") == 1
    splits = SimpleNamespace(split="train", class_name="a"), SimpleNamespace(split="test", class_name="a")
    entries = [SimpleNamespace(path=f"{side}{at}", **vars(splits[side])) for at in range(50) for side in range(2)]
    many = [NearDuplicatePair(f"0{at}", f"{int(at >= 25)}{at + 1 - at // 25}", 0.9, False) for at in range(50)]
    found = SimpleNamespace(entries=entries, near_duplicates=many, leaks=tuple(many[25:]))
    first, *listed, last = near_duplicates.lines(cast(Any, found), "warn")
    assert first.startswith("50 pairs of near-duplicates, 25 in two splits") and len(listed) == 25
    assert all("train and test" in line for line in listed) and last.startswith("  and 25 more, in one split each")
    with_errors = data.inspect_data(config("data=folder", f"data.root={root}", "data.on_leak=error"))
    assert [issue.path for issue in with_errors.fatal] == ["validation/stripes/scene.jpg"]
