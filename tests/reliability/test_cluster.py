"""Sweeps on several machines, simulated on one: Ray with two nodes, submitit's executor, PostgreSQL."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import requests

from experiments.training.types import EPOCH_METRICS

pytestmark = pytest.mark.slow
Started = Callable[..., subprocess.Popen[str]]
Tally = Callable[[str, int, int], None]

EPOCHS = 120
SMALL = (
    "regime=bottleneck", "data.per_class={train: 8, validation: 8, test: 4}", "data.image_size=32", "batch_size=4",
    "optimizer.lr=0.001", "tracking.log_model=false", "progress=none",
)  # fmt: skip


def need(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'image-experiments[{extra}]'")


def rows(folder: Path) -> list[dict[str, str]]:
    """The whole lines of a run's curves."""
    try:
        text = (folder / "curves.csv").read_text("utf-8")
    except OSError:
        return []
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def kept(folder: Path) -> list[dict[str, str]]:
    """The rows of those of a run's epochs that its last checkpoint has: they must not be trained again."""
    names = [path.name for path in folder.glob("checkpoints/head/[0-9]*")]
    return rows(folder)[: int(max(names, default="0"))]


def under_way(sweep: subprocess.Popen[str], home: Path, but: set[str]) -> Path:
    """The folder of a job that has trained a part of its epochs, waited for."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert sweep.poll() is None, sweep.communicate()
        for folder in home.glob("sweeps/*/[0-9]*/"):
            if folder.name not in but and kept(folder) and 5 <= len(rows(folder)) < EPOCHS // 2:
                return folder
        time.sleep(0.02)
    raise AssertionError("no job came that far")


def process_of(folder: Path) -> psutil.Process:
    """The process that runs a job: the one that writes its log."""
    for process in psutil.process_iter():
        try:
            if any(file.path == str(folder / "output.log") for file in process.open_files()):
                return process
        except psutil.Error:
            continue
    raise AssertionError(f"nobody runs {folder}")


def runs(uri: str) -> list[Any]:
    client = mlflow.MlflowClient(uri)
    found = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()], max_results=1000
    )
    return [run for run in found if "identity" in run.data.tags]  # not the sweep's own


def whole(uri: str, run: Any, epochs: int) -> bool:
    """Whether every curve of a run has each of its steps once, in their order."""
    client = mlflow.MlflowClient(uri)
    reported = [[point.step for point in client.get_metric_history(run.info.run_id, name)] for name in EPOCH_METRICS]
    return run.info.status == "FINISHED" and all(steps == list(range(epochs)) for steps in reported)


def test_ray_starts_again_what_a_killed_process_and_a_lost_machine_ran(
    started: Started, tally: Tally, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("ray", "ray")
    for name, value in {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        sweep = started(
            "-m", "experiments.train", "-m", "hydra/launcher=ray", f"hydra.launcher.address={cluster.address}",
            *SMALL, f"epochs={EPOCHS}", "model.head.dropout=0,0.1,0.2,0.3,0.4,0.5,0.6,0.7", "sweep.jobs=4",
            "sweep.final=false", EXPERIMENTS_HOME=str(tmp_path),
        )  # fmt: skip
        before: dict[Path, list[dict[str, str]]] = {}
        killed = under_way(sweep, tmp_path, set())
        victim = process_of(killed)
        before[killed] = kept(killed)
        victim.kill()
        under_way(sweep, tmp_path, {killed.name})
        cluster.remove_node(second, allow_graceful=False)
        for folder in killed.parent.glob("[0-9]*/"):
            if folder != killed and kept(folder):
                before[folder] = kept(folder)
        errors = sweep.communicate(timeout=500)[1]
        assert sweep.returncode == 0, errors
    finally:
        cluster.shutdown()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    identities = [run.data.tags["identity"] for run in runs(uri)]
    assert len(identities) == len(set(identities)) == 8, "each was run once, what was started again as the same run"
    assert len(before) > 1
    for folder, known in before.items():  # with the times at which they were trained
        assert known and rows(folder)[: len(known)] == known and len(rows(folder)) == EPOCHS
    tally("ray: a killed worker and a lost node: jobs", 8, sum(whole(uri, run, EPOCHS) for run in runs(uri)))


def test_submitit_reports_the_failed_job_and_goes_on_with_one_that_had_to_leave(
    started: Started, tally: Tally, tmp_path: Path
) -> None:
    need("submitit", "slurm")
    command = (
        "-m", "experiments.train", "-m", "hydra/launcher=slurm_local", *SMALL[:-1], f"epochs={EPOCHS}",
        "optimizer.lr=0.001,0.002,1e30", "sweep.jobs=2",
    )  # fmt: skip
    sweep = started(*command, EXPERIMENTS_HOME=str(tmp_path))
    moved = under_way(sweep, tmp_path, set())
    before = kept(moved)
    process_of(moved).send_signal(signal.SIGUSR2)  # as SLURM does where a job's time is over
    out, errors = sweep.communicate(timeout=400)
    assert sweep.returncode == 1, errors
    assert out.count("FAILED job") == 1 and "loss" in out.partition("FAILED job 2 (optimizer.lr=1e")[2], out
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    good = [run for run in runs(uri) if run.info.status == "FINISHED"]
    assert rows(moved)[: len(before)] == before, "no epoch was trained again"
    assert "Requeued job" in (moved / "output.log").read_text("utf-8"), "it did leave"
    submitted = list(moved.parent.glob(".submitit/*_log.out"))
    finished = {folder: (folder / "output.log").stat().st_mtime_ns for folder in moved.parent.glob("[0-9]*/")
                if json.loads((folder / "run.json").read_bytes())["status"] == "FINISHED"}  # fmt: skip
    again = started(*command, EXPERIMENTS_HOME=str(tmp_path))
    out, errors = again.communicate(timeout=400)
    assert again.returncode == 1, errors
    assert "3 jobs, 1 to run" in out and "2 already finished" in out
    assert finished == {folder: (folder / "output.log").stat().st_mtime_ns for folder in finished}
    assert len(finished) == 2 and len(list(moved.parent.glob(".submitit/*_log.out"))) == len(submitted) + 1
    tally("submitit: one of three fails, one is requeued: jobs", 2, sum(whole(uri, run, EPOCHS) for run in good))


class Postgres:
    """A PostgreSQL of a temporary folder, on a free port of this machine alone."""

    def __init__(self, home: Path) -> None:
        # PostgreSQL refuses to run as root.
        self.owner: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        self.home = home
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.uri = f"postgresql+psycopg://experiments:secret@127.0.0.1:{port}/postgres"
        if self.owner:
            shutil.chown(home, "postgres", "postgres")
        (home / "password").write_text("secret")
        if self.owner:
            shutil.chown(home / "password", "postgres", "postgres")
        self.run(
            "initdb", "-D", "data", "-U", "experiments", "-A", "scram-sha-256", "--pwfile", "password", "--no-sync"
        )
        options = f"-p {port} -h 127.0.0.1 -k {home} -F"
        self.run("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def run(self, *command: str) -> None:
        with (self.home / "output").open("ab") as printed:
            subprocess.run(command, cwd=self.home, check=True, stdout=printed, stderr=printed, **self.owner)

    def stop(self) -> None:
        self.run("pg_ctl", "-D", "data", "-m", "immediate", "stop")


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    need("psycopg", "postgres")
    if not (shutil.which("initdb") and shutil.which("pg_ctl")):
        pytest.skip("PostgreSQL is not installed: initdb and pg_ctl are not on PATH")
    if os.geteuid() == 0:
        import pwd

        if "postgres" not in [user.pw_name for user in pwd.getpwall()]:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        database = Postgres(Path(home))
        yield database
        database.stop()


@pytest.fixture
def server(postgres: Postgres, tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server on PostgreSQL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "2",
         "--backend-store-uri", postgres.uri, "--artifacts-destination", str(tmp_path / "artifacts")],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                requests.get(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except requests.RequestException:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_four_processes_at_once_lose_nothing_on_postgresql(
    server: str, started: Started, tally: Tally, tmp_path: Path
) -> None:
    processes = [
        started(
            "-m", "experiments.train", *SMALL, "epochs=50", f"seed={seed}", "runtime.threads=1", "tracking=server",
            f"tracking.uri={server}", EXPERIMENTS_HOME=str(tmp_path),
        )
        for seed in range(4)
    ]  # fmt: skip
    for process in processes:
        errors = process.communicate(timeout=400)[1]
        assert process.returncode == 0, errors
    client = mlflow.MlflowClient(server)
    found = runs(server)
    assert len(found) == len({run.data.tags["identity"] for run in found}) == 4
    for run in found:
        names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        assert {"metrics.json", "predictions_validation.json"} <= names
    tally("PostgreSQL, four processes at once: runs", 4, sum(whole(server, run, 50) for run in found))
