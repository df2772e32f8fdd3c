"""Groups stay in one split and one fold; classes are selected, ordered, merged and dropped."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import manifests
import noise
import pytest

from experiments.data import grouping, manifest
from experiments.data.issues import DataIssue
from experiments.data.listing import ListedImage, Listing
from experiments.errors import ConfigError, DataError

PATIENT = r"p(\d+)_"
FRACTIONS = {"train": 0.8, "validation": 0.2, "test": 0.0}


def patients(count: int = 24, images: int = 5) -> list[ListedImage]:
    """Of each patient so many images, of class a or b in turn."""
    return [
        ListedImage(f"{'ab'[patient % 2]}/p{patient:02}_{number}.png", "ab"[patient % 2], "", f"{patient:02}")
        for patient in range(count)
        for number in range(images)
    ]


def draw(root: Path, paths: Sequence[str]) -> Path:
    for path in paths:
        noise.draw(root / path)
    return root


read = partial(manifests.read, fractions=FRACTIONS)


def splits_of(images: Sequence[Any]) -> Mapping[str, set[str]]:
    """Group -> the splits that it is in."""
    splits = defaultdict(set)
    for image in images:
        splits[image.group].add(image.split)
    return splits


# --- splits and folds


@pytest.mark.parametrize("fractions", [FRACTIONS, {"train": 0.7, "validation": 0.2, "test": 0.1}])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_a_group_is_in_one_split_and_classes_are_divided_by_the_fractions(
    fractions: dict[str, float], seed: int
) -> None:
    issues: list[DataIssue] = []
    images = grouping.draw_splits(patients(40), fractions, seed, "", issues)
    assert not issues and len(images) == 200
    assert all(len(splits) == 1 for splits in splits_of(images).values())
    counts = Counter((image.split, image.class_name) for image in images)
    for split, share in fractions.items():
        for name in "ab":
            assert counts[split, name] == pytest.approx(100 * share, abs=5), "one patient more or less"
    assert grouping.draw_splits(patients(40)[::-1], fractions, seed, "", []) == images[::-1], "in any order of files"


def test_splits_of_groups_are_seeded() -> None:
    def held_out(seed: int) -> set[str]:
        drawn = grouping.draw_splits(patients(), FRACTIONS, seed, "", [])
        return {record.group for record in drawn if record.split != "train"}

    assert held_out(0) == held_out(0)
    assert len({frozenset(held_out(seed)) for seed in range(5)}) > 1


def test_a_class_with_few_groups_has_images_in_every_split() -> None:
    rare = [ListedImage(f"c/p9{patient}_{n}.png", "c", "", f"9{patient}") for patient in range(2) for n in range(3)]
    for seed in range(5):
        issues: list[DataIssue] = []
        images = grouping.draw_splits([*patients(), *rare], FRACTIONS, seed, "", issues)
        assert not issues and {image.split for image in images if image.class_name == "c"} == {"train", "validation"}
    grouping.draw_splits([*patients(), *rare[:3]], FRACTIONS, 0, "", issues)
    (issue,) = issues
    assert issue.path == "c" and "images of 1 group (" in issue.text and "data.classes" in issue.text


def test_one_large_group_does_not_fill_a_small_split() -> None:
    large = [ListedImage(f"a/p99_{n}.png", "a", "", "99") for n in range(100)]
    for seed in range(20):
        images = grouping.draw_splits([*patients(), *large], FRACTIONS, seed, "", [])
        assert {image.split for image in images if image.group == "99"} == {"train"}


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_of_groups_partition_the_training_images(folds: int) -> None:
    train = [image._replace(split="train") for image in patients()]
    test = [ListedImage("a/t.png", "a", "test", "t"), ListedImage("b/v.png", "b", "validation", "v")]
    validated = []
    for fold in range(folds):
        issues: list[DataIssue] = []
        images = grouping.draw_fold([*train, *test], fold, folds, 0, "", issues)
        assert not issues and not grouping.check_splits(images)
        assert [image.path for image in images if image.split == "test"] == ["a/t.png"]
        assert "b/v.png" not in {image.path for image in images}, "the given validation split is not used"
        of_fold = [image for image in images if image.split == "validation"]
        validated += [image.path for image in of_fold]
        counts = Counter(image.class_name for image in of_fold)
        assert abs(counts["a"] - counts["b"]) <= 5, "one patient more or less"
    assert sorted(validated) == sorted(image.path for image in train)
    seeded = [grouping.draw_fold(train, 0, folds, seed, "", []) for seed in (0, 1, 0)]
    assert seeded[0] == seeded[2] != seeded[1]
    issues = []
    grouping.draw_fold(train, 0, 12, 0, "", issues)
    assert not issues, "as many folds as groups"
    grouping.draw_fold(train, 0, 20, 0, "train/", issues)
    assert [issue.path for issue in issues] == ["train/a", "train/b"]
    assert "12 groups (data.group), too few for data.folds=20" in issues[0].text


# --- the key data.group


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve patients of each of two classes, two images each, one folder per class."""
    return draw(tmp_path / "root", [image.path for image in patients(24, 2)])


def test_groups_are_found_in_the_paths_kept_together_and_recorded(root: Path) -> None:
    plain, found = read(root), read(root, group=PATIENT)
    assert any(len(splits) > 1 for splits in splits_of([
        ListedImage(record.path, record.class_name, record.split, record.path[3:5]) for record in plain.entries
    ]).values()), "without groups, patients are in several splits"  # fmt: skip
    assert {entry.group for entry in found.entries} == {f"{patient:02}" for patient in range(24)}
    assert all(len(splits) == 1 for splits in splits_of(found.entries).values())
    assert read(root, group=r"p(?P<group>\d+)_(\d)").entries == found.entries
    assert {entry.group for entry in read(root, group=r"p\d+").entries} == {f"p{patient:02}" for patient in range(24)}
    assert {row["group"] for row in manifest.to_rows(found)} == {entry.group for entry in found.entries}
    assert "group" not in manifest.to_rows(plain)[0]
    for fold in range(3):
        of_fold = read(root, group=PATIENT, fold=fold, folds=3)
        assert all(len(splits) == 1 for splits in splits_of(of_fold.entries).values())
        assert {entry.class_name for entry in of_fold.of("validation")} == {"a", "b"}


@pytest.mark.parametrize("group", [None, PATIENT])
def test_test_images_drawn_beside_folds_are_those_drawn_without(group: str | None, tmp_path: Path) -> None:
    root = draw(tmp_path / "root", [f"train/{image.path}" for image in patients(34, 1)])
    options: dict[str, Any] = {"fractions": {"train": 0.55, "validation": 0.25, "test": 0.2}, "group": group}
    plain = read(root, **options)
    rest = [entry.path for entry in (*plain.of("train"), *plain.of("validation"))]
    folds = [read(root, fold=fold, folds=3, **options) for fold in range(3)]
    assert all(found.of("test") == plain.of("test") for found in folds), "a sweep's winner is evaluated on these"
    assert sorted(entry.path for found in folds for entry in found.of("validation")) == sorted(rest)
    assert folds[0].notes == ("no validation images are given: of each class in train, 20% test images are drawn",)


def test_groups_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    paths = [f"{split}/{name}/{number}_{split[0]}.png" for split in ("train", "validation") for name in "ab"
             for number in range(2)]  # fmt: skip
    root = draw(tmp_path / "root", paths)
    plain, grouped = read(root), read(root, group=r"\d_(.)")
    assert [(record.path, record.split) for record in plain.entries] == [
        (record.path, record.split) for record in grouped.entries
    ]
    assert manifest.fingerprint(plain) != manifest.fingerprint(grouped)


def test_a_group_in_two_given_splits_is_an_issue(tmp_path: Path) -> None:
    paths = [f"{split}/{name}/p{patient}_{split}.png" for split, known in (("train", (0, 1, 2)), ("validation", (2, 3)))
             for name in "ab" for patient in known]  # fmt: skip
    root = draw(tmp_path / "root", paths)
    with pytest.raises(DataError, match="1 issue") as raised:
        read(root, group=PATIENT, on_bad="skip")
    assert re.search(
        r"2: this group \(data.group\) has images in train \(2, such as train/a/p2_train.png\) "
        r"and validation \(2, such as validation/a/p2_validation.png\)",
        str(raised.value),
    )


def test_test_images_alone_are_an_issue_with_groups_too(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", [f"test/{name}/p{number}_0.png" for name in "ab" for number in range(2)])
    with pytest.raises(DataError, match="train"):
        read(root, group=PATIENT)


def test_a_column_gives_the_groups(root: Path) -> None:
    images = [image._replace(group="") for image in patients(24, 2)]
    columns = {"patient": {image.path: image.path[2:5] for image in images}}
    spaced = Listing(root, images, ["a", "b"], columns={"patient id": columns["patient"]})
    assert any("'data.group=patient id' would keep" in note for note in read(spaced).notes), "as the shell needs it"
    listing = Listing(root, images, ["a", "b"], columns=columns)
    found = read(listing, group="patient")
    assert any("data.group=patient would keep" in note for note in read(listing).notes)
    assert not any("data.group" in note for note in found.notes)
    assert {entry.group for entry in found.entries} == {f"p{patient:02}" for patient in range(24)}
    columns["patient"]["a/p00_0.png"] = ""
    with pytest.raises(DataError, match="a/p00_0.png: column 'patient' .* is empty"):
        read(listing, group="patient")
    with pytest.raises(ConfigError, match="no such column. Columns: 'patient'. Nearest: patient"):
        read(listing, group="patinet")
    assert {entry.group for entry in read(listing, group=PATIENT).entries} == {f"{n:02}" for n in range(24)}


@pytest.mark.parametrize(
    ("group", "text"),
    [
        (r"p(\d+", "must be a regular expression: missing )"),
        (r"q\d", "finds no group in any path"),
        ("_", "finds one group for all images: '_'"),
    ],
)
def test_an_expression_that_cannot_be_used(root: Path, group: str, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(root, group=group)
    assert text in str(raised.value) and str(raised.value).startswith("data.group: ")


def test_images_without_a_group_are_listed(root: Path) -> None:
    draw(root, ["a/unknown.png"])
    with pytest.raises(DataError, match="a/unknown.png: data.group=.* finds no group in this path"):
        read(root, group=PATIENT)
    assert [image.path for image in read(root, group=PATIENT, on_bad="skip").skipped] == ["a/unknown.png"]


# --- classes


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    counts = {"cat": 10, "dog": 10, "fox": 6, "owl": 2, "yak": 1}
    return draw(tmp_path / "animals", [f"{name}/{n}.png" for name, count in counts.items() for n in range(count)])


def test_classes_are_selected_and_ordered(animals: Path) -> None:
    (animals / "owl" / "notes.txt").touch()  # no issue of the classes that are used
    found = read(animals, classes={name: [name] for name in ("fox", "cat")})
    assert found.classes == ("fox", "cat")
    assert Counter(entry.class_name for entry in found.entries) == {"fox": 6, "cat": 10}
    labels = {row["class_name"]: row["label"] for row in manifest.to_rows(found)}
    assert labels == {"fox": 0, "cat": 1}
    other = read(animals, classes={name: [name] for name in ("cat", "fox")})
    assert found.entries == other.entries and manifest.fingerprint(found) != manifest.fingerprint(other)


def test_classes_are_merged(animals: Path) -> None:
    found = read(animals, classes={"pet": ["cat", "dog"], "wild": ["fox", "owl", "yak"]})
    assert found.classes == ("pet", "wild")
    assert Counter(entry.class_name for entry in found.entries) == {"pet": 20, "wild": 9}
    other = read(animals, classes={"pet": ["cat", "fox"], "wild": ["dog", "owl", "yak"]})
    assert manifest.fingerprint(found) != manifest.fingerprint(other)
    assert read(animals, classes={"pet": ["cat"], "wild": ["fox", "yak"]}, min_per_class=2).classes == ("pet", "wild")


def test_merged_classes_may_lack_a_folder_in_a_split(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", ["train/cat/0.png", "train/dog/1.png", "train/fox/2.png", "validation/cat/3.png",
                                    "validation/fox/4.png"])  # fmt: skip
    with pytest.raises(DataError, match="validation/dog: this class is missing"):
        read(root)
    assert len(read(root, classes={"pet": ["cat", "dog"], "wild": ["fox"]}).entries) == 5


def test_a_merged_class_may_be_empty_but_not_unreadable(animals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (animals / "gnu").mkdir()
    classes = {"pet": ["cat", "dog"], "wild": ["fox", "gnu"]}
    assert read(animals, classes=classes).classes == ("pet", "wild")
    scan = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("gnu"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="1 issue.*\n  gnu: cannot be listed"):
        read(animals, classes=classes)


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        ({"cat": ["cat"], "dgo": ["dgo"]}, "no such class: 'dgo' (nearest: 'dog')"),
        ({"cat": ["cat"]}, "two or more classes are needed"),
        ({"pet": ["cat"], "wild": ["fox", "cat"]}, "only once"),
    ],
)
def test_a_selection_that_cannot_be_used(animals: Path, classes: dict[str, list[str]], text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(animals, classes=classes)
    assert text in str(raised.value) and str(raised.value).startswith("data.classes: ")


def test_a_class_that_hydra_reads_as_something_else_is_shown_in_quotes(tmp_path: Path) -> None:
    """The nearest class of data.classes=[true,2023_01] was what had been typed."""
    root = draw(tmp_path / "data", [f"{name}/{at}.png" for name in ("true", "2023_01", "cat") for at in range(3)])
    for typed in ("True", "202301"):
        with pytest.raises(ConfigError) as raised:
            read(root, classes={"cat": ["cat"], typed: [typed]})
        (shown,) = re.findall(r"As text Hydra reads it in quotes: 'data.classes=\[(.*),\.\.\.\]'", str(raised.value))
        assert shown == {"True": '"true"', "202301": '"2023_01"'}[typed]
    with pytest.raises(ConfigError) as raised:
        read(root, classes={"cats": ["cats"], "true": ["true"]})
    assert "in quotes" not in str(raised.value)


def test_small_classes_are_dropped_and_listed(animals: Path) -> None:
    with pytest.raises(DataError) as raised:
        read(animals)
    assert "yak" in str(raised.value) and "data.min_per_class=2" in str(raised.value), "advice that works"
    (animals / "yak" / "notes.txt").touch()  # no issue of the classes that are used
    found = read(animals, min_per_class=2)
    assert found.classes == ("cat", "dog", "fox", "owl")
    assert [(image.path, image.reason) for image in found.skipped] == [
        ("yak", "this class has 1 image, fewer than data.min_per_class=2")
    ]
    assert any("owl (2), yak (1)" in note for note in read(animals, min_per_class=3).notes)
    with pytest.raises(ConfigError, match="data.min_per_class: must be at most 10 for two classes to remain"):
        read(animals, min_per_class=11)
