"""`experiments reproduce`: the planned runs, the results for the tutorial's claims, and resuming."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from experiments.cli import reproduce as verb
from experiments.runs.run_directory import RunDirectory
from experiments.sweeps import reproduction
from experiments.sweeps.plan import Job
from experiments.sweeps.reproduction import CLAIMS, Result
from experiments.system import signals
from experiments.training.types import Status

# One epoch of small images, on a backbone that has its weights with it.
TINY = (
    "--backbone", "convnet", "--seeds", "2", "data.image_size=48", "model.weights=null", "model.head.pooling=average",
    "epochs=2", "regime.head_epochs=2", "batch_size=8",
)  # fmt: skip


@pytest.mark.parametrize("name, low, high, expected", [
    ("scratch", 0.756, 0.798, "reproduced"),       # the claim's own 400 images leave it between 69.5 and 81.8 %
    ("scratch", 0.60, 0.69, "below"),
    ("scratch", 0.69, 0.80, "inconclusive"),
    ("bottleneck", 0.959, 0.974, "above"),
    ("bottleneck", 0.88, 0.91, "reproduced"),
    ("finetune", 0.956, 0.975, "inconclusive"),
    ("exercise", 0.951, 1.02, "reproduced"),       # a goal; an interval of Student's may reach beyond 100 %
    ("exercise", 0.94, 0.96, "inconclusive"),
    ("exercise", 0.92, 0.949, "below"),
])  # fmt: skip
def test_the_outcome_is_where_the_interval_lies(name: str, low: float, high: float, expected: str) -> None:
    assert reproduction.check_claim(CLAIMS[name], low, high) == expected


def test_a_claim_is_as_sure_as_its_400_images() -> None:
    """Wilson's interval of 296 and 312 of 400 by the formula (Brown, Cai, DasGupta 2001, eq. 4), z = 1.96."""

    def wilson(p: float, sign: int, n: int = 400, z: float = 1.959964) -> float:
        return (p + z**2 / (2 * n) + sign * z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5) / (1 + z**2 / n)

    assert CLAIMS["scratch"].range() == pytest.approx((wilson(0.74, -1), wilson(0.78, 1)), abs=1e-6)
    assert CLAIMS["exercise"].range() == (0.95, 1.0)


@pytest.mark.parametrize("name, given, expected", [
    ("scratch", {"backbone": "vgg16", "data": "P"}, "experiment=tutorial_scratch data.root='P'"),
    ("finetune", {"backbone": "vgg16"}, "experiment=tutorial_finetune data=cats_vs_dogs"),
    ("exercise", {"backbone": "mobilenet_v2", "data": "P", "weights": "W"},
     "experiment=mobilenet_exercise model.weights='W' data.root='P'"),
    ("scratch", {"backbone": "mobilenet_v2", "weights": "W"}, "experiment=tutorial_scratch data=cats_vs_dogs"),
    ("bottleneck", {"backbone": "resnet50", "data": "a.zip"},
     "experiment=mobilenet_bottleneck model=resnet50 data=cats_vs_dogs data.archive='a.zip'"),
    ("finetune", {"backbone": "vgg19", "data": "P"}, "experiment=tutorial_finetune model=vgg19 data.root='P'"),
    ("finetune", {"backbone": "convnet", "quick": True},
     "experiment=mobilenet_finetune model=convnet data=synthetic data.limit.train=100 data.limit.validation=200 "
     "epochs=5 regime.head_epochs=15"),
])  # fmt: skip
def test_a_rows_command(name: str, given: dict[str, Any], expected: str) -> None:
    plain = {"data": None, "weights": None, "quick": False}
    assert " ".join(reproduction.overrides(name, **{**plain, **given})) == expected


def test_a_figure_is_the_mean_of_the_last_phases_last_five_epochs(tmp_path: Path) -> None:
    rows = [("head", 0.1), *(("finetune", value) for value in (0.2, 0.5, 0.6, 0.7, 0.8, 0.9))]
    lines = [
        "step,phase,epoch,timestamp,validation_accuracy",
        *(f"{at},{phase},{at},{at},{value}" for at, (phase, value) in enumerate(rows)),
    ]
    directory = RunDirectory(tmp_path)
    directory.write_metrics({"validation.accuracy": 0.95, "total_seconds": 12.5})

    def read() -> Result:
        (tmp_path / "curves.csv").write_text("".join(f"{line}\n" for line in lines))
        return reproduction.read_result(directory)

    (tmp_path / "predictions_validation.csv").write_text("path,sha256,correct\na,1,True\nb,2,False\n")
    found = read()
    assert found == pytest.approx(Result(last_epochs=0.7, accuracy=0.95, images=2, seconds=12.5, ended=6))
    lines[1:] = ["0,scratch,0,1,0.25", "1,scratch,1,2,0.75"]
    assert read().last_epochs == 0.5
    (tmp_path / "predictions_validation.csv").write_text(
        "path,sha256,label,correct\na,1,x,True\nb,2,y,False\nc,3,x,True\n"
    )
    assert read().baseline == 2 / 3


def test_the_page_holds_claims_figures_and_commands_but_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter([Result(0.77, 0.78, 400, 310.0, 0), Result(0.76, 0.75, 400, 305.0, 0)])
    monkeypatch.setattr(reproduction, "result_of", lambda job: next(results))
    line = ["experiment=tutorial_scratch", "data.root='/some/where'", "seed=0"]
    jobs = [Job(at, line, {"experiment": "scratch", "seed": str(at)}, None, Path(), status="FINISHED")  # type: ignore
            for at in range(2)]  # fmt: skip
    row = reproduction.row("scratch", jobs, backbone="vgg16", comparable=True)
    explanation = reproduction.sentences([row], backbone="mobilenet_v2", comparable=True)
    page = reproduction.markdown([row], explanation, "`experiments reproduce`, today")
    assert "| 74-78 % | 76.5 % [68.9, 84.1] | 78.0, 75.0 | 310, 305 | inconclusive |" in page
    assert "python -m experiments.train experiment=tutorial_scratch data.root=PATH seed=0" in page
    assert "/some/where" not in page and "on 400 validation images" in page and "vgg16's" in page
    bounds = {"accuracy": 0.765, "accuracy_low": 0.689, "accuracy_high": 0.841}
    assert reproduction.metrics([row]) == pytest.approx(
        {f"scratch.validation.{name}": value for name, value in bounds.items()}, abs=6e-4
    )
    jobs[1].status = Status.FAILED
    results = iter([Result(0.77, 0.78, 400, 310.0, 0)])
    row = reproduction.row("scratch", jobs, backbone="vgg16", comparable=True)
    assert reproduction.cells(row)[-1] == "1 of 2 runs missing"


def test_what_makes_other_runs_has_no_outcome(config: Callable[..., Any]) -> None:
    photographs = config("data=folder", "data.root=P")
    assert reproduction.same_task(photographs, ["tracking=none", "runtime.threads=1", "+tags.mine=x"])
    assert not reproduction.same_task(photographs, ["epochs=2"])
    assert not reproduction.same_task(config("data=synthetic"), [])


@pytest.mark.parametrize("arguments, message", [
    (["--data", "nowhere"], "--data: there is no such folder or zip file. Received: nowhere"),
    (["--weights", "nowhere"], "--weights: there is no such file. Received: nowhere"),
    (["--backbone", "vgg17"], "Nearest: model=vgg1"),
    (["--quick", "optimizer.lrr=1"], "Nearest: optimizer.lr"),
    (["--quick", "seed=3"], "seed: the runs have those of --seeds"),
    (["--quick", "++seed=3"], "seed: the runs have those of --seeds"),
])  # fmt: skip
def test_invalid_arguments_are_reported_before_anything_is_read(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, own_outputs: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["experiments reproduce", *arguments])
    monkeypatch.setattr(signals, "install", lambda: None)
    with pytest.raises(SystemExit) as ended:
        verb.main()
    assert message in str(ended.value) and not own_outputs.exists()


def start(root: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments", "reproduce", "--data", str(root), *TINY, *more]
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_it_is_stopped_goes_on_and_then_has_nothing_to_do(drawn: Path, own_outputs: Path) -> None:
    first = start(drawn)
    deadline = time.monotonic() + 300
    # Wait until the identity is recorded: a run that is stopped before that starts from the beginning.
    while not any(b'"identity"' in path.read_bytes() for path in own_outputs.glob("runs/*-bottleneck-*/run.json")):
        assert time.monotonic() < deadline and first.poll() is None, first.communicate()
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGTERM and "The same command again" in errors

    out, errors = start(drawn).communicate(timeout=600)
    assert re.search("8 runs, [23] of them finished", out), out + errors
    (folder,) = own_outputs.glob("reproduce/*/")
    summary = json.loads((folder / "summary.json").read_bytes())
    assert [row["experiment"] for row in summary["rows"]] == list(CLAIMS)
    assert all(row["finished"] == ["0", "1"] and row["outcome"] == "" for row in summary["rows"])
    assert "No outcome" in out and str(folder / "summary.md") in out

    before = {path: path.stat().st_mtime for path in own_outputs.glob("runs/*/run.json")}
    assert len(before) == 8, "the one that was stopped has gone on in its place"
    assert {RunDirectory(path.parent).facts()["status"] for path in before} == {"FINISHED"}
    again = start(drawn)
    out, errors = again.communicate(timeout=300)
    assert again.returncode == 0 and "8 runs, 8 of them finished" in out, out + errors
    assert {path: path.stat().st_mtime for path in own_outputs.glob("runs/*/run.json")} == before

    client = mlflow.MlflowClient(f"sqlite:///{own_outputs}/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (parent,) = [run for run in runs if "sweep" in run.data.tags]
    assert len(runs) == 9 and {run.info.status for run in runs} == {"FINISHED"}
    assert all(run.data.tags.get("mlflow.parentRunId") == parent.info.run_id for run in runs if run is not parent)
    assert parent.data.metrics["scratch.validation.accuracy"] == summary["rows"][0]["mean"]
    assert "| from scratch" in parent.data.tags["mlflow.note.content"]


@pytest.mark.slow
def test_weights_that_cannot_be_had_stop_it_before_the_first_run(
    drawn: Path, own_outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no server listens there
    command = [sys.executable, "-m", "experiments", "reproduce", "--data", str(drawn)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "ImageNet weights of model=vgg16 could not be downloaded" in done.stderr
    assert "Cannot be run here" in done.stderr and "--backbone mobilenet_v2" in done.stderr
    assert not any(own_outputs.glob("runs/*"))
