"""The pixel cache: images are decoded once and kept in memory, or on disk where they exceed the memory limit."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import manifests
import numpy as np
import pytest
from noise import draw, draw_classes
from PIL import Image

from experiments.data import manifest
from experiments.data.pixel_buffer import PixelBuffer
from experiments.data.pixel_cache import images_of, open_image, splits_of
from experiments.errors import DataError
from experiments.images import decoder
from experiments.images.decoder_settings import DEFAULTS, DecoderSettings
from experiments.images.resizing import resize
from experiments.storage import array_cache
from experiments.storage.csv_files import encodable


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six training and four validation images of two classes."""
    return draw_classes(tmp_path / "data", {"train": 3, "validation": 2})


read = partial(manifests.read, fractions={})


def test_pixels_are_the_decoders_and_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = root.parent / "cache"
    found = read(root)
    dataset = splits_of(found, 4, cache, 1e9)
    assert dataset.test is None and dataset.fingerprint == manifest.fingerprint(found)
    train = dataset.train
    assert train.labels.dtype == np.int32 and train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.ids == [entry.path for entry in found.of("train")] and len(train) == 6
    assert not (cache / "pixels").exists()

    pixels = train.pixels
    assert pixels.shape == (6, 4, 4, 3) and pixels.dtype == np.uint8
    for path, row in zip(train.ids, pixels[:], strict=True):
        np.testing.assert_array_equal(row, resize(decoder.decode((root / path).read_bytes()), 4))

    def never(*_: Any) -> NoReturn:
        raise AssertionError("decoded again")

    monkeypatch.setattr(decoder, "decoding", never)
    assert train.pixels is pixels
    np.testing.assert_array_equal(images_of(found, "train", 4, cache, held=True).pixels[:], pixels[:])
    with pytest.raises(AssertionError, match="decoded again"):
        _ = images_of(found, "train", 5, cache, held=True).pixels
    for name, version in (("PIL.__version__", "0"), ("experiments.images.decoder.VERSION", decoder.VERSION + 1)):
        with monkeypatch.context() as patch, pytest.raises(AssertionError, match="decoded again"):
            patch.setattr(name, version)
            _ = images_of(found, "train", 4, cache, held=True).pixels


def test_folds_read_the_pixels_of_the_images_without_folds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = root.parent / "cache"
    whole = splits_of(read(root), 4, cache, 1e9).train
    by_path = dict(zip(whole.ids, whole.pixels[:], strict=True))

    def never(*_: Any) -> NoReturn:
        raise AssertionError("decoded again")

    monkeypatch.setattr(decoder, "decoding", never)
    validated = []
    for fold in range(3):
        of_fold = read(root, fold=fold, folds=3)
        dataset = splits_of(of_fold, 4, cache, 0, in_folds=True)
        for images in (dataset.train, dataset.validation):
            assert images.ids == [entry.path for entry in of_fold.of(images.split)]
            assert images.labels.tolist() == [int("dogs" in path) for path in images.ids]
            for path, row in zip(images.ids, images.pixels[:], strict=True):
                np.testing.assert_array_equal(row, by_path[path])
        validated += dataset.validation.ids
    assert sorted(validated) == sorted(whole.ids)


def test_images_are_decoded_once_for_verdict_and_pixels(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    padding = DecoderSettings(resize="pad")
    twice = splits_of(read(root, decoder_settings=padding), 4, root.parent / "other", 1e9)
    expected = [part.pixels[:] for part in (twice.train, twice.validation)]
    decodings: list[int] = []
    right = decoder.decoding

    def counted(*given: Any) -> Any:
        decodings.append(1)
        return right(*given)

    monkeypatch.setattr(decoder, "decoding", counted)
    nothing = shutil.disk_usage(root.parent)._replace(free=0)
    asked: list[Path] = []
    # Ten images: room for all in memory; for three, and the rest on disk; and where the disk has no room.
    for memory, full, times in ((1e9, True, 10), (3 * 4 * 4 * 3, False, 10), (3 * 4 * 4 * 3, True, 10 + 7)):
        decodings.clear()
        asked.clear()
        cache = root.parent / f"cache{memory}{full}"
        with monkeypatch.context() as patched:
            if full:
                patched.setattr(shutil, "disk_usage", lambda path: asked.append(path) or nothing)
            decoded = PixelBuffer(4, memory, cache, padding.resize)
            found = read(root, cache=cache, buffer=decoded, decoder_settings=padding)
        dataset = splits_of(found, 4, cache, 1e9, decoded)
        for mine, theirs in zip((dataset.train, dataset.validation), expected, strict=True):
            np.testing.assert_array_equal(mine.pixels[:], theirs)
        assert len(decodings) == times
        assert len(asked) == (times > 10), "not for every image"
        assert not decoded.pixels, "given up"
        assert {path.name for path in cache.iterdir()} == {
                "locks", "manifests", "near_duplicates", "pixels", "thumbnails"
            }  # fmt: skip


@pytest.mark.parametrize("memory", [1e9, 0], ids=["in memory", "on disk"])
def test_blocks_of_decoded_images_go_with_their_last_image(
    tmp_path: Path, memory: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_cache, "RESIDENT", 2 * 4 * 4 * 3)  # two images a block
    decoded = PixelBuffer(4, memory, tmp_path)
    for n in range(5):
        decoded.add(str(n), Image.new("RGB", (4, 4), (n, n, n)))
    assert [int(decoded.pixels[str(n)].max()) for n in range(5)] == [0, 1, 2, 3, 4]
    bases = [decoded.pixels[str(n)].base for n in range(5)]
    assert bases[0] is bases[1] is not bases[2] is bases[3] is not bases[4]
    assert [isinstance(block, np.memmap) for block in bases] == [memory == 0] * 5
    blocks = [weakref.ref(bases[n]) for n in (0, 2, 4)]
    del bases
    for n, left in ((0, 3), (1, 2), (2, 2), (3, 1)):
        del decoded.pixels[str(n)]
        assert sum(block() is not None for block in blocks) == left
    decoded.clear()  # the last block has room for one more
    assert not any(block() is not None for block in blocks)


def test_a_buffer_on_disk_leaves_room_for_the_array_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_cache, "RESIDENT", 4 * 4 * 3)  # one image a block
    usage = shutil.disk_usage(tmp_path)
    for images, kept in ((3, True), (2, False)):
        free = usage._replace(free=images * 4 * 4 * 3)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: free)
        decoded = PixelBuffer(4, 0, tmp_path)
        decoded.expect(2)
        decoded.add("0", Image.new("RGB", (4, 4)))
        assert ("0" in decoded.pixels) == kept


def test_blocks_of_decoded_images_are_used_up_split_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_cache, "RESIDENT", 10 * 4 * 4 * 3)  # ten images a block
    for seed in range(200):
        draw(tmp_path / "flat" / f"class{seed % 10}" / f"{seed}.png")
    decoded = PixelBuffer(4, 1e9, tmp_path)
    fractions = {"train": 0.7, "validation": 0.2, "test": 0.1}
    found = manifests.read(tmp_path / "flat", fractions=fractions, cache=tmp_path, buffer=decoded)
    dataset = splits_of(found, 4, tmp_path, 1e9, decoded)
    left = []
    for images in (dataset.train, dataset.validation):
        assert decoded.holds_any(images.entries)
        _ = images.pixels
        assert not decoded.holds_any(images.entries)
        left.append(len({id(image.base) for image in decoded.pixels.values()}))
    # Blocks of 60 and of 20 images, a few of which overtook others while they were decoded.
    assert 6 <= left[0] <= 8 and 2 <= left[1] <= 4


def test_memory_decides_where_pixels_are(root: Path) -> None:
    found, cache = read(root), root.parent / "cache"
    needed = len(found.entries) * 4 * 4 * 3
    held, mapped = (splits_of(found, 4, cache, memory).train.pixels for memory in (needed, needed - 1))
    assert [isinstance(pixels.parts[0], np.ndarray) for pixels in (held, mapped)] == [True, False]
    np.testing.assert_array_equal(held[:], mapped[:])
    (kept,) = (cache / "pixels").iterdir()
    assert not array_cache.remove(cache, kept), "read as long as `mapped` is"
    del mapped
    assert array_cache.remove(cache, kept)


@pytest.mark.parametrize("kept", [
    pytest.param(True, id="decoded once"), pytest.param(False, id="decoded again", marks=pytest.mark.slow)
])  # fmt: skip
def test_images_beyond_the_memory_they_may_take_are_decoded_and_read_in_little(tmp_path: Path, kept: bool) -> None:
    """In a process of its own: 288 MB of pixels, of which 1 MB may be in memory."""
    for n in range(96):
        draw(tmp_path / "data" / "train" / "ab"[n % 2] / f"{n}.png")
    draw(tmp_path / "data" / "validation" / "a" / "x.png")
    draw(tmp_path / "data" / "validation" / "b" / "y.png")
    program = f"""
import resource
from functools import partial
from pathlib import Path
from experiments.data import manifest
from experiments.data.pixel_buffer import PixelBuffer
from experiments.data.pixel_cache import splits_of
from experiments.data.types import SplitSettings
root = Path({str(tmp_path)!r})
cache = root / "cache"
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decoded = PixelBuffer(1000, 1e6, cache) if {kept} else None
found = manifest.read(root / "data", SplitSettings({{}}), cache=cache, buffer=decoded)
assert not decoded or len(decoded.pixels) == 98
pixels = splits_of(found, 1000, cache, 1e6, decoded).train.pixels
total = sum(int(pixels[at : at + 4].sum()) for at in range(0, len(pixels), 4))
print(len(pixels) * 3_000_000, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, total)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    size, grown, total = map(int, done.stdout.split())
    assert size == 288_000_000 and total > 0
    assert grown < size / 2


def test_files_changed_since_are_named(root: Path) -> None:
    cache = root.parent / "cache"
    found = read(root)
    draw(root / "train/cats/0.png", content="other")
    (root / "train/dogs/2.png").unlink()
    with pytest.raises(DataError) as caught:
        _ = images_of(found, "train", 4, cache, held=True).pixels
    text = str(caught.value)
    assert re.search(r"^  train/cats/0\.png: has changed since it was checked", text, re.MULTILINE)
    assert re.search(r"^  train/dogs/2\.png: cannot be read \(No such file or directory\)", text, re.MULTILINE)
    assert list((cache / "pixels").iterdir()) == []


def test_an_image_is_opened_by_its_path_in_a_table_whatever_its_name(tmp_path: Path) -> None:
    for name in (b"caf\xe9.png", b"plain\\udce9.png"):  # Latin-1; and a name that looks like an escape
        path = tmp_path / os.fsdecode(name)
        draw(path, len(name))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        opened = open_image(tmp_path, encodable(path.name), sha256, DEFAULTS)
        assert opened.tobytes() == Image.open(path).tobytes()
