"""Images for the benchmark: photographs, a subset of them, or many more images made from them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from experiments.data.sources.synthetic import synthetic

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ("cats", "dogs")
PHOTOGRAPHS = {"train": 2000, "validation": 400}
FLOWERS = 680  # training images of flowers17
DRAWN_SIZE = 256  # pixels
QUALITY = 90  # JPEG


@dataclass(frozen=True)
class Folder:
    """A folder of images: train/<class>/ and validation/<class>/, for flowers17 also test/<class>/.

    All classes of a split have the same number of images.
    """

    root: Path
    train: int  # images
    validation: int
    drawn: bool

    def __str__(self) -> str:
        kind = "drawn images (the photographs are absent)" if self.drawn else "photographs"
        return f"{self.train} + {self.validation} {kind}"


def shared(variable: str, name: str) -> Path:
    """Return the path that an environment variable holds, else `name` in the folder shared/ beside the repository."""
    return Path(os.environ.get(variable) or ROOT.parent / "shared" / name).expanduser().resolve()


def mobilenet_weights() -> Path | None:
    """Return the file of MobileNetV2's ImageNet weights, or None where it is absent."""
    place = shared("EXPERIMENTS_WEIGHTS", "weights")
    file = place / "mobilenet_v2_0.35_224_notop.weights.h5" if place.is_dir() else place
    return file if file.is_file() else None


def images(cache: Path, train: int | None = None) -> Folder:
    """Return the photographs of cats and dogs, or synthetic images where the photographs are absent.

    Args:
        cache: the directory that keeps subsets and synthetic images.
        train: the number of training images, with a fifth as many for validation; None for all 2,000 + 400.
    """
    wanted = dict(PHOTOGRAPHS)
    if train is not None and train < PHOTOGRAPHS["train"]:
        wanted = {"train": train // 2 * 2, "validation": max(2, train // 10) * 2}
    photographs = shared("EXPERIMENTS_PHOTOS", "cats_dogs")
    if not photographs.is_dir():
        per_class = {split: count // 2 for split, count in wanted.items()}
        root = synthetic(species=CLASSES, per_class=per_class, seed=0, size=DRAWN_SIZE, cache=cache)
        return Folder(root, wanted["train"], wanted["validation"], drawn=True)
    if wanted == PHOTOGRAPHS:
        return Folder(photographs, wanted["train"], wanted["validation"], drawn=False)
    root = cache / f"photographs-{wanted['train']}"
    copy_first(photographs, root, {split: count // 2 for split, count in wanted.items()})
    return Folder(root, wanted["train"], wanted["validation"], drawn=False)


def flowers(cache: Path, train: int | None = None) -> Folder:
    """Return Oxford's flowers17, or the first images of each of its 17 classes.

    Args:
        cache: the directory that keeps subsets.
        train: the number of training images, with half as many for validation and for test; None for all 680.

    Raises:
        FileNotFoundError: the dataset is absent.
    """
    whole = shared("EXPERIMENTS_FLOWERS", "flowers17")
    if not whole.is_dir():
        raise FileNotFoundError(f"flowers17 is needed in {whole}, or where EXPERIMENTS_FLOWERS points")
    if train is None or train >= FLOWERS:
        return Folder(whole, FLOWERS, FLOWERS // 2, drawn=False)
    each = max(train // 17, 2)
    root = cache / f"flowers17-{each}"
    copy_first(whole, root, {"train": each, "validation": each // 2, "test": each // 2})
    return Folder(root, 17 * each, 17 * (each // 2), drawn=False)


def copy_first(whole: Path, root: Path, counts: Mapping[str, int]) -> None:
    """Copy the first images of each class, so many of each split, to `root`, unless that directory exists."""
    if root.is_dir():
        return
    draft = root.with_name(f".{root.name}.{os.getpid()}")
    for split, count in counts.items():
        for folder in files(whole / split):
            (draft / split / folder.name).mkdir(parents=True)
            for path in files(folder)[:count]:
                shutil.copyfile(path, draft / split / folder.name / path.name)
    draft.rename(root)


def many(cache: Path, source: Folder, train: int) -> Folder:
    """Return more images than `source` has: random crops of its images with another brightness, encoded again.

    They are written once and kept. No two have the same pixels, so no cache can serve one image for another.
    """
    wanted = {"train": train, "validation": max(4, train // 10 * 2)}
    root = cache / f"many-{'drawn' if source.drawn else 'photographs'}-{source.train}-{train}"
    if root.is_dir():
        return Folder(root, wanted["train"], wanted["validation"], source.drawn)
    draft = root.with_name(f".{root.name}.{os.getpid()}")
    jobs = []
    for split, count in wanted.items():
        for label, name in enumerate(CLASSES):
            (draft / split / name).mkdir(parents=True)
            originals = files(source.root / split / name)
            for n in range(count // 2):
                seed = [label, len(split), n]
                jobs.append((originals[n % len(originals)], draft / split / name / f"{n:06d}.jpg", seed))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(vary, *zip(*jobs, strict=True)):
            pass
    draft.rename(root)
    return Folder(root, wanted["train"], wanted["validation"], source.drawn)


def vary(original: Path, target: Path, seed: list[int]) -> None:
    """Write a random crop (85 to 95 % of each side) of an image, at most 20 % brighter or darker."""
    rng = np.random.default_rng(seed)
    with Image.open(original) as opened:
        image = opened.convert("RGB")
    width, height = (int(side * rng.uniform(0.85, 0.95)) for side in image.size)
    left, top = (int(rng.integers(0, full - part + 1)) for full, part in zip(image.size, (width, height), strict=True))
    cropped = image.crop((left, top, left + width, top + height))
    ImageEnhance.Brightness(cropped).enhance(rng.uniform(0.8, 1.2)).save(target, quality=QUALITY)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
