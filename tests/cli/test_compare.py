"""Comparisons of finished runs, from a tracking database with made-up runs; TensorFlow is not needed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from rich.console import Console

from experiments.cli.compare import in_mlflow, main, show, show_confusions
from experiments.comparison import comparison as comparison_module
from experiments.comparison import text as comparison_text
from experiments.comparison.class_differences import compare_classes
from experiments.comparison.comparison import (
    Comparison,
    EvaluatedRun,
    Group,
    called,
    compare,
    configuration,
    disagreements,
    of_groups,
)
from experiments.comparison.significance import newcombe
from experiments.comparison.text import sentences
from experiments.errors import ConfigError
from experiments.runs.predictions import Prediction
from experiments.sweeps import sweep_directory
from experiments.tracking import queries
from experiments.tracking.queries import RunFacts, find_runs, search_runs
from experiments.tracking.summary_runs import log_comparison
from experiments.tracking.upload import Kind, Message, upload

IMAGES = 40
BASE = {"regime": "scratch", "model": "convnet", "optimizer": "rmsprop", "optimizer.lr": "0.001"}


def right(count: int) -> list[bool]:
    """The first `count` of the images predicted correctly."""
    return [at < count for at in range(IMAGES)]


def test_a_run_that_is_named_like_a_group_of_the_configuration_is_called_so() -> None:
    assert called(("model",)) == "model" and called(("model=vgg16", "optimizer.lr=0.1")) == "vgg16 optimizer.lr=0.1"


def fake_run(
    client: MlflowClient, name: str, params: dict[str, str], correct: Sequence[bool],
    first: int = 0, kind: str = "a", tags: dict[str, str] | None = None, splits: Sequence[str] = ("validation",),
) -> str:  # fmt: skip
    """A finished run with parameters, metrics, curves, and predictions of images from a first one on.

    Args:
        kind: images of another kind are others.
    """
    experiment = client.get_experiment_by_name("experiments")
    assert experiment is not None
    run = client.create_run(experiment.experiment_id, run_name=name, tags=tags)
    run_id: str = run.info.run_id
    for key, value in (BASE | {"seed": "0"} | params).items():
        client.log_param(run_id, key, value)
    numbers = range(first, first + len(correct))
    confidence = [0.6 + 0.01 * (at % 30) for at in numbers]
    labels = [("cats", "dogs")[at % 2] for at in numbers]
    predicted = [label if ok else {"cats": "dogs", "dogs": "cats"}[label]
                 for label, ok in zip(labels, correct, strict=True)]  # fmt: skip
    cats = [share if answer == "cats" else 1 - share for answer, share in zip(predicted, confidence, strict=True)]
    columns = {
        "path": [f"{kind}/{at}.jpg" for at in numbers],
        "sha256": [hashlib.sha256(f"{kind} {at}".encode()).hexdigest() for at in numbers],
        "label": labels, "predicted": predicted, "correct": list(correct), "confidence": confidence,
        "p_cats": cats, "p_dogs": [1 - share for share in cats],
    }  # fmt: skip
    table = {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
    for split in splits:
        client.log_text(run_id, json.dumps(table), f"predictions_{split}.json")
        for metric in ("loss", "roc_auc"):
            client.log_metric(run_id, f"{split}.{metric}", 0.5)
    client.log_metric(run_id, "total_seconds", 10.0 + int(params.get("seed", "0")))
    epochs = ["step,phase,epoch,timestamp,accuracy,loss,seconds,validation_accuracy,validation_loss,input_wait",
              *(f"{at},scratch,{at},{at},0.5,0.7,{at + 1}.5,0.6,0.6," for at in range(3))]  # fmt: skip
    client.log_text(run_id, "\n".join([*epochs, ""]), "curves.csv")
    upload(Path(), Message(run_id, Kind.DATA, {"source": "/photos", "name": "pets", "digest": "1"}), None)
    client.set_terminated(run_id)
    return run_id


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with three seeds each of scratch and finetune, runs on other images, on folds, and a sweep's."""
    folder = tmp_path_factory.mktemp("compare")
    uri = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    client.create_experiment("experiments", (folder / "artifacts").as_uri())
    for seed, (low, high) in enumerate([(20, 34), (22, 36), (24, 38)]):
        fake_run(client, f"scratch{seed}", {"seed": str(seed)}, right(low))
        tuned = {"seed": str(seed), "regime": "finetune", "regime.views": "4"}
        fake_run(client, f"tuned{seed}", tuned, right(high))
    fake_run(client, "adam", {"optimizer": "adam"}, right(20))
    fake_run(client, "nearly", {"optimizer": "sgd"}, right(22))
    fake_run(client, "elsewhere", {"regime": "bottleneck"}, right(30), kind="b", splits=("validation", "test"))
    fake_run(client, "partly", {"regime": "bottleneck", "epochs": "2"}, [True] * 40, first=10)
    for fold in range(2):
        params = {"data.fold": str(fold), "data.folds": "2", "regime": "finetune"}
        fake_run(client, f"fold{fold}", params, right(20 * fold + 15)[20 * fold :][:20], first=20 * fold)
    for name, weights in (("own1", "a"), ("own2", "b"), ("own3", "a")):  # the file was overwritten in between
        params = {"regime": "bottleneck", "model.weights": "/mine.weights.h5", "seed": str(int(name == "own3"))}
        tags = {"data_fingerprint": "4" * 64, "backbone_identity": weights * 64}
        fake_run(client, name, params, right(25), tags=tags)
    parent = client.create_run("1", run_name="a-sweep", tags={"sweep": "a-sweep"}).info.run_id
    client.set_terminated(parent)
    for at, count in enumerate((21, 25, 23)):
        child = {"mlflow.parentRunId": parent, "identity": f"job {at}"}
        fake_run(client, f"job{at}", {"epochs": str(at)}, right(count), tags=child)
    child = {"mlflow.parentRunId": parent, "identity": "job 1"}
    fake_run(client, "winner", {"epochs": "1"}, right(25), tags=child, splits=("validation", "test"))
    for data, limit in (("1" * 64, "9"), ("2" * 64, "9"), ("3" * 64, "8")):
        params = {"epochs": "7", "data.limit.train": limit}
        fake_run(client, f"data{data[0]}", params, right(20), tags={"data_fingerprint": data})
    running = client.create_run("1", run_name="running").info.run_id
    client.log_param(running, "regime", "scratch")
    return uri


def of(uri: str, *names: str, split: str = "validation") -> Comparison:
    return compare(uri, find_runs(uri, names), split)


def printed(comparison: Comparison, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    show(console, comparison, compare_classes(comparison))
    return console.export_text()


def test_runs_that_differ_in_their_seed_are_one_group(uri: str) -> None:
    comparison = of(uri, "scratch0", "tuned1", "scratch2", "tuned0", "scratch1", "tuned2")
    first, second = comparison.groups
    assert [run.name for run in first.runs] == ["scratch0", "scratch2", "scratch1"]
    assert [run.name for run in second.runs] == ["tuned1", "tuned0", "tuned2"]
    assert "seed" not in first.params and first.params["regime"] == "scratch"
    assert list(first.accuracy.matrix(first.images).sum(axis=1)) == [20, 24, 22]
    accuracy = comparison.measures[0]["accuracy"]
    assert accuracy.value == pytest.approx(0.55) and accuracy.low == pytest.approx(
        0.55 - ((4.303 * 0.05 / 3**0.5) ** 2 + 2.02**2 * (0.05**2 / 9 + 9.9 / 39 / 40)) ** 0.5, abs=0.02
    )
    assert (first.seconds, first.epoch_seconds) == (11, 2.5)


def test_the_difference_is_other_minus_first(uri: str) -> None:
    found = of(uri, "scratch0", "tuned0").differences[1]
    assert found is not None and found.paired
    assert found.value == pytest.approx(14 / IMAGES) and 0 < found.low < found.high and found.significant
    assert (found.only_a, found.only_b) == (0, 14) and found.p_value == pytest.approx(0.000183, abs=1e-6)  # chi2 = 14
    back = of(uri, "tuned0", "scratch0").differences[1]
    assert back is not None and back.value == pytest.approx(-14 / IMAGES) and back.high < 0


def test_groups_of_unequal_size_are_compared_over_the_seeds_that_both_have(uri: str) -> None:
    found = of(uri, "scratch0", "scratch1", "scratch2", "tuned2").differences[1]
    assert found is not None and found.value == pytest.approx((38 - 24) / IMAGES)  # seed 2 with seed 2
    found = of(uri, "scratch0", "scratch1", "tuned2").differences[1]
    assert found is not None and found.value == pytest.approx((38 - 20) / IMAGES)  # none in common: in order
    found = of(uri, "scratch0", "scratch1", "tuned1", "tuned0").differences[1]
    assert found is not None and found.by_seed == pytest.approx((14 / IMAGES, 14 / IMAGES))


def test_labels_name_what_differs(uri: str) -> None:
    comparison = of(uri, "scratch0", "scratch1", "tuned0", "adam")
    assert [" ".join(label) for label in comparison.labels] == [
        "regime=scratch optimizer=rmsprop", "regime=finetune optimizer=rmsprop", "regime=scratch optimizer=adam",
    ]  # fmt: skip
    assert comparison.names == ["1 scratch rmsprop", "2 finetune rmsprop", "3 scratch adam"]
    assert of(uri, "scratch0").names == ["1 scratch0"]
    assert of(uri, "scratch0", "scratch1").names == ["1 scratch convnet"]


def test_what_differs_in_configuration_and_nothing_else(uri: str) -> None:
    valued, unread = comparison_text.configuration_tables(of(uri, "scratch0", "tuned0"))
    assert valued == [["key", "1", "2"], ["regime", "scratch", "finetune"]]
    assert unread == [["key", "1", "2"], ["regime.views", "–", "4"]]
    assert comparison_text.unread_keys(unread) == ["read by 2 only: regime.views=4"]
    many = [["key", "1", "2"], *([f"augmentation.{name}", "1", "–"] for name in "abcd")]
    assert comparison_text.unread_keys(many) == ["read by 1 only: augmentation.* (4 keys)"]


def test_the_same_configuration_on_other_data_is_another_row(uri: str) -> None:
    comparison = of(uri, "data1", "data2")
    assert list(configuration(comparison.groups)) == ["data.fingerprint"]
    assert of(uri, "data1", "data3").names == ["1 data.limit.train=9", "2 data.limit.train=8"]


def test_data_that_have_changed_in_their_place_are_pointed_out(uri: str) -> None:
    """The commands with `like` that were advised train all rows on the data that are there now."""
    *_, changed, _, advice = sentences(of(uri, "data1", "data2"))
    assert changed.startswith("Row 2: other images or labels than in row 1, under the same settings of the data")
    assert "on the same images (like=RUN reads those that are there now)" in advice and "train -m" not in advice
    for known in (of(uri, "data1", "data3"), of(uri, "scratch0", "data1"), of(uri, "scratch0", "adam")):
        text = " ".join(sentences(known))
        assert "other images or labels" not in text and "train -m like=" in text


def test_the_same_configuration_with_other_weights_in_the_file_is_another_row(uri: str) -> None:
    comparison = of(uri, "own1", "own2", "own3")
    assert [[run.name for run in group.runs] for group in comparison.groups] == [["own1", "own3"], ["own2"]]
    assert not any(group.duplicates for group in comparison.groups)
    assert configuration(comparison.groups) == {"model.weights": [f"/mine.weights.h5 ({name * 12})" for name in "ab"]}
    whole = RunFacts("", "", {"model.weights": "/mine.keras"}, {}, {"backbone_identity": "c"})
    assert comparison_module._weights_in_file(whole) == "c"


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Return a function that groups runs, of which none is a duplicate, and returns the names in each row."""

    def predictions(uri: str, run: RunFacts, split: str) -> list[Prediction]:
        files = [f"{run.params.get('data.fold', '')}{at}" for at in range(2)]
        return [Prediction(file, file, "cats", "cats", 0.9, True, {}) for file in files]

    monkeypatch.setattr(comparison_module, "read_predictions", predictions)
    monkeypatch.setattr(comparison_module, "read_curves", lambda uri, run: [])

    def grouped(*runs: RunFacts) -> list[list[str]]:
        found = comparison_module.gather("", runs, "validation")
        assert not any(group.duplicates for group in found)
        return [[run.name for run in group.runs] for group in found]

    return grouped


def test_runs_with_other_values_from_the_environment_are_other_rows(rows: Callable[..., list[list[str]]]) -> None:
    def run(name: str, setting: str, weights: str = "w", **params: str) -> RunFacts:
        return RunFacts(name, name, BASE | params, {}, {"setting": setting, "backbone_identity": weights})

    runs = [run(name, name[0], seed=name[1], epochs="${oc.decode:${oc.env:E}}") for name in ("a0", "b0", "a1")]
    assert rows(*runs) == [["a0", "a1"], ["b0"]]
    assert [group.params["setting"] for group in comparison_module.gather("", runs, "validation")] == ["a", "b"]
    named = {"model.weights": "${oc.env:WEIGHTS}"}
    runs = [run(name, "", name[0], seed=name[1], **named) for name in ("v0", "w0", "v1")]
    assert rows(*runs) == [["v0", "v1"], ["w0"]]


def test_rows_follow_the_images_that_were_read_and_not_where_they_were(rows: Callable[..., list[list[str]]]) -> None:
    def run(name: str, data: str, **params: str) -> RunFacts:
        return RunFacts(name, name, BASE | params, {}, {"data_fingerprint": data})

    seeds = [run(f"s{at}", data, seed=str(at), **{"data.root": f"place{at}"}) for at, data in enumerate("aab")]
    assert rows(*seeds) == [["s0", "s1"], ["s2"]]
    # Folds were trained, then labels corrected, and the folds trained again, one more than before.
    folds = [
        run(f"{state}{fold}", f"{state} {fold}", **{"data.fold": str(fold)})
        for state, count in (("before", 2), ("after", 3))
        for fold in range(count)
    ]
    assert rows(*folds) == [["before0", "before1"], ["after0", "after1", "after2"]]


def test_folds_share_their_test_images_and_are_rows_of_their_own_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one row, they would have the predictions of the last fold alone."""

    def predictions(uri: str, run: RunFacts, split: str) -> list[Prediction]:
        fold = int(run.params["data.fold"])
        images = [f"{fold if split == 'validation' else ''}{at}" for at in range(10)]
        return [Prediction(image, image, "cats", "", 0.9, at < 5 + fold, {}) for at, image in enumerate(images)]

    monkeypatch.setattr(comparison_module, "read_predictions", predictions)
    monkeypatch.setattr(comparison_module, "read_curves", lambda uri, run: [])
    runs = [RunFacts(at, at, BASE | {"data.fold": at}, {}, {"data_fingerprint": at}) for at in "01"]
    (folds,) = comparison_module.gather("", runs, "validation")
    assert folds.accuracy.interval().value == 0.55 and len(folds.images) == 20
    first, second = comparison_module.gather("", runs, "test")
    assert (first.accuracy.interval().value, second.accuracy.interval().value) == (0.5, 0.6)
    assert configuration([first, second]) == {"data.fold": ["0", "1"]}


def test_folds_are_one_group_that_is_evaluated_on_all_their_images(uri: str) -> None:
    comparison = of(uri, "scratch0", "fold0", "fold1")
    _, folds = comparison.groups
    assert len(folds.images) == IMAGES and len(folds.by_seed) == 1
    assert comparison.measures[1]["accuracy"].value == 30 / IMAGES
    found = comparison.differences[1]
    assert found is not None and found.paired and found.images == IMAGES
    assert sentences(comparison)[-1] == "To test the setting: give every row the same folds and seeds."


def test_folds_that_share_images_are_of_changed_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more image moves most of the others to another fold."""
    folds = [RunFacts(f"f{at}", f"f{at}", BASE | {"data.fold": str(at), "seed": "0"}, {}, {}) for at in range(2)]

    def predictions(uri: str, run: RunFacts, split: str) -> list[Prediction]:
        files = [f"{at}.jpg" for at in (range(3) if run is folds[0] else range(2, 5))]
        return [Prediction(file, file, "cats", "cats", 0.9, True, {}) for file in files]

    monkeypatch.setattr(comparison_module, "read_predictions", predictions)
    monkeypatch.setattr(comparison_module, "read_curves", lambda uri, run: [])
    with pytest.raises(ConfigError, match=r"^f0 and f1: are runs of two folds, but both were validated with 2\.jpg: "):
        comparison_module.gather("", folds, "validation")
    assert len(comparison_module.gather("", folds, "test")) == 2


def test_runs_on_other_images_are_compared_unpaired_and_named_so(uri: str) -> None:
    comparison = of(uri, "scratch0", "elsewhere")
    found = comparison.differences[1]
    assert found is not None and not found.paired and found.needed is None
    assert (found.value, found.low, found.high) == (0.25, *newcombe(20, 40, 30, 40))
    assert "different images, at least 40 on each side" in " ".join(sentences(comparison))


def test_runs_that_share_some_images_are_compared_on_those(uri: str) -> None:
    comparison = of(uri, "scratch0", "partly")
    found = comparison.differences[1]
    assert found is not None and found.paired and found.images == 30
    assert found.value == pytest.approx(20 / 30)
    assert "30 images that both were evaluated on" in " ".join(sentences(comparison))


def test_single_runs_are_compared_as_models_and_the_way_to_a_claim_about_the_setting_is_given(uri: str) -> None:
    baseline, *_, sentence, single, command = sentences(of(uri, "scratch0", "tuned0"))
    assert baseline == "The accuracy of scratch is not above always predicting 'cats' (50.0 %)."
    assert "The model trained with finetune is better than the one trained with scratch by 35.0 points" in sentence
    assert "(95 % interval +22.1 to +50.5, p = 0.00018, 40 images)" in sentence
    assert sentence.endswith("these two trained models are significantly different.")
    assert "training noise is not in its interval" in single and "does not show that a setting is better" in single
    for run in find_runs(uri, ("scratch0", "tuned0")):
        # The store is not the one that `train` uses by itself here.
        assert f"-m like={run.run_id} seed=0,1,2 sweep.final=false tracking.uri={uri}" in command
    sentence = sentences(of(uri, "scratch0", "nearly"))[-3]
    assert "sgd is better than the one trained with rmsprop by 5.0 points" in sentence and "p = 0.16" in sentence
    assert "these two trained models are not significantly different; about 160 images would" in sentence
    assert "is worse than" in sentences(of(uri, "tuned0", "scratch0"))[-3]
    sentence = sentences(of(uri, "scratch0", "adam"))[-3]
    assert "neither better nor worse" in sentence and "would show" not in sentence


def test_several_seeds_give_a_claim_about_the_setting_with_both_variances(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    three = sentences(of(uri, *(f"{kind}{seed}" for kind in ("scratch", "tuned") for seed in range(3))))
    assert three[-1].startswith("finetune is better than scratch by 35.0 points (95 % interval +20.")
    assert three[-1].endswith("40 images, 3 seeds of each): significantly different.")
    assert "trained models" not in " ".join(three)
    # with one seed on one side, two models are compared, and only that side lacks seeds
    mixed = sentences(of(uri, "scratch0", "scratch1", "scratch2", "tuned2"))
    (tuned,) = find_runs(uri, ["tuned2"])
    assert mixed[-1].startswith(
        f"To test the setting: python -m experiments.train -m like={tuned.run_id} seed=0,1,2 sweep.final=false, then"
    )


def test_the_same_seed_run_again_is_no_new_evidence(uri: str) -> None:
    mlflow.set_tracking_uri(uri)  # where `upload` sends the data's description
    client = MlflowClient(uri)
    fake_run(client, "again", {"regime": "bottleneck", "epochs": "11"}, right(22))
    fake_run(client, "once", {"regime": "bottleneck", "epochs": "11"}, right(22))
    comparison = of(uri, "scratch0", "again", "once")
    assert [len(group.evaluated) for group in comparison.groups] == [1, 1]
    found = comparison.differences[1]
    assert found is not None and not found.about_setting
    assert any(line.startswith("once has the configuration and seed of another") for line in sentences(comparison))


def test_an_accuracy_that_is_not_above_the_most_frequent_class_is_named(uri: str) -> None:
    """190 normal and 10 abnormal images, none of the abnormal found: 95.0 %."""

    def imbalanced(name: str, correct: Sequence[bool], **params: str) -> Group:
        predictions = {}
        for at, right in enumerate(correct):
            label = "normal" if at < 190 else "abnormal"
            predicted = label if right else {"normal": "abnormal", "abnormal": "normal"}[label]
            predictions[str(at), label] = Prediction(str(at), str(at), label, predicted, 0.9, right, {})
        return Group(params, (EvaluatedRun(RunFacts(name, name, params, {}, {}, "1", None), predictions),))

    rows = [
        imbalanced("blind", [at < 190 for at in range(200)], regime="scratch"),
        imbalanced("little", [at < 194 for at in range(200)], regime="bottleneck"),
        imbalanced("well", [True] * 200, regime="finetune"),
    ]
    comparison = of_groups(rows, "validation")
    assert sentences(comparison)[:3] == [
        "The accuracy of scratch is not above always predicting 'normal' (95.0 %).",
        "The accuracy of bottleneck is not significantly above always predicting 'normal' (95.0 %).",
        "The accuracy of finetune is significantly above always predicting 'normal' (95.0 %).",
    ]
    assert "not above always predicting 'normal'" in " ".join(printed(comparison).split())
    assert comparison_text.group_rows(comparison)[0]["accuracy_baseline"] == 0.95


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "+0.0"), (0.05, "+5.0"), (0.0004, "+0.04"), (-0.00003, "-0.003"), (0.0006, "+0.1"), (1e-12, "+0.000000")],
)
def test_a_bound_that_is_not_zero_does_not_look_like_it(value: float, text: str) -> None:
    assert comparison_text.signed(value) == text
    assert comparison_text.p_text(0.0499999) == "p = 0.0499999" and comparison_text.p_text(0.05004) == "p = 0.05004"
    assert comparison_text.p_text(0.0339) == "p = 0.034" and comparison_text.p_text(1e-9) == "p < 0.0001"


def test_the_images_on_which_they_disagree(uri: str) -> None:
    found = disagreements(of(uri, "scratch0", "tuned0"))
    assert sorted(image.path for image in found) == sorted(f"a/{at}.jpg" for at in range(20, 34))
    first = found[0]
    assert first.path == "a/29.jpg" and first.data == ("/photos",), "the most confident mistake first"
    assert first.label == "dogs" and [prediction and prediction.predicted for prediction in first.predictions] == [
        "cats",
        "dogs",
    ]
    over_seeds = disagreements(of(uri, "scratch0", "scratch1", "scratch2", "tuned0", "tuned1", "tuned2"))
    assert {image.path for image in over_seeds} == {f"a/{at}.jpg" for at in range(22, 36)}, "where most seeds disagree"
    (none, evaluated) = disagreements(of(uri, "scratch0", "partly"))[-1].predictions
    assert none is None or evaluated is None or none.right != evaluated.right


def test_rows_that_were_looked_for_are_ordered_by_validation_and_never_by_test(uri: str) -> None:
    named, found = find_runs(uri, ["job0"]), find_runs(uri, ["job0", "job2", "job1"])
    ranked = compare(uri, [], "validation", found)
    assert [group.runs[0].name for group in ranked.groups] == ["job1", "job2", "job0"]
    assert "The first row is the best of 3" in sentences(ranked)[-2]
    assert [group.runs[0].name for group in compare(uri, named, "validation", found).groups] == ["job0", "job1", "job2"]
    tested = find_runs(uri, ["elsewhere", "winner"])
    for given in (tested, tested[::-1]):
        comparison = compare(uri, [], "test", given)
        assert [group.runs[0].run_id for group in comparison.groups] == [run.run_id for run in given]
        assert "not ranked" in sentences(comparison)[-1]


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_shows_it_whole(uri: str, width: int) -> None:
    text = printed(of(uri, "scratch0", "scratch1", "scratch2", "tuned0", "tuned1", "tuned2"), width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    first, second = (line for line in text.splitlines() if line.startswith((" 1 scratch", " 2 finetune")))
    assert "55.0% [" in first and first.split()[-2:] == ["11", "2.5"]
    assert "90.0%" in second and "+35.0 [" in second
    assert "read by 2 only: regime.views=4" in text and "regime  scratch  finetune" in text


def test_a_name_that_the_table_has_no_room_for_is_printed_whole_above_it(uri: str) -> None:
    comparison = of(uri, "scratch0", "scratch1", "tuned0", "tuned1")
    labels = (("optimizer.weight_decay=0.0001234",), ("optimizer.weight_decay=0.0004321", "model.head.dropout=0.25"))
    text = printed(replace(comparison, labels=labels), 80)
    above, _, table = text.partition("accuracy on")
    assert above.splitlines()[:2] == [f"{at} {' '.join(label)}" for at, label in enumerate(labels, 1)]
    assert [line.split()[0] for line in table.splitlines()[1:] if "% [" in line] == ["1", "2"]
    assert max(map(len, text.splitlines())) <= 80


def test_many_rows_are_listed_by_value(uri: str) -> None:
    text = printed(of(uri, "scratch0", "tuned0", "adam", "nearly", "job1"))
    assert "optimizer rmsprop 1 2 5" in [" ".join(line.split()) for line in text.splitlines()]


def test_values_that_columns_have_no_room_for_are_listed_by_value(uri: str) -> None:
    comparison = of(uri, "scratch0", "tuned0", "adam")
    wide = [replace(group, params={**group.params, "data.classes": f"['tulips', 'roses', 'daisy{at}']"})
            for at, group in enumerate(comparison.groups)]  # fmt: skip
    text = printed(replace(comparison, groups=tuple(wide)), 80)
    assert "data.classes ['tulips', 'roses', 'daisy1'] 2" in [" ".join(line.split()) for line in text.splitlines()]


def test_the_end_of_a_name_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        RunFacts(run_id, name, {}, {}, {})
        for run_id, name in (
            ("aa", "20261129-121932-finetune-convnet-280729"),
            ("28", "20261129-121940-scratch-convnet-110042"),
            ("cc", "280729"),
        )
    ]
    monkeypatch.setattr(queries, "search_runs", lambda uri, query="": runs)
    monkeypatch.setattr(queries, "_why_not", lambda uri, name: "no finished run fits")
    for text in ("-280729", "finetune-convnet-280729", "20261129-121932-finetune-convnet-280729"):
        assert [run.run_id for run in find_runs("", [text])] == ["aa"], text
    assert [run.run_id for run in find_runs("", ["280729"])] == ["cc"], "a whole name comes first"
    assert [run.run_id for run in find_runs("", ["28"])] == ["28"]
    with pytest.raises(ConfigError, match="no finished run fits"):
        find_runs("", ["80729"])
    runs.append(RunFacts("dd", "20261130-080000-finetune-convnet-280729", {}, {}, {}))
    with pytest.raises(ConfigError, match="2 runs fit"):
        find_runs("", ["-280729"])
    del runs[1:]
    with pytest.raises(ConfigError, match="no finished run fits"):
        find_runs("", [""])  # as of an unset variable of the shell


def test_a_run_directory_stands_for_its_run_in_the_store_where_it_is(tmp_path: Path) -> None:
    facts = {"command": {}, "status": "FINISHED", "run_id": "a" * 32, "store": "sqlite:////somewhere/mlflow.db"}
    files = {"run.json": json.dumps(facts), "config.yaml": "outputs: o", "manifest.csv": "path", "metrics.json": "{}"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert in_mlflow([str(tmp_path), "adam"]) == (["a" * 32, "adam"], ["sqlite:////somewhere/mlflow.db"])
    (tmp_path / "run.json").write_text(json.dumps(facts | {"run_id": None}))
    assert in_mlflow([str(tmp_path), "adam"]) == ([tmp_path, "adam"], [])


def test_runs_that_are_not_in_mlflow_are_compared_by_their_folders(
    ended: Any, uri: str, own_outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Here with copies of one run that have another batch size, the second of them another seed, too."""
    places = [ended.folder, tmp_path / "other" / "nine", tmp_path / "other" / "ten"]
    written = (ended.folder / "config.yaml").read_text(encoding="utf-8")
    for seed, folder in enumerate(places[1:]):
        shutil.copytree(ended.folder, folder)
        text = written.replace("\nseed: 0\n", f"\nseed: {seed}\n").replace("\nbatch_size: 8\n", "\nbatch_size: 9\n")
        (folder / "config.yaml").write_text(text, encoding="utf-8")
    assert not (own_outputs / "mlflow.db").exists()
    monkeypatch.setattr(sys, "argv", ["experiments compare", *map(str, places)])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert any("batch_size=9" in line for line in lines) and any("like=" in line for line in lines)
    page = Path(lines[-1].removeprefix("page").strip())
    assert all(str(place) in page.read_text(encoding="utf-8") for place in places)
    assert not (own_outputs / "mlflow.db").exists(), "nothing is logged"
    mixed = compare(uri, find_runs(uri, ["elsewhere", places[1], places[2]]), "validation")
    assert [len(group.runs) for group in mixed.groups] == [1, 2]
    assert [len(run.curves) for run in mixed.groups[1].evaluated] == [6, 6]
    with pytest.raises(ConfigError, match="no predictions of split 'test'"):
        (places[1] / "predictions_test.csv").unlink(missing_ok=True)
        compare(uri, find_runs(uri, places[1:2]), "test")


def test_what_cannot_be_compared(uri: str) -> None:
    with pytest.raises(ConfigError, match="scratch0 is named twice"):
        of(uri, "scratch0", "scratch0")
    with pytest.raises(ConfigError, match="no predictions of split 'test'"):
        of(uri, "scratch0", split="test")
    for name in ("running", "unheard-of", "a-sweep"):
        with pytest.raises(ConfigError, match=f"{name}: no finished run fits.*The latest runs.*winner"):
            find_runs(uri, (name,))


def test_queries_are_mlflows_and_wrong_ones_are_explained(uri: str) -> None:
    names = [run.name for run in search_runs(uri, "params.regime = 'finetune' and metrics.total_seconds > 10.5")]
    assert names == ["tuned1", "tuned2"]
    with pytest.raises(ConfigError, match=r"query cannot be used.*params.regime = 'finetune'.*Received: 'regime is'"):
        search_runs(uri, "regime is")


def test_a_sweep_is_found_by_its_run_and_by_its_folder(uri: str, own_outputs: Path) -> None:
    parent = {run.tags.get("mlflow.parentRunId") for run in find_runs(uri, ["job0"])}.pop()
    assert parent is not None
    assert [run.name for run in sweep_directory.finished_runs(uri, parent)] == ["job0", "job1", "job2"]
    folder = own_outputs / "sweeps" / "mine"
    ids = [run.run_id for run in find_runs(uri, ["job2", "adam"])]  # one had been trained before
    for number, (run_id, status, final) in enumerate(
        [
            (ids[0], "FINISHED", False),
            (ids[1], "FINISHED", False),
            ("0" * 32, "FAILED", False),
            ("1" * 32, "FINISHED", True),
        ]
    ):
        (folder / str(number)).mkdir(parents=True)
        job = {"number": number, "status": status, "run_id": run_id, "final": final}
        (folder / str(number) / "job.json").write_text(json.dumps(job))
    (folder / "sweep.json").write_text(json.dumps({"parent": parent}))
    for named in ("mine", str(folder), parent):
        assert [run.name for run in sweep_directory.finished_runs(uri, named)] == ["job2", "adam"]
    with pytest.raises(ConfigError, match="nothing: no such sweep.*The latest: mine"):
        sweep_directory.finished_runs(uri, "nothing")
    with pytest.raises(ConfigError, match="no finished job has"):
        sweep_directory.finished_runs(uri, "9" * 32)


def test_final_runs_after_folds_are_no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        RunFacts(str(at), fold, {"data.fold": fold}, {}, {"identity": str(at)})
        for at, fold in enumerate(("0", "1", "null"))
    ]
    monkeypatch.setattr(queries, "search_runs", lambda uri, query: runs)
    assert [run.name for run in sweep_directory.finished_runs("", "9" * 32)] == ["0", "1"]


def test_a_comparison_is_logged_once_and_is_no_run_to_compare(uri: str, tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    page.write_text("first")
    experiment = find_runs(uri, ["adam"])[0].experiment
    run_id = log_comparison(uri, experiment, "1234", [page], "# Text")
    page.write_text("second")
    assert log_comparison(uri, experiment, "1234", [page], "# Text") == run_id
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("compare-1234", "FINISHED")
    assert run.data.tags["mlflow.note.content"] == "# Text"
    (tmp_path / "read").mkdir()
    assert Path(client.download_artifacts(run_id, "comparison.html", str(tmp_path / "read"))).read_text() == "second"
    assert run_id not in {run.run_id for run in search_runs(uri)}


def test_long_names_of_confused_classes_are_whole_at_80_columns() -> None:
    cells = ["4 (20.0%)", "5.33 (26.7%) +6.7", "3 (15.0%) -5.0", "1.67 (8.3%) -11.7"]
    for name, has_differences in (("Iris → Tulip", True), ("n02091032_Italian_greyhound → n02091134_whippet", False)):
        console = Console(width=80, record=True, file=io.StringIO())
        show_confusions(console, [["true → predicted", "1", "2", "3", "4"], [name, *cells]])
        text = console.export_text()
        assert ("+6.7" in text and "in points" in text) is has_differences
        assert all(word in text for word in name.split()) and "5.33 (26.7%)" in text


def test_the_csv_has_every_row(uri: str) -> None:
    rows = comparison_text.group_rows(of(uri, "scratch0", "tuned0", "elsewhere"))
    assert [row["paired_images"] for row in rows] == [None, 40, None] and rows[1]["regime"] == "finetune"
    assert rows[0]["roc_auc_low"] < rows[0]["roc_auc_high"]


def test_the_csv_has_the_metric_and_the_key_that_are_both_called_loss(uri: str) -> None:
    groups = of(uri, "scratch0", "tuned0").groups
    trained = [replace(group, params={**group.params, "loss": name}) for group, name in zip(groups, "ab", strict=True)]
    rows = comparison_text.group_rows(of_groups(trained, "validation"))
    assert [(row["loss"], row["params.loss"]) for row in rows] == [(0.5, "a"), (0.5, "b")]


def command(uri: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`experiments compare`, in a process that tells whether it imported TensorFlow."""
    program = (
        "import atexit, sys; from experiments.__main__ import main; "
        "atexit.register(lambda: print('heavy:', {'tensorflow', 'keras'} & set(sys.modules))); main()"
    )
    line = [sys.executable, "-c", program, "compare", "--uri", uri, *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, env=os.environ | {"COLUMNS": "100"})


def test_the_command_prints_the_comparison_and_leaves_a_page_without_tensorflow(uri: str, own_outputs: Path) -> None:
    done = command(uri, "scratch0", "--query", "attributes.run_name = 'tuned0'")
    assert done.returncode == 0, done.stderr
    assert "+35.0" in done.stdout and "two trained models" in done.stdout and "heavy: set()" in done.stdout
    assert "Downloading" not in done.stderr
    (page,) = (own_outputs / "compare").glob("compare-*/comparison.html")
    assert "its file is not in /photos" in page.read_text(encoding="utf-8")
    run_id = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("MLflow"))
    client = MlflowClient(uri)
    assert client.get_run(run_id).info.run_name == page.parent.name
    assert {artifact.path for artifact in client.list_artifacts(run_id)} == {
        "comparison.html", "comparison.md", "comparison.csv", "comparison_classes.csv", "comparison_confusion.csv",
        "figures",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scratch0", "nobody"], "nobody: no finished run fits"),
        (["--query", "params.regime = 'none'"], "--query: no finished run fits"),
        ([], "give runs, --sweep SWEEP or --query TEXT"),
        (["adam", "--data", "/nowhere"], "--data: no such folder"),
        (["adam", "--images", "-1"], "must be a whole number of 0 or more"),
    ],
)
def test_the_command_reports_what_it_cannot_do_in_one_line(
    uri: str, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["experiments compare", "--uri", uri, *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert message in str(ended.value) + capsys.readouterr().err
