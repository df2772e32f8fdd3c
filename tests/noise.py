"""Tiny images of noise for tests of what is done with image files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def draw(path: Path, content: object = None) -> Path:
    """Draw an 8 x 6 image that depends on `content`, by default the file's name, and on the names of two folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.name if content is None else content
    seed = list(os.fsencode(f"{own}{path.parent.name}{path.parent.parent.name}"))
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)).save(path)
    return path


def draw_classes(root: Path, counts: Mapping[str, int | tuple[int, int]]) -> Path:
    """Draw images 0.png, 1.png, ... of the classes cats and dogs: so many of each (or of both) in each folder."""
    for folder, count in counts.items():
        for name, number in zip(("cats", "dogs"), (count, count) if isinstance(count, int) else count, strict=True):
            for at in range(number):
                draw(root / folder / name / f"{at}.png")
    return root
