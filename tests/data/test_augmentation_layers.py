"""Every shipped augmentation as a run meets it: draws that follow from (seed, epoch), pixels in range, true labels."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from experiments.config import choices
from experiments.config.composing import read
from experiments.config.schema import Config
from experiments.data import augmentation
from experiments.data.input_pipeline import image_batches
from experiments.data.types import ImageRecord, ImageSet
from experiments.errors import ConfigError
from experiments.regimes import build
from experiments.storage.array_cache import Rows

SIZE = 32
NAMES = [name for name in choices.shipped("augmentation") if name != "none"]
MIXING = ["mixup", "cutmix"]
# Our own moves, Keras's random layers, mixed images and TrivialAugment; the others are made of the same.
EACH_KIND = [
    name if name in ("tutorial", "colour", "mixup", "trivialaugment") else pytest.param(name, marks=pytest.mark.slow)
    for name in NAMES
]
LAYERS = [
    (name, at) for name, node in choices.shipped("augmentation").items() for at in range(len(node.get("layers", [])))
]
Batch = tuple[np.ndarray, np.ndarray]
Read = Callable[..., Config]


def smooth(count: int) -> np.ndarray:
    """[count, SIZE, SIZE, 3] uint8 over the whole scale, smooth so that small moves change a little."""
    rng = np.random.default_rng(0)
    coarse = tf.image.resize(tf.constant(rng.integers(0, 256, (count, 5, 5, 3)), tf.float32), (SIZE, SIZE))
    return np.asarray(coarse).round().astype("uint8")


def split(pixels: np.ndarray, labels: np.ndarray) -> ImageSet:
    entries = tuple(ImageRecord(f"{n}.jpg", 1, f"{n}", SIZE, SIZE, "RGB", "a", "train") for n in range(len(pixels)))
    return ImageSet("train", entries, labels.astype("int32"), SIZE, lambda: Rows([pixels]))


def batches(config: Config, images: ImageSet, epochs: range, classes: int = 2, seed: int = 0) -> list[Batch]:
    """Batches of 4, the layers built anew."""
    built = image_batches(
        images,
        classes=classes,
        augmentation=build.build_augmentation(config.augmentation, ()),
        extra_layers=build.build_layers(config.augmentation, ()),
        batch_size=4,
        seed=seed,
        epochs=epochs,
    )
    return [(np.asarray(pixels), np.asarray(labels)) for pixels, labels in built.dataset]


@functools.cache
def two_epochs(name: str) -> list[Batch]:
    """Of nine images."""
    return batches(read([f"augmentation={name}"]), split(smooth(9), np.arange(9) % 2), range(2))


def digest(name: str) -> str:
    found = two_epochs(name)
    return hashlib.sha256(b"".join(pixels.tobytes() + labels.tobytes() for pixels, labels in found)).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_pixels_keep_type_shape_and_range_down_to_a_last_batch_of_one(name: str) -> None:
    found = two_epochs(name)
    assert [pixels.shape for pixels, _ in found] == [(count, SIZE, SIZE, 3) for count in (4, 4, 1, 4, 4, 1)]
    for pixels, labels in found:
        assert pixels.dtype == np.float32
        assert pixels.min() >= 0 and pixels.max() <= 255 and pixels.max() > 2, "neither nan nor in [0, 1]"
        shape = (len(pixels), 2) if name in MIXING else (len(pixels),)
        assert labels.shape == shape and labels.dtype == (np.float32 if name in MIXING else np.int32)


@pytest.mark.parametrize("name", EACH_KIND)
def test_an_epochs_draws_repeat_wherever_it_starts_and_differ_from_the_next(name: str, config: Read) -> None:
    images = split(np.repeat(smooth(1), 9, axis=0), np.arange(9) % 2)  # all alike: what differs is drawn
    whole = batches(config(f"augmentation={name}"), images, range(3))
    later = batches(config(f"augmentation={name}"), images, range(2, 3))
    for (pixels, labels), (again, same) in zip(whole[6:], later, strict=True):
        np.testing.assert_array_equal(pixels, again)
        np.testing.assert_array_equal(labels, same)
    other = batches(config(f"augmentation={name}"), images, range(1), seed=1)
    for epoch, two in ((whole[:3], whole[3:6]), (whole[:3], other)):
        pairs = zip(np.concatenate([b[0] for b in epoch]), np.concatenate([b[0] for b in two]), strict=True)
        assert sum(not np.array_equal(a, b) for a, b in pairs) >= 8, "of nine; RandAugment may draw the same twice"
    seen = {row.tobytes() for pixels, _ in whole for row in pixels}
    assert len(seen) >= 22, "of 27 alike, each is drawn for itself"


@pytest.mark.slow  # the test of draws that repeat is this one in a process
def test_a_fresh_process_draws_the_same() -> None:
    code = "import json, sys; sys.path.insert(0, sys.argv[1]); import test_augmentation_layers as t; "
    code += "print(json.dumps({name: t.digest(name) for name in t.NAMES}))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {name: digest(name) for name in NAMES}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", MIXING)
def test_labels_are_mixed_as_the_images_are(name: str, classes: int, config: Read) -> None:
    """A class is a channel: an image's mean colour tells its shares."""
    labels = np.arange(12 * classes + 1) % classes
    pixels = np.zeros((len(labels), SIZE, SIZE, 3), "uint8")
    pixels[np.arange(len(labels)), :, :, labels] = 255
    found = batches(config(f"augmentation={name}"), split(pixels, labels), range(4), classes=classes)
    shares = np.concatenate([labels for _, labels in found])
    colours = np.concatenate([pixels for pixels, _ in found]).mean(axis=(1, 2))[:, :classes] / 255
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    # Keras counts a rectangle's area before its edges are rounded to whole pixels: less than one row and one column.
    np.testing.assert_allclose(shares, colours, atol=2 / SIZE if name == "cutmix" else 1e-4)
    mixed = shares[(shares.max(axis=1) < 0.99)]
    assert len(mixed) > 0.15 * len(shares)
    assert len(np.unique(mixed.max(axis=1).round(6))) > 0.9 * len(mixed), "each image has a share of its own"
    last = [labels for _, labels in found if len(labels) == 1]
    assert last and all(sorted(row) == [*[0] * (classes - 1), 1] for (row,) in last), "alone it stays whole"


def test_cutmix_pastes_one_rectangle_of_one_other_image(config: Read) -> None:
    read_config = config("augmentation=cutmix", *(f"augmentation.{key}=0" for key in ("rotation", "zoom")),
                         "augmentation.width_shift=0", "augmentation.height_shift=0")  # fmt: skip
    levels = np.array([10, 90, 170, 250], "uint8")
    pixels = np.broadcast_to(levels[:, None, None, None], (4, SIZE, SIZE, 3)).copy()
    (drawn, _), *_ = batches(read_config, split(pixels, np.arange(4) % 2), range(1))
    pasted = 0
    for image in drawn[..., 0].round():
        values, counts = np.unique(image, return_counts=True)
        assert len(values) <= 2 and set(values) <= {10, 90, 170, 250}
        for value in values:
            rows, columns = np.nonzero(image == value)
            box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            pasted += len(values) == 2 and box == len(rows) and box < image.size
        assert counts.sum() == SIZE * SIZE
    assert pasted, "at least one of four is cut"


@pytest.mark.parametrize("name", MIXING)
def test_mixing_is_refused_where_labels_or_views_do_not_allow_it(name: str, config: Read) -> None:
    with pytest.raises(ConfigError, match=r"augmentation\.layers: keras\.layers\.\w+ mixes labels, and loss=hinge"):
        config(f"augmentation={name}", "loss=hinge", "objective=accuracy")
    with pytest.raises(ConfigError, match=r"regime\.views: must be 0 with keras\.layers\.\w+, .*Received: 4"):
        config(f"augmentation={name}", "regime=finetune", "regime.views=4")
    config(f"augmentation={name}", "regime=finetune", "regime.views=0")
    config(f"augmentation={name}", "regime=bottleneck", "loss=hinge", "objective=accuracy")  # reads no augmentation


@pytest.mark.parametrize("name, at", LAYERS)
def test_layers_list_exactly_their_constructors_arguments(name: str, at: int) -> None:
    node = choices.shipped("augmentation")[name]["layers"][at]
    module, _, kind = node["_target_"].rpartition(".")
    parameters = set(inspect.signature(getattr(importlib.import_module(module), kind)).parameters)
    assert set(node) - {"_target_"} == parameters - {"kwargs"}
    assert node.get("value_range", [0, 255]) == [0, 255]
    built = build.build_layer(node, at, ()).get_config()
    for key, value in node.items():
        if key not in ("_target_", "data_format"):
            assert built[key] == (tuple(value) if isinstance(built[key], tuple) else value), key


def test_a_layers_argument_is_an_override_and_a_wrong_one_is_explained(config: Read) -> None:
    changed = config(
        "augmentation=strong", "augmentation.layers.0.hue_factor=0.5", "augmentation.layers.1.scale=[0.1,0.2]"
    )
    built = build.build_layers(changed.augmentation, ())
    assert built[0].hue_factor == 0.5 and built[1].scale == (0.1, 0.2)
    with pytest.raises(ConfigError, match=r"hue_facto: nothing reads this key.*Nearest: .*hue_factor"):
        read(["augmentation=strong", "augmentation.layers.0.hue_facto=0.5"])


def test_layers_in_a_row_draw_for_themselves_and_leave_pixels_in_range() -> None:
    layers = [keras.layers.RandomContrast(0.5), keras.layers.RandomContrast(0.5), keras.layers.Rescaling(9.0)]
    pixels, _ = augmentation.seeded(layers)(tf.fill((1, 2, 2, 3), 100.0), tf.zeros((1, 2)), tf.constant([1, 2]))
    assert np.max(pixels) == 255
    first, second = (np.asarray(layer.variables[0]).tolist() for layer in layers[:2])
    assert first != second


@pytest.fixture
def bfloat16() -> Iterator[None]:
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("name", EACH_KIND)
def test_mixed_precision_leaves_the_pixels_their_precision(name: str, config: Read, bfloat16: None) -> None:
    first, *_ = batches(config(f"augmentation={name}"), split(smooth(9), np.arange(9) % 2), range(1))
    keras.config.set_dtype_policy("float32")
    np.testing.assert_array_equal(first[0], two_epochs(name)[0][0])


# --- RandAugment

PEERS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, amount: image,
    "auto_contrast": lambda image, amount: ImageOps.autocontrast(image),
    "equalize": lambda image, amount: ImageOps.equalize(image),
    "solarize": lambda image, amount: ImageOps.solarize(image, round(256 - abs(amount))),
    "posterize": lambda image, amount: ImageOps.posterize(image, 8 - round(abs(amount))),
    "color": lambda image, amount: ImageEnhance.Color(image).enhance(1 + amount),
    "contrast": lambda image, amount: ImageEnhance.Contrast(image).enhance(1 + amount),
    "brightness": lambda image, amount: ImageEnhance.Brightness(image).enhance(1 + amount),
    "sharpness": lambda image, amount: ImageEnhance.Sharpness(image).enhance(1 + amount),
}


@pytest.mark.parametrize("share", [-0.5, 0.5, -1.0, 1.0])
@pytest.mark.parametrize("name", augmentation.COLOURS)
def test_colour_operations_are_pillows(name: str, share: float) -> None:
    """At half of RandAugment's range and at the end of TrivialAugment's."""
    pixels = smooth(4) // 2 + 40
    ranges = augmentation.OPERATIONS if abs(share) < 1 else augmentation.WIDE
    amount = np.float32(share * ranges[name])
    ours = augmentation.recolour(name, tf.constant(pixels, tf.float32), tf.fill((4, 1, 1, 1), amount))
    for mine, image in zip(np.asarray(ours), pixels, strict=True):
        peer = np.asarray(PEERS[name](Image.fromarray(image), float(amount)), "float32")
        assert np.abs(mine - peer)[1:-1, 1:-1].max() < 2.5  # Pillow rounds on the way; its edges are not sharpened
    assert name == "identity" or not np.array_equal(ours, pixels)
    empty = augmentation.recolour(name, tf.zeros((0, SIZE, SIZE, 3)), tf.zeros((0, 1, 1, 1)))
    assert empty.shape == (0, SIZE, SIZE, 3), "a batch in which nobody drew this operation"


def test_a_flat_image_stays_flat() -> None:
    flat = tf.fill((1, SIZE, SIZE, 3), 100.0)
    for name in ("auto_contrast", "equalize", "sharpness", "contrast", "color"):
        np.testing.assert_allclose(augmentation.recolour(name, flat, tf.fill((1, 1, 1, 1), 0.5)), 100, atol=0.01)


def rand(**changes: Any) -> Any:
    given: dict[str, Any] = {"operations": 2, "magnitude": 0.3, "horizontal_flip": True, "fill": "nearest"}
    return augmentation.randaugment(**given | changes)


def test_what_happens_to_a_image_does_not_depend_on_its_batch() -> None:
    pixels, rand_augment = smooth(16), rand()
    numbers = rand_augment.draw(np.random.default_rng(0), 16, SIZE)
    together = np.asarray(rand_augment(pixels, numbers))
    for at in range(16):
        np.testing.assert_array_equal(rand_augment(pixels[at : at + 1], numbers[at : at + 1])[0], together[at])


def test_operations_are_drawn_alike_often_and_go_both_ways() -> None:
    numbers = rand(operations=1).draw(np.random.default_rng(0), 14000, SIZE)
    counts = np.bincount(numbers[:, 1].astype(int), minlength=14)
    assert len(counts) == 14 and counts.min() > 850 and counts.max() < 1150
    assert 0.48 < numbers[:, 0].mean() < 0.52
    for at, (name, most) in enumerate(augmentation.OPERATIONS.items()):
        amounts = numbers[numbers[:, 1] == at, 2]
        np.testing.assert_allclose(np.abs(amounts), 0.3 * most, rtol=1e-6)
        if most:
            assert 0.4 < (amounts > 0).mean() < 0.6, name


@pytest.mark.parametrize("name", augmentation.MOVES)
def test_moves_turn_about_the_centre_and_keep_it_or_shift_it(name: str) -> None:
    at = list(augmentation.OPERATIONS).index(name)
    numbers = rand(operations=1, magnitude=1.0).draw(np.random.default_rng(0), 500, SIZE)
    a0, a1, a2, b0, b1, b2 = numbers[numbers[:, 1] == at][:, 3:9].T
    centre = (SIZE - 1) / 2
    x, y = a0 * centre + a1 * centre + a2 - centre, b0 * centre + b1 * centre + b2 - centre
    np.testing.assert_allclose(np.abs(x), SIZE * 150 / 331 if name == "translate_x" else 0, atol=1e-4)
    np.testing.assert_allclose(np.abs(y), SIZE * 150 / 331 if name == "translate_y" else 0, atol=1e-4)
    if name == "rotate":
        np.testing.assert_allclose(np.abs(np.rad2deg(np.arctan2(b0, a0))), 30, atol=1e-3)
    for shear, other in ((a1, "shear_x"), (b0, "shear_y")):
        if name in ("shear_x", "shear_y"):
            np.testing.assert_allclose(np.abs(shear), 0.3 if name == other else 0, atol=1e-6)


def test_no_magnitude_moves_and_recolours_nothing_but_by_the_histogram() -> None:
    pixels = smooth(64)
    none = rand(magnitude=0.0, operations=1, horizontal_flip=False)
    numbers = none.draw(np.random.default_rng(0), 64, SIZE)
    kinds = np.array(list(augmentation.OPERATIONS))[numbers[:, 1].astype(int)]
    for kind, before, after in zip(kinds, pixels, np.asarray(none(pixels, numbers)), strict=True):
        if kind not in ("auto_contrast", "equalize"):
            np.testing.assert_allclose(after, before, atol=1e-3, err_msg=kind)


# --- TrivialAugment


def trivial(fill: str = "constant") -> Any:
    return augmentation.trivialaugment(horizontal_flip=False, fill=fill)


def test_trivialaugment_draws_one_operation_at_one_of_31_levels_of_the_wide_ranges() -> None:
    wide = {
        "identity": 0, "auto_contrast": 0, "equalize": 0, "solarize": 256, "posterize": 6, "color": 0.99,
        "contrast": 0.99, "brightness": 0.99, "sharpness": 0.99, "rotate": 135, "shear_x": 0.99, "shear_y": 0.99,
        "translate_x": 32 / 224, "translate_y": 32 / 224,
    }  # fmt: skip
    assert wide == augmentation.WIDE and list(wide) == list(augmentation.OPERATIONS)
    numbers = trivial().draw(np.random.default_rng(0), 28000, SIZE)
    assert numbers.shape == (28000, 11)
    for at, most in enumerate(wide.values()):
        amounts = numbers[numbers[:, 1] == at, 2]
        assert 1800 < len(amounts) < 2200
        if most:
            levels = 30 * np.abs(amounts) / most
            np.testing.assert_allclose(levels, levels.round(), atol=1e-4)
            counts = np.bincount(levels.round().astype(int), minlength=31)
            assert len(counts) == 31 and counts.min() > 30, "each about 65 times"
            assert 0.45 < (amounts > 0).mean() < 0.55


@pytest.mark.parametrize("name", augmentation.MOVES)
def test_trivialaugments_moves_at_the_highest_level_are_pillows(name: str) -> None:
    side = 28  # 32 / 224 of which are whole pixels
    pixels = smooth(1)[:, :side, :side]
    numbers = trivial().draw(np.random.default_rng(0), 8000, side)
    amount = augmentation.WIDE[name]
    highest = np.isclose(numbers[:, 2], amount) & (numbers[:, 1] == list(augmentation.WIDE).index(name))
    ours = np.asarray(trivial("nearest")(pixels, numbers[highest][:1]))[0]  # as Pillow reads half a pixel outside
    maps = {
        "shear_x": (1, amount, -amount * side / 2, 0, 1, 0),
        "shear_y": (1, 0, 0, amount, 1, -amount * side / 2),
        "translate_x": (1, 0, 4, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 4),
    }

    def peer(image: np.ndarray) -> np.ndarray:
        whole, bilinear = Image.fromarray(image), Image.Resampling.BILINEAR
        if name == "rotate":
            return np.asarray(whole.rotate(amount, bilinear))
        return np.asarray(whole.transform(whole.size, Image.Transform.AFFINE, maps[name], bilinear))

    inside = peer(np.full_like(pixels[0], 255)) == 255  # Pillow leaves the rest black
    assert inside.mean() > 0.5
    assert np.abs(ours - peer(pixels[0]))[inside].max() < 1.5  # Pillow rounds
    white = np.full_like(pixels, 255)
    darkest = [int(np.min(trivial(fill)(white, numbers[highest][:1]))) for fill in ("nearest", "constant")]
    assert darkest == [255, 0], "outside of the image"


def test_trivialaugment_changes_most_images() -> None:
    pixels = smooth(64)
    changed = np.asarray(trivial()(pixels, trivial().draw(np.random.default_rng(0), 64, SIZE)))
    assert sum(not np.array_equal(before, after) for before, after in zip(pixels, changed, strict=True)) > 40
