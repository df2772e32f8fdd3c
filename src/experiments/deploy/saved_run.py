"""What finished runs have left to be used: the model, its classes, how it was made. Nothing here trains."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from experiments.config import validation
from experiments.config.overrides import quoted
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.runs import like, run_directory
from experiments.system.paths import default_outputs
from experiments.tracking import MANIFEST, queries
from experiments.tracking.queries import RUN_ID

if TYPE_CHECKING:
    import keras

    from experiments.models.types import Backbone

KERAS_FILE = "data/model.keras"  # in a model that MLflow has
WEIGHTS = "weights"  # in a run's folder, from `run.write_results`: these, of a sweep's job not all
TOLERANCE = {"float32": 1e-3}  # in probability, by precision, between one machine and another; of all others:
COARSE = 2e-2
HEAD, BACKBONE, UNFROZEN = "head.weights.h5", "backbone.weights.h5", "unfrozen.weights.h5"


@dataclass(frozen=True)
class Trained:
    """A finished run, on this machine or fetched; no model read yet."""

    name: str
    run_id: str | None  # of MLflow
    uri: str | None  # the store that it was found in; None: it was given as a folder
    folder: Path | None  # of the run, where that is on this machine
    manifest: Path  # its manifest.csv
    plain: Mapping[str, Any]  # its configuration as logged
    metrics: Mapping[str, float]
    backbone: str | None  # the identity of its backbone before it was trained

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The class names, by label."""
        with self.manifest.open(newline="", encoding="utf-8") as file:
            names = {int(row["label"]): row["class_name"] for row in csv.DictReader(file)}
        return tuple(names[label] for label in sorted(names))

    @cached_property
    def config(self) -> Config:
        """The configuration, checked; it is data, as with `like=`. A root that came from the environment is not known.

        Raises:
            ConfigError: this version of the program cannot use it.
        """
        root = str(like.value_at(self.plain, "data.root", ""))
        # As it was written, for the error of who reads it.
        return self.changed([f"++data.root={quoted(root.strip('${}'))}"] if like.has_interpolation(root) else [])

    def changed(self, overrides: Sequence[str]) -> Config:
        """Its configuration with overrides on top.

        Raises:
            ConfigError: as `config`.
        """
        written, _ = like.overrides(self.plain, None)
        lines = [*(line for _, line in written), f"outputs={quoted(default_outputs())}", *overrides]
        return validation.read(OmegaConf.create(like.compose(lines, None)))

    def model(self) -> keras.Model:
        """Pixels [B, H, W, 3] in [0, 255] -> probabilities [B, classes].

        Raises:
            ConfigError: weights that are not there any more, or are not what the run was made with.
        """
        if self.uri is not None and self.run_id is not None:
            logged = queries.logged_model(self.uri, self.run_id)
            if logged is not None:
                return read_model(logged / KERAS_FILE)
        return join(self, self.weights())  # which compares what it has rebuilt with what the run had

    def weights(self) -> Path:
        """The folder with the weights as the run's files.

        Raises:
            ConfigError: there is none.
        """
        place = self.folder / WEIGHTS if self.folder else None
        if place is None and self.uri is not None and self.run_id is not None:
            place = queries.artifact(self.uri, self.run_id, WEIGHTS)
        if place is None or not (place / HEAD).is_file():
            raise ConfigError(f"{self.name}: its weights are gone: there is no {HEAD} in {place or 'its artifacts'}")
        return place

    def started_from(self, run_id: str) -> Path:
        """The weights of the run that `model.weights` names: as this run kept them, else fetched.

        Raises:
            ConfigError: they are gone.
        """
        kept = self.folder / "inputs" / "model.weights" / BACKBONE if self.folder else None
        if kept is None and self.uri is not None:
            place = queries.artifact(self.uri, run_id, WEIGHTS)
            kept = place / BACKBONE if place else None
        if kept is None or not kept.is_file():
            raise ConfigError(f"{self.name}: the weights of run {run_id}, which it started from, are gone")
        return kept


def find(named: str, uri: str | None = None) -> Trained:
    """A finished run by its folder, or its MLflow id, the beginning of it, or its name. Imports no TensorFlow.

    Args:
        uri: the tracking store; None: this place's.

    Raises:
        ConfigError: there is no such run, it is not finished, or its files are gone.
    """
    folder = Path(named).expanduser()
    if folder.is_dir():
        return of_folder(folder.resolve())
    uri = uri or queries.local_store()
    (facts,) = queries.find_runs(uri, [named])
    kept = run_directory.folder_of(facts.run_id, facts.tags.get("run_folder"), uri)
    if kept is not None:
        return of_folder(kept, uri)
    files = {}
    for name in (like.FILE, MANIFEST):
        path = queries.artifact(uri, facts.run_id, name)
        if path is None:
            raise ConfigError(f"{facts.name}: this run has logged no {name}: is it a sweep? Give one of its jobs")
        files[name] = path
    plain = like.parse(files[like.FILE].read_bytes(), f"{like.FILE} of {facts.name}")
    backbone = facts.tags.get("backbone_identity")
    return Trained(facts.name, facts.run_id, uri, None, files[MANIFEST], plain, facts.metrics, backbone)


def of_folder(folder: Path, uri: str | None = None) -> Trained:
    """A finished run from its folder.

    Args:
        uri: the store that knows it, where it was found there.

    Raises:
        ConfigError: as `find`.
    """
    facts = run_directory.read_record(folder)
    if facts is None:
        raise ConfigError(f"{folder}: is no run's folder: it has no {run_directory.FILE}")
    if facts.get("status") != "FINISHED":
        raise ConfigError(
            f"{folder}: this run is not finished ({facts.get('status')}). Go on with it: python -m experiments.train "
            f"resume={shlex.quote(str(folder))}"
        )
    for name in (like.FILE, MANIFEST, run_directory.METRICS):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder}: its {name} is gone")
    metrics = json.loads((folder / run_directory.METRICS).read_bytes())
    plain = like.parse((folder / like.FILE).read_bytes(), str(folder / like.FILE))
    run_id, backbone = facts.get("run_id"), facts.get("backbone_identity")
    return Trained(folder.name, run_id, uri, folder, folder / MANIFEST, plain, metrics, backbone)


def read_model(path: Path) -> keras.Model:
    """A whole model out of a .keras file.

    Raises:
        ConfigError: it is not there, or cannot be read.
    """
    import keras

    try:
        model: keras.Model = keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises many: of a layer that is not known here, say
        raise ConfigError(f"{path}: the run's model cannot be read: {error}") from None
    return model


def join(run: Trained, weights: Path) -> keras.Model:
    """A run's model out of its configuration and its weights' files.

    A sweep's jobs keep what they have changed; the rest is read from where they had it.

    Raises:
        ConfigError: weights that are missing, do not fit, or are not those that the run had.
    """
    import keras

    from experiments.models import network
    from experiments.regimes import build

    config = run.config
    pool, kept = config.model.head.pooling, weights / BACKBONE
    model, regime = config.model, config.regime
    if kept.is_file():
        model = model.model_copy(update={"weights": str(kept)})
        regime = regime.model_copy(update={"ignores": [key for key in regime.ignores if key != "model.weights"]})
    keras.utils.clear_session()  # layer names must not depend on what this process built before
    keras.config.set_dtype_policy(config.runtime.precision)
    started = run.started_from(model.weights) if model.weights and RUN_ID.fullmatch(model.weights) else None
    backbone = build.build_backbone(config.model_copy(update={"model": model, "regime": regime}), started)
    if not kept.is_file() and run.backbone not in (None, backbone.identity):
        raise ConfigError(
            f"{run.name}: this job of a sweep has kept what it trained; model.weights ({model.weights}), which it "
            "started from, has changed since"
        )
    if (weights / UNFROZEN).is_file():
        suffix = network.split_network(backbone, regime.unfrozen_blocks, pool).suffix
        network.load_backbone(suffix, weights / UNFROZEN, run.name)
    head = build.build_head(config, backbone, len(run.classes))
    network.load_backbone(head, weights / HEAD, run.name)
    whole = network.join(backbone, pool, head)
    verify(run, config, backbone, whole, weights / HEAD)
    return whole


def verify(run: Trained, config: Config, backbone: Backbone, model: keras.Model, head: Path) -> None:
    """Compare a rebuilt model with what the run stored of its own.

    Args:
        head: the weights file of the run's head, with the record beside the weights.

    Raises:
        ConfigError: another network, other weights, or other probabilities.
    """
    import numpy as np

    from experiments.models import network, weights
    from experiments.regimes.build import backbone_differences

    record = weights.read(head, run.name).record
    if record is None:  # of a version that stored none
        return
    try:
        wrong = backbone_differences(config, record, backbone)
        expected = np.asarray(record["reference"], "float32")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{run.name}: {head}: its record is damaged ({error!r})") from None
    if not wrong:
        given = np.asarray(model(network.reference_images(model), training=False))
        tolerance = TOLERANCE.get(config.runtime.precision, COARSE)
        if given.shape != expected.shape:
            wrong = [f"it has {given.shape[-1]} classes, and had {expected.shape[-1]}"]
        elif not np.allclose(given, expected, rtol=0, atol=tolerance, equal_nan=True):
            wrong = [f"its probabilities differ by {np.abs(given - expected).max():.2g} on the reference images"]
    if wrong:
        raise ConfigError(
            f"{run.name}: its model cannot be rebuilt as it was trained: {'; '.join(wrong)}. Use the model that the "
            "run logged (give its MLflow id), or the version of this program and of Keras that made it"
        )
