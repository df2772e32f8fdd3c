"""Whole sweeps one after the other in one process, whose fork server imports TensorFlow once for all of them."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from experiments.tracking.experiment import make_tables

# Each line of standard input is a command line of `python -m experiments.train` and a directory to import modules from.
# A process that has imported everything, forked from this one, runs it; all of them share one fork server.
PROGRAM = """
import contextlib, io, json, os, sys
from multiprocessing import forkserver
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from experiments.sweeps.launchers import processes
from experiments.train import main
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
forkserver.set_forkserver_preload(processes.PRELOADED)
forkserver.ensure_running()
for line in sys.stdin:
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:  # it was killed
            print(json.dumps([code, ""]), file=answers, flush=True)
        continue
    print(os.getpid(), file=answers, flush=True)
    forkserver._forkserver.ensure_running = lambda: None  # it is the parent's child
    sys.argv[1:], modules = json.loads(line)
    sys.path.insert(0, modules)
    printed, code = io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
            if isinstance(code, str):
                print(code)
                code = 1
    print(json.dumps([code, printed.getvalue()]), file=answers, flush=True)
    os._exit(0)
"""


class StartedSweep:
    """A sweep in a process of its own."""

    def __init__(self, arguments: list[str], answers: IO[str]) -> None:
        self.arguments, self.answers = arguments, answers
        self.pid = int(self.answer())

    def answer(self) -> str:
        ready, _, _ = select.select([self.answers], [], [], 400)
        assert ready, "the sweep does not end"
        return self.answers.readline()

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end of the sweep."""
        code, printed = json.loads(self.answer())
        return subprocess.CompletedProcess(self.arguments, code, printed, "")


Sweep = Callable[..., subprocess.CompletedProcess[str]]
StartSweep = Callable[..., StartedSweep]


@pytest.fixture(scope="session")
def sweeping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"COLUMNS": "200", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path_factory.mktemp("sweeping"), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def start_sweep(sweeping: subprocess.Popen[str], own_outputs: Path, tmp_path: Path) -> StartSweep:
    """Return a function that starts a sweep, whose jobs can import the modules in `tmp_path`."""

    def start(*overrides: str) -> StartedSweep:
        if not (database := own_outputs / "mlflow.db").exists():
            own_outputs.mkdir(exist_ok=True)
            make_tables(database)  # a copy; see created_once
        arguments = ["-m", *overrides, f"outputs={own_outputs}"]  # the fork server keeps its first environment
        assert sweeping.stdin is not None and sweeping.stdout is not None
        print(json.dumps([arguments, str(tmp_path)]), file=sweeping.stdin, flush=True)
        return StartedSweep(arguments, sweeping.stdout)

    return start


@pytest.fixture
def sweep(start_sweep: StartSweep) -> Sweep:
    """Return a function that runs a sweep to its end."""
    return lambda *overrides: start_sweep(*overrides).finish()
