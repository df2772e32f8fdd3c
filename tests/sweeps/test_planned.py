"""A sweep reports results of its planned jobs only: other grids, data, orders, winners and edits in one directory."""

from __future__ import annotations

import csv
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest

import experiments as ex
from experiments.config.identity import run_identity
from experiments.config.schema import Config
from experiments.runs import run_directory
from experiments.runs.command import arguments
from experiments.sweeps import plots, summary_files, sweep_directory
from experiments.sweeps.launchers import processes, scheduler
from experiments.sweeps.plan import Job, PlannedRun
from experiments.sweeps.sweeper import Sweeper
from experiments.system import redaction, signals
from experiments.train import expand, main

IMAGES = 100


class Trained:
    """Sweeps in this process whose jobs are not trained: a run's accuracy is 10 * optimizer.lr, on these data."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.data, self.deleted, self.runs = "data", set[str](), list[PlannedRun]()
        self.stop_after: int | None = None
        self.held_out = True
        patch.setattr(processes, "run_worker_task", self.ask)
        patch.setattr(plots, "draw", lambda *arguments: None)
        patch.setattr(scheduler, "run_jobs", self.run)
        patch.setattr(
            sys.modules["experiments.train"],
            "redaction",
            type("", (), {"install": int, "conceal_arguments": staticmethod(list)}),
        )
        self.patch = patch

    def __call__(self, *overrides: str) -> list[PlannedRun]:
        """Run a sweep; return the jobs that were trained."""
        self.runs.clear()
        self.patch.setattr(sys, "argv", ["train", "-m", "tracking=none", "progress=none", *overrides])
        self.patch.setattr(Sweeper, "typed", None)
        main()
        return list(self.runs)

    def identity(self, config: Config) -> str:
        return run_identity(config, data=f"{self.data} {config.data.fold}")

    def ask(self, function: str, *arguments: Any) -> dict[str, Any] | None:
        if function == "conclude":
            return summary_files.write_summary(arguments[0])
        if function == "share":
            return None
        assert function == "inspect_jobs", function
        configs: Sequence[Config] = arguments[0]
        known: dict[str, dict[str, Any]] = {}
        for folder in sweep_directory.folders(Path(configs[0].outputs)):
            facts = run_directory.RunDirectory(folder).facts()
            if facts.get("status") == "FINISHED":
                about = {"status": "FINISHED", "folder": str(folder), "run_id": None}
                found = {"deleted": str(folder)} if str(folder) in self.deleted else about
                known.setdefault(facts["identity"], found)
        jobs = [{"identity": (own := self.identity(config)), **known.get(own, {})} for config in configs]
        return {"jobs": jobs, "lines": [], "seconds": None, "held_out": self.held_out, "features_missing": False}

    def run(self, launcher: Any, jobs: Sequence[PlannedRun], stop_reason: Any, ended: Callable[..., None]) -> None:
        for at, job in enumerate(jobs):
            if stop_reason() or (self.stop_after is not None and len(self.runs) >= self.stop_after):
                break
            self.runs.append(job)
            config, folder = job.config, job.folder
            left = run_directory.RunDirectory(folder).facts()
            assert self.identity(config) == job.identity and (not left or left["status"] == "RUNNING")
            folder.mkdir(exist_ok=True)
            accuracy = 10 * config.optimizer.lr
            metrics = {"validation.accuracy": accuracy, "total_seconds": 1.0}
            (folder / run_directory.METRICS).write_text(json.dumps(metrics))
            facts = {"command": {}, "identity": job.identity, "status": "FINISHED"}
            (folder / run_directory.FACTS).write_text(json.dumps(facts))
            write_predictions(folder, "validation", accuracy)
            if config.evaluate.test:
                write_predictions(folder, "test", accuracy / 2)
            ended(at, 1.0, None)


def write_predictions(folder: Path, split: str, accuracy: float) -> None:
    with (folder / f"predictions_{split}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "sha256", "label", "correct"])
        writer.writerows([n, n, "ab"[n % 2], str(n < IMAGES * accuracy)] for n in range(IMAGES))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trained:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signals, "install", lambda: None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    return Trained(monkeypatch)


def accuracies(folder: Path) -> dict[float, float]:
    """What the summary in a sweep's folder has of its jobs: accuracy by learning rate."""
    printed = json.loads((folder / "summary.json").read_text())
    return {
        float(run["values"]["optimizer.lr"]): round(run["metrics"]["validation.accuracy"], 6)
        for run in printed["runs"] if not run["final"]
    }  # fmt: skip


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(SystemExit) as error:
        call()
    return str(error.value)


def test_a_sweeps_directory_holds_no_value_from_the_environment(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHO", "s3cr3t-Value-123")
    monkeypatch.setenv("JOBS", "2")
    place = (f"hydra.sweep.dir={tmp_path / 'D'}", "+tags.who=${oc.env:WHO}", "sweep.jobs='${oc.decode:${oc.env:JOBS}}'")
    (job, _) = trained(*place, "optimizer.lr=0.01,0.02", "sweep.final=false")
    assert job.config.tags == {"who": "s3cr3t-Value-123"}
    files = [path for path in (tmp_path / "D").rglob("*") if path.is_file()]
    assert not [path for path in files if b"s3cr3t-Value-123" in path.read_bytes()]
    config = sweep_directory.read(tmp_path / "D")["config"]
    assert config["tags"] == {"who": "${oc.env:WHO}"} and config["sweep"]["jobs"] == 2


def test_a_directory_of_another_sweep_is_refused_by_name(trained: Trained, tmp_path: Path) -> None:
    place = f"hydra.sweep.dir={tmp_path / 'D'}"
    assert len(trained(place, "optimizer.lr=0.01,0.02", "sweep.final=false")) == 2
    for other in ("optimizer.lr=0.03,0.04", "optimizer.lr=0.01,0.02,0.03", "optimizer.lr=0.01"):
        printed = refused(partial(trained, place, other, "sweep.final=false"))
        assert (
            str(tmp_path / "D") in printed and "holds another sweep" in printed and "optimizer.lr=0.01,0.02" in printed
        )
    trained.data = "other data"
    assert "holds another sweep" in refused(lambda: trained(place, "optimizer.lr=0.01,0.02", "sweep.final=false"))
    assert not trained.runs and accuracies(tmp_path / "D") == {0.01: 0.1, 0.02: 0.2}
    (tmp_path / "D" / sweep_directory.SWEEP).write_text(
        json.dumps({"objective": "accuracy", "command": "", "parent": None})
    )
    assert "earlier version" in refused(lambda: trained(place, "optimizer.lr=0.01,0.02"))


def test_a_job_goes_on_in_a_directory_outside_outputs(trained: Trained, tmp_path: Path) -> None:
    sweep = (f"hydra.sweep.dir={tmp_path / 'D'}", "optimizer.lr=0.01,0.02", "sweep.final=false")
    trained(*sweep)
    assert not trained(*sweep), "what is finished is not trained again"
    killed = tmp_path / "D" / "1"
    facts = json.loads((killed / run_directory.FACTS).read_text())
    (killed / run_directory.FACTS).write_text(json.dumps(facts | {"status": "RUNNING"}))
    (killed / run_directory.CHECKPOINTS).mkdir()
    (job,) = trained(*sweep)
    assert job.folder == killed and (killed / run_directory.CHECKPOINTS).is_dir(), "its checkpoints are still there"


def test_a_job_does_not_write_into_the_directory_of_another_run(trained: Trained, tmp_path: Path) -> None:
    """Such as a single run's, or a job's of a sweep whose own file is gone."""
    place = f"hydra.sweep.dir={tmp_path / 'D'}"
    trained(place, "optimizer.lr=0.01,0.02", "sweep.final=false")
    (tmp_path / "D" / sweep_directory.SWEEP).unlink()
    for file in (tmp_path / "D").glob(f"*/{sweep_directory.JOB}"):
        file.unlink()
    printed = refused(lambda: trained(place, "optimizer.lr=0.03,0.04", "sweep.final=false"))
    assert f"{tmp_path / 'D' / '0'}: this folder holds another run" in printed and not trained.runs
    (tmp_path / "D" / "0" / run_directory.FACTS).unlink()  # results without a recorded identity
    assert "another run" in refused(lambda: trained(place, "optimizer.lr=0.03,0.04", "sweep.final=false"))


def test_the_same_sweep_on_other_data_is_trained_in_a_folder_of_its_own(trained: Trained, own_outputs: Path) -> None:
    assert len(trained("optimizer.lr=0.01,0.02", "sweep.final=false")) == 2
    assert not trained("optimizer.lr=0.01,0.02", "sweep.final=false")
    trained.data = "swapped"
    assert len(trained("optimizer.lr=0.01,0.02", "sweep.final=false")) == 2
    assert len(list(own_outputs.glob("sweeps/*/sweep.json"))) == 2


def test_jobs_keep_their_numbers_however_the_sweep_is_typed(trained: Trained, own_outputs: Path) -> None:
    """Stopped at its target and typed in another order, a sweep has no row, and no winner's score, of another job."""
    trained.stop_after = 1
    trained("optimizer.lr=0.03,0.01,0.02", "sweep.target=0.1", "sweep.final=false")
    trained.stop_after = None
    (folder,) = own_outputs.glob("sweeps/*")
    first = {record["identity"]: record["number"] for record in sweep_directory.records(folder)}
    done = trained("optimizer.lr=0.01,2e-2,0.03")
    assert [round(job.config.optimizer.lr, 3) for job in done] == [0.01, 0.02, 0.03]
    assert [job.config.evaluate.test for job in done] == [False, False, True], "the last is the winner's"
    assert accuracies(folder) == {0.01: 0.1, 0.02: 0.2, 0.03: 0.3}
    assert {
        record["identity"]: record["number"] for record in sweep_directory.records(folder) if not record.get("final")
    } == first
    printed = " ".join(json.loads((folder / "summary.json").read_text())["sentences"])
    assert "15.0" in printed, "the test score of the winner"

    # Another job wins in the same directory, where the number of its test evaluation is taken by the former winner's.
    other = folder / "0" / run_directory.METRICS
    other.write_text(json.dumps(json.loads(other.read_text()) | {"validation.accuracy": 0.05}))
    (final,) = trained("optimizer.lr=0.01,2e-2,0.03")
    assert final.config.optimizer.lr == 0.02 and final.folder.name == "4"
    printed = " ".join(json.loads((folder / "summary.json").read_text())["sentences"])
    assert "10.0" in printed and "15.0" not in printed
    assert not trained("optimizer.lr=2e-2,0.01,0.03"), "and then all of it is done"


def test_a_sweep_at_its_target_has_its_final_run_and_starts_no_job_again(trained: Trained, own_outputs: Path) -> None:
    sweep = ("optimizer.lr=0.03,0.01,0.02", "sweep.target=0.2")
    done = trained(*sweep)
    assert [(job.config.optimizer.lr, job.config.evaluate.test) for job in done] == [(0.03, False), (0.03, True)]
    assert not trained(*sweep)
    (folder,) = own_outputs.glob("sweeps/*")
    printed = json.loads((folder / "summary.json").read_bytes())["sentences"]
    assert any(line.startswith("Read once on the test images: accuracy 15.0%") for line in printed)
    assert printed[-1].startswith("2 jobs are not finished, as sweep.target=0.2 is reached")
    assert len(trained("optimizer.lr=0.03,0.01,0.02")) == 2, "without a target the sweep continues"


def test_without_test_images_one_of_the_winner_s_seeds_keeps_the_whole_model(trained: Trained) -> None:
    swept = ("optimizer.lr=0.01,0.02", "seed=0,1")
    assert [(job.config.optimizer.lr, job.config.seed) for job in trained(*swept)[4:]] == [(0.02, 0), (0.02, 1)]
    trained.held_out = False
    trained.data = "without test images"
    assert [(job.config.optimizer.lr, job.config.seed) for job in trained(*swept)[4:]] == [(0.02, 0)]


def test_every_job_records_what_was_typed_about_its_model(trained: Trained) -> None:
    """A final run that is resumed logs its whole model only if the sweep was to."""
    runs = trained("optimizer.lr=0.01,0.02", "++tracking.log_model=false", "evaluate.test=false")
    for job, test in zip(runs, ("false", "false", "true"), strict=True):
        typed = [line.lstrip("+") for line in job.arguments]
        assert typed.count("tracking.log_model=false") == 1 and typed.count(f"evaluate.test={test}") == 1


def test_a_job_whose_mlflow_run_was_deleted_is_trained_again(trained: Trained, own_outputs: Path) -> None:
    trained("optimizer.lr=0.01,0.02", "sweep.final=false")
    (folder,) = own_outputs.glob("sweeps/*")
    trained.deleted = {str(folder / "1")}
    (folder / "1" / "weights.h5").write_text("of the run that was deleted")
    (again,) = trained("optimizer.lr=0.01,0.02", "sweep.final=false")
    assert again.folder == folder / "1" and not (folder / "1" / "weights.h5").exists()


def test_rerun_trains_every_job_again_and_keeps_nothing_of_before(trained: Trained, own_outputs: Path) -> None:
    trained("optimizer.lr=0.01,0.02")
    (folder,) = own_outputs.glob("sweeps/*")
    (folder / "0" / "left.csv").write_text("of the first run")
    facts = json.loads((folder / "1" / run_directory.FACTS).read_text())  # as that of a run on another machine
    (folder / "1" / run_directory.FACTS).rename(folder / "1" / run_directory.FETCHED)
    assert len(trained("optimizer.lr=0.01,0.02", "sweep.rerun=true")) == 3, "the winner too"
    assert not (folder / "0" / "left.csv").exists() and not (folder / "1" / run_directory.FETCHED).exists()
    assert json.loads((folder / "1" / run_directory.FACTS).read_text()) == facts


def test_what_another_start_has_finished_meanwhile_is_not_trained_again(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two starts at once has inspected the jobs before the first one ended."""
    jobs = [Job(at, [], {}, config(), tmp_path / str(at), identity="same") for at in range(4)]
    for job, status, run_id in zip(jobs, ("FINISHED", "FINISHED", "KILLED", "PRUNED"), "abcd", strict=True):
        facts = {"command": {}, "identity": "same", "status": status, "run_id": run_id}
        run_directory.RunDirectory(job.folder).write_facts(facts)
    asked: list[Any] = []
    monkeypatch.setattr(processes, "run_worker_task", lambda *given: asked.append(given[2]) or ["b"])
    sweep_directory.reuse_own_runs(jobs)
    assert [job.status for job in jobs] == ["FINISHED", "NEW", "PARTIAL", "NEW"] and asked == [["a", "b"]]
    assert (jobs[0].run_id, jobs[1].run_id, jobs[1].deleted) == ("a", None, "b")


@pytest.mark.parametrize("given", [
    "seed=0,0,1", "seed=0,0.0", "data.fold=0,1,0", "optimizer.lr=0.01,1e-2", "seed=choice(3,3)",
])  # fmt: skip
def test_a_value_given_twice_is_no_second_run(trained: Trained, given: str) -> None:
    printed = refused(lambda: trained(given))
    assert given.partition("=")[0] in printed and "is given twice" in printed and not trained.runs


def test_two_ways_to_write_a_seed_are_no_two_runs(trained: Trained) -> None:
    printed = refused(lambda: trained("epochs=3", "seed=3,${epochs}"))
    assert "the same run" in printed and "seed=3" in printed and not trained.runs
    assert len(trained("epochs=4", "seed=3,${epochs}")) == 4, "and the winner with each of them"


def test_a_value_for_a_group_that_is_swept(trained: Trained) -> None:
    """The default optimizer has no beta_1, and clipnorm may be null."""
    done = trained("optimizer=adam,adamw", "optimizer.beta_1=0.8", "optimizer.clipnorm=null", "sweep.final=false")
    assert [(job.config.optimizer.name, job.config.optimizer.arguments["beta_1"]) for job in done] \
        == [("adam", 0.8), ("adamw", 0.8)]  # fmt: skip
    assert all("optimizer.beta_1=0.8" in job.arguments for job in done)
    command = json.loads((done[0].folder.parent / sweep_directory.SWEEP).read_text())["command"]
    assert {"optimizer=adam,adamw", "optimizer.beta_1=0.8", "sweep.final=false"} <= set(shlex.split(command))
    done = trained("optimizer@regime.head_optimizer=adam,adamw", "regime.head_optimizer.beta_1=0.8", "regime=finetune",
                   "sweep.final=false")  # fmt: skip
    assert [job.config.regime.head_optimizer.arguments["beta_1"] for job in done] == [0.8, 0.8]
    printed = refused(lambda: trained("optimizer=adam,sgd", "optimizer.beta_1=0.8"))
    assert "optimizer=sgd" in printed and "optimizer.beta_1: nothing reads this key" in printed


def test_what_only_jobs_receive_holds_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(redaction.VARIABLE, "{}")
    monkeypatch.setattr(Sweeper, "typed", None)
    command = expand(["-m", "model=convnet,vgg16", "model.head.dropout=0.3", "tracking.uri=http://me:S3cr-et9@host"])
    assert command is not None and "model.head.dropout=0.3" not in command
    assert Sweeper.typed and "tracking.uri=http://me:***@host" in Sweeper.typed and "S3cr-et9" not in str(command)


def test_a_grid_that_a_swept_preset_brings_is_not_dropped(trained: Trained) -> None:
    Path("photographs/cat").mkdir(parents=True)
    Path("photographs/dog").mkdir()
    presets = ("experiment=above_95,tutorial_finetune", "data.root=photographs", "sweep.final=false")
    printed = refused(lambda: trained(*presets))
    assert "experiment=above_95" in printed and "model.head.dropout=0.3,0.5,0.7" in printed and not trained.runs
    typed = ("model.head.dropout=0.5", "model.head.l2=0", "regime.unfrozen_blocks=1")
    assert len(trained(*presets, *typed)) == 2
    printed = refused(
        lambda: trained("experiment=tutorial_finetune,above_95_search", "data.root=/x", *typed, "optimizer.lr=1e-3")
    )
    assert "sweep: its own settings" in printed


def test_what_is_no_sweep_gets_a_sentence(trained: Trained, tmp_path: Path) -> None:
    assert "sweep.dry_run=true" in refused(lambda: trained("seed=0,1", "--cfg", "job"))
    assert "hydra/sweeper: must be experiments" in refused(lambda: trained("seed=0,1", "hydra/sweeper=basic"))
    assert "hydra/launcher: must be" in refused(lambda: trained("seed=0,1", "hydra/launcher=basic"))
    assert "outputs and objective: a sweep has one" in refused(lambda: trained("objective=accuracy,loss"))
    trained.patch.setattr(processes, "run_worker_task", pytest.fail)  # such a process imports TensorFlow
    assert "data.root does not exist" in refused(lambda: trained("data=folder", "data.root=photos,photographs"))
    weights = ("regime=bottleneck,finetune", "model.weights=my.weights.h5")
    assert "model.weights: no such file" in refused(lambda: trained(*weights))
    assert not list(tmp_path.iterdir()) or not trained.runs


def test_a_rung_on_the_best_one_is_run_although_its_run_is_also_that_of_another(trained: Trained) -> None:
    rungs = (
        "{a:['regime=bottleneck','optimizer.lr=0.01'],"
        "b:['regime=finetune','regime.unfrozen_blocks=1','optimizer.lr=0.05'],"
        "c:[best,'regime=bottleneck','optimizer.lr=0.06']}"
    )
    done = trained(f"sweep.rungs={rungs}", "sweep.final=false")  # bottleneck ignores the blocks of rung b
    assert [round(job.config.optimizer.lr, 2) for job in done] == [0.01, 0.05, 0.06]


def test_jobs_and_the_winner_s_final_run_are_those_that_were_planned_though_files_change(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    text = "defaults: [config, _self_]\nepochs: 2\n"
    (mine / "own.yaml").write_text(text)

    def changed(*arguments: Any) -> None:
        (mine / "own.yaml").write_text(text.replace("epochs: 2", "epochs: 3"))
        trained.run(*arguments)

    monkeypatch.setattr(scheduler, "run_jobs", changed)
    jobs = trained("seed=0,1", "-cn", "own", "--config-dir", str(mine))
    assert [job.config.epochs for job in jobs] == [2] * 4, "the winner's two as well"


# -- in processes of their own


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
def test_jobs_run_what_was_planned_though_files_change(
    again: bool, drawn: Path, own_outputs: Path, tmp_path: Path, start_sweep: Callable[..., Any]
) -> None:
    """Of a configuration of one's own; `again`: after MLflow runs were deleted, and the sweep's marked as lost."""
    mine = tmp_path / "mine"
    mine.mkdir()
    text = (
        "defaults: [config, _self_]\nepochs: 2\nregime: {views: 1}\nnotes: ${oc.env:HOME}\nmodel: {weights: null}\n"
        "batch_size: 8\ndata: {image_size: 48}\n"
    )
    (mine / "own.yaml").write_text(text)
    command = (
        "-cn", "own", "--config-dir", str(mine), "data=folder", f"data.root={drawn}", "regime=bottleneck",
        "runtime.threads=1", "seed=0,1", "tracking.log_model=false",
    )  # fmt: skip
    started = start_sweep(*command)
    deadline = time.monotonic() + 120
    while not list(own_outputs.glob("sweeps/*/0/.hydra")) and time.monotonic() < deadline:
        time.sleep(0.02)
    (mine / "own.yaml").write_text(text.replace("epochs: 2", "epochs: 3"))
    done = started.finish()
    assert done.returncode == 0, done.stdout
    (folder,) = own_outputs.glob("sweeps/*")
    epochs = {path.parent.name: len(path.read_text().splitlines()) - 1 for path in folder.glob("*/curves.csv")}
    assert epochs == dict.fromkeys("0123", 2), "the winner's two, after the jobs, as well"
    client = mlflow.MlflowClient(f"sqlite:///{own_outputs}/mlflow.db")
    runs = {int(run.info.run_name.rpartition("-")[2]): run for run in client.search_runs(["1"])
            if "sweep" not in run.data.tags}  # fmt: skip
    assert {run.data.tags["mlflow.note.content"] for run in runs.values()} == {"${oc.env:HOME}"}
    assert all("--config-name own" in run.data.tags["command"] for run in runs.values())
    called = json.loads((folder / "0" / "run.json").read_text())["command"]
    assert arguments(called)[:4] == ["--config-dir", str(mine), "--config-name", "own"]

    parent = json.loads((folder / sweep_directory.SWEEP).read_text())["parent"]
    mean = sum(runs[number].data.metrics["validation.accuracy"] for number in (0, 1)) / 2
    assert client.get_run(parent).data.metrics["winner.validation.accuracy"] == pytest.approx(mean)

    if not again:
        return
    (mine / "own.yaml").write_text(text)
    client.set_tag(parent, "failure", "its process is gone")
    client.delete_run(runs[0].info.run_id)
    client.delete_run(runs[2].info.run_id)
    done = start_sweep(*command).finish()
    assert done.returncode == 0, done.stdout
    assert "2 jobs, 1 to run, 1 already finished" in done.stdout
    for number in (0, 2):
        line = f"job {number}: its MLflow run {runs[number].info.run_id} has been deleted, so it is trained again"
        assert line in done.stdout
    now = client.search_runs(["1"])
    assert {run.info.run_id for run in now} & {runs[0].info.run_id, runs[2].info.run_id} == set() and len(now) == 5
    assert "failure" not in client.get_run(parent).data.tags


def test_a_call_from_python_returns_the_sweep(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"tracking": {"uri": None}, "progress": "none", "optimizer": {"lr": [0.01, 0.02]}}
    found = ex.sweep("evaluate.test=true", seed=range(2), **settings)
    assert isinstance(found, ex.Sweep) and found.objective == "accuracy" and not found.failures
    best = found.summary.to_dict("records")
    assert [(row["optimizer.lr"], row["runs"], row["jobs"]) for row in best] == [
        ("0.02", 2, [1, 3]),
        ("0.01", 2, [0, 2]),
    ]
    assert [row["accuracy"] for row in best] == pytest.approx([0.2, 0.1])
    assert list(found.jobs.final) == [False] * 4 + [True] * 2 and set(found.jobs.status) == {"FINISHED"}
    html = found._repr_html_()
    assert "<th>optimizer.lr</th>" in html and found.sentences[0] in html and found.name in html
    with pytest.raises(ex.ConfigError, match="has no job 9. Allowed: 0, 1, 2, 3, 4, 5"):
        found.run(9)
    trained.runs.clear()
    again = ex.sweep("evaluate.test=true", seed=range(2), **settings)
    assert isinstance(again, ex.Sweep) and again.folder == found.folder and not trained.runs, "it is finished"
    assert ex.sweep("evaluate.test=true", "sweep.dry_run=true", seed=range(2), **settings) is None

    monkeypatch.setattr(scheduler, "run_jobs", lambda launcher, jobs, stop, ended: ended(0, 1.0, "ended by SIGKILL"))
    failed = ex.sweep(seed=7, **settings)
    assert isinstance(failed, ex.Sweep) and "ended by SIGKILL" in failed.failures[0]
    assert "ended by SIGKILL" in failed._repr_html_() and failed.winner is None
    with pytest.raises(ex.ConfigError, match="no job of these sweeps has finished"):
        ex.compare(failed)
