"""Hydra launchers for several machines: each job is a Ray task, or a SLURM job that submitit submits.

Hydra's own plugins for the two (hydra-ray-launcher 1.2.2, hydra-submitit-launcher 1.2.0) wait for their jobs in one
list comprehension, which raises at the first job whose process was killed: the results of all other jobs are lost, and
nothing is retried. These launchers therefore call Ray and submitit directly. A job is the same run that `LocalLauncher`
would start, with the same configuration in the same directory, in a process that Ray or SLURM starts. The processes
share nothing but that directory. A job that is started again resumes from its checkpoint (`resume=auto`).
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

from experiments.config import credentials
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.sweeps.local import GRACE, LOG, LocalLauncher, invoke, last_lines, why_ended
from experiments.sweeps.plan import PlannedRun
from experiments.system import signals

# Prefixes of the environment variables that a job on another machine receives from the sweep's process.
HANDED_ON = ("EXPERIMENTS_", "MLFLOW_")
_log = logging.getLogger(__name__)


class RayLauncher(LocalLauncher):
    """Launcher that runs jobs as tasks of a Ray cluster, at most `sweep.jobs` at a time.

    Args:
        address: address of the cluster, as `ray.init` takes it; null: RAY_ADDRESS if it is set, else a Ray instance on
            this machine that is started for this sweep.
        num_cpus: CPU cores per job, and the number of its threads.
        num_gpus: GPUs per job.
        max_retries: how often a job is retried whose process or machine is gone.
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
                raise ConfigError(f"hydra.launcher.address: no answer from {self.address} ({error})") from None

    def threads(self) -> int | None:
        return max(1, int(self.cpus))

    def run(self, jobs: Sequence[PlannedRun]) -> Sequence[JobReturn]:
        """Run the jobs and return one Hydra JobReturn each, with a status as in `LocalLauncher.run`.

        Raises:
            ConfigError: the Ray cluster cannot be reached.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # it would upload the directory of the uv command
        import ray
        from ray.exceptions import RayError

        returns = [JobReturn(overrides=job.arguments) for job in jobs]
        known = {name: value for name, value in os.environ.items() if name.startswith(HANDED_ON)}
        own = self.address is None and not os.environ.get("RAY_ADDRESS")
        try:
            ray.init(address=self.address, **({"include_dashboard": False} if own else {}), **self.init)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"hydra.launcher.address: no Ray answers at {self.address}: {error}") from None
        signals.install()  # again, because ray.init replaces the SIGTERM handler
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
            signals.check()  # an exception that a signal raises inside ray.wait is turned into SystemError
            raise
        finally:
            for reference in running:  # ray.cancel raises KeyboardInterrupt in the job
                ray.cancel(reference)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=GRACE)
            ray.shutdown()
        return returns


class SlurmLauncher(LocalLauncher):
    """Launcher that runs jobs as an array of SLURM jobs through submitit, at most `sweep.jobs` at a time.

    Args:
        cluster: slurm, or local: processes of this machine, to try it out.
        folder: directory for submitit's files, on a disk that all machines share; relative to the sweep's directory.
        timeout_min: minutes that a job may take, after which it is requeued and resumes from its checkpoint.
        max_num_timeout: how often a job is requeued after a timeout.
        signal_delay_s: seconds between the signal that a job must stop and its time limit.
        cpus_per_task: CPU cores per job, and the number of its threads.
        mem_gb: memory per job [GB].
        gpus_per_node: GPUs per job.
        name: name of the jobs in the queue.
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
        self.executor(Path())  # wrong parameters raise here, before any work is done

    def executor(self, sweep: Path) -> Any:
        """Return the submitit executor that submits the jobs.

        Args:
            sweep: the sweep's directory, to which `folder` is relative.

        Raises:
            ConfigError: SLURM is not available, or submitit refuses these parameters.
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
        """Run the jobs and return one Hydra JobReturn each, with a status as in `LocalLauncher.run`.

        Raises:
            ConfigError: SLURM refuses the jobs.
        """
        from submitit.core.utils import FailedSubmissionError

        returns = [JobReturn(overrides=job.arguments) for job in jobs]
        executor = self.executor(jobs[0].folder.parent)
        # SLURM queues all jobs as one array; submitit's local executor starts every submitted job at once.
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
                    except Exception as error:  # of submitit, or raised in the job's process
                        reason = f"{type(error).__name__}: {str(error).strip()}"
                    self.close(returns[at], at, reason)
        finally:
            for job in running.values():
                job.cancel(check=False)
        return returns


class Task:
    """A job as a callable for submitit, which calls its `checkpoint` method when the job must stop and be requeued.

    Submitit writes this object into the sweep's directory, so it contains no credentials; the job reads them from the
    environment, which SLURM passes on.
    """

    def __init__(self, job: PlannedRun, *arguments: Any) -> None:
        self.job = _with_config(job, credentials.concealed_config)
        self.arguments, self.leaving = arguments, False

    def __call__(self) -> str | None:
        job = _with_config(self.job, credentials.revealed_config)
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
    """Run a job in this process from its planned configuration, and write its output to a file.

    Args:
        directory: working directory of the sweep's process.
        known: environment variables to set, taken from the sweep's process.
        timeout: seconds that the job may take.
        leaving: returns whether the run is being stopped here because it will be started again on another machine.

    Returns:
        The reason why the job failed, or None if it did not.
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
    with contextlib.suppress(OSError):  # where the directory is not shared, only absolute paths work
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
            # Ray and SLURM send these signals to end the process, and start the job again on another machine. A
            # returned reason would end the job as failed.
            sys.stderr.flush()
            os._exit(code)
    if late.is_set():
        return f"timeout: it took longer than {timeout:g} s"
    return "\n".join([str(why_ended(code)), *last_lines(folder / LOG)]) if code else None


@contextmanager
def limited(seconds: float | None, late: threading.Event) -> Iterator[None]:
    """Send this process SIGTERM if the block takes longer than `seconds`, and SIGKILL `GRACE` seconds later.

    Args:
        seconds: the time limit; None: no limit.
        late: set when the limit is exceeded.
    """

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
    """Append this process's standard output and error to a file, including what C libraries print."""
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
                logging.root.removeHandler(handler)  # Hydra's handler would write to the closed file
            for number, old in zip((1, 2), before, strict=True):
                os.dup2(old, number)
                os.close(old)


def need(package: str, launcher: str, extra: str) -> None:
    """Raise ConfigError if a package is not installed; the package is not imported."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"hydra/launcher={launcher} needs the package {package}, which is not installed. "
            f"Install it: pip install 'experiments[{extra}]'"
        )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)
    return dict(plain)
