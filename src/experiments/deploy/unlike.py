"""How unlike the training images of a run an image is: the distance of its features from theirs.

Source: Y. Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022. The features are those
that the head receives. docs/models.md compares this distance with the probability and with the energy.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import keras
import numpy as np
from sklearn.neighbors import NearestNeighbors

from experiments.deploy.predict import Distances, predict_recorded
from experiments.deploy.saved_run import Trained
from experiments.errors import ConfigError, DataError
from experiments.evaluation.evaluate import percent
from experiments.models.head import probabilities
from experiments.runs.run_directory import TRAINING_FEATURES
from experiments.storage import named_arrays
from experiments.training.types import Progress

_log = logging.getLogger(__name__)

NEIGHBOUR = 10  # the distance is that to the training image of this rank, or to the farthest of fewer images
MOST_IMAGES, MOST_BYTES = 5_000, 32e6  # of the training features that are kept; of more images, every n-th is used


@dataclass(frozen=True)
class TrainingFeatures:
    """Features of the training images of a run, and how far its validation images are from them."""

    train: np.ndarray  # [N, D] float16, of length 1
    validation: np.ndarray  # [M] float32, the distances of the validation images

    @cached_property
    def _neighbours(self) -> NearestNeighbors:
        count = min(NEIGHBOUR, len(self.train))
        return NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute").fit(self.train.astype("float32"))

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Return how far images with features [B, D] are from the training images: [B] float32, 0 to 2."""
        distances: np.ndarray = self._neighbours.kneighbors(features)[0][:, -1].astype("float32")
        return distances

    def farthest(self, share: float) -> tuple[float, str]:
        """Return a distance within which this share of the validation images is, and a sentence on it.

        It is midway to the next validation image, so that rounding errors change no answer.
        """
        ordered = np.append(np.sort(self.validation), self.validation.max() + 1e-3)
        last = math.ceil(share * len(self.validation) - 1e-9) - 1
        largest = float(ordered[last] + ordered[last + 1]) / 2
        within = int((self.validation <= largest).sum())
        return largest, (
            f"Images farther than {largest:.3g} from the training images are unlike them: of {len(self.validation)} "
            f"validation images, {within} ({percent(within / len(self.validation))}) are not"
        )


def measure(
    run: Trained, model: keras.Model, share: float, progress: Progress, data: Path | None
) -> tuple[keras.Model, Distances, float, str]:
    """Return how images are compared with the training images of a run; `share` as in `Confidence.unlike`.

    Returns:
        The model, with which the next shares its computation; how distances are computed; the largest distance of
        images that are like the training images; and a sentence on it.

    Raises:
        ConfigError: see `training_features`.
    """
    pixels = model.inputs[0]
    outputs = model.get_layer("frozen")(pixels)
    features = keras.Model(pixels, outputs)
    known = training_features(run, features, progress, data)
    farthest, sentence = known.farthest(share)
    predicting = keras.Model(pixels, probabilities(model.get_layer("head")(outputs)))
    return predicting, Distances(features, known.distances), farthest, sentence


def training_features(run: Trained, model: keras.Model, progress: Progress, data: Path | None) -> TrainingFeatures:
    """Return the training features of a run, which are computed once and then kept in its directory.

    The model computes the features [B, D], which the head receives, from pixels [B, H, W, 3] in [0, 255].

    Raises:
        ConfigError: the images that the run was trained on are gone or have changed.
    """
    path = run.folder / TRAINING_FEATURES if run.folder else None
    kept = named_arrays.read(path) if path is not None and path.exists() else {}
    if isinstance(kept, str):
        _log.warning("%s is damaged (%s): the features are computed again", path, kept)
    elif kept:
        return TrainingFeatures(kept["train"], kept["validation"])
    train = features_of(run, model, "train", progress, data)
    lengths = np.linalg.norm(train, axis=1, keepdims=True)
    train = np.divide(train, lengths, out=np.zeros_like(train), where=lengths > 0).astype("float16")
    measured = TrainingFeatures(train, np.empty(0)).distances(features_of(run, model, "validation", progress, data))
    if path is not None:
        try:
            named_arrays.write(path, {"train": train, "validation": measured})
        except OSError as error:
            _log.warning("%s: cannot be written (%s): the next use computes the features again", path, error.strerror)
    return TrainingFeatures(train, measured)


def features_of(run: Trained, model: keras.Model, split: str, progress: Progress, data: Path | None) -> np.ndarray:
    """Return the features [N, D] float32 of a split's images, evenly chosen if there are too many.

    Raises:
        ConfigError: an image is gone or has changed.
    """
    most = min(MOST_IMAGES, max(int(MOST_BYTES / (2 * model.output_shape[-1])), 1))
    try:
        rows = run.images(split, most)
        return predict_recorded(model, run.data_root(data), rows, run.decoder_settings, progress, f"{split} features")
    except (DataError, ConfigError) as error:
        raise ConfigError(
            f"--unlike: the features of the {split} images of {run.name} are computed once, from the images, which are "
            f"not as they were: {error}"
        ) from None
