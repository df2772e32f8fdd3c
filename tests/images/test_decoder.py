"""Every image file becomes the same RGB pixels everywhere, or an error that says what to do."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from experiments.errors import DataError
from experiments.images import decoder
from experiments.images.decoder_settings import DecoderSettings
from experiments.images.file_formats import parse
from experiments.images.resizing import resize

WIDTH, HEIGHT = 64, 48
ORIENTATION = 0x0112


def drawn() -> Image.Image:
    """Red on the left, blue on the right, a green bar at the top."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, : WIDTH // 2, 0] = 250
    pixels[:, WIDTH // 2 :, 2] = 250
    pixels[:16] = (0, 250, 0)
    return Image.fromarray(pixels)


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(content: bytes) -> np.ndarray:
    image = decoder.decode(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def facts(content: bytes) -> tuple[int, int, str]:
    with decoder.decoding(content) as decoded:
        return decoded.width, decoded.height, decoded.mode


def warned(content: bytes) -> list[str]:
    with decoder.decoding(content) as decoded:
        return decoded.warnings


def assert_alike(found: np.ndarray, expected: Image.Image) -> None:
    """As close as a lossy format comes, which blurs where colours meet."""
    assert found.shape == (expected.height, expected.width, 3)
    assert np.abs(found.astype(int) - np.asarray(expected).astype(int)).mean() < 5


FORMATS = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("BMP", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
]


@pytest.mark.parametrize(("format", "options"), FORMATS)
def test_formats(format: str, options: dict[str, Any]) -> None:
    content = encode(drawn(), format, **options)
    assert_alike(pixels(content), drawn())
    assert facts(content) == (WIDTH, HEIGHT, "RGB") and parse(content).format == format


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    expected = drawn().transpose(turns[orientation]) if orientation in turns else drawn()
    options = {"lossless": True} if format == "WEBP" else {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    content = encode(drawn(), format, exif=exif, **options)
    np.testing.assert_allclose(pixels(content).astype(int), np.asarray(expected).astype(int), atol=10)
    assert facts(content)[:2] == (WIDTH, HEIGHT)  # as stored


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_in_xmp_is_applied_where_exif_has_none(format: str) -> None:
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    options: dict[str, Any] = {"xmp": xmp.encode()}
    if format == "PNG":
        options = {"pnginfo": PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
    assert decoder.decode(encode(drawn(), format, **options)).size == (HEIGHT, WIDTH)
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    assert decoder.decode(encode(drawn(), format, **options, exif=exif)).size == (WIDTH, HEIGHT)


def test_the_first_exif_of_a_jpeg_counts() -> None:
    segments = []
    for orientation in (6, 3):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        body = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
        segments.append(b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body)
    content = encode(drawn(), "JPEG")
    assert decoder.decode(content[:2] + b"".join(segments) + content[2:]).size == (HEIGHT, WIDTH)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_on_white(format: str) -> None:
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (200, 0, 0, 128))
    image.putpixel((1, 0), (0, 0, 0, 0))
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    np.testing.assert_allclose(pixels(encode(image, format, **options)), [[[227, 127, 127], [255, 255, 255]]], atol=1)


def test_grey_with_alpha_and_palette_with_transparency() -> None:
    gray = Image.new("LA", (2, 1), (0, 0))
    gray.putpixel((0, 0), (100, 255))
    np.testing.assert_array_equal(pixels(encode(gray)), [[[100] * 3, [255] * 3]])
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(pixels(encode(palette)), [[[10, 20, 30], [200, 100, 50]]])
    np.testing.assert_array_equal(pixels(encode(palette, transparency=0)), [[[255, 255, 255], [200, 100, 50]]])


def test_palette_with_transparency_in_bytes_does_not_warn() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(pixels(encode(palette, transparency=b"\x00\x80")), [[[255] * 3, [227, 177, 152]]])


def test_grey_and_bilevel() -> None:
    np.testing.assert_array_equal(pixels(encode(Image.new("L", (1, 1), 77))), [[[77] * 3]])
    np.testing.assert_array_equal(pixels(encode(Image.new("1", (1, 1), 1))), [[[255] * 3]])


def test_cmyk() -> None:
    content = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    np.testing.assert_allclose(pixels(content)[0, 0], (255, 0, 0), atol=4)
    assert facts(content) == (8, 8, "CMYK")


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_greys_are_scaled(format: str) -> None:
    levels = np.array([[0, 257, 1000, 32768, 65535]], np.uint16)
    content = encode(Image.fromarray(levels), format)
    np.testing.assert_array_equal(pixels(content)[0, :, 0], [0, 1, 4, 128, 255])
    assert facts(content)[2] == "I;16"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged TIFF tags
@pytest.mark.parametrize("missing", ["2 bytes", "half"])
@pytest.mark.parametrize("image", [drawn(), noise()], ids=["flat", "noise"])
@pytest.mark.parametrize(("format", "options"), FORMATS)
def test_truncated_files_are_errors(
    format: str, options: dict[str, Any], image: Image.Image, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a notebook has let Pillow fill what is missing with gray."""
    content = encode(image, format, **options)
    cut = content[:-2] if missing == "2 bytes" else content[: len(content) // 2]
    for read in (decoder.decode, facts):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        with pytest.raises(DataError, match="; replace it by a whole copy or remove it"):
            read(cut)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_every_cut_of_a_jpeg_is_an_error() -> None:
    small = Image.new("RGB", (16, 16), "red")
    exif = Image.Exif()
    exif[0x010E] = "has an end mark \xff\xd9 of its own"
    content = encode(drawn().resize((16, 16)), "JPEG", exif=exif, comment=encode(small, "JPEG"))
    decoder.decode(content)
    decoder.decode(content + b"\xff\xda trailing \xff")  # complete, whatever follows
    for length in range(len(content)):
        with pytest.raises(DataError):
            decoder.decode(content[:length])


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_animations_are_errors(format: str) -> None:
    content = encode(drawn(), format, save_all=True, append_images=[noise()])
    with pytest.raises(DataError, match=r"animated.*; save one of them as PNG or JPEG"):
        decoder.decode(content)


def test_first_image_of_an_mpo_is_a_jpeg() -> None:
    content = encode(drawn(), "MPO", save_all=True, append_images=[noise()])
    assert facts(content) == (WIDTH, HEIGHT, "RGB")
    assert_alike(pixels(content), drawn())


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\0" * 100])
def test_what_is_no_image(content: bytes) -> None:
    with pytest.raises(DataError, match=r"; .*remove it") as caught:
        decoder.decode(content)
    assert "BytesIO" not in str(caught.value)


def test_empty_file() -> None:
    with pytest.raises(DataError, match="is empty; replace it"):
        decoder.decode(b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(9_500, 9_500), (30_000, 30_000)], ids=["Pillow warns", "Pillow raises"])
def test_decompression_bombs(size: tuple[int, int]) -> None:
    header = encode(Image.new("1", (1, 1)), "BMP")
    bomb = header[:18] + size[0].to_bytes(4, "little") + size[1].to_bytes(4, "little") + header[26:]
    with pytest.raises(DataError, match="is too large .*; scale it down or remove it"):
        decoder.decode(bomb)


def test_the_largest_size_is_a_setting() -> None:
    content = encode(drawn())
    assert decoder.decode(content, DecoderSettings(max_pixels=WIDTH * HEIGHT)).size == (WIDTH, HEIGHT)
    with pytest.raises(DataError, match=r"is too large \(64 x 48 pixels, at most 3,071\); .* raise data.max_pixels"):
        decoder.decode(content, DecoderSettings(max_pixels=WIDTH * HEIGHT - 1))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tiles", [{}, {"compression": "tiff_lzw"}])
def test_images_may_be_larger_than_pillow_s_own_limit(tiles: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for format, options in (("TIFF", tiles), ("PNG", {}), ("BMP", {}), ("JPEG", {})):
        content = encode(drawn(), format, **options)
        assert_alike(pixels(content), drawn())
        with pytest.raises(DataError, match=r"is too large \(64 x 48 pixels, at most 99\)"):
            decoder.decode(content, DecoderSettings(max_pixels=99))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_anywhere_is_an_error_or_a_image() -> None:
    random = np.random.default_rng(1)
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "TGA", "PPM", "JPEG2000", "AVIF"):
        content = encode(noise(), format)
        for _ in range(60):
            damaged = bytearray(content)
            for place in random.integers(0, len(content), 4):
                damaged[place] = random.integers(256)
            with contextlib.suppress(DataError):
                assert decoder.decode(bytes(damaged)).mode == "RGB"


def test_resize_averages_what_it_drops() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert abs(resize(Image.fromarray(stripes), 8).astype(int) - 127).max() < 10
