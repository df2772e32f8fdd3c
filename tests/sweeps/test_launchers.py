"""Launchers for clusters, without a cluster: how a remote job runs and logs; tests/reliability uses real ones."""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from experiments.config.composing import Composed
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.sweeps import ray_cluster, remote_job, slurm
from experiments.sweeps.plan import PlannedRun
from experiments.system import redaction, signals

CONFIG = OmegaConf.create({"sweep": {"jobs": 3, "timeout": None}, "outputs": "/shared/outputs", "hydra": {}})


def launchers(**options: Any) -> dict[str, Any]:
    for_slurm: dict[str, Any] = {
        "cluster": "local", "folder": "unused", "timeout_min": 1, "max_num_timeout": 1, "signal_delay_s": 30,
        "cpus_per_task": 2, "mem_gb": 1, "gpus_per_node": 0, "name": "x", "slurm": {},
    }  # fmt: skip
    for_ray: dict[str, Any] = {
        "address": None, "num_cpus": 2, "num_gpus": 0, "max_retries": 1, "remote": {}, "init": {},
    }  # fmt: skip
    return {
        "ray": lambda: ray_cluster.RayLauncher(**for_ray | options),
        "slurm": lambda: slurm.SlurmLauncher(**for_slurm | options),
    }


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_launcher_without_its_package_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    launcher = launchers()[name]()
    with pytest.raises(ConfigError, match=rf"hydra/launcher={name} needs .* pip install 'image-experiments\[{name}\]'"):
        launcher.setup(hydra_context=None, task_function=None, config=CONFIG)


def test_a_cluster_that_does_not_answer_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: package)
    launcher = launchers(address="127.0.0.1:1")["ray"]()
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.address: no answer from 127\.0\.0\.1:1"):
        launcher.setup(hydra_context=None, task_function=None, config=CONFIG)


def test_another_sweeper_than_ours_gets_a_sentence() -> None:
    for make in launchers().values():
        with pytest.raises(ConfigError, match="hydra/sweeper"):
            make().launch([["seed=1"]], 0)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | None]:
    """`job(main, ...)`: what comes back from a job whose program is `main`."""
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    (tmp_path / "sweep").mkdir()

    def run(main: Callable[[], None], timeout: float | None = None, **more: Any) -> str | None:
        planned: Any = SimpleNamespace(folder=tmp_path / "sweep" / "3")
        monkeypatch.setattr(remote_job, "invoke", lambda module, function, job: main() if job is planned else None)
        try:
            return remote_job.work(planned, tmp_path, {"MLFLOW_X": "1"}, timeout, **more)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.environ.pop("MLFLOW_X", None)

    return run


def test_what_a_job_says_is_in_its_folder_and_what_follows_is_not(
    job: Callable[..., str | None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        assert os.environ["MLFLOW_X"] == "1"
        logging.root.addHandler(logging.StreamHandler(sys.stdout))  # as Hydra does
        print("from Python")
        os.write(2, b"from C\n")

    assert job(main) is None
    logging.getLogger("submitit").warning("later")
    print("after")
    assert set((tmp_path / "sweep" / "3" / "output.log").read_text().splitlines()) == {"from Python", "from C"}
    said = capfd.readouterr()
    assert said.out == "after\n" and "Logging error" not in said.err


@pytest.mark.parametrize("error, reason", [
    (SystemExit("data.root: there is no such folder"), "exit code 1\ndata.root: there is no such folder"),
    (SystemExit(3), "exit code 3"),
    (ValueError("on fire"), "ValueError: on fire"),
])  # fmt: skip
def test_a_failed_job_comes_back_with_its_reason(job: Callable[..., str | None], error: BaseException,
                                                 reason: str) -> None:  # fmt: skip
    def main() -> None:
        raise error

    assert reason in str(job(main))


def test_a_job_that_takes_too_long_is_ended(job: Callable[..., str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_raised", None)  # put back: this process goes on

    def main() -> None:
        signals.install()
        try:
            time.sleep(30)
        except signals.Stopped as stop:
            sys.exit(128 + stop.number)

    began = time.monotonic()
    assert job(main, timeout=0.2) == "timeout: it took longer than 0.2 s"
    assert time.monotonic() - began < 10


def test_a_job_that_leaves_for_another_machine_gives_no_answer(job: Callable[..., str | None]) -> None:
    def main() -> None:
        sys.exit(144)

    with pytest.raises(SystemExit):
        job(main, leaving=lambda: True)
    assert job(main, leaving=lambda: False) is not None


def test_a_machine_without_the_shared_disk_says_so(tmp_path: Path) -> None:
    planned: Any = SimpleNamespace(folder=tmp_path / "nowhere" / "0")
    said = remote_job.work(planned, tmp_path, {}, None)
    assert said is not None and "must share a disk" in said


def test_what_submitit_writes_holds_no_password_and_the_job_has_it(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(redaction.VARIABLE, "{}")
    monkeypatch.setenv("PW", "S3cret-1")
    uri = "postgresql://me:S3cret-1@host/db"
    checked = config("tracking.uri='postgresql://me:${oc.env:PW}@host/db'")
    task = slurm.Task(PlannedRun(Path("x"), "", Composed(checked, OmegaConf.create()), []), Path("x"), {}, None)
    assert b"S3cret-1" not in pickle.dumps(task)
    assert task.job.composed.config.tracking.uri == "postgresql://me:***@host/db"
    monkeypatch.setattr(slurm, "work", lambda job, *arguments, **named: job.composed.config)
    called: Any = task()
    assert called == checked and called.tracking.uri == uri and called.unresolved == checked.unresolved
