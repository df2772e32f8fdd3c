"""Resizing of images of any proportions to the square that a network takes, and the way back."""

from __future__ import annotations

import numpy as np
from PIL import Image

from experiments.images.decoder_settings import Resize

PAD_COLOR = "black"  # as Keras's pad_to_aspect_ratio, so that users of an exported model can do the same with it
_BILINEAR = Image.Resampling.BILINEAR


def resize(image: Image.Image, size: int, how: Resize = "squash") -> np.ndarray:
    """Resize an RGB image to a square: bilinear, with antialiasing.

    Args:
        image: An image from `decoder.decode`.
        size: Width and height of the result in pixels.
        how: "squash": the whole image, its proportions not kept, as in the tutorial. "pad": the whole image, its
            proportions kept, centered on black. "crop": its largest centered square. The last two are Keras's
            `pad_to_aspect_ratio` and `crop_to_aspect_ratio`.

    Returns:
        [size, size, 3] uint8, RGB.
    """
    if how == "pad":
        return np.asarray(fit(image, size, PAD_COLOR), dtype=np.uint8)
    box = _centered_square(image.size) if how == "crop" else None
    return np.asarray(image.resize((size, size), _BILINEAR, box=box), dtype=np.uint8)


def fit(image: Image.Image, size: int, color: str) -> Image.Image:
    """Resize an RGB image to fit a square, its proportions kept, and center it on a color."""
    canvas = Image.new("RGB", (size, size), color)
    canvas.paste(thumbnail(image, size), _centered_in_square(image.size, size))
    return canvas


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """Resize an image in its proportions so that its longer side has `side` pixels."""
    left, top, right, bottom = _centered_in_square(image.size, side)
    return image.resize((right - left, bottom - top), _BILINEAR)


def map_back(values: np.ndarray, size: tuple[int, int], how: Resize) -> np.ndarray:
    """Map values for the pixels of a resized image, such as a heatmap, to the proportions of the original image.

    Args:
        values: [S, S] float32, for the pixels that `resize` returns.
        size: Width and height of the original image, or of a thumbnail of it.
        how: See `resize`.

    Returns:
        [height, width] float32; NaN where `how="crop"` has cut off the image.
    """
    image = Image.fromarray(values.astype("float32"))
    if how == "squash":
        return np.asarray(image.resize(size, _BILINEAR))
    if how == "pad":
        return np.asarray(image.resize(size, _BILINEAR, box=_centered_in_square(size, len(values))))
    left, top, right, bottom = _centered_square(size)
    mapped = np.full(size[::-1], np.nan, "float32")
    mapped[top:bottom, left:right] = image.resize((right - left, bottom - top), _BILINEAR)
    return mapped


def _centered_square(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the largest centered square of an image: left, top, right, bottom."""
    width, height = size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _centered_in_square(size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """Return where an image of this size, scaled to fit a square, lies in the square: left, top, right, bottom."""
    width, height = (max(1, round(side * length / max(size))) for length in size)
    left, top = (side - width) // 2, (side - height) // 2
    return left, top, left + width, top + height
