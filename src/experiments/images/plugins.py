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


class FileFormat(NamedTuple):
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
    "JPEG": FileFormat(JpegImageFile, 16, (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")),
    "PNG": FileFormat(PngImageFile, 12, (".png",)),
    "BMP": FileFormat(BmpImageFile, 12, (".bmp",)),
    "WEBP": FileFormat(WebPImageFile, 20, (".webp",)),
    "TIFF": FileFormat(_TiffFile, 16, (".tif", ".tiff")),
    "PPM": FileFormat(PpmImageFile, 16, (".ppm", ".pgm", ".pbm", ".pnm")),
    "TGA": FileFormat(TgaImageFile, 12, (".tga",)),
    "JPEG2000": FileFormat(Jpeg2KImageFile, 40, (".jp2", ".j2k", ".j2c", ".jpf", ".jpx")),
    "AVIF": FileFormat(AvifImageFile, 30, (".avif",)),
    "HEIC": FileFormat(_open_heic, 30, (".heic", ".heif")),
}
SUFFIXES = tuple(suffix for format in FORMATS.values() for suffix in format.suffixes)
