"""Run liveness: tags that identify the process of a run, and detection of runs whose process has died."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from experiments.training.types import Status

HEARTBEAT = 60.0  # seconds between two heartbeats
STALE = 10 * HEARTBEAT  # seconds without a heartbeat after which a process on another machine counts as dead


def owner(pid: int | None = None) -> dict[str, str]:
    """Return tags that identify a process (None: this one), by which others can find out whether it is still alive."""
    process = psutil.Process(pid)
    return {
        "owner.host": socket.gethostname(),
        "owner.place": place(),
        "owner.pid": str(process.pid),
        "owner.started": f"{process.create_time():.2f}",
        "owner.heartbeat": str(int(time.time())),
    }


def place() -> str:
    """Return the scope in which a process id is unique: this boot of the system and the (container's) PID namespace."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not on Linux
        return ""


@contextmanager
def heartbeat(send: Callable[[str], object]) -> Iterator[None]:
    """Send the tag owner.heartbeat every minute in the block, for other machines, which cannot check the process."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT):
            with contextlib.suppress(Exception):  # The store may be unavailable for a while.
                send(str(int(time.time())))

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def mark_lost(experiment: str) -> None:
    """End the runs of an experiment whose process has died without ending them: by kill -9, or with its machine."""
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=1000):
        if "run_folder" in run.data.tags and lost(run.data.tags):  # Runs without this tag belong to another tool.
            reason = "its process is gone (kill -9, out of memory, or the machine went down)"
            with contextlib.suppress(MlflowException):  # Another process may have deleted the run meanwhile.
                # The process may have ended its run after the search and before it was found dead, or another process
                # may have resumed the run. A dead process writes nothing more, so the second reading is conclusive.
                now = client.get_run(run.info.run_id)
                if now.info.status == "RUNNING" and lost(now.data.tags):
                    client.set_tag(run.info.run_id, "failure", reason)
                    client.set_terminated(run.info.run_id, Status.KILLED)


def lost(tags: Mapping[str, str]) -> bool:
    """Return whether the process that a run's tags identify has died; False for tags that `owner` did not write."""
    try:
        host, pid = tags["owner.host"], int(tags["owner.pid"])
        started, heartbeat = float(tags["owner.started"]), float(tags["owner.heartbeat"])
    except (KeyError, ValueError):
        return False
    if not 0 < pid < 2**31 or not math.isfinite(started) or math.isnan(heartbeat):
        return False
    silent = time.time() - heartbeat > STALE
    if (host, tags.get("owner.place", "")) != (socket.gethostname(), place()):
        return silent
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        # The id may belong to another process now. If the clock was set, the times differ for the same process, too;
        # but then it still sends heartbeats.
        return silent and abs(process.create_time() - started) > 5
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError):  # This user may not have access to the process.
        return False
