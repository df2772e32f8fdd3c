"""Feature cache: the features of a network's frozen part at its split point, computed once and stored on disk.

A feature table holds the features of one split's images, without augmentation or in one augmented view, at one split
point. The folds of the training images read one table of all of them. A table is a directory `cache/activations/<key>/`
of shards. Each shard is an entry of the array cache: written atomically, verified by its hash, and computed again on
its own if it is damaged. The key is a hash over every image's sha256, in order, and everything else that the features
depend on. Hence row n always belongs to image n, whose id and label are in the manifest.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.filesize import decimal

from experiments.config.targets import own_code
from experiments.data import augmentation
from experiments.data.input_pipeline import augmented
from experiments.data.types import ImageSet
from experiments.errors import ConfigError
from experiments.images import decoder
from experiments.models import network
from experiments.models.head import POOLING
from experiments.models.network import NetworkSplit, inference_functions
from experiments.storage import array_cache
from experiments.storage.array_cache import Rows
from experiments.training.types import Progress, RunComponents

BATCH = 32  # images per forward pass
# A shard has SHARD_ROWS rows, or fewer (halved, down to BATCH) if they would take more than SHARD_BYTES.
SHARD_ROWS = 8 * BATCH
SHARD_BYTES = 64 * 2**20
RESERVE = 256 * 2**20  # bytes of disk space that extraction leaves free

_log = logging.getLogger(__name__)


class FeatureRequest(NamedTuple):
    """A request for one feature table: which images, in which view, at which split point."""

    network_split: NetworkSplit
    images: ImageSet  # one split; the rows have its order
    view: int | None = None  # None: no augmentation; k: the k-th augmented view, a function of augmentation.seed and k


def cached_features(
    components: RunComponents,
    network_split: NetworkSplit,
    images: ImageSet,
    progress: Progress,
    view: int | None = None,
) -> Rows:
    """Return the features of one split's images at the split point, computing and storing those that are missing.

    If nothing is frozen and no view is requested, these are the pixels, [N, H, W, 3] uint8, and nothing is stored.
    `extract` describes the rows and the errors.
    """
    if view is None and not network_split.frozen:
        return images.pixels
    (rows,) = extract(components, [FeatureRequest(network_split, images, view)], progress)
    return rows


def extract(components: RunComponents, requests: Sequence[FeatureRequest], progress: Progress) -> list[Rows]:
    """Return feature tables; what the feature cache lacks is computed in one pass over the images.

    Each shard is stored as soon as it is complete, so that memory does not grow with the data set, and after an
    interruption only the missing shards are computed.

    Args:
        components: the run's components; the feature cache is in their cache directory.
        requests: requests for images of one data set. A batch of images runs through the network once for all split
            points, and all of its views are computed before the next images are read.
        progress: displays how many rows have been computed.

    Returns:
        For each request its rows [N, ...] of the dtype `regime.activations`: on disk, small tables in memory.

    Raises:
        ConfigError: the missing features do not fit on the disk, or a value does not fit into float16.
        OSError: the cache cannot be written, or what is read back differs from what was written.
    """
    requested = [FeatureTable(components, request) for request in requests]
    tables = {table.name: table for table in requested}  # those of several folds may be the same
    if any(table.lacking for table in tables.values()):
        with ExitStack() as locks:
            for name in sorted(tables):  # A fixed lock order avoids deadlock.
                locks.enter_context(array_cache.writing(components.cache, "activations", name))
            for table in tables.values():
                table.scan()  # Another process may have stored shards before the locks were acquired.
            lacking = [table for table in tables.values() if table.lacking]
            if lacking:
                check_disk(components.cache, lacking)
            # Caching compiles one function per combination of networks, for all splits and views.
            forward = functools.cache(inference_functions)
            for images in dict.fromkeys(table.hashes for table in lacking):
                compute(components, [table for table in lacking if table.hashes == images], forward, progress)
    return [tables[table.name].rows(table.selection) for table in requested]


def versions() -> dict[str, str]:
    """Return the versions of the libraries whose arithmetic determines the cached values."""
    return {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "pillow")}


class FeatureTable:
    """The shards of one requested table: those that are stored, those that are missing, and the one being filled."""

    def __init__(self, components: RunComponents, request: FeatureRequest) -> None:
        config, self.request = components.config, request
        whole, is_augmented = request.images.whole, request.view is not None
        # A view of these may be computed from a whole batch of images, in which no validation image may be then.
        is_foreign = bool(components.extra_layers) or not config.augmentation.target.startswith("experiments.")
        self.images: ImageSet = request.images
        self.selection: np.ndarray | None = None  # the rows that are requested; None: all
        if whole is not None and not (is_augmented and is_foreign):
            self.images, self.selection = whole, request.images.rows
        self.hashes = tuple(entry.sha256 for entry in self.images.entries)
        self.dtype: str = config.regime.activations
        row: tuple[int, ...] = tuple(request.network_split.frozen_part.output_shape[1:])
        self.row_bytes: int = math.prod(row) * np.dtype(self.dtype).itemsize
        self.step = SHARD_ROWS  # rows per shard
        while self.step > BATCH and self.step * self.row_bytes > SHARD_BYTES:
            self.step //= 2
        self.name = array_cache.key(self.spec(components))
        self.folder = components.cache / "activations" / self.name
        self.about = {
            "network": config.model.name,
            "boundary": request.network_split.split_point,
            "split": self.images.split,
            "view": request.view,
            "rows": len(self.images),
        }
        self.shards = {start: self.shard(start, row) for start in range(0, len(self.images), self.step)}
        self.found: dict[int, np.ndarray] = {}  # first row of a stored shard -> its rows
        self.filling: list[np.ndarray] = []  # the batches of the shard that is being filled
        self.scan()

    def spec(self, components: RunComponents) -> dict[str, Any]:
        """Return everything that the features depend on, as plain values."""
        config, images, (network_split, _, view) = components.config, self.images, self.request
        augmented_as = None
        made_by = {"model": config.model.model_dump(by_alias=True)}
        if view is not None:
            augmented_as = {
                "seed": config.augmentation.seed,
                "view": view,
                "spec": config.augmentation.model_dump(),
                "code": augmentation.VERSION,
            }
            made_by["augmentation"] = config.augmentation.model_dump(by_alias=True)
        return {
            "images": list(self.hashes),
            "image_size": images.image_size,
            "decoder": decoder.VERSION,
            **images.decoder_settings.pixels_key(),
            "backbone": components.backbone.identity,
            "forward": network.VERSION,
            "boundary": network_split.split_point,
            "pooling": config.model.head.pooling if network_split.split_point == POOLING else None,
            "augmentation": augmented_as,
            "dtype": self.dtype,
            "batch": BATCH,  # Keras's random layers generate their random numbers for a whole batch.
            "shard": self.step,
            "versions": versions(),
            **own_code(config.trusted_packages, made_by),
        }

    def shard(self, start: int, row: tuple[int, ...]) -> array_cache.CacheEntry:
        stop = min(start + self.step, len(self.images))
        spec = {"table": self.name, "rows": [start, stop]}
        return array_cache.CacheEntry(self.folder / f"{start:07}", spec, (stop - start, *row), self.dtype, self.about)

    def scan(self) -> None:
        """Open the missing shards that are in the feature cache by now."""
        for start in self.lacking:
            found = self.shards[start].find()
            if found is not None:
                self.found[start] = found

    @property
    def lacking(self) -> list[int]:
        return [start for start in self.shards if start not in self.found]

    @property
    def lacking_bytes(self) -> int:
        return sum(self.shards[start].shape[0] for start in self.lacking) * self.row_bytes

    def lacks(self, row: int) -> bool:
        return row - row % self.step not in self.found

    def add(self, at: slice, rows: np.ndarray) -> None:
        """Add the features [B, ...] float32 of the images `at`, and store the shard once it is complete.

        Features of a shard that is already stored are ignored.
        """
        if not self.lacks(at.start):
            return
        self.filling.append(self.narrowed(rows))
        start = at.start - at.start % self.step
        shard = self.shards[start]
        if at.stop == start + shard.shape[0]:
            self.found[start] = shard.make(lambda into: np.concatenate(self.filling, out=into))
            self.filling = []

    def narrowed(self, rows: np.ndarray) -> np.ndarray:
        """Convert rows to the dtype of the table.

        Raises:
            ConfigError: a value is too large for it.
        """
        if self.dtype == "float32":
            return rows
        largest, bound = float(np.abs(rows).max(initial=0)), float(np.finfo(self.dtype).max)
        if largest > bound:
            raise ConfigError(
                f"regime.activations: float16 holds numbers up to {bound:,.0f}, and those of {self.about['network']} "
                f"at {self.about['boundary']} reach {largest:,.0f}. Use regime.activations=float32"
            )
        return rows.astype(self.dtype)

    def rows(self, selection: np.ndarray | None) -> Rows:
        """Return the rows with these indices, None for all; in memory if the table is small, as pooled features are."""
        shards = [self.found[start] for start in self.shards]
        small = len(self.images) * self.row_bytes <= array_cache.RESIDENT
        rows = Rows([np.concatenate(shards)] if small else shards)
        rows = rows if selection is None else rows.select(selection)
        array_cache.mark_used(self.folder, rows)
        return rows


def check_disk(cache: Path, tables: Sequence[FeatureTable]) -> None:
    """Raise ConfigError if the missing shards do not fit on the disk; log how much space they will take."""
    cache.mkdir(parents=True, exist_ok=True)
    needed, free = sum(table.lacking_bytes for table in tables), shutil.disk_usage(cache).free
    _log.info("Features to be cached: %s, in %s", decimal(needed), cache)
    if needed + RESERVE > free:
        each = "; ".join(
            f"{table.about['split']} {len(table.images):,} x {table.row_bytes:,} bytes" for table in tables
        )
        raise ConfigError(
            f"Features to be cached take {decimal(needed)} of disk ({each}). {cache} has "
            f"{decimal(free)} free, of which {decimal(RESERVE)} stay free. Make room "
            "(experiments cache prune), use another disk (outputs=PATH), or store less: a smaller regime.views, "
            "regime.activations=float16"
        )


def compute(
    components: RunComponents,
    tables: Sequence[FeatureTable],
    forward: Callable[..., Callable[..., list[np.ndarray]]],
    progress: Progress,
) -> None:
    """Run the images of tables through the network and store the missing shards of its tables.

    Args:
        tables: tables of the same images.
        forward: returns the compiled `inference_functions` of a tuple of frozen parts.
    """
    images = tables[0].images
    count = len(images)
    by_view: dict[int | None, list[FeatureTable]] = {}
    for table in tables:
        by_view.setdefault(table.request.view, []).append(table)
    work = [
        (view, slice(start, min(start + BATCH, count)))
        for first in range(0, count, SHARD_ROWS)
        for view, members in by_view.items()
        for start in range(first, min(first + SHARD_ROWS, count), BATCH)
        if any(table.lacks(start) for table in members)
    ]
    read = {view: reader(components, images, view) for view in by_view}
    label = f"features of {images.split}" + (f", {len(by_view)} views" if len(by_view) > 1 else "")
    with progress.stage(label, count * len(by_view)) as advance:
        advance(count * len(by_view) - sum(at.stop - at.start for _, at in work))  # Count the rows that are stored.
        for view, at in work:
            outputs = forward(tuple(table.request.network_split.frozen_part for table in by_view[view]))(read[view](at))
            for table, rows in zip(by_view[view], outputs, strict=True):
                table.add(at, rows)
            advance(at.stop - at.start)


def reader(components: RunComponents, images: ImageSet, view: int | None) -> Callable[[slice], np.ndarray]:
    """Return a function from a slice of rows to the network's input: images [B, H, W, 3] float32 in [0, 255]."""
    pixels = images.pixels
    if view is None:
        return lambda at: np.asarray(pixels[at], "float32")
    return augmented(
        pixels,
        augmentation=components.augmentation,
        extra_layers=components.extra_layers,
        seed=components.config.augmentation.seed,
        view=view,
    )
