"""Logging of a run's model to MLflow, for mlflow.keras and for serving, and its registration in the model registry."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.images.decoder_settings import DecoderSettings
from experiments.system.paths import PACKAGE
from experiments.tracking import connection

if TYPE_CHECKING:
    import keras
    from mlflow import MlflowClient

NAME = "model"  # runs:/ID/model
# The requirements are listed here because MLflow would infer them in a process that imports everything again.
REQUIRED = ("mlflow", "tensorflow", "keras", "numpy", "pandas", "pillow")
CODE = "experiments_served"  # the beginning of the name of the package that a logged model has
SERVED = (
    "tracking/serving.py", "images/decoder.py", "images/decoder_settings.py", "images/file_formats.py",
    "images/plugins.py", "images/colors.py", "images/resizing.py", "errors.py",
)  # fmt: skip
INPUT = (
    "image files (JPEG, PNG, TIFF, ...) as base64 text in the column 'image', or pixels "
    "[N, image_size, image_size, 3] in [0, 255]"
)


def log_model(client: MlflowClient, run_id: str, model: keras.Model, classes: Sequence[str]) -> None:
    """Log the whole model for mlflow.keras.load_model and `mlflow models serve`, replacing earlier ones of this run."""
    from mlflow.entities import LoggedModelStatus
    from mlflow.models import Model

    run = client.get_run(run_id)
    begun = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    # mlflow.keras.log_model does the same, but only for the active run.
    made = client.create_logged_model(run.info.experiment_id, name=NAME, source_run_id=run_id, params=run.data.params)
    Model.log(
        artifact_path=None, model_id=made.model_id, flavor=Flavor, run_id=run_id, model=model,
        metadata={
            "classes": list(classes), "image_size": model.input_shape[1], "input": INPUT,
            **dataclasses.asdict(DecoderSettings.logged(run.data.params)),
            "positive": run.data.tags.get("positive"),
            "threshold": float(run.data.tags["threshold"]) if "threshold" in run.data.tags else None,
        },
    )  # fmt: skip
    client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
    for old in begun:
        client.delete_logged_model(old.model_id)


def register(uri: str, run_id: str, name: str, alias: str | None) -> str:
    """Register a run's logged model under a name, unless it is so already; return the version, which gets the alias."""
    with connection.client(uri, f"{name}: MLflow's registry does not take it") as client:
        import mlflow

        versions = client.search_model_versions(f"name = '{name}'")
        known = [version for version in versions if version.run_id == run_id]
        with contextlib.redirect_stderr(io.StringIO()):  # MLflow would print the version there.
            made = known[0] if known else mlflow.register_model(f"runs:/{run_id}/{NAME}", name)
        if alias:
            client.set_registered_model_alias(name, alias, made.version)
        return str(made.version)


class Flavor:
    """MLflow flavor that writes the directory of the Keras flavor, with `tracking.serving` as loader for serving."""

    @staticmethod
    def save_model(path: str, mlflow_model: Any, model: keras.Model) -> None:
        import mlflow.keras
        from mlflow import pyfunc
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, DataType, Schema
        from mlflow.types.schema import Map

        requirements = [f"{name}=={importlib.metadata.version(name)}" for name in REQUIRED]
        mlflow.keras.save_model(model, path, mlflow_model=mlflow_model, pip_requirements=requirements)
        # No MLflow schema can express "image files or pixels", so `tracking.serving` validates the input itself.
        shares = ColSpec(Map(DataType.double), "probabilities")
        mlflow_model.signature = ModelSignature(
            outputs=Schema([ColSpec("string", "class"), ColSpec("double", "probability"), shares])
        )
        environment = mlflow_model.flavors[pyfunc.FLAVOR_NAME][pyfunc.ENV]
        package = copy_code(Path(path) / "code")
        pyfunc.add_to_model(mlflow_model, loader_module=f"{package}.tracking.serving", code="code", env=environment)
        mlflow_model.save(os.path.join(path, "MLmodel"))


def copy_code(folder: Path) -> str:
    """Copy the modules that serving needs, so that a model is served with the decoder that it was trained with.

    Returns:
        The name of their package. It does not hide an installed `experiments`, and differs for other code: a process
        that loads models of two versions would import the first one's for both.
    """
    texts = {name: (PACKAGE / name).read_text(encoding="utf-8") for name in SERVED}
    package = f"{CODE}_{hashlib.sha256(''.join(texts.values()).encode()).hexdigest()[:12]}"
    for name, text in texts.items():
        target = folder / package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.replace("from experiments.", f"from {package}."), encoding="utf-8")
    return package
