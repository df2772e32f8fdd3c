"""Inputs of a run that other MLflow runs have made: weights of a backbone or a head, named by a run id."""

from __future__ import annotations

from pathlib import Path

from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.runs import continuation
from experiments.runs.run_directory import EARLIER, MANIFEST, WEIGHTS, RunDirectory, weights_file
from experiments.system.redaction import redact_credentials
from experiments.tracking import connection
from experiments.tracking.queries import RUN_ID, find_run, in_trash, trashed

# Configuration keys whose value may be a run id -> the artifact of that run which is used.
ARTIFACTS = {
    "model.weights": f"{WEIGHTS}/{weights_file('backbone')}",
    "regime.head_from": f"{WEIGHTS}/{weights_file('head')}",
}


def fetch(config: Config, folder: Path) -> dict[str, Path]:
    """Fetch the files of other runs into a run directory as its inputs.

    They are those for the run ids in the configuration, with the records of what those runs were trained on; those of
    `continue_from`; and those records of the run to which a weights file belongs.

    Returns:
        Key of the configuration -> file; of `continue_from`, the directory of the copies.

    Raises:
        ConfigError: a run or its file is missing, or there is no tracking store.
    """
    continued = continuation.copy_source(config, folder)
    files = {continuation.KEY: continued} if continued else {}
    if (file := file_of_run(config)) is not None:
        RunDirectory(file.parents[1]).copy_records([MANIFEST], RunDirectory(folder).inputs("model.weights"))
        files["model.weights"] = file
    named = run_ids(config)
    if not named:
        return files
    uri = config.tracking.uri
    if uri is None:
        raise ConfigError(f"{', '.join(named)}: a run id needs a tracking store. Received: tracking=none")
    with connection.client(uri) as client:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        for key, run_id in named.items():
            run = find_run(client, run_id)
            if run is not None and in_trash(run):
                raise ConfigError(f"{key}: {run_id}: {trashed(client, uri, run)}")
            place = str(RunDirectory(folder).inputs(key))
            for name in (MANIFEST, EARLIER, ARTIFACTS[key]):
                try:
                    if name == EARLIER and not any(file.path == name for file in client.list_artifacts(run_id)):
                        continue
                    files[key] = Path(download_artifacts(run_id=run_id, artifact_path=name, dst_path=place))
                except (MlflowException, OSError) as error:
                    raise ConfigError(
                        f"{key}: run {run_id} in {redact_credentials(uri)} has no {name}: {str(error)[:300]}. "
                        "Give the id of a run in this tracking store, or a file"
                    ) from None
    return files


def file_of_run(config: Config) -> Path | None:
    """Return the file that `model.weights` names, if it is in the folder of a run; else None."""
    if config.model.weights is None or "model.weights" in config.regime.ignores:
        return None
    file = Path(config.model.weights).expanduser().absolute()
    return file if file.parent.name == WEIGHTS and (file.parents[1] / MANIFEST).is_file() else None


def run_ids(config: Config) -> dict[str, str]:
    """Return the run ids in a configuration by key, except those that its regime ignores."""
    values = {"model.weights": config.model.weights, "regime.head_from": config.regime.head_from}
    read = {key: value for key, value in values.items() if key not in config.regime.ignores}
    return {key: value for key, value in read.items() if value is not None and RUN_ID.fullmatch(value)}
