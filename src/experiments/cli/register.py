"""`experiments register RUN --name NAME [--alias ALIAS]`: register a run's model in MLflow's model registry."""

from __future__ import annotations

import argparse
import shlex

from experiments.cli.arguments import add_run, exit_on_error
from experiments.errors import ConfigError


@exit_on_error()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments register",
        description="Registers a finished run's model in MLflow's registry under a name, once, and lets an alias point "
        "to it. Of a run that has logged no model, a sweep's job, it is put together and logged first.",
    )
    add_run(parser)
    parser.add_argument("--name", required=True, help="of the registered model")
    parser.add_argument("--alias", help="champion, say; it points to this version from now on")
    arguments = parser.parse_args()
    from experiments.deploy import saved_run
    from experiments.system.redaction import redact_credentials
    from experiments.tracking import connection, model_logging, queries

    run = saved_run.find(arguments.run, arguments.uri)
    uri, name, alias = arguments.uri or run.store, arguments.name, arguments.alias
    if run.run_id is None:
        raise ConfigError(f"{run.name}: was not tracked, so MLflow's registry cannot hold it. Use experiments export")
    if queries.logged_model(uri, run.run_id) is None:
        model = run.model()
        with connection.client(uri, f"run {run.run_id}: its model cannot be logged") as client:
            model_logging.log_model(client, run.run_id, model, run.classes)
    version = model_logging.register(uri, run.run_id, name, alias)
    where = f"models:/{name}@{alias}" if alias else f"models:/{name}/{version}"
    print(f"{run.name} is version {version} of {name}" + (f", and its {alias}" if alias else ""))
    print(f"  export MLFLOW_TRACKING_URI={shlex.quote(redact_credentials(uri))}")
    print(f'  mlflow.keras.load_model("{where}")')
    print(f"  mlflow models serve -m {shlex.quote(where)} --env-manager local")
