"""Data classes of data sets: image records, manifests, the images of a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from experiments.images.decoder_settings import DEFAULTS, DecoderSettings

if TYPE_CHECKING:
    import numpy as np

    from experiments.storage.array_cache import Rows


SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ImageRecord:
    """One image of a manifest."""

    path: str  # relative to the data root, with forward slashes; the image's id
    bytes: int
    sha256: str
    width: int  # as stored in the file, before orientation and resizing
    height: int
    mode: str  # Pillow's mode of the file: RGB, L, RGBA, CMYK, ...
    class_name: str
    split: str  # one of SPLITS
    group: str = ""  # images of one group (of one patient, say) are in one split; empty: data.group is not used


@dataclass(frozen=True)
class SkippedImage:
    """A file, folder or class that is not used, with the reason: `data.on_bad=skip`, or it is no part of the data."""

    path: str  # or the name of a class
    reason: str


@dataclass(frozen=True)
class ImageWarning:
    """A warning about an image that is used nevertheless."""

    path: str
    text: str


@dataclass(frozen=True)
class NearDuplicatePair:
    """Two images of a data set, one of which is a copy of the other (see `near_duplicates`)."""

    first: str  # path; first < second
    second: str
    similarity: float  # at most 1
    mirrored: bool


@dataclass(frozen=True)
class SplitSettings:
    """Which images of a data set are used, and in which split: the keys of `data` with these names."""

    # Split -> share of every class; a positive one gets at least one image of each. Not used for splits that are given.
    fractions: Mapping[str, float]
    split_seed: int = 0  # seeds the split, the folds and the choice of `limit`
    # From 0 to folds - 1: this fold of every class's training images becomes the validation split, and the images that
    # would have been the validation split are not used at all. None: the splits as they are.
    fold: int | None = None
    folds: int = 5  # their sizes differ by one image at most
    # Images per class in a split; None, or no such key, for all. Those of a smaller limit are among those of a larger.
    limit: Mapping[str, int | None] = field(default_factory=dict)
    # "error"; or "skip": the splits and folds are drawn as if files (not directories) with issues did not exist; they
    # are recorded in `skipped`.
    on_bad: str = "error"
    # The classes that are used, in the order of their labels, each with the classes that are merged into it; None: all.
    classes: Mapping[str, Sequence[str]] | None = None
    min_per_class: int | None = None  # classes with fewer images are dropped
    group: str | None = None  # keeps the images of a group in one split and one fold; see `grouping.assign_groups`
    # What is done about near-duplicates in two splits: "warn"; "error"; or "group": drawn splits and folds have all
    # copies of an image in one of them, and of given splits the earlier one leaves its copies out.
    on_leak: str = "warn"

    @staticmethod
    def of(data: Mapping[str, Any]) -> SplitSettings:
        """Return the settings in the keys of `data`."""
        return SplitSettings(**{key.name: data[key.name] for key in fields(SplitSettings)})


@dataclass(frozen=True)
class Manifest:
    """All images of a data set, validated: hashed, fully decoded once, in one split only."""

    root: Path
    classes: tuple[str, ...]  # the index of a name is its label
    entries: tuple[ImageRecord, ...]  # sorted by split (SPLITS order), then path
    skipped: tuple[SkippedImage, ...] = ()
    warnings: tuple[ImageWarning, ...] = ()  # about entries, sorted by path
    decoder_settings: DecoderSettings = DEFAULTS  # with which the images are decoded and resized
    notes: tuple[str, ...] = ()  # sentences on how the directories were understood
    near_duplicates: tuple[NearDuplicatePair, ...] = ()  # among the entries, the most similar first

    @cached_property
    def leaks(self) -> tuple[NearDuplicatePair, ...]:
        """The near-duplicates of which the two images are in different splits."""
        splits = {entry.path: entry.split for entry in self.entries}
        return tuple(pair for pair in self.near_duplicates if splits[pair.first] != splits[pair.second])

    def of(self, split: str) -> tuple[ImageRecord, ...]:
        return tuple(entry for entry in self.entries if entry.split == split)


@dataclass(frozen=True)
class ImageSet:
    """The images of one split: ids and labels in memory, pixels decoded at their first use."""

    split: str
    entries: tuple[ImageRecord, ...]
    labels: np.ndarray  # [N] int32
    image_size: int
    _pixels: Callable[[], Rows]
    decoder_settings: DecoderSettings = DEFAULTS  # those of the manifest
    # The images of which these are a selection, and their indices [N] there: all folds of one data set, and training
    # without folds, read what is computed for the same images. None: these are no selection.
    whole: ImageSet | None = None
    rows: np.ndarray | None = None

    @property
    def ids(self) -> list[str]:
        return [entry.path for entry in self.entries]

    @property
    def pixels(self) -> Rows:
        """Pixels [N, H, W, 3] uint8, RGB; in memory or, beyond `runtime.memory`, on disk."""
        return self._pixels()

    def __len__(self) -> int:
        return len(self.entries)


@dataclass(frozen=True)
class Dataset:
    """A data set in its splits, as the regimes receive it."""

    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    test: ImageSet | None
    manifest: Manifest
    fingerprint: str  # see `manifest.fingerprint`

    def scored(self, test: bool) -> list[ImageSet]:
        """Return the splits on which a run is evaluated: validation, and test if it exists and `test` is true."""
        return [self.validation, *([self.test] if test and self.test else [])]


class Augmentation(Protocol):
    """An augmentation whose random numbers are drawn before their use, which so can run in parallel."""

    def draw(self, rng: np.random.Generator, count: int, size: int) -> np.ndarray:
        """Return the random numbers for `count` images of `size` x `size` pixels: [count, K] float32."""

    def __call__(self, pixels: Any, numbers: Any) -> Any:
        """Map pixels [B, H, W, 3] uint8 and numbers [B, K] to augmented pixels [B, H, W, 3] float32 in [0, 255]."""
