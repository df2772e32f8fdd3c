"""Classes in the names of files: the pattern decides, and no image is silently skipped."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import manifests
import pytest
from noise import draw

from experiments.data.listing import ListedImage
from experiments.data.sources.filenames import filenames
from experiments.errors import ConfigError, DataError

HALVES = {"train": 0.5, "validation": 0.5}
PATTERN = r"(?P<label>[a-z]+)\.\d+\.jpg"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        for number in range(4):
            draw(tmp_path / "images" / ("sub" if number == 3 else "") / f"{name}.{number}.jpg")
    return tmp_path / "images"


def test_the_label_is_in_the_name_wherever_the_file_is(root: Path, tmp_path: Path) -> None:
    (root / "readme.txt").touch()
    listing = filenames(root=root, pattern=PATTERN, cache=tmp_path)
    assert not listing.issues and listing.notes == ["1 files of other types are ignored"]
    found = manifests.read(listing, fractions=HALVES)
    assert found.root == root and found.classes == ("cat", "dog")
    assert {(entry.path.rpartition("/")[2].split(".")[0], entry.class_name) for entry in found.entries} == {
        ("cat", "cat"), ("dog", "dog")
    }  # fmt: skip
    assert sum(entry.path.startswith("sub/") for entry in found.entries) == 2 and len(found.entries) == 8


def test_split_and_group_may_be_in_the_path(tmp_path: Path) -> None:
    for split in ("Train", "val"):
        for name in ("p1_cat", "p2_dog"):
            draw(tmp_path / split / f"{name}_0.png")
    pattern = r"(?P<split>\w+)/(?P<group>p\d)_(?P<label>[a-z]+)_\d\.png"
    listing = filenames(root=tmp_path, pattern=pattern, cache=tmp_path)
    assert listing.images == [
        ListedImage(f"{folder}/{group}_{name}_0.png", name, split, group)
        for folder, split in (("Train", "train"), ("val", "validation"))
        for group, name in (("p1", "cat"), ("p2", "dog"))
    ]
    assert listing.splits == ["train", "validation"]
    draw(tmp_path / "other" / "p3_cat_0.png")
    (issue,) = filenames(root=tmp_path, pattern=pattern, cache=tmp_path).issues
    assert issue.path == "other/p3_cat_0.png" and "Received: 'other'" in issue.text
    with pytest.raises(ConfigError, match="its group split is train for none of the images"):
        filenames(root=tmp_path, pattern=pattern.replace(r"\w+", "val", 1), cache=tmp_path)


def test_labels_that_look_the_same_are_one_class(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        for name in ("é", "dog"):
            draw(tmp_path / form / f"{unicodedata.normalize(form, name)}.0.jpg")
    listing = filenames(root=tmp_path, pattern=r"(?P<label>\D+)\.\d+\.jpg", cache=tmp_path)
    assert listing.classes == ["dog", "é"] and {image.class_name for image in listing.images} == {"dog", "é"}
    assert "one class: their names look the same" in listing.notes[0]


def test_every_image_that_the_pattern_does_not_match_is_listed(root: Path, tmp_path: Path) -> None:
    for name in ("Cat.9.jpg", "dog.jpg", "dog.1.jpeg"):  # a search would find "at" in the first
        draw(root / name)
    listing = filenames(root=root, pattern=PATTERN, cache=tmp_path)
    with pytest.raises(DataError, match=r"3 issues(?s:.*)Cat\.9\.jpg(?s:.*)dog\.1\.jpeg(?s:.*)dog\.jpg"):
        manifests.read(listing, fractions=HALVES)
    found = manifests.read(listing, fractions=HALVES, on_bad="skip")
    assert sorted(image.path for image in found.skipped) == ["Cat.9.jpg", "dog.1.jpeg", "dog.jpg"]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"(?P<label>[a-z]+\.jpg", "no regular expression: missing )"),
        (r"([a-z]+)\.\d+\.jpg", "needs a group called label"),
        (r"(?P<lable>[a-z]+)\.\d+\.jpg", "unknown group 'lable'. Allowed: label, split, group. Nearest: label"),
        (r"(?P<label>[a-z]+)\.png", "matches none of the 8 images"),
    ],
)
def test_a_pattern_that_cannot_be_used(root: Path, tmp_path: Path, pattern: str, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        filenames(root=root, pattern=pattern, cache=tmp_path)
    assert text in str(raised.value) and str(raised.value).startswith("data.pattern: ")


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no image is in this folder"):
        filenames(root=tmp_path, pattern=PATTERN, cache=tmp_path)
    with pytest.raises(ConfigError, match="data.root does not exist"):
        filenames(root=tmp_path / "nowhere", pattern=PATTERN, cache=tmp_path)
