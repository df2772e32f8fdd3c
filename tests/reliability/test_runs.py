"""Whole runs, killed and stopped in every way, and on a full disk: nothing is lost, and each status is recorded."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

Tally = Callable[[str, int, int], None]
Tries = Callable[[int, int], int]
Read = Callable[[Path], dict[str, Any]]
Started = Callable[..., subprocess.Popen[str]]

SMALL = (
    "data.image_size=48", "model.head.pooling=average", "batch_size=4", "runtime.threads=1", "model.weights=null",
    "regime.head_epochs=6", "epochs=12", "early_stopping=5", "best_weights=true", "schedule=plateau",
    "tracking.log_model=false",
)  # fmt: skip
REGIMES: dict[str, tuple[str, ...]] = {
    "scratch": ("regime=scratch",),
    "bottleneck": ("regime=bottleneck", "optimizer.lr=0.01", "epochs=40"),
    "finetune": ("regime=finetune", "optimizer.lr=0.01", "regime.views=2"),
    "finetune, streamed": ("regime=finetune", "optimizer.lr=0.01", "regime.views=0", "augmentation=colour"),
}

# A run that kills itself when it logs its N-th epoch: the epoch is in the checkpoint, but not in the curves and MLflow.
BETWEEN = """
import os, signal, sys
from experiments import run
from experiments.train import main
add, at = run.Curves.add, [int(sys.argv.pop(1))]
def reported(self, record):
    at[0] -= 1
    if at[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, record)
run.Curves.add = reported
main()
"""


class Home:
    """A place for outputs, and runs of small drawn images in it."""

    def __init__(self, home: Path, root: Path, started: Started) -> None:
        self.home, self.root, self.started = home, root, started
        home.mkdir(exist_ok=True)

    def command(self, name: str, *overrides: str) -> list[str]:
        return ["data=folder", f"data.root={self.root}", f"hydra.run.dir={self.folder(name)}", *SMALL, *overrides]

    def folder(self, name: str) -> Path:
        return self.home / "runs" / name

    def start(self, *arguments: str, program: tuple[str, ...] = ("-m", "experiments.train")) -> subprocess.Popen[str]:
        return self.started(*program, *arguments, EXPERIMENTS_HOME=str(self.home))

    def finish(self, *arguments: str) -> None:
        process = self.start(*arguments)
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors

    def runs(self) -> list[Any]:
        client = mlflow.MlflowClient(f"sqlite:///{self.home}/mlflow.db")
        return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


@pytest.mark.slow
@pytest.mark.parametrize("regime", REGIMES)
def test_kills_at_random_moments_and_between_checkpoint_and_log(
    regime: str, drawn: Path, started: Started, outcome_of: Read, tries: Tries, tally: Tally, tmp_path: Path
) -> None:
    whole, home = Home(tmp_path / "whole", drawn, started), Home(tmp_path / "killed", drawn, started)
    whole.finish(*whole.command("run", *REGIMES[regime]))
    arguments = home.command("run", *REGIMES[regime])
    folder, rng, kills = home.folder("run"), random.Random(regime), 0
    again = [f"resume={folder}"]
    for number in range(tries(6, 2)):
        if number % 3 == 2:  # between checkpoint and log
            process = home.start("2", *arguments, program=("-c", BETWEEN))
        else:
            process = home.start(*arguments)
            while process.poll() is None and not has_begun(folder, process.pid):
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 2.5))
            process.send_signal(signal.SIGKILL)
        errors = process.communicate(timeout=120)[1]
        assert process.returncode in (0, -signal.SIGKILL), errors
        if process.returncode == 0:
            break
        kills += 1
        arguments = again
    home.finish(*again)
    assert kills
    same = outcome_of(home.folder("run")) == outcome_of(whole.folder("run"))
    points = mlflow.MlflowClient(f"sqlite:///{home.home}/mlflow.db").get_metric_history(
        home.runs()[0].info.run_id, "loss"
    )
    epochs = len((folder / "curves.csv").read_text("utf-8").splitlines()) - 1
    reported = [point.step for point in points] == list(range(epochs)) and home.runs()[0].info.status == "FINISHED"
    tally(f"kill -9 at random moments: {regime}", kills, kills if same and reported else 0)


def has_begun(folder: Path, pid: int) -> bool:
    """Whether the run's own process has come as far as its work: TensorFlow is there, its journal is written."""
    try:
        facts = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError):
        return False
    written = (folder / "run.json").stat().st_mtime
    return facts["status"] == "RUNNING" and written > float(Path(f"/proc/{pid}").stat().st_ctime)


ENDINGS: dict[str, tuple[int | None, int, str]] = {
    "SIGTERM": (signal.SIGTERM, 143, "KILLED"),
    "SIGHUP": (signal.SIGHUP, 129, "KILLED"),
    "SIGINT": (signal.SIGINT, 130, "KILLED"),
    "exception": (None, 1, "FAILED"),
    "sys.exit": (None, 3, "FAILED"),
    "kill -9": (signal.SIGKILL, -9, "KILLED"),  # by the next start
}
FAULTY = "import sys\nraise_ = {'exception': RuntimeError('on fire'), 'sys.exit': SystemExit(3)}\n"
FAULTY += "def exception(parts, splits, watch): raise raise_['exception']\n"
FAULTY += "def sys_exit(parts, splits, watch): raise raise_['sys.exit']\n"


@pytest.mark.slow
def test_endings(drawn: Path, started: Started, tally: Tally, tmp_path: Path) -> None:
    home = Home(tmp_path / "home", drawn, started)
    (tmp_path / "faulty.py").write_text(FAULTY, encoding="utf-8")
    right = 0
    for name, (number, code, _) in ENDINGS.items():
        if number is None:
            wrong = f"regime._target_=faulty.{name.replace('.', '_')}"
            os.environ["PYTHONPATH"] = str(tmp_path)
            process = home.start(*home.command(name, wrong, "trusted_packages=[faulty]"))
            del os.environ["PYTHONPATH"]
        else:
            process = home.start(*home.command(name, "regime=scratch", "epochs=5000", "early_stopping=null"))
            curves = home.folder(name) / "curves.csv"
            while process.poll() is None and not (curves.exists() and curves.stat().st_size > 300):
                time.sleep(0.01)
            process.send_signal(number)
        errors = process.communicate(timeout=120)[1]
        last = errors.rstrip().splitlines()[-1] if errors.strip() else ""
        tells = name == "kill -9" or last.endswith(f"resume={home.folder(name)}")
        kept = number is None or any((home.folder(name) / "checkpoints" / "scratch").glob("[0-9]*"))
        right += process.returncode == code and tells and kept
    home.finish(*home.command("next", "regime=scratch", "epochs=1", "schedule=constant"))
    ended = {run.info.run_name: (run.info.status, bool(run.data.tags.get("failure"))) for run in home.runs()}
    marked = sum(ended[name] == (ENDINGS[name][2], True) for name in ENDINGS)
    assert "RUNNING" not in {status for status, _ in ended.values()}
    tally("ending: exit code, last line, checkpoint", len(ENDINGS), right)
    tally("ending: status in MLflow after the next start", len(ENDINGS), marked)


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """Let files of this process be no longer than `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow  # tests/storage and tests/config have what a full disk raises and reports
def test_writes_that_find_no_room(
    drawn: Path, started: Started, run_here: Callable[..., None], outcome_of: Read, tries: Tries, tally: Tally,
    tmp_path: Path,
) -> None:  # fmt: skip
    """With a limit of file sizes: a write beyond it fails as on a full disk, at another place for every limit."""

    def command(home: Home) -> list[str]:
        overrides = (
            "regime=scratch",
            "tracking=none",
            "progress=none",
            "hydra/job_logging=none",
            "runtime.threads=null",
        )
        return [*home.command("run", *overrides), f"outputs={home.home}"]

    whole = Home(tmp_path / "whole", drawn, started)
    run_here(*command(whole))
    # Bytes: of the largest array of decoded images; about, of weights and moments of the small convnet.
    decoded, checkpoint = 24 * 48 * 48 * 3 + 128, 700_000
    limits = [1, 60, 3_000, 30_000, decoded // 2, decoded + 1, *(checkpoint // part for part in (5, 4, 3, 2))]
    chosen, survived = limits[: tries(10, 0)] or [limits[3]], 0
    for limit in chosen:
        home = Home(tmp_path / f"limited{limit}", drawn, started)
        folder, reason = home.folder("run"), None
        try:
            with limited(limit):
                run_here(*command(home))
        except SystemExit as ended:
            reason = str(ended.code)
            run_here(*([f"resume={folder}"] if (folder / "run.json").exists() else command(home)))
        clear = limit > 60 if reason is None else "there is no room to write" in reason and "Traceback" not in reason
        same = outcome_of(folder) == outcome_of(whole.folder("run"))
        if not (clear and same):
            print(limit, same, reason, file=sys.stderr)
        survived += clear and same
    tally("write that finds no room", len(chosen), survived)


def test_a_limit_of_file_sizes_is_an_error_and_no_signal() -> None:
    """What the test above builds on: Python ignores SIGXFSZ."""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN and resource.RLIMIT_FSIZE >= 0


@pytest.mark.slow  # test-reliability has it
def test_like_gives_the_same_numbers(
    drawn: Path, started: Started, run_here: Callable[..., None], outcome_of: Read, own_outputs: Path, tally: Tally
) -> None:
    home = Home(own_outputs, drawn, started)
    overrides = (
        "regime=finetune", "optimizer=adam", "optimizer.lr=0.003", "model.head.dropout=0.3", "seed=3",
        "augmentation=colour", "class_weights={blobs: 2.0, stripes: 1.0}", "regime.head_optimizer.lr=0.02",
    )  # fmt: skip
    quiet = ("progress=none", "hydra/job_logging=none", "tracking.log_model=false")
    typed = home.command("first", *overrides)
    given = [argument for argument in typed if not argument.startswith(("runtime.threads=", "tracking."))]
    run_here(*given, *quiet)
    run_id = home.runs()[0].info.run_id
    run_here(f"like={run_id}", f"hydra.run.dir={home.folder('again')}", *quiet)
    same = outcome_of(home.folder("first")) == outcome_of(home.folder("again"))
    run_here(f"like={home.folder('first')}", f"hydra.run.dir={home.folder('other')}", "seed=4", "epochs=1",
             "schedule=constant", "model.head.dropout=0.1", *quiet)  # fmt: skip
    runs = {run.info.run_name: run for run in home.runs()}
    assert runs["first"].data.tags["identity"] == runs["again"].data.tags["identity"]
    params = runs["other"].data.params
    wanted = ("seed", "model.head.dropout", "optimizer", "epochs")
    assert [params[key] for key in wanted] == ["4", "0.1", "adam", "1"]
    assert np.isfinite(runs["other"].data.metrics["validation.accuracy"])
    tally("like=: the same numbers again", 1, int(same))
