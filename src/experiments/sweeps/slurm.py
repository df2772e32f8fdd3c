"""Launcher for SLURM: each job is a SLURM job, which submitit submits.

hydra-submitit-launcher 1.2.0 waits for its jobs in one list comprehension, which raises at the first job whose process
was killed: the results of all other jobs are lost. This launcher calls submitit directly. A requeued job resumes from
its checkpoint (`resume=auto`).
"""

from __future__ import annotations

import dataclasses
import logging
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from experiments.config import credentials
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.sweeps.plan import PlannedRun
from experiments.sweeps.processes import GRACE, LOG, with_output
from experiments.sweeps.remote_job import error_reason, need_package, to_dict, work
from experiments.sweeps.scheduler import JobLauncher
from experiments.sweeps.slurm_queue import ENDED, GONE, State, outside_job, query

QUERY = 10.0  # seconds between two queries of SLURM's queue
RESULT_DELAY = 15.0  # seconds that a result may take to appear on the shared disk after the job's end
# Reasons for which jobs of every sweep wait: their turn, free nodes, the array's limit, the pause before a requeue.
USUAL = frozenset({"None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime"})
TIMEOUT = (
    "timeout: it took longer than hydra.launcher.timeout_min, and was requeued as often as "
    "hydra.launcher.max_num_timeout allows. The same command again continues it from its last checkpoint"
)
_log = logging.getLogger(__name__)


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
        self.cpus_per_task, self.signal_delay_s = cpus_per_task, signal_delay_s
        self.parameters = {
            **parameters, "cpus_per_task": cpus_per_task, "slurm_signal_delay_s": signal_delay_s,
            "slurm_srun_args": [f"--cpus-per-task={cpus_per_task}"],  # srun does not inherit it since SLURM 22.05
            "slurm_additional_parameters": {"requeue": True},  # allowed even where the cluster's default forbids it
            **{f"slurm_{key}": value for key, value in to_dict(slurm).items() if value is not None},
        }  # fmt: skip
        self.states: dict[str, State] = {}  # of the running jobs by their ids, as SLURM was last asked
        self.queried = -math.inf  # when: time.monotonic()
        self.over: dict[str, float] = {}  # time.monotonic() at which a job was first seen to have ended
        self.logged: set[str] = set()  # reasons for which jobs wait

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        need_package("submitit", "slurm")
        if self.cluster not in ("slurm", "local"):
            raise ConfigError(f"hydra.launcher.cluster: must be slurm or local. Received: {self.cluster!r}")
        limit = 60 * self.parameters["timeout_min"]
        if self.signal_delay_s >= limit:
            raise ConfigError(
                f"hydra.launcher.signal_delay_s: must be less than hydra.launcher.timeout_min ({limit:g} s), or jobs "
                f"are stopped when they start. Received: {self.signal_delay_s}"
            )
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

    def start(self, jobs: Sequence[PlannedRun]) -> list[Submission]:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = self.executor(jobs[0].folder.parent)
        try:
            with outside_job(), executor.batch():
                submitted = [executor.submit(Task(job, Path.cwd(), {}, self.timeout)) for job in jobs]
        except (FailedJobError, FailedSubmissionError) as error:  # of sbatch
            raise ConfigError(f"hydra/launcher=slurm: the jobs are not accepted: {error}") from None
        self.queried = -math.inf
        return [Submission(job, planned.folder / LOG) for job, planned in zip(submitted, jobs, strict=True)]

    def wait(self, running: Mapping[int, Submission], seconds: float) -> dict[int, str | None]:
        time.sleep(seconds)
        if self.cluster == "slurm" and time.monotonic() - self.queried > QUERY:
            self.queried = time.monotonic()
            self.update([submission.job.job_id for submission in running.values()])
        ended: dict[int, str | None] = {}
        for at, submission in running.items():
            job, over = submission.job, self.over.get(submission.job.job_id)
            if job.paths.result_pickle.exists() or (self.cluster == "local" and job.done()):
                try:
                    ended[at] = job.result()
                except Exception as error:  # of submitit, or raised in the job's process
                    ended[at] = error_reason(error)
            elif over is not None and time.monotonic() - over > RESULT_DELAY:
                ended[at] = with_output(f"SLURM: {self.states[job.job_id]}", submission.log, job.paths.stderr)
        return ended

    def update(self, job_ids: Sequence[str]) -> None:
        """Query the states of jobs, log why queued ones wait, and record when jobs have ended.

        squeue is used and not sacct, which submitit uses: many clusters have no accounting. A job is no longer in the
        queue some minutes after its end.
        """
        found = query()
        if found is None:
            return
        self.states = {job_id: found.get(job_id, GONE) for job_id in job_ids}
        waiting = {state.reason for state in self.states.values() if state.name == "PENDING"}
        for reason in sorted(waiting - USUAL - self.logged):
            _log.warning("SLURM: jobs wait: %s", reason)
        self.logged |= waiting
        now = time.monotonic()
        self.over = {job_id: self.over.get(job_id, now) for job_id, state in self.states.items() if state.name in ENDED}

    def stop(self, handles: Iterable[Submission]) -> None:
        jobs = [submission.job for submission in handles]
        if not jobs:
            return
        if self.cluster == "slurm":
            subprocess.run(["scancel", *(job.job_id for job in jobs)], check=False)
        else:
            for job in jobs:
                job.cancel()
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline and not self.have_ended(jobs):
            time.sleep(1)

    def have_ended(self, jobs: Sequence[Any]) -> bool:
        """Return whether jobs of submitit have ended; SLURM is queried once for all of them."""
        if self.cluster == "local":
            return all(job.done() for job in jobs)
        found = query()
        return found is not None and all(found.get(job.job_id, GONE).name in ENDED for job in jobs)

    def is_queued(self, handle: Submission) -> bool:
        state = self.states.get(handle.job.job_id)
        return state is not None and state.name == "PENDING"


@dataclass(frozen=True)
class Submission:
    """A submitted job: submitit's handle of it, and the file with its output."""

    job: Any
    log: Path


class Task:
    """A job as a callable for submitit, which calls its `checkpoint` method when the job must stop and be requeued.

    Submitit writes this object into the sweep's directory, so it contains no credentials; the job reads them from the
    environment, which SLURM passes on.
    """

    def __init__(self, job: PlannedRun, *arguments: Any) -> None:
        self.job = _with_config(job, credentials.concealed_config)
        self.arguments, self.leaving = arguments, False

    def __call__(self) -> str | None:
        job = _with_config(self.job, credentials.revealed)
        reason = work(job, *self.arguments, leaving=lambda: self.leaving)
        return TIMEOUT if reason and "timed-out too many times" in reason else reason  # submitit's exception

    def checkpoint(self) -> Any:
        import submitit

        self.leaving = True
        return submitit.helpers.DelayedSubmission(Task(self.job, *self.arguments))


def _with_config(job: PlannedRun, change: Callable[[Config], Config]) -> PlannedRun:
    return dataclasses.replace(job, composed=dataclasses.replace(job.composed, config=change(job.composed.config)))
