"""Whose process a run is, so that those whose process is gone can be told from those that go on."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

HEARTBEAT = 60.0  # seconds
STALE = 10 * HEARTBEAT


def owner(pid: int | None = None) -> dict[str, str]:
    """The process that a run belongs to, as tags: what a later start needs to tell whether it still lives.

    Args:
        pid: of the process; None: this one.
    """
    process = psutil.Process(pid)
    return {
        "owner.host": socket.gethostname(),
        "owner.place": place(),
        "owner.pid": str(process.pid),
        "owner.started": f"{process.create_time():.2f}",
        "owner.heartbeat": str(int(time.time())),
    }


def place() -> str:
    """Where a process number means one process: this boot of a system, in this namespace of it (a container's own)."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return ""


class Heartbeat:
    """Tells every minute that the run's process lives, for those on other machines, who cannot see it."""

    def __init__(self, run_id: str) -> None:
        self._run_id, self._ended = run_id, threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def _beat(self) -> None:
        import mlflow

        client = mlflow.MlflowClient()
        while not self._ended.wait(HEARTBEAT):
            with contextlib.suppress(Exception):  # a store that is down for a while
                client.set_tag(self._run_id, "owner.heartbeat", str(int(time.time())))


def mark_lost(experiment: str) -> None:
    """End the runs of an experiment whose process is gone: killed by kill -9, or with its machine."""
    import mlflow
    from mlflow.entities import RunStatus
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=1000):
        if "run_folder" in run.data.tags and lost(run.data.tags):  # else another tool's
            reason = "its process is gone (kill -9, out of memory, or the machine went down)"
            with contextlib.suppress(MlflowException):  # another process deleted it meanwhile
                client.set_tag(run.info.run_id, "failure", reason)
                client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))


def lost(tags: Mapping[str, str]) -> bool:
    """Return whether the process that a run's tags name is gone.

    Of a run without such tags, or with values that `owner` does not write, nothing is known: another tool, or a person,
    may have written tags of these names.
    """
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
        # Another process has its number now; or the clock was set, which moves all of these times.
        return silent and abs(process.create_time() - started) > 5
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError):  # a process that this user may not look at
        return False
