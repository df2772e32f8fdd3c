"""Pixels of a validated data set: decoded once, kept in the array cache, and held in memory where they fit."""

from __future__ import annotations

import functools
import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from experiments.data import decoder
from experiments.data.listing import DataIssue, printable
from experiments.data.manifest import fingerprint, message, unchanged, unreadable
from experiments.data.types import SPLITS, Dataset, GrayRange, ImageRecord, ImageSet, Manifest
from experiments.errors import DataError
from experiments.storage import array_cache, atomic_files
from experiments.storage.array_cache import Rows

_log = logging.getLogger(__name__)


class Decoded:
    """Images that were decoded for validation, buffered until they are written to the array cache.

    They are decoded with the same settings as the cached pixels. They lie in blocks, which are returned to the
    operating system whole: the memory of many small arrays mostly stays with the process.

    Args:
        image_size: width and height.
        memory: bytes of memory that they may take; further blocks are unnamed temporary files.
        cache: the directory of those files. Where its disk has no room for them beside the array cache, the remaining
            images are not kept.
    """

    def __init__(self, image_size: int, memory: float, cache: Path) -> None:
        self.pixels: dict[str, np.ndarray] = {}  # [H, W, 3] uint8, by sha256 of the file
        self._image_size = image_size
        self._room = int(memory // _bytes(image_size))  # images
        self._cache = cache
        self._reserve = 0  # bytes of the disk that are reserved for the array cache
        self._block: Callable[[], np.ndarray | None] = lambda: None  # weak: freed with its last image
        self._taken = 0
        self._lock = Lock()
        self._full = False

    def expect(self, images: int) -> None:
        """Reserve disk space in the array cache for a number of images."""
        self._reserve = images * _bytes(self._image_size)

    def holds(self, entries: Sequence[ImageRecord]) -> bool:
        """Return whether any of these images is buffered."""
        return any(entry.sha256 in self.pixels for entry in entries)

    def keep(self, sha256: str, image: Image.Image) -> None:
        """Resize and buffer an image if there is room; safe to call from any thread."""
        with self._lock:
            place = self._place()
        if place is not None:
            place[:] = decoder.resize(image, self._image_size)
            self.pixels[sha256] = place

    def _place(self) -> np.ndarray | None:
        block = self._block()
        if block is None or self._taken == len(block):
            if block is not None:
                array_cache.release([block])
            block = None if self._full else self._new_block()
            if block is None:
                self._full = True
                return None
            self._block, self._taken = weakref.ref(block), 0
        place: np.ndarray = block[self._taken]
        self._taken += 1
        return place

    def _new_block(self) -> np.ndarray | None:
        count = _at_once(self._image_size)
        if self._room:
            count = min(count, self._room)
            self._room -= count
            return np.empty((count, self._image_size, self._image_size, 3), "uint8")
        size = count * _bytes(self._image_size)
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self._cache).free < self._reserve + size:
                _log.info("No room in %s for decoded images that wait: the rest is decoded again", self._cache)
                return None
            with tempfile.TemporaryFile(dir=self._cache) as file:
                atomic_files.allocate(file, size)
                return np.memmap(file, "uint8", "r+", shape=(count, self._image_size, self._image_size, 3))
        except OSError as error:
            _log.info("Decoded images cannot wait in %s (%s): the rest is decoded again", self._cache, error)
            return None


def _bytes(image_size: int) -> int:
    """Return the size of an image's pixels in bytes."""
    return image_size**2 * 3


def _at_once(image_size: int) -> int:
    """Return the number of images whose pixels are in memory at a time, on their way to the disk."""
    return max(1, array_cache.RESIDENT // _bytes(image_size))


def open_image(root: Path, path: str, sha256: str, gray_range: GrayRange | None) -> Image.Image:
    """Return an image of a manifest in its own size, RGB, decoded from its file again; see `decoder.decode`.

    Raises:
        DataError: If the file no longer exists or has changed; the message has its path.
    """
    try:
        return decoder.decode(unchanged(root, path, sha256), gray_range)
    except OSError as error:
        raise DataError(f"{printable(path)}: {unreadable(error)}") from None
    except DataError as error:
        raise DataError(f"{printable(path)}: {error}") from None


def images_of(
    manifest: Manifest, split: str, image_size: int, cache: Path, *, held: bool, decoded: Decoded | None = None
) -> ImageSet:
    """Return the images of one split in the manifest's order; nothing is read before `pixels` is used.

    Args:
        manifest: A manifest from `manifest.read`.
        split: One of SPLITS.
        image_size: Width and height of the pixels; see `decoder.resize`.
        cache: The cache directory; the decoded pixels are kept in its array cache.
        held: Hold them in memory; else they are read from the array cache as they are used.
        decoded: The images that `manifest.read` has decoded already, of this image size; each is released when it is
            written to the array cache.

    Returns:
        The images. `pixels` raises DataError if files have changed since the manifest was made, with their paths, and
        OSError if the cache cannot be written.
    """
    entries = manifest.of(split)
    labels = {name: label for label, name in enumerate(manifest.classes)}

    @functools.cache
    def pixels() -> Rows:
        spec = {
            "files": [entry.sha256 for entry in entries],
            "image_size": image_size,
            "decoder": decoder.VERSION,
            "gray_range": manifest.gray_range,
        }
        stored = array_cache.load_or_create(
            cache,
            "pixels",
            spec,
            (len(entries), image_size, image_size, 3),
            "uint8",
            functools.partial(_decode_into, manifest, entries, image_size, decoded.pixels if decoded else {}),
            about={"split": split},
        )
        rows = Rows([stored])
        if held:
            return Rows([rows[:]])
        array_cache.mark_used(cache / "pixels" / array_cache.key(spec), rows)
        return rows

    return ImageSet(
        split=split,
        entries=entries,
        labels=np.array([labels[entry.class_name] for entry in entries], dtype=np.int32),
        image_size=image_size,
        _pixels=pixels,
        gray_range=manifest.gray_range,
    )


def splits_of(
    manifest: Manifest, image_size: int, cache: Path, memory: float, decoded: Decoded | None = None
) -> Dataset:
    """Return the whole data set for the regimes; `test` is None where the manifest has no test images.

    Args:
        manifest, image_size, cache, decoded: See `images_of`, also for the errors raised.
        memory: Bytes that the pixels of all splits together may take in memory; if they need more, all stay on disk.
    """
    held = len(manifest.entries) * _bytes(image_size) <= memory
    images = functools.partial(images_of, manifest, image_size=image_size, cache=cache, held=held, decoded=decoded)
    given = {split: images(split=split) if manifest.of(split) else None for split in SPLITS}
    train, validation = given["train"], given["validation"]
    assert train and validation, "`manifest.read` gives both"
    return Dataset(
        classes=manifest.classes,
        train=train,
        validation=validation,
        test=given["test"],
        manifest=manifest,
        fingerprint=fingerprint(manifest),
    )


def _decode_into(
    manifest: Manifest,
    entries: Sequence[ImageRecord],
    image_size: int,
    decoded: dict[str, np.ndarray],
    pixels: np.ndarray,
) -> None:
    """Fill pixels [N, H, W, 3] uint8; raise one DataError for all files that do not match the manifest."""

    def decode(index: int) -> DataIssue | None:
        entry = entries[index]
        try:
            known = decoded.pop(entry.sha256, None)
            if known is None:
                content = unchanged(manifest.root, entry.path, entry.sha256)
                known = decoder.decode_resized(content, image_size, manifest.gray_range)
            pixels[index] = known
        except OSError as error:
            return DataIssue(entry.path, unreadable(error), skippable=False)
        except DataError as error:
            return DataIssue(entry.path, str(error), skippable=False)
        return None

    faults: list[DataIssue] = []
    with ThreadPoolExecutor() as pool:
        step = _at_once(image_size)
        for start in range(0, len(entries), step):
            rows = range(start, min(start + step, len(entries)))
            faults += [fault for fault in pool.map(decode, rows) if fault]
            array_cache.release([pixels])
    if faults:
        raise DataError(message(manifest.root, faults, "error"))
