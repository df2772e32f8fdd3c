"""Hydra launcher for this machine: each job runs in a new process, forked from one that has imported TensorFlow.

A job that crashes, is killed or takes too long is one failed job; its memory is freed with its process. The process
that jobs are forked from (Python's forkserver) imports the modules that every job needs and runs nothing of them.
"""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from experiments.errors import ConfigError
from experiments.sweeps.plan import PlannedRun
from experiments.system import redaction

PRELOADED = ["experiments.preload"]
LOG = "output.log"  # a job's standard output and error, beside its results
GRACE = 30.0  # seconds between SIGTERM and SIGKILL
_log = logging.getLogger(__name__)


class LocalLauncher(Launcher):
    """Launcher that runs each job in a process of its own, `slots` at a time."""

    def __init__(self) -> None:
        self.slots, self.timeout = 1, None
        self.enough: Callable[[], str | None] = lambda: None  # returns why no further job is to start
        self.ended: Callable[[int, JobReturn], None] = lambda at, done: None
        self.begun: dict[int, float] = {}
        self.seconds: dict[int, float] = {}  # duration of each job, start and end of its process included

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.slots, self.timeout = config.sweep.jobs, config.sweep.timeout

    def threads(self) -> int | None:
        """Return the number of threads of a job, or None if it may use all cores."""
        return max(1, (os.cpu_count() or 1) // self.slots) if self.slots > 1 else None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Raise ConfigError: Hydra's interface passes overrides only, which would have to be composed again."""
        raise ConfigError(f"hydra/sweeper: hydra/launcher={type(self).__name__} needs the one of this project")

    def run(self, jobs: Sequence[PlannedRun]) -> Sequence[JobReturn]:
        """Run the jobs and return one JobReturn each: COMPLETED, FAILED with the reason, or UNKNOWN if not started."""
        returns = [JobReturn(overrides=job.arguments) for job in jobs]
        waiting = list(range(len(jobs)))
        running: dict[int, tuple[Any, int]] = {}
        free = list(range(self.slots))
        gpus = visible_gpus()
        try:
            while waiting or running:
                if waiting and free and (why := self.enough()):
                    _log.info("No further job is started: %s", why)
                    waiting = []
                while waiting and free:
                    at, slot = waiting.pop(0), free.pop(0)
                    gpu = gpus[slot % len(gpus)] if gpus else None
                    self.begun[at] = time.monotonic()
                    running[at] = (start(run_job, jobs[at], str(jobs[at].folder / LOG), gpu), slot)
                multiprocessing.connection.wait([process.sentinel for process, _ in running.values()], timeout=0.5)
                for at, (process, slot) in list(running.items()):
                    late = self.timeout is not None and time.monotonic() - self.begun[at] > self.timeout
                    if late:
                        end([process])
                    if process.exitcode is None:
                        continue
                    process.join()
                    del running[at]
                    free.insert(0, slot)
                    reason = f"timeout: it took longer than {self.timeout:g} s" if late else why_ended(process.exitcode)
                    if reason and not late:
                        reason = "\n".join([reason, *last_lines(jobs[at].folder / LOG)])
                    process.close()
                    self.close(returns[at], at, reason)
        finally:
            end([process for process, _ in running.values()])
        return returns

    def close(self, done: JobReturn, at: int, reason: str | None) -> None:
        """Record how a job ended and call `self.ended`, the sweeper's callback.

        Args:
            done: receives the job's status and, if it failed, the reason.
            at: index of the job among those launched.
            reason: why the job failed; None if it did not.
        """
        self.seconds[at] = time.monotonic() - self.begun[at]
        done.status = JobStatus.FAILED if reason else JobStatus.COMPLETED
        if reason:
            done.return_value = RuntimeError(reason)
        self.ended(at, done)


def start(function: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Start a function in a process of its own, forked from the forkserver that has imported TensorFlow."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def run_job(job: PlannedRun, log: str | None, gpu: str | None) -> None:
    """Run a job in this process from its planned configuration, and write its output to the file `log` if given."""
    guard(log)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    invoke("experiments.train", "run_planned", job)


def guard(log: str | None = None) -> None:
    """Let this process end with its parent, and append its output to the file `log` if given."""
    if log is not None:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(GRACE)
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()


def call(module: str, function: str, *arguments: Any) -> None:
    """Call a function in a process of its own and wait for it; only that process imports the function's module.

    Raises:
        ConfigError: the process failed; its output is on standard error.
    """
    process = start(invoke, module, function, *arguments)
    try:
        process.join()
    except BaseException:
        end([process])
        raise
    if process.exitcode:
        raise ConfigError(f"{module}.{function}: {why_ended(process.exitcode)}")


def run_worker_task(function: str, *arguments: Any) -> dict[str, Any]:
    """Call a function of `worker_tasks` in a process of its own and return its result.

    Raises:
        ConfigError: the function reported an error, or its process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        call("experiments.sweeps.worker_tasks", function, *arguments, str(answer))
        said: dict[str, Any] = json.loads(answer.read_bytes())
    if "error" in said:
        raise ConfigError(said["error"])
    return said


def invoke(module: str, function: str, *arguments: Any) -> None:
    redaction.install()
    getattr(importlib.import_module(module), function)(*arguments)


def end(processes: Sequence[multiprocessing.process.BaseProcess]) -> None:
    """End processes: send SIGTERM, wait at most `GRACE` seconds, then send SIGKILL."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()


def why_ended(code: int | None) -> str | None:
    """Return why a process failed, or None if it did not."""
    if not code:
        return None
    number = -code if code < 0 else code - 128 if code > 128 else 0
    try:
        return f"ended by {signal.Signals(number).name}"
    except ValueError:
        return f"exit code {code}"


def last_lines(log: Path, count: int = 6) -> list[str]:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip()][-count:]


def visible_gpus() -> list[str]:
    """Return the GPUs that jobs may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip() not in ("", "-1")]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(at) for at, line in enumerate(done.stdout.splitlines()) if line.startswith("GPU ")]
