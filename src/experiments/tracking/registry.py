"""MLflow's model registry: names, versions and aliases of models."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.tracking import connection, model_logging

if TYPE_CHECKING:
    import keras


def log_model(uri: str, run_id: str, model: keras.Model, classes: Sequence[str]) -> None:
    """Log the model of a run that has logged none.

    Raises:
        ConfigError: the model cannot be logged.
    """
    with connection.client(uri, f"run {run_id}: its model cannot be logged"):
        model_logging.log_model(run_id, model, classes)


def register(uri: str, run_id: str, name: str, alias: str | None) -> str:
    """Register a run's logged model as a version of a registered model, unless it is one already.

    Args:
        name: of the registered model.
        alias: is set to this version; None to set no alias.

    Returns:
        The version.

    Raises:
        ConfigError: the registry cannot be used, or rejects the name or the alias.
    """
    with connection.client(uri, f"{name}: MLflow's registry does not take it") as client:
        import mlflow

        versions = client.search_model_versions(f"name = '{name}'")
        known = [version for version in versions if version.run_id == run_id]
        with contextlib.redirect_stderr(io.StringIO()):  # MLflow would print the version there.
            made = known[0] if known else mlflow.register_model(f"runs:/{run_id}/{model_logging.NAME}", name)
        if alias:
            client.set_registered_model_alias(name, alias, made.version)
        return str(made.version)
