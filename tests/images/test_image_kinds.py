"""Images that other readers decode wrongly: each is decoded as it looks, or an error says what is ambiguous."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.deploy import predict
from experiments.errors import DataError
from experiments.images import decoder
from experiments.images.decoder_settings import DecoderSettings, GrayRange
from experiments.images.file_formats import parse
from tests.images.test_decoder import encode, warned

RED = (200, 40, 30)


def noise(width: int = 200, height: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), "uint8"))


JPEG = encode(noise(), "JPEG")
PIXELS = np.asarray(decoder.decode(JPEG))


def first(content: bytes, gray_range: GrayRange | None = None) -> list[int]:
    """The red channel of the first row."""
    return np.asarray(decoder.decode(content, DecoderSettings(gray_range)))[0, :, 0].tolist()


def color(content: bytes) -> tuple[int, ...]:
    return tuple(np.asarray(decoder.decode(content)).mean((0, 1)).round().astype(int).tolist())


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(color_type: int, bits: int, rows: Sequence[bytes], width: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, len(rows), bits, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(pixels: bytes, width: int, bits: int, order: str = "<", following: int = 0, **tags: int) -> bytes:
    """One row of one band; a tag of None is left out."""
    numbers = {"reduced": 254, "photometric": 262, "tile_width": 322, "tile_length": 323, "further": 330,
               "sample_format": 339, "dng_version": 50706}  # fmt: skip
    named = {256: width, 257: 1, 258: bits, 259: 1, 262: 1, 273: 0, 277: 1, 278: 1, 279: len(pixels)}
    named |= {numbers[name]: value for name, value in tags.items()}
    entries = sorted((tag, value) for tag, value in named.items() if value >= 0)
    at = 8 + 2 + 12 * len(entries) + 4
    content = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    for tag, value in entries:
        content += struct.pack(f"{order}HHIHH", tag, 3, 1, at if tag == 273 else value, 0)
    return content + struct.pack(f"{order}I", following) + pixels


def grays(values: Sequence[float], kind: str) -> bytes:
    return np.array(values, kind).tobytes()


# --- grays of more than 8 bits


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("photometric", "expected"), [(1, [78, 156, 255]), (0, [177, 99, 0])])
def test_white_is_zero_at_every_depth(order: str, photometric: int, expected: list[int]) -> None:
    sixteen = grays([20000, 40000, 65535], f"{order}u2")
    assert first(tiff(sixteen, 3, 16, order, photometric=photometric)) == expected
    packed = bytes([0x4E, 0x20, 0x00, 0xFF, 0xF0, 0x00])  # 1250, 0, 4095, 0
    twelve = [78, 0, 255, 0] if photometric else [177, 255, 0, 255]
    assert first(tiff(packed, 4, 12, order, photometric=photometric)) == twelve
    eight = [78, 255] if photometric else [177, 0]
    assert first(tiff(bytes([78, 255]), 2, 8, order, photometric=photometric)) == eight
    bit = [0, 255] if photometric else [255, 0]
    assert first(tiff(b"\x40", 2, 1, order, photometric=photometric)) == bit


def test_a_range_that_is_not_known_is_an_error_that_names_the_key() -> None:
    twelve = np.linspace(0, 4095, 16).astype("uint16").reshape(1, 16)
    for content in (encode(Image.fromarray(twelve)), encode(Image.fromarray(twelve), "TIFF")):
        with pytest.raises(DataError, match=r"16-bit grays from 0 to 4095.*'data.gray_range=\[0,4095\]' for 12 bits"):
            decoder.decode(content)
        np.testing.assert_array_equal(first(content, (0, 4095)), np.arange(16) * 17)
        with pytest.raises(DataError, match=r"from 0 to 4095, beyond data.gray_range=\[0,1023\]; widen"):
            decoder.decode(content, DecoderSettings((0, 1023)))
    black = encode(Image.fromarray(np.zeros((2, 2), "uint16")))
    with pytest.raises(DataError, match="grays from 0 to 0"):
        decoder.decode(black)
    assert first(black, (0, 65535)) == [0, 0]


def test_signed_32_bit_and_floating_grays_need_a_range() -> None:
    for kind, bits, form, values, given, expected in (
        ("<i2", 16, 2, [-1000, 0, 1000], (-1000, 1000), [0, 128, 255]),
        ("<u4", 32, 1, [0, 500, 1000], (0, 1000), [0, 128, 255]),
        ("<f4", 32, 3, [0.0, 0.25, 1.0], (0, 1), [0, 64, 255]),
    ):  # fmt: skip
        content = tiff(grays(values, kind), 3, bits, sample_format=form)
        with pytest.raises(DataError, match=rf"holds {bits}-bit grays.*data.gray_range"):
            decoder.decode(content)
        assert first(content, given) == expected
    with pytest.raises(DataError, match="beyond data.gray_range"):
        decoder.decode(tiff(grays([np.nan, 0.5], "<f4"), 2, 32, sample_format=3), DecoderSettings((0, 1)))
    white = tiff(grays([0.0, 0.25, 1.0], "<f4"), 3, 32, sample_format=3, photometric=0)
    assert first(white, (0, 1)) == [255, 191, 0]


def test_what_a_tiff_leaves_open_is_an_error() -> None:
    with pytest.raises(DataError, match="whether 0 is black or white"):
        decoder.decode(tiff(b"\1\2", 2, 8, photometric=-1))
    with pytest.raises(DataError, match="unknown pixel mode.; convert it to PNG or JPEG"):
        decoder.decode(tiff(bytes(6), 2, 24))
    with pytest.raises(DataError, match="signed 8-bit"):
        decoder.decode(tiff(b"\1\2", 2, 8, sample_format=2))


def test_a_tiff_that_is_a_preview_or_takes_too_much_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for tags in ({"dng_version": 1}, {"reduced": 1, "further": 8}):
        with pytest.raises(DataError, match="is a raw photograph .* only a preview"):
            decoder.decode(tiff(b"\1\2", 2, 8, "<", 0, **tags))
    with pytest.raises(DataError, match="is too large .the pixels of one of its tiles, at most 89,478,485"):
        decoder.decode(tiff(b"\1\2", 2, 8, tile_width=9600, tile_length=9600))
    monkeypatch.setattr(decoder, "_MOST_STRIPS", 0)
    with pytest.raises(DataError, match="has more than 0 strips or tiles"):
        decoder.decode(tiff(b"\1\2", 2, 8))


# --- 16-bit colors, and transparency


def test_16_bit_colors_are_right_or_refused() -> None:
    full = np.array([[[40000, 20000, 1000]]], ">u2")
    assert color(png(2, 16, [full.tobytes()], 1)) == (156, 78, 3)
    with pytest.raises(DataError, match="no more than 14 bits, so that it would be dark"):
        decoder.decode(png(2, 16, [(full // 16).astype(">u2").tobytes()], 1))
    with pytest.raises(DataError, match="16-bit colors of which one is transparent"):
        decoder.decode(png(2, 16, [full.tobytes()], 1, chunk(b"tRNS", bytes(6))))
    with_alpha = [np.array([gray, 65535], ">u2").tobytes() for gray in (40000, 2500)]
    assert color(png(4, 16, with_alpha[:1], 1)) == (156, 156, 156)
    with pytest.raises(DataError, match="would be dark"):
        decoder.decode(png(4, 16, with_alpha[1:], 1))


def test_a_transparent_gray_of_any_depth_becomes_white() -> None:
    sixteen = np.array([40000, 20000, 1000], ">u2").tobytes()
    assert first(png(0, 16, [sixteen], 3, chunk(b"tRNS", struct.pack(">H", 20000)))) == [156, 255, 4]
    assert first(png(0, 2, [b"\x1b"], 4, chunk(b"tRNS", b"\0\1"))) == [0, 255, 170, 255]


def test_a_fully_transparent_image_is_an_error() -> None:
    clear = Image.new("RGBA", (4, 4), (*RED, 0))
    for content in (encode(clear), encode(clear, "TIFF"), png(0, 16, [bytes(2)], 1, chunk(b"tRNS", bytes(2)))):
        with pytest.raises(DataError, match="is fully transparent.*remove its alpha channel"):
            decoder.decode(content, DecoderSettings((0, 65535)))


@pytest.mark.parametrize(("alpha", "expected"), [(0, RED), (128, (227, 147, 142)), (255, RED)])
def test_alpha_of_a_bmp_that_is_0_everywhere_is_none(alpha: int, expected: tuple[int, ...]) -> None:
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 4, 4, 1, 32, 3, 64, 0, 0, 0, 0) + masks + bytes(52)
    content = b"BM" + struct.pack("<IHHI", 186, 0, 0, 122) + header + bytes([*RED[::-1], alpha]) * 16
    assert color(content) == expected
    assert any("alpha channel that is 0 everywhere" in text for text in warned(content)) == (alpha == 0)


def test_a_fourth_band_that_is_no_alpha_is_not_laid_on_white() -> None:
    bands = encode(Image.fromarray(np.full((4, 4, 4), (*RED, 0), "uint8")), "TIFF")
    place = bands.index(struct.pack("<HHI", 338, 3, 1))  # ExtraSamples
    unspecified = bands[: place + 8] + bytes(2) + bands[place + 10 :]
    assert color(unspecified) == RED
    assert "has bands beside its colors that are no alpha, and are not used" in warned(unspecified)
    with pytest.raises(DataError, match="fourth band that may be alpha or not.*ExtraSamples is missing"):
        decoder.decode(bands[:place] + struct.pack("<H", 337) + bands[place + 2 :])


def test_blank_images_come_with_a_warning() -> None:
    assert warned(encode(Image.new("L", (9, 9), 0))) == ["is blank: all its pixels are of the color (0, 0, 0)"]
    assert warned(JPEG) == []
    speck = Image.new("L", (900, 900))
    speck.putpixel((13, 7), 200)
    assert warned(encode(speck)) == []
    for level, is_blank in ((3, True), (4, False)):
        speck = Image.new("L", (9, 9))
        speck.putpixel((4, 4), level)
        assert bool(warned(encode(speck))) == is_blank


# --- valid files with odd metadata


def test_large_and_expanding_metadata_of_a_png_is_no_damage_and_not_read() -> None:
    red = encode(Image.new("RGB", (4, 4), RED))
    bomb = zlib.compress(bytes(20_000_000))
    for extra in (
        chunk(b"iCCP", b"x\0\0" + bomb),
        chunk(b"zTXt", b"Comment\0\0" + bomb),
        chunk(b"tEXt", b"C\0" + bytes(5_000_000)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
        chunk(b"acTL", struct.pack(">II", 1, 0)),  # an animation of one frame
    ):
        for place in (33, -12):  # before the pixels, and after
            assert color(red[:place] + extra + red[place:]) == RED
    with pytest.raises(DataError, match="more than 50,000 chunks"):
        decoder.decode(red[:33] + chunk(b"tEXt", b"a\0b") * 60_000 + red[33:])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_is_a_warning(format: str) -> None:
    def saved(exif: bytes) -> bytes:
        return encode(noise(), format, exif=b"Exif\0\0" + exif)

    for damaged in (b"II*\0\xff\xff\xff\xff", b"garbage", b"MM\0*\0\0\0\x08\0\x09\x01\x00"):
        (text,) = warned(saved(damaged))
        assert text == "its EXIF is damaged, and the orientation cannot be read: it is used as it is stored"
        assert decoder.decode(saved(damaged)).size == (200, 60)
    begin = b"MM\0*\0\0\0\x08\0"
    turned = begin + b"\2" + struct.pack(">HHIHH", 0x112, 3, 1, 6, 0) + struct.pack(">HHII", 0x11A, 10, 1, 38)
    types = ((1, ">HHIB"), (4, ">HHII"))
    of_other_types = [begin + b"\1" + struct.pack(form, 0x112, kind, 1, 6) for kind, form in types]
    # The second has a rational that Pillow cannot write again.
    for sound in (turned, turned + bytes(4) + struct.pack(">ii", -1, 0), *of_other_types):
        assert decoder.decode(saved(sound)).size == (60, 200) and not warned(saved(sound))


def test_odd_metadata_of_a_tiff_is_a_warning() -> None:
    content = tiff(bytes([1, 200]), 2, 8, following=5_000)  # a next page where there is none
    assert first(content) == [1, 200]
    assert any(text.startswith("has odd metadata (") for text in warned(content))


# --- where a JPEG ends

TRAILERS = {
    "Samsung's, short": b"\0\0\x10\x0aPanorama" + b"A" * 5000,
    "Samsung's": b"\0\0\x01\x0a\x0e\0\0\0Image_UTC_Data1400000000000SEFH" + bytes(30) + b"SEFT",
    "video": b"\0\0\0\x18ftypmp42" + bytes(range(200)) * 50,
    "text": b"camera=12;" * 40,
    "another JPEG": encode(noise(), "JPEG", quality=50),
    "Samsung's with a JPEG": b"\0\0\x01\x0a\x0e\0\0\0Image_UTC_Data14000" + encode(noise(40, 40), "JPEG") + b"SEFT",
}


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("name", TRAILERS)
def test_a_trailer_may_stand_in_place_of_the_end_mark(name: str, progressive: bool) -> None:
    whole = encode(noise(), "JPEG", progressive=progressive)
    np.testing.assert_array_equal(np.asarray(decoder.decode(whole[:-2] + TRAILERS[name])), PIXELS)
    for missing in (40, len(whole) // 2):  # the file was cut short, and something else came behind it
        with pytest.raises(DataError, match="is cut short"):
            decoder.decode(whole[: len(whole) - missing] + TRAILERS[name])


@pytest.mark.parametrize("filling", [b"", bytes(50_000), b"\xff" * 50_000, b"A" * 50_000])
def test_a_cut_jpeg_that_is_filled_up_is_cut_short(filling: bytes) -> None:
    with pytest.raises(DataError, match="cut short"):
        decoder.decode(JPEG[: len(JPEG) // 2] + filling)


def test_the_check_for_the_end_is_linear() -> None:
    began = time.process_time()
    padded = JPEG[:-2] + b"\xff" * 2_000_000 + b"\0\xff\xd9"
    np.testing.assert_array_equal(np.asarray(decoder.decode(padded)), PIXELS)
    with pytest.raises(DataError, match="more than 50,000 segments"):
        decoder.decode(JPEG[:2] + b"\xff\xe5\0\2" * 1_000_000 + JPEG[2:])
    assert time.process_time() - began < 2


def test_many_scans_of_many_pixels_are_refused() -> None:
    def scanned(side: int) -> bytes:
        whole = encode(Image.new("L", (side, side)), "JPEG", progressive=True)
        start = whole.rindex(b"\xff\xda")
        return whole[:-2] + whole[start:-2] * 200 + b"\xff\xd9"

    with pytest.raises(DataError, match=r"has 2\d\d scans, which would take minutes"):
        decoder.decode(scanned(4000))
    assert decoder.decode(scanned(40)).size == (40, 40)


# --- other formats, pages and frames


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "an MP4 video"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"GIF89a", "a GIF"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a PostScript file"),
        (b"P7\nWIDTH 2", "a PAM image"),
        (b"Pf\n2 2\n-1.0\n", "a floating-point image"),
        (b"\0\0\x01\0\1\0\x20\x20\0\0\1\0\x18\0\x30\0\0\0\x16\0\0\0", "an icon"),
        (b"%PDF-1.7", "a PDF"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg xmlns="x"/>', "an SVG drawing"),
        (b"\n<!DOCTYPE html><html>404</html>", "an HTML page"),
        (bytes(128) + b"DICM", "a DICOM file"),
        (b"PK\3\4", "a ZIP archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
    ],
)
def test_other_formats_are_named(content: bytes, name: str) -> None:
    with pytest.raises(DataError, match=f"^is {name}.*; (convert it to PNG or JPEG, or|replace it by a whole copy or)"):
        decoder.decode(content)


def test_pages_of_a_tiff_are_counted_in_no_time() -> None:
    page = tiff(b"\1\2", 2, 8)
    directory = page[8:-6]
    reduced = tiff(b"\1\2", 2, 8, reduced=1)[8:-6] + bytes(4)
    assert first(tiff(b"\1\2", 2, 8, following=len(page)) + reduced) == [1, 2], "a copy is no page of its own"
    loop = page[:-6] + struct.pack("<I", 8) + page[-2:]
    assert first(loop) == [1, 2]
    chain = bytearray(tiff(b"\1\2", 2, 8, following=len(page)))
    for _ in range(20_000):
        chain += directory + struct.pack("<I", len(chain) + len(directory) + 4)
    began = time.process_time()
    with pytest.raises(DataError, match="several pages"):
        decoder.decode(bytes(chain))
    assert time.process_time() - began < 1


# --- formats beside the usual ones

LARGE = Image.fromarray(
    np.kron(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8), np.ones((8, 8, 1), "u1"))
)
EXACT = [
    ("TGA", {}), ("TGA", {"compression": "tga_rle"}), ("TGA", {"orientation": 1}), ("PPM", {}), ("JPEG2000", {}),
    ("JPEG2000", {"no_jp2": True}),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("format", "options"), [*EXACT, ("AVIF", {"quality": 95, "subsampling": "4:4:4"})])
def test_further_formats_are_read(format: str, options: dict[str, Any], mode: str) -> None:
    content, expected = encode(LARGE.convert(mode), format, **options), np.asarray(LARGE.convert(mode).convert("RGB"))
    with decoder.decoding(content) as decoded:
        difference = np.abs(np.asarray(decoded.image).astype(int) - expected)
    assert (decoded.width, decoded.height) == (64, 48) and parse(content).format == format
    assert difference.max() == 0 if format != "AVIF" else difference.mean() < 4
    for part in (len(content) // 2, len(content) - 100):
        with pytest.raises(DataError, match="replace it by a whole copy or remove it"):
            decoder.decode(content[:part])


@pytest.mark.parametrize(("mode", "format"), [("1", "PPM"), ("P", "TGA"), ("RGBA", "TGA"), ("RGBA", "JPEG2000")])
def test_modes_of_further_formats(mode: str, format: str) -> None:
    source = LARGE.convert(mode)
    if mode == "RGBA":
        source.putalpha(128)
    expected = (
        source.convert("RGB") if mode != "RGBA" else Image.alpha_composite(Image.new("RGBA", (64, 48), "white"), source)
    )
    found = np.asarray(decoder.decode(encode(source, format))).astype(int)
    np.testing.assert_allclose(found, np.asarray(expected.convert("RGB")), atol=1)


def test_alpha_of_a_tga_that_is_0_everywhere_is_none() -> None:
    content = encode(Image.new("RGBA", (4, 4), (*RED, 0)), "TGA")
    assert color(content) == RED and warned(content)[0].startswith("has an alpha channel that is 0 everywhere")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_an_avif_is_applied_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decoder.decode(encode(LARGE, "AVIF", exif=exif.tobytes(), quality=95, subsampling="4:4:4"))
    as_jpeg = decoder.decode(encode(LARGE, "JPEG", exif=exif, quality=95, subsampling=0))
    assert found.size == as_jpeg.size
    assert np.abs(np.asarray(found).astype(int) - np.asarray(as_jpeg)).mean() < 6


@pytest.mark.parametrize(
    ("header", "samples", "expected"),
    [
        (b"P5\n# a comment\n3 1\n4095\n", ">u2", [0, 128, 255]),
        (b"P5 3 1 65535 ", ">u2", [0, 8, 16]),
        (b"P5 3 1 255 ", "u1", [0, 0, 255]),
    ],
)
def test_a_pgm_names_its_white_itself(header: bytes, samples: str, expected: list[int]) -> None:
    content = header + np.array([0, 2048, 4095]).astype(samples).tobytes()
    assert first(content) == expected
    if samples != "u1":
        assert first(content, (0, 8190)) == [0, 64, 128], "data.gray_range is about the values as they are stored"


def test_ppm_as_text_and_with_an_unusual_largest_value() -> None:
    assert color(b"P3\n1 1 # red\n255\n200 40 30\n") == RED
    assert first(b"P2 3 1 4095\n0 2048 4095\n") == [0, 128, 255]
    assert first(b"P1 3 1\n0 1 0\n") == [255, 0, 255]
    assert color(b"P6 1 1 65535 " + (np.array(RED, ">u2") * 257).tobytes()) == RED
    assert first(b"P5 3 1 3 \0\1\3") == [0, 85, 255]
    with pytest.raises(DataError, match="written as text, or with an unusual largest value, of more than"):
        decoder.decode(b"P2 9999 999 255\n" + b"1 " * 2**21)


def test_what_a_jpeg_2000_leaves_open_is_an_error() -> None:
    sixteen = encode(Image.fromarray(np.full((4, 4), 40000, "uint16")), "JPEG2000")
    assert color(sixteen) == (156, 156, 156)
    with pytest.raises(DataError, match="data.gray_range"):
        decoder.decode(encode(Image.fromarray(np.full((4, 4), 4000, "uint16")), "JPEG2000"))
    start = sixteen.index(b"\xff\x4f\xff\x51")
    for depth, problem in ((11, "holds 12-bit grays"), (0x8F, "holds signed values")):
        with pytest.raises(DataError, match=problem):
            decoder.decode(sixteen[: start + 42] + bytes([depth]) + sixteen[start + 43 :])
    bands = encode(LARGE.convert("RGBA"), "JPEG2000")
    with pytest.raises(DataError, match="a band that may be alpha or not"):
        decoder.decode(bands.replace(b"cdef", b"xxxx"))
    with pytest.raises(DataError, match="has two sizes"):
        decoder.decode(sixteen[: start + 8] + struct.pack(">II", 8, 8) + sixteen[start + 16 :])
    for beginning in (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51\0\0"):
        with pytest.raises(DataError, match="is cut short"):
            decoder.decode(beginning)


def test_an_avif_may_begin_with_a_brand_of_heic() -> None:
    content = encode(LARGE, "AVIF")
    assert content[8:12] == b"avif"
    assert parse(content[:8] + b"mif1" + content[12:]).format == "AVIF"


def test_sizes_of_further_formats_are_known_before_they_are_decoded() -> None:
    for content in (
        b"P6 60000 60000 255 " + bytes(9),
        b"\0\0\2" + bytes(9) + struct.pack("<HHBB", 60000, 60000, 24, 0) + bytes(9),
    ):
        with pytest.raises(DataError, match="is too large"):
            decoder.decode(content)


def test_what_may_look_like_a_tga_is_none() -> None:
    for content in (bytes(99), b"\0\0\2\0\1\0\x20\x20" + bytes(99), b"\0\1\1" + bytes(99), b"hello " * 9):
        with pytest.raises(DataError, match="is no JPEG, PNG, TIFF or other image"):
            decoder.decode(content)


# --- HEIC


def heic(**options: Any) -> bytes:
    from pillow_heif import from_pillow

    file = io.BytesIO()
    from_pillow(LARGE).save(file, quality=95, chroma=444, **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heic_is_read_and_turned_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decoder.decode(heic(exif=exif.tobytes()))
    as_jpeg = decoder.decode(encode(LARGE, "JPEG", exif=exif, quality=95, subsampling=0))
    assert found.size == as_jpeg.size
    assert np.abs(np.asarray(found).astype(int) - np.asarray(as_jpeg)).mean() < 6


def test_a_heic_that_is_cut_short_is_an_error() -> None:
    content = heic()
    for part in (len(content) // 2, len(content) - 50):
        with pytest.raises(DataError, match="cannot be decoded"):
            decoder.decode(content[:part])


def test_without_its_package_heic_is_an_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = heic()
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    with pytest.raises(
        DataError, match=r"is a HEIC image.*pip install 'image-experiments\[heif\]'.*convert it to PNG or JPEG"
    ):
        decoder.decode(content)
    (tmp_path / "a.heic").write_bytes(content)
    assert "pip install 'image-experiments[heif]'" in str(
        predict.read_image(str(tmp_path / "a.heic"), 8, DecoderSettings())
    )


# --- memory

MEASURE = """
import io, resource, sys
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
from experiments.images import decoder

decoder._memory.size = 2**28
image = Image.new("RGBA", (2900, 2900), (200, 40, 30, 128))
image.paste((0, 0, 0, 255), (0, 0, 9, 9))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for format, options in (("PNG", {"compress_level": 1}), ("WEBP", {"lossless": True, "method": 0})):
    file = io.BytesIO()
    image.save(file, format, **options)
    with ThreadPoolExecutor(8) as pool:
        decoded = list(pool.map(lambda _: decoder.decode_resized(file.getvalue(), 32), range(8)))
    assert {int(pixels[-1, -1, 0]) for pixels in decoded} == {227}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_threads_decode_no_more_at_a_time_than_the_memory_they_share() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 290, "megabytes; eight at a time would take 540 of a PNG, and 1,100 of a WEBP"


def test_files_of_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match=r"is too large \([\d,]+ bytes, at most 1,000\)"):
        decoder.decode(JPEG)
