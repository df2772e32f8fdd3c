"""Runs whose outputs/, MLflow run, directory or data folder was moved, deleted or replaced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from experiments.config.overrides import quoted
from experiments.config.schema import Config
from experiments.deploy import saved_run
from experiments.errors import ConfigError
from experiments.reuse import like, resume
from experiments.runs import active_run, run_directory
from experiments.runs.location import folder_of, outputs_of, store_of, store_of_run
from experiments.system.paths import STORE, artifact_location, default_outputs, sqlite_file, sqlite_uri, tracking_uri
from experiments.tracking import connection, inputs, mlflow_run, queries, sync, view

Run = Callable[..., None]
SMALL = ("data.image_size=48", "batch_size=8", "epochs=1", "regime=scratch", "progress=none", "hydra/job_logging=none",
         "tracking.log_model=false", "model.head.pooling=average")  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"home": tmp_path_factory.mktemp("places")}


@pytest.fixture
def home(
    finished: dict[str, Any], drawn: Path, run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """An outputs/ with one finished run, `runs/first`, that was moved here; where it was there is nothing."""
    kept = finished["home"] / "kept"
    if not kept.exists():  # once: that trains
        before = finished["home"] / "it's 100%2F? #1 é"
        cwd = finished["home"] / "typed here"
        cwd.mkdir()
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("EXPERIMENTS_HOME", str(before))
        folder = before / "runs" / "first"
        root = f"data.root={quoted(os.path.relpath(drawn, cwd))}"
        run_here(*SMALL, "data=folder", root, f"hydra.run.dir={quoted(str(folder))}",
                 "notes=${hydra:runtime.choices.regime}")  # fmt: skip
        finished |= {
            "id": json.loads((folder / run_directory.FACTS).read_text())["run_id"],
            "before": before,
            "cwd": cwd,
        }
        before.rename(kept)
        mlflow.tracking._tracking_service.utils._artifact_repos_cache.clear()  # as in another process
    moved = tmp_path / "moved % here's"
    shutil.copytree(kept, moved)
    monkeypatch.setenv("EXPERIMENTS_HOME", str(moved))
    monkeypatch.chdir(finished["cwd"])
    yield moved
    assert not finished["before"].exists(), "nothing is made where outputs/ was"


def client(home: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(sqlite_uri(home / "mlflow.db"))


def interrupt(home: Path, **facts: Any) -> Path:
    """Let the run be one that was stopped before its first checkpoint."""
    path = home / "runs" / "first" / run_directory.FACTS
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "KILLED"} | facts))
    return path.parent


def test_whatever_names_a_run_finds_it_where_outputs_were_moved(
    home: Path, finished: dict[str, Any], config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, uri, folder = finished["id"], tracking_uri(), home / "runs" / "first"
    assert uri == sqlite_uri(home / "mlflow.db") and sqlite_file(uri) == home / "mlflow.db"
    assert like.read(run_id, [])["epochs"] == 1
    assert like.read(run_id, [])["notes"] == "scratch", "${hydra:...} of a single run"
    (facts,) = queries.find_runs(uri, [run_id[:8]])
    assert len(queries.read_predictions(uri, facts, "validation")) == 12
    assert saved_run.find(run_id).folder == folder and saved_run.find("first").folder == folder
    assert resume.find(run_id, [], "resume") == folder
    assert folder_of(run_id, str(folder), uri) == folder and folder_of("f" * 32, str(folder), uri) is None
    wanted = config(f"model.weights={run_id}", "regime=bottleneck")
    assert inputs.fetch(wanted, home / "x")["model.weights"].stat().st_size > 10_000
    assert [name for name, _ in view.configure_experiment_view(uri)] == ["experiments"]
    assert sync.sync(folder, None, whole=True) == f"all is in {uri}"
    assert client(home).get_run(run_id).info.artifact_uri == f"{(home / 'mlartifacts').as_uri()}/{run_id}/artifacts"


def test_a_copy_of_outputs_has_its_own_artifacts(home: Path, finished: dict[str, Any], tmp_path: Path) -> None:
    connection.check(sqlite_uri(home / "mlflow.db"))
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    connection.check(sqlite_uri(copy / "mlflow.db"))
    for place in (home, copy):
        assert client(place).get_run(finished["id"]).info.artifact_uri.startswith((place / "mlartifacts").as_uri())


def test_a_directory_chosen_outside_of_outputs_has_not_moved(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    (tmp_path / "scratch" / "cache").mkdir(parents=True)  # of another program
    outputs.mkdir()
    facts = {"command": {"directory": str(tmp_path)}, "outputs": str(outputs), "store": sqlite_uri(outputs / STORE)}
    chosen = tmp_path / "scratch" / "trial" / "7"
    assert outputs_of(chosen, facts) == outputs and store_of_run(chosen, facts) == facts["store"]
    (tmp_path / "copy" / "cache").mkdir(parents=True)
    for inside in ("runs/a", "sweeps/a/0"):
        assert outputs_of(tmp_path / "copy" / inside, facts) == tmp_path / "copy"


def test_artifacts_that_were_placed_elsewhere_stay_there(tmp_path: Path) -> None:
    file, elsewhere = tmp_path / "outputs" / "mlflow.db", tmp_path / "elsewhere" / "mlartifacts"
    elsewhere.mkdir(parents=True)
    file.parent.mkdir()
    place = mlflow.MlflowClient(sqlite_uri(file))
    for name, location in (("folder", elsewhere.as_uri()), ("bucket", "s3://bucket/mlartifacts")):
        place.create_experiment(name, location)
    (file.parent / "mlartifacts").mkdir()
    connection.check(sqlite_uri(file))
    found = {experiment.name: experiment.artifact_location for experiment in place.search_experiments()}
    assert (found["folder"], found["bucket"]) == (elsewhere.as_uri(), "s3://bucket/mlartifacts")
    (file.parent / "mlartifacts").rmdir()
    elsewhere.rmdir()  # as of a disk that is not mounted
    connection.check(sqlite_uri(file))
    assert elsewhere.as_uri() in {experiment.artifact_location for experiment in place.search_experiments()}


def test_a_run_is_resumed_where_it_was_moved_to_in_its_own_store(
    home: Path, finished: dict[str, Any], run_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another directory, with MLflow's variables set to another store and experiment meanwhile."""
    folder = interrupt(home)
    monkeypatch.chdir(home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of another project")
    run_here(f"resume={folder}", "runtime.threads=null")
    facts = json.loads((folder / run_directory.FACTS).read_text())
    assert (facts["status"], facts["run_id"], facts["outputs"]) == ("FINISHED", finished["id"], str(home))
    assert (facts["store"], facts["mlflow_experiment"]) == (sqlite_uri(home / "mlflow.db"), "experiments")
    assert sorted(path.name for path in (home / "runs").iterdir()) == ["first"]


def test_a_run_whose_directory_is_gone_is_resumed_from_here(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = str(tmp_path / "gone")
    called = json.loads((home / "runs" / "first" / run_directory.FACTS).read_text())["command"] | {"directory": gone}
    monkeypatch.chdir(tmp_path)
    command = resume.expand([f"resume={interrupt(home, command=called)}"])
    assert command is not None and f"outputs={quoted(str(home))}" in command
    reported = capsys.readouterr().err
    assert (
        f"started in {gone}, which cannot be entered" in reported and "are read from the current directory" in reported
    )


@pytest.mark.parametrize("deleted", ["trash", "for good"])
def test_a_run_deleted_in_mlflow_is_named_and_resumed(
    deleted: str, home: Path, finished: dict[str, Any], run_here: Run, config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run_id, uri, folder = finished["id"], tracking_uri(), interrupt(home, model="logged")
    models: list[str | None] = []
    monkeypatch.setattr(mlflow_run.MlflowRun, "model", lambda tracker, *_: models.append(tracker.run_id))
    connection.check(uri)
    place = client(home)
    place.delete_run(run_id)
    reason = f"MLflow's trash. Restore it: MLFLOW_TRACKING_URI=.* mlflow runs restore --run-id {run_id}"
    if deleted == "for good":
        place._tracking_client.store._hard_delete_run(run_id)
        reason = "deleted for good, or is in another store|no finished run fits|has no manifest.csv: "
    wanted = config("regime=bottleneck", f"model.weights={run_id}")
    lookups: list[Callable[[], object]] = [
        lambda: like.read(run_id, []), lambda: queries.find_runs(uri, [run_id]), lambda: saved_run.find(run_id),
        lambda: inputs.fetch(wanted, home / "x"),
    ]  # fmt: skip
    for look in lookups:
        with pytest.raises(ConfigError, match=reason):
            look()
    if deleted == "trash":  # the id still leads to the folder
        assert resume.find(run_id, [], "resume") == folder
    run_here(f"resume={folder}", "runtime.threads=null", "tracking.log_model=true")
    facts = json.loads((folder / run_directory.FACTS).read_text())
    (run,) = place.search_runs(["1"])
    assert models == ([] if deleted == "trash" else [run.info.run_id]), "once in every run"
    assert facts["run_id"] == run.info.run_id and run.info.status == "FINISHED"
    assert (run.info.run_id == run_id) == (deleted == "trash")
    assert len(place.get_metric_history(run.info.run_id, "loss")) == 1
    assert {"config.yaml", "metrics.json"} <= {artifact.path for artifact in place.list_artifacts(run.info.run_id)}
    assert "validation.accuracy" in run.data.metrics and "regime" in run.data.params


def test_a_folder_of_another_run_is_refused_before_any_work(
    home: Path, finished: dict[str, Any], run_here: Run, tmp_path: Path
) -> None:
    folder, foreign = home / "runs" / "first", tmp_path / "photographs"
    foreign.mkdir()
    (foreign / "cat.jpg").write_bytes(b"")
    swept = tmp_path / "sweep"
    swept.mkdir()
    (swept / run_directory.SWEEP).write_text("{}")
    file = tmp_path / "file"
    file.touch()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for place, reason in (
        (folder, f"first belongs to another run (run {finished['id']}, FINISHED)"),
        (foreign, "photographs is not empty, and no run's folder: it has cat.jpg"),
        (swept, "sweep is the folder of a sweep"),
        (file, "must be a folder"),
    ):
        with pytest.raises(SystemExit) as ended:
            run_here(*SMALL, "seed=3", f"hydra.run.dir={quoted(str(place))}")
        assert str(ended.value).startswith("hydra.run.dir: ") and reason in str(ended.value)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    interrupt(home)
    with pytest.raises(SystemExit, match="go on with that run: resume=") as ended:
        run_here(*SMALL, "seed=3", f"hydra.run.dir={quoted(str(folder))}")


def test_what_a_rerun_or_a_run_that_never_began_leaves_is_cleared(home: Path, config: Callable[..., Config]) -> None:
    folder = home / "runs" / "first"
    kept = ["job.json", "output.log", "unsent.jsonl"]  # the last holds what MLflow has not received
    for name in kept:
        (folder / name).touch()
    active_run.check_vacant(folder, config("sweep.rerun=true"))
    active_run.clear(folder)
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == kept
    (folder / run_directory.FACTS).write_text('{"command": {}, "status": "FAILED"}')
    active_run.check_vacant(folder, config())


def test_a_resume_that_would_train_a_new_run_is_refused(tmp_path: Path, config: Callable[..., Config]) -> None:
    resuming = config(f"resume={quoted(str(tmp_path))}")
    active_run.check_vacant(tmp_path, resuming)
    with pytest.raises(ConfigError, match="resume: .* type resume=.* without a plus"):
        active_run.check_vacant(tmp_path / "new", resuming)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"command": 3}', '{"command": {}, "run_id": 7}', "[" * 9999])
def test_a_damaged_run_file_is_named_by_everything_that_reads_it(
    content: str, home: Path, finished: dict[str, Any], run_here: Run, config: Callable[..., Config]
) -> None:
    folder = home / "runs" / "first"
    (folder / run_directory.FACTS).write_text(content)
    reads: list[Callable[[], object]] = [
        lambda: resume.expand([f"resume={folder}"]), lambda: saved_run.find(str(folder)),
        lambda: sync.sync(folder, None, whole=True), lambda: active_run.check_vacant(folder, config()),
    ]  # fmt: skip
    for read in reads:
        with pytest.raises(ConfigError) as caught:
            read()
        assert str(caught.value).startswith(f"{folder / run_directory.FACTS}: is damaged (")
        assert "move the folder away" in str(caught.value)
    assert saved_run.find(finished["id"]).folder is None, "MLflow has what is needed"


def test_the_variable_counts_unless_an_address_is_typed(
    home: Path, config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = sqlite_uri(home / "mlflow.db")
    assert (config().tracking.uri, tracking_uri(), store_of([])) == (own, own, own)
    assert config().tracking.artifacts == str(home / "mlartifacts") and "tracking.uri" not in config().unresolved
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    server = "http://me:secret@host:5000"
    assert (config().tracking.uri, tracking_uri(), store_of([])) == (server, server, server)
    assert config().tracking.artifacts is None, "the server decides"
    assert "tracking.uri" in config().unresolved, "nothing of it is written down"
    assert config("tracking=server").tracking.uri == server and config("tracking=none").tracking.uri is None
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "cats")
    for store in ("sqlite", "server"):
        assert config(f"tracking={store}").tracking.experiment == "cats"
    assert config("tracking.experiment=dogs").tracking.experiment == "dogs"
    typed = "tracking.uri='sqlite:///x y.db'"
    assert config(typed).tracking.uri == store_of([typed]) == "sqlite:///x y.db"
    assert config(typed).tracking.artifacts == str(home / "mlartifacts")


def test_a_database_has_its_artifacts_in_outputs_and_a_server_its_own() -> None:
    for uri in ("sqlite:////a/b.db", "postgresql+psycopg://h/db", "mysql+pymysql://h/db", "mssql+pyodbc://h/db", None):
        assert artifact_location(uri, "/outputs") == "/outputs/mlartifacts"
    for uri in ("http://host:5000", "https://host", "databricks"):
        assert artifact_location(uri, "/outputs") is None


def test_the_home_of_outputs_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/people/me")
    monkeypatch.setenv("EXPERIMENTS_HOME", "~/x")
    assert default_outputs() == "/people/me/x"


@pytest.mark.parametrize("name", ["it's a?b=c#d", "50%41 é a@b:c $x"])
def test_any_path_is_the_address_of_a_database(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    uri = sqlite_uri(folder / "mlflow.db")
    assert sqlite_file(uri) == folder / "mlflow.db"
    mlflow.MlflowClient(uri)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (folder / "mlflow.db").is_file() and default_outputs()
