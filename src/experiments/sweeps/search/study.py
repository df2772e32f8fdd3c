"""The Optuna study of a search, which several workers use at the same time."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from experiments.config.schema import LOWER_IS_BETTER, Config
from experiments.errors import ConfigError
from experiments.system.paths import sqlite_file
from experiments.tracking import liveness
from experiments.training import pruning

# Names of the user attributes of a trial.
OWNER, PLACE, IDENTITY, REASON, RUNS = "owner", "number", "identity", "reason", "runs"
DUPLICATE = "twin"  # number of the trial with the same runs; the name is that of stored studies
# Names of the user attributes of a study; `pruning.EPOCHS` is another one.
SEARCH = "search"


def annotate(trial: optuna.Trial, attributes: Mapping[str, Any]) -> None:
    """Set user attributes of a trial, unless another worker has ended it."""
    with contextlib.suppress(RuntimeError):
        for name, value in attributes.items():
            trial.set_user_attr(name, value)


def open_study(config: Config, folder: Path, attributes: Mapping[str, Any]) -> optuna.Study:
    """Return the study of a search, creating it if it does not exist; its name is that of the sweep's directory.

    `attributes` has the name of the search, which differs for other data and weights, and the epochs of the longest
    trial. Raise ConfigError if the study belongs to another search.
    """
    name = folder.name
    study = optuna.create_study(
        storage=pruning.storage(config),
        study_name=name,
        direction="minimize" if config.objective in LOWER_IS_BETTER else "maximize",
        pruner=pruning.pruner(config.sweep.pruner, attributes[pruning.EPOCHS]),
        load_if_exists=True,
    )
    about = study.user_attrs
    for key, value in attributes.items():
        if key not in about:
            study.set_user_attr(key, value)
    if about.get(SEARCH, attributes[SEARCH]) != attributes[SEARCH]:
        raise ConfigError(
            f"hydra.sweep.dir: the study {name} is of another search. Give another folder or sweep.storage. "
            f"Received: {folder}"
        )
    return study


def existing_trials(config: Config, name: str) -> list[FrozenTrial]:
    """Return the trials of the study if it exists; the study is not created."""
    if (file := sqlite_file(config.sweep.storage)) and not file.exists():
        return []
    try:
        return optuna.load_study(study_name=name, storage=pruning.storage(config)).get_trials(deepcopy=False)
    except KeyError:
        return []


def sampler(name: str, seed: int, trials: int) -> optuna.samplers.BaseSampler:
    """Return the Optuna sampler that draws the next trial of a study with this number of trials.

    The number is part of the seed, so that no other worker or later start draws the same point again.
    """
    own = int(np.random.SeedSequence([seed, trials]).generate_state(1)[0])
    if name == "random":
        return optuna.samplers.RandomSampler(own)
    return optuna.samplers.TPESampler(seed=own, multivariate=True, constant_liar=True)


def counts(trial: FrozenTrial) -> bool:
    """Return whether a trial counts towards `sweep.trials`: it is done or running."""
    return is_done(trial) or trial.state == TrialState.RUNNING


def is_done(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def place(trial: FrozenTrial) -> int:
    """Return the place of a trial, from which its jobs' numbers follow; a requeued trial keeps its place."""
    return int(trial.user_attrs.get(PLACE, trial.number))


def is_abandoned(trial: FrozenTrial) -> bool:
    """Return whether the process that started a trial no longer runs."""
    owner = trial.user_attrs.get(OWNER)
    if owner is None:  # the process has not written it yet, or was killed before it could
        began = trial.datetime_start
        return began is not None and (datetime.now() - began).total_seconds() > liveness.STALE
    return liveness.lost(owner)
