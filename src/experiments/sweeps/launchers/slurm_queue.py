"""SLURM's queue: the states of this user's jobs, their cancellation, and submission from within a SLURM job."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

TIMEOUT = 30.0  # seconds that SLURM's controller may take to answer
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobState:
    """The state of a job in SLURM's queue, and why it is in that state."""

    name: str
    reason: str

    def __str__(self) -> str:
        return self.name if self.reason in ("", "None") else f"{self.name} ({self.reason})"


GONE = JobState("GONE", "the job is no longer in the queue and left no result")
# States in which a job does not run again; a job that is queued once more is PENDING, with the same id.
ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "GONE", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
    "REVOKED", "TIMEOUT",
})  # fmt: skip


def query() -> dict[str, JobState] | None:
    """Return the states of this user's jobs by their ids, or None if SLURM does not answer."""
    command = ["squeue", f"--user={os.getuid()}", "--array", "--states=all", "--noheader", "--format=%i|%T|%r"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        _log.warning("SLURM: squeue has not answered within %g s", TIMEOUT)
        return None
    if done.returncode:
        _log.warning("SLURM: squeue failed: %s", done.stderr.strip())
        return None
    lines = (line.split("|", 2) for line in done.stdout.splitlines())
    return {job_id: JobState(name, reason) for job_id, name, reason in lines}


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel jobs; if SLURM does not answer, log how to cancel them later."""
    try:
        subprocess.run(["scancel", *job_ids], check=False, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        jobs = " ".join(job_ids)
        _log.warning("SLURM: scancel has not answered within %g s. Cancel the jobs later: scancel %s", TIMEOUT, jobs)


@contextmanager
def outside_job() -> Iterator[None]:
    """Hide the variables of the SLURM job that this process may run in, while it submits jobs.

    sbatch would hand them on to the jobs, whose srun reads its options from them: with SLURM_CPU_BIND, jobs of two
    cores ran on the one core of the sweep's own job.
    """
    inside = "SLURM_JOB_ID" in os.environ
    names = [name for name in os.environ if inside and name.startswith(("SLURM", "SRUN_")) and name != "SLURM_CONF"]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)
