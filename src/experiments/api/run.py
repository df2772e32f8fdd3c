"""A finished run as an object: its scores, curves, predictions, figures and model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from experiments.api import display
from experiments.api.display import Page
from experiments.api.prediction import ImageLike, list_images
from experiments.api.process import unchanged_libraries
from experiments.config.schema import Config
from experiments.data.types import SPLITS
from experiments.deploy import saved_run
from experiments.deploy.prediction_writers import Confidence
from experiments.deploy.saved_run import Trained
from experiments.errors import ConfigError
from experiments.runs import curves, predictions
from experiments.runs.run_directory import CURVES, FIGURES, REPORT
from experiments.system.progress import PlainConsole, Terminal

if TYPE_CHECKING:
    import keras
    import pandas as pd


class Run:
    """A finished run, as `train` and `load` return it.

    Everything is read when it is asked for: from the run's directory, or from MLflow if that is on another machine.

    Attributes:
        name: the name of the run, which is that of its directory.
        id: the id of the MLflow run; None with `tracking=none`.
        folder: the run directory; None if it is on another machine.
        metrics: the final metrics by name, such as `validation.accuracy` and `total_seconds`.
        classes: the class names, in the order of their labels.
    """

    def __init__(self, trained: Trained) -> None:
        self._trained = trained
        self.name, self.id, self.folder = trained.name, trained.run_id, trained.folder
        self.metrics: dict[str, float] = dict(trained.metrics)

    def __repr__(self) -> str:
        scores = ", ".join(f"{split}.accuracy={self.metrics[f'{split}.accuracy']:.4g}" for split in self._splits())
        return f"Run({str(self.folder or self.id)!r}, {scores})"

    def _splits(self) -> list[str]:
        return [split for split in SPLITS if f"{split}.accuracy" in self.metrics]

    def _repr_html_(self) -> str:
        splits = self._splits()
        names = dict.fromkeys(key.partition(".")[2] for key in self.metrics if key.partition(".")[0] in splits)
        values = {key: f"{value:.4g}" for key, value in self.metrics.items()}
        cells = [[name, *(values.get(f"{split}.{name}", "") for split in splits)] for name in names]
        place = self.folder or f"MLflow run {self.id}"
        return display.text(f"Run {self.name}: {place}") + display.table([["", *splits], *cells])

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of their labels."""
        return self._trained.classes

    @property
    def store(self) -> str:
        """The URI of the MLflow tracking store that holds the run."""
        return self._trained.store

    @property
    def data_root(self) -> Path | None:
        """The folder to which the paths of `predictions` are relative; None if it is not recorded on this machine."""
        return self._trained.recorded_root if self.folder else None

    @property
    def config(self) -> Config:
        """The run's validated configuration: `run.config.optimizer.lr`.

        Raises:
            ConfigError: this version cannot use the configuration of an older run.
        """
        return self._trained.config

    @property
    @unchanged_libraries()
    def curves(self) -> pd.DataFrame:
        """The learning curves, a row per epoch.

        The columns are `step`, `phase`, `epoch`, `timestamp` (ms since 1970) and the metrics, among them `loss`,
        `validation_loss`, `accuracy`, `validation_accuracy` (0 to 1), `learning_rate` and `seconds`. There are no rows
        if the regime has no epochs.
        """
        path = self._trained.file(CURVES)
        return display.frame([curves.as_row(record) for record in (curves.read(path) if path else ())])

    @unchanged_libraries()
    def predictions(self, split: str = "validation") -> pd.DataFrame:
        """Return the recorded predictions: a row per image of a split.

        Args:
            split: validation or test.

        Returns:
            The columns `path` (relative to the data's root), `sha256`, `label`, `predicted`, `correct` (bool),
            `confidence` and `p_<class>` (float, 0 to 1).

        Raises:
            ConfigError: the run was not evaluated on this split.
        """
        return display.frame(predictions.to_table(self._trained.predictions(split)))

    @property
    @unchanged_libraries()
    def per_class(self) -> pd.DataFrame:
        """The scores of every class, a row per class and split that was evaluated.

        The columns are `split`, `class`, `images`, `predicted` (images that the model assigns to the class), and
        `precision`, `recall`, `f1` with the bounds of their 95 % intervals (`recall_low`, `recall_high`), 0 to 1; NaN
        where one is undefined.
        """
        import pandas as pd

        from experiments.evaluation.per_class import class_columns, class_scores, confusion_of

        frames = []
        for split in self._splits():
            confusion = confusion_of(self._trained.predictions(split), self.classes)
            frames.append(display.frame({"split": split, **class_columns(class_scores(confusion, self.classes))}))
        return pd.concat(frames, ignore_index=True)

    @unchanged_libraries()
    def figure(self, name: str, split: str = "validation") -> Image.Image:
        """Return a figure of the run, which a notebook shows.

        Args:
            name: `confusion`, `roc`, `calibration`, `mistakes`, `risk_coverage` of a split; or `learning_curves`,
                `augmented`.
            split: validation or test.

        Raises:
            ConfigError: the run has no such figure; the message names those that it has.
        """
        folder = self._trained.file(FIGURES)
        known = sorted(path.stem for path in folder.glob("*.png")) if folder else []
        found = next((stem for stem in (f"{split}_{name}", name) if stem in known), None)
        if folder is None or found is None:
            names = ", ".join(known) or "none: is it a job of a sweep? Only the winner has figures"
            raise ConfigError(f"{self.name}: there is no figure {name!r} of split {split!r}. It has: {names}")
        with Image.open(folder / f"{found}.png") as opened:
            opened.load()
            return opened

    @cached_property
    @unchanged_libraries()
    def model(self) -> keras.Model:
        """The trained Keras model: pixels [B, H, W, 3] float32 in [0, 255] -> probabilities [B, classes] float32.

        Preprocessing is part of it. It is loaded once.

        Raises:
            ConfigError: its weights do not exist any more, or are not those that the run had.
        """
        return self._trained.model()

    @unchanged_libraries()
    def predict(
        self, images: ImageLike | Sequence[ImageLike], batch_size: int = 32, *, reject: float | None = None,
        unlike: float | None = None, calibrated: bool = False, data: str | Path | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """Predict images with the run's model, decoded and resized as in its training.

        Args:
            images: one, or a sequence of: image files, folders (with all below), patterns such as `"new/**/*.jpg"`;
                arrays [H, W, 3] or [H, W] uint8 of any size, or [N, H, W, 3] for several; PIL images.
            batch_size: images that the network takes at once.
            reject: reject images of low confidence, so that the answers have this accuracy on the validation images of
                the run, such as 0.99; None for no rejection.
            unlike: reject images farther from the training images, in the features that the head receives, than this
                share of the validation images, such as 0.99; None for no rejection.
            calibrated: whether the probabilities are scaled by the run's temperature.
            data: with `unlike`: the folder where the images that the run was trained on are now (default: where they
                were).

        Returns:
            A row per image, in order: `path` (empty for an array or a PIL image), `predicted` ("none": rejected),
            `confidence` and `p_<class>` (float, 0 to 1); with `unlike`, also `distance` (0 to 2) and `unlike` (bool);
            and `error`: why a file cannot be used, else empty. Its `attrs["sentences"]` describe how images are
            rejected and calibrated.

        Raises:
            ConfigError: a path does not exist, an array is none of an image, or the run does not allow the options.
        """
        from experiments.deploy.predict import predictions
        from experiments.deploy.rejection import prepare

        if batch_size < 1:
            raise ConfigError(f"batch_size: must be 1 or more. Received: {batch_size}")
        for name, value in (("reject", reject), ("unlike", unlike)):
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"{name}: must be above 0, at most 1, such as 0.99, or None. Received: {value}")
        listed, rows = list_images(images), list[list[Any]]()
        confidence = Confidence(reject, calibrated, unlike, Path(data) if data else None)
        progress = Terminal(PlainConsole())
        model, distances, answers, sentences = prepare(self._trained, confidence, lambda: self.model, progress)
        inputs = (image if isinstance(image, str | Image.Image) else Image.fromarray(image) for image in listed)
        with progress.stage("predicting", len(listed)) as advance:
            for batch in predictions(model, inputs, batch_size, self._trained.decoder_settings, distances):
                advance(len(batch))
                rows += map(answers.cells, batch)
        table = display.frame(rows, answers.columns).rename(columns={"class": "predicted", "probability": "confidence"})
        table.attrs["sentences"] = sentences
        return table

    @unchanged_libraries()
    def report(self) -> Page:
        """Return the run's report: one HTML page with configuration, data, curves, scores, mistakes and cost.

        It is made if the run has none, as a sweep's job.

        Raises:
            ConfigError: the run's files do not exist any more.
        """
        from experiments.inspection import report

        path = self._trained.file(REPORT)
        return Page(path if path is not None else report.write(self._trained))


@unchanged_libraries()
def load(run: str | os.PathLike[str], *, uri: str | None = None) -> Run:
    """Return a finished run.

    Args:
        run: its MLflow id, the beginning of that, its name or the end of that, or its directory.
        uri: the MLflow tracking store (default: MLFLOW_TRACKING_URI, or this place's SQLite file).

    Raises:
        ConfigError: there is no such run, several fit, or it is not finished.
    """
    return Run(saved_run.find(os.fspath(run), uri))
