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

# For each line, four processes open the tracking database in the directory that it names, all at the same time, and log
# a run with two points. They are forks of one that has imported MLflow.
OPENS = """
import multiprocessing, sys
from pathlib import Path
from hydra import compose, initialize_config_dir
import experiments.train
from experiments.tracking import mlflow_run
from experiments.config import validation
from experiments.system import paths
from experiments.training.types import EpochRecord
import mlflow.store.tracking.sqlalchemy_store
def log(config, folder, together):
    together.wait()
    with mlflow_run.track(config, folder) as tracker:
        for step in range(2):
            tracker.epoch(EpochRecord(step, "scratch", step, 1000 + step, {"loss": float(step)}))
context = multiprocessing.get_context("fork")
for home in map(str.strip, sys.stdin):
    with initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
        config = validation.validate(compose("config", [f"outputs={home}"]))
    together = context.Barrier(4)
    workers = [context.Process(target=log, args=(config, Path(home, f"run{at}"), together)) for at in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print([worker.exitcode for worker in workers], flush=True)
"""


def test_starts_in_one_second_have_folders_of_their_own(started: Started, tries: Tries, tally: Tally) -> None:
    every = [started("-c", NAMES) for _ in range(tries(20, 5))]
    time.sleep(0.5)
    names = [process.communicate("\n", timeout=60)[0] for process in every]
    assert all(name.strip() for name in names)
    tally(f"{len(every)} starts in a second", len(every), len(set(names)))


def test_first_use_of_one_store_by_four_processes(started: Started, tries: Tries, tally: Tally, tmp_path: Path) -> None:
    starter = started("-c", OPENS, TF_CPP_MIN_LOG_LEVEL="3")
    assert starter.stdin is not None and starter.stdout is not None
    rounds, survived = tries(20, 1), 0
    for number in range(rounds):
        home = tmp_path / f"outputs{number}"
        print(home, file=starter.stdin, flush=True)
        codes = starter.stdout.readline()
        client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
        assert sorted(experiment.name for experiment in client.search_experiments()) == ["Default", "experiments"]
        experiment = client.get_experiment_by_name("experiments")
        assert experiment is not None and experiment.artifact_location == (home / "mlartifacts").as_uri()
        runs = client.search_runs([experiment.experiment_id])
        points = [len(client.get_metric_history(run.info.run_id, "loss")) for run in runs]
        ended = [run.info.status for run in runs]
        survived += codes == "[0, 0, 0, 0]\n" and points == [2] * 4 and ended == ["FINISHED"] * 4
    tally("cold start of one SQLite store by 4 processes", rounds, survived)
