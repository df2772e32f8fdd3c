"""Launcher for SLURM: each job is a SLURM job, which submitit submits.

hydra-submitit-launcher 1.2.0 waits for its jobs in one list comprehension, which raises at the first job whose process
was killed: the results of all other jobs are lost. This launcher calls submitit directly. A requeued job resumes from
its checkpoint (`resume=auto`).
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from experiments.config import credentials
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.sweeps.plan import PlannedRun
from experiments.sweeps.remote_job import error_reason, need_package, to_dict, work
from experiments.sweeps.scheduler import JobLauncher


class SlurmLauncher(JobLauncher):
    """Launcher that runs jobs as an array of SLURM jobs through submitit, at most `sweep.jobs` at a time.

    Args:
        cluster: slurm, or local: processes of this machine, to try it out.
        folder: directory for submitit's files, on a disk that all machines share; relative to the sweep's directory.
        max_num_timeout: how often a job is requeued after a timeout; it then resumes from its checkpoint.
        cpus_per_task: CPU cores per job, and the number of its threads.
        signal_delay_s: seconds between the signal that a job must stop and its time limit.
        slurm: further parameters of submitit for sbatch: partition, account, qos, constraint, setup, ...
        parameters: of submitit: `timeout_min`, `mem_gb` and `gpus_per_node` of a job, and `name` in the queue.
    """

    queues = True

    def __init__(
        self, cluster: str, folder: str, max_num_timeout: int, cpus_per_task: int, signal_delay_s: int,
        slurm: Mapping[str, Any], **parameters: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cluster, self.folder, self.max_num_timeout = cluster, folder, max_num_timeout
        self.cpus_per_task = cpus_per_task
        self.parameters = {
            **parameters, "cpus_per_task": cpus_per_task, "slurm_signal_delay_s": signal_delay_s,
            **{f"slurm_{key}": value for key, value in to_dict(slurm).items() if value is not None},
        }  # fmt: skip

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        need_package("submitit", "slurm")
        if self.cluster not in ("slurm", "local"):
            raise ConfigError(f"hydra.launcher.cluster: must be slurm or local. Received: {self.cluster!r}")
        self.executor(Path())  # wrong parameters raise here, before any work is done

    @property
    def capacity(self) -> int:
        # SLURM queues all jobs as one array; submitit's local executor starts every submitted job at once.
        return sys.maxsize if self.cluster == "slurm" else self.slots

    def threads(self) -> int | None:
        return self.cpus_per_task

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
            executor = submitit.AutoExecutor(
                folder=sweep / self.folder, cluster=self.cluster,
                **{f"{self.cluster}_max_num_timeout": self.max_num_timeout},
            )  # fmt: skip
            executor.update_parameters(**self.parameters, **at_once)
        except (NameError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"hydra/launcher=slurm: {error}") from None
        return executor

    def start(self, jobs: Sequence[PlannedRun]) -> list[Any]:
        from submitit.core.utils import FailedSubmissionError

        executor = self.executor(jobs[0].folder.parent)
        try:
            with executor.batch():
                return [executor.submit(Task(job, Path.cwd(), {}, self.timeout)) for job in jobs]
        except FailedSubmissionError as error:
            raise ConfigError(f"hydra/launcher=slurm: the jobs are not accepted: {error}") from None

    def wait(self, running: Mapping[int, Any], seconds: float) -> dict[int, str | None]:
        time.sleep(seconds)
        ended: dict[int, str | None] = {}
        for at, job in running.items():
            if job.done():
                try:
                    ended[at] = job.result()
                except Exception as error:  # of submitit, or raised in the job's process
                    ended[at] = error_reason(error)
        return ended

    def stop(self, handles: Iterable[Any]) -> None:
        for job in handles:
            job.cancel(check=False)

    def is_queued(self, handle: Any) -> bool:
        return bool(handle.state == "PENDING")


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
