"""Training of one run in this process, and the configuration that it would have."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.api.overrides import command
from experiments.api.process import executing
from experiments.api.run import Run
from experiments.config import composing, unused
from experiments.config.overrides import split_key
from experiments.config.schema import Config
from experiments.deploy import saved_run
from experiments.errors import ConfigError
from experiments.reuse import resume
from experiments.runs import continuation
from experiments.runs.run_directory import RunDirectory
from experiments.system.private_api import get_args_parser
from experiments.train import expand, main_of_hydra, train_composed


def train(*overrides: str, config_dir: str | Path | None = None, **keys: Any) -> Run:
    """Train one run in this process, exactly as `experiments train` does, and return it.

    The run has the same validation, identity, files and tracking as that of the command line, and the same weights bit
    for bit at the same number of threads. It may be called any number of times in a process.

    Args:
        overrides: as on the command line: `"regime=finetune"`, `"optimizer.lr=1e-4"`, `"resume=RUN"`, `"like=RUN"`.
        config_dir: folder with choices of your own (`--config-dir`).
        keys: Python values by key: `epochs=10`, `model="mobilenet_v2"`, `data={"root": path, "image_size": 160}`, or
            `**{"model.head.dropout": 0.5}`. They follow `overrides`, and texts are taken literally. A `Run` stands for
            its directory or id, as in `like=run`.

    Returns:
        The finished run. If `resume` names a finished run, that one.

    Raises:
        ConfigError: the configuration cannot be used, or asks for what this process cannot change any more (the number
            of threads, once TensorFlow has started); nothing was trained.
        DataError: the data set is invalid; the message lists each file.
        KeyboardInterrupt: Ctrl-C, or a notebook's stop button. The message names the call that continues the run.
    """
    given = command(overrides, keys, config_dir)
    folders: list[Path] = []

    def task(composed: DictConfig) -> float:
        folders.append(Path(HydraConfig.get().runtime.output_dir))
        return train_composed(composed)

    try:
        with executing(given):
            expanded = expand(given)
            if expanded is None:
                folders.append(resume.find(split_key(given, "resume")[0][-1], given, "resume"))
            else:
                sys.argv[1:] = expanded
                main_of_hydra(task)()
                if not folders:
                    raise ConfigError("hydra.mode: the configuration makes this a sweep, which is ex.sweep(...)")
    except KeyboardInterrupt:
        if not folders or not RunDirectory(folders[0]).facts():
            raise
        raise KeyboardInterrupt(f"stopped. To go on with this run: ex.train(resume={str(folders[0])!r})") from None
    return Run(saved_run.of_folder(folders[0]))


def compose(*overrides: str, config_dir: str | Path | None = None, **keys: Any) -> Config:
    """Return the validated configuration that `train` would run with; nothing is read or trained.

    Args:
        overrides: see `train`.
        config_dir: see `train`.
        keys: see `train`.

    Returns:
        The configuration, whose fields are the keys: `compose(epochs=3).optimizer.lr`. It cannot be changed;
        `model_dump()` returns it as a dictionary.

    Raises:
        ConfigError: the configuration cannot be used; the message names each key, what is allowed and what was given.
    """
    given = command(overrides, keys, config_dir)
    with executing(given):
        return checked(given, "Its configuration is ex.load(RUN).config")


def checked(given: Sequence[str], instead: str) -> Config:
    """Return the validated configuration of a command, with the checks that `train` makes before any work.

    If `resume` names a finished run, which has no command, the ConfigError says what to use `instead`.
    """
    expanded = expand(given)
    if expanded is None:
        raise ConfigError(f"resume: this run is finished. {instead}")
    parsed = get_args_parser().parse_args(expanded)
    config = composing.read(parsed.overrides, Path(parsed.config_dir) if parsed.config_dir else None)
    if config.resume is None:
        continuation.check(config)
        unused.check_weights([config], parsed.overrides)
    return config
