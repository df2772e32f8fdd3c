"""Invalid inputs of many kinds, each reported before epoch 0, and images that change after validation."""

from __future__ import annotations

import io
import os
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.data import manifest
from experiments.data.pixel_cache import splits_of
from experiments.data.types import Manifest, SplitSettings
from experiments.errors import DataError
from experiments.images import decoder

Tally = Callable[[str, int, int], None]
Tries = Callable[[int, int], int]
Make = Callable[[Path], object]


def draw(path: Path, format: str | None = None, mode: str = "RGB", **options: object) -> Path:
    """An image of 40 x 30 pixels that no other path has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(os.fsencode(path.name + path.parent.name + path.parent.parent.name)))
    image = Image.fromarray(rng.integers(0, 256, (30, 40, 3)).astype("uint8")).convert(mode)
    with open(path, "wb") as file:
        image.save(file, format or {".jpg": "JPEG", ".png": "PNG"}.get(path.suffix, "PNG"), **options)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for split, count in (("train", 4), ("validation", 2)):
        for name in ("cats", "dogs"):
            for number in range(count):
                draw(root / split / name / f"{number}.jpg")
    return root


def read(root: Path, on_bad: str = "error") -> Manifest:
    fractions = {"train": 0.7, "validation": 0.3, "test": 0.0}
    return manifest.read(root, SplitSettings(fractions, on_bad=on_bad), cache=root.parent / "cache")


def refused(root: Path, on_bad: str = "error") -> str:
    with pytest.raises(DataError) as caught:
        read(root, on_bad)
    return str(caught.value)


def shortened(by: Callable[[int], int], suffix: str = "jpg") -> Make:
    def make(path: Path) -> None:
        os.truncate(draw(path), by(path.stat().st_size))

    return make


def damaged_in_the_middle(path: Path) -> None:
    content = bytearray(draw(path).read_bytes())
    at = len(content) // 2
    content[at : at + 60] = bytes(60)
    path.write_bytes(content)


def saved_as(format: str, **options: Any) -> Make:
    return lambda path: draw(path, format, **options)


def written(content: bytes) -> Make:
    def make(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return make


def huge_header(path: Path) -> None:
    """A PNG that says it is 60,000 pixels square."""
    content = bytearray(draw(path).read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "green")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    written(file.getvalue())(path)


def unreadable(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/proc/self/mem")  # opens, and cannot be read; permissions do not stop root


def copied_from(other: str) -> Make:
    return lambda path: shutil.copy(path.parents[2] / other, path)


def linked(target: str) -> Make:
    return lambda path: path.symlink_to(target)


def with_image(path: Path) -> None:
    draw(path / "image.jpg")


# Of each case: the path, the function that makes it, and the remedy in its error. None: the file is read like any other
# image. "": it is ignored.
ZOO: dict[str, tuple[str, Make, str | None]] = {
    "zero bytes": ("train/cats/x.jpg", Path.touch, "is empty; replace it by a whole copy or remove it"),
    "text in a .jpg": ("train/cats/x.jpg", written(b"hello\n" * 9), "replace it by a whole copy or remove it"),
    "an error page in a .jpg": ("train/cats/x.jpg", written(b"<html>404</html>"), "replace it by a whole copy"),
    "JPEG short of 2 bytes": ("train/cats/x.jpg", shortened(lambda n: n - 2), "replace it by a whole copy"),
    "JPEG short of half": ("train/cats/x.jpg", shortened(lambda n: n // 2), "replace it by a whole copy"),
    "PNG short of 2 bytes": ("train/cats/x.png", shortened(lambda n: n - 2), "replace it by a whole copy"),
    "PNG short of half": ("validation/dogs/x.png", shortened(lambda n: n // 2), "replace it by a whole copy"),
    "only a JPEG's header": ("train/cats/x.jpg", shortened(lambda n: 20), "replace it by a whole copy"),
    "PNG damaged in the middle": ("train/cats/x.png", damaged_in_the_middle, "replace it by a whole copy"),
    "PNG named .jpg": ("train/cats/x.jpg", saved_as("PNG"), None),
    "JPEG named .png": ("train/cats/x.png", saved_as("JPEG"), None),
    "upper-case suffix": ("train/cats/X.JPG", saved_as("JPEG"), None),
    "GIF": ("train/cats/x.gif", saved_as("GIF"), "convert to PNG or JPEG"),
    "animated GIF": ("train/cats/x.gif", animated, "convert to PNG or JPEG"),
    "GIF named .jpg": ("train/cats/x.jpg", saved_as("GIF"), "convert it to PNG or JPEG"),
    "CMYK": ("train/cats/x.jpg", saved_as("JPEG", mode="CMYK"), None),
    "16-bit gray": ("train/cats/x.png", saved_as("PNG", mode="I;16"), "data.gray_range"),  # 0 to 255: it would be black
    "32-bit floats": ("train/cats/x.tiff", saved_as("TIFF", mode="F"), "convert it to PNG or JPEG"),
    "grey": ("train/cats/x.png", saved_as("PNG", mode="L"), None),
    "grey with alpha": ("train/cats/x.png", saved_as("PNG", mode="LA"), None),
    "black and white": ("train/cats/x.png", saved_as("PNG", mode="1"), None),
    "palette": ("train/cats/x.png", saved_as("PNG", mode="P"), None),
    "RGBA": ("train/cats/x.png", saved_as("PNG", mode="RGBA"), None),
    "YCbCr": ("train/cats/x.jpg", saved_as("JPEG", mode="YCbCr"), None),
    "progressive": ("train/cats/x.jpg", saved_as("JPEG", progressive=True), None),
    "huge header": ("train/cats/x.png", huge_header, "scale it down or remove it"),
    "cannot be read": ("train/cats/x.jpg", unreadable, "check its permissions and the disk, or remove it"),
    "dangling link": ("train/cats/x.jpg", linked("nowhere.jpg"), "restore what it points to or remove it"),
    "loop of links": ("train/cats/x.jpg", linked("x.jpg"), "restore what it points to or remove it"),
    "link to an image": ("train/cats/x.jpg", lambda path: path.symlink_to(draw(path.parents[3] / "far.jpg")), None),
    "pipe": ("train/cats/x.jpg", lambda path: os.mkfifo(path), "not a regular file; remove it"),
    "hidden file": ("train/cats/.x.jpg", written(b"?"), ""),
    "macOS's half file": ("train/cats/._x.jpg", written(b"?"), ""),
    "Thumbs.db": ("train/cats/Thumbs.db", written(b"?"), ""),
    "__MACOSX": ("__MACOSX", with_image, ""),
    ".ipynb_checkpoints": ("train/.ipynb_checkpoints", with_image, ""),
    "readme in the root": ("README.md", written(b"about"), ""),
    "image in the root": ("x.jpg", draw, "move it into its class's folder"),
    "image beside the classes": ("train/x.jpg", draw, "move it into its class's folder"),
    "nested class folder": (
        "train/cats",
        lambda path: with_image(path / "more"),
        "such as more; move their images up into it",
    ),
    "empty class": (
        "train/cats/",
        lambda path: (shutil.rmtree(path), path.mkdir()),
        "add images, or remove the class",
    ),
    "class only in train": (
        "validation/birds",
        lambda path: draw(path.parents[1] / "train/birds/1.jpg"),
        "same classes",
    ),
    "class only in validation": (
        "train/birds",
        lambda path: draw(path.parents[1] / "validation/birds/1.jpg"),
        "same cl",
    ),
    "class not in test": (
        "test/dogs",
        lambda path: draw(path.parents[1] / "test/cats/1.jpg"),
        "though train and validation have it; make the folder, or",
    ),
    "class of another case": ("validation/cats", lambda path: path.rename(path.parent / "Cats"), "same classes"),
    "val beside validation": (
        "validation",
        lambda path: draw(path.parent / "val/cats/9.jpg"),
        "and so is val; join the",
    ),
    "no train": ("train", shutil.rmtree, "make root/train/<class>/"),
    "other folder": ("extra", with_image, "move it out of the root"),
    "Unicode": ("train/cats/Kätzchen-猫.jpg", draw, None),
    "space": ("train/cats/my cat (1).jpg", draw, None),
    "newline": ("train/cats/two\nlines.jpg", draw, None),
    "name that is not UTF-8": (os.fsdecode(b"train/cats/\xff.jpg"), draw, None),
    "WebP": ("train/cats/x.webp", saved_as("WEBP"), None),
    "TIFF": ("train/cats/x.tiff", saved_as("TIFF"), None),
    "BMP": ("train/cats/x.bmp", saved_as("BMP"), None),
    "no suffix": ("train/cats/x", saved_as("JPEG"), "if an image, convert to PNG or JPEG"),
    "notes": ("train/cats/notes.txt", written(b"about"), "move it elsewhere"),
    "twice in one split": ("train/cats/x.jpg", copied_from("train/cats/1.jpg"), "the same image as train/cats/1.jpg"),
    "in two splits": ("validation/cats/x.jpg", copied_from("train/cats/1.jpg"), "in another split; remove one"),
    "in two classes": ("train/dogs/x.jpg", copied_from("train/cats/1.jpg"), "in another class; remove the one"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", ZOO)
def test_bad_inputs(root: Path, tally: Tally, name: str) -> None:
    before = {entry.path for entry in read(root).entries}
    place, make, remedy = ZOO[name]
    make(root / place)
    place = place.rstrip("/")
    if remedy is None:
        found = {entry.path for entry in read(root).entries}
        assert found == before | {place}
        decoded = decoder.decode((root / place).read_bytes())
        assert decoded.mode == "RGB"
    elif not remedy:
        assert {entry.path for entry in read(root).entries} == before
    else:
        text = refused(root)
        lines = [line for line in text.splitlines() if line.startswith(f"  {place}: ")]
        assert len(lines) == 1 and remedy in lines[0] and f"in the images of {root}:" in text, text
        if text.endswith("\ndata.on_bad=skip leaves out these files, and records which."):
            rest = read(root, on_bad="skip")
            left = {image.path: image.reason for image in rest.skipped}
            assert remedy in left[place] and {entry.path for entry in rest.entries} == before - set(left)
        else:
            assert refused(root, on_bad="skip") == text and "data.on_bad" not in text
    tally("invalid input has its message", 1, 1)


@pytest.mark.parametrize("name", ["nothing at all", "one class", "a file", "no such folder"])
def test_roots_that_cannot_be(tmp_path: Path, tally: Tally, name: str) -> None:
    root = tmp_path / "data"
    if name == "one class":
        draw(root / "cats" / "1.jpg")
    elif name == "nothing at all":
        root.mkdir()
    elif name == "a file":
        root.touch()
    assert str(root) in refused(root)
    tally("invalid input has its message", 1, 1)


def test_an_order_of_classes_that_would_flip_labels_is_the_same_everywhere(root: Path, tally: Tally) -> None:
    """Labels follow the names, not the order in which a file system lists them or a split has them."""
    draw(root / "validation" / "cats" / "late.jpg")
    for name in ("aardvarks", "Zebras"):
        for split in ("validation", "train"):
            draw(root / split / name / "1.jpg")
    found = read(root)
    assert found.classes == ("Zebras", "aardvarks", "cats", "dogs")
    assert all(entry.path.split("/")[1] == entry.class_name for entry in found.entries)
    tally("invalid input has its message", 1, 1)


def test_a_image_turned_by_its_exif_is_turned(root: Path, tally: Tally) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = draw(root / "train" / "cats" / "x.jpg", exif=exif)
    assert "train/cats/x.jpg" in {entry.path for entry in read(root).entries}
    assert decoder.decode(path.read_bytes()).size == (30, 40)
    tally("invalid input has its message", 1, 1)


def test_images_that_change_after_they_were_checked(root: Path, tries: Tries, tally: Tally) -> None:
    rng, wanted, found = random.Random(0), tries(150, 15), 0
    for number in range(wanted):
        known = read(root)
        entry = rng.choice(known.entries)
        content = (root / entry.path).read_bytes()
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (root / entry.path).write_bytes(flipped)
        dataset = splits_of(known, 16, root.parent / f"pixels{number}", 1e9)
        try:
            for images in dataset.scored(False) + [dataset.train]:
                images.pixels[:]
        except DataError as error:
            found += entry.path in str(error) and "changed since it was checked" in str(error)
        (root / entry.path).write_bytes(content)
    tally("bit flip of an image between manifest and use", wanted, found)
