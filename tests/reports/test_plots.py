"""Content of the figures, read from Matplotlib's artists; each figure is rendered to check that nothing is cut off."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import average_precision_score, roc_auc_score

from experiments.comparison import plots as comparison_plots
from experiments.evaluation.decision import Decision
from experiments.evaluation.evaluate import Report, evaluate
from experiments.evaluation.statistics import reliability
from experiments.reports import figure_style, plots
from experiments.training.types import EpochRecord
from tests.evaluation.test_evaluate import FLOWERS, PETS, random_report, splits_of


def report_of(classes: tuple[str, ...], labels: list[int], scores: np.ndarray) -> Report:
    return evaluate({"validation": scores}, splits_of(classes, labels))["validation"]


def history(*phases: tuple[str, int], validation: bool = True) -> list[EpochRecord]:
    names = [(phase, epoch) for phase, epochs in phases for epoch in range(epochs)]
    records = []
    for step, (phase, epoch) in enumerate(names):
        metrics = {"loss": 1 / (step + 1), "accuracy": 1 - 1 / (step + 2)}
        if validation:
            metrics |= {"validation_loss": 1.2 / (step + 1), "validation_accuracy": 0.9 - 1 / (step + 2)}
        records.append(EpochRecord(step, phase, epoch, 0, metrics))
    return records


def solid_images(count: int) -> np.ndarray:
    return np.repeat(np.arange(count, dtype=np.uint8), 6 * 4 * 3).reshape(count, 6, 4, 3)  # image i is all i


def curve(line: Line2D) -> np.ndarray:
    """[2, points]: x and y."""
    return np.array([line.get_xdata(), line.get_ydata()], float)


def shown_pixels(axes: Axes) -> np.ndarray:
    """The array that the only image of the axes shows."""
    (image,) = axes.images
    return np.asarray(image.get_array())


def texts(figure: Figure) -> list[str]:
    """Every text of the figure's axes."""
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def changes(figure: Figure) -> list[float]:
    """Where the phase-change lines of the first axes stand."""
    return [curve(line)[0, 0] for line in figure.axes[0].lines if line.get_gid() == "phase change"]


def legend(figure: Figure) -> list[str]:
    box = figure.axes[0].get_legend()
    assert box is not None
    return [text.get_text() for text in box.get_texts()]


EVERY_FIGURE: dict[str, Callable[[], Figure]] = {
    "curves": lambda: plots.learning_curves(history(("head", 2), ("finetune", 30))),
    "compared curves": lambda: comparison_plots.compared_curves(
        {"1 a long name of a row " * 4: [history(("head", 2))]}
    ),
    "intervals": lambda: comparison_plots.intervals(
        ["1 scratch", "2 a=$x b=$y " * 9], [(0.5, 0.4, 0.6), (0.8, 0.7, 0.9)], [None, (0.3, 0.1, 0.5)], "validation"
    ),
    "confusion": lambda: plots.confusion_matrix(random_report(FLOWERS)),
    "roc": lambda: plots.roc(random_report(PETS)),
    "roc, many classes": lambda: plots.roc(random_report(tuple(f"class {i}" for i in range(30)), 900)),
    "confusion, many classes": lambda: plots.confusion_matrix(
        random_report(tuple(f"class {i}" for i in range(40)), 900)
    ),
    "precision and recall": lambda: plots.precision_recall(random_report(PETS)),
    "best epoch": lambda: plots.learning_curves(records := history(("head", 2), ("finetune", 9)), records[4]),
    "calibration": lambda: plots.calibration(random_report(PETS)),
    "risk and coverage": lambda: plots.risk_coverage(random_report(PETS)),
    "grid": lambda: plots.image_grid(solid_images(8), [f"a rather long title, number {i}" for i in range(8)]),
    "mistakes": lambda: plots.mistakes(random_report(PETS), lambda rows: solid_images(len(rows))),
    "a mistake": lambda: plots.mistakes(report_of(PETS, [0], np.array([[0.1, 0.9]])), lambda _: solid_images(1)),
    "no mistakes": lambda: plots.mistakes(report_of(PETS, [0], np.array([[0.9, 0.1]])), lambda _: solid_images(0)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("draw", EVERY_FIGURE.values(), ids=EVERY_FIGURE)
def test_everything_drawn_lies_on_the_figure_and_no_global_state_changes(draw: Callable[[], Figure]) -> None:
    before = dict(matplotlib.rcParams)
    figure = draw()
    assert dict(matplotlib.rcParams) == before
    figure.canvas.draw()
    drawn = figure.get_tightbbox()  # inches
    width, height = figure.get_size_inches()
    assert figure.dpi == 100
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height


@pytest.mark.parametrize("name", ["curves", "confusion", "grid"])
def test_a_style_of_the_user_changes_no_figure(name: str) -> None:
    """Such as that of a notebook after `plt.style.use("dark_background")`, or of a matplotlibrc."""
    expected = [figure_style.save_figure(EVERY_FIGURE[name](), kind) for kind in ("png", "svg")]
    others: Any = {
        "text.color": "white", "axes.facecolor": "black", "font.size": 30, "savefig.bbox": "tight", "text.usetex": True,
        "savefig.facecolor": "red", "image.cmap": "jet", "svg.hashsalt": "other", "font.family": "monospace",
    }  # fmt: skip
    with matplotlib.rc_context(others):
        assert [figure_style.save_figure(EVERY_FIGURE[name](), kind) for kind in ("png", "svg")] == expected
        assert matplotlib.rcParams["text.color"] == "white"


def test_curves_mark_where_the_phase_changes() -> None:
    figure = plots.learning_curves(history(("head", 3), ("finetune", 5)))
    assert changes(figure) == [2.5]  # between step 2, the last of the head, and step 3
    assert texts(figure) == ["head", "finetune"]
    assert changes(plots.learning_curves(history(("scratch", 8)))) == []


def test_curves_show_each_metric_at_its_step() -> None:
    records = history(("head", 3), ("finetune", 5))
    figure = plots.learning_curves(records)
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        lines = {str(line.get_label()): line for line in axes.lines}
        assert axes.get_ylabel() == name
        for label, key in (("training", name), ("validation", f"validation_{name}")):
            assert_allclose(curve(lines[label]).T, [(record.step, record.metrics[key]) for record in records])


def test_curves_without_validation_show_training_alone() -> None:
    assert legend(plots.learning_curves(history(("scratch", 4), validation=False))) == ["training"]


def test_the_best_epoch_is_marked() -> None:
    records = history(("head", 3), ("finetune", 5))
    figure = plots.learning_curves(records, best=records[6])
    assert legend(figure) == ["training", "validation", "best epoch (4 of finetune)"]
    assert all(curve(axes.lines[2])[0].tolist() == [6, 6] for axes in figure.axes)


def test_confusion_shows_counts_and_shares_under_class_names() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.1, 0.9]])
    figure = plots.confusion_matrix(report_of(PETS, [0, 0, 0, 0, 1], scores))
    axes = figure.axes[0]
    assert texts(figure) == ["3\n75%", "1\n25%", "1\n100%"], "cells without images are blank"
    assert_allclose(shown_pixels(axes), [[0.75, 0.25], [0.0, 1.0]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_long_class_names_keep_both_ends() -> None:
    long = ("n02085620-Chihuahua_of_the_long_haired_kind", "dog")
    figure = plots.confusion_matrix(random_report(long))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["n02085620-Ch…ired_kind", "dog"]


def test_binary_roc_is_one_curve_of_class_one() -> None:
    report = random_report(PETS)
    truth = [row.label == "dog" for row in report.predictions]
    area = roc_auc_score(truth, [row.probabilities["dog"] for row in report.predictions])
    assert legend(plots.roc(report)) == ["chance", f"dog (AUC {area:.3f})"]


def test_multi_class_roc_has_a_curve_per_class_and_names_the_undefined() -> None:
    shown = legend(plots.roc(random_report(FLOWERS)))
    assert [text.split(" (AUC")[0] for text in shown] == ["chance", *FLOWERS]
    scores = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]])
    assert legend(plots.roc(report_of(FLOWERS, [0, 1], scores)))[3] == "tulip (undefined: 0 of 2 images)"


def test_precision_and_recall_have_the_average_precision_and_chance() -> None:
    report = random_report(PETS)
    truth = [row.label == "dog" for row in report.predictions]
    area = average_precision_score(truth, [row.probabilities["dog"] for row in report.predictions])
    figure = plots.precision_recall(report)
    assert legend(figure) == ["chance", f"dog (AP {area:.3f})"]
    assert_allclose(curve(figure.axes[0].lines[0])[1], np.mean(truth))
    names = [text.split(" (AP")[0] for text in legend(plots.precision_recall(random_report(FLOWERS)))]
    assert names == list(FLOWERS), "chance differs between classes"


def test_calibration_names_the_error_and_the_images_per_bin() -> None:
    report = random_report(PETS)
    bins = reliability(
        np.array([row.confidence for row in report.predictions]), np.array([row.correct for row in report.predictions])
    )
    figure = plots.calibration(report)
    assert f"{bins.error:.3f}" in figure.axes[0].get_title(loc="left")
    assert [int(text) for text in texts(figure) if text] == bins.counts[bins.counts > 0].tolist()
    drawn = next(line for line in figure.axes[0].lines if line.get_label() == "bins")
    assert_allclose(curve(drawn), [bins.confidence[bins.counts > 0], bins.accuracy[bins.counts > 0]])


def test_calibration_does_not_depend_on_the_threshold_of_a_class() -> None:
    report = random_report(PETS)
    scores = np.array([list(row.probabilities.values()) for row in report.predictions])
    dataset = splits_of(PETS, [PETS.index(row.label) for row in report.predictions])
    picky = evaluate({"validation": scores}, dataset, decision=Decision("dog", 0.9))["validation"]
    titles = [plots.calibration(each).axes[0].get_title(loc="left") for each in (report, picky)]
    assert titles[0] == titles[1] and f"error {picky.metrics['calibration_error']:.3f}" in titles[1]


def test_calibration_shows_every_filled_bin() -> None:
    scores = np.array([[0.5, 0.5], [0.999, 0.001]])
    figure = plots.calibration(report_of(PETS, [0, 0], scores))
    low, high = figure.axes[1].get_xlim()
    assert low <= 7 / 15 and high == 1


def test_risk_coverage_names_its_area_and_starts_with_the_most_confident_images() -> None:
    report = random_report(FLOWERS)
    figure = plots.risk_coverage(report)
    perfect, drawn = figure.axes[0].lines
    correct = np.array([row.correct for row in report.predictions])
    by_hand = 1 - np.cumsum(correct[np.argsort([-row.confidence for row in report.predictions])]) / np.arange(1, 201)
    assert_allclose(curve(drawn)[1], by_hand)
    assert curve(drawn)[1][-1] == pytest.approx(curve(perfect)[1][-1]) == pytest.approx(np.mean(~correct))
    assert f"AURC {by_hand.mean():.3g}" in figure.axes[0].get_title(loc="left")
    assert figure.axes[0].get_ylim()[1] >= by_hand[19:].max()


def test_the_risk_of_the_first_images_does_not_leave_the_axes() -> None:
    confident = np.linspace(0.99, 0.6, 40)
    figure = plots.risk_coverage(report_of(PETS, [1, 1, *[0] * 38], np.stack([confident, 1 - confident], axis=1)))
    figure.draw_without_rendering()
    (panel,) = figure.axes
    assert panel.get_ylim()[1] < 1 and figure.bbox.y1 > panel.get_tightbbox().y1


def test_risk_coverage_of_images_of_one_confidence() -> None:
    figure = plots.risk_coverage(report_of(PETS, [0, 0], np.array([[0.9, 0.1], [0.1, 0.9]])))
    x, y = curve(figure.axes[0].lines[1])
    assert (x.tolist(), y.tolist()) == ([1], [0.5])


def test_grid_shows_images_in_order_under_their_titles() -> None:
    figure = plots.image_grid(solid_images(8), [f"view {i}" for i in range(8)], columns=3)
    assert [axes.get_title() for axes in figure.axes] == [f"view {i}" for i in range(8)]
    for value, axes in enumerate(figure.axes):
        assert_array_equal(shown_pixels(axes), np.full((6, 4, 3), value))
    assert len({round(axes.get_position().x0, 3) for axes in figure.axes}) == 3


def test_grid_rounds_and_clips_floats_to_the_pixels_they_stand_for() -> None:
    floats = np.stack([np.full((4, 4, 3), value) for value in (-3.0, 127.6, 260.0)])
    figure = plots.image_grid(floats, ["", "", ""])
    assert [int(shown_pixels(axes)[0, 0, 0]) for axes in figure.axes] == [0, 128, 255]


def test_mistakes_show_the_most_confident_first(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.array([[0.4, 0.6], [0.9, 0.1], [0.05, 0.95], [0.8, 0.2], [0.3, 0.7]])
    report = report_of(PETS, [0, 0, 0, 1, 0], scores)  # wrong: rows 0, 2, 3, 4
    requested: list[list[int]] = []

    def pixels_of(rows: list[int]) -> np.ndarray:
        requested.append(rows)
        return solid_images(10)[rows]

    monkeypatch.setattr(plots, "MOST_MISTAKES", 3)
    figure = plots.mistakes(report, pixels_of)
    assert requested == [[2, 3, 4]]
    assert [axes.get_title() for axes in figure.axes] == [
        "2.jpg\ntrue cat\npredicted dog\n95.0%",
        "3.jpg\ntrue dog\npredicted cat\n80.0%",
        "4.jpg\ntrue cat\npredicted dog\n70.0%",
    ]
    assert [int(shown_pixels(axes)[0, 0, 0]) for axes in figure.axes] == [2, 3, 4]
    assert figure.get_suptitle() == "Mistakes, validation: 4 of 5 images\nthe 3 most confident"


def test_without_mistakes_the_figure_has_a_message_and_needs_no_pixels() -> None:
    def pixels_of(rows: list[int]) -> np.ndarray:
        raise AssertionError(f"requested: {rows}")

    figure = plots.mistakes(report_of(PETS, [0, 1], np.array([[0.9, 0.1], [0.2, 0.8]])), pixels_of)
    assert [text.get_text() for text in figure.texts] == ["No mistakes among the 2 images of validation"]


def test_compared_curves_show_the_mean_of_runs_and_where_their_phase_changes() -> None:
    short, long = history(("head", 2)), history(("head", 2), ("finetune", 2))
    shifted = [replace(run, metrics={name: value + 0.1 for name, value in run.metrics.items()}) for run in long]
    figure = comparison_plots.compared_curves({"1 bottleneck": [short], "2 finetune": [long, shifted]})
    accuracy = figure.axes[0]
    full = [line for line in accuracy.lines if line.get_linestyle() == "-" and line.get_linewidth() > 1]
    assert_array_equal(curve(full[0])[0], [0, 1])
    expected = [run.metrics["validation_accuracy"] + 0.05 for run in long]
    assert_allclose(curve(full[1]), np.array([[0, 1, 2, 3], expected]))
    assert [line.get_markevery() for line in full] == [[], [2]]
    assert len(accuracy.lines) == 1 + 1 + 2 + 1 + 1, "of several runs each one, too; training dotted"
    (names,) = (legend for legend in figure.legends)
    assert [text.get_text() for text in names.get_texts()] == ["1 bottleneck", "2 finetune"]


def test_intervals_stand_in_the_order_of_the_rows_around_no_difference() -> None:
    scores = [(0.5, 0.4, 0.6), (0.8, 0.7, 0.9), (0.55, 0.4, 0.7)]
    differences = [None, (0.3, 0.1, 0.5), (0.05, -0.1, 0.2)]
    left, right = comparison_plots.intervals(["1", "2", "3"], scores, differences, "validation").axes
    bars = [line for line in right.lines if line.get_linestyle() == "-" and line.get_marker() == "None"]
    assert_allclose([curve(bar)[0] for bar in bars], [[10, 50], [-10, 20]])
    assert [bar.get_color() for bar in bars] == [figure_style.VALIDATION, figure_style.TRAIN], (
        "beyond chance in another colour"
    )
    assert [text.get_text() for text in left.get_yticklabels()] == ["1", "2", "3"] and left.yaxis_inverted()


HOSTILE = ("$\\frac{", "a$b$c", "_under", "a\nb", "\x1b[31mx", "<b>&", "n" * 200, "😀 \u202egpj", "שלום")


def test_foreign_names_are_drawn_character_by_character(recwarn: pytest.WarningsRecorder) -> None:
    report = random_report(HOSTILE)
    for figure in (
        plots.confusion_matrix(report),
        plots.roc(report),
        plots.mistakes(report, lambda rows: solid_images(len(rows))),
        comparison_plots.intervals(HOSTILE, [(0.5, 0.4, 0.6)] * 9, [None, *[(0.0, -0.1, 0.1)] * 8], "validation"),
        comparison_plots.compared_curves({name: [history(("scratch", 2))] for name in HOSTILE}),
        plots.image_grid(solid_images(9), [plots.label_title(np.array(at), HOSTILE) for at in range(9)]),
    ):
        figure.canvas.draw()  # an invalid formula would raise here
    assert not [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)]
    shown = plots.roc(report).axes[0].get_legend()
    assert shown is not None
    texts = [text.get_text() for text in shown.get_texts()]
    assert len(texts) == 1 + len(HOSTILE), "the one with an underscore among them"
    assert texts[1].startswith("\\$\\frac{ (AUC") and texts[2].startswith("a\\$b\\$c (AUC")
    assert texts[4].startswith("a\\nb (AUC") and texts[5].startswith("\\x1b[31mx (AUC")
    assert texts[7].startswith(f"{'n' * 12}…{'n' * 9} (AUC") and "\u202e" not in texts[8]
    assert texts[9].startswith("\u2068שלום\u2069 (AUC"), "isolated: its direction is its own"
