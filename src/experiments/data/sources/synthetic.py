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

            def draw(image: tuple[str, str, int]) -> None:
                split, name, number = image
                rng = np.random.default_rng([seed, SPLITS.index(split), SPECIES[name].number, number])
                draw_face(name, rng, size).save(draft / split / name / f"{name}.{number}.jpg", quality=QUALITY)

            images = [(split, name, n) for split, count in per_class.items() for name in names for n in range(count)]
            for split, name in {(split, name) for split, name, _ in images}:
                (draft / split / name).mkdir(parents=True)
            with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
                list(pool.map(draw, images))
    array_cache.mark_used(root)
    return root
