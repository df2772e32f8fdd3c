"""What `Run.predict` accepts as images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from experiments.errors import ConfigError

ImageLike = str | os.PathLike[str] | np.ndarray | Image.Image


def list_images(images: Any) -> list[str | np.ndarray | Image.Image]:
    """Return the single images of what `Run.predict` accepts: paths of files, arrays [H, W, 3] or [H, W], PIL images.

    Raises:
        ConfigError: paths do not exist, each of which is named, or an input is no image.
    """
    from experiments.deploy.predict import list_files

    listed: list[str | np.ndarray | Image.Image] = []
    lacking = []
    for image in _each(images):
        if isinstance(image, str | os.PathLike):
            try:
                listed += list_files([os.fspath(image)])[0]
            except ConfigError as error:
                lacking.append(str(error))
        else:
            listed.append(image)
    if lacking:
        raise ConfigError("\n".join(lacking))
    return listed


def _each(images: Any) -> Iterator[Any]:
    """Yield paths, arrays of one image and PIL images, out of sequences of them; other inputs are a ConfigError."""
    if isinstance(images, str | os.PathLike | Image.Image):
        yield images
        return
    pixels = np.asarray(images) if hasattr(images, "__array__") else None
    if pixels is None or pixels.dtype.kind in "OTU":  # a sequence; also an array or a series of paths
        if isinstance(images, bytes) or not isinstance(images, Iterable):
            raise ConfigError(
                "images: must be paths, uint8 arrays, PIL images, or sequences of these. Received: "
                f"{repr(images)[:60]} ({type(images).__name__}). Pixels in lists: np.asarray(pixels, 'uint8')"
            )
        for image in images:
            yield from _each(image)
        return
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim in (3, 4) and pixels.shape[-1] == 3)):
        how = (
            "Of several gray images [N, H, W]: list(array)" if pixels.dtype == np.uint8
            else "For values from 0 to 1: (255 * array).round().astype('uint8')"
        )  # fmt: skip
        raise ConfigError(
            "images: an array must be [H, W, 3], [H, W] or [N, H, W, 3] uint8, with values from 0 to 255. Received: "
            f"{list(pixels.shape)} {pixels.dtype}. {how}"
        )
    yield from (pixels if pixels.ndim == 4 else [pixels])
