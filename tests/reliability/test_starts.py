"""Many starts at once: run directories never collide, and several processes create one SQLite database."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import mlflow

Tally = Callable[[str, int, int], None]
Tries = Callable[[int, int], int]
Started = Callable[..., subprocess.Popen[str]]

NAMES = """
import sys
from experiments.system import paths
sys.stdin.readline()
print(paths.run_name('scratch', 'convnet'))
"""

# Opens the tracking database in the directory that each line names and logs a run with two points. All workers do so
# at the same time.
OPENS = """
import os, sys
from pathlib import Path
from hydra import compose, initialize_config_dir
import experiments.train
from experiments.tracking import mlflow_run
from experiments.config import validation
from experiments.system import paths
from experiments.training.types import EpochRecord
import mlflow, mlflow.store.tracking.sqlalchemy_store
print("ready", flush=True)
for line in sys.stdin:
    home, name = line.split()
    with initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
        config = validation.validate(compose("config", [f"outputs={home}"]))
    try:
        with mlflow_run.track(config, Path(home) / name) as tracker:
            for step in range(2):
                tracker.epoch(EpochRecord(step, "scratch", step, 1000 + step, {"loss": float(step)}))
        print("done", flush=True)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}".replace(chr(10), " "), flush=True)
"""


def test_twenty_starts_in_one_second_have_twenty_folders(started: Started, tally: Tally) -> None:
    every = [started("-c", NAMES) for _ in range(20)]
    time.sleep(0.5)
    names = [process.communicate("\n", timeout=60)[0] for process in every]
    assert all(name.strip() for name in names)
    tally("20 starts in a second", 20, len(set(names)))


def test_first_use_of_one_store_by_four_processes(started: Started, tries: Tries, tally: Tally, tmp_path: Path) -> None:
    workers = [started("-c", OPENS, TF_CPP_MIN_LOG_LEVEL="3") for _ in range(4)]
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    rounds, survived = tries(20, 1), 0
    for number in range(rounds):
        home = tmp_path / f"outputs{number}"
        for at, worker in enumerate(workers):
            assert worker.stdin is not None
            worker.stdin.write(f"{home} run{at}\n")
            worker.stdin.flush()
        printed = [worker.stdout.readline().strip() for worker in workers if worker.stdout is not None]
        client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
        assert sorted(experiment.name for experiment in client.search_experiments()) == ["Default", "experiments"]
        experiment = client.get_experiment_by_name("experiments")
        assert experiment is not None and experiment.artifact_location == (home / "mlartifacts").as_uri()
        runs = client.search_runs([experiment.experiment_id])
        points = [len(client.get_metric_history(run.info.run_id, "loss")) for run in runs]
        ended = [run.info.status for run in runs]
        survived += printed == ["done"] * 4 and points == [2] * 4 and ended == ["FINISHED"] * 4
    tally("cold start of one SQLite store by 4 processes", rounds, survived)
