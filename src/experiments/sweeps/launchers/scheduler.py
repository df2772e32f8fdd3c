"""Scheduler of a sweep's jobs: which one starts next, when no further one starts, and how each one ended.

Launchers only start, watch and stop jobs, on this machine or on a cluster.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from experiments.errors import ConfigError
from experiments.sweeps.plan import PlannedRun

POLL = 0.5  # seconds between two checks of the running jobs
_log = logging.getLogger(__name__)


class JobLauncher(Launcher):
    """Base class of launchers, which are Hydra plugins; a handle is what a launcher watches and stops a job by."""

    queues = False  # True: a started job may wait for a machine, so that it enforces the timeout itself

    def __init__(self) -> None:
        self.slots = 1  # jobs that run at a time
        self.timeout: float | None = None  # seconds that a job may take

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.slots, self.timeout = config.sweep.jobs, config.sweep.timeout
        self.check()

    def check(self) -> None:
        """Raise ConfigError if the launcher cannot be used, before any work is done."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Raise ConfigError: Hydra's interface passes overrides only, which would have to be composed again."""
        raise ConfigError(f"hydra/sweeper: hydra/launcher={type(self).__name__} needs the one of this project")

    @property
    def capacity(self) -> int:
        """The number of jobs that are started and have not ended, at most."""
        return self.slots

    @abstractmethod
    def threads(self) -> int | None:
        """Return the number of threads of a job, or None if it may use all cores."""

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect to the machines on which jobs run while the block runs."""
        yield

    @abstractmethod
    def start(self, jobs: Sequence[PlannedRun]) -> list[Any]:
        """Start jobs and return their handles."""

    @abstractmethod
    def wait(self, running: Mapping[int, Any], seconds: float) -> dict[int, str | None]:
        """Wait at most some seconds until a job ends; return, by index, why the ended ones failed, or None."""

    @abstractmethod
    def stop(self, handles: Iterable[Any]) -> None:
        """Stop jobs, and wait for their end."""

    def is_queued(self, handle: Any) -> bool:
        """Return whether a job waits for a machine, so that stopping it loses nothing."""
        return False


def need_package(package: str, launcher: str) -> None:
    """Raise ConfigError if a launcher's package is not installed; the package is not imported."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"hydra/launcher={launcher} needs the package {package}, which is not installed. "
            f"Install it: pip install 'image-experiments[{launcher}]'"
        )


def to_dict(options: Mapping[str, Any]) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(options, resolve=True) if isinstance(options, DictConfig) else options
    return dict(plain)


def run_jobs(
    launcher: JobLauncher, jobs: Sequence[PlannedRun], stop_reason: Callable[[], str | None],
    ended: Callable[[int, float, str | None], None],
) -> None:  # fmt: skip
    """Run jobs in their order. If this is interrupted, the running ones are stopped.

    Args:
        stop_reason: returns why no further job is to start, or None.
        ended: called when a job has ended, with its index, its duration in seconds, the start and the end of its
            process included, and the reason if it failed, else None.
    """
    timeout = None if launcher.queues else launcher.timeout
    waiting = list(range(len(jobs)))
    running: dict[int, Any] = {}
    started: dict[int, float] = {}
    with launcher.connected():
        try:
            while waiting or running:
                free = launcher.capacity - len(running)
                queued = [at for at, handle in running.items() if launcher.is_queued(handle)]
                if (queued or (waiting and free)) and (reason := stop_reason()):
                    _log.info("No further job is started: %s", reason)
                    launcher.stop([running.pop(at) for at in queued])
                    waiting = []
                chosen, waiting = waiting[:free], waiting[free:]
                if chosen:
                    running |= zip(chosen, launcher.start([jobs[at] for at in chosen]), strict=True)
                    started |= dict.fromkeys(chosen, time.monotonic())
                late = [at for at in running if timeout is not None and time.monotonic() - started[at] > timeout]
                launcher.stop([running[at] for at in late])
                for at, failure in launcher.wait(running, POLL).items():
                    del running[at]
                    ended(at, time.monotonic() - started[at], timeout_reason(timeout) if at in late else failure)
        finally:
            launcher.stop(running.values())


def timeout_reason(seconds: float | None) -> str:
    return f"timeout: it took longer than {seconds:g} s"
