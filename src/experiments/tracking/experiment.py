"""Creation of an SQLite store and of an experiment in a store."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.storage.atomic_files import writing_file
from experiments.system.paths import sqlite_file, sqlite_uri
from experiments.tracking import connection, liveness, view
from experiments.tracking.queries import experiment_in_trash


def open_experiment(config: Config) -> str:
    """Make MLflow use the tracking store and return the id of the experiment; both are created if they are missing.

    They are created under a lock, because processes that initialise one SQLite store concurrently damage it; MLflow
    initialises it when a client is created. Runs whose process has died are ended. An experiment in MLflow's trash is
    a ConfigError.
    """
    uri, name = str(config.tracking.uri), config.tracking.experiment
    database = sqlite_file(uri)
    lock = database.with_name(f"{database.name}.lock") if database else Path(config.outputs) / ".mlflow.lock"
    connection.use(uri)
    import mlflow
    from mlflow.exceptions import MlflowException

    with connection.errors(uri):
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if database and not database.exists():
                make_tables(database)
            client = mlflow.MlflowClient()
            found = client.get_experiment_by_name(name)
            if found is None:
                place = config.tracking.artifacts
                if place is not None and "://" not in place:
                    place = Path(place).resolve().as_uri()
                try:
                    return str(client.create_experiment(name, place, tags=view.tags()))
                except MlflowException:
                    # A process with another outputs/, and so with another lock, may have created it meanwhile.
                    found = client.get_experiment_by_name(name)
                    if found is None:
                        raise
        if found.lifecycle_stage == "deleted":
            raise ConfigError(
                f"tracking.experiment: {experiment_in_trash(uri, found)}; or choose another name: "
                "tracking.experiment=NAME"
            )
        liveness.mark_lost(found.experiment_id)
    return str(found.experiment_id)


def make_tables(database: Path) -> None:
    """Create an SQLite store atomically: one whose initialisation was interrupted could never be used again."""
    import mlflow

    # The caller holds the lock, so that temporary files can only be left from killed processes.
    for torn in database.parent.glob(f".{database.name}.*"):
        torn.unlink(missing_ok=True)
    with writing_file(database) as empty:
        mlflow.MlflowClient(sqlite_uri(Path(empty.name)))
