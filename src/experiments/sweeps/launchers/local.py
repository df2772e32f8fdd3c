"""Launcher for this machine: each job runs in a process of its own, on one of the GPUs if there are any."""

from __future__ import annotations

import itertools
import multiprocessing.connection
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from experiments.sweeps.launchers import processes
from experiments.sweeps.launchers.scheduler import JobLauncher
from experiments.sweeps.plan import PlannedRun
from experiments.system import hardware


@dataclass(frozen=True)
class LocalJob:
    """A running job."""

    process: BaseProcess
    log: Path
    begin: int  # its size before this start, in bytes
    gpu: str | None


class LocalLauncher(JobLauncher):
    """Launcher that runs each job in a process of this machine."""

    def __init__(self) -> None:
        super().__init__()
        self.gpu_jobs: Counter[str] = Counter()  # number of running jobs by GPU

    def threads(self) -> int | None:
        return max(1, hardware.cores() // self.slots) if self.slots > 1 else None

    @contextmanager
    def connected(self) -> Iterator[None]:
        self.gpu_jobs = Counter(dict.fromkeys(visible_gpus(), 0))  # only now, as nvidia-smi may take seconds
        yield

    def start(self, jobs: Sequence[PlannedRun]) -> list[LocalJob]:
        started = []
        for job in jobs:
            gpu = min(self.gpu_jobs, key=self.gpu_jobs.__getitem__, default=None)  # the one with the fewest jobs
            log = job.folder / processes.LOG
            begin = log.stat().st_size if log.exists() else 0
            own = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
            process = processes.start("experiments.train", "run_planned", job, log=log, environment=own)
            started.append(LocalJob(process, log, begin, gpu))
            if gpu is not None:
                self.gpu_jobs[gpu] += 1
        return started

    def wait(self, running: Mapping[int, LocalJob], seconds: float) -> dict[int, str | None]:
        multiprocessing.connection.wait([job.process.sentinel for job in running.values()], timeout=seconds)
        ended = {at: job for at, job in running.items() if job.process.exitcode is not None}
        self.gpu_jobs.subtract(job.gpu for job in ended.values() if job.gpu is not None)
        return {at: processes.job_failure(job.process.exitcode, job.log, job.begin) for at, job in ended.items()}

    def stop(self, handles: Iterable[LocalJob]) -> None:
        processes.stop([job.process for job in handles])


def visible_gpus() -> list[str]:
    """Return the GPUs that jobs may use, as CUDA_VISIBLE_DEVICES names them before its first invalid name."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return list(itertools.takewhile(lambda name: name.strip() not in ("", "-1"), given.split(",")))
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(at) for at, line in enumerate(done.stdout.splitlines()) if line.startswith("GPU ")]
