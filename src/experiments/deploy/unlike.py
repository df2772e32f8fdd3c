"""How unlike the training images of a run an image is: the distance of its features from theirs.

Source: Y. Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022. The features are those
that the head receives. docs/models.md compares this distance with the probability and with the energy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import keras
import numpy as np
from sklearn.neighbors import NearestNeighbors

from experiments.data.decoder_settings import DecoderSettings
from experiments.data.issues import printable
from experiments.data.validation import unchanged
from experiments.deploy.predict import Measured, predictions
from experiments.deploy.saved_run import Trained
from experiments.errors import ConfigError, DataError
from experiments.evaluation.evaluate import percent
from experiments.models.head import probabilities
from experiments.regimes.build import data_root
from experiments.storage.atomic_files import writing_file

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
        """Return how far images are from the training images: [B] float32, 0 (the same direction) to 2.

        Args:
            features: [B, D].
        """
        found: np.ndarray = self._neighbours.kneighbors(features)[0][:, -1].astype("float32")
        return found

    def farthest(self, share: float) -> tuple[float, str]:
        """Return a distance within which this share of the validation images is, and a sentence on it.

        It is midway to the next validation image, so that rounding errors change no answer.
        """
        ordered = np.append(np.sort(self.validation), self.validation.max() + 1e-3)
        last = math.ceil(share * len(self.validation) - 1e-9) - 1
        found = float(ordered[last] + ordered[last + 1]) / 2
        within = int((self.validation <= found).sum())
        return found, (
            f"Images farther than {found:.3g} from the training images are unlike them: of {len(self.validation)} "
            f"validation images, {within} ({percent(within / len(self.validation))}) are not"
        )


def measure(run: Trained, model: keras.Model, share: float) -> tuple[keras.Model, Measured, float, str]:
    """Return how images are compared with the training images of a run.

    Args:
        run: the finished run.
        model: its model, as `models.network.join` has made it.
        share: the share of the validation images that are to be like the training images.

    Returns:
        The model, with which the next shares its computation; the features and distances of images; the largest
        distance of images that are like the training images; and a sentence on it.

    Raises:
        ConfigError: see `training_features`.
    """
    pixels = model.inputs[0]
    outputs = model.get_layer("frozen")(pixels)
    features = keras.Model(pixels, outputs)
    known = training_features(run, features)
    farthest, sentence = known.farthest(share)
    whole = keras.Model(pixels, probabilities(model.get_layer("head")(outputs)))
    return whole, Measured(features, known.distances), farthest, sentence


def training_features(run: Trained, model: keras.Model) -> TrainingFeatures:
    """Return the training features of a run, which are computed once and then kept in its directory.

    Args:
        run: the finished run.
        model: pixels [B, H, W, 3] in [0, 255] -> features [B, D], which the head receives.

    Raises:
        ConfigError: the images that the run was trained on are gone or have changed.
    """
    kept = run.training_features
    if kept is not None and kept.is_file():
        with np.load(kept, allow_pickle=False) as arrays:
            return TrainingFeatures(arrays["train"], arrays["validation"])
    train = normalized(features_of(run, model, "train"))
    validation = TrainingFeatures(train, np.empty(0)).distances(features_of(run, model, "validation"))
    if kept is not None:
        with writing_file(kept) as file:
            np.savez(file, train=train, validation=validation)
    return TrainingFeatures(train, validation)


def normalized(features: np.ndarray) -> np.ndarray:
    """Return features [N, D] of length 1, as float16."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    found: np.ndarray = np.divide(features, lengths, out=np.zeros_like(features), where=lengths > 0).astype("float16")
    return found


def features_of(run: Trained, model: keras.Model, split: str) -> np.ndarray:
    """Return the features [N, D] float32 of a split's images, evenly chosen if there are too many.

    Raises:
        ConfigError: an image is gone or has changed.
    """
    rows = [row for row in run.images() if row["split"] == split]
    most = min(MOST_IMAGES, max(int(MOST_BYTES / (2 * model.output_shape[-1])), 1))
    rows = [rows[at] for at in np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)]
    settings = DecoderSettings.of(run.plain["data"])
    try:
        root = data_root(run.config)
        for row in rows:
            check(root, row)
    except (DataError, ConfigError) as error:
        raise ConfigError(
            f"--unlike: the features of the {split} images of {run.name} are computed once, from the images, which are "
            f"not as they were: {error}"
        ) from None
    files = [str(Path(root, row["path"])) for row in rows]
    found = [one.probabilities for some in predictions(model, files, 32, settings) for one in some]
    return np.stack([features for features in found if features is not None])


def check(root: Path, row: Mapping[str, str]) -> None:
    """Raise DataError, with the path, if an image of the manifest is gone or has changed."""
    try:
        unchanged(root, row["path"], row["sha256"])
    except (OSError, DataError) as error:
        raise DataError(f"{printable(row['path'])}: {error}") from None
