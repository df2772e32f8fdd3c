"""Launchers for clusters, without a cluster: how a remote job runs and logs; tests/reliability uses real ones."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import pickle
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.sweeps.launchers import ray_cluster, remote_job, slurm, slurm_queue
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


def test_a_cluster_that_does_not_respond_is_reported_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_a_job_prints_is_in_its_folder_and_what_follows_is_not(
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
    printed = capfd.readouterr()
    assert printed.out == "after\n" and "Logging error" not in printed.err


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
    error = SystemExit(4)
    assert job(main) == "exit code 4", "without the output of the start before"


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


def test_a_machine_without_the_shared_disk_is_reported(tmp_path: Path) -> None:
    planned: Any = SimpleNamespace(folder=tmp_path / "nowhere" / "0")
    printed = remote_job.work(planned, tmp_path, {}, None)
    assert printed is not None and "must share a disk" in printed


def test_what_submitit_writes_holds_no_secret_and_the_job_has_them(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(redaction.VARIABLE, "{}")
    monkeypatch.setenv("PW", "S3cret-1")
    monkeypatch.setenv("SCORE", "accuracy")
    checked = config(
        "tracking.uri='postgresql://me:${oc.env:PW}@host/db'", "objective=${oc.env:SCORE}",
        "+tags.who=${oc.env:PW}", "+tags.also=${tags.who}", "sweep.storage='sqlite:///typed?password=T1ped-too'",
    )  # fmt: skip
    task = slurm.Task(PlannedRun(Path("x"), "", checked, OmegaConf.create(), []), Path("x"), {}, None)
    assert not [secret for secret in (b"S3cret-1", b"T1ped-too") if secret in pickle.dumps(task)]
    assert task.job.config.tags == {"who": "${oc.env:PW}", "also": "${tags.who}"}
    assert redaction.redact_credentials("accuracy of S3cret-1") == "accuracy of S3cret-1", "a value is no credential"
    monkeypatch.setattr(slurm, "work", lambda job, *arguments, **named: job.config)
    called: Any = task()
    assert called == checked and called.unresolved == checked.unresolved
    assert called.tracking.uri == "postgresql://me:S3cret-1@host/db" and called.tags["also"] == "S3cret-1"


class Submitted:
    """A job as submitit hands it out, whose result is a file's text."""

    def __init__(self, folder: Path, number: int) -> None:
        self.job_id = f"7_{number}"
        self.paths = SimpleNamespace(
            folder=folder, result_pickle=folder / f"{number}.pkl", stderr=folder / f"{number}.err"
        )

    def result(self) -> str | None:
        return self.paths.result_pickle.read_text() or None


@pytest.fixture
def on_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[dict[int, str | None], list[int]]]:
    """`on_slurm(program)`: which of five jobs have ended, and which are queued, where squeue is this shell program."""
    monkeypatch.setattr(slurm, "QUERY", -1.0)
    monkeypatch.setattr(slurm, "RESULT_DELAY", -1.0)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    launcher = launchers(cluster="slurm")["slurm"]()
    running = {at: slurm.Submission(Submitted(tmp_path, at), tmp_path / f"{at}") for at in range(5)}

    def wait(program: str) -> tuple[dict[int, str | None], list[int]]:
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "squeue").chmod(0o755)
        ended: dict[int, str | None] = launcher.wait(running, 0)
        for at in ended:
            del running[at]
        return ended, [at for at in running if launcher.is_queued(running[at])]

    return wait


def test_a_slurm_job_has_ended_with_its_result_or_when_slurm_says_so(
    on_slurm: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ["7_0|RUNNING|None", "7_1|RUNNING|None", "7_2|COMPLETING|None", "7_3|PENDING|PartitionTimeLimit",
            "7_4|PENDING|JobArrayTaskLimit"]  # fmt: skip
    assert on_slurm(f"printf '{os.linesep.join(rows)}'") == ({}, [3, 4])
    assert on_slurm(f"printf '{os.linesep.join(rows)}'") == ({}, [3, 4])
    assert [record.getMessage() for record in caplog.records] == ["SLURM: jobs wait: PartitionTimeLimit"]
    (tmp_path / "0.pkl").write_text("")
    (tmp_path / "1.pkl").write_text("exit code 1")
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "output.log").write_text("epoch 3\n")
    (tmp_path / "2.err").write_text("srun: error: node0: task 0: Killed\n")
    rows = ["7_1|COMPLETED|None", "7_2|FAILED|NonZeroExitCode", "7_4|PENDING|BeginTime"]
    ended, queued = on_slurm(f"printf '{os.linesep.join(rows)}'")
    assert queued == [4] and ended == {
        0: None, 1: "exit code 1",
        2: "SLURM: FAILED (NonZeroExitCode)\nepoch 3\nsrun: error: node0: task 0: Killed",
        3: "SLURM: GONE (the job is no longer in the queue and left no result)",
    }  # fmt: skip


def test_a_finished_run_is_a_success_although_submitit_s_result_never_appeared(on_slurm: Any, tmp_path: Path) -> None:
    for number, status in enumerate(["FINISHED", "FINISHED", "FINISHED", "RUNNING"]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "run.json").write_text(json.dumps({"command": {}, "status": status}))
    ended, _ = on_slurm("printf '7_1|COMPLETED|None\\n7_2|NODE_FAIL|None\\n7_4|RUNNING|None'")
    assert ended == {
        0: None, 1: None, 2: "SLURM: NODE_FAIL",
        3: "SLURM: GONE (the job is no longer in the queue and left no result)",
    }  # fmt: skip


def test_results_are_visible_on_nfs(on_slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of NFS may not see another machine's files until something changes their directory."""
    chmod, exists, changed = Path.chmod, Path.exists, set[Path]()

    def change(path: Path, mode: int) -> None:
        changed.add(path)
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", change)
    monkeypatch.setattr(Path, "exists", lambda path: path.parent in changed and exists(path))
    (tmp_path / "0").mkdir()
    (tmp_path / "0.pkl").write_text("")
    ended, _ = on_slurm('for number in 0 1 2 3 4; do echo "7_$number|RUNNING|None"; done')
    assert ended == {0: None} and tmp_path / "0" in changed, "the run directory is read next"


def test_no_job_has_ended_while_slurm_does_not_answer(
    on_slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert on_slurm("echo 'Unable to contact slurm controller' >&2; exit 1") == ({}, [])
    assert "Unable to contact slurm controller" in caplog.text
    monkeypatch.setattr(slurm_queue, "TIMEOUT", 0.1)
    assert on_slurm("exec sleep 20") == ({}, [])
    assert "squeue has not answered within 0.1 s" in caplog.text
    (tmp_path / "squeue").rename(tmp_path / "scancel")
    slurm_queue.cancel(["7_0", "7_1"])
    assert "Cancel the jobs later: scancel 7_0 7_1" in caplog.text


def test_a_sweep_that_is_a_slurm_job_itself_hides_its_variables_while_it_submits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SRUN_CPUS_PER_TASK", "SLURM_CONF"):
        monkeypatch.setenv(name, "1")
    before = dict(os.environ)
    with slurm_queue.outside_job():
        assert {name for name in os.environ if name.startswith(("SLURM", "SRUN"))} == {"SLURM_CONF"}
    assert dict(os.environ) == before
    monkeypatch.delenv("SLURM_JOB_ID")
    with slurm_queue.outside_job():
        assert "SRUN_CPUS_PER_TASK" in os.environ, "set by the user for the jobs"


@pytest.mark.parametrize("options, message", [
    ({"timeout_min": 2, "signal_delay_s": 120}, "signal_delay_s: must be less than hydra.launcher.timeout_min (120 s)"),
    ({"timeout_min": "4h"}, "hydra.launcher.timeout_min: must be a whole number, at least 1. Received: '4h'"),
    ({"signal_delay_s": None}, "hydra.launcher.signal_delay_s: must be a whole number, at least 0. Received: None"),
    ({"slurm": {"srun_args": "--exclusive"}}, "hydra.launcher.slurm.srun_args: must be like [--exclusive]. Received"),
    ({"slurm": {"array_parallelism": 9}}, "hydra.launcher.slurm.array_parallelism: set sweep.jobs instead"),
])  # fmt: skip
def test_wrong_parameters_are_refused_before_any_work(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: package)
    with pytest.raises(ConfigError, match=re.escape(message)):
        launchers(**options)["slurm"]().setup(hydra_context=None, task_function=None, config=CONFIG)


def test_parameters_for_sbatch_are_added_to_those_that_a_sweep_needs() -> None:
    given = {"srun_args": ["--exclusive"], "additional_parameters": {"nodelist": "n1"}, "qos": None, "partition": "gpu"}
    assert launchers(slurm=given)["slurm"]().sbatch_parameters() == {
        "slurm_srun_args": ["--cpus-per-task=2", "--exclusive"], "slurm_partition": "gpu",
        "slurm_additional_parameters": {"requeue": True, "nodelist": "n1"}, "slurm_array_parallelism": 1,
    }  # fmt: skip


class Executor:
    """An executor of submitit that only counts, and accepts `accepted` arrays."""

    def __init__(self, accepted: int) -> None:
        self.accepted, self.arrays, self.dependencies = accepted, list[int](), list[str]()

    @contextmanager
    def batch(self) -> Iterator[None]:
        if len(self.arrays) == self.accepted:
            raise RuntimeError("too many jobs")
        self.arrays.append(0)
        yield

    def submit(self, task: slurm.Task) -> SimpleNamespace:
        self.arrays[-1] += 1
        return SimpleNamespace(job_id=f"{len(self.arrays)}_{self.arrays[-1] - 1}")

    def update_parameters(self, slurm_dependency: str) -> None:
        self.dependencies.append(slurm_dependency)


def test_more_jobs_than_slurm_allows_in_an_array_are_several_arrays_one_after_another(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = SimpleNamespace(FailedJobError=RuntimeError, FailedSubmissionError=RuntimeError)
    monkeypatch.setitem(sys.modules, "submitit.core.utils", errors)
    monkeypatch.setattr(slurm, "ARRAY", 2)
    launcher = launchers(cluster="slurm")["slurm"]()
    jobs = [PlannedRun(tmp_path / str(number), "", config(), OmegaConf.create(), []) for number in range(5)]
    executors = [Executor(3), Executor(2)]
    monkeypatch.setattr(launcher, "executor", lambda sweep: executors.pop(0))
    enough = executors[0]
    submissions = launcher.start(jobs)
    assert [(submission.job.job_id, submission.folder) for submission in submissions] == list(
        zip(["1_0", "1_1", "2_0", "2_1", "3_0"], [job.folder for job in jobs], strict=True)
    )
    assert enough.arrays == [2, 2, 1] and enough.dependencies == ["afterany:1", "afterany:2"]

    stopped: list[str] = []
    monkeypatch.setattr(launcher, "stop", lambda handles: stopped.extend(handle.job.job_id for handle in handles))
    with pytest.raises(ConfigError, match="the jobs are not accepted: too many jobs"):
        launcher.start(jobs)
    assert stopped == ["1_0", "1_1", "2_0", "2_1"]
