"""Configurations for the verbs that take train's overrides without being Hydra's main."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir

from experiments import (
    paths,
    train,  # noqa: F401  registers the resolvers that conf/ uses
    validation,
)
from experiments.explain import explain
from experiments.schema import Config
from experiments.types import ConfigError


def read(overrides: Sequence[str], folder: Path | None = None) -> Config:
    """The checked configuration of a command line, composed as by `train`.

    Args:
        folder: of the user's own choices, where there are such (train's --config-dir).

    Raises:
        ConfigError: in the words of `train`.
    """
    given = [*overrides, *([f"hydra.searchpath=['file://{folder.resolve()}']"] if folder else [])]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
            return validation.read(compose("config", given))
    except ConfigError:
        raise
    except Exception as error:
        text = explain(error, overrides)
        if text is None:
            raise
        raise ConfigError(text) from None
