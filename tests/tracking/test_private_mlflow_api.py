"""The private API and the internal formats of MLflow that this project uses are as it expects them."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.utils import autologging_utils, mlflow_tags

from experiments.tracking import private_mlflow_api, view


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new store of the installed MLflow."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}")
    return file


def test_the_modules_that_are_preloaded_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    private_mlflow_api.preload()
    monkeypatch.setitem(sys.modules, "git", None)  # its import is an error, as on a machine without git
    private_mlflow_api.preload()


def test_the_tables_with_addresses_are_in_a_new_store(database: Path) -> None:
    with closing(sqlite3.connect(database)) as store:
        for table, column in private_mlflow_api.ADDRESS_COLUMNS:
            assert column in [row[1] for row in store.execute(f"PRAGMA table_info({table})")], table


def test_no_other_column_of_a_new_store_holds_addresses(database: Path) -> None:
    with closing(sqlite3.connect(database)) as store:
        tables = [row[0] for row in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {
            (table, row[1])
            for table in tables
            for row in store.execute(f"PRAGMA table_info({table})")
            if row[1] in ("artifact_location", "artifact_uri", "storage_location")
        }
    assert found <= set(private_mlflow_api.ADDRESS_COLUMNS)


def test_the_tags_have_mlflows_names() -> None:
    assert private_mlflow_api.NOTE == mlflow_tags.MLFLOW_RUN_NOTE
    assert private_mlflow_api.PARENT_RUN == mlflow_tags.MLFLOW_PARENT_RUN_ID


def test_the_context_adds_user_and_program() -> None:
    tags = private_mlflow_api.context_tags({"question": "which"})
    assert tags["question"] == "which" and tags[mlflow_tags.MLFLOW_USER] and tags[mlflow_tags.MLFLOW_SOURCE_NAME]


def test_tables_are_logged_as_mlflow_logs_them(database: Path, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{database}")
    experiment = client.create_experiment("tables", tmp_path.as_uri())
    run_id = client.create_run(experiment).info.run_id
    client.log_table(run_id, {"path": ["a", "b"], "correct": [True, False]}, "predictions.json")
    name, value = private_mlflow_api.table_tag(["predictions.json"])
    assert json.loads(client.get_run(run_id).data.tags[name]) == json.loads(value)
    table = json.loads(Path(client.download_artifacts(run_id, "predictions.json")).read_text())
    assert table == {"columns": ["path", "correct"], "data": [["a", True], ["b", False]]}


def test_the_ui_reads_the_keys_of_the_shared_view() -> None:
    keys = {
        private_mlflow_api.KIND.removeprefix("mlflow."),
        view.tags()[private_mlflow_api.KIND],
        private_mlflow_api.SHARED_VIEW.removeprefix("mlflow."),
        "viewStateShareKey",
        *json.loads(view.tags()[view.SHARED]),
    }
    keys |= {name for chart in view.charts()["compareRunCharts"] for name in chart}
    scripts = Path(mlflow.__file__).parent / "server/js/build/static/js"
    text = "".join(path.read_text(encoding="utf-8") for path in scripts.glob("*.js"))
    assert {key for key in keys if key not in text} == set()


def test_autologging_is_off_in_the_block_and_on_again_after_the_outermost() -> None:
    with private_mlflow_api.without_autologging():
        with private_mlflow_api.without_autologging():
            assert autologging_utils._AUTOLOGGING_GLOBALLY_DISABLED
        assert autologging_utils._AUTOLOGGING_GLOBALLY_DISABLED
    assert not autologging_utils._AUTOLOGGING_GLOBALLY_DISABLED
