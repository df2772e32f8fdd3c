"""Processes of this machine that run a job or a task of a sweep, forked from one that has imported TensorFlow.

That process (Python's forkserver) runs nothing of what it imports. A job's memory is freed with its process.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from experiments.errors import ConfigError
from experiments.system import redaction, signals

PRELOADED = ["experiments.preload"]
LOG = "output.log"  # a job's standard output and error, beside its results
# Functions of `worker_tasks`, by name: that module imports TensorFlow, so only the process that runs one imports it.
WorkerTask = Literal["inspect_jobs", "share", "fetch", "deleted", "conclude", "open_run", "close_run"]
ANNOUNCEMENT = "Error executing job with overrides: "  # of Hydra, before the error of a job
GRACE = 30.0  # seconds between SIGTERM and SIGKILL


def start(
    module: str, function: str, *arguments: Any, log: Path | None = None, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """Call a function in a process that ends with this one, forked from the forkserver that has imported TensorFlow.

    Args:
        module: only the new process imports it.
        log: file to which the process's output is appended.
        environment: variables of the process, besides those of this one.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the forkserver imports MLflow
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    variables = {**os.environ, **(environment or {})}
    process = context.Process(target=_call, args=(variables, log, module, function, *arguments))
    with _without_main():
        process.start()
    return process


def _call(environment: Mapping[str, str], log: Path | None, module: str, function: str, *arguments: Any) -> None:
    os.environ.update(environment)  # those of the forkserver are of its own start, before other cells of a notebook ran
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    invoke(module, function, *arguments)


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        end_this_process(threading.Event())


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep a process that starts in the block from importing the main module.

    That would be `experiments.train` once more, or a user's script, which would start the sweep again.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def join(process: BaseProcess) -> str | None:
    """Wait for the end of a process and return why it failed, or None. If this is interrupted, end the process."""
    try:
        process.join()
    except BaseException:
        stop([process])
        raise
    return failure(process.exitcode)


def stop(processes: Sequence[BaseProcess]) -> None:
    """End processes: send SIGTERM, wait at most `GRACE` seconds, then send SIGKILL."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()


def run_worker_task(function: WorkerTask, *arguments: Any) -> Any:
    """Call a function of `worker_tasks` in a process of its own; return its result or raise ConfigError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "response.json"
        if reason := join(start("experiments.sweeps.worker_tasks", "respond", function, arguments, path)):
            raise ConfigError(f"experiments.sweeps.worker_tasks.{function}: {reason}")
        response = json.loads(path.read_bytes())
    if "error" in response:
        raise ConfigError(response["error"])
    return response["result"]


def invoke(module: str, function: str, *arguments: Any) -> None:
    """Call a function of a module that this process imports; an interruption is an exit code."""
    try:
        redaction.install()
        getattr(importlib.import_module(module), function)(*arguments)
    except (KeyboardInterrupt, signals.Stopped) as stop:  # the sweep's process reports it
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))


def end_this_process(finished: threading.Event) -> None:
    """Send this process SIGTERM, and SIGKILL unless `finished` is set within `GRACE` seconds."""
    os.kill(os.getpid(), signal.SIGTERM)
    if not finished.wait(GRACE):
        os.kill(os.getpid(), signal.SIGKILL)


def failure(code: int | None) -> str | None:
    """Return why a process with this exit code failed, or None if it did not."""
    if not code:
        return None
    number = -code if code < 0 else code - 128 if code > 128 else 0
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"exit code {code}"
    return f"ended by {name}" + " (kill -9, or out of memory)" * (number == signal.SIGKILL)


def job_failure(code: int | None, log: Path, begin: int = 0) -> str | None:
    """Return why a job failed, with the last lines of its output, or None if it did not; see `last_lines`."""
    reason = failure(code)
    return None if reason is None else "\n".join([reason, *last_lines(log, begin)])


def last_lines(log: Path, begin: int = 0) -> list[str]:
    """Return the last lines of a file with a job's output, without its first `begin` bytes: those of earlier starts.

    If Hydra has announced the job's error, they begin after that line, which repeats the job's overrides.
    """
    try:
        text = log.read_bytes()[begin:].decode(errors="replace")
    except OSError:
        return []
    _, announced, after = text.rpartition(ANNOUNCEMENT)
    lines = after.partition("\n")[2] if announced else text
    return [line for line in lines.splitlines() if line.strip()][-6:]
