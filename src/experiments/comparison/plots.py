"""Figures that compare groups of runs: learning curves, and intervals of accuracies and differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.reports.figure_style import (
    MOST_IN_LEGEND,
    QUIET,
    STYLE,
    TRAIN,
    VALIDATION,
    colors,
    new_figure,
    wrapped,
)
from experiments.training.types import EpochRecord

Bounds = tuple[float, float, float]  # a value, the lower and the upper bound of its interval


@STYLE
def compared_curves(histories: Mapping[str, Sequence[Sequence[EpochRecord]]]) -> Figure:
    """Draw validation accuracy above validation loss over the steps of several runs.

    Of each group of runs, by name, the mean is drawn, and a thin line for each of several runs. A ring marks a step at
    which the phase of a run changes. Dotted lines show the training metrics, of at most `MOST_IN_LEGEND` groups.
    """
    crowded = len(histories) > MOST_IN_LEGEND
    legend_rows = -(-len(histories) // 2)
    figure = new_figure(8.5, 5.6 + 0.25 * legend_rows)
    axes = figure.subplots(2, 1, sharex=True)
    lines = []
    for color, runs in zip(colors(len(histories)), histories.values(), strict=True):
        lines.append(Line2D([], [], color=color))
        changes = {new.step for history in runs for old, new in pairwise(history) if old.phase != new.phase}
        for panel, name in zip(axes, ("accuracy", "loss"), strict=True):
            for history in runs if len(runs) > 1 else ():
                points = _points([history], f"validation_{name}")
                panel.plot(list(points), list(points.values()), color=color, linewidth=0.7, alpha=0.3)
            points = _points(runs, f"validation_{name}")
            marked = [at for at, step in enumerate(points) if step in changes]
            panel.plot(
                list(points), list(points.values()), color=color, linewidth=1.6, marker="o", markevery=marked,
                markersize=5, markerfacecolor="white",
            )  # fmt: skip
            if not crowded:
                points = _points(runs, name)
                panel.plot(list(points), list(points.values()), color=color, linewidth=1, alpha=0.7, linestyle=":")
    for panel, name in zip(axes, ("accuracy", "loss"), strict=True):
        panel.set_ylabel(f"validation {name}")
    axes[1].set_xlabel("step (epochs, counted on over the phases)" + ("" if crowded else "; dotted: training"))
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(lines, [wrapped(name, 52) for name in histories], loc="outside upper left", ncols=2)
    return figure


def _points(histories: Sequence[Sequence[EpochRecord]], name: str) -> dict[int, float]:
    """Return the mean of a metric over histories, by step."""
    values: dict[int, list[float]] = {}
    for record in (record for history in histories for record in history if name in record.metrics):
        values.setdefault(record.step, []).append(record.metrics[name])
    return {step: float(np.mean(values[step])) for step in sorted(values)}


@STYLE
def intervals(
    names: Sequence[str], scores: Sequence[Bounds], differences: Sequence[Bounds | None], split: str
) -> Figure:
    """Draw a forest plot: each group's accuracy and its difference from the first, with their 95 % intervals.

    Args:
        names: [G] names of the groups, from top to bottom.
        scores: [G] accuracy, lower and upper bound, in [0, 1].
        differences: [G] difference from the first group's accuracy, lower and upper bound, in [-1, 1]; None for the
            first group, which has no axes of its own if it is alone.
    """
    alone = len(names) == 1
    figure = new_figure(9, 1.5 + 0.42 * len(names))
    panels: Any = figure.subplots(1, 1 if alone else 2, sharey=True, squeeze=False)[0]
    shown: list[tuple[Axes, Sequence[Bounds | None], str]] = [(panels[0], scores, f"accuracy, {split}, %")]
    if not alone:
        shown.append((panels[1], differences, "difference from the first, points"))
        panels[1].axvline(0, color=QUIET, linestyle="--", linewidth=1.2)
    for panel, bounds, title in shown:
        known = [(row, *(100 * value for value in one)) for row, one in enumerate(bounds) if one is not None]
        for row, value, low, high in known:
            away = panel is not panels[0] and not low <= 0 <= high
            panel.plot([low, high], [row, row], color=VALIDATION if away else TRAIN, solid_capstyle="butt")
            panel.plot([value], [row], marker="o", markersize=5, color=VALIDATION if away else TRAIN)
        panel.set_title(title)
        panel.grid(visible=False, axis="y")
        panel.margins(x=0.08)
    panels[0].set_yticks(range(len(names)), [wrapped(name, 32) for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return figure
