"""Images of any proportions become squares as Keras makes them, and heatmaps find their way back."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import keras
import numpy as np
import pytest
from PIL import Image

from experiments.data import manifest
from experiments.data.pixel_cache import images_of
from experiments.data.types import Manifest, SplitSettings
from experiments.deploy.predict import resize_image
from experiments.errors import ConfigError, DataError
from experiments.images.decoder_settings import MAX_PIXELS, DecoderSettings, Resize
from experiments.images.resizing import fit, map_back, resize

SHAPES = [(90, 60), (40, 120), (57, 57), (200, 3)]  # width, height
WAYS = get_args(Resize)
KERAS: dict[str, dict[str, bool]] = {
    "squash": {}, "pad": {"pad_to_aspect_ratio": True}, "crop": {"crop_to_aspect_ratio": True}
}  # fmt: skip


def smooth(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    bands = 120 + 60 * np.sin(columns / width * 6), 120 + 60 * np.cos(rows / height * 6), 100 + 50 * rows / height
    return Image.fromarray(np.stack(bands, axis=-1).astype("uint8"))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_pixels_are_those_of_keras(how: Resize, shape: tuple[int, int]) -> None:
    image = smooth(*shape)
    expected = keras.ops.image.resize(
        np.asarray(image, "float32"), (24, 24), antialias=True, data_format="channels_last", **KERAS[how]
    )
    difference = np.abs(resize(image, 24, how).astype(float) - np.asarray(expected))
    assert np.median(difference) < 1.5 and difference.mean() < 4  # Keras blends the borders of padding with black


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_square_of_uint8_whatever_the_proportions(how: Resize, shape: tuple[int, int]) -> None:
    pixels = resize(Image.new("RGB", shape, (9, 99, 199)), 16, how)
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
    black = (pixels == 0).all(axis=-1).mean()
    assert black == pytest.approx(1 - max(1, round(16 * min(shape) / max(shape))) / 16 if how == "pad" else 0)
    assert set(map(tuple, pixels.reshape(-1, 3).tolist())) <= {(0, 0, 0), (9, 99, 199)}


def test_fit_centers_the_image() -> None:
    rows = np.asarray(fit(Image.new("RGB", (40, 20), "red"), 8, "white"))[:, 0].tolist()
    assert rows == [[255] * 3] * 2 + [[255, 0, 0]] * 4 + [[255] * 3] * 2


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("shape", [(90, 60), (40, 120), (64, 64)])
def test_heat_lies_on_the_place_of_the_original_that_it_came_from(how: Resize, shape: tuple[int, int]) -> None:
    width, height = shape
    for x, y in ((width // 2, height // 2), (width // 2 - 12, height // 2 + 14)):
        rows, columns = np.mgrid[:height, :width]
        spot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
        image = Image.fromarray(np.repeat(spot[..., None], 3, axis=-1).astype("uint8"))
        heat = map_back(resize(image, 48, how)[..., 0].astype("float32"), shape, how)
        assert heat.shape == (height, width)
        found_y, found_x = np.unravel_index(np.nanargmax(heat), heat.shape)
        assert abs(found_x - x) <= 2 and abs(found_y - y) <= 2


def test_what_crop_cuts_off_has_no_heat() -> None:
    heat = map_back(np.ones((8, 8)), (30, 10), "crop")
    assert np.isnan(heat).any(axis=0).tolist() == [True] * 10 + [False] * 10 + [True] * 10
    assert not np.isnan(map_back(np.ones((8, 8)), (30, 10), "pad")).any()


def test_settings_are_read_from_whatever_recorded_them() -> None:
    settings = DecoderSettings((0, 4095), "pad", 1000)
    assert DecoderSettings.of({"gray_range": [0, 4095], "resize": "pad", "max_pixels": 1000, "root": "x"}) == settings
    logged = {"data.gray_range": "[0.0, 4095.0]", "data.resize": "pad", "data.max_pixels": "1000"}
    assert DecoderSettings.logged(logged) == settings
    before = DecoderSettings(None, "squash", MAX_PIXELS)  # what version 0.1 did
    assert DecoderSettings.of({"gray_range": None}) == DecoderSettings.of({}) == DecoderSettings.logged({}) == before
    odd = {"data.gray_range": "[1]", "data.resize": "stretch", "data.max_pixels": "${oc.env:X}"}
    assert DecoderSettings.logged(odd) == before
    with pytest.raises(ConfigError, match=r"^data\.resize and data\.max_pixels: came from the environment"):
        DecoderSettings.of({"gray_range": None, "resize": "${oc.env:HOW}", "max_pixels": "${oc.env:X}"})


def test_keys_of_caches_change_only_with_what_they_depend_on() -> None:
    assert DecoderSettings().pixels_key() == DecoderSettings().validation_key() == {"gray_range": None}
    assert DecoderSettings(max_pixels=9).pixels_key() == DecoderSettings(resize="pad").validation_key()
    assert DecoderSettings(resize="pad").pixels_key() == {"gray_range": None, "resize": "pad"}
    assert DecoderSettings(max_pixels=9).validation_key() == {"gray_range": None, "max_pixels": 9}


def test_a_data_set_is_read_as_its_settings_say(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        for at, name in enumerate(("a", "b")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            smooth(40 + at, 20 + (split == "train")).save(tmp_path / "data" / split / name / "x.png")
    root, cache = tmp_path / "data", tmp_path / "cache"

    def read(**settings: object) -> Manifest:
        return manifest.read(root, SplitSettings({}), decoder_settings=DecoderSettings.of(settings), cache=cache)

    for how in WAYS:
        pixels = images_of(read(resize=how), "train", 16, cache, held=True).pixels[:]
        np.testing.assert_array_equal(pixels[0], resize(Image.open(root / "train/a/x.png"), 16, how))
    assert len(read(max_pixels=41 * 21).entries) == 4
    with pytest.raises(DataError, match=r"train/b/x.png: is too large \(41 x 21 pixels, at most 860\)"):
        read(max_pixels=41 * 21 - 1)  # although all are known to be valid with a larger limit


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "HSV", "LAB", "I;16"]
)
def test_images_of_every_mode_of_pillow_are_used(mode: str) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (20, 30), "uint8")
    image = Image.fromarray(gray * np.uint16(257) if mode == "I;16" else gray)
    for step in {"La": ("LA",), "PA": ("P",), "RGBa": ("RGBA",), "LAB": ("RGB",)}.get(mode, ()):
        image = image.convert(step)
    image = image if mode == "I;16" else image.convert(mode)
    found = resize_image(image, 20, DecoderSettings())
    assert not isinstance(found, str)
    expected = gray if mode != "1" else np.asarray(Image.fromarray(gray).convert("1").convert("L"))
    difference = np.abs(found.astype(int) - resize(Image.fromarray(expected).convert("RGB"), 20))
    assert difference.max() <= (6 if mode == "LAB" else 1)


@pytest.mark.parametrize("kind", ["int32", "float32"])
def test_32_bit_grays_in_memory_need_a_range(kind: str) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (20, 30), "uint8")
    image = Image.fromarray(gray.astype(kind) * 1000)
    reason = resize_image(image, 20, DecoderSettings())
    assert isinstance(reason, str) and "nothing says which values are black and white" in reason
    found = resize_image(image, 20, DecoderSettings((0, 255_000)))
    np.testing.assert_array_equal(found, resize_image(Image.fromarray(gray), 20, DecoderSettings()))
