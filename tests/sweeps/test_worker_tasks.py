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
from experiments.tracking.upload import UNSENT


def test_a_run_that_ended_while_the_server_was_away_is_not_taken_for_deleted(
    config: Callable[..., Config], own_outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow has it as RUNNING until `experiments sync`; nor is a run deleted that is in another experiment."""
    uri = "http://server:5000"
    for name in ("unsent", "deleted", "elsewhere"):
        facts: dict[str, Any] = {
            "command": {},
            "identity": name,
            "status": "FINISHED",
            "run_id": f"{name} id",
            "store": uri,
        }
        RunDirectory(own_outputs / "runs" / name).write_facts(facts)
    (own_outputs / "runs" / "unsent" / UNSENT).touch()
    monkeypatch.setattr(queries, "deleted", lambda store, run_ids: {"deleted id"} & set(run_ids))
    ours = config(f"tracking.uri={uri}")
    known = worker_tasks.known_runs(ours, {"unsent", "deleted", "elsewhere"}, {})
    assert known["unsent"] == {
        "status": "FINISHED", "folder": str(own_outputs / "runs" / "unsent"), "run_id": "unsent id", "threads": None
    }  # fmt: skip
    assert known["deleted"] == {"deleted": "deleted id"} and "elsewhere" not in known
