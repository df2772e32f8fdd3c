"""Export of a trained model as .keras and SavedModel, with a check that both reproduce its probabilities."""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from experiments import __version__
from experiments.data.decoder_settings import DecoderSettings
from experiments.data.pixel_cache import open_image
from experiments.data.resizing import resize
from experiments.deploy.saved_run import Trained
from experiments.errors import DataError
from experiments.models.network import inference_function
from experiments.storage import atomic_files

if TYPE_CHECKING:
    Run = Callable[[np.ndarray], np.ndarray]

# What users of the exported files do to an image, by `data.resize`.
RESIZING = {
    "squash": "the whole image to a square, its proportions not kept",
    "pad": "the whole image, its proportions kept, centered on a black square (Keras: pad_to_aspect_ratio=True)",
    "crop": "its largest centered square (Keras: crop_to_aspect_ratio=True)",
}
KERAS_FILE, SAVED_MODEL, ABOUT = "model.keras", "saved_model", "model.json"
TOLERANCE = {"float32": 1e-4}  # largest accepted difference in probability, by precision
COARSE = 1e-2  # the same, for all other precisions


def export(run: Trained, model: keras.Model, pixels: np.ndarray, folder: Path) -> dict[str, float]:
    """Write a model as .keras and as SavedModel, read both back and compare their probabilities with the model's.

    The directory is renamed into place after the comparison, so that it is never incomplete.

    Args:
        run: the run that trained the model.
        model: the run's model: pixels [B, H, W, 3] in [0, 255] -> probabilities [B, classes].
        pixels: [N, H, W, 3] float32, the images of the comparison.
        folder: the directory to write, which is replaced if it exists.

    Returns:
        For each format the largest difference in probability.

    Raises:
        RuntimeError: a format does not reproduce the model's probabilities.
        OSError: a file cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = atomic_files.draft(folder)
    aside.mkdir()
    try:
        model.save(aside / KERAS_FILE)
        model.export(aside / SAVED_MODEL, format="tf_saved_model", verbose=False)
        expected = inference_function(model)(pixels)
        read: dict[str, Run] = {
            KERAS_FILE: inference_function(keras.models.load_model(aside / KERAS_FILE, compile=False)),
            SAVED_MODEL: saved_model(aside / SAVED_MODEL),
        }
        differences = {name: float(np.abs(again(pixels) - expected).max()) for name, again in read.items()}
        allowed = TOLERANCE.get(run.plain["runtime"]["precision"], COARSE)
        wrong = [f"{name} by {value:.2g}" for name, value in differences.items() if not value <= allowed]
        if wrong:
            raise RuntimeError(
                f"What was exported does not give the model's probabilities: {', '.join(wrong)}, on {len(pixels)} "
                f"images; at most {allowed:g} is allowed. Nothing was kept"
            )
        atomic_files.write_file(aside / ABOUT, json.dumps(about(run, model), indent=1).encode())
        replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return differences


def saved_model(folder: Path) -> Run:
    """Return the serving function of a SavedModel, on NumPy arrays."""
    loaded = tf.saved_model.load(str(folder))
    return lambda pixels: np.asarray(loaded.serve(tf.constant(pixels)))


def about(run: Trained, model: keras.Model) -> dict[str, object]:
    """Return the contents of model.json: everything that is needed to use the exported files without this program."""
    size, settings = int(model.input_shape[1]), DecoderSettings.of(run.plain["data"])
    return {
        "classes": list(run.classes),
        "image_size": size,
        "input": f"pixels [N, {size}, {size}, 3] float32 in [0, 255], RGB; preprocessing is inside the model",
        "resize": f"{RESIZING[settings.resize]}; bilinear with antialiasing; EXIF orientation applied first",
        "data.resize": settings.resize,
        "gray_range": settings.gray_range,  # values of black and white in 16- and 32-bit gray images
        "output": "probabilities [N, classes] float32, in the order of `classes`",
        # Of two classes, the positive one is predicted from this probability on; null: the most probable class is.
        "positive": run.decision.positive,
        "threshold": run.decision.threshold,
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


def replace(aside: Path, folder: Path) -> None:
    """Rename a directory to its final name, and remove what had that name."""
    old = atomic_files.draft(folder)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def sample(run: Trained, size: int, count: int) -> tuple[np.ndarray, str]:
    """Return images to compare models on: from the run's validation split if they still exist, else random ones.

    Returns:
        Pixels [N, size, size, 3] float32 in [0, 255], and a description of the images.
    """
    data = run.plain["data"]
    root, settings = data.get("root") or data.get("images"), DecoderSettings.of(data)
    found = []
    if isinstance(root, str) and Path(root).is_dir():
        with run.manifest.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "validation"]
        for row in rows[:: max(1, len(rows) // count)][:count]:
            with contextlib.suppress(DataError):  # missing, or changed since the run
                image = open_image(Path(root), row["path"], row["sha256"], settings)
                found.append(resize(image, size, settings.resize))
    if found:
        return np.stack(found).astype("float32"), f"{len(found)} images of the run's validation split"
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 7, 7, 3)).astype("float32")
    drawn = np.clip(tf.image.resize(coarse, (size, size)) + rng.normal(0, 20, (count, size, size, 3)), 0, 255)
    return drawn.astype("float32"), f"{count} random images (those of the run's validation split are not here)"
