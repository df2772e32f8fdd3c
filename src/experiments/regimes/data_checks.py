"""Checks before training: keys whose allowed values depend on the data, and the images that other runs have read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from experiments.config.schema import Config
from experiments.data.types import Dataset
from experiments.errors import ConfigError, DataError
from experiments.evaluation.decision import decision_of
from experiments.runs.continuation import KEY
from experiments.runs.run_directory import RunDirectory, classes_of
from experiments.training.losses import class_weights


def check_data(config: Config, dataset: Dataset) -> None:
    """Raise ConfigError if a value does not fit the data set, for keys whose allowed values depend on it."""
    class_weights(config.class_weights, dataset.train.labels, dataset.classes)
    decision_of(config, dataset)
    check_shares(config.runtime.devices, {"train": len(dataset.train), "validation": len(dataset.validation)})
    check_accumulation(config, len(dataset.train))


def check_shares(devices: int | None, images: Mapping[str, int]) -> None:
    """Raise ConfigError if several devices cannot share every batch of these splits evenly: `fit` would fail then."""
    odd = [f"{split} has {count}" for split, count in images.items() if devices and count % devices]
    if odd:
        raise ConfigError(
            f"runtime.devices: {devices} devices share every batch evenly, so every split's number of images must be "
            f"a multiple of {devices}: {', '.join(odd)}. Set data.limit, or train on one device"
        )


def check_accumulation(config: Config, images: int) -> None:
    """Raise ConfigError if a training phase on so many images would end before its optimizer's first step."""
    phases = [("optimizer", config.optimizer, "epochs", config.epochs)]
    if "regime.head_optimizer" not in config.regime.ignores and config.regime.head_from is None:
        head = config.regime
        phases.append(("regime.head_optimizer", head.head_optimizer, "regime.head_epochs", head.head_epochs))
    for key, optimizer, epochs_key, epochs in phases:
        steps, batches = optimizer.gradient_accumulation_steps, epochs * math.ceil(images / config.batch_size)
        if steps is not None and steps > batches:
            raise ConfigError(
                f"{key}.gradient_accumulation_steps: must be at most {batches}, the batches of {epochs} epochs "
                f"({epochs_key}) of {images} images at batch_size={config.batch_size}: more would train nothing. "
                f"Received: {steps}"
            )


def check_origins(origins: Mapping[str, Path], dataset: Dataset) -> set[str]:
    """Compare the images that other runs' weights were trained on with those that this run is evaluated on.

    Args:
        origins: for each key that names a run, the directory with that run's manifest.
        dataset: the data set of this run.

    Returns:
        The SHA-256 of every image that those weights were trained on.

    Raises:
        DataError: another run's weights were trained on images that this run validates or tests with, by that run or
            by one whose weights it began with.
        ConfigError: the head of another run has other classes.
    """
    held_out = {entry.sha256: entry.path for entry in dataset.manifest.entries if entry.split != "train"}
    earlier = set[str]()
    for key, origin in origins.items():
        directory = RunDirectory(origin)
        trained_on = directory.trained_on()
        if known := sorted(held_out[image] for image in trained_on & held_out.keys()):
            raise DataError(
                f"{key}: the run it names, or one whose weights it began with, was trained on {len(known)} of the "
                f"images that this run validates or tests with, such as {known[0]}: its scores would mean nothing. Use "
                "a run on the same split (data.fold, data.split_seed, data.fractions), or train the weights anew"
            )
        classes = classes_of(directory.images())
        if key in ("regime.head_from", KEY) and classes != dataset.classes:
            raise ConfigError(
                f"{key}: that run's head was trained for {', '.join(classes)}. Allowed: a head for "
                f"{', '.join(dataset.classes)}, the classes of this data"
            )
        earlier |= trained_on
    return earlier
