"""Manifests of image folders: valid images are listed and split; every data issue has its path and a remedy."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import manifests
import numpy as np
import pytest
from noise import draw, draw_classes
from PIL import Image

from experiments.data import manifest, validation
from experiments.data.pixel_cache import images_of, open_image, splits_of
from experiments.data.sources.folder import folder
from experiments.data.splitting import split_counts
from experiments.data.types import ImageWarning, Manifest
from experiments.errors import ConfigError, DataError
from experiments.images import decoder
from experiments.images.decoder_settings import DecoderSettings
from experiments.storage.csv_files import read_rows, recorded_path, write_rows

REPOSITORY = Path(__file__).parents[2]
PHOTOS = Path(os.environ.get("EXPERIMENTS_PHOTOS", REPOSITORY.parent / "shared" / "cats_dogs"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three training and two validation images of each of two classes."""
    return draw_classes(tmp_path / "data", {"train": 3, "validation": 2})


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Twenty images of each of two classes, not split."""
    return draw_classes(tmp_path / "flat", {"": 20})


read = partial(manifests.read, fractions={"train": 0.7, "validation": 0.2, "test": 0.1})


def message(root: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(root, **options)
    return str(caught.value)


def sizes(found: Manifest) -> Mapping[tuple[str, str], int]:
    return Counter((entry.split, entry.class_name) for entry in found.entries)


def never(*_: object) -> NoReturn:
    raise AssertionError("decoded again")


# --- layouts and splits


def test_presplit_folders(root: Path) -> None:
    draw(root / "test" / "cats" / "t.png")
    draw(root / "test" / "dogs" / "t.png")
    found = read(root, fractions={})
    assert found.classes == ("cats", "dogs")
    assert [entry.path for entry in found.entries] == [
        *(f"train/{name}/{number}.png" for name in ("cats", "dogs") for number in range(3)),
        *(f"validation/{name}/{number}.png" for name in ("cats", "dogs") for number in range(2)),
        "test/cats/t.png",
        "test/dogs/t.png",
    ]
    entry = found.entries[0]
    assert (entry.width, entry.height, entry.mode, entry.class_name, entry.split) == (8, 6, "RGB", "cats", "train")
    assert entry.bytes == (root / entry.path).stat().st_size
    assert found.root == root and found.skipped == ()


def test_one_folder_per_class_is_split_stratified(flat: Path) -> None:
    found = read(flat)
    assert sizes(found) == {
        (split, name): count
        for name in ("cats", "dogs")
        for split, count in (("train", 14), ("validation", 4), ("test", 2))
    }
    assert len({entry.path for entry in found.entries}) == 40
    assert read(flat) == found
    other = read(flat, split_seed=1)
    assert sizes(other) == sizes(found) and other != found


def test_split_does_not_depend_on_where_the_folder_is(flat: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "flat"
    shutil.copytree(flat, moved)
    assert manifest.fingerprint(read(moved)) == manifest.fingerprint(read(flat))


def test_an_added_image_moves_few_others(flat: Path) -> None:
    before = {entry.path: entry.split for entry in read(flat).entries}
    draw(flat / "cats" / "new.png")
    after = {entry.path: entry.split for entry in read(flat).entries}
    assert sum(after[path] != split for path, split in before.items()) <= 2


@pytest.mark.parametrize(
    ("total", "fractions", "counts"),
    [
        (10, (0.7, 0.2, 0.1), (7, 2, 1)),
        (3, (0.98, 0.01, 0.01), (1, 1, 1)),
        (2, (0.7, 0.2, 0.1), (1, 1, 0)),
        (1, (0.7, 0.2, 0.1), (1, 0, 0)),
        (5, (0.98, 0.01, 0.01), (3, 1, 1)),
        (10, (0.5, 0.5, 0.0), (5, 5)),
        (7, (0.8, 0.2, 0), (6, 1)),
        (2_000_003, (1 / 3, 1 / 3, 1 / 3 + 9e-7), (666_667, 666_667, 666_669)),
    ],
)
def test_counts(total: int, fractions: tuple[float, ...], counts: tuple[int, ...]) -> None:
    found = split_counts(total, dict(zip(("train", "validation", "test"), fractions, strict=True)))
    assert sum(found.values()) == total
    assert tuple(found.values()) == pytest.approx(counts, abs=2 if total > 1000 else 0)


def test_limits_are_nested_and_seeded(flat: Path) -> None:
    def of(limit: int | None, seed: int = 0) -> set[str]:
        found = read(flat, limit={"train": limit}, split_seed=seed)
        assert len(found.of("validation")) == 8
        return {entry.path for entry in found.of("train")}

    assert [len(of(limit)) for limit in (3, 6, 50, None)] == [6, 12, 28, 28]
    assert of(3) < of(6) < of(None)
    assert of(3) != of(3, seed=1)


def test_limit_is_filled_up_when_files_are_left_out(root: Path) -> None:
    first = next(entry.path for entry in read(root, limit={"train": 1}).of("train") if entry.class_name == "cats")
    (root / first).write_bytes(b"damaged")
    found = read(root, limit={"train": 1}, on_bad="skip")
    assert sizes(found)["train", "cats"] == 1
    assert [left.path for left in found.skipped] == [first]


def test_images_beyond_the_limit_are_not_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decoding = decoder.decoding

    def counted(content: bytes, *options: Any) -> Any:
        decoded.append(content)
        return decoding(content, *options)

    monkeypatch.setattr(decoder, "decoding", counted)
    read(root, limit={"train": 1, "validation": 1})
    assert len(decoded) == 4
    read(root)
    assert len(decoded) == 10


# --- folds


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Eleven training images of cats and seven of dogs, three of each in validation, two in test."""
    return draw_classes(tmp_path / "given", {"train": (11, 7), "validation": 3, "test": 2})


def paths(found: Manifest, split: str) -> set[str]:
    return {entry.path for entry in found.of(split)}


@pytest.mark.parametrize(("source", "folds"), [("given", 2), ("given", 3), ("given", 5), ("flat", 4)])
def test_folds_partition_the_training_images(source: str, folds: int, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(source)
    plain = read(root)
    every = [read(root, fold=fold, folds=folds) for fold in range(folds)]
    validated = [entry.path for found in every for entry in found.of("validation")]
    assert sorted(validated) == sorted(paths(plain, "train")), "every training image in exactly one fold"
    for found in every:
        assert paths(found, "train") == paths(plain, "train") - paths(found, "validation")
        assert found.of("test") == plain.of("test")
        assert not paths(plain, "validation") & {entry.path for entry in found.entries}, "given validation stays unread"
        assert found.classes == plain.classes and found.skipped == ()
        assert all(entry.path.split("/")[-2] == entry.class_name for entry in found.entries)
    for name in ("cats", "dogs"):
        counts = [sizes(found)["validation", name] for found in every]
        assert max(counts) - min(counts) <= 1, "stratified"
    assert len({manifest.fingerprint(found) for found in (*every, plain)}) == folds + 1


def test_folds_are_seeded(given: Path, tmp_path: Path) -> None:
    first = read(given, fold=1, folds=3)
    assert read(given, fold=1, folds=3, cache=tmp_path / "other") == first
    other = read(given, fold=1, folds=3, split_seed=1)
    assert sizes(other).keys() == sizes(first).keys() and paths(other, "validation") != paths(first, "validation")
    assert read(given, fold=None, folds=3) == read(given)


def test_limits_within_a_fold_are_nested(given: Path) -> None:
    def of(limit: int | None) -> Manifest:
        return read(given, fold=2, folds=3, limit={"train": limit, "validation": limit})

    for split in ("train", "validation"):
        assert paths(of(1), split) < paths(of(2), split) < paths(of(None), split)
        assert len(paths(of(1), split)) == 2
        assert paths(of(2), split) <= paths(of(3), split) <= paths(of(None), split)
    assert paths(of(1), "test") == paths(of(None), "test")


def test_more_folds_than_training_images_name_the_training_folder(given: Path) -> None:
    with pytest.raises(DataError) as raised:
        read(given, fold=0, folds=1000)
    assert "too few for data.folds=1000; add images or lower it" in line(str(raised.value), "train/cats")
    assert "validation/cats" not in str(raised.value)
    assert sizes(read(given, fold=0, folds=7))["validation", "dogs"] == 1, "as many folds as images"


@pytest.mark.parametrize("name", ["0", "4", "aaa", "zzz"])
@pytest.mark.parametrize("options", [{}, {"limit": {"train": 3, "validation": 2}}, {"fold": 1, "folds": 3}])
def test_with_skip_splits_and_folds_are_as_if_damaged_files_were_not_there(
    flat: Path, given: Path, name: str, options: dict[str, Any]
) -> None:
    for root, bad in ((flat, flat / f"cats/{name}.png"), (given, given / f"train/cats/{name}.png")):
        bad.unlink(missing_ok=True)
        without = read(root, **options).entries
        bad.write_bytes(b"damaged")
        found = read(root, on_bad="skip", **options)
        assert found.entries == without
        if root == flat or "limit" not in options:  # where splits are given, a limit reads no more than it takes
            assert [left.path for left in found.skipped] == [str(bad.relative_to(root))]


# --- data issues; tests/reliability/test_images.py has more kinds


def line(text: str, path: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith(f"  {path}: ")]
    assert len(lines) == 1, text
    return lines[0]


def test_unreadable_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, mode: str) -> io.BufferedReader:
        if path.endswith("train/cats/1.png"):
            raise PermissionError(13, "Permission denied")
        return open(path, "rb")

    monkeypatch.setattr(validation, "open", refuse, raising=False)
    text = line(message(root), "train/cats/1.png")
    assert "cannot be read (Permission denied); check its permissions and the disk, or remove it" in text
    assert [left.path for left in read(root, on_bad="skip").skipped] == ["train/cats/1.png"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_are_no_fault_of_a_image(root: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, mode: str) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(validation, "open", refuse, raising=False)
    with pytest.raises(OSError, match="Too many open files"):
        read(root, on_bad="skip")


def test_all_faults_come_in_one_error(root: Path) -> None:
    for number in range(25):
        (root / f"train/cats/bad{number:02}.jpg").write_bytes(b"damaged %d" % number)
    (root / "validation" / "dogs" / "nested").mkdir()
    text = message(root)
    lines = text.splitlines()
    assert lines[0].startswith("26 issues in ")
    assert lines[1].startswith("  validation/dogs: folders inside a class folder are not read, such as nested")
    assert lines[-2] == "  and 6 more"
    assert lines[-1] == "data.on_bad=skip leaves out 25 of these; the other 1 must be mended."
    assert len(lines) == 1 + 20 + 2


def test_alike_damaged_files_are_no_duplicates(root: Path) -> None:
    paths = ["train/cats/x.jpg", "train/dogs/x.jpg", "validation/cats/x.jpg"]
    for path in paths:
        (root / path).write_bytes(b"<html>not found</html>")
    assert "the same image" not in message(root)
    assert [left.path for left in read(root, on_bad="skip").skipped] == paths


def test_a_class_left_without_images_stops(root: Path) -> None:
    for number in range(2):
        (root / f"validation/dogs/{number}.png").write_bytes(b"damaged")
    assert "no image that can be used is left" in line(message(root, on_bad="skip"), "validation/dogs")


def test_fewer_than_two_classes(tmp_path: Path) -> None:
    draw(tmp_path / "data" / "cats" / "1.png")
    assert re.search(r"two or more classes are needed, found cats; set data\.root", message(tmp_path / "data"))
    (tmp_path / "empty").mkdir()
    draw(tmp_path / "names" / "cat.1.png")
    draw(tmp_path / "names" / "dog.1.png")
    text = message(tmp_path / "names")
    assert text.startswith("1 issue") and "Its 2 images are in no class folder:" in text and "data=filenames" in text
    assert "two or more classes are needed, found none; set data.root" in message(tmp_path / "empty")
    assert "cannot be listed (No such file or directory); check the path" in message(tmp_path / "missing")


def test_too_few_images_to_split(flat: Path) -> None:
    for number in range(18):
        (flat / f"cats/{number}.png").unlink()
    text = line(message(flat), "cats")
    assert "has 2 images" in text and "add images, or set a fraction of data.fractions to 0" in text
    assert text.endswith(": data.fractions.train=0.8 data.fractions.test=0")
    found = read(flat, fractions={"train": 0.8, "validation": 0.2, "test": 0.0})
    assert sizes(found)["train", "cats"] == sizes(found)["validation", "cats"] == 1, "the advice works"
    (flat / "cats/18.png").unlink()
    assert "has 1 images that can be used" not in message(flat)
    assert line(message(flat), "cats").endswith("; add images, or remove the class")


def test_duplicates_where_nothing_is_split_yet(flat: Path) -> None:
    shutil.copy(flat / "cats/1.png", flat / "cats/copy.png")
    assert [left.path for left in read(flat, on_bad="skip").skipped] == ["cats/copy.png"]
    shutil.copy(flat / "cats/1.png", flat / "dogs/copy.png")
    assert "in another class" in line(message(flat), "dogs/copy.png")
    left = {left.path: left.reason for left in read(flat, on_bad="skip").skipped}
    assert set(left) == {"cats/1.png", "cats/copy.png", "dogs/copy.png"}, "nobody knows which class is right"
    assert "dogs/copy.png, in another class" in left["cats/1.png"]


@pytest.mark.parametrize("name", ["with space .png", "two\nlines.png", "Kätzchen 猫.png", "\udcff\udcfe.png", "'.png"])
def test_odd_names(root: Path, name: str) -> None:
    try:
        (root / "train/cats/0.png").rename(root / "train" / "cats" / name)
    except OSError:
        pytest.skip("the file system refuses this name")
    found = read(root)
    assert f"train/cats/{name}" in [entry.path for entry in found.entries]
    assert read(root) == found
    assert len(manifest.fingerprint(found)) == 64
    assert splits_of(found, 4, root.parent / "cache", 1e9).train.pixels.shape == (6, 4, 4, 3)
    write_rows(root.parent / "manifest.csv", manifest.to_rows(found))
    assert any(
        recorded_path(root, row["path"]) == f"train/cats/{name}" for row in read_rows(root.parent / "manifest.csv")
    )

    (root / "train" / "cats" / name).write_bytes(b"damaged")
    text = message(root)
    text.encode()
    assert len(text.splitlines()) == 3


# --- warnings, and the range of grays


def test_images_that_are_used_with_a_warning_are_named_every_time(root: Path) -> None:
    Image.new("L", (9, 9)).save(root / "train/cats/black.png")
    for _ in range(2):
        found = read(root)
        assert found.warnings == (
            ImageWarning("train/cats/black.png", "is blank: all its pixels are of the color (0, 0, 0)"),
        )
        (sentence,) = manifest.warning_sentences([found])
        assert sentence.startswith("Images used, with a warning: 1, the first: train/cats/black.png: is blank")


def test_grays_are_read_with_the_range_of_the_data_set(root: Path) -> None:
    levels = np.array([[0, 1365, 2730, 4095]], np.uint16)
    Image.fromarray(levels).save(root / "train/cats/xray.png")
    assert "train/cats/xray.png: holds 16-bit grays from 0 to 4095" in message(root)
    cache = root.parent / "cache"
    for gray_range, expected in (((0, 4095), [0, 85, 170, 255]), ((0, 65535), [0, 5, 11, 16])):
        found = read(root, decoder_settings=DecoderSettings(gray_range))
        pixels = images_of(found, "train", 4, cache, held=True)
        at = pixels.ids.index("train/cats/xray.png")
        assert pixels.pixels[at : at + 1][0, 0, :, 0].tolist() == expected
        opened = open_image(root, pixels.ids[at], pixels.entries[at].sha256, found.decoder_settings)
        assert np.asarray(opened)[0, :, 0].tolist() == expected
    assert "train/cats/xray.png" in message(root)


# --- what is kept


def test_second_read_decodes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(root)
    monkeypatch.setattr(decoder, "decoding", never)
    assert read(root) == first


def test_another_decoder_looks_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(root)
    monkeypatch.setattr(decoder, "VERSION", decoder.VERSION + 1)
    monkeypatch.setattr(decoder, "decoding", never)
    with pytest.raises(AssertionError, match="decoded again"):
        read(root)


@pytest.mark.parametrize(
    "harm", [lambda content: content[:-9], lambda content: content.replace(b"RGB", b"RGX"), lambda content: b"[]"]
)
def test_damaged_validation_results_are_not_used(
    root: Path, harm: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)  # notes on the data are no warnings
    first = read(root)
    (kept,) = (root.parent / "cache" / "manifests").iterdir()
    kept.write_bytes(harm(kept.read_bytes()))
    assert read(root) == first
    assert str(kept) in caplog.text
    caplog.clear()
    assert read(root) == first
    assert not caplog.text


def test_fingerprint_moves_with_content_name_and_split(root: Path) -> None:
    prints = [manifest.fingerprint(read(root))]
    draw(root / "train/cats/0.png", content="other")
    prints.append(manifest.fingerprint(read(root)))
    (root / "train/cats/0.png").rename(root / "train/cats/renamed.png")
    prints.append(manifest.fingerprint(read(root)))
    (root / "train/cats/renamed.png").rename(root / "validation/cats/renamed.png")
    found = read(root)
    prints.append(manifest.fingerprint(found))
    prints.append(manifest.fingerprint(replace(found, classes=("cats", "wolves"))))
    assert len(set(prints)) == len(prints)


def test_rows(root: Path) -> None:
    found = read(root)
    rows = manifest.to_rows(found)
    assert [row["path"] for row in rows] == [entry.path for entry in found.entries]
    assert {(row["class_name"], row["label"]) for row in rows} == {("cats", 0), ("dogs", 1)}


# --- the source


def test_folder_names_that_no_file_can_have_are_errors() -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        folder(root="/tmp/" + "long" * 100, cache=Path("cache"))


def test_folder_returns_an_absolute_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    assert folder(root="data", cache=root.parent) == root
    monkeypatch.setenv("HOME", str(root.parent))
    assert folder(root="~/data", cache=root.parent) == root


def test_folder_names_similar_ones(root: Path) -> None:
    for wrong, right in (
        (root.parent / "dta", root),
        (root.parent / "Data" / "train", root),
        (root / "trian", root / "train"),
    ):
        with pytest.raises(ConfigError, match=r"data\.root does not exist \(did you mean") as caught:
            folder(root=wrong, cache=root)
        assert repr(str(right)) in str(caught.value) and f"Received: {str(wrong)!r}" in str(caught.value)
        assert "root/train/<class>/" in str(caught.value) and "root/<class>/" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "problem"), [("file.zip", "is not a folder"), ("", "is empty"), ("qqq", "does not exist")]
)
def test_folder_refuses(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "file.zip").touch()
    with pytest.raises(ConfigError, match=rf"data\.root {problem}"):
        folder(root=str(tmp_path / name) if name else "", cache=tmp_path)


# --- photographs


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photographs at {PHOTOS}; set EXPERIMENTS_PHOTOS to their folder")
def test_photographs(tmp_path: Path) -> None:
    limit = {"train": 20, "validation": 20}
    first = read(PHOTOS, limit=limit, cache=tmp_path)
    assert first.classes == ("cats", "dogs")
    assert set(sizes(first).values()) == {20}
    start = time.perf_counter()
    assert read(PHOTOS, limit=limit, cache=tmp_path) == first
    assert time.perf_counter() - start < 5  # 0.2 s on an idle machine: nothing is decoded
    assert images_of(first, "validation", 32, tmp_path, held=True).pixels[:].std() > 30


def test_a_class_folder_that_is_no_text_must_be_renamed(tmp_path: Path) -> None:
    for name in (b"cats", b"d\xf6gs"):
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
    with pytest.raises(DataError, match="not UTF-8, and it would name a class; rename it"):
        read(tmp_path)
