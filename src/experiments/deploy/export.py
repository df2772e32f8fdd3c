"""Export of a trained model to files that are used without this program, each compared with the model itself."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from experiments import __version__
from experiments.data.pixel_cache import open_image
from experiments.deploy.export_formats import FORMATS, INT8, MODEL_JSON, Infer, check_output, check_precision, convert
from experiments.deploy.rejection import temperature
from experiments.deploy.saved_run import Trained
from experiments.errors import ConfigError, DataError
from experiments.images.resizing import resize
from experiments.models.network import inference_function
from experiments.storage import atomic_files

# What users of the exported files do to an image, by `data.resize`.
RESIZING = {
    "squash": "the whole image to a square, its proportions not kept",
    "pad": "the whole image, its proportions kept, centered on a black square (Keras: pad_to_aspect_ratio=True)",
    "crop": "its largest centered square (Keras: crop_to_aspect_ratio=True)",
}
SCORES = "scores that only rank images, as of a hinge loss, and are no probabilities,"
TOLERANCE, COARSE = 1e-4, 1e-2  # largest accepted difference in probability: of float32 models, of others
BATCH = 32
REPRESENTATIVE = 200  # training images from which int8 takes the ranges of activations


class Images(NamedTuple):
    pixels: np.ndarray  # [N, size, size, 3] uint8
    labels: np.ndarray | None  # [N] int; None: random images
    description: str


class Parity(NamedTuple):
    """How an exported file agrees with the model that it was made from, on the same images."""

    file: str
    size: int  # bytes
    difference: float  # largest, of a probability
    same: float  # share of images for which both predict the same class
    accuracy: float | None  # None: the images have no labels


def export(
    run: Trained, model: keras.Model, images: Images, folder: Path, formats: Sequence[str], overwrite: bool = False
) -> list[Parity]:
    """Write a model in some formats, read each back and compare its predictions with the model's.

    The directory is renamed into place after the comparison, so that it is never incomplete.

    Returns:
        The comparison of each format, after that of the model itself (its `file` is empty).

    Raises:
        ConfigError: a format cannot express the model, or needs training images that do not exist any more, or
            `folder` exists and is not replaced.
        RuntimeError: a format does not reproduce the model's probabilities.
        OSError: a file cannot be written.
    """
    check_precision(model, formats)
    training = recorded_images(run, "train", int(model.input_shape[1]), REPRESENTATIVE) if INT8 in formats else None
    if INT8 in formats and training is None:
        raise ConfigError(
            f"--format: {INT8} needs training images of the run, to find the ranges of activations, and they are not "
            f"here (data.root: {run.recorded_root}). Possible without them: "
            f"{', '.join(name for name in FORMATS if name != INT8)}"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = atomic_files.draft(folder)
    with atomic_files.as_target(folder):
        aside.mkdir()
    try:
        allowed = TOLERANCE if run.plain["runtime"]["precision"] == "float32" else COARSE
        expected = probabilities(inference_function(model), images.pixels)
        found = [compare(run, None, expected, expected, images.labels)]
        for name in formats:
            path = aside / FORMATS[name].file
            representative = training.pixels if training else images.pixels[:0]
            given = probabilities(convert(model, name, path, representative), images.pixels)
            found.append(compare(run, path, given, expected, images.labels))
            difference, is_rounded = found[-1].difference, FORMATS[name].rounded
            if not np.isfinite(given).all() or not (is_rounded or difference <= allowed):
                raise RuntimeError(
                    f"What was exported does not give the model's probabilities: {name} by {difference:.2g}, on "
                    f"{len(expected)} images; at most {allowed:g} is allowed. Nothing was kept"
                )
        about_files = {name: parity._asdict() for name, parity in zip(formats, found[1:], strict=True)}
        content = about(run, model) | {"files": about_files, "compared_on": images.description}
        content["int8_ranges_from"] = training.description if training else None
        atomic_files.write_json(aside / MODEL_JSON, content)
        put_in_place(aside, folder, overwrite)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return found


def probabilities(infer: Infer, pixels: np.ndarray) -> np.ndarray:
    """Return probabilities [N, classes] for pixels [N, H, W, 3] uint8."""
    starts = range(0, len(pixels), BATCH)
    return np.concatenate([infer(pixels[at : at + BATCH].astype("float32")) for at in starts])


def compare(
    run: Trained, path: Path | None, given: np.ndarray, expected: np.ndarray, labels: np.ndarray | None
) -> Parity:
    """Compare a file's probabilities [N, classes] with those of the run's model."""
    size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file()) if path else 0
    predicted, before = (run.decision.predict(rows, run.classes) for rows in (given, expected))
    same = float((predicted == before).mean())
    accuracy = None if labels is None else float((predicted == labels).mean())
    return Parity(path.name if path else "", size, float(np.abs(given - expected).max()), same, accuracy)


def about(run: Trained, model: keras.Model) -> dict[str, object]:
    """Return the contents of model.json: everything that is needed to use the exported files without this program."""
    size, settings = int(model.input_shape[1]), run.decoder_settings
    divisor, what = None, "probabilities" if run.gives_probabilities else SCORES
    with contextlib.suppress(ConfigError):  # the run has no temperature
        divisor = temperature(run)
    return {
        "classes": list(run.classes),
        "image_size": size,
        "input": f"pixels [N, {size}, {size}, 3] float32 in [0, 255], RGB; preprocessing is inside the model",
        "scaling": "none: pixels stay in [0, 255]",
        "color": "RGB; transparent pixels blended with white; grays and palettes converted; color profiles not applied",
        "resize": f"{RESIZING[settings.resize]}; bilinear with antialiasing; EXIF orientation applied first",
        "data.resize": settings.resize,
        "gray_range": settings.gray_range,  # values of black and white in 16- and 32-bit gray images
        "output": f"{what} [N, classes] float32, in the order of `classes`",
        # Of two classes, the positive one is predicted from this probability on; null: the most probable class is.
        "positive": run.decision.positive,
        "threshold": run.decision.threshold,
        "temperature": divisor,  # calibrated probabilities: softmax(log(probabilities) / temperature)
        "run": run.run_id or run.name,
        "name": run.name,
        "regime": run.plain["regime"]["name"],
        "backbone": run.plain["model"]["name"],
        "validation_accuracy": run.metrics.get("validation.accuracy"),
        "versions": {
            "experiments": __version__,
            **{name: importlib.metadata.version(name) for name in ("keras", "tensorflow")},
        },
    }


def put_in_place(aside: Path, folder: Path, overwrite: bool) -> None:
    """Rename a directory to its final name, in place of an earlier export; see `check_output`."""
    check_output(folder, overwrite)
    old = atomic_files.draft(folder)
    if folder.exists():
        folder.rename(old)
    try:
        aside.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sample(run: Trained, size: int, most: int) -> Images:
    """Return images to compare models on: from the run's validation split if they still exist, else random ones."""
    found = recorded_images(run, "validation", size, most)
    if found is not None:
        return found
    rng, count = np.random.default_rng(0), min(most, BATCH)
    coarse = rng.integers(0, 256, (count, 7, 7, 3)).astype("float32")
    drawn = np.clip(tf.image.resize(coarse, (size, size)) + rng.normal(0, 20, (count, size, size, 3)), 0, 255)
    description = f"{count} random images (those of the run's validation split are not here)"
    return Images(drawn.astype("uint8"), None, description)


def recorded_images(run: Trained, split: str, size: int, most: int) -> Images | None:
    """Return evenly spread images of a split that have not changed since the run; None if none of them is here.

    The description has the number of those that are missing or have changed.
    """
    root, settings = run.recorded_root, run.decoder_settings
    if root is None or not root.is_dir():
        return None
    chosen = run.images(split, most)
    pixels, labels = [], []
    for row in chosen:
        try:
            image = open_image(root, row["path"], row["sha256"], settings)
        except DataError:
            continue
        pixels.append(resize(image, size, settings.resize))
        labels.append(int(row["label"]))
    if not pixels:
        return None
    description = f"{len(pixels)} of {len(run.images(split))} images of the run's {split} split"
    if skipped := len(chosen) - len(pixels):
        description += f" ({skipped} more are missing or have changed)"
    return Images(np.stack(pixels), np.array(labels), description)
