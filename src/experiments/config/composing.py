"""Composition and validation of a configuration outside of Hydra's command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from experiments.config import validation
from experiments.config.hydra_errors import explain
from experiments.config.overrides import compose_config, implies_folder
from experiments.config.schema import Config
from experiments.errors import ConfigError


class Composed(NamedTuple):
    """The validated configuration of a job and Hydra's composed one; later edits of YAML files change neither."""

    config: Config
    hydra: DictConfig  # the composed configuration, with Hydra's own settings in its node `hydra`


def read(overrides: Sequence[str], folder: Path | None = None) -> Config:
    """Return the validated configuration of a command line, composed as by `train`; see `whole`."""
    return whole(overrides, folder).config


def whole(overrides: Sequence[str], folder: Path | None = None) -> Composed:
    """Return the validated configuration of a command line, composed as by `train`, with Hydra's composed one.

    `folder` is that of the user's own choices (`--config-dir`), if any. Errors are those of `train`, as ConfigError.
    """
    source = ["data=folder"] if implies_folder(overrides, folder) else []
    try:
        composed = compose_config([*source, *overrides], folder, return_hydra_config=True)
        return Composed(validation.validate(composed), composed)
    except Exception as error:
        if text := explain(error, overrides):
            raise ConfigError(text) from None
        raise
