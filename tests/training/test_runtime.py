"""Runtime settings (threads, precision, devices): what is set before TensorFlow starts, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import composition
import keras
import pytest
import tensorflow as tf

from experiments.storage.csv_files import read_rows
from experiments.training import runtime

# TensorFlow's settings hold for a process: these cases have one, with two virtual devices that stand for two GPUs.
START = """
import json, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tensorflow.python.framework.config import is_op_determinism_enabled
from experiments import run
from experiments.train import main
run.save_figures = run.run_report.write = lambda *_: None  # nothing here looks at them
ended = {}
for name, overrides in json.loads(sys.argv[1]).items():
    sys.argv[1:] = overrides
    try:
        main()
        ended[name] = ""
    except SystemExit as error:
        ended[name] = str(error)
print(json.dumps([ended, tf.config.threading.get_intra_op_parallelism_threads(), is_op_determinism_enabled()]))
"""
# Plain SGD, which does not blow rounding up.
SGD = ("optimizer=sgd", "optimizer.lr=0.01", "optimizer@regime.head_optimizer=sgd")
CASES = {
    "scratch 1": ("regime=scratch", *SGD, "runtime.threads=1"),  # the first: threads are set before anything runs
    "scratch 2": ("regime=scratch", *SGD, "runtime.devices=2"),
    "half": ("runtime.precision=mixed_float16",),
    "three": ("runtime.devices=3", "batch_size=12"),
    # The last: determinism stays on.
    "bfloat16": ("regime=scratch", *SGD, "runtime.precision=mixed_bfloat16", "runtime.deterministic=true"),
}


class Ran(NamedTuple):
    folder: Path
    ended: dict[str, str]  # what a case ended with: nothing, or the text of its error
    threads: int
    deterministic: bool

    def curves(self, name: str) -> list[dict[str, str]]:
        return read_rows(self.folder / name / "curves.csv")


def start(folder: Path, drawn: Path, cases: Mapping[str, Sequence[str]]) -> Ran:
    """Runs them one after the other in one process: 24 images in batches of 10, the last one smaller."""
    common = [
        "data=folder", f"data.root={drawn}", "data.image_size=48", "tracking=none", "progress=none", "epochs=2",
        "batch_size=10", "regime.head_epochs=2", "regime.views=2", "model.weights=null", "model.head.pooling=average",
        "model.head.dropout=0", "evaluate.test=false", f"outputs={folder}", "model.layers.block1.filters=8",
        "model.layers.block2.filters=8", "model.layers.block3.filters=8",
    ]  # fmt: skip
    lines = {name: [*common, *case, f"hydra.run.dir='{folder}/{name}'"] for name, case in cases.items()}
    done = subprocess.run(
        [sys.executable, "-c", START, json.dumps(lines)],
        capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return Ran(folder, *json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def ran(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return start(tmp_path_factory.mktemp("runtime"), drawn, CASES)


@pytest.fixture(scope="module")
def ran_apart(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """In a process of its own: the second strategy of one would meet the first's collectives."""
    finetune = ("regime=finetune", *SGD)
    cases = {"finetune 1": (*finetune, "runtime.threads=1"), "finetune 2": (*finetune, "runtime.devices=2")}
    return start(tmp_path_factory.mktemp("apart"), drawn, cases)


@pytest.mark.parametrize("regime", ["scratch", pytest.param("finetune", marks=pytest.mark.slow)])
def test_two_devices_train_to_the_losses_of_one(regime: str, ran: Ran, request: pytest.FixtureRequest) -> None:
    other: Ran = ran if regime == "scratch" else request.getfixturevalue("ran_apart")
    assert other.ended[f"{regime} 1"] == other.ended[f"{regime} 2"] == ""
    single, two = other.curves(f"{regime} 1"), other.curves(f"{regime} 2")
    assert len(single) == len(two) == (2 if regime == "scratch" else 4)
    for row, same in zip(single, two, strict=True):
        for name in ("loss", "validation_loss"):
            assert float(same[name]) == pytest.approx(float(row[name]), rel=1e-4)


def test_more_devices_than_there_are_are_refused_before_work(ran: Ran) -> None:
    text = ran.ended["three"]
    assert text.startswith("runtime.devices: ") and "CPU:1" in text and "Received: 3" in text
    assert not (ran.folder / "three" / "config.yaml").exists()


def test_half_precision_without_a_gpu_is_refused(ran: Ran) -> None:
    text = ran.ended["half"]
    assert text.startswith("runtime.precision: mixed_float16 needs a GPU") and "mixed_bfloat16" in text
    assert not (ran.folder / "half" / "config.yaml").exists()


def test_bfloat16_trains_nearly_as_float32(ran: Ran) -> None:
    assert ran.ended["bfloat16"] == ""
    half, whole = ([float(row["loss"]) for row in ran.curves(name)] for name in ("bfloat16", "scratch 1"))
    assert half != whole and half == pytest.approx(whole, rel=0.1)


def test_threads_and_determinism_are_set(ran: Ran) -> None:
    assert ran.ended["scratch 1"] == ran.ended["bfloat16"] == ""
    assert ran.threads == 1 and ran.deterministic


def test_unset_threads_are_as_many_as_the_cores_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config.threading, "get_intra_op_parallelism_threads", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert runtime.threads() == 1
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "5")
    assert runtime.threads() == 5


def test_layers_are_named_alike_on_several_devices_whatever_the_process_has_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda devices: SimpleNamespace(scope=nullcontext))
    keras.layers.Dropout(0.5)
    with runtime.apply(composition.configured("runtime.devices=1").runtime):
        assert keras.layers.Dropout(0.5).name == "dropout"
