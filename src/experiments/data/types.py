"""Data sets as plain data: image records, manifests, the images of a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from experiments.storage.array_cache import Rows


SPLITS = ("train", "validation", "test")


GrayRange = tuple[float, float]  # the values of 16- and 32-bit grays that become black and white


@dataclass(frozen=True)
class ImageRecord:
    """One picture of a manifest."""

    path: str  # relative to the data root, with forward slashes; the picture's id
    bytes: int
    sha256: str
    width: int  # as stored in the file, before orientation and resizing
    height: int
    mode: str  # Pillow's mode of the file: RGB, L, RGBA, CMYK, ...
    class_name: str
    split: str  # one of SPLITS


@dataclass(frozen=True)
class SkippedImage:
    """A file that `data.on_bad=skip` left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ImageWarning:
    """An image that is used, though its owner should look at it, and why."""

    path: str
    text: str


@dataclass(frozen=True)
class Manifest:
    """Every picture of a data set, checked: hashed, fully decoded once, in one split only."""

    root: Path
    classes: tuple[str, ...]  # sorted; the index of a name is its label
    entries: tuple[ImageRecord, ...]  # sorted by split (SPLITS order), then path
    left_out: tuple[SkippedImage, ...] = ()
    warnings: tuple[ImageWarning, ...] = ()  # of entries, by path
    gray_range: GrayRange | None = None  # that 16- and 32-bit grays are decoded with

    def of(self, split: str) -> tuple[ImageRecord, ...]:
        return tuple(entry for entry in self.entries if entry.split == split)


@dataclass(frozen=True)
class ImageSet:
    """The pictures of one split: ids and labels at hand, pixels decoded when first asked for."""

    split: str
    entries: tuple[ImageRecord, ...]
    labels: np.ndarray  # [N] int32
    image_size: int
    _pixels: Callable[[], Rows]
    gray_range: GrayRange | None = None  # as the manifest's

    @property
    def ids(self) -> list[str]:
        return [entry.path for entry in self.entries]

    @property
    def pixels(self) -> Rows:
        """[N, H, W, 3] uint8, RGB; in memory or, beyond `runtime.memory`, on disk."""
        return self._pixels()

    def __len__(self) -> int:
        return len(self.entries)


@dataclass(frozen=True)
class Dataset:
    """A data set as the regimes see it."""

    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    test: ImageSet | None
    manifest: Manifest
    fingerprint: str  # sha256 over split, path and file hash of every picture

    def scored(self, test: bool) -> list[ImageSet]:
        """The splits that a run is judged on: validation, and test where there is one and `test` says so."""
        return [self.validation, *([self.test] if test and self.test else [])]


class Augmentation(Protocol):
    """Random numbers are drawn apart from their use, so that the use can run in parallel and stay repeatable."""

    def draw(self, rng: np.random.Generator, count: int, size: int) -> np.ndarray:
        """The random numbers for `count` pictures of `size` pixels: [count, K] float32."""

    def __call__(self, pixels: Any, numbers: Any) -> Any:
        """Pixels [B, H, W, 3] uint8 and numbers [B, K] to augmented pixels [B, H, W, 3] float32 in [0, 255]."""
