"""The jobs that a sweep's command line expands to."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from rich.console import Console

from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.sweeps import plan, sweeper, terminal
from experiments.sweeps.launchers import local, processes
from experiments.sweeps.plan import InspectedJobs, Job
from experiments.system import paths, redaction, signals


@pytest.fixture
def context() -> Iterator[HydraContext]:
    GlobalHydra.instance().clear()
    loader = ConfigLoaderImpl(create_config_search_path(str(paths.CONF)))
    yield HydraContext(config_loader=loader, callbacks=None)  # type: ignore[arg-type]
    GlobalHydra.instance().clear()


@pytest.mark.parametrize(
    ("runs", "text"), [(1, "about 8 s"), (3, "about 16 s"), (22, "about 88 s"), (30, "about 2 min")]
)
def test_a_plan_has_a_duration_of_seconds_or_minutes(runs: int, text: str) -> None:
    inspection = InspectedJobs([], features_missing=False, seconds=8.0, held_out=False)
    assert terminal.duration(inspection, runs, slots=2) == [f"  {text}: runs like these took 8 s"]


@pytest.mark.parametrize("held_out, fold, several", [(True, "null", True), (False, "0", True), (False, "null", False)])
def test_a_plan_has_as_many_final_runs_as_there_will_be(
    held_out: bool, fold: str, several: bool, config: Callable[..., Config]
) -> None:
    jobs = [Job(at, [f"data.fold={fold}"], {"seed": str(at)}, config(f"seed={at}"), Path()) for at in range(2)]
    inspection = InspectedJobs([], features_missing=False, seconds=None, held_out=held_out)
    finals = "runs, one for each of 2 seeds" if several else "run"
    assert terminal.grid_plan("a", jobs, inspection)[0].endswith(f", then the winner's final {finals}")


@pytest.mark.parametrize("width, table", [
    (80, [["1", "lr=0.00047643", "78.8%", "[71.4,", "84.8]", "2", "20", "1000,1001"],
          ["head.dropout=0.099983"], ["unfrozen_blocks=1"]]),
    (100, [["1", "0.00047643", "0.099983", "1", "78.8%", "[71.4,", "84.8]", "2", "20", "1000,1001"]]),
])  # fmt: skip
def test_the_table_of_a_summary_is_wrapped_between_values(width: int, table: list[list[str]], tmp_path: Path) -> None:
    keys = ["optimizer.lr", "model.head.dropout", "regime.unfrozen_blocks"]
    row = ["1", "0.00047643", "0.099983", "1", "78.8% [71.4, 84.8]", "2", "20", "1000,1001", ""]
    lines = [["", *keys, "accuracy", "runs", "seconds", "jobs", ""], row]
    console = Console(width=width, record=True, file=io.StringIO())
    terminal.show_summary(console, {"table": lines, "objective": "accuracy", "sentences": [], "failures": []}, tmp_path)
    assert [line.split() for line in console.export_text().splitlines() if line.strip()][2:-1] == table


def test_the_table_of_a_ladder_is_whole_at_80_columns_and_its_words_too(tmp_path: Path) -> None:
    header = ["", "rung", "accuracy", "gain", "over", "runs", "seconds", "jobs", ""]
    first = ["use", "bottleneck", "92.0% [85.8, 98.2]", "", "", "5", "7", "0-4", ""]
    second = ["", "one_stage", "93.6% [91.7, 95.5]", "+1.5 [-4.1, +7.2]", "bottleneck", "5", "33", "5-9", ""]
    console = Console(width=80, record=True, file=io.StringIO())
    summary = {"table": [header, first, second], "objective": "accuracy", "sentences": [], "failures": []}
    terminal.show_summary(console, summary, tmp_path)
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert lines[0] == header[1:-1]
    assert lines[2] == " ".join(first).split()
    assert lines[3] == ["one_stage", "93.6%", "[91.7,", "95.5]", "+1.5", "bottleneck", "5", "33", "5-9"]
    assert lines[4:6] == [["[-4.1,"], ["+7.2]"]]


@pytest.mark.parametrize("objective, target, allowed", [
    ("accuracy", 95, "greater than 0 and at most 1,"), ("accuracy", 0, "greater than 0"), ("matthews", -0.5, ""),
    ("loss", 3, ""), ("loss", -1, "greater than 0,"), ("accuracy", 0.95, ""),
])  # fmt: skip
def test_a_target_that_the_objective_cannot_have_is_refused(
    config: Any, objective: str, target: float, allowed: str
) -> None:
    given = config(f"objective={objective}", f"sweep.target={target}")
    with pytest.raises(ConfigError, match=f"sweep.target: must be {allowed}") if allowed else nullcontext():
        sweeper.validate_target(given)


def master(context: HydraContext, *overrides: str) -> DictConfig:
    return context.config_loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)


def test_a_grid_is_every_combination_in_the_order_typed(context: HydraContext) -> None:
    unfolded = plan.grid(plan.parse(["epochs=3", "seed=0,1", "optimizer.lr=choice(0.1,0.2)"], context))
    assert [values for _, values in unfolded] == [
        {"seed": "0", "optimizer.lr": "0.1"}, {"seed": "0", "optimizer.lr": "0.2"},
        {"seed": "1", "optimizer.lr": "0.1"}, {"seed": "1", "optimizer.lr": "0.2"},
    ]  # fmt: skip
    assert unfolded[0][0] == ["epochs=3", "seed=0", "optimizer.lr=0.1"]


def test_a_range_ends_before_its_end_and_the_last_override_of_a_key_wins(context: HydraContext) -> None:
    unfolded = plan.grid(plan.parse(["epochs=1,2", "epochs=range(2,8,2)"], context))
    assert [values["epochs"] for _, values in unfolded] == ["2", "4", "6"]


@pytest.mark.parametrize("override", ["optimizer=glob(zzz*)", "seed=range(3,3)"])
def test_a_sweep_without_a_value_is_refused(context: HydraContext, override: str) -> None:
    with pytest.raises(ConfigError, match=f"at least one value.* Received: {re.escape(override)}$"):
        plan.grid(plan.parse([override, "epochs=1,2"], context))


def test_every_faulty_job_is_named_in_one_error(context: HydraContext) -> None:
    unfolded = plan.grid(plan.parse(["model.head.dropout=0.5,1.5", "epochs=3,0"], context))
    with pytest.raises(ConfigError) as error:
        plan.compose(unfolded, context, master(context))
    assert "1.5" in str(error.value) and "epochs: must be" in str(error.value)


@pytest.mark.parametrize("given, errors", [
    (["batch_size=0", "model.head.dropout=0.5,1.5", "seed=0,1"], {"batch_size": "0", "model.head.dropout": "1.5"}),
    (["epochs=3,1", "schedule.warmup=2", "seed=0,1"], {"schedule.warmup": "2 (with epochs=1)"}),
])  # fmt: skip
def test_an_error_of_several_jobs_is_one_line_with_the_values_that_they_have_in_common(
    context: HydraContext, given: list[str], errors: dict[str, str]
) -> None:
    with pytest.raises(ConfigError) as error:
        plan.compose(plan.grid(plan.parse(given, context)), context, master(context))
    title, *lines = str(error.value).splitlines()
    assert title == "The configuration cannot be used:" and len(lines) == len(errors)
    assert {line.strip().partition(":")[0]: line.rpartition("Received: ")[2] for line in lines} == errors


def test_an_error_of_rungs_that_set_other_keys_is_one_line(context: HydraContext) -> None:
    values = [{"regime": "finetune", "regime.unfrozen_blocks": "2"}, {"regime": "finetune"}, {"regime": "scratch"}]
    jobs = [([f"{key}={value}" for key, value in own.items()], own) for own in values]
    with pytest.raises(ConfigError, match=r"epochs: must be .*Received: 0$") as error:
        plan.compose([([*overrides, "epochs=0"], own) for overrides, own in jobs], context, master(context))
    assert len(str(error.value).splitlines()) == 2
    with pytest.raises(ConfigError, match=r"epochs: must be .*Received: 0 \(with regime=finetune\)$"):
        plan.compose(
            [([*overrides, f"epochs={int(own['regime'] == 'scratch')}"], own) for overrides, own in jobs],
            context, master(context),
        )  # fmt: skip


def test_a_sweep_has_the_same_name_whatever_runs_it(context: HydraContext) -> None:
    def name(*overrides: str, data: str = "a") -> str:
        unfolded = plan.grid(plan.parse(overrides, context))
        composed = plan.compose(unfolded, context, master(context))
        jobs = [Job(0, [], {}, job.config, Path(), identity=data) for job in composed]
        return plan.sweep_name(jobs[0].config, jobs)

    assert name("epochs=3,4") == name("epochs=4,3", "sweep.jobs=2") == name("epochs=3,4", "progress=none")
    assert name("epochs=3,4") == name("epochs=3,4", "continue_from=/a/run"), "the identities cover it"
    assert name("epochs=3,4") != name("epochs=3,5")
    assert name("epochs=3,4") != name("epochs=3,4", "seed=1")
    assert name("epochs=3,4") != name("epochs=3,4", data="b"), "of other data it is another sweep"


@pytest.mark.parametrize("experiment", ["above_95", "above_95_search"])
def test_the_exercise_brings_its_space(context: HydraContext, experiment: str) -> None:
    composed = master(context, f"experiment={experiment}", "data.root=x")
    assert set(composed.hydra.sweeper.params) >= {"model.head.dropout", "model.head.l2", "regime.unfrozen_blocks"}
    if experiment == "above_95":
        given = [f"{key}={value}" for key, value in composed.hydra.sweeper.params.items()]
        unfolded = plan.grid(plan.parse([f"experiment={experiment}", "data.root=x", *given], context))
        configs = [job.config for job in plan.compose(unfolded, context, composed)]
        assert len(configs) == 18
        assert {config.regime.unfrozen_blocks for config in configs} == {1, 2}


def test_jobs_queue_for_the_gpus_that_the_process_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("2,5", "2,5,-1,0", "2,5,"):  # CUDA ignores what follows an invalid name
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert local.visible_gpus() == ["2", "5"]
    for none in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert local.visible_gpus() == []


def test_gpus_are_looked_for_when_jobs_start_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the error of a wrong sweep would wait for nvidia-smi."""
    asked: list[str] = []
    monkeypatch.setattr(local, "visible_gpus", lambda: asked.append("gpus") or ["0"])
    launcher = local.LocalLauncher()
    assert not asked
    for _ in range(2):
        with launcher.connected():
            assert launcher.gpu_jobs == {"0": 0}
            launcher.gpu_jobs["0"] += 1  # a job that is stopped is never seen to end


def test_a_process_has_the_environment_of_the_one_that_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork server keeps the environment of the first sweep; a notebook may have set a password since."""
    started: list[tuple[Any, Any]] = []

    class Context:
        def set_forkserver_preload(self, modules: list[str]) -> None:
            pass

        def Process(self, target: Any, args: Any) -> Any:
            return SimpleNamespace(start=lambda: started.append((target, args)))

    monkeypatch.setattr(multiprocessing, "get_context", lambda method: Context())
    monkeypatch.setenv("SINCE", "new")
    seen: list[str | None] = []
    monkeypatch.setattr(redaction, "install", lambda: None)
    task = Mock(function=lambda name: seen.append(os.environ.get(name)))
    monkeypatch.setitem(sys.modules, "of_a_task", task)
    processes.start("of_a_task", "function", "SINCE")
    monkeypatch.delenv("SINCE")
    ((target, arguments),) = started
    target(*arguments)
    assert seen == ["new"]


@pytest.mark.parametrize(
    ("code", "words"), [(0, None), (1, "exit code 1"), (-9, "SIGKILL"), (143, "SIGTERM"), (255, "exit code 255")]
)
def test_an_exit_code_in_words(code: int, words: Any) -> None:
    printed = processes.failure(code)
    assert printed is None if words is None else words in str(printed)


def test_an_interrupted_task_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is interrupted, too, by the Ctrl-C that the sweep's process reports."""
    monkeypatch.setattr(redaction, "install", lambda: None)
    for error, code in ((KeyboardInterrupt(), 130), (signals.Stopped(signal.SIGTERM), 143)):
        monkeypatch.setitem(sys.modules, "of_a_task", Mock(function=Mock(side_effect=error)))
        with pytest.raises(SystemExit) as stop:
            processes.invoke("of_a_task", "function")
        assert stop.value.code == code


@pytest.mark.parametrize("files", [["head"], ["head", "unfrozen"], ["head", "backbone"]])
def test_a_job_can_be_evaluated_where_all_that_it_trained_is_kept(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "metrics.json").write_text("{}")
    for name in files:
        (tmp_path / "weights" / f"{name}.weights.h5").touch()

    def record(status: str, **more: list[str]) -> None:
        facts = {"command": {}, "identity": "own", "status": status, **more}
        (tmp_path / "run.json").write_text(json.dumps(facts))

    record("FAILED", weights=files)
    assert not plan.has_weights(tmp_path, "own")
    record("FINISHED", weights=files)
    assert plan.has_weights(tmp_path, "own") and not plan.has_weights(tmp_path, "another")
    without: tuple[dict[str, list[str]], ...] = ({}, {"weights": []})
    for undeclared in without:  # by a regime that does not declare what it trains
        record("FINISHED", **undeclared)
        assert not plan.has_weights(tmp_path, "own")
    record("FINISHED", weights=files)
    (tmp_path / "weights" / f"{files[-1]}.weights.h5").unlink()
    assert not plan.has_weights(tmp_path, "own")


def test_keys_are_shown_without_their_group_where_that_is_unambiguous() -> None:
    keys = ["regime.unfrozen_blocks", "optimizer.lr", "regime.head_optimizer.lr", "augmentation.seed", "seed"]
    assert plan.short_keys(keys) == ["unfrozen_blocks", "lr", "head_optimizer.lr", "augmentation.seed", "seed"]
    assert plan.short_keys(["schedule.warmup", "other.warmup"]) == ["schedule.warmup", "other.warmup"]
