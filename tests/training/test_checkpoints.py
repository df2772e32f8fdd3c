"""Checkpoints are complete or absent; damaged ones are reported and never loaded."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import keras
import numpy as np
import pytest
from damage import flip_bit

from experiments.storage.atomic_files import file_hash
from experiments.training import checkpoints
from experiments.training.types import EpochRecord

HISTORY = (
    EpochRecord(0, "head", 0, 1_700_000_000_000, {"loss": 0.1 + 0.2, "accuracy": 0.5}),
    EpochRecord(1, "head", 1, 1_700_000_001_000, {"loss": 1e-9, "accuracy": 1.0}),
)


def small(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((3,))
    return keras.Model(inputs, keras.layers.Dense(2, name="logits")(inputs))


def assert_same_weights(model: keras.Model, other: keras.Model) -> None:
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_weights_and_history_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet" / "head"
    saved, loaded = small(1), small(2)
    checkpoints.save(folder, saved, HISTORY)
    assert checkpoints.load(folder, loaded) == HISTORY
    assert_same_weights(saved, loaded)
    assert [path.name for path in folder.parent.iterdir()] == ["head"]


def test_nothing_there_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoints.load(tmp_path / "head", small(0)) is None
    assert not caplog.records


@pytest.mark.parametrize("file", [checkpoints.ARRAYS, checkpoints.META])
@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink])
def test_damage_is_reported_and_not_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: Callable[[Path], Any]
) -> None:
    folder = tmp_path / "head"
    checkpoints.save(folder, small(1), HISTORY)
    damage(folder / file)
    model = small(2)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.load(folder, model) is None
    assert str(folder) in caplog.text and "damaged" in caplog.text
    assert_same_weights(model, small(2))


def test_a_history_that_was_changed_is_damage(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "head", small(1), HISTORY)
    meta = tmp_path / "head" / checkpoints.META
    text = meta.read_text(encoding="utf-8")
    assert text.count('"accuracy": 0.5') == 1
    meta.write_text(text.replace('"accuracy": 0.5', '"accuracy": 0.6'), encoding="utf-8")
    assert checkpoints.load(tmp_path / "head", small(2)) is None
    assert "does not match its sha256" in str(checkpoints.read(tmp_path / "head"))


def test_a_save_that_fails_leaves_nothing_and_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "head"
    model = small(1)
    checkpoints.save(folder, model, HISTORY)
    broken = small(2)

    def fails(path: Path, **arrays: np.ndarray) -> NoReturn:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", fails)
    for target in (folder, tmp_path / "other"):
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(target, broken, HISTORY)
    assert [path.name for path in tmp_path.iterdir()] == ["head"]
    loaded = small(3)
    assert checkpoints.load(folder, loaded) == HISTORY
    assert_same_weights(loaded, model)


def test_saving_again_replaces(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "head", small(1), HISTORY)
    (tmp_path / "head" / "stale").touch()
    second = small(2)
    checkpoints.save(tmp_path / "head", second, HISTORY[:1])
    loaded = small(3)
    assert checkpoints.load(tmp_path / "head", loaded) == HISTORY[:1]
    assert_same_weights(loaded, second)
    assert sorted(path.name for path in (tmp_path / "head").iterdir()) == ["arrays.npz", "meta.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


def save_often(folder: Path, model: keras.Model) -> None:
    for _ in range(50):
        checkpoints.save(folder, model, HISTORY)


def test_processes_that_save_the_same_head_do_not_break_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=save_often, args=(tmp_path / "head", small(1))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["head"]
    assert checkpoints.load(tmp_path / "head", small(2)) == HISTORY


def test_a_head_replaced_while_it_is_read_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "head"
    checkpoints.save(folder, small(1), HISTORY)
    right = file_hash

    def then_gone(path: Path) -> str:
        found = right(path)
        shutil.rmtree(folder)
        return found

    monkeypatch.setattr(checkpoints, "file_hash", then_gone)
    assert checkpoints.load(folder, small(2)) is None


def test_damaged_checkpoints_do_not_displace_those_of_the_epochs_that_are_trained_again(tmp_path: Path) -> None:
    def state(epochs: int) -> checkpoints.TrainingState:
        return checkpoints.TrainingState([np.zeros(3)], [], {}, False, HISTORY[:1] * epochs)

    first = checkpoints.Checkpoints(tmp_path)
    for epochs in (8, 9):
        first.save("head", state(epochs))
        truncate(tmp_path / "head" / f"{epochs:05}" / checkpoints.ARRAYS)
    again = checkpoints.Checkpoints(tmp_path)
    assert again.latest("head") is None
    for epochs in (1, 2, 3):
        again.save("head", state(epochs))
    assert sorted(path.name for path in (tmp_path / "head").iterdir()) == ["00002", "00003"]
