"""Searches: trials that are resumed, shared and pruned. test_sweeps.py has a whole one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.config.schema import Config
from experiments.errors import ConfigError, Pruned
from experiments.sweeps import sweep_directory
from experiments.sweeps.plan import InspectedJobs, Job
from experiments.sweeps.search import search as searches
from experiments.sweeps.search.space import Space
from experiments.tracking import liveness
from experiments.training import pruning
from experiments.training.types import EpochRecord, Status
from tests.sweeps.test_space import over

optuna = pytest.importorskip("optuna", reason="the extra `search` is not installed")

from experiments.sweeps.search import study as studies  # noqa: E402 - imports Optuna
from experiments.sweeps.search import trials  # noqa: E402 - imports Optuna


def states(study: Any) -> list[str]:
    return [trial.state.name for trial in study.trials]


def test_a_search_has_one_name_whatever_its_trials_workers_and_stores(config: Any) -> None:
    found = over("model.head.dropout=interval(0.0,0.5)")

    def search_name(made: Config, found: Space, identity: str = "data") -> str:
        return searches.search_name([made], found, identity)

    name = search_name(config("sweep.search=tpe"), found)
    assert search_name(config("sweep.search=tpe"), found, "other data") != name
    same = [
        "continue_from=/a/run",
        "sweep.trials=99",
        "sweep.jobs=4",
        "tracking=none",
        "outputs=/elsewhere",
        "runtime.threads=3",
    ]
    assert search_name(config("sweep.search=tpe", *same), found) == name
    for other in ("sweep.seed=1", "sweep.search=random", "objective=loss", "epochs=7", "sweep.pruner=median"):
        assert search_name(config("sweep.search=tpe", other), found) != name
    assert search_name(config("sweep.search=tpe"), over("model.head.dropout=interval(0.0,0.6)")) != name


# -- the study


def test_a_postgres_address_names_the_driver_of_the_extra() -> None:
    assert pruning.address("postgresql://me:secret@host/db") == "postgresql+psycopg://me:secret@host/db"
    assert pruning.address("postgresql+psycopg2://host/db") == "postgresql+psycopg2://host/db"
    assert pruning.address("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_an_unusable_storage_is_reported_without_its_password(config: Any) -> None:
    with pytest.raises(ConfigError) as reported:
        pruning.storage(config("sweep.storage=nonsense://me:secret@host/db"))
    assert "sweep.storage: cannot be used" in str(reported.value) and "secret" not in str(reported.value)


def test_without_optuna_a_search_reports_what_to_install(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"sweep.search: tpe needs Optuna.*pip install 'image-experiments\[search\]'"):
        pruning.need_optuna(config("sweep.search=tpe"))


def test_a_trial_is_left_by_a_process_that_is_gone_and_only_by_such(config: Any) -> None:
    study = optuna.create_study()
    mine, gone, silent = study.ask(), study.ask(), study.ask()
    mine.set_user_attr(studies.OWNER, liveness.owner())
    process = subprocess.Popen(["sleep", "60"])
    gone.set_user_attr(studies.OWNER, liveness.owner(process.pid))
    process.kill()
    process.wait()
    elsewhere = {**liveness.owner(), "owner.host": "elsewhere", "owner.heartbeat": str(int(time.time() - 3600))}
    silent.set_user_attr(studies.OWNER, elsewhere)
    study.ask()  # by a worker that has not recorded its owner yet
    assert [studies.is_abandoned(trial) for trial in study.trials] == [False, True, True, False]


def behind(config: Any, tmp_path: Path, *overrides: str) -> tuple[Config, Any, Any]:
    """The configuration of a trial's job, its trial, and the study with six trials that are far better."""
    checked: Config = config(
        "sweep.pruner=median", "epochs=12", f"sweep.storage=sqlite:///{tmp_path}/s.db", *overrides,
    )  # fmt: skip
    study = optuna.create_study(storage=pruning.storage(checked), study_name="study", direction="maximize")
    study.set_user_attr(pruning.EPOCHS, 12)
    for _ in range(6):
        good = study.ask()
        for step in range(12):
            good.report(0.9, step)
        study.tell(good, 0.9)
    trial = study.ask()
    sweep = checked.sweep.model_copy(update={"trial": f"study/{trial.number}"})
    return checked.model_copy(update={"sweep": sweep}), study, trial


def record(epoch: int, accuracy: float, phase: str) -> EpochRecord:
    return EpochRecord(epoch, phase, epoch, 0, {"validation_accuracy": accuracy, "validation_loss": 1 - accuracy})


def test_a_job_reports_its_last_phase_and_ends_when_it_is_behind(config: Any, tmp_path: Path) -> None:
    job, study, trial = behind(config, tmp_path, "regime=finetune")
    seen: list[EpochRecord] = []
    reported = pruning.reporting(job, seen.append, "finetune")
    reported(record(0, 0.1, "head"))
    assert study.trials[trial.number].intermediate_values == {}, "the head's phase is not compared"
    reported(record(0, 0.1, "finetune"))
    reported(record(1, 0.2, "finetune"))
    reported(record(0, 0.1, "finetune"))  # a run that goes on from a checkpoint
    assert study.trials[trial.number].intermediate_values == {0: 0.1, 1: 0.2}
    with pytest.raises(Pruned, match=r"Pruned after epoch 3 of 12: validation_accuracy 0\.3 is behind"):
        reported(record(2, 0.3, "finetune"))
    assert [epoch.epoch for epoch in seen] == [0, 0, 1, 0, 2], "what it is behind with is recorded"


def test_a_trial_in_front_is_not_pruned_and_nor_is_a_last_epoch(config: Any, tmp_path: Path) -> None:
    job, _, _ = behind(config, tmp_path, "regime=bottleneck")
    reported = pruning.reporting(job, lambda epoch: None, "head")
    for epoch in range(11):
        reported(record(epoch, 0.95, "head"))
    pruning.reporting(job.model_copy(update={"epochs": 5}), lambda epoch: None, "head")(record(4, 0.1, "head"))


def test_a_search_by_loss_compares_losses(config: Any, tmp_path: Path) -> None:
    job, study, trial = behind(config, tmp_path, "regime=bottleneck", "objective=loss")
    pruning.reporting(job, lambda epoch: None, "head")(record(0, 0.75, "head"))
    assert study.trials[trial.number].intermediate_values == {0: 0.25}


def test_a_study_that_is_away_or_over_costs_a_run_nothing(config: Any, tmp_path: Path) -> None:
    job, study, trial = behind(config, tmp_path, "regime=bottleneck")
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    pruning.reporting(job, lambda epoch: None, "head")(record(5, 0.1, "head"))
    other = job.sweep.model_copy(update={"trial": "no_such/1"})
    pruning.reporting(job.model_copy(update={"sweep": other}), lambda epoch: None, "head")(record(5, 0.1, "head"))


class Drawing(trials.Worker):
    """A worker whose trials are worth what they have drawn, and nothing is trained."""

    drawn: tuple[dict[str, str], ...] = ()

    def run(self, batch: Any) -> None:
        for trial in batch:
            self.drawn += (trial.values,)
            time.sleep(0.02)
            self.end(trial, optuna.trial.TrialState.COMPLETE, sum(map(len, trial.values.values())))


def drawing(config: Any, tmp_path: Path, found: Space, *overrides: str) -> Drawing:
    checked = config(f"sweep.storage=sqlite:///{tmp_path}/s.db", "sweep.search=random", "sweep.jobs=2", *overrides)
    study = optuna.create_study(storage=pruning.storage(checked), study_name="study", load_if_exists=True)
    session: Any = SimpleNamespace(config=checked, folder=tmp_path, stop_reason=lambda jobs: None)
    return Drawing(session, found, study)


def test_a_point_that_was_sampled_before_is_reported_and_not_run_again(config: Any, tmp_path: Path) -> None:
    worker = drawing(config, tmp_path, over("a=x,yy", "b=1,2"), "sweep.trials=15")
    worker.work()
    assert states(worker.study) == ["COMPLETE"] * 15
    assert len(worker.drawn) == len({tuple(values.items()) for values in worker.drawn})
    assert {trial.value for trial in worker.study.trials if trial.params["a"] == "yy"} == {3.0}


def test_what_failed_is_tried_once_at_every_start_and_in_its_place(config: Any, tmp_path: Path) -> None:
    found = over("a=x,yy", "b=1,2")
    tried: list[tuple[int, str]] = []

    def failing(worker: Drawing) -> Drawing:
        def run(batch: Any) -> None:
            for trial in batch:
                tried.append((trial.place, trial.values["a"] + trial.values["b"]))
                job = Job(
                    trial.place, [], trial.values, worker.session.config, tmp_path, status=Status.FAILED, reason="why"
                )
                trial.jobs = [job]
                worker.jobs.append(job)
                worker.report_result(trial)

        worker.run = run  # type: ignore[method-assign]
        worker.work()
        return worker

    first = failing(drawing(config, tmp_path, found, "sweep.trials=12", "sweep.jobs=1"))
    assert set(states(first.study)) == {"FAIL"} and len(first.failed) == 12, "a start ends, though everything fails"
    assert len(tried) == len(set(tried)) == 4
    failing(drawing(config, tmp_path, found, "sweep.trials=12", "sweep.jobs=1"))
    assert len(tried) == 8 and set(tried[4:]) == set(tried[:4])


def test_a_point_that_cannot_be_run_fails_alone_and_a_lost_store_ends_the_start(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = False

    def inspect_jobs(jobs: list[Job]) -> InspectedJobs:
        if lost:
            raise ConfigError("the tracking store is away")
        if any(job.values.get("b") == "2" for job in jobs):
            raise ConfigError("b: must be at most 1")
        for job in jobs:
            job.identity = str(job.values)
        return InspectedJobs([], False, None, True)

    def start(found: Space, *overrides: str) -> Drawing:
        worker = drawing(config, tmp_path, found, *overrides)

        def compose(trial: Any) -> bool:
            trial.jobs = [Job(trial.place, [], trial.values, worker.session.config, tmp_path / str(trial.place))]
            return True

        def launch(jobs: Any) -> None:
            for job in jobs:
                job.status = Status.FINISHED

        for name, stub in {"compose": compose, "launch": launch, "run": partial(trials.Worker.run, worker)}.items():
            monkeypatch.setattr(worker, name, stub)
        monkeypatch.setattr(worker.session, "prepare", lambda jobs: None, raising=False)
        monkeypatch.setattr(
            worker.session, "write_jobs", lambda jobs: [job.write(tmp_path) for job in jobs], raising=False
        )
        return worker

    monkeypatch.setattr(trials, "inspect_jobs", inspect_jobs)
    monkeypatch.setattr(sweep_directory, "results", lambda *_: {"validation.accuracy": 0.5})
    worker = start(over("a=x,yy", "b=1,2"), "sweep.trials=12")
    worker.work()
    ended = {trial.params["b"]: trial for trial in worker.study.trials}
    assert ended["1"].state.name == "COMPLETE" and ended["2"].state.name == "FAIL"
    assert ended["2"].user_attrs[studies.REASON] == "b: must be at most 1"
    (record, *_) = sweep_directory.records(tmp_path)
    assert record["status"] == "FAILED" and sweep_directory.is_free(tmp_path / str(record["number"]), "an identity")
    lost = True
    again = start(over("a=x,yy", "b=1,2"), "sweep.trials=30")
    with pytest.raises(ConfigError, match="store is away"):
        again.work()
    assert "WAITING" in states(again.study), "its trials are requeued"


def test_workers_of_one_study_share_its_trials(config: Any, tmp_path: Path) -> None:
    workers = [drawing(config, tmp_path, over("a=interval(0.0,1.0)"), "sweep.trials=12") for _ in range(3)]
    threads = [threading.Thread(target=worker.work) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states(workers[0].study).count("COMPLETE") == 12
    values = [point["a"] for worker in workers for point in worker.drawn]
    assert len(values) == len(set(values)) == 12, "nobody draws what another has drawn"
    assert "RUNNING" not in states(workers[0].study)


def test_what_is_interrupted_is_asked_for_again(config: Any, tmp_path: Path) -> None:
    worker = drawing(config, tmp_path, over("a=interval(0.0,1.0)"), "sweep.trials=3")

    def interrupted(batch: Any) -> None:
        raise KeyboardInterrupt

    worker.run = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        worker.work()
    left = [trial.system_attrs["fixed_params"] for trial in worker.study.trials if trial.state.name == "WAITING"]
    assert len(left) == 2
    again = drawing(config, tmp_path, over("a=interval(0.0,1.0)"), "sweep.trials=3")
    again.work()
    done = [trial for trial in again.study.trials if trial.state.name == "COMPLETE"]
    assert [trial.params for trial in done[:2]] == left and len(done) == 3
    assert [trial.user_attrs[studies.PLACE] for trial in done[:2]] == [0, 1]
