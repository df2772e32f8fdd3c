"""Structure of image files: their format, the part of a file that holds the pixels, and the orientation.

All of it is found from the bytes, without decoding. Only what the pixels need is passed to Pillow: metadata of a JPEG
or PNG (profiles, texts, previews, further images) can be damaged or made to expand without bound, and never changes
the decoded pixels.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from itertools import islice

from experiments.errors import DataError

REPLACE = "replace it by a whole copy or remove it"
CONVERT = "convert it to PNG or JPEG, or remove it"
SEVERAL = "is animated or has several pages; save one of them as PNG or JPEG, or remove it"
CUT_SHORT = f"is cut short: the mark of its end is missing; {REPLACE}"

SLOW_BYTES = 2**22  # of a kind of PPM that Pillow decodes in Python
MAX_PARTS = 50_000  # segments of a JPEG or chunks of a PNG; each takes time, whatever its size

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"), (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
)  # fmt: skip
_OTHERS = (
    (b"GIF8", "a GIF"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"), (b"\xff\x0a", "a JPEG XL image"),
    (b"8BPS", "a Photoshop file"),
    (b"%PDF", "a PDF"), (b"%!PS", "a PostScript file"),
    (b"PK\3\4", "a ZIP archive"), (b"\x1f\x8b", "a gzip archive"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"P7\n", "a PAM image"), (b"PF\n", "a floating-point image (PFM)"), (b"Pf\n", "a floating-point image (PFM)"),
    (b"version https://git-lfs", "a Git LFS pointer, not the image itself (git lfs pull fetches it)"),
)  # fmt: skip
_BRANDS = {
    b"avif": "AVIF", b"avis": "AVIF",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    b"crx ": "a raw photograph (CR3)",
    b"qt  ": "a QuickTime video",
}  # fmt: skip

_PPM_SPACE = rb"(?:[ \t\r\n\v\f]|#[^\r\n]*[\r\n])+"
_PPM_SIZE = 2 * (_PPM_SPACE + rb"\d+")
_PPM_HEADER = re.compile(rb"P(?:([14])%b|([2356])%b%b(\d{1,5}))\s" % (_PPM_SIZE, _PPM_SIZE, _PPM_SPACE))
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # not stuffed bytes, fill bytes, restart markers
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation(?:=["']|>)([1-8])""")
_BETWEEN_SCANS = (0xC4, *range(0xDA, 0xF0), 0xFE)  # tables, application segments, a comment, the next scan
# First bytes of data that phones append to an image: Samsung's blocks (zeros, a type, the length of a name, the name),
# an MP4 video, or a text, whose first characters may still belong to the image.
_TRAILER = re.compile(
    rb"\0\0.[\x08-\x0f](?:.\0\0\0)?[A-Z]\w{7,}|\0\0..ftyp|SEFH|[\t\n\r -~]{8}(?P<text>[\t\n\r -~]{16,})", re.DOTALL
)


@dataclass
class ImageFile:
    """An image file, parsed as far as is possible without decoding."""

    format: str  # a key of `plugins.FORMATS`
    content: bytes  # the bytes that Pillow decodes
    bits: int = 8  # per sample, where known
    orientation: int = 1  # EXIF's, 1 to 8; always 1 for a TIFF, whose orientation Pillow applies
    white_is_zero: bool = False  # only in a TIFF
    white: int | None = None  # the gray that is white, where the file names one: in a PGM of more than 8 bits
    size: tuple[int, int] | None = None  # of a JPEG 2000: width and height of its image data
    scans: int = 1  # of a JPEG: passes over its pixels
    # In a JPEG without an end marker: where the pixels may end and other data begin, earliest and latest position.
    ends: list[tuple[int, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def parse(content: bytes) -> ImageFile:
    """Return an image file's parts.

    Raises:
        DataError: If it is empty, of another format, or truncated, as far as its structure shows.
    """
    if not content:
        raise DataError(f"is empty; {REPLACE}")
    format = _format(content)
    parser = {"JPEG": _jpeg, "PNG": _png, "PPM": _ppm, "JPEG2000": _jpeg2000}.get(format)
    return parser(content) if parser else ImageFile(format, content)


def _format(content: bytes) -> str:
    for signature, format in _SIGNATURES:
        if content.startswith(signature):
            return format
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "WEBP"
    if _PPM_HEADER.match(content):
        return "PPM"
    brand = _brand(content)
    if brand in ("AVIF", "HEIC"):
        return brand
    if other := brand or _other_format(content):
        no_image = other.startswith(("an HTML", "an XML", "a Git", "a ZIP", "a gzip"))
        raise DataError(f"is {other}; {REPLACE if no_image else CONVERT}")
    if _is_tga(content):
        return "TGA"
    raise DataError(f"is no JPEG, PNG, TIFF or other image that is read here, or its header is damaged; {REPLACE}")


def _other_format(content: bytes) -> str | None:
    for signature, name in _OTHERS:
        if content.startswith(signature):
            return name
    if content[128:132] == b"DICM":
        return "a DICOM file"
    start = content[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"<"):
        if b"<svg" in start:
            return "an SVG drawing"
        if b"<html" in start or b"<!doctype html" in start:
            return "an HTML page (a download that failed?)"
        return "an XML file"
    return None


def _brand(content: bytes) -> str | None:
    """Return the format of a file of ISO's base media format; None for any other file."""
    if content[4:8] != b"ftyp":
        return None
    brands = content[8 : min(128, int.from_bytes(content[:4], "big"))]
    # The major brand comes first; the second field is its version, which equals no brand.
    names = [_BRANDS.get(brands[at : at + 4]) for at in range(0, len(brands), 4)]
    images = [name for name in names if name]
    # The first brand of an AVIF may be mif1, which HEIC uses as well.
    return "AVIF" if "AVIF" in images else images[0] if images else "an MP4 video"


def _is_tga(content: bytes) -> bool:
    """Return whether a header without a signature is that of a TGA; the check is strict, as it has no magic number."""
    if len(content) <= 18:
        return False
    colors, kind, depth, flags = content[1], content[2], content[16], content[17]
    depths = {1: (8,), 2: (16, 24, 32), 3: (8, 16)}.get(kind & 7, ())
    mapped = kind & 7 == 1
    return (
        kind in (1, 2, 3, 9, 10, 11) and depth in depths and flags < 0x40 and colors == mapped
        and (mapped or content[3:8] == bytes(5)) and content[12:14] != b"\0\0" != content[14:16]
    )  # fmt: skip


def read_orientation(exif: bytes, xmp: bytes, warnings: list[str]) -> int:
    """Return the orientation of an image, 1 to 8, from its EXIF or else its XMP; 1 if neither has one.

    Both may be empty; `warnings` receives a phrase if the EXIF is damaged.
    """
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    try:
        orientation = _exif_orientation(exif) if exif else 0
    except (struct.error, KeyError):
        warnings.append("its EXIF is damaged, and the orientation cannot be read: it is used as it is stored")
        orientation = 0
    if orientation in range(1, 9):
        return orientation
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 1


def _exif_orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block, 0 if it has none; struct.error or KeyError if it is damaged."""
    order = {b"II": "<", b"MM": ">"}[exif[:2]]
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (entries,) = struct.unpack_from(f"{order}H", exif, start)
    for at in range(start + 2, start + 2 + 12 * entries, 12):
        tag, kind = struct.unpack_from(f"{order}HH", exif, at)
        if tag == 0x112:
            form = {1: "B", 3: "H", 4: "I"}[kind]
            return int(struct.unpack_from(f"{order}{form}", exif, at + 8)[0])
    return 0


# --- JPEG


def _jpeg(content: bytes) -> ImageFile:
    """Parse a JPEG segment by segment, since an embedded preview has an end marker of its own."""
    kept = [b"\xff\xd8"]
    exif, xmp = b"", b""
    position, scan, scans, end, other = 2, 0, 0, None, len(content)
    for _ in range(MAX_PARTS):
        found = _JPEG_MARKER.search(content, position)
        if not found:
            break
        start, marker = found.start(), content[found.end() - 1]
        if marker == 0xD9:
            end = found.end()
            break
        if scan and marker not in _BETWEEN_SCANS:  # other data begin, and no end marker was found
            other = start
            break
        if marker in (0x01, 0xD8):  # these have no length
            position = found.end()
            continue
        # A segment is skipped by its length. After a scan's header the search for a marker runs over the scan's data.
        position = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")
        segment = content[start:position] if not scan else b""
        if marker == 0xDA:
            scan, scans = scan or start, scans + 1
        elif segment.startswith(b"\xff\xe1") and segment[4:].startswith(b"Exif\0\0"):
            exif += segment[10:]  # EXIF beyond 64 KB continues in further segments
        elif segment.startswith(b"\xff\xe1") and segment[4:].startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = segment
        # Only two application segments affect the pixels: JFIF's and Adobe's contain the colour space.
        elif not scan and (not 0xE0 <= marker <= 0xEF or marker in (0xE0, 0xEE)) and marker != 0xFE:
            kept.append(segment)
    else:
        raise DataError(f"has more than {MAX_PARTS:,} segments; {CONVERT}")
    ends = _possible_ends(content, scan, other) if scan and end is None else []
    if not scan or (end is None and not ends):
        raise DataError(CUT_SHORT)
    file = ImageFile("JPEG", b"".join((*kept, content[scan:end])), scans=scans)
    if end is None:
        skipped = len(content) - len(file.content)
        file.ends = [(earliest - skipped, latest - skipped) for earliest, latest in ends]
    elif b"\xff" * 16 in file.content:
        # Any number of fill bytes may stand before a marker, and libjpeg is slow with them.
        file.content = re.sub(rb"\xff{2,}", b"\xff", file.content)
    file.orientation = read_orientation(exif, xmp, file.warnings)
    return file


def _possible_ends(content: bytes, start: int, other: int) -> list[tuple[int, int]]:
    """Return where the pixels of a JPEG may end and other data begin: earliest and latest positions.

    Its first scan begins at `start`; data from `other` on are no part of the image.
    """
    ends = []
    for trailer in islice(_TRAILER.finditer(content, start, other), 3):
        ends.append((trailer.start(), trailer.start("text" if trailer["text"] else 0)))
        if not trailer["text"]:  # compressed pixels do not match by chance, and what follows belongs to the trailer
            return ends
    return [*ends, (other, other)] if other < len(content) else ends


# --- PNG


def _png(content: bytes) -> ImageFile:
    """Parse a PNG chunk by chunk, and keep the chunks that affect the pixels."""
    file = ImageFile("PNG", content)
    kept = [content[:8]]
    exif, xmp = b"", b""
    position = 8
    for _ in range(MAX_PARTS):
        length, name = int.from_bytes(content[position : position + 4], "big"), content[position + 4 : position + 8]
        data, end = position + 8, position + 12 + length
        if len(content) < end:
            raise DataError(CUT_SHORT)
        if name == b"IHDR":
            file.bits = content[data + 8] if length > 8 else 8
        elif name == b"acTL" and int.from_bytes(content[data : data + 4], "big") > 1:
            raise DataError(SEVERAL)
        elif name == b"eXIf":
            exif = content[data : data + length]
        elif name == b"iTXt" and content.startswith(b"XML:com.adobe.xmp\0", data):
            xmp = content[data : data + length]
        if name == b"tRNS" or name[:1].isupper():  # transparency and the critical chunks
            kept.append(content[position:end])
        if name == b"IEND":
            break
        position = end
    else:
        raise DataError(f"has more than {MAX_PARTS:,} chunks; {CONVERT}")
    file.content = b"".join(kept)
    file.orientation = read_orientation(exif, xmp, file.warnings)
    return file


# --- PPM, PGM, PBM


def _ppm(content: bytes) -> ImageFile:
    """Parse the header, whose largest value (white) decides how the samples are read."""
    header = _PPM_HEADER.match(content)
    assert header
    file = ImageFile("PPM", content)
    kind, white = header[1] or header[2], int(header[3] or 255)
    if white > 255 and kind in b"25":  # of grays the samples are kept, because data.gray_range is about those
        file.bits, file.white = 16, white
        file.content = content[: header.start(3)] + b"65535" + content[header.end(3) :]
    is_slow = kind in b"123" or (white != 255 and file.white is None)
    if is_slow and len(content) > SLOW_BYTES:
        problem = f"is a PPM written as text, or with an unusual largest value, of more than {SLOW_BYTES:,} bytes"
        raise DataError(f"{problem}; {CONVERT}")
    return file


# --- JPEG 2000


def _jpeg2000(content: bytes) -> ImageFile:
    """Parse the size and the bands of the image data."""
    start = content.find(b"\xff\x4f\xff\x51")
    try:
        right, bottom, left, top = struct.unpack_from(">4I", content, start + 8)
        (count,) = struct.unpack_from(">H", content, start + 40)
        depths = [depth for depth, _, _ in struct.iter_unpack("3B", content[start + 42 : start + 42 + 3 * count])]
    except struct.error:
        depths = []
    if start < 0 or not depths or len(depths) != count:
        raise DataError(CUT_SHORT)
    bits = max(depth & 0x7F for depth in depths) + 1
    if any(depth & 0x80 for depth in depths):
        raise DataError(f"holds signed values; {CONVERT}")
    if count == 1 and bits > 8 and bits != 16:
        problem = f"holds {bits}-bit grays, which Pillow does not return as they are stored"
        raise DataError(f"{problem}; save it as 16-bit PNG")
    if count in (2, 4) and b"cdef" not in content[:start]:
        raise DataError("has a band that may be alpha or not (near-infrared, say): cdef is missing; save it as RGB")
    return ImageFile("JPEG2000", content, bits=bits, size=(right - left, bottom - top))
