"""Figures of runs: learning curves, confusion matrix, ROC, calibration, grids of images.

Each function returns a Matplotlib Figure; nothing is saved.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

from experiments.evaluation import selective
from experiments.evaluation.calibration import arrays_of, confidences_of
from experiments.evaluation.evaluate import Report
from experiments.evaluation.per_class import confusion_shares
from experiments.evaluation.statistics import reliability
from experiments.reports.figure_style import (
    BANDS,
    MOST_IN_LEGEND,
    QUIET,
    SMALL,
    STYLE,
    TITLE,
    TRAIN,
    VALIDATION,
    colors,
    literal,
    name_ticks,
    new_figure,
    short,
)
from experiments.training.types import EpochRecord

# Up to this number of classes, the cells of a confusion matrix have room for numbers, and for shares below them.
MOST_NUMBERED, MOST_WITH_SHARES = 60, 10
MOST_MISTAKES = 12  # that a figure shows
LEAST_COVERAGE = 0.1  # the axis of risks reaches to the highest risk from this coverage on


@STYLE
def learning_curves(history: Sequence[EpochRecord], best: EpochRecord | None = None) -> Figure:
    """Draw loss and accuracy over the steps of a run, for training and validation, with the phases as labelled bands.

    Metrics that the records lack are not drawn. A vertical line marks the best epoch, if it is given.
    """
    figure = new_figure(7.5, 6)
    axes = figure.subplots(2, 1, sharex=True)
    for panel, name in zip(axes, ("loss", "accuracy"), strict=True):
        for prefix, label, color in (("", "training", TRAIN), ("validation_", "validation", VALIDATION)):
            key = prefix + name
            points = [(record.step, record.metrics[key]) for record in history if key in record.metrics]
            if points:
                panel.plot(*zip(*points, strict=True), marker="o", markersize=3, color=color, label=label)
        if best:
            label = f"best epoch ({best.epoch + 1} of {best.phase})"
            panel.axvline(best.step, color=QUIET, linestyle=":", linewidth=1.4, zorder=1, label=label)
        panel.set_ylabel(name)
    axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1.08), ncols=3, borderaxespad=0)
    axes[0].set_title("Learning curves", pad=24)
    axes[1].set_xlabel("step (epochs, counted on over the phases)")
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _phases(axes, history)
    return figure


@STYLE
def confusion_matrix(report: Report) -> Figure:
    """Draw the confusion matrix: counts of true against predicted classes, shaded by the share of each true class."""
    counts, shares = report.confusion, confusion_shares(report.confusion)
    names = [literal(short(name)) for name in report.classes]
    numbered, with_shares = len(names) <= MOST_NUMBERED, len(names) <= MOST_WITH_SHARES
    side = min(3.2 + (0.62 if with_shares else 0.32 if numbered else 0.25) * len(names), 40)
    figure = new_figure(side + 1, side)
    panel = figure.add_subplot()
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    panel.grid(visible=False)
    name_ticks(panel, range(len(names)), names)
    panel.set_yticks(range(len(names)), names)
    panel.set_xlabel("predicted")
    panel.set_ylabel("true")
    accuracy, images = report.metrics["accuracy"], len(report.predictions)
    panel.set_title(f"Confusion, {report.split}\naccuracy {accuracy:.1%} of {images} images")
    for row, column in np.argwhere(counts) if numbered else ():
        count, share = counts[row, column], shares[row, column]
        text = f"{count}\n{share:.0%}" if with_shares else str(count)
        color = "white" if share > 0.55 else "#333333"
        panel.text(column, row, text, ha="center", va="center", fontsize=SMALL, color=color)
    bar = figure.colorbar(image, ax=panel, shrink=0.8, format=PercentFormatter(xmax=1, decimals=0))
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    return figure


@STYLE
def roc(report: Report) -> Figure:
    """Draw the ROC curves with the areas under them: of the positive one of two classes, else one-vs-rest.

    A class to which no image or every image belongs has no curve and is marked as undefined in the legend.
    """

    def curve(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
        false_positive, true_positive, _ = roc_curve(truth, scores)
        return false_positive, true_positive, f"AUC {auc(false_positive, true_positive):.3f}"

    figure = _class_curves(report, "ROC", curve, chance=(0, 1), corner="lower right")
    figure.axes[0].set(xlabel="false positive rate", ylabel="true positive rate")
    return figure


@STYLE
def precision_recall(report: Report) -> Figure:
    """Draw precision against recall, with the average precision: of the classes for which `roc` draws a curve.

    Precision at chance is the share of the class among the images; for two classes it is drawn as a line.
    """

    def curve(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
        precision, recall, _ = precision_recall_curve(truth, scores)
        return recall, precision, f"AP {average_precision_score(truth, scores):.3f}"

    positive = report.decision.positive
    share = float(np.mean([row.label == positive for row in report.predictions]))
    chance = None if positive is None else (share, share)
    figure = _class_curves(report, "Precision and recall", curve, chance, corner="lower left")
    for line in figure.axes[0].lines:
        line.set_drawstyle("steps-post")  # Precision between two recalls is not on the straight line between them.
    figure.axes[0].set(xlabel="recall", ylabel="precision")
    return figure


def _class_curves(
    report: Report, title: str, curve: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, str]],
    chance: tuple[float, float] | None, corner: Literal["lower left", "lower right"],
) -> Figure:  # fmt: skip
    """Return a figure of one curve for two classes, else one for each class against the rest.

    Args:
        title: of the figure, without the split.
        curve: whether each image is of the class [N] bool, its probabilities [N] -> x and y of the curve, its area.
        chance: y of a classifier that guesses, at x = 0 and x = 1; None if it differs between the classes.
        corner: where the legend is, if it is short.
    """
    positive = report.decision.positive
    shown = report.classes if positive is None else (positive,)
    crowded = len(shown) > MOST_IN_LEGEND
    columns = -(-len(shown) // 24)
    figure = new_figure(6 + 3.6 * columns if crowded else 6, 6)
    panel = figure.add_subplot()
    if chance:
        panel.plot([0, 1], chance, color=QUIET, linestyle=":", linewidth=1.2, label="chance")
    for color, name in zip(colors(len(shown)), shown, strict=True):
        truth = np.array([row.label == name for row in report.predictions])
        shown_name = literal(short(name))
        if truth.all() or not truth.any():
            panel.plot([], [], color=color, label=f"{shown_name} (undefined: {truth.sum()} of {truth.size} images)")
            continue
        x, y, area = curve(truth, np.array([row.probabilities[name] for row in report.predictions]))
        panel.plot(x, y, color=color, clip_on=False, label=f"{shown_name} ({area})")
    panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    panel.set_title(f"{title}, {report.split}{', each class against the rest' if positive is None else ''}")
    if crowded:
        panel.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), ncols=columns)
    else:
        panel.legend(loc=corner)
    return figure


def ranking(report: Report) -> dict[str, Figure]:
    """Draw the figures about the order and the size of the confidences; calibration only of probabilities."""
    drawn = {"roc": roc(report), "risk_coverage": risk_coverage(report)}
    return drawn | ({"calibration": calibration(report)} if "calibration_error" in report.metrics else {})


@STYLE
def calibration(report: Report) -> Figure:
    """Draw the reliability diagram: accuracy against confidence of the predicted class, and the images in each bin.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, figure 1.
    """
    probabilities, labels = arrays_of(report.predictions)
    bins = reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    figure = new_figure(6, 6.5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = bins.counts > 0
    left, width = bins.edges[:-1], np.diff(bins.edges)
    above.plot([0, 1], [0, 1], color=QUIET, linestyle=":", linewidth=1.2, label="perfectly calibrated")
    heights = np.nan_to_num(bins.accuracy)
    above.bar(left, heights, width, align="edge", color=TRAIN, alpha=0.25, edgecolor="white")
    above.plot(bins.confidence[filled], bins.accuracy[filled], marker="o", markersize=5, color=TRAIN, label="bins")
    above.set(ylim=(0, 1.02), ylabel="accuracy in the bin")
    above.set_title(f"Calibration, {report.split}: expected calibration error {bins.error:.3f}")
    above.legend(loc="upper left")
    bars = below.bar(left, bins.counts, width, align="edge", color=QUIET, alpha=0.6, edgecolor="white")
    below.bar_label(bars, [str(count) if count else "" for count in bins.counts], fontsize=SMALL, padding=1)
    below.margins(y=0.25)
    below.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True, min_n_ticks=1))
    below.set(ylabel="images", xlabel="confidence (probability of the predicted class)")
    lowest = 1 / probabilities.shape[1]  # The most probable class cannot have a lower probability.
    below.set_xlim(left[np.searchsorted(bins.edges, lowest) - 1], 1)
    return figure


@STYLE
def risk_coverage(report: Report) -> Figure:
    """Draw the share of mistakes among the most confident images, over the share of images that these are.

    The curve is beside that of a perfect ranking, which rejects all mistakes first; see `selective.risk_coverage`.
    """
    curve = selective.risk_coverage(*confidences_of(report.predictions))
    figure = new_figure(6.5, 4.5)
    panel = figure.add_subplot()
    images, wrong = int(curve.answered[-1]), int(curve.wrong[-1])
    ranks = np.arange(1, images + 1)
    perfect = np.maximum(0, ranks - (images - wrong)) / ranks
    panel.plot(ranks / images, perfect, color=QUIET, linestyle=":", linewidth=1.2, label="perfect ranking")
    panel.plot(curve.coverage, curve.risk, color=TRAIN, label="by confidence")
    # The risk of the first few images is noise, which would hide the rest of the curve.
    shown = float(curve.risk[curve.coverage >= min(LEAST_COVERAGE, curve.coverage[-1])].max())
    highest = max(1.15 * shown, 0.01)
    panel.set(xlim=(0, 1), ylim=(-0.005 * highest, highest))  # a curve along 0 keeps its width
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(PercentFormatter(xmax=1))
    panel.set_xlabel("coverage: images that are answered, the most confident first")
    panel.set_ylabel("risk: mistakes among them")
    mistakes = f"{wrong} mistake{'' if wrong == 1 else 's'} in {images} images"
    panel.set_title(f"Risk and coverage, {report.split}: {mistakes}, AURC {curve.area:.3g}")
    panel.legend(loc="upper left")
    return figure


@STYLE
def image_grid(pixels: np.ndarray, titles: Sequence[str], columns: int = 6) -> Figure:
    """Draw a grid of images, each under its title, which may contain line breaks; long lines are wrapped.

    The pixels are [N, H, W, 3] uint8, or float in [0, 255], which are clipped and rounded; N >= 1.
    """
    shown = pixels if pixels.dtype == np.uint8 else np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    wrapped = ["\n".join(part for line in title.split("\n") for part in textwrap.wrap(line, 22)) for title in titles]
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    lines = max(title.count("\n") + 1 for title in wrapped)
    # The minimum width keeps the figure's own title from being cut off above a single column.
    figure = new_figure(
        max(1.75 * columns, 4.5), (1.75 * pixels.shape[1] / pixels.shape[2] + 0.17 * lines) * rows + 0.5
    )
    for index, (image, title) in enumerate(zip(shown, wrapped, strict=True)):
        panel = figure.add_subplot(rows, columns, index + 1)
        panel.imshow(image)
        panel.set_title(literal(title), fontsize=SMALL, loc="center", pad=3)
        panel.set_axis_off()
    return figure


def label_title(label: np.ndarray, classes: Sequence[str]) -> str:
    """Return the class name of a label [] int; for shares of classes [C], the names with percentages."""
    if label.ndim == 0:
        return short(classes[int(label)])
    return ", ".join(f"{short(name)} {share:.0%}" for name, share in zip(classes, label, strict=True) if share > 0.005)


@STYLE
def mistakes(report: Report, pixels_of: Callable[[list[int]], np.ndarray]) -> Figure:
    """Draw the images of the most confident wrong predictions, most confident first; without any, a message instead.

    `pixels_of`: rows of the report, which are also rows of the split -> their pixels, as for `image_grid`; called once,
    and only if there are mistakes.
    """
    predictions = report.predictions
    wrong = [row for row, prediction in enumerate(predictions) if not prediction.correct]
    if not wrong:
        figure = new_figure(6, 1.6)
        message = f"No mistakes among the {len(predictions)} images of {report.split}"
        figure.text(0.5, 0.5, message, ha="center", va="center")
        return figure
    rows = sorted(wrong, key=lambda row: -predictions[row].confidence)[:MOST_MISTAKES]
    titles = [
        f"{short(shown.path.rsplit('/', 1)[-1])}\n"
        f"true {short(shown.label)}\npredicted {short(shown.predicted)}\n{shown.confidence:.1%}"
        for shown in (predictions[row] for row in rows)
    ]
    figure = image_grid(pixels_of(rows), titles)
    chosen = "" if len(rows) == len(wrong) else f"\nthe {len(rows)} most confident"
    figure.suptitle(f"Mistakes, {report.split}: {len(wrong)} of {len(predictions)} images{chosen}", fontsize=TITLE)
    return figure


def _phases(axes: Sequence[Axes], history: Sequence[EpochRecord]) -> None:
    """Shade and label the phases of a history, with a dashed line between two of them."""
    phases = [(name, list(records)) for name, records in groupby(history, lambda record: record.phase)]
    for index, (name, records) in enumerate(phases):
        # A band extends half a step on either side, so that a phase of one epoch is visible.
        low, high = records[0].step - 0.5, records[-1].step + 0.5
        for panel in axes:
            panel.axvspan(low, high, color=BANDS[index % len(BANDS)], zorder=0, linewidth=0)
            if index:
                panel.axvline(low, color=QUIET, linestyle="--", linewidth=1.2, gid="phase change")
        # The outer labels are aligned inwards, so that that of a narrow band does not leave the figure or overlap.
        x, side = (high, "right") if index == len(phases) - 1 else ((low + high) / 2, "center")
        if index == 0:
            x, side = low, "left"
        above = axes[0].get_xaxis_transform()
        axes[0].text(x, 1.02, name, transform=above, ha=side, va="bottom", fontsize=SMALL, color="#555555")
    axes[-1].set_xlim(history[0].step - 0.5, history[-1].step + 0.5)
