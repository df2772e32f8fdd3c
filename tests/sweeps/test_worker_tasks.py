"""Which earlier runs a sweep reuses, as the task finds that inspects its jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.config.schema import Config
from experiments.runs.run_directory import RunDirectory
from experiments.sweeps import worker_tasks
from experiments.tracking import queries
from experiments.tracking.queries import RunFacts
from experiments.tracking.upload import UNSENT


def test_a_run_that_ended_while_the_server_was_away_is_not_taken_for_deleted(
    config: Callable[..., Config], own_outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow has it as RUNNING until `experiments sync`; nor is a run deleted that is in another experiment."""
    uri = "http://server:5000"
    names = ("unsent", "deleted", "elsewhere", "pruned")
    for name in names:
        facts: dict[str, Any] = {
            "command": {},
            "identity": name,
            "status": "PRUNED" if name == "pruned" else "FINISHED",
            "run_id": f"{name} id",
            "store": uri,
        }
        RunDirectory(own_outputs / "runs" / name).write_facts(facts)
    (own_outputs / "runs" / "unsent" / UNSENT).touch()
    monkeypatch.setattr(queries, "deleted", lambda store, run_ids: {"deleted id"} & set(run_ids))
    ours = config(f"tracking.uri={uri}")
    known = worker_tasks.known_runs(ours, set(names), {})
    assert known["unsent"] == {
        "status": "FINISHED", "folder": str(own_outputs / "runs" / "unsent"), "run_id": "unsent id", "threads": None
    }  # fmt: skip
    assert known["deleted"] == {"deleted": "deleted id"} and known.keys() == {"unsent", "deleted"}


def test_the_latest_of_several_finished_runs_is_reused(config: Callable[..., Config], own_outputs: Path) -> None:
    """So that one that was trained again, with `sweep.rerun`, is not given up for the one before."""
    ended = {"runs/a": 5, "sweeps/b/0": 9, "sweeps/b/1": 9, "sweeps/c/0": 7}
    for name, time in ended.items():
        facts = {"command": {}, "identity": "same", "status": "FINISHED", "ended": time}
        RunDirectory(own_outputs / name).write_facts(facts)
    RunDirectory(own_outputs / "sweeps/d/0").write_facts({"command": {}, "identity": "same", "status": "KILLED"})
    found = worker_tasks.known_runs(config("tracking=none"), {"same"}, {})
    assert (found["same"]["status"], found["same"]["folder"]) == ("FINISHED", str(own_outputs / "sweeps/b/0"))


def test_the_usual_duration_is_the_median_of_runs_like_these(config: Callable[..., Config]) -> None:
    ours = config("regime=bottleneck", "epochs=7")
    alike = {"regime": "bottleneck", "model": ours.model.name, "epochs": "7", "batch_size": str(ours.batch_size)}

    def seconds(*runs: tuple[float | None, dict[str, str], str]) -> float | None:
        found = {
            str(at): RunFacts(str(at), "", alike | params, {} if took is None else {"total_seconds": took},
                              {"data_fingerprint": data})
            for at, (took, params, data) in enumerate(runs)
        }  # fmt: skip
        return worker_tasks.usual_seconds(ours, "mine", found)

    others = [(900.0, {key: "another"}, "mine") for key in alike]
    same = [(took, dict[str, str](), "mine") for took in (10.0, 12.0, 100.0, None)]
    assert seconds(*others, *same, (900.0, {}, "other images")) == 12 and seconds(*others) is None
