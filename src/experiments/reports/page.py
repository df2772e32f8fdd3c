"""Self-contained HTML pages: rendering of templates, and embedded figures and thumbnails.

Names of classes, runs and paths in a page come from users and data sets: all of them are escaped, and the page's
content security policy forbids it to load anything.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
from matplotlib.figure import Figure
from PIL import Image

from experiments.errors import DataError
from experiments.images import decoder
from experiments.images.decoder_settings import DecoderSettings
from experiments.reports.figure_style import save_figure
from experiments.storage.csv_files import recorded_path
from experiments.system.redaction import visible

SIDE = 160  # pixels of a thumbnail's longer side
QUALITY = 80
LARGEST = 200_000_000  # bytes of an image file; larger ones are not shown
INTERVAL = re.compile(r"([+-]?[\d.]+%?) (\[[^\[]+\])")  # a value with its interval, in the format of the tables


def render(template: str, **values: Any) -> str:
    """Return the page that a template of this package makes of values; all text is escaped, control characters too."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_finalize, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(template).render(split_interval=_split_interval, **values)


def _finalize(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _split_interval(cell: str) -> tuple[str, str] | None:
    """Return the value and the interval of a cell that holds both; None for other cells."""
    found = INTERVAL.fullmatch(cell)
    return (found[1], found[2]) if found else None


def base64_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def svg(figure: Figure) -> str:
    """Return a figure as base64 of SVG, an image of its own: inline drawings in one document would share their ids."""
    return base64_text(save_figure(figure, "svg"))


def thumbnail(image: Image.Image) -> str:
    """Return a thumbnail of an RGB image, as base64 of JPEG, whose longer side has at most `SIDE` pixels."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return base64_text(file.getvalue())


def recorded_thumbnail(
    path: str, sha256: str, roots: Sequence[Path], decoder_settings: DecoderSettings
) -> tuple[str | None, str]:
    """Return the thumbnail of an image; or None and why it is not shown. The arguments are those of `open_recorded`."""
    try:
        return thumbnail(open_recorded(path, sha256, roots, decoder_settings)), ""
    except DataError as error:
        return None, str(error)


def open_recorded(path: str, sha256: str, roots: Sequence[Path], decoder_settings: DecoderSettings) -> Image.Image:
    """Return a recorded image, RGB in its own size, from the first root that has it; DataError if none may be shown."""
    inside = PurePosixPath(path)
    if inside.is_absolute() or ".." in inside.parts:
        raise DataError("is not shown: its path leads out of the data's folder")
    where = ", ".join(map(str, roots))
    missing = f"its file is not in {where}" if roots else "the folder of its data is not known"
    reason = f"{missing}; --data FOLDER says where the images are"
    for root in roots:
        try:
            file = root / recorded_path(root, path)
            if not file.is_file():
                continue
            if file.stat().st_size > LARGEST:
                reason = f"its file in {where} has more than {LARGEST:,} bytes"
                continue
            content = file.read_bytes()
        except OSError as error:  # such as images in another user's directory
            reason = f"its file in {where} cannot be read ({error.strerror})"
            continue
        if hashlib.sha256(content).hexdigest() != sha256:
            reason = f"its file in {where} has changed since"
            continue
        return decoder.decode(content, decoder_settings)
    raise DataError(f"is not shown: {reason}")
