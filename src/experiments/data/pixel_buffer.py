"""Buffer of images that were decoded for validation, until their pixels are written to the array cache."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from experiments.data.types import ImageRecord
from experiments.images.decoder_settings import DEFAULTS, Resize
from experiments.images.resizing import resize
from experiments.storage import array_cache

_log = logging.getLogger(__name__)


class PixelBuffer:
    """Images that were decoded for validation, buffered until they are written to the array cache.

    They lie in blocks, which are returned to the operating system whole: the memory of many small arrays mostly stays
    with the process.

    Args:
        image_size, how: see `resizing.resize`.
        memory: bytes of memory that they may take; further blocks are unnamed temporary files.
        cache: the directory of those files. Where its disk has no room for them beside the array cache, the remaining
            images are not kept.
    """

    def __init__(self, image_size: int, memory: float, cache: Path, how: Resize = DEFAULTS.resize) -> None:
        self.pixels: dict[str, np.ndarray] = {}  # [H, W, 3] uint8, by sha256 of the file
        self._image_size, self._how = image_size, how
        self._room = int(memory // image_bytes(image_size))  # images
        self._cache = cache
        self._reserve = 0  # bytes of the disk that are reserved for the array cache
        self._places: Iterator[np.ndarray] = self._make_places()
        self._lock = Lock()

    def expect(self, images: int) -> None:
        """Reserve disk space in the array cache for a number of images."""
        self._reserve = images * image_bytes(self._image_size)

    def holds_any(self, records: Sequence[ImageRecord]) -> bool:
        """Return whether any of these images is buffered."""
        return any(record.sha256 in self.pixels for record in records)

    def clear(self) -> None:
        """Free the remaining images, and the block that is being filled."""
        self.pixels.clear()
        self._places = iter(())

    def add(self, sha256: str, image: Image.Image) -> None:
        """Resize and buffer an image if there is room; safe to call from any thread."""
        with self._lock:
            place = next(self._places, None)
        if place is not None:
            place[:] = resize(image, self._image_size, self._how)
            self.pixels[sha256] = place

    def _make_places(self) -> Iterator[np.ndarray]:
        """Yield places for images [H, W, 3] uint8 while there is room; a block is freed with its last image."""
        while (block := self._new_block()) is not None:
            yield from block
            array_cache.release([block])

    def _new_block(self) -> np.ndarray | None:
        count = images_at_once(self._image_size)
        image = (self._image_size, self._image_size, 3)
        if self._room:
            count = min(count, self._room)
            self._room -= count
            return np.empty((count, *image), "uint8")
        size = count * image_bytes(self._image_size)
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self._cache).free < self._reserve + size:
                _log.info("No room in %s to buffer decoded images: the rest is decoded again", self._cache)
                return None
            with tempfile.TemporaryFile(dir=self._cache) as file:
                os.posix_fallocate(file.fileno(), 0, size)  # on a full disk, writing to a map would kill the process
                return np.memmap(file, "uint8", "r+", shape=(count, *image))
        except OSError as error:
            _log.info("Decoded images cannot be buffered in %s (%s): the rest is decoded again", self._cache, error)
            return None


def image_bytes(image_size: int) -> int:
    """Return the size of an image's pixels in bytes."""
    return image_size**2 * 3


def images_at_once(image_size: int) -> int:
    """Return the number of images whose pixels are in memory at a time, on their way to the disk."""
    return max(1, array_cache.RESIDENT // image_bytes(image_size))
