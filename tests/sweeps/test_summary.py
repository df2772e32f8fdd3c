"""The conclusion of a sweep, from files that the tests write."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.api.sweep import Sweep
from experiments.cli import summarize
from experiments.errors import ConfigError
from experiments.evaluation.statistics import Interval, score_interval
from experiments.sweeps import plots, summary, summary_files
from experiments.sweeps.launchers import processes
from experiments.sweeps.session import Session
from experiments.tracking import summary_runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sweep.json").write_text(json.dumps({"objective": "accuracy", "command": "train -m", "parent": None}))
    return tmp_path


def add(
    folder: Path,
    number: int,
    values: dict[str, str],
    correct: np.ndarray | None,
    first: int = 0,
    sure: float = 0.9,
    **job: Any,
) -> None:
    """A job of the sweep, finished with these predictions, or failed."""
    place = folder / str(number)
    place.mkdir()
    status = "FAILED" if correct is None else "FINISHED"
    record = {"number": number, "values": values, "overrides": [f"{k}={v}" for k, v in values.items()],
            "folder": str(place), "status": status, "reason": "", "identity": f"job {number}", **job}  # fmt: skip
    (place / "job.json").write_text(json.dumps(record))
    (place / "run.json").write_text(json.dumps({"command": {}, "status": status, "identity": f"job {number}"}))
    if correct is not None:
        metrics = {
            "validation.accuracy": float(correct.mean()),
            "validation.loss": 1 - float(correct.mean()),
            "total_seconds": 10.0,
        }
        (place / "metrics.json").write_text(json.dumps(metrics))
        with (place / "predictions_validation.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "sha256", "label", "predicted", "correct", "confidence", "p_cat", "p_dog"])
            for at, right in enumerate(correct):
                label = ("cat", "dog")[at % 2]
                cat = sure if (label == "cat") == bool(right) else 1 - sure
                writer.writerow(
                    [f"p{first + at}", "x", label, "cat" if cat > 0.5 else "dog", str(bool(right)), sure, cat, 1 - cat]
                )


def right(count: int, of: int = 100) -> np.ndarray:
    return np.arange(of) < count


def test_the_winner_is_the_best_mean_over_seeds_and_only_whole_candidates_count(folder: Path) -> None:
    for seed, (a, b) in enumerate([(80, 90), (82, 70), (81, 80)]):
        add(folder, 2 * seed, {"x": "a", "seed": str(seed)}, right(a))
        add(folder, 2 * seed + 1, {"x": "b", "seed": str(seed)}, right(b))
    add(folder, 6, {"x": "lucky", "seed": "0"}, right(99))
    add(folder, 7, {"x": "lucky", "seed": "1"}, None, reason="it broke")
    found = summary_files.write_summary(folder)
    assert found["winner"]["values"] == {"x": "a"} and found["winner"]["seeds"] == ["0", "1", "2"]
    assert [row[0] for row in found["table"]] == ["", "1", "2", "-"]
    assert found["metrics"] == {
        "jobs_finished": 7, "jobs_failed": 1, "winner.validation.accuracy": pytest.approx(0.81)
    }  # fmt: skip
    assert found["failures"] == ["job 7 (x=lucky seed=1): it broke"]
    mean, low, high = score_interval(np.stack([right(count) for count in (80, 82, 81)]))
    assert f"{mean:.1%} [{100 * low:.1f}, {100 * high:.1f}] over 3 runs" in found["sentences"][0]
    assert (folder / "figures" / "parameters.png").stat().st_size > 1000
    assert (folder / "summary.md").read_text().count("\n| ") == 4


def test_jobs_that_fail_alike_are_explained_once(folder: Path) -> None:
    add(folder, 0, {"x": "a"}, None, reason="exit code 1\nin line 3\nValueError: no such layer")
    add(folder, 1, {"x": "b"}, None, reason="exit code 1\nin line 4\nValueError: no such layer")
    add(folder, 2, {"x": "c"}, None, reason="exit code 1\nin line 3\nValueError: another one")
    assert summary_files.write_summary(folder)["failures"] == [
        "job 0 (x=a): exit code 1\nin line 3\nValueError: no such layer",
        "job 1 (x=b): exit code 1, as job 0",
        "job 2 (x=c): exit code 1\nin line 3\nValueError: another one",
    ]


def test_a_failed_job_s_reason_begins_where_hydra_announces_it(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("epoch 1\nError executing job with overrides: ['seed=0']\n\nmust_reach: no\nhint\n")
    assert processes.last_lines(tmp_path / "log") == ["must_reach: no", "hint"]
    (tmp_path / "log").write_text("".join(f"epoch {at}\n" for at in range(9)))
    assert processes.last_lines(tmp_path / "log") == [f"epoch {at}" for at in range(3, 9)]


@pytest.mark.parametrize("objective, target, met", [("accuracy", 0.6, True), ("accuracy", 0.75, False),
                                                    ("loss", 0.4, True), ("loss", 0.3, False)])  # fmt: skip
def test_the_target_is_looked_for_in_new_results_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, objective: str, target: float, met: bool
) -> None:
    read: list[int] = []
    original = summary._row
    monkeypatch.setattr(summary, "_row", lambda job, *rest: read.append(job["number"]) or original(job, *rest))
    config = SimpleNamespace(objective=objective, sweep=SimpleNamespace(target=target))
    session: Any = SimpleNamespace(folder=folder, config=config, repeats=1)

    def reached() -> bool:
        Session.check_target(session)
        return bool(session.on_target)

    add(folder, 0, {"x": "1"}, right(50))
    add(folder, 1, {"x": "2", "seed": "0"}, right(80), status="NEW")
    (folder / "1" / "metrics.json").rename(folder / "1" / "later")
    assert not reached() and read == [0, 1]

    add(folder, 2, {"x": "2", "seed": "1"}, right(80))
    (folder / "1" / "later").rename(folder / "1" / "metrics.json")
    record = json.loads((folder / "1" / "job.json").read_bytes())
    (folder / "1" / "job.json").write_text(json.dumps(record | {"status": "FINISHED"}))
    assert reached() == met and read == [0, 1, 1, 2]
    assert reached() == met and len(read) == 4


def test_a_trial_whose_other_seeds_have_not_run_yet_is_neither_at_the_target_nor_ranked(folder: Path) -> None:
    about = json.loads((folder / "sweep.json").read_text()) | {"repeats": 2}
    (folder / "sweep.json").write_text(json.dumps(about))
    config = SimpleNamespace(objective="accuracy", sweep=SimpleNamespace(target=0.6))
    session: Any = SimpleNamespace(folder=folder, config=config, repeats=2)
    add(folder, 0, {"x": "lucky", "seed": "0"}, right(90))
    Session.check_target(session)
    assert not session.on_target
    assert summary_files.write_summary(folder)["winner"] is None
    add(folder, 1, {"x": "lucky", "seed": "1"}, right(90))
    Session.check_target(session)
    assert session.on_target
    assert summary_files.write_summary(folder)["winner"]["values"] == {"x": "lucky"}


def test_the_winner_of_which_labels_are_inspected_is_that_of_the_summary(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no job of this sweep has finished"):
        summary_files.winner_values(folder)
    about = json.loads((folder / "sweep.json").read_text()) | {"repeats": 2}
    (folder / "sweep.json").write_text(json.dumps(about))
    add(folder, 0, {"x": "lucky", "seed": "0"}, right(90))
    assert summary_files.winner_values(folder) == {"x": "lucky"}, "the best so far"
    for seed in range(2):
        add(folder, 1 + seed, {"x": "whole", "seed": str(seed)}, right(80))
    assert summary_files.winner_values(folder) == {"x": "whole"}
    sweep = {"rungs": {"whole": ["x=whole"], "lucky": ["x=lucky"]}, "climb": "significant", "jobs": 1}
    ladder = about | {"repeats": 1, "config": {"sweep": sweep, "data": {"folds": 5}}}
    (folder / "sweep.json").write_text(json.dumps(ladder))
    for path in folder.glob("*/job.json"):
        job = json.loads(path.read_text())
        path.write_text(json.dumps(job | {"place": {"rung": job["values"]["x"], "over": "", "ladder": {}}}))
    shutil.rmtree(folder / "0")
    add(folder, 0, {"x": "lucky", "seed": "0"}, right(81), place={"rung": "lucky", "over": "", "ladder": {}})
    assert summary_files.winner_values(folder) == {"x": "whole"}, "the cheapest rung that is not significantly worse"


def test_the_winner_is_not_compared_with_itself(folder: Path) -> None:
    for number, (key, count) in enumerate([("a", 90), ("b", 90), ("c", 80), ("d", 80)]):
        add(folder, number, {"x": key}, right(count))
    for copied, number in ((0, 1), (2, 3)):  # whose regime does not read x
        job = json.loads((folder / str(number) / "job.json").read_text())
        same = {"identity": f"job {copied}", "folder": str(folder / str(copied))}
        (folder / str(number) / "job.json").write_text(json.dumps(job | same))
    found = " ".join(summary_files.write_summary(folder)["sentences"])
    assert "Winner by validation accuracy: x=a" in found and "Runner-up: x=c" in found
    assert "2 of the 4 candidates are the same runs as others" in found
    assert "these two trained models are significantly different" in found
    assert "other candidates" not in found, "the one other is compared by name"
    assert "is the best of 2" in found


def test_a_real_difference_and_noise_are_distinguished(folder: Path) -> None:
    add(folder, 0, {"x": "1"}, right(95))
    add(folder, 1, {"x": "2"}, np.roll(right(95), 1))
    add(folder, 2, {"x": "3"}, right(60))
    found = " ".join(summary_files.write_summary(folder)["sentences"])
    assert "these two trained models are not significantly different" in found
    assert "1 of the 2 other candidates are not significantly different" in found
    assert "training noise is not in its interval" in found
    assert "To test the settings, sweep seeds as well: train -m seed=0,1,2" in found
    add(folder, 3, {"x": "4"}, right(98))
    found = " ".join(summary_files.write_summary(folder)["sentences"])
    assert "x=4 is better" in found and "3.0 points" in found and "p = 0.083" in found and "not significantly" in found
    (folder / "0").rename(folder.parent / "0")
    (folder / "1").rename(folder.parent / "1")
    found = " ".join(summary_files.write_summary(folder)["sentences"])
    assert "38.0 points" in found and "these two trained models are significantly different" in found


def test_folds_are_evaluated_together(folder: Path) -> None:
    for fold in range(2):
        add(folder, fold, {"x": "a", "data.fold": str(fold)}, right(90), first=100 * fold)
        add(folder, 2 + fold, {"x": "b", "data.fold": str(fold)}, right(60), first=100 * fold)
    found = summary_files.write_summary(folder)
    assert found["winner"]["values"] == {"x": "a"}
    text = " ".join(found["sentences"])
    assert "200 images, 1 seed of each, in folds)" in text and "corrected for training sets that overlap" in text
    assert "trained models" not in text


@pytest.mark.parametrize("numbers, shown", [([0, 2, 4], "0,2,4"), ([0, 1, 2, 3], "0-3"), ([1, 3, 5, 7], "1,3,...,7")])
def test_a_range_of_job_numbers_holds_no_job_of_another_candidate(numbers: list[int], shown: str, folder: Path) -> None:
    """If the seed is typed before the settings, numbers of candidates alternate."""
    for number in numbers:
        add(folder, number, {"seed": str(number)}, None)
    header, row = summary.table(summary.candidates(summary.read(folder)[1], "accuracy"), "accuracy")
    assert dict(zip(header, row, strict=True))["jobs"] == shown


def test_candidates_are_compared_in_the_metric_that_they_are_ranked_by(folder: Path) -> None:
    """Right on 90 of 100 images and unsure, against 80 and sure: better by accuracy, the other by loss."""
    candidates = {"unsure": (right(90), 0.51), "sure": (right(80), 0.99)}
    for at, (name, (correct, sure)) in enumerate(candidates.items()):
        for seed in range(3):
            add(folder, 3 * at + seed, {"x": name, "seed": str(seed)}, correct, sure=sure)

    def conclusion(objective: str) -> str:
        (folder / "sweep.json").write_text(json.dumps({"objective": objective, "command": "", "parent": None}))
        for path in folder.glob("*/metrics.json"):
            metrics = json.loads(path.read_text())
            loss = 0.9 if metrics["validation.accuracy"] == 0.8 else 0.68
            path.write_text(
                json.dumps(metrics | {"validation.loss": loss, "validation.f1": metrics["validation.accuracy"]})
            )
        return " ".join(summary_files.write_summary(folder)["sentences"])

    assert "x=unsure is better than x=sure by 10.0 points (" in conclusion("accuracy")
    by_loss = conclusion("loss")
    assert by_loss.startswith("Winner by validation loss: x=unsure")
    assert "x=unsure is better than x=sure by 0.2" in by_loss and "in loss (95 % interval -" in by_loss
    assert "100 images, 3 seeds of each)" in by_loss and "points" not in by_loss
    by_f1 = conclusion("f1")
    assert "The winner is chosen by f1; the comparisons that follow are of accuracy." in by_f1


def test_the_winner_stands_beside_the_most_frequent_class(folder: Path) -> None:
    add(folder, 0, {"x": "1"}, right(52))
    add(folder, 1, {"x": "2"}, right(50))
    found = summary_files.write_summary(folder)["sentences"]
    assert "The accuracy of the winner is not significantly above always predicting 'cat' (50.0 %)." in found


def test_results_of_another_run_are_in_no_row(folder: Path) -> None:
    """Whatever its files say, and also where only what was fetched of it is here."""
    add(folder, 0, {"x": "a"}, right(60))
    add(folder, 1, {"x": "b"}, right(99), identity="planned")
    (folder / "2").mkdir()
    add(folder / "2", 2, {"x": "c"}, right(98))
    (folder / "2" / "2").rename(folder / "fetched")
    for name in ("job.json", "metrics.json", "predictions_validation.csv"):
        (folder / "fetched" / name).rename(folder / "2" / name)
    (folder / "2" / "fetched.json").write_text(json.dumps({"identity": "another", "status": "FINISHED"}))
    found = summary_files.write_summary(folder)
    assert found["winner"]["values"] == {"x": "a"}
    assert [run["status"] for run in found["runs"]] == ["FINISHED", "NEW", "NEW"]
    assert [run["metrics"] for run in found["runs"][1:]] == [{}, {}]
    (folder / "2" / "fetched.json").write_text(json.dumps({"identity": "job 2", "status": "FINISHED"}))
    assert summary_files.write_summary(folder)["winner"]["values"] == {"x": "c"}


def test_the_test_score_of_a_former_winner_is_not_reported_beside_another(folder: Path) -> None:
    add(folder, 0, {"x": "a"}, right(60))
    add(folder, 1, {"x": "b"}, right(90))
    add(folder, 2, {"x": "a"}, right(65), final=True)
    (folder / "2" / "predictions_validation.csv").rename(folder / "2" / "predictions_test.csv")
    assert "65.0%" not in " ".join(summary_files.write_summary(folder)["sentences"])
    (folder / "1" / "run.json").unlink()  # so that the former winner is the winner
    found = " ".join(summary_files.write_summary(folder)["sentences"])
    assert "Read once on the test images: accuracy 65.0% [95 % interval 55.3, 73.6]" in found
    assert "; significantly above always predicting 'cat' (50.0 %)." in found


def test_the_final_runs_of_several_seeds_are_averaged(folder: Path) -> None:
    for seed, count in enumerate((60, 70)):
        add(folder, seed, {"x": "a", "seed": str(seed)}, right(60))
        add(folder, 2 + seed, {"x": "a", "seed": str(seed)}, right(count), final=True)
        place = folder / str(2 + seed)
        (place / "predictions_validation.csv").rename(place / "predictions_test.csv")
    sentence = summary_files.write_summary(folder)["sentences"][-1]
    low, high = (100 * bound for bound in score_interval(np.stack([right(60), right(70)]))[1:])
    assert f"accuracy 65.0% [95 % interval {low:.1f}, {high:.1f}], mean of 2 seeds; " in sentence


def test_a_winner_that_was_not_evaluated_again_is_not_called_without_held_out_images(folder: Path) -> None:
    add(folder, 0, {"x": "a"}, right(60))
    assert "has not been evaluated yet" in summary_files.write_summary(folder)["sentences"][-1], "a job may have failed"
    add(folder, 1, {"x": "a"}, right(60), final=True)  # without predictions for a test split
    assert summary_files.write_summary(folder)["sentences"][-1].startswith("No images were held back from the choice")
    about = json.loads((folder / "sweep.json").read_text()) | {"config": {"sweep": {"final": False}}}
    (folder / "sweep.json").write_text(json.dumps(about))
    found = summary_files.write_summary(folder)["sentences"][-1]
    assert found == "The winner was not evaluated on images that no job has read (sweep.final=false)."


def test_a_single_fold_leaves_the_given_validation_images_to_the_winner(folder: Path) -> None:
    add(folder, 0, {"x": "a"}, right(60), overrides=["x=a", "data.fold=0"])
    add(folder, 1, {"x": "a"}, right(65), overrides=["x=a", "data.fold=null"], final=True)
    found = summary_files.write_summary(folder)
    assert "Read once on the given validation images, which no job has read: accuracy 65.0%" in found["sentences"][-1]
    assert found["winner"]["folded"]


def test_given_validation_images_that_a_job_has_read_are_not_called_unread(folder: Path) -> None:
    for number, fold in enumerate(("0", "null")):
        add(folder, number, {"x": "a", "data.fold": fold}, right(60))
    add(folder, 2, {"x": "a"}, right(65), overrides=["x=a", "data.fold=null"], final=True)
    assert "No images were held back from the choice" in summary_files.write_summary(folder)["sentences"][-1]
    (folder / "2" / "predictions_validation.csv").rename(folder / "2" / "predictions_test.csv")
    assert "Read once on the test images: accuracy 65.0%" in summary_files.write_summary(folder)["sentences"][-1]


@pytest.mark.parametrize("settings, named", [
    ("best_weights: true", "best_weights"),
    ("early_stopping: 5\nschedule: {name: plateau}", "early_stopping, schedule=plateau"),
    ("threshold: {fixed: null, recall: 0.9}", "threshold.recall"),
])  # fmt: skip
def test_validation_images_that_steer_the_final_run_are_not_called_unbiased(
    folder: Path, settings: str, named: str
) -> None:
    add(folder, 0, {"x": "a"}, right(60), overrides=["x=a", "data.fold=0"])
    add(folder, 1, {"x": "a"}, right(65), overrides=["x=a", "data.fold=null"], final=True)
    config = folder / "1" / "config.yaml"
    config.write_text("best_weights: false\nearly_stopping: null\nthreshold: {fixed: 0.3}\noutputs: o")
    assert summary_files.write_summary(folder)["sentences"][-1].startswith("Read once on the given validation images")
    config.write_text(f"{settings}\noutputs: o")
    score, biased = summary_files.write_summary(folder)["sentences"][-2:]
    assert score.startswith("Evaluated on the given validation images, which no job has read: accuracy 65.0%")
    assert biased.startswith(f"These images have steered the final run ({named}), so this accuracy is biased upward.")
    shutil.copy(folder / "1" / "predictions_validation.csv", folder / "1" / "predictions_test.csv")
    assert summary_files.write_summary(folder)["sentences"][-1].startswith("Read once on the test images: accuracy 65")


def test_the_summary_of_a_stopped_sweep_leaves_the_status_of_its_mlflow_run(
    folder: Path, run_verb: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[Any] = []
    monkeypatch.setattr(summary_runs, "end_sweep", lambda *given: ends.append(given[-1]))
    about = json.loads((folder / "sweep.json").read_text())
    config = {"tracking": {"uri": "sqlite:///mlflow.db"}}
    (folder / "sweep.json").write_text(json.dumps(about | {"parent": "an id", "config": config}))
    add(folder, 0, {"x": "a"}, right(60))
    run_verb(summarize, folder)
    add(folder, 1, {"x": "b"}, None, status="NEW")
    (folder / "1" / "run.json").unlink()
    run_verb(summarize, folder)
    (folder / "1" / "run.json").write_text(json.dumps({"command": {}, "status": "KILLED", "identity": "job 1"}))
    run_verb(summarize, folder)
    assert ends == ["FINISHED", None, None]


def test_the_summary_of_a_sweep_whose_outputs_were_moved_is_logged_to_the_store_that_was_moved_with_them(
    folder: Path, tmp_path: Path, run_verb: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stores: list[str] = []
    monkeypatch.setattr(summary_runs, "end_sweep", lambda uri, *_: stores.append(uri))
    monkeypatch.setenv("EXPERIMENTS_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    there = tmp_path / "there.db"
    config = {"tracking": {"uri": f"sqlite:///{there}"}}
    about = json.loads((folder / "sweep.json").read_text()) | {"parent": "an id", "config": config}
    (folder / "sweep.json").write_text(json.dumps(about))
    add(folder, 0, {"x": "a"}, right(60))
    run_verb(summarize, folder)
    there.touch()
    run_verb(summarize, folder)
    assert stores == [f"sqlite:///{tmp_path}/mlflow.db", f"sqlite:///{there}"]


def test_the_swept_key_loss_stands_beside_the_objective_loss(folder: Path) -> None:
    about = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(about | {"objective": "loss"}))
    add(folder, 0, {"loss": "focal"}, right(60))
    summary_files.write_summary(folder)
    (row,) = Sweep(folder).summary.to_dict("records")
    assert row["params.loss"] == "focal" and row["loss"] == pytest.approx(0.4)
    assert row["loss_low"] < 0.4 < row["loss_high"] and row["jobs"] == [0]


def test_without_a_finished_job_there_is_no_winner(folder: Path) -> None:
    add(folder, 0, {"x": "1"}, None, reason="broke")
    found = summary_files.write_summary(folder)
    assert found["winner"] is None and "no winner" in found["sentences"][0]
    with pytest.raises(ConfigError, match=r"no sweep's folder"):
        summary.read(folder / "0")


def test_ticks_of_crowded_values_do_not_overlap() -> None:
    values = ("1", "2", "3", "1000", "1024")
    scored = [summary.Candidate({"n": value}, [], Interval(0.5 + 0.1 * at)) for at, value in enumerate(values[:3])]
    figure = plots.against_keys([*scored, summary.Candidate({"n": "32"}, [], Interval(0.9))], ["n"], "accuracy")
    figure.canvas.draw()
    labels = figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["1", "32"]
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    at, ticks = plots.places(values)
    assert len(at) == 5 and [text for _, text in ticks] == ["1", "3", "1000"], "on a logarithmic scale"


def test_long_names_leave_room_for_the_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary.Candidate, "seconds", 3.0)
    values = {f"model.head.key{at}": "a long value" for at in range(9)}
    candidates = [summary.Candidate(values | {"n": str(at)}, [], Interval(0.9 - 0.1 * at)) for at in range(3)]
    for figure in (
        plots.against_time(candidates, "accuracy"),
        plots.parallel(candidates, ["n", "model.head.key0"], "accuracy"),
    ):
        figure.canvas.draw()
        drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height, "inside the figure"
        place = figure.axes[0].get_position()
        assert place.width > 0.7 and place.height > 0.5


def test_the_figures_of_a_sweep_name_the_best_candidate_and_draw_the_mean_of_each_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(summary.Candidate, "seconds", 3.0)
    scores = {("1", "a"): 0.9, ("2", "a"): 0.8, ("1", "b"): 0.6, ("2", "b"): 0.5}
    ranked = [summary.Candidate({"n": n, "x": x}, [], Interval(score)) for (n, x), score in scores.items()]
    assert plots.against_time(ranked, "accuracy").get_suptitle() == "best: n=1 x=a"
    panels = plots.against_keys(ranked, ["n", "x"], "accuracy").axes
    means = [line.get_ydata() for panel in panels for line in panel.lines if line.get_label() == "mean"]
    assert np.asarray(means) == pytest.approx(np.array([[0.75, 0.65], [0.85, 0.55]]))
    bounded = [*ranked[:1], summary.Candidate({}, [], Interval(0.9, 0.5, 1.0))]
    assert plots.error_bars(bounded) == pytest.approx(np.array([[0, 0.4], [0, 0.1]])), "below, and above"


def test_a_winner_over_folds_is_compared_with_the_baseline_of_all_their_images(folder: Path) -> None:
    for fold, right in enumerate((30, 3, 3)):  # the first fold has as many cats as dogs, the others one more cat each
        add(folder, fold, {"seed": "0", "data.fold": str(fold)}, np.arange(30 if fold == 0 else 3) < right, 1000 * fold)
    (candidate,) = summary.candidates(summary.read(folder)[1], "accuracy")
    baseline: Any = candidate.baseline
    assert baseline == ("cat", pytest.approx(19 / 36))
    assert "always predicting 'cat' (52.8 %)" in " ".join(summary_files.write_summary(folder)["sentences"])


@pytest.mark.parametrize("name", ["sweep.json", "0/job.json"])
def test_a_damaged_record_of_a_sweep_is_named(name: str, folder: Path) -> None:
    add(folder, 0, {"a": "1"}, right(60))
    summary.read(folder)
    (folder / name).write_text((folder / name).read_text()[:40])
    with pytest.raises(ConfigError, match=f"{folder / name}: is not as this program has written it"):
        summary.read(folder)
