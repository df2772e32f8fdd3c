"""The one decoder: whatever reads a picture (checking, training, serving) reads it here; all see the same pixels."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from experiments.types import DataError

VERSION = 1  # part of every cache key: raise it whenever the same bytes would give other pixels or another verdict

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # lower case; matched case-insensitively
MAX_PIXELS = 89_478_485  # where Pillow starts to warn of a decompression bomb (a quarter of a gigabyte of RGB)

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")  # GIF is recognised only to say what to do about it
_REPLACE = "replace it by a whole copy or remove it"
_CONVERT = "convert it to PNG or JPEG, or remove it"
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)  # not stuffed bytes, fill bytes, restart markers
_JPEG_END = 0xD9
_PNG_END = b"IEND\xaeB`\x82"  # the last chunk's name and checksum


def decode(content: bytes) -> Image.Image:
    """Decodes a whole picture file.

    The EXIF orientation is applied, transparency is laid on white, palettes, greys and CMYK become RGB, and 16-bit
    greys are scaled to 8 bits. Colour profiles are not applied.

    Args:
        content: The bytes of a JPEG, PNG, BMP, WEBP or TIFF file, recognised by content, whatever its name.

    Returns:
        The picture, mode RGB, in its own size.

    Raises:
        DataError: If the file is empty, damaged, cut short, animated, of another format, or has more than
            `MAX_PIXELS` pixels. The message says what is wrong and what to do; the caller knows the path.
    """
    return _decode(content)[0]


def probe(content: bytes) -> tuple[Image.Image, tuple[int, int, str, str]]:
    """Decodes a whole picture file, exactly as `decode`, and tells what it was.

    Returns:
        The picture, as `decode`; and its width and height in pixels as stored (before orientation), Pillow's name of
        the file's mode ("RGB", "L", "CMYK", ...) and of its format ("JPEG", "PNG", ...; "MPO" is a JPEG with further
        pictures behind the first).

    Raises:
        DataError: As `decode`.
    """
    return _decode(content)


def resize(image: Image.Image, size: int) -> np.ndarray:
    """Resizes an RGB picture to a square: bilinear, with antialiasing, the aspect ratio not kept (as the tutorial).

    Args:
        image: A picture as `decode` returns it.
        size: Width and height wanted, in pixels.

    Returns:
        [size, size, 3] uint8, RGB.
    """
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), dtype=np.uint8)


def _decode(content: bytes) -> tuple[Image.Image, tuple[int, int, str, str]]:
    if not content:
        raise DataError(f"is empty; {_REPLACE}")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _refuse(image)
            facts = (*_stored_size(image), image.mode, image.format or "")
            image.load()
            _require_end(content, image.format)
            # Pillow turns a TIFF while loading it; for the other formats it is done here.
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image), facts
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"is no JPEG, PNG, BMP, WEBP or TIFF picture, or its header is damaged; {_REPLACE}") from error
    except Image.DecompressionBombError as error:
        raise DataError(_too_large(str(error))) from error
    except Exception as error:  # what Pillow's plugins raise on damaged files has no common base
        raise DataError(f"cannot be decoded ({type(error).__name__}: {error}); {_REPLACE}") from error


def _refuse(image: Image.Image) -> None:
    """Raises for what can be told from a file's header."""
    if image.format == "GIF":
        raise DataError(f"is a GIF; {_CONVERT}")
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(_too_large(f"{width} x {height} pixels"))
    frames = getattr(image, "n_frames", 1)
    # A phone's MPO is a JPEG followed by a preview or a depth map: its first picture is the picture.
    if frames > 1 and image.format != "MPO":
        raise DataError(f"is animated or has several pages ({frames}); save one of them as PNG or JPEG, or remove it")


def _too_large(what: str) -> str:
    return f"is too large ({what}; at most {MAX_PIXELS} pixels); scale it down or remove it"


def _stored_size(image: Image.Image) -> tuple[int, int]:
    if isinstance(image, TiffImageFile):  # whose `size` is told as turned already
        return int(image.tag_v2[IMAGEWIDTH]), int(image.tag_v2[IMAGELENGTH])
    return image.size


def _require_end(content: bytes, format: str | None) -> None:
    """Raises if the file's end is missing where Pillow is content with fewer bytes: about one JPEG in twenty loads
    without its last two bytes, and any PNG without its last twenty."""
    if format in ("JPEG", "MPO"):
        complete = _jpeg_ends(content)
    elif format == "PNG":
        complete = _PNG_END in content
    else:
        complete = True
    if not complete:
        raise DataError(f"is cut short: the mark of its end is missing; {_REPLACE}")


def _jpeg_ends(content: bytes) -> bool:
    """Walks the segments, since an embedded preview has an end mark of its own."""
    position = 2
    while marker := _JPEG_MARKER.search(content, position):
        if marker.group()[-1] == _JPEG_END:
            return True
        # A segment is skipped by its length; after a scan's header the search runs over its data.
        position = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return False


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32_767) // 65_535
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError(f"holds 32-bit greys, whose range is not known; {_CONVERT}")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
