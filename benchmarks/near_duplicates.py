"""Measure which altered copies of images are found, which other pairs are reported, and the time.

    python -m benchmarks.near_duplicates FOLDER [--images N]

Every fifth image of FOLDER gets one copy: the alterations take turns. The reported pairs of two originals are listed,
to be looked at: published data sets have copies of their own. With --images the originals are also made N images, each
the mixture of two of them at different places, and the time of the search among all images is measured.
"""

from __future__ import annotations

import argparse
import io
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from experiments.data.listing import is_image
from experiments.data.near_duplicates import NearDuplicate, find_near_duplicates, thumbnail
from experiments.images import decoder

Alteration = Callable[[Image.Image, np.random.Generator], Image.Image]
EVERY = 5  # one copy for so many images
SAVED = 95  # JPEG quality of the copies whose encoding is not what is altered


def reencode(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image as a JPEG of quality 30 to 90."""
    return encoded(image, int(rng.integers(30, 91)))


def resize(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image in 0.3 to 2 times its size."""
    scale = np.exp(rng.uniform(np.log(0.3), np.log(2)))
    return image.resize([max(8, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image without 2 to 10 % of its width and of its height, at random places."""
    sides = np.array(image.size)
    kept = rng.uniform(0.9, 0.98, 2) * sides
    corner = rng.uniform(0, sides - kept)
    left, top, right, bottom = (round(float(place)) for place in (*corner, *(corner + kept)))
    return image.crop((left, top, right, bottom))


def mirror(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the mirrored image."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def brighten(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image 0.7 to 1.3 times as bright."""
    return ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.3))


def to_gray(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image in gray."""
    return image.convert("L").convert("RGB")


def combine(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image resized, cropped, brightened and encoded again; half are mirrored, a quarter is gray."""
    image = brighten(crop(resize(image, rng), rng), rng)
    if rng.random() < 0.5:
        image = mirror(image, rng)
    if rng.random() < 0.25:
        image = to_gray(image, rng)
    return reencode(image, rng)


ALTERATIONS: dict[str, Alteration] = {
    "JPEG quality 30 to 90": reencode,
    "resized by 0.3 to 2": resize,
    "2 to 10 % cropped": crop,
    "mirrored": mirror,
    "brightness 0.7 to 1.3": brighten,
    "gray": to_gray,
    "several at a time": combine,
}


def encoded(image: Image.Image, quality: int) -> Image.Image:
    """Return the image written as a JPEG and read again."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def read(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the thumbnails of the originals, those of the copies, and the alteration of each copy."""
    names = list(ALTERATIONS)

    def thumbnails(number: int) -> list[np.ndarray]:
        image = decoder.decode(files[number].read_bytes())
        if number % EVERY:
            return [thumbnail(image)]
        altered = ALTERATIONS[names[number // EVERY % len(names)]](image, np.random.default_rng(number))
        return [thumbnail(image), thumbnail(encoded(altered, SAVED))]

    with ThreadPoolExecutor() as pool:
        made = list(pool.map(thumbnails, range(len(files))))
    copies = [images[1] for images in made[::EVERY]]
    kinds = [names[number % len(names)] for number in range(len(copies))]
    return np.stack([images[0] for images in made]), np.stack(copies), kinds


def mixtures(originals: np.ndarray, count: int) -> np.ndarray:
    """Return [count, H, W, 3] uint8: each the mean of two of the originals, one of them shifted."""
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, len(originals), (count, 2))
    shifts = rng.integers(0, originals.shape[1], (count, 2))
    made = np.empty((count, *originals.shape[1:]), "uint8")
    for row, (first, second) in enumerate(pairs):
        shifted = np.roll(originals[second], tuple(shifts[row]), (0, 1))
        made[row] = (originals[first] * rng.uniform(0.3, 0.7) + shifted * 0.5).clip(0, 255)
    return made


def search(*thumbnails: np.ndarray) -> tuple[list[NearDuplicate], float]:
    """Return the near-duplicates among all thumbnails and the seconds that the search took."""
    began = time.perf_counter()
    pairs = find_near_duplicates(np.concatenate(thumbnails))
    return pairs, time.perf_counter() - began


def copies_found(pairs: Sequence[NearDuplicate], originals: int, copies: int) -> list[bool]:
    """Return for each copy, which `search` has after all originals, whether it is paired with its original."""
    known = {pair[:2] for pair in pairs}
    return [(number * EVERY, originals + number) in known for number in range(copies)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.near_duplicates")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=0)
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.folder.rglob("*") if is_image(path.name))
    originals, copies, kinds = read(files)
    pairs, seconds = search(originals, copies)
    own = {pair[:2]: pair for pair in pairs if pair.second < len(files)}
    found = copies_found(pairs, len(files), len(copies))
    print(f"{len(files)} images and {len(copies)} copies, searched in {seconds:.1f} s")
    totals, hits = Counter(kinds), Counter(kind for kind, hit in zip(kinds, found, strict=True) if hit)
    for kind in ALTERATIONS:
        print(f"  {kind:24}{hits[kind]:4} of {totals[kind]} found")
    print(f"pairs of two originals: {len(own)}")
    for pair in own.values():
        places = (files[index].relative_to(arguments.folder) for index in pair[:2])
        print(f"  {pair.similarity:.3f}{' mirrored' if pair.mirrored else ''}", *places, sep="  ")
    if arguments.images:
        filling = mixtures(originals, arguments.images - len(originals) - len(copies))
        pairs, seconds = search(originals, copies, filling)
        hit = sum(copies_found(pairs, len(files), len(copies)))
        print(f"among {arguments.images} images: {hit} of {len(copies)} copies found, searched in {seconds:.1f} s")


if __name__ == "__main__":
    main()
