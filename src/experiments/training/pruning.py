"""Storage of a search's Optuna study, and reporting of a run's epochs to its trial, which may be pruned.

Optuna is an optional dependency, the extra `search`.
"""

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
EPOCHS = "epochs"  # name of the study's user attribute that holds the number of epochs of the longest trial
_log = logging.getLogger(__name__)


def need_optuna(config: Config) -> None:
    """Raise ConfigError if Optuna is not installed; otherwise reduce its log output to warnings."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            f"sweep.search: {config.sweep.search} needs Optuna, which is not installed: "
            "pip install 'image-experiments[search]'. Allowed without it: grid"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def storage(config: Config) -> Any:
    """Open the Optuna storage that `sweep.storage` names, creating it if there is none.

    Raises:
        ConfigError: the storage cannot be used.
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
        with FileLock(lock):  # Processes that create the tables of one SQLite file concurrently damage it.
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
    """Return the URL; a PostgreSQL URL without a driver gets psycopg, which the extra `postgres` installs."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if separator and scheme in ("postgres", "postgresql") else url


def pruner(name: str, epochs: int) -> Any:
    """Return the Optuna pruner that ends trials early.

    Args:
        name: the value of `sweep.pruner`.
        epochs: the number of epochs of the longest trial.
    """
    import optuna

    if name == "median":
        # The first epochs predict the end of a curve poorly, so no trial is pruned during them.
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=max(1, epochs // 6))
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)
    return optuna.pruners.NopPruner()


def reporting(
    config: Config, record: Callable[[EpochRecord], None], last_phase: str | None
) -> Callable[[EpochRecord], None]:
    """Wrap `record` so that the epochs of the last phase (None: of every phase) are also reported to the Optuna trial.

    The returned function raises Pruned when the pruner stops the trial. A run without a trial gets `record` itself. If
    the study cannot be reached, training continues without it: at the start with a warning, later without one.
    """
    if config.sweep.trial is None:
        return record
    need_optuna(config)
    import optuna
    import sqlalchemy.exc

    unavailable = (optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError, ConfigError, KeyError, OSError)
    name, _, number = config.sweep.trial.rpartition("/")
    metric = "validation_loss" if config.objective in LOWER_IS_BETTER else "validation_accuracy"
    try:
        kept = storage(config)
        study = optuna.load_study(study_name=name, storage=kept)
        study.pruner = pruner(config.sweep.pruner, study.user_attrs[EPOCHS])
        trial = kept.get_trial_id_from_study_id_trial_number(kept.get_study_id_from_name(name), int(number))
    except unavailable as error:
        _log.warning("The run goes on without its study, %s: %s", name, redact_credentials(str(error))[:300])
        return record

    def record_and_report(epoch: EpochRecord) -> None:
        record(epoch)
        if last_phase is not None and epoch.phase != last_phase:
            return
        is_behind = False
        with contextlib.suppress(*unavailable):  # for example, the trial has been ended meanwhile
            # A run that is resumed from a checkpoint reports epochs again, with the same values: this is idempotent.
            kept.set_trial_intermediate_value(trial, epoch.epoch, epoch.metrics[metric])
            is_behind = study.pruner.prune(study, kept.get_trial(trial))
        if is_behind and epoch.epoch + 1 < config.epochs:  # After the last epoch, pruning would save no time.
            raise Pruned(
                f"Pruned after epoch {epoch.epoch + 1} of {config.epochs}: {metric} {epoch.metrics[metric]:.4g} is "
                f"behind that of other trials of {name} (sweep.pruner={config.sweep.pruner})"
            )

    return record_and_report
