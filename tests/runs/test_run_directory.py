"""The files of a run directory are read as they were written, and belong to the run that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.errors import ConfigError
from experiments.runs import predictions
from experiments.runs.predictions import Prediction
from experiments.runs.run_directory import FACTS, METRICS, RunDirectory

CAT = Prediction('a,"b"\n.png', "1" * 64, "Käfer", "猫", 0.75, False, {"Käfer": 0.25, "猫": 0.75})
DOG = Prediction("b.png", "2" * 64, "猫", "猫", 0.6, True, {"Käfer": 0.4, "猫": 0.6})


def test_predictions_are_read_as_they_were_written_from_a_file_and_from_a_table(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_predictions("validation", [CAT, DOG])
    assert directory.predictions("validation") == [CAT, DOG]
    assert predictions.from_rows(predictions.to_rows(predictions.to_table([CAT, DOG]))) == [CAT, DOG]
    with pytest.raises(FileNotFoundError):
        directory.predictions("test")


def test_metrics_count_only_for_the_finished_run_of_the_identity(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    assert directory.facts() == {} and directory.finished("x") is None
    facts = {"command": {}, "identity": "x", "status": "FINISHED"}
    directory.write_facts(facts)
    assert directory.finished("x") is None, "there are no metrics"
    directory.write_metrics({"validation.loss": 0.5})
    assert directory.finished("x") == {"validation.loss": 0.5}
    assert directory.finished("y") is None and directory.finished("") is None
    directory.write_facts(facts | {"status": "KILLED"})
    assert directory.finished("x") is None
    (directory.folder / FACTS).write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        directory.finished("x")
    fetched = RunDirectory(tmp_path / "job")
    fetched.write_fetched({METRICS: b'{"validation.loss": 1.0}'}, "z", "id")
    assert fetched.finished("z") == {"validation.loss": 1.0} and fetched.facts() == {}
