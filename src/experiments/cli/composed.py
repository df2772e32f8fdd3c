"""Functions for verbs that take the overrides of `train`: compose the configuration, and start runs with it."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir

from experiments.config import validation
from experiments.config.hydra_errors import explain
from experiments.config.overrides import implies_folder
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.sweeps.plan import Composed
from experiments.system import paths

if TYPE_CHECKING:
    from experiments.tracking.queries import RunFacts


def read(overrides: Sequence[str], folder: Path | None = None) -> Config:
    """Return the validated configuration of a command line, composed as by `train`; see `whole`."""
    return whole(overrides, folder).config


def whole(overrides: Sequence[str], folder: Path | None = None) -> Composed:
    """Return the validated configuration of a command line, composed as by `train`, with Hydra's composed one.

    Args:
        overrides: the command line.
        folder: folder with the user's own choices (`--config-dir` of `train`), if any.

    Raises:
        ConfigError: the configuration cannot be composed or is invalid; the message is that of `train`.
    """
    source = ["data=folder"] if implies_folder(overrides, folder) else []
    given = [*source, *overrides, *([f"hydra.searchpath=['file://{folder.resolve()}']"] if folder else [])]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
            composed = compose("config", given, return_hydra_config=True)
            return Composed(validation.validate(composed), composed)
    except ConfigError:
        raise
    except Exception as error:
        text = explain(error, overrides)
        if text is None:
            raise
        raise ConfigError(text) from None


def start(jobs: Sequence[Sequence[str]], tag: str) -> tuple[str, list[RunFacts]]:
    """Train each list of overrides in a process of its own, one after the other.

    Args:
        jobs: the overrides of each run.
        tag: name of the MLflow tag by which the runs are found afterwards.

    Returns:
        The URI of the tracking store, and the runs in order.

    Raises:
        ConfigError: the overrides cannot be used, name several tracking stores, or contain tracking=none.
        SystemExit: a run failed; later ones are not started.
    """
    from experiments.tracking.queries import find_runs

    uris = {read(job).tracking.uri for job in jobs}
    uri = uris.pop()
    if uris or uri is None:
        raise ConfigError("tracking: these runs are found again in one MLflow store. Allowed: tracking=sqlite, server")
    token = f"t{secrets.token_hex(4)}"  # starts with a letter, because Hydra parses 12345678 as a number
    for job in jobs:
        command = ["-m", "experiments.train", *job]
        print(f"\n$ python {' '.join(command)}", flush=True)
        done = subprocess.run([sys.executable, *command, f"+tags.{tag}={token}"])
        if done.returncode:
            sys.exit(done.returncode)
    return uri, find_runs(uri, (), tag=(tag, token))
