"""The benchmark's rows on fine-tuning and the two peers; no time is asserted here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from benchmarks import finetuning, images, ours, report  # noqa: E402
from benchmarks.finetuning import Result  # noqa: E402
from benchmarks.report import Row, Side  # noqa: E402
from benchmarks.rows import Setup  # noqa: E402

SHARES = {"regime=bottleneck": 0.8, "regime=finetune": 0.9, "plain Keras": 0.8, "fastai-like": 0.7}
SECONDS = {"regime=bottleneck": 20.0, "regime=finetune": 50.0, "plain Keras": 200.0, "fastai-like": 100.0}


@pytest.fixture
def measured() -> dict[str, list[Result]]:
    """Return results of three seeds on 100 images, of which each recipe gets its share right; seeds agree."""
    return {
        label: [Result(seconds, share, {f"test/{n}.jpg": n < 100 * share for n in range(100)}) for _ in range(3)]
        for (label, share), seconds in zip(SHARES.items(), SECONDS.values(), strict=True)
    }


def test_recipes_are_compared_in_accuracy_and_time(measured: dict[str, list[Result]]) -> None:
    row = Row("r", "A row", {}, [Side(label, "") for label in measured])
    finetuning.report_results(row, measured)
    header, _, finetune, keras, _ = row.table
    assert header[1:5] == ["validation", "test", "test by seed", "s"]
    assert finetune[:2] == ["regime=finetune", "90.0%"] and finetune[2].startswith("90.0% [")
    assert finetune[3:5] == ["90.0%, 90.0%, 90.0%", "50"]
    assert [cell[:5] for cell in finetune[5:]] == ["+10.0", "+20.0", "+10.0"]
    assert keras[5] == "" and keras[6].startswith("+10.0") and keras[7].startswith("+0.0 [")
    above = row.figures["regime=finetune"]["above"]["plain Keras"]
    assert above["value"] == pytest.approx(0.1) and above["source"] == "seeds"
    assert 0 < above["low"] < 0.1 < above["high"] and above["p"] < 0.05
    (asked,) = [comparison for comparison in row.comparisons if comparison.factor]
    assert (asked.ours, asked.peer) == ("regime=finetune", "plain Keras"), "the better peer on validation"
    outcome = report.compare(row, asked)
    assert (outcome.ratio, outcome.met) == (4.0, True)


def test_figure_has_a_point_for_each_recipe_and_seed(measured: dict[str, list[Result]]) -> None:
    (panel,) = finetuning.draw(measured).axes
    drawn = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in panel.lines}
    assert drawn == {label: [(SECONDS[label], SHARES[label])] * 3 for label in measured}


def test_peer_is_read_from_the_last_line_of_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"validation_accuracy": 0.5, "test_accuracy": 0.25, "correct": {f"test/{n}.jpg": n == 0 for n in range(4)}}
    process = ours.Run(7.0, 0, 0, "Found 4 files\n" + json.dumps(found) + "\n")
    monkeypatch.setattr(ours, "process", lambda command, home: process)
    folder = images.Folder(tmp_path, 4, 4, drawn=False)
    result = finetuning.train_peer("keras", folder, "weights", seed=0, lr=1e-3, home=tmp_path)
    assert (result.seconds, result.validation, result.test) == (7.0, 0.5, 0.25)


@pytest.fixture
def flowers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder like flowers17, of noise, 17 classes with 4 images for training, 2 for validation and test."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("validation", 2), ("test", 2)):
        for name in range(17):
            folder = tmp_path / "flowers" / split / f"class {name:02d}"
            folder.mkdir(parents=True)
            for n in range(count):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), "uint8")).save(folder / f"{n}.png")
    monkeypatch.setenv("EXPERIMENTS_FLOWERS", str(tmp_path / "flowers"))
    return tmp_path / "flowers"


def test_subset_of_flowers_has_the_first_images_of_each_class(flowers: Path, tmp_path: Path) -> None:
    subset = images.flowers(tmp_path / "cache", 34)
    assert (subset.train, subset.validation) == (34, 17)
    assert sorted(path.relative_to(subset.root).as_posix() for path in subset.root.rglob("*.png"))[:2] == [
        "test/class 00/0.png", "test/class 01/0.png"
    ]  # fmt: skip
    assert len(list(subset.root.rglob("train/*/*.png"))) == 34
    assert images.flowers(tmp_path / "cache").root == flowers


def test_one_cycle_rises_and_falls() -> None:
    from benchmarks.finetuning_peers import OneCycle

    cycle = OneCycle(1e-3, steps=100, share=0.3, div=5.0)
    rates = [float(cycle(step)) for step in (0, 15, 30, 65, 100)]
    assert rates == pytest.approx([2e-4, 6e-4, 1e-3, 5e-4, 1e-8], rel=1e-3)


def test_variables_have_learning_rates_of_their_own() -> None:
    import keras
    import tensorflow as tf

    from benchmarks.finetuning_peers import DiscriminativeAdamW, OneCycle

    matrix, vector = keras.Variable(np.ones((2, 2), "float32")), keras.Variable(np.ones(2, "float32"))
    optimizer = DiscriminativeAdamW(OneCycle(0.1, steps=10, share=0.5, div=1.0), [0.01, 1.0], decay=0.5)
    optimizer.build([matrix, vector])
    optimizer.apply([tf.ones((2, 2)), tf.ones(2)])
    # Adam's first step is the learning rate itself; the decay before it is of the matrix alone.
    assert np.asarray(matrix) == pytest.approx(1 - 0.001 * 0.5 - 0.001, abs=1e-6)
    assert np.asarray(vector) == pytest.approx(1 - 0.1, abs=1e-4)


def test_plain_keras_trains_with_fixed_statistics() -> None:
    import keras

    from benchmarks.finetuning_peers import TRAINED, Classifier

    base = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Conv2D(2, 1), keras.layers.BatchNormalization()])
    model = Classifier(base, 2)
    model.compile("sgd", **TRAINED)
    before = [np.asarray(value) for value in (*base.trainable_variables, *base.non_trainable_variables)]
    model.fit(np.random.default_rng(0).uniform(0, 255, (8, 4, 4, 3)), np.arange(8) % 2, verbose=0)
    after = [np.asarray(value) for value in (*base.trainable_variables, *base.non_trainable_variables)]
    assert [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)] == [True] * 4 + [False] * 2


@pytest.mark.slow
@pytest.mark.usefixtures("flowers")
def test_all_sides_of_a_whole_network_epoch_train_on_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPERIMENTS_WEIGHTS", str(tmp_path / "none"))
    setup = Setup(1, 1, full=False, images=34, cache=tmp_path / "data", work=tmp_path / "work")
    row = finetuning.whole_network_epoch(setup, quick=34)
    assert {(side.images, side.steps) for side in row.sides} == {(34, 2)}
    assert [len(side.seconds) for side in row.sides] == [1, 1, 1], "the first epoch is dropped"
