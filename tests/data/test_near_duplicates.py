from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from experiments.data import near_duplicates
from experiments.data.near_duplicates import find_near_duplicates, thumbnail


def scene(seed: int) -> Image.Image:
    """Draw 30 ellipses and rectangles of random places, sizes and colors."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (200, 150), tuple(rng.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for number in range(30):
        x, y, width, height = (rng.random(4) * (200, 150, 60, 60)).tolist()
        draw = pen.ellipse if number % 2 else pen.rectangle
        draw((x - width / 2, y - height / 2, x + width / 2, y + height / 2), tuple(rng.integers(0, 256, 3).tolist()))
    return image


def encode(image: Image.Image, quality: int = 90) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def pairs(images: list[Image.Image]) -> set[tuple[int, int]]:
    return {pair[:2] for pair in find_near_duplicates(np.stack([thumbnail(image) for image in images]))}


def mirror(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": lambda image: encode(image, 30),
    "smaller": lambda image: encode(image.resize((60, 45))),
    "larger": lambda image: encode(image.resize((400, 300))),
    "squashed": lambda image: encode(image.resize((150, 150))),
    "corner": lambda image: encode(image.crop((18, 12, 200, 150))),
    "center": lambda image: encode(image.crop((8, 6, 190, 142))),
    "mirrored": lambda image: encode(mirror(image)),
    "darker": lambda image: encode(ImageEnhance.Brightness(image).enhance(0.7)),
    "brighter": lambda image: encode(ImageEnhance.Brightness(image).enhance(1.3)),
    "gray": lambda image: encode(image.convert("L").convert("RGB")),
    "several": lambda image: encode(
        ImageEnhance.Brightness(mirror(image.crop((0, 8, 188, 150))).resize((80, 80))).enhance(0.8), 40
    ),
}


@pytest.mark.parametrize("name", list(ALTERATIONS))
def test_an_altered_copy_is_found_and_nothing_else(name: str) -> None:
    images = [scene(seed) for seed in range(40)]
    copies = [ALTERATIONS[name](image) for image in images[:8]]
    assert pairs([*images, *copies]) == {(index, 40 + index) for index in range(8)}


def test_a_mirrored_copy_is_called_so() -> None:
    first, second = find_near_duplicates(
        np.stack([thumbnail(image) for image in (scene(0), scene(1), mirror(scene(0)), scene(1))])
    )
    found = {first[:2]: first.mirrored, second[:2]: second.mirrored}
    assert found == {(0, 2): True, (1, 3): False}
    assert min(first.similarity, second.similarity) > 0.99


def test_two_images_alone_are_compared_and_one_or_none_is_no_error() -> None:
    assert pairs([scene(0), ALTERATIONS["corner"](scene(0))]) == {(0, 1)}
    assert pairs([scene(0), scene(1)]) == set()
    assert pairs([scene(0)]) == set()
    assert find_near_duplicates(np.zeros((0, 32, 32, 3), "uint8")) == []


def test_blank_images_are_copies_of_nothing() -> None:
    rng = np.random.default_rng(0)
    blank = [Image.new("RGB", (50, 50), tuple(rng.integers(0, 256, 3).tolist())) for _ in range(30)]
    ramp = np.linspace(0, 255, 100)[None, :, None] * np.ones((100, 1, 3))
    ramps = [Image.fromarray((ramp * scale).astype("uint8")) for scale in (0.5, 0.7, 1.0)]
    assert pairs([*blank, *ramps]) == set()


def test_other_colors_make_another_image_and_gray_ones_do_not() -> None:
    image = scene(0)
    red, green, blue = image.split()
    swapped = Image.merge("RGB", (blue, red, green))
    assert pairs([image, swapped, scene(1)]) == set()
    assert pairs([image, image.convert("L").convert("RGB"), scene(1)]) == {(0, 1)}


def test_discs_on_a_plain_ground_are_not_called_crops_of_each_other() -> None:
    def disc(x: float, y: float, radius: float) -> Image.Image:
        image = Image.new("RGB", (100, 100), "white")
        ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), "black")
        return image

    places = [(30, 30, 12), (34, 30, 12), (38, 34, 14), (60, 60, 20), (66, 60, 22), (50, 70, 10)]
    assert pairs([disc(*place) for place in places]) == set()
    assert pairs([*(disc(*place) for place in places), encode(disc(*places[0]), 40)]) == {(0, 6)}


def test_images_that_are_all_alike_must_agree_without_a_crop() -> None:
    """As X-rays of one view, or digits: one scene with a small difference in each."""
    base, rng = np.asarray(scene(0), float), np.random.default_rng(0)
    changed = [base + np.kron(rng.normal(0, 25, (15, 20, 1)), np.ones((10, 10, 1))) for _ in range(60)]
    images = [Image.fromarray(pixels.clip(0, 255).astype("uint8")) for pixels in changed]
    assert pairs(images) == set()
    assert pairs([*images, ALTERATIONS["jpeg"](images[7])]) == {(7, 60)}


def test_many_copies_of_one_image_are_joined_by_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [scene(seed) for seed in range(3)]
    copies = [encode(images[1], quality) for quality in range(30, 95, 3)]
    joined = {1}
    found = pairs([*images, *copies])
    for _ in found:
        joined |= {path for pair in found if joined & set(pair) for path in pair}
    assert joined == {1, *range(3, 3 + len(copies))}
    monkeypatch.setattr(near_duplicates, "_AT_ONCE", 7)
    assert pairs([*images, *copies]) == found


@pytest.mark.parametrize("count, seconds", [(4_000, 10), pytest.param(20_000, 60, marks=pytest.mark.slow)])
def test_thousands_of_images_are_searched_in_seconds(count: int, seconds: float) -> None:
    rng = np.random.default_rng(0)
    images = np.repeat(np.repeat(rng.integers(0, 256, (count, 8, 8, 3), dtype="uint8"), 4, axis=1), 4, axis=2)
    images[-1] = images[3][:, ::-1]
    began = time.process_time()
    assert [pair[:2] for pair in find_near_duplicates(images)] == [(3, count - 1)]
    assert time.process_time() - began < seconds
