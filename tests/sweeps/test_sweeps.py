"""Whole sweeps of small drawn images: planned, shared, failed, killed, resumed, searched, concluded."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import mlflow
import psutil
import pytest

from experiments.cli import summarize
from experiments.models.backbone import PRETRAINED
from experiments.storage.csv_files import read_rows
from experiments.tracking import liveness

SMALL = (
    "data.image_size=48", "model.head.pooling=average", "batch_size=4", "runtime.threads=1", "model.weights=null",
    "regime.head_epochs=2", "epochs=2",
)  # fmt: skip
# An augmentation that raises, kills its process or sleeps, depending on its argument; beside a file `cured` it works.
FAULTS = """
import os, pathlib, signal, time
from experiments.data.augmentation import affine

class Faulty:
    def __init__(self, fault, ranges): self.fault, self.inner = fault, affine(**ranges)
    def draw(self, rng, count, size):
        if not pathlib.Path(__file__).with_name("cured").exists():
            if self.fault == "raise": raise RuntimeError("the augmentation broke")
            if self.fault == "kill": os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "sleep": time.sleep(600)
        return self.inner.draw(rng, count, size)
    def __call__(self, pixels, numbers): return self.inner(pixels, numbers)

def faulty(fault, **ranges): return Faulty(fault, ranges)
"""
Sweep = Callable[..., subprocess.CompletedProcess[str]]
StartSweep = Callable[..., Any]


@pytest.fixture
def small(drawn: Path) -> tuple[str, ...]:
    """Settings of small runs on the drawn images."""
    return ("data=folder", f"data.root={drawn}", *SMALL)


def wait_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.05)


def only_sweep(home: Path) -> Path:
    (path,) = home.glob("sweeps/*/sweep.json")
    return path.parent


def summary_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_bytes())
    return found


def tracked(home: Path) -> tuple[list[Any], list[Any]]:
    """The MLflow runs of sweeps, and those of jobs."""
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    (experiment,) = [experiment for experiment in client.search_experiments() if experiment.name == "experiments"]
    runs = list(client.search_runs([experiment.experiment_id]))
    return [run for run in runs if "sweep" in run.data.tags], [run for run in runs if "sweep" not in run.data.tags]


def test_a_sweep_plans_shares_concludes_and_is_not_run_twice(
    sweep: Sweep, small: tuple[str, ...], own_outputs: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    swept = (*small, "regime=bottleneck,finetune", "regime.unfrozen_blocks=1,2")
    done = sweep(*swept)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 jobs, 3 to run, 1 the same as another" in done.stdout  # bottleneck ignores unfrozen_blocks
    parents, jobs = tracked(own_outputs)
    folder = only_sweep(own_outputs)
    printed = summary_of(folder)
    (parent,) = parents
    finals = [run for run in printed["runs"] if run["final"]]
    assert len(jobs) == 3 + len(finals) and len(finals) == 1, "the winner once more"
    assert "3 to run, 1 the same as another, then the winner's final run" in done.stdout
    labelled = [line.split()[0] for line in done.stdout.splitlines() if "final run of the winner  " in line]
    assert labelled == [str(run["number"]) for run in finals]
    assert {path.parent.name for path in folder.glob("*/report.html")} == set(labelled), "no job has a report"
    assert {run.info.status for run in [*jobs, parent]} == {"FINISHED"}
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in jobs)
    identities = [run.data.tags["identity"] for run in jobs]
    assert len(set(identities)) == 3
    # Only the winner has read the test split.
    assert sum("test.accuracy" in run.data.metrics for run in jobs) == 1
    assert "Read once on the test images" in done.stdout and "Winner by validation accuracy" in done.stdout
    best = max(run["metrics"]["validation.accuracy"] for run in printed["runs"] if not run["final"])
    assert parent.data.metrics["winner.validation.accuracy"] == pytest.approx(best)
    client = mlflow.MlflowClient(f"sqlite:///{own_outputs}/mlflow.db")
    artifacts = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert artifacts >= {"summary.md", "summary.csv", "summary.json", "figures"}
    # One head for two fine-tuning jobs each.
    sources = [run.data.tags["head_source"] for run in jobs if run.data.tags["regime"] == "finetune"]
    assert sources.count("trained in this run") == 0, "the bottleneck jobs had trained them"

    again = sweep(*swept, "sweep.dry_run=true")
    assert again.returncode == 0 and "3 already finished" in again.stdout
    assert tuple(map(len, tracked(own_outputs))) == (1, len(jobs)), "a dry run tracks nothing"
    assert only_sweep(own_outputs) == folder, "and leaves nothing"
    (folder / "summary.md").unlink()
    monkeypatch.setattr(sys, "argv", ["experiments summarize", str(folder)])
    summarize.main()
    assert (folder / "summary.md").exists() and "Winner by validation accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_a_ladder_ends_at_a_rung_without_a_gain_and_is_not_climbed_twice(
    sweep: Sweep, small: tuple[str, ...], own_outputs: Path
) -> None:
    rungs = (*small, "experiment=ladder", "~sweep.rungs.two_stages", "~sweep.rungs.fresh_images", "tracking=none")
    done = sweep(*rungs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 jobs, at most 3 to run" in done.stdout and "one run a rung" in done.stdout
    folder = only_sweep(own_outputs)
    printed = summary_of(folder)
    head, stage, final = printed["runs"]
    assert [run["values"].get("regime.unfrozen_blocks") for run in (head, stage)] == [None, "1"]
    assert {run["status"] for run in printed["runs"]} == {"FINISHED"} and final["final"]
    text = " ".join(printed["sentences"])
    assert "The climb ended at one_stage, which has no significant gain. Not run: all_stages" in text
    assert "Use bottleneck" in text and "Read once on the test images" in text
    assert (folder / "figures" / "ladder.png").stat().st_size > 5000
    facts = json.loads((folder / "0" / "run.json").read_bytes())
    assert final["metrics"]["fit_seconds"] == facts["fit_seconds"], "the weights of its job are evaluated"
    assert final["metrics"]["validation.loss"] == head["metrics"]["validation.loss"]
    assert "test.accuracy" in final["metrics"]
    again = sweep(*rungs, "sweep.dry_run=true")
    assert again.returncode == 0 and "3 jobs, at most 1 to run, 2 already finished" in again.stdout, again.stdout


@pytest.mark.parametrize("reasons", [
    {"raise": "the augmentation broke", "kill": "SIGKILL"},
    pytest.param({"sleep": "25 s"}, marks=pytest.mark.slow),  # test_scheduler.py has a timeout, too
])  # fmt: skip
def test_a_job_that_fails_is_one_row_and_the_rerun_runs_those_only(
    reasons: dict[str, str], sweep: Sweep, small: tuple[str, ...], own_outputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "faults.py").write_text(FAULTS)
    swept = (
        *small, "regime=scratch", "augmentation=none", "augmentation._target_=faults.faulty",
        "trusted_packages=[faults]", f"+augmentation.fault={','.join(reasons)},no", "sweep.jobs=2", "sweep.final=false",
        f"sweep.timeout={25 if 'sleep' in reasons else 'null'}",
    )  # fmt: skip
    done = sweep(*swept)
    assert done.returncode == 1, done.stdout + done.stderr
    printed = summary_of(only_sweep(own_outputs))
    status = {run["values"]["augmentation.fault"]: run["status"] for run in printed["runs"]}
    assert status == {**dict.fromkeys(reasons, "FAILED"), "no": "FINISHED"}
    failures = {text.split("=")[1].split(")")[0]: text for text in printed["failures"]}
    assert failures.keys() == reasons.keys() and all(reasons[fault] in failures[fault] for fault in reasons)
    for text in printed["failures"]:
        assert text.splitlines()[0] in done.stdout
    parents, _ = tracked(own_outputs)
    assert parents[0].info.status == "FAILED"
    assert "RUNNING" not in {run.info.status for run in tracked(own_outputs)[1]}

    (tmp_path / "cured").touch()
    cured = sweep(*swept)
    assert cured.returncode == 0, cured.stdout + cured.stderr
    jobs_again = f"{len(reasons) + 1} jobs, {len(reasons)} to run"
    assert jobs_again in cured.stdout and "1 already finished" in cured.stdout
    parents, jobs = tracked(own_outputs)
    assert [parent.info.status for parent in parents] == ["FINISHED"]
    finished = [run.data.tags["identity"] for run in jobs if run.info.status == "FINISHED"]
    assert len(set(finished)) == len(reasons) + 1


def test_on_error_stop_starts_no_further_job(
    sweep: Sweep, small: tuple[str, ...], own_outputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "faults.py").write_text(FAULTS)
    done = sweep(
        *small, "regime=scratch", "augmentation=none", "augmentation._target_=faults.faulty",
        "trusted_packages=[faults]", "+augmentation.fault=raise,no1,no2", "sweep.on_error=stop", "tracking=none",
    )  # fmt: skip
    assert done.returncode == 1
    assert [run["status"] for run in summary_of(only_sweep(own_outputs))["runs"]] == ["FAILED", "NEW", "NEW"]


def test_a_killed_sweep_goes_on_where_it_was(
    start_sweep: StartSweep, sweep: Sweep, small: tuple[str, ...], own_outputs: Path, request: pytest.FixtureRequest
) -> None:
    """kill -9 of the parent at a random moment, the same command again: each job is finished once."""
    kills, rates = (5, "0.01,0.02") if request.config.getoption("--full") else (1, "0.01")
    given = (
        *small, "regime=scratch,finetune", f"optimizer.lr={rates}", "epochs=4", "seed=0", "sweep.final=false",
        "tracking.log_model=false",
    )  # fmt: skip
    killed = 0
    draw = random.Random(7)

    def reported() -> dict[str, float]:
        return {str(path): path.stat().st_mtime for path in own_outputs.glob("sweeps/*/[0-9]*/curves.csv")}

    for _ in range(kills):
        before, started = reported(), start_sweep(*given)
        wait_for(lambda: reported() != before or not psutil.pid_exists(started.pid))  # noqa: B023 - called at once
        time.sleep(draw.uniform(0, 1.5))
        with contextlib.suppress(ProcessLookupError):
            os.kill(started.pid, signal.SIGKILL)
        killed += started.finish().returncode == -signal.SIGKILL
    assert killed, "all was over before the first kill"
    done = sweep(*given)
    assert done.returncode == 0, done.stdout
    parents, jobs = tracked(own_outputs)
    assert [parent.info.status for parent in parents] == ["FINISHED"], "the same sweep is the same run"
    finished = [run for run in jobs if run.info.status == "FINISHED"]
    assert len({run.data.tags["identity"] for run in finished}) == len(finished) == 2 * len(rates.split(","))
    assert {run.info.status for run in jobs} == {"FINISHED"}, "what was killed was gone on with, not begun anew"
    for folder in only_sweep(own_outputs).glob("[0-9]*"):
        steps = [int(row["step"]) for row in read_rows(folder / "curves.csv")]
        assert steps == list(range(len(steps))), "no epoch stands twice"


@pytest.mark.slow  # test_scheduler.py stops jobs, tests/runs a run
def test_a_stopped_sweep_ends_its_jobs(start_sweep: StartSweep, small: tuple[str, ...], own_outputs: Path) -> None:
    started = start_sweep(*small, "regime=scratch", "optimizer.lr=0.01,0.02", "epochs=2000")
    wait_for(lambda: list(own_outputs.glob("sweeps/*/0/curves.csv")))
    os.kill(started.pid, signal.SIGTERM)
    done = started.finish()
    assert done.returncode == 128 + signal.SIGTERM, done.stdout
    facts = json.loads((only_sweep(own_outputs) / "0" / "run.json").read_bytes())
    assert facts["status"] == "KILLED"
    parents, jobs = tracked(own_outputs)
    assert [run.info.status for run in jobs] == ["KILLED"]
    assert [run.info.status for run in parents] == ["KILLED"]
    assert "the same command again" in done.stdout


CANNOT = {
    "a value": (["model.head.dropout=0.3,1.5"], ["model.head.dropout", "1.5"]),
    "a key": (["model.head.dropuot=0.3,0.5"], ["dropuot", "model.head.dropout"]),
    "a choice": (["regime=scratch,frozen"], ["frozen", "finetune"]),
    "an interval": (["optimizer.lr=interval(0.1,0.2)"], ["optimizer.lr", "sweep.search"]),
    "a rung": (
        ["experiment=ladder", "sweep.rungs.one_stage=['regime=finetune','regime.unfrozen_blokcs=1']"],
        ["regime.unfrozen_blokcs", "regime.unfrozen_blocks"],
    ),
    "its own settings": (["sweep.jobs=1,2"], ["sweep", "cannot be swept"]),
    "a component": (["optimizer=adam", "+optimizer.nesterov=true,false"], ["nesterov"]),
}


def test_a_sweep_that_cannot_be_run_starts_nothing(
    small: tuple[str, ...], own_outputs: Path, drive: Callable[..., Any], tmp_path: Path
) -> None:
    lines = [["-m", *small, *overrides] for overrides, _ in CANNOT.values()]
    reported, modules = drive("experiments.train", lines, tmp_path)
    assert "tensorflow" not in modules
    for answer, (name, (_, words)) in zip(reported, CANNOT.items(), strict=True):
        printed = answer["code"]
        assert isinstance(printed, str) and answer["seconds"] < 20, f"{name}: {answer}"
        assert "Traceback" not in answer["err"] and not [word for word in words if word not in printed], (
            f"{name}: {printed}"
        )
    assert not list(own_outputs.glob("sweeps/*/[0-9]*"))


def test_a_search_is_another_one_if_any_of_its_weights_have_changed(sweep: Sweep, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra `search` is not installed")
    files = [tmp_path / f"{name}.weights.h5" for name in "ab"]
    for file in files:
        shutil.copy(PRETRAINED, file)
    searched = (
        "regime=bottleneck", "tracking=none", "data.per_class={train: 6, validation: 6, test: 0}",
        "data.size=32", "data.image_size=64", "sweep.search=tpe", "sweep.dry_run=true",
        f"model.weights={','.join(map(str, files))}",
    )  # fmt: skip

    def name() -> str:
        done = sweep(*searched)
        assert done.returncode == 0, done.stdout
        (found,) = re.findall(r"Search (\S+) \(tpe", done.stdout)
        return str(found)

    before = name()
    assert name() == before
    with h5py.File(files[1], "r+") as weights:
        arrays: list[h5py.Dataset] = []
        weights.visititems(lambda _, node: arrays.append(node) if isinstance(node, h5py.Dataset) else None)
        largest = max(arrays, key=lambda array: array.size)
        largest[...] = 2 * largest[...]
    assert name() != before


def test_a_search_goes_on_where_it_stopped_and_ends_what_falls_behind(sweep: Sweep, own_outputs: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="the extra `search` is not installed")
    from experiments.sweeps.search import study as studies

    def states() -> list[str]:
        return [trial.state.name for trial in study.trials]

    searched = (
        "regime=bottleneck", "tracking=none", "progress=none", "data.per_class={train: 6, validation: 6, test: 0}",
        "data.size=32", "data.image_size=64", "runtime.threads=1", "epochs=3", "seed=0,1",
        "sweep.search=tpe", "sweep.pruner=median", "sweep.final=false", "sweep.jobs=2",
        "optimizer.lr=tag(log,interval(1e-4,1e-3))", "model.head.dropout=range(0,0.5,0.1)",
    )  # fmt: skip
    done = sweep(*searched, "sweep.trials=1")
    assert done.returncode == 0, done.stdout
    storage = f"sqlite:///{own_outputs}/studies.db"
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    assert states() == ["COMPLETE"]
    folder = own_outputs / "sweeps" / study.study_name
    metrics = [json.loads((folder / name / "metrics.json").read_text()) for name in ("0", "1")]
    assert study.trials[0].value == pytest.approx(sum(job["validation.accuracy"] for job in metrics) / 2)
    assert list(study.trials[0].intermediate_values) == [0, 1, 2]
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}

    first = study.trials[0]
    for lr in (2e-4, 3e-4, 4e-4, 5e-4, 6e-4):  # better than anything can be
        params = {**first.params, "optimizer.lr": lr}
        curve = dict.fromkeys(range(3), 2.0)
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=first.distributions, value=2.0, intermediate_values=curve
            )
        )
    lost = study.ask(dict(first.distributions))  # by a worker that was killed
    process = subprocess.Popen(["sleep", "60"])
    lost.set_user_attr(studies.OWNER, liveness.owner(process.pid))
    process.kill()
    process.wait()
    done = sweep(*searched, "sweep.trials=7")
    assert done.returncode == 0, done.stdout
    assert states() == ["COMPLETE"] * 6 + ["FAIL", "PRUNED"]
    assert study.trials[7].params == study.trials[6].params, "what was lost is asked for again"
    assert {path: path.stat().st_mtime_ns for path in written} == written, "nothing is trained twice"
    ends = {place: json.loads((folder / place / "run.json").read_text())["status"] for place in ("600",)}
    assert ends == {"600": "PRUNED"}, "a trial keeps its folder, and with it its checkpoints"
    assert not (folder / "601").exists(), "of what is pruned no other seed is run"
    summary = json.loads((folder / "summary.json").read_text())
    assert {row[0] for row in summary["table"] if row[-1] == "pruned"} == {"-"}
    assert summary["metrics"]["jobs_pruned"] == 1 and summary["failures"] == []
