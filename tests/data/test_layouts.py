"""Layouts of image folders as people have them: splits by many names, test images without labels, litter, odd names."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from functools import partial
from pathlib import Path

import manifests
import numpy as np
import pytest
from PIL import Image
from pillow_heif import from_pillow

from experiments.config import composing
from experiments.config.targets import build_source
from experiments.data.issues import DataIssue
from experiments.data.listing import ListedImage, is_litter
from experiments.data.sources.filenames import filenames
from experiments.data.splitting import draw_fold, draw_splits
from experiments.data.types import Manifest
from experiments.deploy import predict
from experiments.errors import DataError
from experiments.run import read_manifest

FRACTIONS = {"train": 0.75, "validation": 0.25, "test": 0.0}


def draw(root: Path, folder: str, count: int) -> None:
    """Draw images that no other folder has."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(list(os.fsencode(folder)))
    for number in range(count):
        pixels = random.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / folder / f"{number}.png")


read = partial(manifests.read, fractions=FRACTIONS)


def sizes(found: Manifest) -> dict[str, dict[str, int]]:
    """The number of images by split and class."""
    counts = Counter((entry.split, entry.class_name) for entry in found.entries)
    return {
        split: {name: counts[split, name] for name in found.classes}
        for split in ("train", "validation", "test")
        if found.of(split)
    }


def both(count: int) -> dict[str, int]:
    return {"a": count, "b": count}


def layouts_of_the_page() -> list[list[str]]:
    page = (Path(__file__).parents[2] / "docs" / "your_data.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows if len(row) == 5]


OTHERS = [
    ["`TRAIN/<class>/`, `Val/<class>/`, `Test/<class>/`", "capitals", "`TRAIN`", "`Val`", "`Test`"],
    ["`train/<class>/`, `dev/<class>/`", "dev", "`train`", "`dev`", "none"],
]


@pytest.mark.parametrize("row", layouts_of_the_page() + OTHERS, ids=lambda row: row[0])
def test_layouts_are_read_with_data_root_alone(tmp_path: Path, row: list[str]) -> None:
    folders, _, *splits = row
    for folder in re.findall("`([^`]+)/`", folders):
        for class_name in "ab" if "<class>" in folder else "-":
            draw(tmp_path / "data", folder.replace("<class>", class_name), 10)
    (tmp_path / "data/README.dataset.txt").write_text("where this is from")
    config = composing.read([f"data.root={tmp_path}/data", f"outputs={tmp_path}/outputs"])
    found = read_manifest(config, build_source(config)())
    given = [split.strip("`") for split in splits if split not in ("drawn", "none")]
    for name, origin in zip(("train", "validation", "test"), splits, strict=True):
        places = {entry.path.split("/")[0] for entry in found.of(name)}
        if origin == "none":
            assert not places
        elif origin == "drawn":
            assert places == (set(given[:1]) or {"a", "b"})
        else:
            folder = origin.strip("`")
            assert places == {folder} and (f"{folder} is read as the {name} split" in found.notes) == (folder != name)
    assert sizes(found)["validation"] == both(2 if splits[1] == "drawn" else 10)
    drawn = any("20% validation images are drawn" in note for note in found.notes)
    assert drawn == (bool(given) and splits[1] == "drawn") and found.skipped == ()


def test_the_page_has_the_layouts_that_were_asked_for() -> None:
    page = " ".join(row[0] for row in layouts_of_the_page())
    for folder in ("`<class>/`", "`val/", "`valid/", "`validation/", "`Training/", "`Testing/", "`test/`"):
        assert folder in page


def test_validation_images_are_drawn_from_train_seeded_and_the_test_images_stay(tmp_path: Path) -> None:
    for class_name, count in (("a", 12), ("b", 4)):
        draw(tmp_path / "data", f"train/{class_name}", count)
        draw(tmp_path / "data", f"test/{class_name}", 2)
    found, other = read(tmp_path / "data"), read(tmp_path / "data", split_seed=1)
    assert sizes(found) == {"train": {"a": 9, "b": 3}, "validation": {"a": 3, "b": 1}, "test": both(2)}
    assert sizes(other) == sizes(found) and other.of("validation") != found.of("validation")
    assert found.of("test") == other.of("test") and found == read(tmp_path / "data")
    half = read(tmp_path / "data", fractions={"train": 0.3, "validation": 0.5, "test": 0.2})
    assert sizes(half) == {"train": {"a": 6, "b": 2}, "validation": {"a": 6, "b": 2}, "test": both(2)}
    folds = [read(tmp_path / "data", fold=fold, folds=4) for fold in range(4)]
    validated = [entry.path for found in folds for entry in found.of("validation")]
    assert len(validated) == len(set(validated)) == 16, "each training image in one fold"
    assert all(found.of("test") == half.of("test") for found in folds)


def test_groups_stay_together_where_validation_images_are_drawn_from_train(tmp_path: Path) -> None:
    for class_name in "ab":
        draw(tmp_path / "data", f"train/{class_name}", 24)
        draw(tmp_path / "data", f"test/{class_name}", 2)
    group = r"(\w+/[ab]/[0-9])[0-9]*\.png"  # 1.png, 10.png, ..., 19.png are of one patient
    for found in (read(tmp_path / "data", group=group), read(tmp_path / "data", group=group, fold=1, folds=3)):
        patients = {split: {entry.group for entry in found.of(split)} for split in ("train", "validation")}
        assert patients["train"] and patients["validation"] and not patients["train"] & patients["validation"]
        assert len(found.of("test")) == 4


def test_train_alone_gives_test_images_too_where_a_fraction_asks_for_them(tmp_path: Path) -> None:
    for class_name in "ab":
        draw(tmp_path / "data", f"train/{class_name}", 10)
    found = read(tmp_path / "data", fractions={"train": 0.5, "validation": 0.3, "test": 0.2})
    assert sizes(found) == {"train": both(5), "validation": both(3), "test": both(2)}


def test_a_note_says_that_no_test_images_are_drawn_where_validation_images_are_given(tmp_path: Path) -> None:
    for folder in ("train/a", "train/b", "val/a", "val/b"):
        draw(tmp_path / "data", folder, 5)
    note = "no test images are drawn (data.fractions.test), as the data has validation images of its own"
    for share in (0.0, 0.2):
        found = read(tmp_path / "data", fractions={"train": 0.8 - share, "validation": 0.2, "test": share})
        assert sizes(found) == {"train": both(5), "validation": both(5)} and (note in found.notes) == (share > 0)


def test_a_class_with_one_training_image_cannot_give_a_validation_image(tmp_path: Path) -> None:
    draw(tmp_path / "data", "train/a", 5)
    draw(tmp_path / "data", "train/b", 1)
    with pytest.raises(DataError, match="train/b: has 1 image that can be used, too few to split into train, valid"):
        read(tmp_path / "data")


@pytest.mark.parametrize("place", ["test", "test/unknown", "Testing"])
@pytest.mark.parametrize("validation", [True, False])
def test_test_images_without_labels_are_left_aside_with_a_note(tmp_path: Path, place: str, validation: bool) -> None:
    for class_name in "ab":
        draw(tmp_path / "data", f"train/{class_name}", 4)
        if validation:
            draw(tmp_path / "data", f"val/{class_name}", 1)
    draw(tmp_path / "data", place, 7)
    (tmp_path / "data" / place / "sample_submission.csv").write_text("id")
    found = read(tmp_path / "data")
    assert sizes(found) == {"train": both(4 if validation else 3), "validation": both(1)}
    assert any("its 7 images have no labels and are left aside" in note for note in found.notes)
    assert found.skipped == ()


def test_test_images_of_one_class_in_other_capitals_have_labels(tmp_path: Path) -> None:
    for folder in ("train/a", "train/b", "test/A"):
        draw(tmp_path / "data", folder, 4)
    with pytest.raises(DataError, match="test/a: this class is missing, though train has it"):
        read(tmp_path / "data")


@pytest.mark.parametrize("name", ["train", "test", "valid", "Training"])
def test_a_class_may_have_the_name_of_a_split(tmp_path: Path, name: str) -> None:
    for class_name in ("bus", "car", name):
        draw(tmp_path / "data", class_name, 4)
    found = read(tmp_path / "data")
    assert found.classes == tuple(sorted(("bus", "car", name)))
    assert sizes(found)["validation"] == dict.fromkeys(found.classes, 1)
    assert found.notes == (f"{name} is a class here, as bus is, and not a split",)


def test_a_folder_of_folders_names_the_one_that_was_meant(tmp_path: Path) -> None:
    for class_name in "ab":
        draw(tmp_path / "data", f"chest_xray/train/{class_name}", 4)
        draw(tmp_path / "data", f"chest_xray/test/{class_name}", 4)
    with pytest.raises(DataError, match=rf"two or more classes are needed.*Is it {tmp_path}/data/chest_xray\?"):
        read(tmp_path / "data")
    assert len(read(tmp_path / "data/chest_xray").entries) == 16


@pytest.mark.parametrize("splits", [("",), ("train/", "val/")])
def test_folders_inside_class_folders_are_read_as_the_error_advises(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for folder in (f"{split}{name}/{year}" for split in splits for name in "ab" for year in (2023, 2024)):
        draw(tmp_path / "data", folder, 2)
    with pytest.raises(DataError, match=rf"{2 * len(splits)} issues.*\n  .*a: folders inside a class folder") as raised:
        read(tmp_path / "data")
    (pattern,) = set(re.findall(r"data=filenames 'data.pattern=\"(.*)\"'", str(raised.value)))
    found = read(filenames(root=tmp_path / "data", pattern=pattern, cache=tmp_path))
    assert found.classes == ("a", "b") and len(found.entries) == 8 * len(splits)
    if len(splits) > 1:
        assert sizes(found) == {"train": both(4), "validation": both(4)}


def test_splits_inside_class_folders_are_read_as_the_error_advises(tmp_path: Path) -> None:
    for folder, count in (("a/train", 4), ("b/train", 4), ("a/Val", 2), ("b/Val", 2)):
        draw(tmp_path / "data", folder, count)
    with pytest.raises(DataError, match="a: folders inside a class folder") as raised:
        read(tmp_path / "data")
    (pattern,) = set(re.findall(r"data=filenames 'data.pattern=\"(.*)\"'", str(raised.value)))
    found = read(filenames(root=tmp_path / "data", pattern=pattern, cache=tmp_path))
    assert sizes(found) == {"train": both(4), "validation": both(2)}


@pytest.mark.parametrize(
    "renamed",
    [
        {"train_set": "train", "val_set": "validation"},
        {"1-Training": "train", "2-Testing": "test"},
        {"train": "train", "val": "val", "test1": "test"},
        {"trainset": "train", "valid images": "validation", "TEST.data": "test"},
    ],
    ids=" ".join,
)
def test_folders_named_nearly_as_splits_are_no_classes(tmp_path: Path, renamed: dict[str, str]) -> None:
    """Read as classes, as the error advised for train_set and val_set, they gave a model of nothing."""
    for folder in renamed:
        draw(tmp_path / "data", f"{folder}/a", 4)
        draw(tmp_path / "data", f"{folder}/b", 4)
    with pytest.raises(DataError) as raised:
        read(tmp_path / "data")
    advice = dict(re.findall(r"  (.+): is none of train, validation, test; rename it to (\w+), or", str(raised.value)))
    assert advice == {name: split for name, split in renamed.items() if name != split}
    assert "data.pattern" not in str(raised.value)
    for name, split in advice.items():
        (tmp_path / "data" / name).rename(tmp_path / "data" / split)
    assert sizes(read(tmp_path / "data"))["train"] == both(4 if "2-Testing" not in renamed else 3)


@pytest.mark.parametrize("test", ["test", "test1"])
def test_images_of_split_folders_without_classes_are_no_classes(tmp_path: Path, test: str) -> None:
    """As Kaggle's dogs and cats is unpacked: train/cat.0.jpg and test1/1.jpg."""
    draw(tmp_path / "data", "train", 4)
    draw(tmp_path / "data", test, 3)
    with pytest.raises(DataError, match="Its 4 images are in no class folder: .* use data=filenames") as raised:
        read(tmp_path / "data")
    assert ("test1: is none of train, validation, test; rename it to test" in str(raised.value)) == (test == "test1")


@pytest.mark.parametrize("names", [("train", "bullet train"), ("valid", "not valid"), ("test1", "test2")])
def test_classes_named_nearly_as_splits(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        draw(tmp_path / "data", name, 4)
    assert read(tmp_path / "data").classes == tuple(sorted(names))


def test_which_images_are_drawn_never_changes() -> None:
    """The splits of a folder that was used before stay what they were: they depend on its paths and the seed only."""
    images = [ListedImage(f"{name}/{number}.png", name) for name in "ab" for number in range(10)]
    issues: list[DataIssue] = []
    drawn = draw_splits(images, {"train": 0.7, "validation": 0.2, "test": 0.1}, 0, "", issues)
    assert [image.path for image in drawn if image.split == "validation"] == [
        "a/3.png",
        "a/7.png",
        "b/9.png",
        "b/5.png",
    ]
    folds = draw_fold([image._replace(split="train") for image in images], 1, 5, 0, "", issues)
    assert [image.path for image in folds if image.split == "validation"] == [
        "a/6.png",
        "a/0.png",
        "b/4.png",
        "b/2.png",
    ]
    assert not issues


def test_images_of_every_suffix_are_read(tmp_path: Path) -> None:
    names = ("x.jfif", "x.JPE", "x.ppm", "x.pgm", "x.pbm", "x.tga", "x.avif", "x.jp2", "x.j2k", "x.HEIC")
    formats = {".jfif": "JPEG", ".jpe": "JPEG", ".tga": "TGA", ".avif": "AVIF", ".jp2": "JPEG2000", ".j2k": "JPEG2000"}
    for class_name in "ab":
        draw(tmp_path / "data", class_name, 4)
        for name in names:
            suffix = Path(name).suffix.lower()
            mode = {".pgm": "L", ".pbm": "1"}.get(suffix, "RGB")
            seed = list(os.fsencode(class_name + name))
            image = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)).convert(
                mode
            )
            if suffix == ".heic":
                from_pillow(image).save(tmp_path / "data" / class_name / name)
            else:
                image.save(tmp_path / "data" / class_name / name, formats.get(suffix, "PPM"))
    found = read(tmp_path / "data")
    assert {Path(entry.path).name for entry in found.entries} >= set(names) and len(found.entries) == 2 * (
        4 + len(names)
    )


# --- what systems leave behind

LITTER_FOLDERS = (
    "@eaDir", "#recycle", "#snapshot", "@Recycle", "~snapshot", "lost+found", "System Volume Information",
    "$RECYCLE.BIN", "__MACOSX", ".Trashes", "found.000", "Network Trash Folder", "Temporary Items",
    ".ipynb_checkpoints",
)  # fmt: skip
LITTER_FILES = (
    "Icon\r", "Thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "Desktop.ini", "picasa.ini",
    ".picasa.ini", "Picasa.ini", "._0.png", ".DS_Store", "folder.htt", "0.png:Zone.Identifier",
    "0.png@SynoEAStream", "ZbThumbnail.info",
)  # fmt: skip


@pytest.mark.parametrize("folders", [("train", "val"), (".",)])
def test_litter_is_no_class_and_no_issue_wherever_a_folder_is_read(tmp_path: Path, folders: tuple[str, ...]) -> None:
    root = tmp_path / "data"
    for folder in folders:
        for class_name in "ab":
            draw(root, f"{folder}/{class_name}", 4)
    before, files = read(root), predict.list_files([str(root)])
    for place in (".", *folders, *(f"{folder}/a" for folder in folders)):
        for name in LITTER_FOLDERS:
            (root / place / name).mkdir(exist_ok=True)
            Image.new("RGB", (4, 4), "red").save(root / place / name / "thumb.png")
        for name in LITTER_FILES:
            (root / place / name).write_bytes(b"x")
    assert read(root) == before
    assert predict.list_files([str(root)]) == files


@pytest.mark.parametrize("name", ["Icon", "recycled", "recycle", "snapshot", "found", "thumbs", "iconic", "tmp", "a@b"])
def test_words_that_may_be_classes_are_no_litter(name: str) -> None:
    assert not is_litter(name)


# --- names that look the same


@pytest.mark.parametrize("presplit", [True, False])
def test_names_that_differ_in_their_encoding_or_in_spaces_are_one_class(tmp_path: Path, presplit: bool) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Kätzchen") for form in ("NFC", "NFD"))
    folders = ("train", "val") if presplit else (".", ".")
    for folder, variants in zip(folders, ((composed, "dogs"), (decomposed, "dogs ")), strict=True):
        for name in variants:
            draw(tmp_path / "data", f"{folder}/{name}", 4)
    found = read(tmp_path / "data")
    assert found.classes == (composed, "dogs")
    assert {name for split in sizes(found).values() for name in split} == {composed, "dogs"}
    assert "'Ka\\u0308tzchen' and 'K\\xe4tzchen' are one class: their names look the same" in found.notes
    assert "'dogs' and 'dogs ' are one class: their names look the same" in found.notes


def test_a_name_that_is_written_in_one_way_only_stays_as_it_is(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Kätzchen")
    for name in (decomposed, "dogs "):
        draw(tmp_path / "data", name, 4)
    assert read(tmp_path / "data").classes == (decomposed, "dogs ")


# --- what is reported


def test_how_a_folder_is_understood_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for class_name in "ab":
        draw(tmp_path / "data", f"Training/{class_name}", 4)
        draw(tmp_path / "data", f"Testing/{class_name}", 1)
    with caplog.at_level(logging.INFO, "experiments.data.manifest"):
        read(tmp_path / "data")
    assert "Training is read as the train split" in caplog.text
    assert "of each class in Training, 25% validation images are drawn" in caplog.text


def test_a_folder_that_cannot_be_written_to_is_read(tmp_path: Path) -> None:
    for class_name in "ab":
        draw(tmp_path / "data", f"Training/{class_name}", 4)
    before = sorted(tmp_path.joinpath("data").rglob("*"))
    for folder in (tmp_path / "data", *(path for path in before if path.is_dir())):
        folder.chmod(0o555)
    try:
        read(tmp_path / "data")
    finally:
        for folder in (tmp_path / "data", *(path for path in before if path.is_dir())):
            folder.chmod(0o755)
    assert sorted(tmp_path.joinpath("data").rglob("*")) == before
