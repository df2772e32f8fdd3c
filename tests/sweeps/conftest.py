"""Whole sweeps one after the other in one process, whose fork server imports TensorFlow once for all of them."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Each line of standard input is a command line of `python -m experiments.train` and a directory to import modules from.
PROGRAM = """
import contextlib, io, json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from experiments.train import main
for line in sys.stdin:
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
    sys.path.remove(modules)
    print(json.dumps([code, printed.getvalue()]), file=answers, flush=True)
"""
Sweep = Callable[..., subprocess.CompletedProcess[str]]
StartSweep = Callable[..., Callable[[], subprocess.CompletedProcess[str]]]


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
    """Return a function that starts a sweep, whose jobs can import the modules in `tmp_path`.

    It returns a function that waits for the end of the sweep.
    """

    def start(*overrides: str) -> Callable[[], subprocess.CompletedProcess[str]]:
        arguments = ["-m", *overrides, f"outputs={own_outputs}"]  # the fork server keeps its first environment
        assert sweeping.stdin is not None
        print(json.dumps([arguments, str(tmp_path)]), file=sweeping.stdin, flush=True)

        def finish() -> subprocess.CompletedProcess[str]:
            assert sweeping.stdout is not None
            ready, _, _ = select.select([sweeping.stdout], [], [], 400)
            assert ready, "the sweep does not end"
            code, printed = json.loads(sweeping.stdout.readline())
            return subprocess.CompletedProcess(arguments, code, printed, "")

        return finish

    return start


@pytest.fixture
def sweep(start_sweep: StartSweep) -> Sweep:
    """Return a function that runs a sweep to its end."""
    return lambda *overrides: start_sweep(*overrides)()
