"""Data source of drawn animal faces, deterministic from a seed: images without a download."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from experiments.data.drawing.faces import draw_face
from experiments.data.drawing.species import SPECIES
from experiments.data.types import SPLITS
from experiments.storage import array_cache, atomic_files

# Part of the directory's name: increase it whenever a change of the drawing or the species alters a single pixel.
VERSION = 1
QUALITY = 88  # JPEG


def synthetic(*, species: Sequence[str], per_class: Mapping[str, int], seed: int, size: int, cache: Path) -> Path:
    """Draw root/<split>/<class>/<class>.<n>.jpg under cache, and return root.

    `per_class` gives the number of images per class in each split; a split with 0 gets no directory. Images are
    [size, size] RGB.
    """
    names = sorted(set(species))
    spec = json.dumps([VERSION, names, sorted(per_class.items()), seed, size])
    root = cache / "drawn" / hashlib.sha256(spec.encode()).hexdigest()[:16]
    if not root.is_dir():
        with atomic_files.writing_directory(root) as draft:
            _draw_all(draft, names, per_class, seed, size)
    array_cache.mark_used(root)
    return root


def _draw_all(root: Path, species: Sequence[str], per_class: Mapping[str, int], seed: int, size: int) -> None:
    """Draw the images, each from a random generator of its own."""
    images = []
    for split in per_class:
        for name in species if per_class[split] else ():
            (root / split / name).mkdir(parents=True)
            for n in range(per_class[split]):
                key = [seed, SPLITS.index(split), SPECIES[name].number, n]
                images.append((name, key, root / split / name / f"{name}.{n}.jpg"))

    def draw(image: tuple[str, list[int], Path]) -> None:
        name, key, path = image
        draw_face(name, np.random.default_rng(key), size).save(path, quality=QUALITY)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(draw, images))
