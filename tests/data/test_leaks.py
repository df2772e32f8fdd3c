"""Near-duplicates in different splits: reported, refused, kept together or left out."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import NoReturn

import manifests
import pytest
from damage import flip_bit
from PIL import Image

from experiments.data import leaks, manifest, near_duplicates, validation
from experiments.data.listing import ListedImage
from experiments.data.splitting import keep_together
from experiments.data.types import Manifest
from experiments.errors import DataError
from experiments.images import decoder
from tests.data.test_near_duplicates import mirror, scene

FRACTIONS = {"train": 0.5, "validation": 0.25, "test": 0.25}


read = partial(manifests.read, fractions=FRACTIONS)


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=80)


@pytest.fixture
def unsplit(tmp_path: Path) -> Path:
    """Two classes of 12 images, of which the first six have a copy each."""
    for number in range(24):
        save(scene(number), tmp_path / "data" / "ab"[number % 2] / f"{number:02}.jpg")
    for number in range(6):
        save(mirror(scene(number)), tmp_path / "data" / "ab"[number % 2] / f"copy{number:02}.jpg")
    return tmp_path / "data"


@pytest.fixture
def presplit(tmp_path: Path) -> Path:
    """Given splits: train 0 to 9; validation 10 to 13 and a copy of 0; test 14 to 17 and copies of 1 and 10."""
    root = tmp_path / "data"
    for number in range(18):
        split = "train" if number < 10 else "validation" if number < 14 else "test"
        save(scene(number), root / split / "ab"[number % 2] / f"{number:02}.jpg")
    save(scene(0).resize((100, 75)), root / "validation" / "a" / "copy00.jpg")
    save(mirror(scene(1)), root / "test" / "b" / "copy01.jpg")
    save(scene(10).crop((8, 6, 196, 146)), root / "test" / "a" / "copy10.jpg")
    return root


def leaked(found: Manifest) -> set[tuple[str, str]]:
    return {(pair.first, pair.second) for pair in found.leaks}


def test_near_duplicates_in_two_splits_are_a_warning(presplit: Path) -> None:
    found = read(presplit)
    assert leaked(found) == {
        ("train/a/00.jpg", "validation/a/copy00.jpg"),
        ("test/b/copy01.jpg", "train/b/01.jpg"),
        ("test/a/copy10.jpg", "validation/a/10.jpg"),
    }
    assert [pair.mirrored for pair in found.near_duplicates if "copy01" in pair.first] == [True]
    assert len(found.entries) == 21 and not found.skipped
    (sentence,) = manifest.warning_sentences([found])
    assert sentence.startswith("Near-duplicates in two splits: 3 pairs, the first: ")
    assert "data.on_leak=group" in sentence
    row = next(row for row in manifest.near_duplicate_rows(found) if row["path"] == "train/a/00.jpg")
    assert (row["split"], row["other_split"], row["other_path"]) == ("train", "validation", "validation/a/copy00.jpg")
    assert float(row["similarity"]) > 0.9 and row["mirrored"] == "false"


def test_a_sweep_over_folds_has_one_warning_of_all_near_duplicates_that_a_fold_divides(unsplit: Path) -> None:
    folds = [read(unsplit, fractions={"train": 1.0, "validation": 0.0, "test": 0.0}, fold=fold) for fold in range(5)]
    every = set().union(*map(leaked, folds))
    assert max(map(len, map(leaked, folds))) < len(every)
    (sentence,) = manifest.warning_sentences(folds)
    assert sentence.startswith(f"Near-duplicates in two splits: {len(every)} pairs")


def test_with_error_they_are_refused_with_their_paths(presplit: Path) -> None:
    with pytest.raises(DataError) as refused:
        read(presplit, on_leak="error")
    text = str(refused.value)
    assert "3 issues" in text and "data.on_leak=group" in text
    assert "train/b/01.jpg: a mirrored near-duplicate of test/b/copy01.jpg, in another split" in text
    with pytest.raises(DataError):
        read(presplit, on_leak="error", on_bad="skip")


def test_with_group_the_earlier_of_given_splits_leaves_its_copies_out(presplit: Path) -> None:
    found = read(presplit, on_leak="group")
    assert [image.path for image in found.skipped] == ["train/a/00.jpg", "train/b/01.jpg", "validation/a/10.jpg"]
    assert found.skipped[2].reason == "a near-duplicate of an image in test (data.on_leak=group)"
    assert not found.leaks and len(found.entries) == 18
    assert read(presplit, on_leak="group", group=r"(\d+)\.jpg").skipped == found.skipped
    assert len(found.of("test")) == 6


def test_a_fold_of_given_splits_ignores_copies_among_the_unread_validation_images(presplit: Path) -> None:
    found = read(presplit, on_leak="group", fold=0, folds=2)
    assert [image.path for image in found.skipped] == ["train/b/01.jpg"]
    assert not found.leaks


def test_with_group_copies_are_drawn_into_one_split(unsplit: Path) -> None:
    before, after = read(unsplit), read(unsplit, on_leak="group")
    assert before.leaks and not after.leaks
    assert len(after.near_duplicates) == 6 and not after.skipped
    assert {entry.path for entry in after.entries} == {entry.path for entry in before.entries}
    splits = {entry.path: entry.split for entry in before.entries}
    moved = {entry.path for entry in after.entries if splits[entry.path] != entry.split}
    assert moved and all("copy" in path for path in moved), "images without a copy stay where they were"


def test_with_group_every_image_is_in_one_validation_fold_and_its_copies_are_in_the_same(unsplit: Path) -> None:
    fractions = {"train": 0.8, "validation": 0.2}
    folds = [read(unsplit, fractions=fractions, on_leak="group", fold=fold, folds=3) for fold in range(3)]
    assert not any(found.leaks for found in folds)
    validated = [entry.path for found in folds for entry in found.of("validation")]
    assert len(validated) == len(set(validated)) and set(validated) == {
        entry.path for found in folds for entry in found.of("train")
    }


def test_a_data_set_without_copies_is_split_as_before(tmp_path: Path) -> None:
    for number in range(16):
        save(scene(number), tmp_path / "data" / "ab"[number % 2] / f"{number:02}.jpg")
    plain, other = read(tmp_path / "data"), read(tmp_path / "data", on_leak="group")
    assert manifest.fingerprint(plain) == manifest.fingerprint(other)
    assert not plain.near_duplicates


def test_a_second_reading_decodes_and_compares_nothing(presplit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(presplit)
    monkeypatch.setattr(decoder, "decoding", None)
    monkeypatch.setattr(near_duplicates, "find_near_duplicates", None)
    assert read(presplit) == first


def test_another_version_decodes_and_compares_again(
    presplit: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(presplit).near_duplicates
    monkeypatch.setattr(near_duplicates, "VERSION", near_duplicates.VERSION + 1)
    monkeypatch.setattr(near_duplicates, "find_near_duplicates", lambda thumbnails: [])
    with caplog.at_level(logging.INFO):
        assert not read(presplit).near_duplicates
    assert "Decoding 21 images" in caplog.text

    def changed(*arguments: object) -> NoReturn:
        raise DataError("has changed since it was checked")

    monkeypatch.setattr(near_duplicates, "VERSION", near_duplicates.VERSION + 1)
    monkeypatch.setattr(validation, "unchanged", changed)
    with pytest.raises(DataError, match=r"\d\d\.jpg: has changed since"):
        read(presplit)


def test_damaged_results_are_computed_again(presplit: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = read(presplit)
    files = [next((presplit.parent / "cache" / kind).iterdir()) for kind in ("near_duplicates", "thumbnails")]
    for damaged, decoded in ((files[:1], False), (files, True)):
        for file in damaged:
            flip_bit(file, file.stat().st_size // 2)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert read(presplit) == first
        assert all(f"Damaged cache entry, computed again: {file}" in caplog.text for file in damaged)
        assert ("Decoding 21 images" in caplog.text) == decoded
    caplog.clear()
    assert read(presplit) == first and not caplog.text


def test_copies_of_copies_are_one_group() -> None:
    copies = leaks.group_copies([("c", "d"), ("b", "c"), ("x", "y"), ("a", "d")])
    assert copies == {"a": "a", "b": "a", "c": "a", "d": "a", "x": "x", "y": "x"}
    splits = {"a": "test", "d": "train", "x": "train", "z": "test"}
    images = [ListedImage(path, "k", split) for path, split in splits.items()]
    assert [image.split for image in keep_together(images, copies)] == ["test", "test", "train", "test"]


def test_groups_that_share_copies_are_drawn_as_one(tmp_path: Path) -> None:
    for number in range(32):
        save(scene(number), tmp_path / "data" / "ab"[number % 2] / f"p{number // 4}-{number}.jpg")
    save(mirror(scene(0)), tmp_path / "data" / "a" / "p5-copy.jpg")
    for seed in range(4):
        found = read(tmp_path / "data", on_leak="group", group=r"p(\d+)-", split_seed=seed)
        splits = {entry.path[2:4]: entry.split for entry in found.entries}
        assert splits["p0"] == splits["p5"] and len(set(splits.values())) == 3
        assert all(entry.split == splits[entry.path[2:4]] for entry in found.entries)
