"""A sweep on SLURM: Debian's slurm-wlm and munge, on one machine, with a configuration of their own."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
Started = Callable[..., subprocess.Popen[str]]
Tally = Callable[[str, int, int], None]

SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"
# A node lends each of its cores to four jobs, so that the array's limit alone keeps them from running all at once.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={home}/munge.socket,cred_expire=5
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5,bf_interval=5
MpiDefault=none
NodeName=node0 NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cores} CoresPerSocket={cores} RealMemory=4000
PartitionName=all Nodes=node0 Default=YES OverSubscribe=FORCE:4
PartitionName=short Nodes=node0 MaxTime=1
"""
# An augmentation that raises, kills its process or sleeps, depending on its argument; with CURED set it works. The job
# to preempt takes at least 2 s an epoch (`draw` is called once in each) until SLURM has queued it again.
FAULTS = """
import os, signal, time
from experiments.data.augmentation import affine

class Faulty:
    def __init__(self, fault, ranges): self.fault, self.inner = fault, affine(**ranges)
    def draw(self, rng, count, size):
        if "CURED" not in os.environ:
            if self.fault == "raise": raise RuntimeError("the augmentation broke")
            if self.fault == "kill": os.kill(os.getpid(), signal.SIGKILL)
            if self.fault in ("limit", "cancel"): time.sleep(600)
            if self.fault == "preempt" and "SLURM_RESTART_COUNT" not in os.environ: time.sleep(2)
        return self.inner.draw(rng, count, size)
    def __call__(self, pixels, numbers): return self.inner(pixels, numbers)

def faulty(fault, **ranges): return Faulty(fault, ranges)
"""
EPOCHS = 40


class Slurm:
    """SLURM in a temporary folder: munged, slurmctld and slurmd, on free ports of this machine."""

    def __init__(self, home: Path) -> None:
        self.home, self.daemons = home, list[subprocess.Popen[bytes]]()
        (home / "spool").mkdir()
        (home / "state").mkdir()
        key = home / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as other:
            ports = first.getsockname()[1], other.getsockname()[1]
        host, cores = socket.gethostname().partition(".")[0], len(os.sched_getaffinity(0))
        configuration = home / "slurm.conf"
        configuration.write_text(
            CONFIGURATION.format(home=home, host=host, cores=cores, controller_port=ports[0], node_port=ports[1])
        )
        self.environment = {"SLURM_CONF": str(configuration)}
        files = {"key": "munge.key", "socket": "munge.socket", "pid": "munged.pid", "log": "munged.log",
                 "seed": "munged.seed"}  # fmt: skip
        named = [f"--{name}{'' if name == 'socket' else '-file'}={home / file}" for name, file in files.items()]
        self.start("munged", "--foreground", "--force", *named)
        self.wait(lambda: (home / "munge.socket").exists())
        self.start("slurmctld", "-D", "-f", str(configuration))
        self.start("slurmd", "-D", "-N", "node0", "-f", str(configuration))
        self.wait(lambda: "idle" in self.call("sinfo", "--noheader", "--format=%T"))

    def start(self, *command: str) -> None:
        with (self.home / f"{command[0]}.out").open("wb") as out:
            program = shutil.which(command[0], path=SBIN)
            assert program is not None
            self.daemons.append(subprocess.Popen([program, *command[1:]], stdout=out, stderr=out))

    def wait(self, ready: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in self.home.glob("*.out"))
            assert time.monotonic() < deadline, logs
            time.sleep(0.2)

    def call(self, *command: str) -> str:
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        return done.stdout

    def queue(self) -> dict[str, str]:
        """The states of all jobs, by their ids."""
        lines = self.call("squeue", "--array", "--states=all", "--noheader", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def stop(self) -> None:
        self.call("scancel", f"--user={os.getuid()}")
        deadline = time.monotonic() + 30
        while {"RUNNING", "COMPLETING"} & set(self.queue().values()) and time.monotonic() < deadline:
            time.sleep(0.5)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait(30)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not installed: pip install 'image-experiments[slurm]'")
    absent = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=SBIN)]
    if absent:
        pytest.skip(f"SLURM is not installed (apt-get install slurm-wlm munge); missing: {', '.join(absent)}")
    if os.geteuid() != 0:
        pytest.skip("slurmd starts jobs as root only")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        cluster = Slurm(Path(home))
        try:
            yield cluster
        finally:
            cluster.stop()


def epochs(folder: Path) -> int:
    try:
        return (folder / "curves.csv").read_text("utf-8").count("\n") - 1
    except OSError:
        return 0


def sweep_of(faults: str, images: Path, *overrides: str) -> list[str]:
    return [
        "-m", "experiments.train", "-m", "hydra/launcher=slurm", "hydra.launcher.timeout_min=3",
        "hydra.launcher.signal_delay_s=30", "hydra.launcher.max_num_timeout=1", "hydra.launcher.cpus_per_task=1",
        "hydra.launcher.mem_gb=1", "sweep.jobs=2", "data=folder", f"data.root={images}", "data.image_size=48",
        "model.head.pooling=average", "batch_size=4", "regime=scratch", f"epochs={EPOCHS}",
        "trusted_packages=[faults]", "augmentation=none", "augmentation._target_=faults.faulty",
        f"+augmentation.fault={faults}", *overrides,
    ]  # fmt: skip


def variables(slurm: Slurm, home: Path) -> dict[str, str]:
    (home / "faults.py").write_text(FAULTS)
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(home)])
    return slurm.environment | {"PYTHONPATH": path, "EXPERIMENTS_HOME": str(home), "COLUMNS": "300"}


def wait_for_output(sweep: subprocess.Popen[str], message: str) -> None:
    watchdog = threading.Timer(100, sweep.kill)
    watchdog.start()
    assert sweep.stdout is not None
    printed = list(itertools.takewhile(lambda line: message not in line, sweep.stdout))
    watchdog.cancel()
    assert sweep.poll() is None, "".join(printed)


def test_a_sweep_survives_what_befalls_its_jobs_and_its_rerun_runs_what_is_missing(
    slurm: Slurm, started: Started, tally: Tally, tmp_path: Path, drawn: Path
) -> None:
    """One raises, one is killed, one cancelled, one exceeds its time, one is preempted. The rerun is itself a job."""
    command = sweep_of("limit,preempt,raise,kill,cancel,none", drawn)
    environment = variables(slurm, tmp_path)
    sweep = started(*command, **environment)
    most, before, cancelled = 0, "", False  # before: the curves of the preempted job when it was
    while sweep.poll() is None:
        states = slurm.queue()
        most = max(most, list(states.values()).count("RUNNING"))
        folders = {int(folder.name): folder for folder in tmp_path.glob("sweeps/*/[0-9]*/")}
        for job_id in [job_id for job_id, state in states.items() if state == "RUNNING"]:
            number = int(job_id.rpartition("_")[2])
            if number == 1 and not before and epochs(folders[1]) >= 3:
                before = (folders[1] / "curves.csv").read_text("utf-8")
                slurm.call("scancel", "--signal=USR2", job_id)
            if number == 4 and not cancelled and (folders[4] / "run.json").exists():
                slurm.call("scancel", job_id)
                cancelled = True
        time.sleep(0.3)
    out, errors = sweep.communicate()
    assert sweep.returncode == 1, out + errors
    assert before, "job 1 was never seen running with 3 epochs or more"
    assert cancelled, "job 4 was never seen running"
    assert most == 2, "sweep.jobs is the array's limit"
    (summary,) = tmp_path.glob("sweeps/*/summary.json")
    content: dict[str, Any] = json.loads(summary.read_bytes())
    status = {run["values"]["augmentation.fault"]: run["status"] for run in content["runs"]}
    faults = ("limit", "raise", "kill", "cancel")
    wanted = dict.fromkeys(faults, "FAILED") | dict.fromkeys(("preempt", "none"), "FINISHED")
    assert status == wanted, content["failures"]
    reasons = {text.split("=")[1].split(")")[0]: text for text in content["failures"]}
    assert "timeout: it took longer than hydra.launcher.timeout_min" in reasons["limit"]
    assert "the augmentation broke" in reasons["raise"]
    assert "SLURM: FAILED (NonZeroExitCode)" in reasons["kill"] and "Killed" in reasons["kill"], reasons["kill"]
    assert "SLURM: CANCELLED" in reasons["cancel"] and "Stopped: SIGTERM" in reasons["cancel"]
    assert "Requeued job" in (summary.parent / "1" / "output.log").read_text("utf-8")
    assert (summary.parent / "1" / "curves.csv").read_text("utf-8").startswith(before.rpartition("\n")[0])
    finished = {number: (summary.parent / number / "output.log").stat().st_mtime_ns for number in ("1", "5")}
    tally(
        "SLURM: four of six jobs fail, one is preempted: jobs",
        2,
        sum(epochs(summary.parent / n) == EPOCHS for n in finished),
    )

    inside = ["srun", "--cpus-per-task=1", "--mem=1G", sys.executable, *command]
    again = started("-c", f"import os; os.execvp('srun', {inside})", **environment, CURED="yes")
    out, errors = again.communicate(timeout=400)
    assert again.returncode == 0, out + errors
    assert "6 jobs, 4 to run" in out and "2 already finished" in out
    assert finished == {n: (summary.parent / n / "output.log").stat().st_mtime_ns for n in finished}
    tally("SLURM: the rerun: jobs", 6, sum(epochs(summary.parent / str(n)) == EPOCHS for n in range(6)))


def test_what_slurm_refuses_or_keeps_waiting_is_reported_and_ctrl_c_cancels_the_jobs(
    slurm: Slurm, started: Started, tmp_path: Path, drawn: Path
) -> None:
    environment = variables(slurm, tmp_path)
    absent = started(*sweep_of("none,limit", drawn, "hydra.launcher.slurm.partition=absent"), **environment)
    out, errors = absent.communicate(timeout=200)
    assert absent.returncode == 1 and "Traceback" not in errors
    assert "hydra/launcher=slurm: the jobs are not accepted:" in errors and "invalid partition" in errors, errors

    known = set(slurm.queue())
    waiting = started(*sweep_of("none,limit", drawn, "hydra.launcher.slurm.partition=short"), **environment)
    running = started(*sweep_of("cancel,limit", drawn), **environment)
    slurm.wait(lambda: len(list(tmp_path.glob("sweeps/*/[0-9]*/run.json"))) == 2, 200)
    slurm.wait(lambda: len(set(slurm.queue()) - known) == 4, 200)
    wait_for_output(waiting, "SLURM: jobs wait: PartitionTimeLimit")
    for sweep in (waiting, running):
        sweep.send_signal(signal.SIGINT)
    for sweep in (waiting, running):
        out, errors = sweep.communicate(timeout=100)
        assert sweep.returncode == 128 + signal.SIGINT and "the same command again" in out + errors, out + errors
        assert "Traceback" not in errors
    states = slurm.queue()
    assert {states[job_id] for job_id in set(states) - known} == {"CANCELLED"}
    status = [json.loads(path.read_bytes())["status"] for path in tmp_path.glob("sweeps/*/[0-9]*/run.json")]
    assert status == ["KILLED", "KILLED"]
