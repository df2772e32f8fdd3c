"""A sweep's job in a process that Ray or SLURM has started, on any machine that shares the sweep's directory."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.sweeps.launchers.processes import LOG, end_this_process, invoke, job_failure
from experiments.sweeps.launchers.scheduler import timeout_reason
from experiments.sweeps.plan import PlannedRun


def work(
    job: PlannedRun, directory: Path, environment: Mapping[str, str], timeout: float | None,
    *, leaving: Callable[[], bool] = lambda: False,
) -> str | None:  # fmt: skip
    """Run a job in this process, write its output to a file, and return the reason if it failed.

    Args:
        directory, environment: working directory of the sweep's process, and variables to set, taken from it.
        timeout: seconds that the job may take.
        leaving: returns whether the run is being stopped here because it will be started again on another machine.
    """
    folder = job.folder
    log = folder / LOG
    if not folder.parent.is_dir():
        missing = f"{folder.parent} is not to be found on {platform.node()}"
        return f"{missing}: the sweep's machines must share a disk, and outputs= be a place on it"
    os.environ.update(environment)
    with contextlib.suppress(OSError):  # where the directory is not shared, only absolute paths work
        os.chdir(directory)
    code: Any = 0
    begin = log.stat().st_size if log.exists() else 0
    with into(log), limited(timeout) as late:
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
        return timeout_reason(timeout)
    return job_failure(code, log, begin)


@contextmanager
def limited(seconds: float | None) -> Iterator[threading.Event]:
    """End this process if the block takes longer than `seconds`, and set the event that is yielded before."""
    late, finished = threading.Event(), threading.Event()

    def end() -> None:
        late.set()
        end_this_process(finished)

    timer = threading.Timer(seconds or 0, end)
    timer.daemon = True
    if seconds is not None:
        timer.start()
    try:
        yield late
    finally:
        timer.cancel()
        finished.set()


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
            for handler in [handler for handler in logging.root.handlers if getattr(handler, "stream", None) is file]:
                logging.root.removeHandler(handler)  # Hydra's handler would write to the closed file
            for number, old in zip((1, 2), before, strict=True):
                os.dup2(old, number)
                os.close(old)
