"""Decoding of image files, the same for validation, training and serving.

All three must use the same pixels, so every part of the package that reads an image file uses this module.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import Any, NamedTuple

import numpy as np
import PIL.ImageFile
from PIL import Image, TiffImagePlugin
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from experiments.errors import DataError
from experiments.images.colors import is_blank, to_rgb
from experiments.images.decoder_settings import DEFAULTS, MAX_PIXELS, DecoderSettings
from experiments.images.file_formats import CONVERT, CUT_SHORT, REPLACE, SEVERAL, ImageFile, parse, read_orientation
from experiments.images.plugins import FORMATS
from experiments.images.resizing import resize

# Part of every cache key: increase it whenever the same bytes would give other pixels or another validation result.
VERSION = 2

MAX_BYTES = 2**29  # largest size of a file
MEMORY = 2**31  # bytes that images may take while they are decoded, in all threads together

_MOST_SCANS = 30  # of a JPEG of the largest size; smaller ones may have more. Encoders write about ten
_MOST_STRIPS = 500_000  # of a TIFF
_MOST_PAGES = 16  # of a TIFF; all but one must be reduced copies
_RLE_BYTES = 2**23  # largest run-length encoded BMP, which Pillow decodes in Python

_JPEG_END = b"\xff\xd9"
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Messages of Pillow about valid files of a kind that it does not support.
_LAYOUTS = re.compile("unknown pixel mode|cannot handle|[Uu]nsupported")
# Gray TIFFs that Pillow's decoders can read, but that are missing in its table of layouts.
for _order, _white_is_zero in itertools.product((b"II", b"MM"), (0, 1)):
    TiffImagePlugin.OPEN_INFO.setdefault((_order, _white_is_zero, (1,), 1, (12,), ()), ("I;16", "I;12"))
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))

# Blocks of this size are returned to the operating system when they are freed. Pillow's default blocks of 16 MB stay
# allocated for the thread that used them.
Image.core.set_block_size(2**26)  # type: ignore[attr-defined]


class DecodedImage(NamedTuple):
    """A decoded image, and what is known of its file."""

    image: Image.Image  # mode RGB
    width: int  # pixels as stored in the file, before orientation
    height: int
    mode: str  # Pillow's, of the file: RGB, L, CMYK, ...
    warnings: list[str]  # phrases that continue a line which begins with the path of the file


def decode(content: bytes, settings: DecoderSettings = DEFAULTS) -> Image.Image:
    """Decode a whole image file.

    The EXIF orientation is applied, transparent pixels are blended with white, palettes, grays and CMYK become RGB, and
    16-bit grays are scaled to 8 bits. Color profiles are not applied.

    Args:
        content: The bytes of a file of one of FORMATS, recognized by content, whatever its name.
        settings: `gray_range` has the values of 16- and 32-bit grays that become black and white. None: 16-bit grays
            use the whole range of their type, if the image has a value of 2**14 or more; other such images are refused,
            except those whose header names the range (12-bit TIFF, PGM).

    Returns:
        The image, mode RGB, in its own size.

    Raises:
        DataError: If the file is empty, damaged, truncated, animated, of another format, has more than
            `settings.max_pixels` pixels, or if the meaning of its values is not known. The message names the problem
            and what to do about it; the caller adds the path.
    """
    with decoding(content, settings) as decoded:
        return decoded.image


@contextmanager
def decoding(content: bytes, settings: DecoderSettings = DEFAULTS) -> Iterator[DecodedImage]:
    """Decode a whole image file exactly as `decode` does, and count its memory until the block ends.

    All threads together decode no more at a time than fits into `MEMORY`, so resize the image within the block.
    """
    PIL.ImageFile.LOAD_TRUNCATED_IMAGES = False  # a notebook may have set it: damaged images would be filled with gray
    with _translated() as collected:
        _check_bytes(len(content))
        file = parse(content)
        source = FORMATS[file.format].open(io.BytesIO(file.content))
        _check_header(source, file, settings.max_pixels)
        cost = source.width * source.height * FORMATS[file.format].bytes_per_pixel
    with _memory(cost):
        with _translated() as more:
            (width, height), mode = source.size, source.mode
            if isinstance(source, TiffImageFile):  # its `size` has the orientation applied already
                width, height = source.tag_v2[TiffImagePlugin.IMAGEWIDTH], source.tag_v2[TiffImagePlugin.IMAGELENGTH]
            if file.ends:
                source = JpegImageFile(io.BytesIO(_with_end(file)))
            source.load()
            image = to_rgb(source, file, settings.gray_range)
            del source
            if file.orientation != 1:  # Pillow has applied the orientation of a TIFF while loading it
                image = image.transpose(_TRANSPOSITIONS[file.orientation])
            if is_blank(image):
                file.warnings.append(f"is blank: all its pixels are of the color {image.getpixel((0, 0))}")
        yield DecodedImage(image, width, height, mode, list(dict.fromkeys([*file.warnings, *collected, *more])))


def decode_resized(
    content: bytes, size: int, settings: DecoderSettings = DEFAULTS, warned: list[str] | None = None
) -> np.ndarray:
    """Decode an image file and resize it to a square [size, size, 3] uint8, within the memory that all threads share.

    See `decode`, also for the errors raised, and `resizing.resize`. `warned` receives the warnings about the file.
    """
    with decoding(content, settings) as decoded:
        if warned is not None:
            warned += decoded.warnings
        return resize(decoded.image, size, settings.resize)


def read(file: BufferedReader) -> bytes:
    """Return the content of an open image file; raise DataError, before reading, if it is larger than MAX_BYTES."""
    _check_bytes(os.fstat(file.fileno()).st_size)
    return file.read()


def _check_bytes(size: int) -> None:
    if size > MAX_BYTES:
        raise DataError(f"is too large ({size:,} bytes, at most {MAX_BYTES:,}); {CONVERT}")


# --- limits, errors and warnings


class _Memory:
    """A number of bytes that threads share.

    A thread that requests more than all of them waits until no other thread has any.
    """

    def __init__(self, size: int) -> None:
        self.size, self.used, self.changed = size, 0, threading.Condition()

    @contextmanager
    def __call__(self, wanted: int) -> Iterator[None]:
        wanted = min(wanted, self.size)
        with self.changed:
            self.changed.wait_for(lambda: self.used + wanted <= self.size)
            self.used += wanted
        try:
            yield
        finally:
            with self.changed:
                self.used -= wanted
                self.changed.notify_all()


_memory = _Memory(MEMORY)


@contextmanager
def _translated() -> Iterator[list[str]]:
    """Raise the errors of Pillow as DataError, and collect its warnings in this thread."""
    found: list[str] = []
    _thread_warnings.found = found
    try:
        yield found
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"is too large for Pillow ({error}); scale it down or remove it") from error
    except Exception as error:  # the errors of Pillow's plugins on damaged files have no common base class
        remedy = CONVERT if _LAYOUTS.search(str(error)) else REPLACE
        raise DataError(f"cannot be decoded ({type(error).__name__}: {error}); {remedy}") from error
    finally:
        _thread_warnings.found = None


class _ThreadWarnings(threading.local):
    """A replacement for the module `warnings` in Pillow's TIFF reader, with separate lists for each thread.

    All threads share the filters of `warnings`. With this class a warning reaches the thread that reads the file, where
    its path is known, and every warning is collected, not only the first of its kind.
    """

    found: list[str] | None = None

    def warn(self, message: str, *args: Any, **options: Any) -> None:
        if self.found is None:
            warnings.warn(message, *args, **options)
        else:
            self.found.append(f"has odd metadata ({message.strip()})")


# A process that serves a model imports a second copy of this module, which must use the first copy's replacement.
_present: Any = getattr(TiffImagePlugin, "warnings")  # noqa: B009
_thread_warnings: _ThreadWarnings = _present if hasattr(_present, "found") else _ThreadWarnings()
TiffImagePlugin.warnings = _thread_warnings  # type: ignore[assignment, attr-defined]


def _too_large(what: str, max_pixels: int) -> DataError:
    return DataError(
        f"is too large ({what}, at most {max_pixels:,}); scale it down or remove it, or raise data.max_pixels, which "
        "protects against files that would fill the memory"
    )


def _check_header(image: Image.Image, file: ImageFile, max_pixels: int) -> None:
    """Raise DataError if a file's header shows that the image cannot be used.

    What the header determines for decoding, such as the orientation of a WebP, is set in `file`.
    """
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(f"{width:,} x {height:,} pixels", max_pixels)
    if file.scans * width * height > _MOST_SCANS * max(max_pixels, MAX_PIXELS) and file.scans > 1:
        raise DataError(f"has {file.scans} scans, which would take minutes; {CONVERT}")
    if isinstance(image, TiffImageFile):
        _check_tiff(image, file, max_pixels)
    elif file.format in ("WEBP", "AVIF", "HEIC"):
        if getattr(image, "n_frames", 1) > 1:
            raise DataError(SEVERAL)
        # The EXIF of AVIF and HEIC as their plugins return it has what is left to do of the container's orientation.
        xmp = image.info.get("xmp", b"") if file.format == "WEBP" else b""
        file.orientation = read_orientation(image.info.get("exif") or b"", xmp, file.warnings)
    elif file.size not in (None, image.size):
        raise DataError(f"has two sizes: {image.size} in its header and {file.size} in its image data; {REPLACE}")
    elif isinstance(image, BmpImageFile) and image.info["compression"] in (1, 2) and len(file.content) > _RLE_BYTES:
        raise DataError(f"is a run-length encoded BMP of more than {_RLE_BYTES:,} bytes; {CONVERT}")


def _check_tiff(image: TiffImageFile, file: ImageFile, max_pixels: int) -> None:
    tags = image.tag_v2
    file.white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    if 50706 in tags or (tags.get(254, 0) & 1 and 330 in tags):
        raise DataError(f"is a raw photograph (DNG or alike), whose first image is only a preview; {CONVERT}")
    bits, format = tags.get(258, (1,)), tags.get(339, (1,))
    file.bits = max(bits)
    if file.bits == 8 and 2 in format:
        raise DataError(f"holds signed 8-bit values; {CONVERT}")
    if TiffImagePlugin.PHOTOMETRIC_INTERPRETATION not in tags and "jpeg" not in image.info["compression"]:
        raise DataError(f"leaves open whether 0 is black or white (PhotometricInterpretation is missing); {CONVERT}")
    if image.mode == "RGBA" and TiffImagePlugin.EXTRASAMPLES not in tags:
        raise DataError(
            "has a fourth band that may be alpha or not (near-infrared, say): ExtraSamples is missing; save it as RGB"
        )
    for tag in (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS):
        if len(tags.get(tag, ())) > _MOST_STRIPS:
            raise DataError(f"has more than {_MOST_STRIPS:,} strips or tiles; {CONVERT}")
    if tags.get(TiffImagePlugin.TILEWIDTH, 0) * tags.get(TiffImagePlugin.TILELENGTH, 0) > max_pixels:
        raise _too_large("the pixels of one of its tiles", max_pixels)
    if tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) > len(image.getbands()) and image.mode in ("RGB", "L", "P", "CMYK"):
        file.warnings.append("has bands beside its colors that are no alpha, and are not used")
    if image.is_animated:
        for page in range(1, _MOST_PAGES + 1):
            try:
                image.seek(page)
            except Exception:  # no further page, or an invalid one
                break
            if not image.tag_v2.get(254, 0) & 1:  # not a reduced copy of the first
                raise DataError(SEVERAL)
        else:
            raise DataError(SEVERAL)
        image.seek(0)


def _with_end(file: ImageFile) -> bytes:
    """Return a JPEG with an end marker inserted where its pixels end and other data begin.

    The pixels end at the first place from which on the bytes that follow do not change them, while they would a few
    bytes earlier. Only places where other data seem to begin are tried, so that a file that was truncated and padded is
    not taken for a complete one.
    """
    for earliest, latest in file.ends:
        if _all_pixels_by(file.content, latest):
            if _all_pixels_by(file.content, earliest - 4):
                break
            return file.content[:latest] + _JPEG_END
    raise DataError(CUT_SHORT)


def _all_pixels_by(content: bytes, end: int) -> bool:
    """Return whether a JPEG's last rows are the same whatever bytes follow the position `end`."""
    last_rows = []
    for filling in (b"\0", b"\xaa"):
        image = JpegImageFile(io.BytesIO(content[:end] + 64 * filling + _JPEG_END))
        image.load()
        last_rows.append(image.crop((0, max(0, image.height - 32), *image.size)).tobytes())
    return last_rows[0] == last_rows[1]
