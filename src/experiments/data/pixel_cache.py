"""Pixels of a validated data set: decoded once, kept in the array cache, and held in memory where they fit."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from experiments.data.issues import DataIssue, printable, raise_issues
from experiments.data.manifest import fingerprint
from experiments.data.pixel_buffer import PixelBuffer, image_bytes, images_at_once
from experiments.data.types import Dataset, ImageRecord, ImageSet, Manifest
from experiments.data.validation import unchanged
from experiments.errors import DataError
from experiments.images import decoder
from experiments.images.decoder_settings import DecoderSettings
from experiments.storage import array_cache
from experiments.storage.array_cache import Rows
from experiments.storage.csv_files import recorded_path


def open_image(root: Path, path: str, sha256: str, decoder_settings: DecoderSettings) -> Image.Image:
    """Return an image of a manifest, or of the tables of a run, in its own size, RGB, decoded from its file again.

    Raises:
        DataError: If the file no longer exists or has changed; the message has its path.
    """
    try:
        return decoder.decode(unchanged(root, recorded_path(root, path), sha256), decoder_settings)
    except DataError as error:
        raise DataError(f"{printable(path)}: {error}") from None


def images_of(
    manifest: Manifest, split: str, image_size: int, cache: Path, *, held: bool, buffer: PixelBuffer | None = None,
    entries: Sequence[ImageRecord] | None = None,
) -> ImageSet:  # fmt: skip
    """Return the images of one split in the manifest's order; nothing is read before `pixels` is used.

    Args:
        image_size: Width and height of the pixels; see `resizing.resize`.
        cache: The cache directory; the decoded pixels are kept in its array cache.
        held: Hold them in memory; else they are read from the array cache as they are used.
        buffer: The images that `manifest.read` has decoded already, of this image size; each is released when it is
            written to the array cache.
        entries: Other images of the manifest in place of those of the split.

    Returns:
        The images. `pixels` raises DataError if files have changed since the manifest was made, and OSError if the
        cache cannot be written.
    """
    entries = manifest.of(split) if entries is None else entries
    labels = {name: label for label, name in enumerate(manifest.classes)}

    @functools.cache
    def pixels() -> Rows:
        spec = {
            "files": [entry.sha256 for entry in entries],
            "image_size": image_size,
            "decoder": decoder.VERSION,
            "pillow": PIL.__version__,
            **manifest.decoder_settings.pixels_key(),
        }
        folder = cache / "pixels" / array_cache.key(spec)
        shape = (len(entries), image_size, image_size, 3)
        stored = array_cache.CacheEntry(folder, spec, shape, "uint8", {"split": split})
        write = functools.partial(_decode_into, manifest, entries, image_size, buffer.pixels if buffer else {})
        rows = Rows([stored.load_or_create(write)])
        array_cache.mark_used(folder, rows)
        return Rows([rows[:]]) if held else rows

    of_entries = np.array([labels[entry.class_name] for entry in entries], dtype=np.int32)
    return ImageSet(split, tuple(entries), of_entries, image_size, pixels, manifest.decoder_settings)


def select(whole: ImageSet, split: str) -> ImageSet:
    """Return those of the images whose records have this split."""
    rows = np.flatnonzero([entry.split == split for entry in whole.entries])
    return replace(
        whole,
        split=split,
        entries=tuple(whole.entries[row] for row in rows),
        labels=whole.labels[rows],
        _pixels=lambda: whole.pixels.select(rows),
        whole=whole,
        rows=rows,
    )


def splits_of(
    manifest: Manifest, image_size: int, cache: Path, memory: float, buffer: PixelBuffer | None = None,
    *, in_folds: bool = False,
) -> Dataset:  # fmt: skip
    """Return the whole data set for the regimes, see `images_of`; `test` is None where the manifest has no test images.

    If the pixels of all splits together need more than `memory` bytes, they stay on disk.

    Args:
        in_folds: True where the training images are divided into folds, of which one is the validation split. Both are
            then selections of the same images in the order in which they are without folds, whichever the fold is.
    """
    held = len(manifest.entries) * image_bytes(image_size) <= memory
    images = functools.partial(images_of, manifest, image_size=image_size, cache=cache, held=held, buffer=buffer)
    test = images("test") if manifest.of("test") else None
    if in_folds:
        of_folds = [entry for entry in manifest.entries if entry.split != "test"]
        whole = images("train", entries=sorted(of_folds, key=lambda entry: entry.path))
        train, validation = select(whole, "train"), select(whole, "validation")
    else:
        train, validation = images("train"), images("validation")
    return Dataset(manifest.classes, train, validation, test, manifest, fingerprint(manifest))


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
                known = decoder.decode_resized(content, image_size, manifest.decoder_settings)
            pixels[index] = known
        except DataError as error:
            return DataIssue(entry.path, str(error), skippable=False)
        return None

    issues: list[DataIssue] = []
    rows = range(len(entries))
    step = images_at_once(image_size)
    with ThreadPoolExecutor() as pool:
        for start in rows[::step]:
            issues += filter(None, pool.map(decode, rows[start : start + step]))
            array_cache.release([pixels])
    raise_issues(manifest.root, issues)
