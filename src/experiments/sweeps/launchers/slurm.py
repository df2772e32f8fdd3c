"""Launcher for SLURM: each job is a SLURM job, which submitit submits.

hydra-submitit-launcher 1.2.0 loses the results of all jobs if the process of one is killed. This launcher calls
submitit directly. A requeued job resumes from its checkpoint (`resume=auto`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config import credentials
from experiments.errors import ConfigError
from experiments.runs.run_directory import RunDirectory
from experiments.sweeps.launchers.processes import GRACE, LOG, last_lines
from experiments.sweeps.launchers.remote_job import work
from experiments.sweeps.launchers.scheduler import JobLauncher, need_package, to_dict
from experiments.sweeps.launchers.slurm_queue import ENDED, GONE, JobState, cancel, outside_job, query
from experiments.sweeps.plan import PlannedRun
from experiments.training.types import Status

QUERY = 10.0  # seconds between two queries of SLURM's queue
RESULT_DELAY = 60.0  # seconds that a result may take to appear on the shared disk after the job's end (NFS: acdirmax)
ARRAY = 1000  # jobs of one array: SLURM's default MaxArraySize, 1001, is one more than the largest index
# Reasons for which jobs of every sweep wait: their turn, free nodes, the array's limit, the pause before a requeue, the
# end of the array before theirs.
USUAL = frozenset({"None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime", "Dependency"})
# Parameters that are whole numbers, and the smallest value of each.
WHOLE_NUMBERS = {"timeout_min": 1, "max_num_timeout": 0, "signal_delay_s": 0, "cpus_per_task": 1}
# Parameters of sbatch that have a key of their own.
OWN_KEYS = {
    "array_parallelism": "sweep.jobs", "cpus_per_task": "hydra.launcher.cpus_per_task",
    "signal_delay_s": "hydra.launcher.signal_delay_s", "time": "hydra.launcher.timeout_min",
}  # fmt: skip
TIMEOUT = (
    "timeout: it took longer than hydra.launcher.timeout_min, and was requeued as often as "
    "hydra.launcher.max_num_timeout allows. The same command again continues it from its last checkpoint"
)
_log = logging.getLogger(__name__)


class SlurmLauncher(JobLauncher):
    """Launcher that runs jobs as arrays of SLURM jobs through submitit, at most `sweep.jobs` at a time.

    conf/hydra/launcher/slurm.yaml describes its parameters; `parameters` are those that submitit takes as they are.
    """

    queues = True

    def __init__(
        self, cluster: str, folder: str, max_num_timeout: int, cpus_per_task: int, signal_delay_s: int,
        slurm: Mapping[str, Any], **parameters: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cluster, self.folder, self.max_num_timeout = cluster, folder, max_num_timeout
        self.cpus_per_task, self.signal_delay_s = cpus_per_task, signal_delay_s
        self.parameters = {**parameters, "cpus_per_task": cpus_per_task, "slurm_signal_delay_s": signal_delay_s}
        self.slurm = {key: value for key, value in to_dict(slurm).items() if value is not None}
        self.states: dict[str, JobState] = {}  # of the running jobs by their ids, as SLURM was last asked
        self.queried = -math.inf  # when: time.monotonic()
        self.ended_at: dict[str, float] = {}  # time.monotonic() at which a job was first seen to have ended
        self.logged: set[str] = set()  # reasons for which jobs wait

    def check(self) -> None:
        need_package("submitit", "slurm")
        if issues := list(self.issues()):
            raise ConfigError("\n".join(issues))
        self.executor(Path())  # other wrong parameters raise here, before any work is done

    def issues(self) -> Iterator[str]:
        """Yield an error message for every parameter with a value that no cluster accepts."""
        if self.cluster not in ("slurm", "local"):
            yield f"hydra.launcher.cluster: must be slurm or local. Received: {self.cluster!r}"
        given = self.parameters | {"signal_delay_s": self.signal_delay_s, "max_num_timeout": self.max_num_timeout}
        wrong = [key for key, least in WHOLE_NUMBERS.items() if type(given[key]) is not int or given[key] < least]
        for key in wrong:
            least = WHOLE_NUMBERS[key]
            yield f"hydra.launcher.{key}: must be a whole number, at least {least}. Received: {given[key]!r}"
        if not wrong and self.signal_delay_s >= 60 * given["timeout_min"]:
            yield (
                f"hydra.launcher.signal_delay_s: must be less than hydra.launcher.timeout_min "
                f"({60 * given['timeout_min']} s), or jobs are stopped when they start. Received: {self.signal_delay_s}"
            )
        for key, kind, example in (("srun_args", list, "[--exclusive]"), ("additional_parameters", dict, "{nice: 10}")):
            if not isinstance(self.slurm.get(key, kind()), kind):
                yield f"hydra.launcher.slurm.{key}: must be like {example}. Received: {self.slurm[key]!r}"
        for key in filter(OWN_KEYS.get, self.slurm):
            yield f"hydra.launcher.slurm.{key}: set {OWN_KEYS[key]} instead"

    @property
    def capacity(self) -> int:
        # SLURM queues all jobs; submitit's local executor starts every submitted job at once.
        return sys.maxsize if self.cluster == "slurm" else self.slots

    def threads(self) -> int | None:
        return self.cpus_per_task

    def sbatch_parameters(self) -> dict[str, Any]:
        """Return submitit's parameters for sbatch: the given ones, beside those that this launcher needs."""
        needed = {
            # srun does not inherit the number of cores since SLURM 22.05.
            "srun_args": [f"--cpus-per-task={self.cpus_per_task}", *self.slurm.get("srun_args", [])],
            # Requeueing is allowed even where the cluster's default forbids it.
            "additional_parameters": {"requeue": True} | self.slurm.get("additional_parameters", {}),
            "array_parallelism": self.slots,
        }
        return {f"slurm_{key}": value for key, value in (self.slurm | needed).items()}

    def executor(self, sweep: Path) -> Any:
        """Return the submitit executor of a sweep's directory; raise ConfigError if it cannot be made."""
        import submitit

        try:
            executor = submitit.AutoExecutor(
                folder=sweep / self.folder, cluster=self.cluster,
                **{f"{self.cluster}_max_num_timeout": self.max_num_timeout},
            )  # fmt: skip
            executor.update_parameters(**self.parameters, **self.sbatch_parameters())
        except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"hydra/launcher=slurm: {error}") from None
        return executor

    def start(self, jobs: Sequence[PlannedRun]) -> list[Submission]:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = self.executor(jobs[0].folder.parent)
        submissions: list[Submission] = []
        try:
            for first in range(0, len(jobs), ARRAY):
                if submissions:  # an array's limit holds for its own jobs only, so the arrays run one after another
                    before = submissions[-1].job.job_id.partition("_")[0]
                    executor.update_parameters(slurm_dependency=f"afterany:{before}")
                array = jobs[first : first + ARRAY]
                with outside_job(), executor.batch():
                    submitted = [executor.submit(Task(job, Path.cwd(), {}, self.timeout)) for job in array]
                submissions += [Submission(job, planned.folder) for job, planned in zip(submitted, array, strict=True)]
        except BaseException as error:
            self.stop(submissions)
            if isinstance(error, FailedJobError | FailedSubmissionError):  # of sbatch
                raise ConfigError(f"hydra/launcher=slurm: the jobs are not accepted: {error}") from None
            raise
        self.queried = -math.inf
        return submissions

    def wait(self, running: Mapping[int, Submission], seconds: float) -> dict[int, str | None]:
        time.sleep(seconds)
        if self.cluster == "slurm" and time.monotonic() - self.queried > QUERY:
            self.queried = time.monotonic()
            self.update([submission.job.job_id for submission in running.values()])
            for folder in {submission.job.paths.folder for submission in running.values()}:
                refresh(folder)
        ended: dict[int, str | None] = {}
        for at, submission in running.items():
            job, ended_at = submission.job, self.ended_at.get(submission.job.job_id)
            if job.paths.result_pickle.exists() or (self.cluster == "local" and job.done()):
                try:
                    ended[at] = job.result()
                except Exception as error:  # of submitit, or raised in the job's process
                    ended[at] = f"{type(error).__name__}: {str(error).strip()}"
            elif ended_at is not None and time.monotonic() - ended_at > RESULT_DELAY:
                ended[at] = self.reason_without_result(submission)
        for at in ended:
            refresh(running[at].folder)
        return ended

    def reason_without_result(self, submission: Submission) -> str | None:
        """Return why a job failed that has ended without submitit's result, or None if its run is finished."""
        state = self.states[submission.job.job_id]
        refresh(submission.folder)
        facts = RunDirectory(submission.folder).facts()
        if state.name in ("COMPLETED", GONE.name) and facts.get("status") == Status.FINISHED:
            return None
        logs = submission.folder / LOG, submission.job.paths.stderr
        return "\n".join([f"SLURM: {state}", *(line for log in logs for line in last_lines(log))])

    def update(self, job_ids: Sequence[str]) -> None:
        """Query the states of jobs, log why queued ones wait, and record when jobs have ended."""
        found = query()  # of squeue, not of sacct as submitit does: many clusters have no accounting
        if found is None:
            return
        self.states = {job_id: found.get(job_id, GONE) for job_id in job_ids}
        waiting = {state.reason for state in self.states.values() if state.name == "PENDING"}
        for reason in sorted(waiting - USUAL - self.logged):
            _log.warning("SLURM: jobs wait: %s", reason)
        self.logged |= waiting
        now = time.monotonic()
        ended = [job_id for job_id, state in self.states.items() if state.name in ENDED]
        self.ended_at = {job_id: self.ended_at.get(job_id, now) for job_id in ended}

    def stop(self, handles: Iterable[Submission]) -> None:
        jobs = [submission.job for submission in handles]
        if not jobs:
            return
        if self.cluster == "slurm":
            cancel([job.job_id for job in jobs])
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
    """A submitted job: submitit's handle of it, and its run directory."""

    job: Any
    folder: Path


class Task:
    """A job as a callable for submitit, which calls its `checkpoint` method when the job must stop and be requeued.

    Submitit writes this object into the sweep's directory, so it contains no credentials; the job reads them from the
    environment, which SLURM passes on.
    """

    def __init__(self, job: PlannedRun, *arguments: Any) -> None:
        self.job = dataclasses.replace(job, config=credentials.concealed_config(job.config))
        self.arguments, self.leaving = arguments, False

    def __call__(self) -> str | None:
        job = dataclasses.replace(self.job, config=credentials.revealed(self.job.config))
        reason = work(job, *self.arguments, leaving=lambda: self.leaving)
        return TIMEOUT if reason and "timed-out too many times" in reason else reason  # submitit's exception

    def checkpoint(self) -> Any:
        import submitit

        self.leaving = True
        return submitit.helpers.DelayedSubmission(Task(self.job, *self.arguments))


def refresh(folder: Path) -> None:
    """Let NFS see the files that other machines have written: a change of the directory's mode ends what it caches."""
    with contextlib.suppress(OSError):
        folder.chmod(folder.stat().st_mode)
