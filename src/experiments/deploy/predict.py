"""Predictions for any number of image files, in their order; images are decoded ahead of the network."""

from __future__ import annotations

import glob
import io
import logging
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from experiments.data.issues import printable
from experiments.data.listing import walk
from experiments.data.validation import unchanged
from experiments.errors import ConfigError, DataError
from experiments.images import decoder
from experiments.images.decoder_settings import DEFAULTS, DecoderSettings
from experiments.images.plugins import SUFFIXES
from experiments.images.resizing import resize
from experiments.storage.csv_files import recorded_path

if TYPE_CHECKING:
    import keras

    from experiments.training.types import Progress

_log = logging.getLogger(__name__)

BATCH_SIZE = 32  # of the images that a run has recorded
# Pillow's modes that no PNG has, and the mode to convert them to.
WITHOUT_FILE = dict.fromkeys(("CMYK", "YCbCr", "LAB", "HSV", "RGBX"), "RGB") | {
    "La": "LA",
    "PA": "RGBA",
    "RGBa": "RGBA",
}
AHEAD = 4  # batches of images that are decoded, or being decoded, while the network computes one


class FilePrediction(NamedTuple):
    """What a model predicts for an image file, or why it cannot."""

    path: str
    probabilities: np.ndarray | None  # [classes] float32; None: the file cannot be used
    error: str  # why the file cannot be used; empty if it can
    distance: float | None = None  # from the training images; None: it was not computed


class Distances(NamedTuple):
    """How the distances of images from the training images are computed."""

    features: keras.Model  # pixels -> features [B, D], from the same input as the predicting model
    of: Callable[[np.ndarray], np.ndarray]  # features [B, D] -> distances [B]


def list_files(given: Sequence[str]) -> tuple[list[str], int]:
    """Return the files that paths stand for, in order and each once.

    A path is a file, a directory, or a pattern (*, ?, [], **). Of directories and their subdirectories, the files of
    the image types are taken; hidden files and those of operating systems are skipped, as in a data set. The number of
    other files in the directories is returned, too.

    Raises:
        ConfigError: a path does not exist, a pattern matches nothing, or a directory has no images.
        DataError: a directory cannot be listed.
    """
    listed: dict[str, None] = {}
    others, problems = 0, []
    for text in given:
        path = os.path.expanduser(text)
        matches = [path] if os.path.lexists(path) else sorted(glob.glob(path, recursive=True))
        files: list[str] = []
        for match in matches:
            inside, left = walk(match) if os.path.isdir(match) else ([match], 0)
            files += inside
            others += left
        listed.update(dict.fromkeys(files))
        if not matches:
            problem = "no file fits this pattern" if glob.has_magic(text) else "no such file or folder"
            problems.append(f"{text}: {problem}")
        elif not files and matches == [path]:
            problems.append(f"{text}: no image ({' '.join(SUFFIXES)}) is in this folder or below it")
        elif not files:
            problems.append(f"{text}: fits nothing but folders without images")
    if problems:
        raise ConfigError("\n".join(problems))
    return list(listed), others


def predictions(
    model: keras.Model, files: Iterable[str | Image.Image], batch_size: int,
    decoder_settings: DecoderSettings = DEFAULTS, distances: Distances | None = None,
) -> Iterator[list[FilePrediction]]:  # fmt: skip
    """Yield a model's predictions for image files in their order, a batch at a time, in constant memory.

    The prediction for a file that cannot be used holds the error, that for an image an empty path. The model computes
    probabilities [B, classes] from pixels [B, H, W, 3] in [0, 255].
    """
    from experiments.models.network import inference_functions

    infer = inference_functions([model, *([distances.features] if distances else [])])
    size = int(model.input_shape[1])

    def compute(images: Sequence[tuple[str, np.ndarray | str]]) -> list[FilePrediction]:
        pixels = [image for _, image in images if not isinstance(image, str)]
        outputs = infer(np.stack(pixels).astype("float32")) if pixels else []
        probabilities = iter(outputs[0] if pixels else ())
        measured = iter(distances.of(outputs[1]).tolist() if distances and pixels else ())
        return [
            FilePrediction(path, None, image) if isinstance(image, str)
            else FilePrediction(path, next(probabilities), "", next(measured, None))
            for path, image in images
        ]  # fmt: skip

    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode") as pool:  # more would slow down the network
        decoded = decode_ahead(pool, files, size, AHEAD * batch_size, decoder_settings)
        while batch := compute(list(islice(decoded, batch_size))):
            yield batch


def predict_recorded(
    model: keras.Model, root: Path, rows: Sequence[Mapping[str, str]], decoder_settings: DecoderSettings,
    progress: Progress, label: str,
) -> np.ndarray:  # fmt: skip
    """Return a model's outputs [N, ...] float32 for recorded images; DataError if one is gone or has changed."""
    files, issues, outputs = [], [], list[np.ndarray]()
    for row in rows:
        path = recorded_path(root, row["path"])
        files.append(str(root / path))
        try:
            unchanged(root, path, row["sha256"])
        except DataError as error:
            issues.append(f"{printable(path)}: {str(error).partition(';')[0]}")
    if not issues:
        with progress.stage(label, len(files)) as advance:
            for batch in predictions(model, files, BATCH_SIZE, decoder_settings):
                issues += [f"{printable(path)}: {error}" for path, _, error, _ in batch if error]
                outputs += [output for _, output, _, _ in batch if output is not None]
                advance(len(batch))
    if issues:
        more = f" and {len(issues) - 1} more" if len(issues) > 1 else ""
        raise DataError(f"{issues[0]}{more}. --data FOLDER names the folder where the images are now")
    return np.stack(outputs)


def decode_ahead(
    pool: ThreadPoolExecutor, files: Iterable[str | Image.Image], size: int, most: int, settings: DecoderSettings
) -> Iterator[tuple[str, np.ndarray | str]]:
    """Yield the path and the image of each file in order, with up to `most` images decoded ahead.

    An image is pixels [size, size, 3] uint8, or a text that gives the reason why the file cannot be used.
    """
    remaining = iter(files)
    decoded: deque[tuple[str, Future[np.ndarray | str]]] = deque()
    while True:
        for file in islice(remaining, most - len(decoded)):
            if isinstance(file, str):
                decoded.append((file, pool.submit(read_image, file, size, settings)))
            else:
                decoded.append(("", pool.submit(resize_image, file, size, settings)))
        if not decoded:
            return
        path, future = decoded.popleft()
        yield path, future.result()


def read_image(path: str, size: int, decoder_settings: DecoderSettings) -> np.ndarray | str:
    """Return an image file's pixels [size, size, 3] uint8 as in training, or why the file cannot be used."""
    try:
        # O_NONBLOCK: a pipe that no process writes to would block.
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return "is not a regular file"
            warned: list[str] = []
            pixels = decoder.decode_resized(decoder.read(file), size, decoder_settings, warned)
        for text in warned:
            _log.warning("%s: %s", printable(path), text)
        return pixels
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except MemoryError:
        return "is too large for this machine's memory"
    except DataError as error:
        return str(error).partition(";")[0]


def resize_image(image: Image.Image, size: int, decoder_settings: DecoderSettings) -> np.ndarray | str:
    """Return an image's pixels [size, size, 3] uint8 as those of a file that holds it, or why it cannot be used.

    Modes other than RGB go through a file in memory, so that the decoder treats transparency, palettes and grays of 16
    and 32 bits as it does those of files.
    """
    content = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in WITHOUT_FILE:
            upright = upright.convert(WITHOUT_FILE[upright.mode])
        if upright.mode == "RGB" and "transparency" not in upright.info:
            return resize(upright, size, decoder_settings.resize)
        if upright.mode in ("I", "F"):
            upright.save(content, "TIFF")
        else:
            upright.save(content, "PNG", compress_level=1)
        return decoder.decode_resized(content.getvalue(), size, decoder_settings)
    except (OSError, DataError) as error:  # the image is truncated, or the meaning of its values is not known
        return str(error).partition(";")[0]
