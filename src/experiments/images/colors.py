"""Conversion of decoded images to 8-bit RGB."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from experiments.errors import DataError
from experiments.images.decoder_settings import GrayRange
from experiments.images.file_formats import CONVERT, ImageFile

_STRIP = 2**20  # pixels that are converted at a time
_FEW_LEVELS = 3  # an image is blank if its levels differ by at most this
# Detectors have 10, 12 or 14 bits. Their grays, stored in 16 bits, look dark, and the file does not contain the factor.
_FULL = 2**14
_GRAY_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_TRANSPARENT = "is fully transparent; remove its alpha channel, or remove the file"


def to_rgb(source: Image.Image, file: ImageFile, gray_range: GrayRange | None) -> Image.Image:
    """Return an image, as Pillow has loaded it, as 8-bit RGB; `file` receives warnings.

    Raises:
        DataError: If the image is fully transparent, or if the meaning of its values is not known.
    """
    if source.mode in _GRAY_MODES:
        return _rgb_of_gray(source, gray_range or _known_range(source, file), file.white_is_zero)
    _check_16_bit_colors(source, file)
    if source.has_transparency_data:
        return _on_white(source, file)
    if source.mode == "RGB":
        return source
    return _in_strips(source, lambda strip: strip.convert("RGB"))


def _strips(source: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield an image in horizontal strips, each with its top row."""
    rows = max(1, _STRIP // source.width)
    for top in range(0, source.height, rows):
        yield top, source.crop((0, top, source.width, min(top + rows, source.height)))


def _in_strips(source: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image to RGB strip by strip, which takes little memory."""
    result = Image.new("RGB", source.size)
    for top, strip in _strips(source):
        result.paste(convert(strip), (0, top))
    return result


def _on_white(source: Image.Image, file: ImageFile) -> Image.Image:
    # Pillow scales the grays of such a file to 8 bits, but not the gray that is transparent.
    if file.format == "PNG" and source.mode == "L" and file.bits < 8:
        source.info["transparency"] = source.info["transparency"] * 255 // (2**file.bits - 1)
    opaque = 0

    def convert(strip: Image.Image) -> Image.Image:
        nonlocal opaque
        strip = strip.convert("LA").convert("RGBA") if strip.mode == "La" else strip.convert("RGBA")
        opaque = max(opaque, strip.getextrema()[-1][1])  # type: ignore[index]
        return Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB")

    result = _in_strips(source, convert)
    if opaque:
        return result
    if file.format in ("BMP", "TGA"):  # other readers of these ignore such an alpha channel, too
        file.warnings.append("has an alpha channel that is 0 everywhere: it is not used")
        return _in_strips(source, lambda strip: strip.convert("RGB"))
    raise DataError(_TRANSPARENT)


def _check_16_bit_colors(source: Image.Image, file: ImageFile) -> None:
    """Raise DataError where Pillow, which keeps the upper 8 of 16 bits, may have kept the wrong ones."""
    if file.bits != 16 or source.mode not in ("RGB", "RGBA"):
        return
    if "transparency" in source.info:
        raise DataError(f"has 16-bit colors of which one is transparent, which is not read; {CONVERT}")
    if max(high for _, high in source.getextrema()[:3]) < _FULL // 256:  # type: ignore[misc]
        problem = f"has 16-bit colors that use no more than {_FULL.bit_length() - 1} bits, so that it would be dark"
        raise DataError(f"{problem}; scale it to 8 bits a channel, or remove it")


def _rgb_of_gray(source: Image.Image, gray_range: GrayRange, white_is_zero: bool) -> Image.Image:
    """Convert grays of 16 or 32 bits to 8-bit RGB."""
    low, high = gray_range
    transparent, opaque = source.info.get("transparency"), False

    def convert(strip: Image.Image) -> Image.Image:
        nonlocal opaque
        values = np.asarray(strip)
        if not low <= values.min() or not values.max() <= high:  # refuses NaN, too
            problem = f"has grays from {values.min():g} to {values.max():g}, beyond data.gray_range=[{low:g},{high:g}]"
            raise DataError(f"{problem}; widen the range, or remove it")
        scaled = ((values - np.float64(low)) * (255 / (high - low)) + 0.5).astype(np.uint8)
        if white_is_zero:
            scaled = 255 - scaled
        if transparent is not None:
            scaled[values == transparent] = 255
            opaque = opaque or bool((values != transparent).any())
        return Image.fromarray(scaled).convert("RGB")

    result = _in_strips(source, convert)
    if transparent is not None and not opaque:
        raise DataError(_TRANSPARENT)
    return result


def _known_range(source: Image.Image, file: ImageFile) -> GrayRange:
    """Return which grays are black and white, as far as the file itself determines it.

    The smallest and largest value are not used: a range of its own for each image would change the meaning of a level
    from one image to the next. Nor are values beside the pixels: PNG's sBIT describes values that are scaled already,
    and TIFF's MaxSampleValue is by its specification not meant for display.
    """
    if file.white is not None:
        return 0, file.white
    if file.bits == 12:
        return 0, 4095
    extremes = [(values.min(), values.max()) for values in (np.asarray(strip) for _, strip in _strips(source))]
    smallest, largest = min(low for low, _ in extremes), max(high for _, high in extremes)
    if source.mode not in ("I", "F") and largest >= _FULL:
        return 0, 65_535
    raise DataError(
        f"holds {file.bits}-bit grays from {smallest:g} to {largest:g}, and nothing "
        f"says which values are black and white; set the range of the data set, such as 'data.gray_range=[0,4095]' for "
        f"12 bits, or {CONVERT}"
    )


def is_blank(image: Image.Image) -> bool:
    """Return whether all pixels have almost the same color."""
    few = image.resize((8, 8), Image.Resampling.NEAREST)  # compared first, because they decide for most images
    bands = (band for pixels in (few, image) for band in pixels.getextrema())
    return all(high - low <= _FEW_LEVELS for low, high in bands)  # type: ignore[misc]
