"""Settings of the decoder: the keys of `data` that determine how the content of an image file becomes pixels.

They belong to a trained model: whatever predicts with it decodes with the same settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

from experiments.errors import ConfigError

GrayRange = tuple[float, float]  # the values of 16- and 32-bit grays that become black and white
Resize = Literal["squash", "pad", "crop"]
MAX_PIXELS = 89_478_485  # where Pillow starts to warn of a decompression bomb (a quarter of a gigabyte of RGB)


@dataclass(frozen=True)
class DecoderSettings:
    """How image files are decoded and resized: the keys of `data` with these names."""

    gray_range: GrayRange | None = None  # None: see `decoder.decode`
    resize: Resize = "squash"  # how an image becomes a square; see `resizing.resize`
    max_pixels: int = MAX_PIXELS  # width x height of the largest image that is decoded

    @staticmethod
    def of(data: Mapping[str, Any]) -> DecoderSettings:
        """Return the settings in the keys of `data`, or in the metadata of a logged model.

        A key that is missing, as in what earlier versions wrote, has its default.

        Raises:
            ConfigError: a value is the name of an environment variable, as in what earlier versions wrote.
        """
        if unknown := [f"data.{name}" for name in vars(DEFAULTS) if "${" in str(data.get(name))]:
            raise ConfigError(
                f"{' and '.join(unknown)}: came from the environment, and an earlier version has not recorded the "
                "value, so that images cannot be decoded as for the training. Write it into the config.yaml of the run"
            )
        grays = data.get("gray_range")
        return DecoderSettings(
            (float(grays[0]), float(grays[1])) if grays is not None else None,
            data.get("resize", DEFAULTS.resize),
            data.get("max_pixels", DEFAULTS.max_pixels),
        )

    @staticmethod
    def logged(parameters: Mapping[str, str]) -> DecoderSettings:
        """Return the settings in the parameters that a run has logged; a text that is no valid value is ignored."""
        found: dict[str, Any] = {}
        with suppress(ValueError, TypeError):  # null, or any other text, which a tracking store may contain
            low, high = json.loads(parameters.get("data.gray_range", "null"))
            found["gray_range"] = float(low), float(high)
        if (resize := parameters.get("data.resize")) in get_args(Resize):
            found["resize"] = resize
        if (most := parameters.get("data.max_pixels", "")).isdecimal():
            found["max_pixels"] = int(most)
        return DecoderSettings(**found)

    def pixels_key(self) -> dict[str, Any]:
        """Return what the pixels of a valid image depend on, for the keys of caches.

        `squash` is omitted, so that entries of versions that knew nothing else stay valid.
        """
        return {"gray_range": self.gray_range} | ({} if self.resize == "squash" else {"resize": self.resize})

    def validation_key(self) -> dict[str, Any]:
        """Return what the validity of an image depends on, for the keys of caches; the default limit is omitted."""
        limit = {} if self.max_pixels == MAX_PIXELS else {"max_pixels": self.max_pixels}
        return {"gray_range": self.gray_range} | limit


DEFAULTS = DecoderSettings()
