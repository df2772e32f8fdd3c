"""The study of a search: where it is kept, and what a job tells it of its trial while it trains. Optuna is an extra."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.config.schema import LOWER_IS_BETTER, Config
from experiments.errors import ConfigError, Pruned
from experiments.system.paths import sqlite_file
from experiments.system.redaction import redact_credentials
from experiments.training.types import EpochRecord

PATIENCE = 60  # seconds that a process waits for others that write to the same SQLite file
EPOCHS = "epochs"  # of the longest trial: an attribute of the study
_log = logging.getLogger(__name__)


def need_optuna(config: Config) -> None:
    """Raises:
    ConfigError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            f"sweep.search: {config.sweep.search} needs Optuna, which is not installed: "
            "pip install 'experiments[search]'. Allowed without it: grid"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def storage(config: Config) -> Any:
    """Opens the storage that `sweep.storage` names, and makes it where there is none.

    Raises:
        ConfigError: it cannot be used.
    """
    import optuna
    import sqlalchemy.exc

    url = address(config.sweep.storage)
    arguments: dict[str, Any] = {}
    lock = Path(config.outputs) / ".studies.lock"
    if file := sqlite_file(url):
        arguments = {"connect_args": {"timeout": PATIENCE}}
        lock = file.with_name(f"{file.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):  # processes that make the tables of one SQLite file together spoil it
            return optuna.storages.RDBStorage(url, engine_kwargs=arguments)
    except (ImportError, OSError, RuntimeError, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0][:300]
        raise ConfigError(
            redact_credentials(
                f"sweep.storage: cannot be used: {reason}. Allowed: sqlite:///FILE, or postgresql://... with the extra "
                f"postgres. Received: {config.sweep.storage}"
            )
        ) from None


def address(url: str) -> str:
    """The address with the PostgreSQL driver that the extra `postgres` installs, where it names none."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if separator and scheme in ("postgres", "postgresql") else url


def pruner(name: str, epochs: int) -> Any:
    """What ends trials early.

    Args:
        name: as `sweep.pruner`.
        epochs: of the longest trial.
    """
    import optuna

    if name == "median":
        # The first epochs say little of where a curve goes.
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=max(1, epochs // 6))
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)
    return optuna.pruners.NopPruner()


def reporting(config: Config, record: Callable[[EpochRecord], None]) -> Callable[[EpochRecord], None]:
    """`record`, which also tells the epochs of the last phase to the trial that the run belongs to, if there is one.

    What it returns raises Pruned when the run has fallen behind. A study that is away costs the run nothing.
    """
    if config.sweep.trial is None:
        return record
    need_optuna(config)
    import optuna
    import sqlalchemy.exc

    away = (optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError, ConfigError, KeyError, OSError)
    name, _, number = config.sweep.trial.rpartition("/")
    metric = "validation_loss" if config.objective in LOWER_IS_BETTER else "validation_accuracy"
    try:
        kept = storage(config)
        study = optuna.load_study(study_name=name, storage=kept)
        study.pruner = pruner(config.sweep.pruner, study.user_attrs[EPOCHS])
        trial = kept.get_trial_id_from_study_id_trial_number(kept.get_study_id_from_name(name), int(number))
    except away as error:
        _log.warning("The run goes on without its study, %s: %s", name, redact_credentials(str(error))[:300])
        return record

    def told(epoch: EpochRecord) -> None:
        record(epoch)
        if epoch.phase == "head" and config.regime.name == "finetune":
            return
        behind = False
        with contextlib.suppress(*away):  # such as a trial that was ended meanwhile
            # Told twice, by a run that goes on from its checkpoint, a step has the same value.
            kept.set_trial_intermediate_value(trial, epoch.epoch, epoch.metrics[metric])
            behind = study.pruner.prune(study, kept.get_trial(trial))
        if behind and epoch.epoch + 1 < config.epochs:  # after the last there is nothing to be saved
            raise Pruned(
                f"Pruned after epoch {epoch.epoch + 1} of {config.epochs}: {metric} {epoch.metrics[metric]:.4g} is "
                f"behind that of other trials of {name} (sweep.pruner={config.sweep.pruner})"
            )

    return told
