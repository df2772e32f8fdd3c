"""Hydra launchers for more machines than one: each job a task of Ray, or a job of SLURM by way of submitit.

Hydra's own plugins for the two (hydra-ray-launcher 1.2.2, hydra-submitit-launcher 1.2.0) wait for their jobs in one
list comprehension, which raises at the first whose process was killed: the results of all others are lost with it, and
nothing is started again. So these here speak to Ray and submitit themselves. A job is the run that `LocalLauncher`
would start, from the same configuration in the same folder, in a process that Ray or SLURM starts; what the processes
share is that folder. One that is started again goes on from its checkpoint (`resume=auto`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import os
import platform
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from experiments.config import validation
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.sweeps.local import GRACE, LOG, LocalLauncher, invoke, last_lines, why_ended
from experiments.sweeps.plan import PlannedRun
from experiments.system import signals

# Of the sweep's environment, what a job on another machine needs to know.
HANDED_ON = ("EXPERIMENTS_", "MLFLOW_")
_log = logging.getLogger(__name__)


class RayLauncher(LocalLauncher):
    """Runs jobs as tasks of a Ray cluster, at most `sweep.jobs` at a time.

    Args:
        address: of the cluster, as `ray.init` takes it; null: RAY_ADDRESS, else a Ray of this machine for this sweep.
        num_cpus: cores of a job; so many threads it has, too.
        num_gpus: GPUs of a job.
        max_retries: how often a job is started again whose process or machine is gone.
        remote: further options of `ray.remote`, such as resources.
        init: further arguments of `ray.init`.
    """

    def __init__(
        self, address: str | None, num_cpus: float, num_gpus: float, max_retries: int,
        remote: Mapping[str, Any], init: Mapping[str, Any],
    ) -> None:  # fmt: skip
        super().__init__()
        self.cpus, self.address = num_cpus, address
        self.remote = {
            "num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": max_retries, "max_calls": 1, **_plain(remote),
        }  # fmt: skip
        self.init = {"log_to_driver": False, "logging_level": logging.ERROR, **_plain(init)}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        need("ray", "ray", "ray")
        host, _, port = (self.address or "").rpartition("//")[2].rpartition(":")
        if host and port.isdigit():
            try:
                socket.create_connection((host, int(port)), timeout=5).close()
            except OSError as error:
                raise ConfigError(f"hydra.launcher.address: nobody answers at {self.address} ({error})") from None

    def threads(self) -> int | None:
        return max(1, int(self.cpus))

    def run(self, jobs: Sequence[PlannedRun]) -> Sequence[JobReturn]:
        """Runs the jobs; what comes back is as `LocalLauncher.run` has it.

        Raises:
            ConfigError: there is no such cluster.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # it would send the folder that uv was called in
        import ray
        from ray.exceptions import RayError

        returns = [JobReturn(overrides=job.arguments) for job in jobs]
        known = {name: value for name, value in os.environ.items() if name.startswith(HANDED_ON)}
        own = self.address is None and not os.environ.get("RAY_ADDRESS")
        try:
            ray.init(address=self.address, **({"include_dashboard": False} if own else {}), **self.init)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"hydra.launcher.address: no Ray answers at {self.address}: {error}") from None
        signals.install()  # Ray takes SIGTERM for itself
        waiting = list(range(len(jobs)))
        running: dict[Any, int] = {}
        try:
            task = ray.remote(**self.remote)(work)
            while waiting or running:
                if waiting and (why := self.enough()):
                    _log.info("No further job is started: %s", why)
                    waiting = []
                while waiting and len(running) < self.slots:
                    at = waiting.pop(0)
                    folder = jobs[at].folder
                    named = task.options(name=f"{folder.parent.name}/{folder.name}")
                    running[named.remote(jobs[at], Path.cwd(), known, self.timeout)] = at
                    self.begun[at] = time.monotonic()
                done, _ = ray.wait(list(running), timeout=0.5) if running else ([], [])
                for reference in done:
                    try:
                        reason = ray.get(reference)
                    except RayError as error:
                        reason = f"{type(error).__name__}: {str(error).strip()}"
                    at = running.pop(reference)
                    self.close(returns[at], at, reason)
        except SystemError:
            signals.check()  # what a signal raises inside of ray.wait comes out as this
            raise
        finally:
            for reference in running:  # Ctrl-C of the sweep is Ctrl-C in its jobs
                ray.cancel(reference)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=GRACE)
            ray.shutdown()
        return returns


class SlurmLauncher(LocalLauncher):
    """Runs jobs as an array of SLURM jobs through submitit, at most `sweep.jobs` of them at a time.

    Args:
        cluster: slurm; local: as processes of this machine, to try it out.
        folder: for what submitit writes, on a disk that all machines share; relative to the sweep's.
        timeout_min: minutes of a job, after which it is queued again and goes on from its checkpoint.
        max_num_timeout: how often.
        signal_delay_s: seconds before its end that a job is told.
        cpus_per_task: cores of a job; so many threads it has, too.
        mem_gb: memory of a job.
        gpus_per_node: GPUs of a job.
        name: of the jobs in the queue.
        slurm: further parameters of submitit for sbatch: partition, account, qos, constraint, setup, ...
    """

    def __init__(
        self, cluster: str, folder: str, timeout_min: int, max_num_timeout: int, signal_delay_s: int,
        cpus_per_task: int, mem_gb: float, gpus_per_node: int, name: str, slurm: Mapping[str, Any],
    ) -> None:  # fmt: skip
        super().__init__()
        self.cluster, self.folder, self.max_num_timeout, self.cpus = cluster, folder, max_num_timeout, cpus_per_task
        self.parameters = {
            "timeout_min": timeout_min, "cpus_per_task": cpus_per_task, "mem_gb": mem_gb, "name": name,
            "gpus_per_node": gpus_per_node,
            "slurm_signal_delay_s": signal_delay_s,
            **{f"slurm_{key}": value for key, value in _plain(slurm).items() if value is not None},
        }  # fmt: skip

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        need("submitit", "slurm", "slurm")
        if self.cluster not in ("slurm", "local"):
            raise ConfigError(f"hydra.launcher.cluster: must be slurm or local. Received: {self.cluster!r}")
        self.executor(Path())  # what it takes is checked before any work

    def executor(self, sweep: Path) -> Any:
        """Return what submits jobs.

        Args:
            sweep: its folder, which a relative `folder` is below.

        Raises:
            ConfigError: there is no SLURM, or it does not take these parameters.
        """
        import submitit

        at_once = {"slurm_array_parallelism": self.slots} if self.cluster == "slurm" else {}
        try:
            made = submitit.AutoExecutor(
                folder=sweep / self.folder, cluster=self.cluster,
                **{f"{self.cluster}_max_num_timeout": self.max_num_timeout},
            )  # fmt: skip
            made.update_parameters(**self.parameters, **at_once)
        except (NameError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"hydra/launcher=slurm: {error}") from None
        return made

    def threads(self) -> int | None:
        return self.cpus

    def run(self, jobs: Sequence[PlannedRun]) -> Sequence[JobReturn]:
        """Runs the jobs; what comes back is as `LocalLauncher.run` has it.

        Raises:
            ConfigError: SLURM refuses the jobs.
        """
        from submitit.core.utils import FailedSubmissionError

        returns = [JobReturn(overrides=job.arguments) for job in jobs]
        executor = self.executor(jobs[0].folder.parent)
        # SLURM keeps its own queue, which takes all jobs as one array; submitit's local executor starts what it gets.
        room = len(jobs) if self.cluster == "slurm" else self.slots
        waiting = list(range(len(jobs)))
        running: dict[int, Any] = {}
        try:
            while waiting or running:
                if why := self.enough():
                    for at in [at for at, job in running.items() if job.state == "PENDING"]:
                        running.pop(at).cancel(check=False)
                        waiting.append(at)
                    if waiting:
                        _log.info("No further job is started: %s", why)
                    waiting = []
                chosen, waiting = waiting[: room - len(running)], waiting[room - len(running) :]
                submitted = []
                try:
                    with executor.batch() if chosen else contextlib.nullcontext():
                        for at in chosen:
                            submitted.append(executor.submit(Task(jobs[at], Path.cwd(), {}, self.timeout)))
                except FailedSubmissionError as error:
                    raise ConfigError(f"hydra/launcher=slurm: the jobs are not accepted: {error}") from None
                for at, job in zip(chosen, submitted, strict=True):
                    running[at] = job
                    self.begun[at] = time.monotonic()
                time.sleep(0.5)
                for at, job in [(at, job) for at, job in running.items() if job.done()]:
                    del running[at]
                    try:
                        reason = job.result()
                    except Exception as error:  # submitit's own, and what the job's process raised
                        reason = f"{type(error).__name__}: {str(error).strip()}"
                    self.close(returns[at], at, reason)
        finally:
            for job in running.values():
                job.cancel(check=False)
        return returns


class Task:
    """A job as submitit takes it: to be called, and to be asked for what is to be done when it must leave.

    Submitit writes it into the sweep's folder, so it holds no credentials; SLURM hands on the environment that does.
    """

    def __init__(self, job: PlannedRun, *arguments: Any) -> None:
        self.job = _with_config(job, validation.concealed_config)
        self.arguments, self.leaving = arguments, False

    def __call__(self) -> str | None:
        job = _with_config(self.job, validation.revealed_config)
        return work(job, *self.arguments, leaving=lambda: self.leaving)

    def checkpoint(self) -> Any:
        import submitit

        self.leaving = True
        return submitit.helpers.DelayedSubmission(Task(self.job, *self.arguments))


def _with_config(job: PlannedRun, change: Callable[[Config], Config]) -> PlannedRun:
    return dataclasses.replace(job, composed=dataclasses.replace(job.composed, config=change(job.composed.config)))


def work(
    job: PlannedRun, directory: Path, known: Mapping[str, str], timeout: float | None,
    *, leaving: Callable[[], bool] = lambda: False,
) -> str | None:  # fmt: skip
    """Run a job in this process, from the configuration that was planned; its output in a file.

    Args:
        directory: that the sweep was started in.
        known: of the sweep's environment.
        timeout: seconds that it may take.
        leaving: whether the run is being ended here because it will be started again elsewhere.

    Returns:
        Why it ended badly; None: it did not.
    """
    folder = job.folder
    if not folder.parent.is_dir():
        return (
            f"{folder.parent} is not to be found on {platform.node()}: the sweep's machines must share a disk, and "
            "outputs= be a place on it"
        )
    os.environ.update(known)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with contextlib.suppress(OSError):  # where it is not shared, only absolute paths mean the same
        os.chdir(directory)
    late = threading.Event()
    code: Any = 0
    with into(folder / LOG), limited(timeout, late):
        try:
            invoke("experiments.train", "run_planned", job)
        except SystemExit as stop:
            if leaving():
                raise
            code = stop.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
        except Exception:
            traceback.print_exc()
            code = 1
        if code in (128 + signal.SIGTERM, 128 + signal.SIGHUP) and not late.is_set():
            # Whoever sent this wants the process gone, not an answer: Ray and SLURM start the job again elsewhere.
            sys.stderr.flush()
            os._exit(code)
    if late.is_set():
        return f"timeout: it took longer than {timeout:g} s"
    return "\n".join([str(why_ended(code)), *last_lines(folder / LOG)]) if code else None


@contextmanager
def limited(seconds: float | None, late: threading.Event) -> Iterator[None]:
    """Ends what this process does after so many seconds: it asks, waits, then does not ask any more."""

    def end() -> None:
        late.set()
        os.kill(os.getpid(), signal.SIGTERM)
        if not over.wait(GRACE):
            os.kill(os.getpid(), signal.SIGKILL)

    over = threading.Event()
    timer = threading.Timer(seconds or 0, end)
    timer.daemon = True
    if seconds is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        over.set()


@contextmanager
def into(log: Path) -> Iterator[None]:
    """Everything that this process says goes into a file, what libraries say from C among it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    before = [os.dup(number) for number in (1, 2)]
    streams = sys.stdout, sys.stderr
    with log.open("a", encoding="utf-8", buffering=1) as file:
        sys.stdout = sys.stderr = file
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = streams
            for handler in [one for one in logging.root.handlers if getattr(one, "stream", None) is file]:
                logging.root.removeHandler(handler)  # Hydra's: what submitit says next would find a closed file
            for number, old in zip((1, 2), before, strict=True):
                os.dup2(old, number)
                os.close(old)


def need(package: str, launcher: str, extra: str) -> None:
    """Checks that a package is there, without importing it.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"hydra/launcher={launcher} needs the package {package}, which is not installed. "
            f"Install it: pip install 'experiments[{extra}]'"
        )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)
    return dict(plain)
