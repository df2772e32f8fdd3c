"""Finished runs for later use: their models, classes and configurations. Nothing here trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf

from experiments.config import validation
from experiments.config.overrides import quoted, value_at
from experiments.config.schema import Config
from experiments.config.targets import build_source
from experiments.data.listing import Listing
from experiments.data.sources.folder import existing
from experiments.errors import ConfigError
from experiments.evaluation import decision
from experiments.evaluation.decision import Decision
from experiments.images.decoder_settings import DecoderSettings
from experiments.reuse import like
from experiments.runs.location import folder_named, folder_of, store_of_run
from experiments.runs.predictions import Prediction
from experiments.runs.run_directory import (
    CONFIG,
    EARLIER,
    MANIFEST,
    METRICS,
    WEIGHTS,
    RunDirectory,
    classes_of,
    predictions_file,
    weights_file,
)
from experiments.storage.csv_files import read_rows
from experiments.system import signals
from experiments.system.paths import default_outputs, tracking_uri
from experiments.system.startup import quiet_start
from experiments.tracking import queries
from experiments.tracking.queries import RUN_ID

if TYPE_CHECKING:
    import keras

    from experiments.models.stages import Backbone

KERAS_FILE = "data/model.keras"  # path within a model that is logged to MLflow
TOLERANCE, COARSE = 1e-3, 2e-2  # largest accepted difference in probability between machines: in float32, in others


@dataclass(frozen=True)
class Trained:
    """A finished run, on this machine or fetched from MLflow; its model is loaded on demand."""

    name: str
    run_id: str | None  # of the MLflow run
    uri: str | None  # tracking URI that was given, or where it was found; None: it was given as a directory alone
    folder: Path | None  # the run directory, if it is on this machine
    manifest: Path  # its manifest.csv
    plain: Mapping[str, Any]  # its configuration as logged
    metrics: Mapping[str, float]
    facts: Mapping[str, Any]  # what it has recorded about itself: the contents of run.json, or MLflow tags

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of their labels."""
        return classes_of(self.images())

    @cached_property
    def decision(self) -> Decision:
        """How it predicts a class from probabilities."""
        return decision.recorded(self.facts, self.classes)

    @property
    def merged_classes(self) -> Mapping[str, Sequence[str]]:
        """The classes of the data that `data.classes` has merged, by the class that they have become."""
        classes = self.plain["data"].get("classes")
        return classes if isinstance(classes, Mapping) else {}

    @property
    def gives_probabilities(self) -> bool:
        """Whether its model's scores are probabilities; those of a hinge loss only rank images."""
        return self.plain.get("loss") != "hinge"

    @property
    def decoder_settings(self) -> DecoderSettings:
        """How image files are decoded for its model."""
        return DecoderSettings.of(self.plain["data"])

    @property
    def store(self) -> str:
        """The tracking store that has its MLflow run."""
        recorded = store_of_run(self.folder, self.facts) if self.folder else None
        return self.uri or recorded or tracking_uri()

    def images(self, split: str | None = None, most: int | None = None) -> list[dict[str, str]]:
        """Return the rows of its manifest, as of `data.manifest.to_rows`; at most `most`, evenly spread."""
        rows = [row for row in RunDirectory(self.manifest.parent).images() if split in (None, row["split"])]
        if most is None or len(rows) <= most:
            return rows
        return [rows[at] for at in np.linspace(0, len(rows) - 1, most).astype(int)]

    def earlier_training_images(self) -> set[str]:
        """Return the SHA-256 of every image that the weights with which the run began had been trained on."""
        table = self.file(EARLIER)
        return {row["sha256"] for row in read_rows(table)} if table else set()

    @cached_property
    def config(self) -> Config:
        """The validated configuration, which is treated as data, as with `like=`.

        If the data root came from the environment, only its unresolved text is known.

        Raises:
            ConfigError: this version of the program cannot use it.
        """
        lines = [*like.overrides(self.plain, None)[0], f"outputs={quoted(default_outputs())}"]
        root = str(value_at(self.plain, "data.root", ""))
        if like.has_interpolation(root):  # kept unresolved, so that the error for a missing directory shows it
            lines.append(f"++data.root={quoted(root.strip('${}'))}")
        return validation.validate(OmegaConf.create(like.compose(lines, None)))

    @property
    def recorded_root(self) -> Path | None:
        """The folder from which the run has read its images; None if it is not recorded."""
        if self.facts.get("data_root"):
            return Path(self.facts["data_root"])
        data = self.plain["data"]  # as in runs of 0.2
        root = data.get("root") or data.get("images")
        if not isinstance(root, str) or like.has_interpolation(root):
            return None
        return Path(self.facts.get("command", {}).get("directory", "") if self.folder else "", root)

    def data_root(self, data: Path | None = None) -> Path:
        """Return the folder that the paths of the run's images are relative to: `data` if the images have moved.

        If the recorded one is gone, or was not recorded (by version 0.2), it is that of the data source, which may make
        its images again.

        Raises:
            ConfigError: there is no such folder.
        """
        if data is not None:
            return existing("--data", data, "the folder that has the images of the run")
        recorded = self.recorded_root
        if recorded and recorded.is_dir():
            return recorded
        try:
            return source_root(self.config)
        except ConfigError as error:
            raise ConfigError(f"{error}. --data FOLDER names the folder where the images are now") from None

    @quiet_start()
    def model(self) -> keras.Model:
        """Return the trained model: pixels [B, H, W, 3] in [0, 255] -> probabilities [B, classes].

        Raises:
            ConfigError: its weights do not exist any more, or are not those that the run had.
        """
        with signals.loading():
            import keras

        # A network of the user's own package is not rebuilt, as packages that a recorded configuration names are not
        # trusted.
        target, packages = str(self.plain["model"].get("_target_")), self.plain.get("trusted_packages") or ()
        is_own = any(target.startswith(f"{name}.") for name in packages)
        failure = None
        if self.folder and not is_own:
            try:
                return join(self)  # compares the rebuilt model with what the run stored
            except ConfigError as error:
                failure = error
        uri = self.uri or (self.store if is_own else None)
        logged = queries.logged_model(uri, self.run_id) if uri and self.run_id else None
        if logged is None:
            if failure is not None:
                raise failure
            return join(self)
        path = logged / KERAS_FILE
        try:
            model: keras.Model = keras.models.load_model(path, compile=False)
        except Exception as error:  # Keras raises many kinds, such as for an unknown layer
            raise ConfigError(f"{path}: the run's model cannot be read: {error}") from None
        return model

    def file(self, name: str) -> Path | None:
        """Return the path of one of the run's files or directories, fetched from MLflow if need be; None if gone."""
        path = self.folder / name if self.folder else None
        if path is None and self.uri is not None and self.run_id is not None:
            path = queries.artifact(self.uri, self.run_id, name)
        return path if path is not None and path.exists() else None

    def predictions(self, split: str) -> list[Prediction]:
        """Return the recorded predictions for the images of a split; raise ConfigError if there are none."""
        name = predictions_file(split)
        path = self.file(name)
        if path is None:
            raise ConfigError(f"{self.name}: there is no {name}: this run was not evaluated on its {split} images")
        return RunDirectory(path.parent).predictions(split)

    def started_from(self, run_id: str) -> Path:
        """Return the weights of the run that `model.weights` names, kept or fetched; ConfigError if they are gone."""
        place = None
        name = weights_file("backbone")
        if self.folder:
            place = RunDirectory(self.folder).inputs("model.weights")
        elif self.uri is not None:
            place = queries.artifact(self.uri, run_id, WEIGHTS)
        if place is None or not (place / name).is_file():
            raise ConfigError(f"{self.name}: the weights of run {run_id}, which it started from, are gone")
        return place / name


def source_root(config: Config) -> Path:
    """Make the data set of a configuration available, and return the directory that its paths are relative to."""
    source = build_source(config)()
    return source.root if isinstance(source, Listing) else Path(source)


def find(named: str, uri: str | None = None) -> Trained:
    """Return a finished run by its directory, its MLflow id, the beginning of that id, or its name.

    TensorFlow is not imported.

    Raises:
        ConfigError: there is no such run, it is not finished, or its files do not exist any more.
    """
    if folder := folder_named(named):
        return of_folder(folder, uri)
    uri = uri or tracking_uri()
    (facts,) = queries.find_runs(uri, [named])
    kept = folder_of(facts.run_id, facts.tags.get("run_folder"), uri)
    if kept is not None:
        return of_folder(kept, uri)
    files = {}
    for name in (CONFIG, MANIFEST):
        path = queries.artifact(uri, facts.run_id, name)
        if path is None:
            raise ConfigError(f"{facts.name}: this run has logged no {name}: is it a sweep? Give one of its jobs")
        files[name] = path
    plain = like.parse(files[CONFIG].read_bytes(), f"{CONFIG} of {facts.name}")
    return Trained(facts.name, facts.run_id, uri, None, files[MANIFEST], plain, facts.metrics, facts.tags)


def of_folder(folder: Path, uri: str | None = None) -> Trained:
    """Return a finished run by its directory, or by that of a sweep into which its results were fetched; see `find`."""
    directory = RunDirectory(folder)
    if fetched := directory.fetched_from():
        return find(fetched, uri)
    facts = directory.facts_of_finished((CONFIG, MANIFEST, METRICS))
    plain = like.parse((folder / CONFIG).read_bytes(), str(folder / CONFIG))
    run_id, metrics = facts.get("run_id"), directory.metrics()
    return Trained(folder.name, run_id, uri, folder, folder / MANIFEST, plain, metrics, facts)


def join(run: Trained) -> keras.Model:
    """Return a run's model, rebuilt from its configuration and its weight files.

    A sweep's job stores only the weights that it has trained; the others are read from where the job took them.

    Raises:
        ConfigError: weights are missing, do not fit, or are not those that the run had.
    """
    place = run.file(WEIGHTS)
    name = weights_file("head")
    if place is None or not (place / name).is_file():
        raise ConfigError(f"{run.name}: its weights are gone: there is no {name} in {place or 'its artifacts'}")
    import keras

    from experiments.models import network
    from experiments.models.backbone import build_backbone
    from experiments.regimes import build

    config = run.config
    files = RunDirectory(place.parent)
    model, pool = config.model, config.model.head.pooling
    keras.utils.clear_session()  # layer names must not depend on what this process built before
    keras.config.set_dtype_policy(config.runtime.precision)
    kept = files.weights("backbone")
    if kept.is_file():
        weights: str | Path | None = kept
    else:
        started = run.started_from(model.weights) if model.weights and RUN_ID.fullmatch(model.weights) else None
        weights = build.backbone_weights(config, started)
    backbone = build_backbone(model, config.data.image_size, config.trusted_packages, weights)
    if not kept.is_file() and run.facts.get("backbone_identity") not in (None, backbone.identity):
        raise ConfigError(
            f"{run.name}: this job of a sweep has kept what it trained; model.weights ({model.weights}), which it "
            "started from, has changed since"
        )
    if (unfrozen := files.weights("unfrozen")).is_file():
        suffix = network.split_network(backbone, config.regime.unfrozen_blocks, pool).trainable_part
        network.load_weights(suffix, unfrozen, run.name)
    head = build.build_head(model.head, backbone, config.seed, len(run.classes))
    network.load_weights(head, files.weights("head"), run.name)
    whole = network.join(backbone, pool, head)
    verify(run, config, backbone, whole, files.weights("head"))
    return whole


def verify(run: Trained, config: Config, backbone: Backbone, model: keras.Model, head: Path) -> None:
    """Raise ConfigError if a rebuilt model differs from the record in the weights file of the run's head."""
    from experiments.models import network
    from experiments.models.weights_record import compare_record

    wrong, expected = compare_record(config.model, head, backbone, run.name)
    if expected is not None and not wrong:
        given = np.asarray(model(network.reference_images(model), training=False))
        tolerance = TOLERANCE if config.runtime.precision == "float32" else COARSE
        if given.shape != expected.shape:
            wrong = [f"it has {given.shape[-1]} classes, and had {expected.shape[-1]}"]
        elif not np.allclose(given, expected, rtol=0, atol=tolerance, equal_nan=True):
            wrong = [f"its probabilities differ by {np.abs(given - expected).max():.2g} on the reference images"]
    if wrong:
        raise ConfigError(
            f"{run.name}: its model cannot be rebuilt as it was trained: {'; '.join(wrong)}. Use the model that the "
            "run logged (give its MLflow id), or the version of this program and of Keras that made it"
        )
