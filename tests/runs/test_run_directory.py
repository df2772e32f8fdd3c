"""The files of a run directory are read as they were written, and belong to the run that was asked for."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.config.schema import Config
from experiments.errors import ConfigError, Pruned
from experiments.runs import predictions
from experiments.runs.active_run import ActiveRun, open_run
from experiments.runs.curves import Curves
from experiments.runs.predictions import Prediction
from experiments.runs.run_directory import CONFIG, CURVES, FACTS, MANIFEST, METRICS, RunDirectory
from experiments.training.checkpoints import Checkpoints, TrainingState
from experiments.training.types import EpochRecord, Status

CAT = Prediction('a,"b"\n.png', "1" * 64, "Käfer", "猫", 0.75, False, {"Käfer": 0.25, "猫": 0.75})
DOG = Prediction("b.png", "2" * 64, "猫", "猫", 0.6, True, {"Käfer": 0.4, "猫": 0.6})


def test_predictions_are_read_as_they_were_written_from_a_file_and_from_a_table(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_predictions("validation", [CAT, DOG])
    assert directory.predictions("validation") == [CAT, DOG]
    assert predictions.from_rows(predictions.to_rows(predictions.to_table([CAT, DOG]))) == [CAT, DOG]
    with pytest.raises(FileNotFoundError):
        directory.predictions("test")


@pytest.mark.parametrize("name", [CONFIG, MANIFEST, METRICS, "predictions_validation.csv"])
def test_files_that_are_damaged_or_saved_by_a_spreadsheet_are_named(name: str, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_predictions("validation", [CAT, DOG])
    directory.write_metrics({"validation.loss": 0.5, "validation.accuracy": 0.75})
    images = [
        {"split": "train", "path": f"{at}.png", "class_name": "a", "label": 0, "sha256": "1", "mode": "RGB"}
        for at in range(9)
    ]
    directory.write_images(images, [], [], [])
    directory.write_config("data:\n  name: folder\nseed: 0\noutputs: out\n")
    read = {MANIFEST: directory.images, METRICS: directory.metrics, CONFIG: directory.config}.get(
        name, lambda: directory.predictions("validation")
    )
    whole = (tmp_path / name).read_bytes()
    assert read()
    damaged = (b"", whole[: len(whole) // 2], whole[:-9], whole.replace(b"," if b"," in whole else b":", b";"))
    for content in (*damaged, b"\xff" + whole):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=f"{name}: is not as this program has written it"):
            read()


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


def test_a_run_has_one_process_and_one_that_is_started_again_waits_for_the_last_to_end(
    tmp_path: Path, config: Callable[..., Config]
) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_facts({"command": {}})
    last = (tmp_path / ".run.lock").open("w")
    fcntl.flock(last, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="this run is still going on, in another process"):
        ActiveRun(directory, config(f"resume='{tmp_path}'"))
    threading.Timer(0.2, last.close).start()
    ActiveRun(directory, config("resume=auto")).end(Status.KILLED)
    assert directory.facts()["status"] == Status.KILLED


def test_what_a_run_has_left_whose_record_is_gone_is_not_gone_on_with(
    tmp_path: Path, config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.runs.active_run.HydraConfig", SimpleNamespace(get=lambda: None))
    monkeypatch.setattr("experiments.runs.active_run.format_command", lambda hydra: {})
    directory = RunDirectory(tmp_path)
    directory.checkpoints.mkdir()
    (tmp_path / CURVES).touch()
    with open_run(directory, config("resume=auto")):
        assert not directory.checkpoints.exists() and not (tmp_path / CURVES).exists()


@pytest.mark.parametrize("error, status", [
    (ValueError(), Status.FAILED), (SystemExit("by the regime"), Status.FAILED), (Pruned(), Status.PRUNED),
    (KeyboardInterrupt(), Status.KILLED),
])  # fmt: skip
def test_a_run_records_how_it_ends(
    error: BaseException, status: Status, tmp_path: Path, config: Callable[..., Config]
) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_facts({"command": {}})
    with pytest.raises(type(error)), open_run(directory, config("resume=auto")):
        raise error
    assert directory.facts()["status"] == status


@pytest.mark.parametrize("job", [False, True])
def test_a_job_of_a_sweep_keeps_a_smaller_state_than_a_run(
    job: bool, tmp_path: Path, config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.runs.active_run.LARGEST_KEPT_OF_JOB", 1)
    directory, record = RunDirectory(tmp_path), EpochRecord(0, "head", 0, 0, {"loss": 1.0})
    directory.write_facts({"command": {}})
    Checkpoints(directory.checkpoints).save("head", TrainingState([np.ones(9)], history=(record,)))
    Curves(tmp_path / CURVES, lambda _: None, lambda _: False).add(record)
    with open_run(directory, config("resume=auto", f"sweep.job={str(job).lower()}")):
        pass
    assert directory.checkpoints.exists() != job
