"""What is printed of a run's scores, and the names of the metrics of single classes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments.evaluation.decision import Decision
from experiments.evaluation.evaluate import Report, evaluate
from experiments.evaluation.statistics import Interval
from experiments.evaluation.training_checks import candidate_epochs
from experiments.reports.text import (
    class_metrics,
    epoch_lines,
    format_score,
    metric_lines,
    metric_names,
    next_commands,
    print_classes,
    print_results,
)
from experiments.system.paths import tracking_uri
from experiments.training.types import EpochRecord
from tests.evaluation.test_evaluate import BY_HAND, FLOWERS, PETS, random_report, random_scores, splits_of


def printed(report: Report) -> list[str]:
    console = Console(file=io.StringIO(), record=True, width=100)
    print_classes(console, report)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_bound_of_zero_has_no_sign() -> None:
    assert format_score("accuracy", Interval(0.1, -1e-17, 1.0)) == "10.0% [0.0, 100]"
    assert format_score("macro_f1", Interval(0.1, -1e-17, 0.5)) == "0.100 [0.000, 0.500]"


def test_the_positive_class_is_named() -> None:
    dataset, scores = splits_of(PETS, [0, 0, 1, 1]), {"validation": np.array(BY_HAND)}
    report = evaluate(scores, dataset, decision=Decision("cat", 0.7))["validation"]
    assert metric_lines(report) == [
        "validation balanced accuracy 75.0 %, macro F1 0.733, Matthews correlation 0.577",
        "validation positive class 'cat', threshold 0.7: precision 100.0 %, recall 50.0 %, F1 0.667, ROC AUC 0.500, "
        "average precision 0.750",
    ]
    usual = evaluate(scores, dataset)["validation"]
    assert metric_lines(usual)[1].startswith("validation positive class 'dog', threshold 0.5: precision 50.0 %")


def test_more_classes_have_no_positive_one() -> None:
    (line,) = metric_lines(random_report(tuple("abcdef")))
    assert line.startswith("validation balanced accuracy ") and "top-3 accuracy" in line and "top-5 accuracy" in line


def test_a_table_of_the_classes_and_the_pairs() -> None:
    report = evaluate({"validation": np.eye(3)[[0, 0, 1, 1]]}, splits_of(FLOWERS, [0, 0, 0, 1]))["validation"]
    lines = printed(report)
    assert lines[0] == "validation, by class [95 % interval]"
    rows = [" ".join(line.split()) for line in lines if line.strip().startswith(("daisy", "rose", "tulip"))]
    assert rows == [
        "daisy 3 100.0% [34, 100] 66.7% [21, 94] 0.80 [0.34, 0.97]",
        "rose 1 50.0% [9, 91] 100.0% [21, 100] 0.67 [0.17, 0.95]",
        "tulip 0 – – –",
    ]
    assert lines[-1] == "most confused (true → predicted): daisy → rose 1"


def test_of_many_classes_the_worst_are_shown() -> None:
    classes = tuple(f"class_{at:02}" for at in range(30))
    report = random_report(classes, 900)
    lines = printed(report)
    assert lines[0].endswith("the 10 classes with the lowest F1 of 30")
    shown = [line.split()[0] for line in lines if line.strip().startswith("class_")]
    assert shown == [score.name for score in sorted(report.class_scores, key=lambda score: score.f1.value)[:10]]
    labels = np.arange(900) % 29
    lacking = evaluate({"validation": random_scores(labels, 30)}, splits_of(classes, labels.tolist()))["validation"]
    assert "class_29" in {row.predicted for row in lacking.predictions}
    assert "class_29" not in " ".join(printed(lacking)[1:14]), "of which there is no image"


def test_names_with_markup_and_control_characters_are_text() -> None:
    text = "\n".join(printed(random_report(("[b]bold", "bell\x07"))))
    assert "[b]bold" in text and "\x07" not in text


def test_metrics_of_classes_as_the_ui_groups_them() -> None:
    report = random_report(PETS)
    found = class_metrics(report)
    assert set(found) == {
        f"validation.{metric}_by_class/{name}" for metric in ("precision", "recall", "f1") for name in PETS
    }
    assert found["validation.recall_by_class/dog"] == report.metrics["recall"]
    assert class_metrics(random_report(tuple(f"c{at}" for at in range(41)))) == {}


def test_names_that_mlflow_accepts() -> None:
    from mlflow.utils.validation import _validate_metric_name

    classes = [
        "dress",
        "t-shirt/top",
        "t-shirt:top",
        "t-shirt_top",
        "Café 猫",
        "a(b)",
        "..",
        ".",
        " ",
        "x" * 300,
        "a[b]",
    ]
    names = metric_names(classes)
    assert len(set(names)) == len(classes)
    assert len(set(metric_names(["a__2", "a?", "a!"]))) == 3, "a number that is added may itself be taken"
    assert names[:2] == ["dress", "t-shirt_top"]
    for name in names:
        _validate_metric_name(f"validation.precision_by_class/{name}")


@pytest.mark.parametrize("classes", [PETS, FLOWERS])
def test_metrics_and_tables_agree(classes: tuple[str, ...]) -> None:
    report = random_report(classes)
    assert report.metrics["balanced_accuracy"] == pytest.approx(
        np.mean([score.recall.value for score in report.class_scores])
    )
    assert report.metrics["macro_f1"] == pytest.approx(np.mean([score.f1.value for score in report.class_scores]))
    wrong = sum(pair.images for pair in report.confused_pairs)
    assert wrong == sum(not row.correct for row in report.predictions)


def test_the_best_epoch_of_the_last_phase() -> None:
    losses = {"head": [0.1, 0.9], "finetune": [0.5, 0.3, 0.3]}  # the first of equally good epochs is the best
    history = tuple(
        EpochRecord(0, phase, epoch, 0, {"validation_loss": loss})
        for phase, values in losses.items()
        for epoch, loss in enumerate(values)
    )
    line = "best epoch 2 of 3 (finetune, validation_loss 0.300), "
    candidates = candidate_epochs(history, 0)
    assert epoch_lines(candidates, "validation_loss", best_weights=False) == [f"{line}the last one is the result"]
    assert epoch_lines(candidates, "validation_loss", best_weights=True) == [f"{line}whose weights are the result"]
    assert epoch_lines(candidates, "validation_accuracy", best_weights=True) == epoch_lines((), "loss", False) == []
    counted = "best epoch 3 of 3 (finetune, validation_loss 0.300; epochs before 3 do not count), whose weights are"
    assert epoch_lines(candidate_epochs(history, 2), "validation_loss", True) == [f"{counted} the result"]


def test_commands_for_a_finished_run() -> None:
    lines = next_commands(Path("outputs/runs/a b").absolute())
    assert lines[0] == "next        experiments predict 'outputs/runs/a b' IMAGE"
    assert lines[-1] == "            experiments compare 'outputs/runs/a b' OTHER_RUN", "whatever store has the run"


@pytest.mark.parametrize("uri, command", [
    (None, "experiments ui"),
    ("http://there:5000", "experiments ui --uri http://there:5000"),
    ("http://me:secret@there:5000", "experiments ui --uri 'http://me:***@there:5000'"),
])  # fmt: skip
def test_the_ui_of_the_run_s_store_is_named(tmp_path: Path, uri: str | None, command: str) -> None:
    console = Console(file=io.StringIO(), record=True, width=100)
    print_results(console, tmp_path, {"validation": random_report(PETS)}, "1a2b", uri=uri or tracking_uri())
    assert f"MLflow run  1a2b   look at it: {command}\n" in console.export_text()
