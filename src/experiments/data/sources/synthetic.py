"""Data source of drawn animal faces, deterministic from a seed: images without a download."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from experiments.data.drawing.faces import draw_face
from experiments.data.drawing.species import find_species
from experiments.data.types import SPLITS
from experiments.errors import ConfigError
from experiments.storage import array_cache

# Part of the directory's name: increase it whenever a change of the drawing or the species alters a single pixel.
PEN = 1
QUALITY = 88  # JPEG


def _split_number(split: str) -> int:
    if split in SPLITS:
        return SPLITS.index(split)
    nearest = difflib.get_close_matches(str(split), SPLITS, n=1, cutoff=0.0)[0]
    raise ConfigError(
        f"data.per_class: allowed splits are {', '.join(SPLITS)}; received {split!r}; nearest is {nearest!r}. "
        "Rename the split."
    )


def synthetic(*, species: Sequence[str], per_class: Mapping[str, int], seed: int, size: int, cache: Path) -> Path:
    """Draw root/<split>/<class>/<class>.<n>.jpg under cache, and return root.

    `per_class` gives the number of images per class in each split; a split with 0 gets no directory. Images are
    [size, size] RGB.
    """
    numbers = {name: find_species(name).number for name in species}
    splits = {split: _split_number(split) for split in per_class}
    order = json.dumps([PEN, sorted(numbers), sorted(per_class.items()), seed, size])
    root = cache / "drawn" / hashlib.sha256(order.encode()).hexdigest()[:16]
    if root.is_dir():
        array_cache.mark_used(root)
        return root
    draft = root.with_name(f".{root.name}.{uuid.uuid4().hex}")
    try:
        draft.mkdir(parents=True)
        images = []
        for split, split_number in splits.items():
            for name, number in numbers.items():
                if per_class[split] > 0:
                    (draft / split / name).mkdir(parents=True)
                for n in range(per_class[split]):
                    images.append((name, [seed, split_number, number, n], draft / split / name / f"{name}.{n}.jpg"))

        def write(image: tuple[str, list[int], Path]) -> None:
            name, key, path = image
            draw_face(name, np.random.default_rng(key), size).save(path, quality=QUALITY)

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for _ in pool.map(write, images):
                pass
        try:
            os.rename(draft, root)
        except OSError:
            if not root.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    array_cache.mark_used(root)
    return root
