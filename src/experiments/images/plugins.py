"""The image formats that are read: Pillow's plugin of each, its file name suffixes, and the memory it takes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TgaImagePlugin import TgaImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from experiments.errors import DataError
from experiments.images.file_formats import CONVERT


class Format(NamedTuple):
    open: Callable[[io.BytesIO], Image.Image]
    # The most memory that Pillow and the decoder use for a pixel: the decoded image, its RGB, and the libraries'
    # buffers (all coefficients of a progressive JPEG, two canvases of a WebP, a strip of a TIFF, planes of the others).
    bytes_per_pixel: int
    suffixes: tuple[str, ...]  # lower case; matched case-insensitively


class _TiffFile(TiffImageFile):
    """A TIFF without Pillow's own limit: `decoder` has compared its tiles with `data.max_pixels`."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.core.new(self.mode, self._tile_size)  # type: ignore[attr-defined]
        super().load_prepare()  # checks a size only if it has to allocate


def _open_heic(file: io.BytesIO) -> Image.Image:
    try:
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError:
        needed = "the package pillow-heif (pip install 'image-experiments[heif]')"
        raise DataError(f"is a HEIC image, which needs {needed}; install it, or {CONVERT}") from None
    image: Image.Image = HeifImageFile(file)
    return image


FORMATS = {  # by the names that `file_formats.parse` gives
    "JPEG": Format(JpegImageFile, 16, (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")),
    "PNG": Format(PngImageFile, 12, (".png",)),
    "BMP": Format(BmpImageFile, 12, (".bmp",)),
    "WEBP": Format(WebPImageFile, 20, (".webp",)),
    "TIFF": Format(_TiffFile, 16, (".tif", ".tiff")),
    "PPM": Format(PpmImageFile, 16, (".ppm", ".pgm", ".pbm", ".pnm")),
    "TGA": Format(TgaImageFile, 12, (".tga",)),
    "JPEG2000": Format(Jpeg2KImageFile, 40, (".jp2", ".j2k", ".j2c", ".jpf", ".jpx")),
    "AVIF": Format(AvifImageFile, 30, (".avif",)),
    "HEIC": Format(_open_heic, 30, (".heic", ".heif")),
}
SUFFIXES = tuple(suffix for format in FORMATS.values() for suffix in format.suffixes)
