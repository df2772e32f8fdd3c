"""Launcher for a Ray cluster: each job is a Ray task.

hydra-ray-launcher 1.2.2 loses the results of all jobs if the process of one is killed, and retries nothing. This
launcher calls Ray directly. A job that Ray starts again resumes from its checkpoint (`resume=auto`).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.errors import ConfigError
from experiments.sweeps.launchers.processes import GRACE
from experiments.sweeps.launchers.remote_job import work
from experiments.sweeps.launchers.scheduler import JobLauncher, need_package, to_dict
from experiments.sweeps.plan import PlannedRun
from experiments.system import signals

# Prefixes of the environment variables that a job on another machine receives from the sweep's process.
FORWARDED = ("EXPERIMENTS_", "MLFLOW_")


class RayLauncher(JobLauncher):
    """Launcher that runs jobs as tasks of a Ray cluster; conf/hydra/launcher/ray.yaml describes its parameters."""

    queues = True

    def __init__(
        self, address: str | None, num_cpus: float, init: Mapping[str, Any], remote: Mapping[str, Any],
        **options: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.address, self.num_cpus = address, num_cpus
        self.remote: dict[str, Any] = {"num_cpus": num_cpus, "max_calls": 1, **options, **to_dict(remote)}
        self.init: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, **to_dict(init)}
        self.task: Any = None  # the remote function, while Ray is connected

    def check(self) -> None:
        need_package("ray", "ray")
        host, _, port = (self.address or "").rpartition("//")[2].rpartition(":")
        if host and port.isdigit():
            try:
                socket.create_connection((host, int(port)), timeout=5).close()
            except OSError as error:
                raise ConfigError(f"hydra.launcher.address: no answer from {self.address} ({error})") from None

    def threads(self) -> int | None:
        return max(1, int(self.num_cpus))

    @contextmanager
    def connected(self) -> Iterator[None]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # it would upload the directory of the uv command
        import ray

        own = self.address is None and not os.environ.get("RAY_ADDRESS")
        try:
            ray.init(address=self.address, **({"include_dashboard": False} if own else {}) | self.init)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"hydra.launcher.address: no Ray answers at {self.address}: {error}") from None
        signals.install()  # again, because ray.init replaces the SIGTERM handler
        try:
            self.task = ray.remote(**self.remote)(work)
            yield
        except SystemError:
            signals.check()  # an exception that a signal raises inside ray.wait is turned into SystemError
            raise
        finally:
            ray.shutdown()

    def start(self, jobs: Sequence[PlannedRun]) -> list[Any]:
        forwarded = {name: value for name, value in os.environ.items() if name.startswith(FORWARDED)}
        return [
            self.task.options(name=f"{job.folder.parent.name}/{job.folder.name}").remote(
                job, Path.cwd(), forwarded, self.timeout
            )
            for job in jobs
        ]

    def wait(self, running: Mapping[int, Any], seconds: float) -> dict[int, str | None]:
        import ray
        from ray.exceptions import RayError

        done = ray.wait(list(running.values()), timeout=seconds)[0] if running else []
        ended: dict[int, str | None] = {}
        for at, reference in running.items():
            if reference in done:
                try:
                    ended[at] = ray.get(reference)
                except RayError as error:
                    ended[at] = f"{type(error).__name__}: {str(error).strip()}"
        return ended

    def stop(self, handles: Iterable[Any]) -> None:
        import ray

        references = list(handles)
        for reference in references:
            ray.cancel(reference)  # raises KeyboardInterrupt in the job
        if references:
            ray.wait(references, num_returns=len(references), timeout=GRACE)
