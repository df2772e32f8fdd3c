"""Labels in a CSV file: images stay where they are, columns are found or named, every unusable row is an issue."""

from __future__ import annotations

import csv
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import manifests
import pytest
from noise import draw

from experiments.data import manifest
from experiments.data.listing import Listing
from experiments.data.sources.csv_labels import csv_labels
from experiments.data.types import Manifest
from experiments.errors import ConfigError, DataError

HALVES = {"train": 0.5, "validation": 0.5, "test": 0.0}


def write(path: Path, rows: Iterable[Sequence[str]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Four images of each of two classes, in folders a and b with the same names: a/0.png to a/3.png and so on."""
    for folder in ("a", "b"):
        for number in range(4):
            draw(tmp_path / folder / f"{number}.png")
    return tmp_path


def rows_of(place: Path) -> list[list[str]]:
    return [[f"{folder}/{n}.png", "cat" if n % 2 else "dog"] for folder in ("a", "b") for n in range(4)]


def listing(labels: Path | str, **options: Any) -> Listing:
    defaults: dict[str, Any] = dict.fromkeys(("images", "path_column", "label_column", "split_column"))
    return csv_labels(labels=str(labels), cache=Path("unused"), **defaults | options)


def read(found: Listing, tmp_path: Path, **settings: Any) -> Manifest:
    return manifests.read(found, **{"fractions": HALVES, "cache": tmp_path / "cache"} | settings)


def test_images_with_equal_names_in_different_folders_keep_their_own_labels(place: Path) -> None:
    before = sorted(place.rglob("*"))
    file = write(place / "labels.csv", [["file", "class"], *rows_of(place)])
    found = read(listing(file), place)
    assert {entry.path: entry.class_name for entry in found.entries} == dict(rows_of(place))
    assert found.root == place and found.classes == ("cat", "dog")
    assert Counter((entry.split, entry.class_name) for entry in found.entries) == {
        (split, name): 2 for split in ("train", "validation") for name in ("cat", "dog")
    }
    assert set(place.rglob("*.png")) == {path for path in before if path.suffix == ".png"}, "nothing is copied"


@pytest.mark.parametrize(
    ("header", "options"),
    [
        (["filepath", "label"], {}),
        (["File Name", "Category"], {}),
        (["id", "breed"], {}),  # the other of two columns
        (["where", "what"], {"path_column": "where", "label_column": "what"}),
    ],
)
@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")])
def test_columns_are_found_by_name_or_named(
    place: Path, header: list[str], options: dict[str, str], delimiter: str, encoding: str
) -> None:
    file = write(place / "labels.csv", [header, *rows_of(place)], delimiter, encoding)
    found = listing(file, **options)
    assert [(image.path, image.class_name) for image in found.images] == sorted(map(tuple, rows_of(place)))
    assert not found.issues


def test_paths_may_be_relative_to_another_folder_absolute_without_suffix_or_with_backslashes(place: Path) -> None:
    lists = place / "lists"
    lists.mkdir()
    for rows in (
        [["a/0.png", "cat"], ["b/1.png", "dog"]],
        [["a/0", "cat"], ["b/1", "dog"]],
        [["a\\0.png", "cat"], ["b\\1.png", "dog"]],
        [[str(place / "a/0.png"), "cat"], [str(place / "b/1.png"), "dog"]],
    ):
        file = write(lists / "labels.csv", [["path", "label"], *rows])
        found = listing(file, images=str(place))
        assert found.root == place and [image.path for image in found.images] == ["a/0.png", "b/1.png"]
    assert listing(file).root == place, "absolute paths: the folder that all images are in"
    draw(place / "a" / "0.jpg")
    file = write(lists / "labels.csv", [["path", "label"], ["a/0", "cat"], ["a/1", "cat"], ["b/1", "dog"]])
    assert [issue.path for issue in listing(file, images=str(place)).issues] == ["a/0"], "it may be either of two files"
    file = write(lists / "labels.csv", [["path", "label"], ["../a/0.png", "cat"], ["../a/1.png", "dog"]])
    found = listing(file)
    assert found.root == place / "a" and [image.path for image in found.images] == ["0.png", "1.png"]


def test_given_splits_are_kept_and_an_unlabelled_test_split_is_left_aside(place: Path) -> None:
    splits = ["train", "Train", "val", "valid"] * 2
    rows = [[*row, split] for row, split in zip(rows_of(place), splits, strict=True)]
    draw(place / "new.png")
    file = write(place / "labels.csv", [["path", "label", "split"], *rows, ["new.png", "", "test"]])
    listed = listing(file)
    found = read(listed, place)
    assert {entry.path: entry.split for entry in found.entries} == {
        row[0]: "train" if row[2].lower() == "train" else "validation" for row in rows
    }
    assert [skipped.path for skipped in found.skipped] == ["new.png"]
    assert any("1 images of the test split have no labels" in note for note in listed.notes)
    drawn = read(listing(file, split_column=""), place, on_bad="skip", fractions={"train": 0.75, "validation": 0.25})
    assert Counter(entry.split for entry in drawn.entries) == {"train": 6, "validation": 2}, "the column is not used"


def test_a_labelled_test_split_is_kept(place: Path) -> None:
    splits = ["train", "train", "val", "val", "test", "Testing", "train", "train"]
    rows = [[*row, split] for row, split in zip(rows_of(place), splits, strict=True)]
    found = read(listing(write(place / "labels.csv", [["path", "label", "split"], *rows])), place)
    assert [entry.path for entry in found.of("test")] == ["b/0.png", "b/1.png"] and not found.skipped


def test_a_column_called_split_with_other_values_gives_no_splits(place: Path) -> None:
    rows = [[*row, str(number % 5)] for number, row in enumerate(rows_of(place))]
    file = write(place / "labels.csv", [["path", "label", "split"], *rows])
    assert listing(file).splits == []
    assert "column 'split' is not used for splits" in listing(file).notes
    issues = listing(write(file, [["path", "label", "split"], *[[*row, "train"] for row in rows_of(place)[1:]],
                                  ["a/0.png", "dog", "3"]]), split_column="split").issues  # fmt: skip
    assert [issue.path for issue in issues] == ["a/0.png"] and "Received: '3'" in issues[0].text


def test_an_image_in_two_splits_is_an_issue(place: Path) -> None:
    rows = [[*row, "train" if row[0].startswith("a") else "val"] for row in rows_of(place)]
    file = write(place / "labels.csv", [["path", "label", "split"], *rows, ["a/0.png", "dog", "val"]])
    (issue,) = listing(file).issues
    assert issue.path == "a/0.png" and "two classes or splits, on lines 2 and 10" in issue.text and not issue.skippable


def test_a_misspelt_split_does_not_make_all_splits_random(place: Path) -> None:
    splits = ["train", "train", "val", "val", "train", "trian", "val", ""]
    rows = [[*row, split] for row, split in zip(rows_of(place), splits, strict=True)]
    listed = listing(write(place / "labels.csv", [["path", "label", "split"], *rows]))
    assert listed.splits == ["train", "validation"]
    assert [(issue.path, issue.text.partition("Received: ")[2][:7]) for issue in listed.issues] == [
        ("b/1.png", "'trian'"), ("b/3.png", "''. To "),
    ]  # fmt: skip


def test_a_class_of_which_all_images_are_missing_stops(place: Path) -> None:
    file = write(place / "labels.csv", [["path", "label"], *rows_of(place), ["c/0.png", "bird"]])
    with pytest.raises(DataError, match="bird: no image that can be used is left for train"):
        read(listing(file), place, on_bad="skip")
    assert read(listing(file), place, on_bad="skip", min_per_class=1).classes == ("cat", "dog")


def test_an_image_with_two_groups_is_in_none(place: Path) -> None:
    rows = [[*row, f"p{at // 2}"] for at, row in enumerate(rows_of(place))]
    file = write(place / "labels.csv", [["path", "label", "patient"], *rows, [*rows[0][:2], "p3"], rows[1]])
    with pytest.raises(DataError, match=r"1 issue(?s:.*)a/0\.png: column 'patient' \(data.group\) is empty or differs"):
        read(listing(file), place, group="patient", fractions={"train": 0.75, "validation": 0.25, "test": 0.0})


def test_classes_whose_names_look_the_same_are_one(place: Path) -> None:
    rows = [  # of two tables that were joined
        [path, unicodedata.normalize("NFC" if path.startswith("a/") else "NFD", f"{name}-é")]
        for path, name in rows_of(place)
    ]
    found = read(listing(write(place / "labels.csv", [["path", "label"], *rows])), place)
    assert found.classes == ("cat-é", "dog-é")
    assert sum("are one class: their names look the same" in note for note in found.notes) == 2


def test_every_unusable_row_is_listed_at_once(place: Path) -> None:
    (place / "a" / "notes.txt").touch()
    rows = [*rows_of(place), ["a/9.png", "cat"], ["b/8.png", "dog"], ["a/0.png", "cat"], ["a/notes.txt", "cat"],
            ["", "cat"], ["a/1.png", "cat"]]  # fmt: skip
    rows[3][1] = ""
    file = write(place / "labels.csv", [["path", "label"], *rows])
    with pytest.raises(DataError) as raised:
        read(listing(file), place)
    lines = dict(line.strip().split(": ", 1) for line in str(raised.value).splitlines()[1:-1])
    assert set(lines) == {"a/9.png", "b/8.png", "a/0.png", "a/3.png", "a/notes.txt", "line 14 of labels.csv"}
    assert "no such file" in lines["a/9.png"] and "line 10" in lines["a/9.png"]
    assert "lines 2 and 12" in lines["a/0.png"], "two classes; that a/1.png is listed twice alike does no harm"
    assert "column 'label' is empty on line 5" in lines["a/3.png"]
    with pytest.raises(DataError, match="1 issue") as raised:
        read(listing(file), place, on_bad="skip")
    assert "a/0.png" in str(raised.value), "which of the two classes is right is not guessed"


def test_spaces_before_quotes_are_no_part_of_a_label(place: Path) -> None:
    lines = ['"path" ; "label "; "note"', *(f'"{path}" ; "{label} " ; "a; b"' for path, label in rows_of(place))]
    (place / "labels.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    found = listing(place / "labels.csv")
    assert [(image.path, image.class_name) for image in found.images] == sorted(map(tuple, rows_of(place)))


def test_labels_that_differ_in_capitals_are_pointed_out(place: Path) -> None:
    rows = [[path, label.upper() if path.startswith("a") else label] for path, label in rows_of(place)]
    found = read(listing(write(place / "labels.csv", [["path", "label"], *rows])), place)
    assert found.classes == ("CAT", "DOG", "cat", "dog")
    assert any("differ in capitals only: 'CAT' and 'cat', 'DOG' and 'dog'" in note for note in found.notes)


def test_images_beside_those_of_the_file_are_reported(place: Path) -> None:
    file = write(place / "labels.csv", [["path", "label"], *rows_of(place)[:6]])
    (place / "a" / "._0.png").touch()
    assert any("2 images beside those of labels.csv are not in it" in note for note in listing(file).notes)


@pytest.mark.parametrize(
    ("rows", "options", "text"),
    [
        ([["path", "label"]], {}, "no rows"),
        ([["x", "y", "z"], ["a/0.png", "cat", ""]], {}, "data.path_column: no column has a usual name"),
        ([["x", "y", "z"], ["a/0.png", "cat", ""]], {}, "'x', 'y', 'z'"),
        ([["a/0.png", "cat"], ["a/1.png", "dog"]], {}, "a line such as path,label above it. Received: 'a/0.png'"),
        ([["path", "label", "class"], ["a/0.png", "cat", "0"]], {}, "'label' and 'class' may be meant"),
        ([["path", "label"], ["a/0.png", "cat"]], {"label_column": "lable"}, "Nearest: label"),
        ([["path", "label"], ["a/0.png", "cat", "3"]], {}, "line 2"),
        ([["path", "label", "label"], ["a/0.png", "cat", "3"]], {}, "two columns are called 'label'"),
        ([["path", "label"], ["c/0.png", "cat"]], {}, "data.images: none of the 1 images"),
        ([["path", "label", "split"], ["a/0.png", "cat", "val"]], {}, "no row of column 'split'"),
    ],
)
def test_a_file_that_cannot_be_used(place: Path, rows: list[list[str]], options: dict[str, str], text: str) -> None:
    file = write(place / "labels.csv", rows)
    with pytest.raises(ConfigError) as raised:
        listing(file, **options)
    assert text in str(raised.value) and "labels.csv" in str(raised.value)


def test_a_missing_file_folder_or_encoding(place: Path) -> None:
    file = write(place / "labels.csv", [["path", "label"], ["a/0.png", "käfer"]], encoding="latin-1")
    with pytest.raises(ConfigError, match="data.labels: .* not encoded in UTF-8"):
        listing(file)
    with pytest.raises(ConfigError, match=r"data.labels does not exist \(did you mean '.*labels.csv'"):
        listing(place / "lables.csv")
    (place / "lists").mkdir()
    with pytest.raises(ConfigError, match=r"data.labels does not exist \(did you mean '.*/lists'"):
        listing(place / "list" / "labels.csv")
    with pytest.raises(ConfigError, match="data.labels is not a file"):
        listing(place)
    with pytest.raises(ConfigError, match="data.images does not exist"):
        listing(file, images=str(place / "c"))


def test_the_labels_are_part_of_the_fingerprint(place: Path) -> None:
    rows = rows_of(place)
    first = read(listing(write(place / "1.csv", [["path", "label"], *rows])), place, split_seed=3)
    swapped = [[path, {"cat": "dog", "dog": "cat"}[label]] for path, label in rows]
    other = read(listing(write(place / "2.csv", [["path", "label"], *swapped])), place, split_seed=3)
    assert {(record.path, record.split) for record in first.entries} == {
        (record.path, record.split) for record in other.entries
    }
    assert manifest.fingerprint(first) != manifest.fingerprint(other)
