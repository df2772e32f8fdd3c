"""Private API and internal formats of MLflow that this project needs, in one place; each has a test of its own.

No public API offers any of these. A release of MLflow that changes one of them fails
tests/tracking/test_private_mlflow_api.py. The format of the UI's shared view is in `view`, the versions of the database
schema in `sqlite_store`; the same tests cover both.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

# The tables and columns of MLflow's database that contain absolute addresses of files.
ADDRESS_COLUMNS = (
    ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
    ("model_versions", "source"), ("model_versions", "storage_location"),
)  # fmt: skip
# MLflow's own tags, with the names that the UI of MLflow 3.17 uses.
NOTE, KIND, SHARED_VIEW = "mlflow.note.content", "mlflow.experimentKind", "mlflow.sharedViewState"
PARENT_RUN = "mlflow.parentRunId"


def preload() -> None:
    """Import the modules that a run will need; MLflow itself imports them only when they are first used."""
    with suppress(ImportError):  # it raises this on machines without git, where MLflow does without the commit
        import git  # noqa: F401  MLflow uses it to find a run's commit.
    import mlflow.artifacts
    import mlflow.store.db.utils
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def context_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags with those that MLflow adds to an active run: user, program, commit."""
    from mlflow.tracking.context.registry import resolve_tags

    return dict(resolve_tags(dict(tags)))


def table_tag(names: Iterable[str]) -> tuple[str, str]:
    """Return the name and the value of the tag by which the UI finds a run's tables; mlflow.log_table sets it."""
    return "mlflow.loggedArtifacts", json.dumps([{"path": name, "type": "table"} for name in names])


@contextmanager
def without_autologging() -> Iterator[None]:
    """Switch off `mlflow.autolog` in the block: it would log what a run trains a second time, as a run of its own."""
    loaded = sys.modules.get("mlflow.utils.autologging_utils")  # without it, autologging is not on
    if loaded is None or loaded._AUTOLOGGING_GLOBALLY_DISABLED:  # an inner block would switch it on again at its end
        yield
        return
    with loaded.disable_autologging():
        yield
