"""Validation of image files by content: each is hashed, and decoded once; the results are kept in the cache."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import near_duplicates
from experiments.data.issues import DataIssue, printable
from experiments.data.listing import ListedImage
from experiments.data.pixel_buffer import PixelBuffer
from experiments.errors import DataError
from experiments.images import decoder
from experiments.images.decoder_settings import DecoderSettings
from experiments.storage import array_cache, named_arrays

_log = logging.getLogger(__name__)


def hash_files(root: Path, images: Sequence[ListedImage], issues: list[DataIssue]) -> dict[str, tuple[str, int]]:
    """Return path -> (sha256, size in bytes); files that cannot be read become issues."""

    def digest(image: ListedImage) -> tuple[str, int] | DataIssue:
        try:
            with _open(root, image.path) as file:
                return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
        except DataError as error:
            return DataIssue(image.path, str(error), skippable=True)

    hashes = {}
    with ThreadPoolExecutor() as pool:
        for image, found in zip(images, pool.map(digest, images), strict=True):
            if isinstance(found, DataIssue):
                issues.append(found)
            else:
                hashes[image.path] = found
    return hashes


@contextmanager
def _open(root: Path, path: str) -> Iterator[BufferedReader]:
    """Open a file; an error that is about the file (not that too many are open) is raised as DataError."""
    try:
        with open(os.path.join(root, path), "rb") as file:
            yield file
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        text = f"cannot be read ({error.strerror}); check its permissions and the disk, or remove it"
        raise DataError(text) from None


def unchanged(root: Path, path: str, sha256: str) -> bytes:
    """Return a file's content if it is still the one that was hashed.

    Raises:
        DataError: If the file cannot be read, or the content has changed or is too large; the caller adds the path.
    """
    with _open(root, path) as file:
        content = decoder.read(file)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError("has changed since it was checked; leave the data alone during a run, and start again")
    return content


class ValidationResults:
    """Validation results by content; content that was valid before is not decoded again.

    One file holds the valid images of one set of files, whatever the limits were when they were validated.

    Args:
        root: The directory of the data set.
        hashes: path -> (sha256, size) of its files.
        buffer: Receives decoded images.
    """

    def __init__(
        self,
        root: Path,
        hashes: Mapping[str, tuple[str, int]],
        cache: Path,
        decoder_settings: DecoderSettings,
        buffer: PixelBuffer | None,
    ) -> None:
        self.valid: dict[str, Any] = {}  # sha256 -> width, height, mode and warnings
        self.invalid: dict[str, str] = {}  # sha256 -> the reason
        self.cache = cache
        self.decoder_settings = decoder_settings
        self._root = root
        self._hashes = hashes
        self._thumbnails: dict[str, np.ndarray] = {}  # by sha256
        self._buffer = buffer
        key = self.key(sorted(sha256 for sha256, _ in hashes.values()))
        self._file = cache / "manifests" / f"{key}.npz"
        self._thumbnail_file = cache / "thumbnails" / f"{key}-{near_duplicates.VERSION}.npz"
        if kept := named_arrays.load(self._file, self):
            self.valid = dict(zip(kept["sha256"].astype(str).tolist(), json.loads(kept["facts"].item()), strict=True))
        self._kept = len(self.valid)

    def key(self, hashes: Sequence[str], **more: Any) -> str:
        """Return the key of what depends on files, by their hashes, and on the decoder."""
        settings = self.decoder_settings.validation_key()
        return array_cache.key({"files": hashes, "decoder": decoder.VERSION, **settings, **more})

    def sha256(self, image: ListedImage) -> str:
        return self._hashes[image.path][0]

    def usable(self, images: Iterable[ListedImage]) -> list[ListedImage]:
        """Return the images that are not known to be invalid."""
        return [image for image in images if self.sha256(image) not in self.invalid]

    def issues(self) -> list[DataIssue]:
        """Return an issue for every file that is known to be invalid."""
        return [
            DataIssue(path, self.invalid[sha256], skippable=True)
            for path, (sha256, _) in self._hashes.items()
            if sha256 in self.invalid
        ]

    def validate(self, images: Iterable[ListedImage], *, keep: bool = True) -> bool:
        """Validate images whose contents have no result yet, and return whether there were any.

        With `keep`, the decoded images are added to the buffer.
        """
        known = self.valid.keys() | self.invalid.keys()
        new = {sha256: image.path for image in images if (sha256 := self.sha256(image)) not in known}
        if not new:
            return False
        _log.info("Checking %d images", len(new))
        self.invalid |= self._decode(new, keep=keep)
        return True

    def _decode(self, paths: Mapping[str, str], *, keep: bool) -> dict[str, str]:
        """Decode images (sha256 -> path) in parallel and keep what is found; return why some are invalid, by sha256."""

        def decode(sha256: str, path: str) -> str | None:
            try:
                content = unchanged(self._root, path, sha256)
                with decoder.decoding(content, self.decoder_settings) as (image, *facts):
                    self._thumbnails[sha256] = near_duplicates.thumbnail(image)
                    if self._buffer and keep:
                        self._buffer.add(sha256, image)
                    self.valid[sha256] = facts
            except DataError as error:
                return str(error)
            return None

        with ThreadPoolExecutor() as pool:
            reasons = zip(paths, pool.map(decode, paths, paths.values()), strict=True)
            return {sha256: reason for sha256, reason in reasons if reason}

    def thumbnails(self, images: Iterable[ListedImage]) -> np.ndarray:
        """Return the thumbnails [N, SIZE, SIZE, 3] uint8 of valid images; they are kept in the cache.

        Raises:
            DataError: If a file has changed since it was validated.
        """
        paths = {self.sha256(image): image.path for image in images}
        if kept := named_arrays.load(self._thumbnail_file, self):
            known = zip(kept["sha256"].astype(str).tolist(), kept["thumbnails"], strict=True)
            self._thumbnails = dict(known) | self._thumbnails
        missing = {sha256: path for sha256, path in paths.items() if sha256 not in self._thumbnails}
        if missing:
            _log.info("Decoding %d images to look for near-duplicates", len(missing))
        if changed := self._decode(missing, keep=False):
            sha256, reason = next(iter(changed.items()))
            raise DataError(f"{printable(missing[sha256])}: {reason}")
        if len(self._thumbnails) > len(kept.get("sha256", ())):
            hashes, thumbnails = np.array([*self._thumbnails], "S64"), np.stack([*self._thumbnails.values()])
            named_arrays.write(self._thumbnail_file, {"sha256": hashes, "thumbnails": thumbnails})
        shape = (len(paths), near_duplicates.SIZE, near_duplicates.SIZE, 3)
        return np.array([self._thumbnails[sha256] for sha256 in paths], "uint8").reshape(shape)

    def save(self) -> None:
        if len(self.valid) > self._kept:
            hashes, facts = np.array([*self.valid], "S64"), np.array(json.dumps([*self.valid.values()]).encode())
            named_arrays.write(self._file, {"sha256": hashes, "facts": facts})
