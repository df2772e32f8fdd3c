"""MLflow pyfunc model that serves a run's model: image files or arrays of pixels in, classes and probabilities out.

Every logged model contains a copy of this file and of the modules that it imports (`model_logging.copy_code`). Hence it
imports no more of this package than the decoder needs.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from experiments.errors import DataError
from experiments.images import decoder
from experiments.images.decoder_settings import DEFAULTS, DecoderSettings

BATCH = 32
IMAGE = "image"  # name of the column with image files
OLD_IMAGE = "picture"  # its name in version 0.1
SHOWN = 20  # maximum number of issues that the response to a request lists


def _load_pyfunc(path: str) -> Classifier:  # MLflow prescribes this name.
    """Load the classifier that responds to requests from the directory of a logged model."""
    model = keras.models.load_model(os.path.join(path, "data", "model.keras"), compile=False)
    facts = Model.load(path).metadata or {}
    settings = DecoderSettings.of(facts)
    return Classifier(model, facts["classes"], settings, facts.get("positive"), facts.get("threshold"))


class Classifier:
    """Classifier of images, as MLflow's pyfunc API expects it.

    Args:
        model: pixels [B, H, W, 3] in [0, 255] -> probabilities [B, classes].
        classes: the names of the classes, in label order.
        decoder_settings: those that the model was trained with.
        positive: of two classes, the one that is predicted from `threshold` on.
        threshold: a probability; None: the most probable class is predicted.
    """

    def __init__(
        self, model: keras.Model, classes: Sequence[str], decoder_settings: DecoderSettings = DEFAULTS,
        positive: str | None = None, threshold: float | None = None,
    ) -> None:  # fmt: skip
        self.positive, self.threshold = positive, threshold
        self.classes, self.size, self.decoder_settings = list(classes), int(model.input_shape[1]), decoder_settings
        signature = [tf.TensorSpec((None, self.size, self.size, 3), tf.float32)]
        self._run = tf.function(lambda pixels: model(pixels, training=False), input_signature=signature)

    def predict(self, data: Any) -> pd.DataFrame:
        """Return a row for each image: its class, the class's probability, the probabilities of all classes by name.

        The rows of a table keep its index, so that the answers can be joined to it.

        Args:
            data: image files as bytes or base64 text, in a table with the column `image` or in a list; or pixels
                [N, H, W, 3] or [H, W, 3] in [0, 255] of the model's image size.

        Raises:
            MlflowException: the issues of the data by row; MLflow responds to the request with status 400.
        """
        if isinstance(data, dict):
            data = pd.DataFrame({name: list(values) for name, values in data.items()})
        index = data.index if isinstance(data, pd.DataFrame) else None
        if isinstance(data, pd.DataFrame):
            data = data.rename(columns={OLD_IMAGE: IMAGE}) if IMAGE not in data.columns else data
            if IMAGE not in data.columns:
                names = ", ".join(map(str, data.columns)) or "none"
                raise MlflowException.invalid_parameter_value(
                    f"the column {IMAGE!r} with image files (JPEG, PNG, ...) as base64 is needed. Received: {names}"
                )
            pixels = self._decoded(data[IMAGE].tolist())
        elif isinstance(data, list) and all(isinstance(file, str | bytes) for file in data):
            pixels = self._decoded(data)
        else:
            pixels = self._checked(np.asarray(data))
        batches = [self._run(pixels[at : at + BATCH].astype("float32")) for at in range(0, len(pixels), BATCH)]
        rows = np.concatenate([np.zeros((0, len(self.classes))), *batches])  # [N, classes] float64
        best = rows.argmax(axis=1)
        if self.positive is not None and self.threshold is not None:
            positive = self.classes.index(self.positive)
            best = np.where(rows[:, positive] >= self.threshold, positive, 1 - positive)
        return pd.DataFrame({
            "class": [self.classes[at] for at in best],
            "probability": rows[np.arange(len(rows)), best],
            "probabilities": [dict(zip(self.classes, row.tolist(), strict=True)) for row in rows],
        }, index=index)  # fmt: skip

    def _decoded(self, files: Sequence[Any]) -> np.ndarray:
        """Decode image files to pixels [N, H, W, 3] uint8, or raise MlflowException."""
        pixels = np.zeros((len(files), self.size, self.size, 3), "uint8")

        def decode(row: int) -> str | None:
            try:
                pixels[row] = decoder.decode_resized(_content(files[row]), self.size, self.decoder_settings)
            except DataError as error:
                return f"row {row} {error}"
            return None

        with ThreadPoolExecutor() as pool:
            issues = [issue for issue in pool.map(decode, range(len(files))) if issue]
        if issues:
            more = [f"and {len(issues) - SHOWN} more"] if len(issues) > SHOWN else []
            raise MlflowException.invalid_parameter_value(
                f"{len(issues)} of {len(files)} images cannot be used: {'; '.join([*issues[:SHOWN], *more])}"
            )
        return pixels

    def _checked(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels as [N, H, W, 3], or raise MlflowException for a wrong shape, dtype or range."""
        shape = (self.size, self.size, 3)
        if pixels.shape == shape:
            pixels = pixels[None]
        if pixels.shape[1:] != shape or pixels.dtype.kind not in "iuf":
            raise MlflowException.invalid_parameter_value(
                f"pixels must be numbers of the shape [N, {self.size}, {self.size}, 3], RGB. "
                f"Received: {pixels.dtype} of the shape {list(pixels.shape)}. Images of any size: as files, base64, "
                f"in the column {IMAGE!r}"
            )
        inside = ((pixels >= 0) & (pixels <= 255)).all(axis=(1, 2, 3))
        if not inside.all():
            rows = ", ".join(map(str, np.flatnonzero(~inside)[:SHOWN]))
            raise MlflowException.invalid_parameter_value(f"pixels must be within 0 and 255; not so in rows {rows}")
        if pixels.size and pixels.max() <= 1 and (pixels % 1).any():  # values that were scaled would look black
            raise MlflowException.invalid_parameter_value(
                "pixels must be within 0 and 255, and none is above 1: give them without scaling"
            )
        return pixels


def _content(file: Any) -> bytes:
    """Return the bytes of an image file, which is given as bytes or as base64 text, or raise DataError."""
    if isinstance(file, bytes):
        return file
    if not isinstance(file, str):
        raise DataError(f"is no base64 text. Received: {str(file)[:50]}")
    try:
        return base64.b64decode("".join(file.split()), validate=True)
    except ValueError as error:
        raise DataError(f"is no base64 text ({error})") from None
