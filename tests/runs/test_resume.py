"""Runs that are stopped in any way are marked as stopped; once resumed, they end as if they had never stopped."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from experiments.config.schema import Runtime
from experiments.errors import ConfigError
from experiments.reuse import resume
from experiments.runs import run_directory
from experiments.runs.curves import Curves
from experiments.tracking import liveness
from experiments.training import runtime
from experiments.training.checkpoints import Checkpoints
from experiments.training.types import EpochRecord

SMALL = (
    "data.image_size=48", "model.head.pooling=average", "batch_size=8", "tracking.log_model=false",
    "regime.head_epochs=4", "epochs=6", "early_stopping=4", "best_weights=true", "schedule=plateau",
    "model.weights=null",
)  # fmt: skip


# Each run is a child process, forked from one that has imported TensorFlow, and sends itself a signal after its third
# epoch: the checkpoint holds the epoch, the curves and MLflow do not.
PROGRAM = """
import json, os, signal, sys
from experiments import preload
from experiments.runs.curves import Curves
from experiments.train import main
from experiments.training.checkpoints import Checkpoints
add, Checkpoints.due = Curves.add, True  # after every epoch
codes = []
for number, arguments in json.loads(sys.argv[1]):
    def stopping(self, record, number=number):
        if record.epoch == 2:
            os.kill(os.getpid(), number)
        add(self, record)
    child = os.fork()
    if not child:
        Curves.add, sys.argv[1:] = stopping, arguments
        main()
        sys.exit()
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


class Place:
    """A home for outputs, and runs of small drawn images in it."""

    def __init__(self, home: Path, root: Path) -> None:
        self.home, self.root = home, root
        self.codes: dict[str, int] = {}  # with which the processes of runs ended
        self.printed = ""

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(f"sqlite:///{self.home}/mlflow.db")

    def folder(self, name: str) -> Path:
        return self.home / "runs" / name

    def command(self, name: str, *overrides: str) -> list[str]:
        return ["data=folder", f"data.root={self.root}", f"hydra.run.dir={self.folder(name)}", *SMALL,
                "regime=scratch", *overrides]  # fmt: skip

    def stop(self, signals: dict[str, signal.Signals]) -> None:
        """Train runs one after the other, which end by these signals."""
        commands = json.dumps([(number, self.command(name)) for name, number in signals.items()])
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, commands], env=os.environ | {"EXPERIMENTS_HOME": str(self.home)},
            cwd=self.home, text=True, capture_output=True, preexec_fn=heed_signals, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.codes = dict(zip(signals, json.loads(done.stdout.splitlines()[-1]), strict=True))
        self.printed = done.stderr

    def run(self, name: str) -> Any:
        (found,) = self.client.search_runs(["1"], f"attributes.run_name = '{name}'")
        return found


def heed_signals() -> None:
    """For a new process: no signal is ignored, though the tests were started with nohup or in the background."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="module")
def stopped(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Runs that were stopped: `lost` and `died` by kill -9, and `ended` between them by SIGTERM."""
    place = Place(tmp_path_factory.mktemp("resume"), drawn)
    place.stop({"lost": signal.SIGKILL, "ended": signal.SIGTERM, "died": signal.SIGKILL})
    return place


class Died(BaseException):
    pass


def test_a_run_that_dies_between_checkpoint_and_curves_is_resumed_as_if_it_had_not(
    stopped: Place,
    run_here: Callable[..., None],
    outcome_of: Callable[[Path], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of regime=scratch: first with its process, then in this one; tests/reliability has all regimes."""
    monkeypatch.setenv("EXPERIMENTS_HOME", str(stopped.home))
    quiet = ("progress=none", "hydra/job_logging=none")
    run_here(*stopped.command("whole", "tracking=none", *quiet))
    add, folder = Curves.add, stopped.folder("died")

    def dies(self: Curves, record: EpochRecord) -> None:
        if record.epoch == 4:
            raise Died
        add(self, record)

    assert stopped.codes["died"] == -signal.SIGKILL and stopped.run("died").info.status == "RUNNING"
    assert len((folder / "curves.csv").read_text().splitlines()) == 1 + 2
    assert [path.name for path in sorted((folder / "checkpoints" / "scratch").iterdir())][-1] == "00003"
    with monkeypatch.context() as patch:
        patch.setattr(Curves, "add", dies)
        patch.setattr(Checkpoints, "due", False)  # epochs too short for one each
        with pytest.raises(Died):
            run_here(f"resume={folder}", "runtime.threads=null")
    assert len((folder / "curves.csv").read_text().splitlines()) == 1 + 4
    logged = stopped.client.get_metric_history(stopped.run("died").info.run_id, "loss")
    assert [point.step for point in logged] == [0, 1, 2], "the fourth epoch is in no checkpoint"
    started: list[int | None] = []

    def apply(settings: Runtime, right: Callable[[Runtime], Any] = runtime.apply) -> Any:
        started.append(settings.threads)
        return right(settings)

    with monkeypatch.context() as patch:
        patch.setattr(runtime, "apply", apply)
        run_here(*stopped.command("died", "resume=auto", *quiet))
    threads = json.loads((folder / "run.json").read_text())["threads"]
    assert started == [threads, threads], "before its identity is computed and before it goes on"
    died, whole = outcome_of(folder), outcome_of(stopped.folder("whole"))
    assert {key for key in died | whole if died.get(key) != whole.get(key)} == set()
    facts = json.loads((folder / "run.json").read_text())
    assert facts["status"] == "FINISHED"
    assert [path.name for path in (folder / "checkpoints").glob("*/*")] == ["00006"], "the last one is kept"
    run = stopped.run("died")
    assert (run.info.run_id, run.info.status) == (facts["run_id"], "FINISHED")
    assert "failure" not in run.data.tags
    for key in ("loss", "validation_accuracy", "seconds", "phase"):
        steps = [point.step for point in stopped.client.get_metric_history(run.info.run_id, key)]
        assert steps == list(range(len(whole["curves"]))), "every point, none twice"
    for key in ("validation.accuracy", "total_seconds"):
        assert len(stopped.client.get_metric_history(run.info.run_id, key)) == 1
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_here(f"resume={folder}")
    assert "nothing to resume" in printed.getvalue()

    # resume=auto continues this run only, so that its result is never that of another run.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".json", ".csv", ".h5")}
    run_here(*stopped.command("died", "resume=auto", *quiet))
    with pytest.raises(SystemExit, match="was another run"):
        run_here(*stopped.command("died", "resume=auto", "epochs=5", *quiet))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert stopped.client.get_run(facts["run_id"]).info.status == "FINISHED"


def test_how_a_run_ends_is_in_its_status_exit_code_and_last_line(stopped: Place) -> None:
    """By kill -9, which the next start tells, and by SIGTERM; tests/reliability has the other endings."""
    assert (stopped.codes["lost"], stopped.codes["ended"]) == (-signal.SIGKILL, 128 + signal.SIGTERM), stopped.printed
    assert re.search(r"It stopped after epoch \d+ of phase scratch\nGo on with it: ", stopped.printed), stopped.printed
    run, folder = stopped.run("ended"), stopped.folder("ended")
    assert (run.info.status, run.data.tags["failure"]) == ("KILLED", "Stopped: SIGTERM")
    assert json.loads((folder / "run.json").read_text())["status"] == "KILLED"
    assert f"python -m experiments.train resume={folder}\n" in stopped.printed
    assert list((folder / "checkpoints" / "scratch").glob("[0-9]*"))
    lost = stopped.run("lost")
    assert lost.info.status == "KILLED" and "its process is gone" in lost.data.tags["failure"]


def test_a_second_signal_ends_the_process_at_once() -> None:
    program = (
        "import os, signal, time\nfrom experiments.system import signals\nsignals.install()\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], timeout=60, preexec_fn=heed_signals)
    assert done.returncode == -signal.SIGINT
    assert time.monotonic() - began < 30


def test_signals_that_arrive_together_are_one_stop() -> None:
    """Ctrl-C reaches a sweep's jobs from the terminal, and SIGTERM from the sweep's process at the same moment."""
    program = (
        "import os, signal\nfrom experiments.system import signals\nsignals.install()\n"
        "both = {signal.SIGINT, signal.SIGTERM}\nsignal.pthread_sigmask(signal.SIG_BLOCK, both)\n"
        "for number in both: os.kill(os.getpid(), number)\n"
        "try: signal.pthread_sigmask(signal.SIG_UNBLOCK, both)\nexcept KeyboardInterrupt: print('stopped')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=60, preexec_fn=heed_signals, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")


def test_a_signal_whose_exception_is_dropped_takes_effect_at_the_next_step() -> None:
    program = (
        "import os, signal, sys\nfrom rich.console import Console\nfrom experiments.system import progress, signals\n"
        "signals.install()\n"
        "class Dropped:\n    def __del__(self): os.kill(os.getpid(), signal.SIGHUP)\n"
        "with progress.Terminal(Console(quiet=True)).stage('x', 9) as advance:\n"
        "    advance()\n    Dropped()\n    os.kill(os.getpid(), signal.SIGTERM)\n    print('on', flush=True)\n"
        "    try:\n        advance()\n    except signals.Stopped as stop:\n        sys.exit(stop.number)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=60, capture_output=True, text=True, preexec_fn=heed_signals
    )
    assert (done.returncode, done.stdout) == (signal.SIGHUP, "on\n"), done.stderr


def test_whose_process_is_gone() -> None:
    mine = liveness.owner() | {"run_folder": "runs/one"}
    assert not liveness.lost(mine)
    assert liveness.lost(mine | {"owner.pid": str(2**22 + 1)})
    long_ago = {"owner.heartbeat": str(time.time() - 3600)}
    assert liveness.lost(mine | {"owner.started": "1.00"} | long_ago), "another process has its number now"
    assert not liveness.lost(mine | {"owner.started": "1.00"}), "the clock was set; its heart beats"
    other = mine | {"owner.host": "elsewhere"}
    assert not liveness.lost(other)
    assert liveness.lost(other | long_ago)
    elsewhere = mine | {"owner.place": "another container", "owner.pid": str(2**22 + 1)}
    assert not liveness.lost(elsewhere) and liveness.lost(elsewhere | long_ago)
    assert not liveness.lost({}), "runs of other programs are not ours to judge"


def test_tags_of_others_say_nothing_of_a_process() -> None:
    gone = liveness.owner() | {"run_folder": "runs/one", "owner.pid": str(2**22 + 1)}
    assert liveness.lost(gone)
    for name in ("owner.host", "owner.pid", "owner.started", "owner.heartbeat"):
        assert not liveness.lost({key: value for key, value in gone.items() if key != name}), name
    for value in ("x", "", "-1", "0", "1.5", "9" * 30, "nan", "None"):
        assert not liveness.lost(gone | {"owner.pid": value}), value
    for name in ("owner.started", "owner.heartbeat"):
        for value in ("x", "", "nan", "2026-11-25 10:00"):
            assert not liveness.lost(gone | {name: value}), (name, value)


# --- what cannot be resumed


def fake(folder: Path, **facts: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    called = {"directory": str(folder), "config_dir": None, "overrides": ["epochs=3"], "sweep": False}
    record = {"command": called, "outputs": str(folder), "threads": 2, "status": "KILLED"} | facts
    (folder / run_directory.FACTS).write_text(json.dumps(record))
    return folder


def test_resuming_repeats_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = fake(tmp_path / "it's a run")
    text = str(folder).replace("'", "\\'")
    assert resume.expand(["epochs=3", "--cfg", "job"]) == ["epochs=3", "--cfg", "job"]
    assert resume.expand([f"resume={folder}"]) == [
        "epochs=3", f"outputs='{text}'", f"hydra.run.dir='{text}'", f"resume='{text}'", "runtime.threads=2"
    ]  # fmt: skip
    assert Path.cwd() == folder
    given = resume.expand(["runtime.threads=1", f"resume={folder}", "tracking=none"])
    assert given is not None and given[-2:] == ["runtime.threads=1", "tracking=none"]
    assert "runtime.threads=2" not in given
    assert resume.expand([f"resume={fake(folder, status='FINISHED')}"]) is None


REFUSED: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "another override": (lambda path: [f"resume={fake(path / 'a')}", "epochs=4", "-m"], "Received: epochs=4 -m"),
    "no such run": (
        lambda path: ["resume=nowhere"],
        "must be a run's folder, or the id or the end of the name of a run.*'nowhere'",
    ),
    "no such id": (lambda path: [f"resume={'a' * 32}"], f"must be a run's folder, or the id.*'{'a' * 32}'"),
    "no run's folder": (lambda path: [f"resume={path}"], "is no run's folder: it has no run.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_resumed_is_a_clear_error(name: str, tmp_path: Path) -> None:
    given, text = REFUSED[name]
    with pytest.raises(ConfigError, match=text):
        resume.expand(given(tmp_path))


def test_damaged_facts_of_a_run_are_reported(tmp_path: Path) -> None:
    for content in ("{", "[]", "{}"):
        (tmp_path / run_directory.FACTS).write_text(content)
        with pytest.raises(ConfigError, match=r"run\.json"):
            resume.expand([f"resume={tmp_path}"])
