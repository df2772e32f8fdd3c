"""The figures of a sweep: objective against each swept key, parallel coordinates, objective against time, ladder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reports.figure_style import (
    PALETTE,
    QUIET,
    SMALL,
    STYLE,
    colors,
    literal,
    log_scale,
    name_ticks,
    new_figure,
    save_figure,
    short,
    wrapped,
)
from experiments.sweeps.ladder import Climbed
from experiments.sweeps.summary import Candidate

MOST_TICKS = 8  # values of a key that are named on its axis


@STYLE
def draw(
    folder: Path, ranked: Sequence[Candidate], objective: str, baseline: float | None = None,
    climbed: Climbed | None = None,
) -> None:  # fmt: skip
    """Write the figures as PNG files; candidates without a score are not drawn.

    Args:
        ranked: candidates, the best first.
        baseline: accuracy of always predicting the most frequent class, drawn as a line if a candidate's interval is
            not above it.
        climbed: the finished part of a ladder sweep.
    """
    scored = [candidate for candidate in ranked if not math.isnan(candidate.score)]
    keys = list(dict.fromkeys(key for candidate in scored for key in candidate.values))
    keys = [key for key in keys if len({candidate.values.get(key) for candidate in scored}) > 1]
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Figure] = {}
    if scored:
        drawn["time"] = against_time(scored, objective)
    if keys:
        drawn["parameters"] = against_keys(scored, keys, objective)
    if len(keys) > 1:
        drawn["parallel"] = parallel(scored, keys, objective)
    if climbed and climbed.steps:
        drawn["ladder"] = ladder(climbed)
    lowest = min((np.nanmin([candidate.score, candidate.interval.low]) for candidate in scored), default=math.inf)
    if baseline is not None and baseline >= lowest:
        panels = [panel for name in ("time", "parameters", "ladder") if name in drawn for panel in drawn[name].axes]
        for panel in filter(Artist.get_visible, panels):
            panel.axhline(baseline, color=QUIET, linestyle="--", linewidth=1, label="most frequent class")
            legend_above(panel)
    for name, figure in drawn.items():
        (folder / f"{name}.png").write_bytes(save_figure(figure))


def legend_above(panel: Axes) -> None:
    """Draw the legend above the axes, where it hides no point."""
    panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)


def places(values: Sequence[str | None]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the positions of values on an axis, and its ticks as (position, label), which do not overlap.

    Numbers are on a linear scale, or on a log10 scale if they are positive and span a factor of 50 or more. Text is
    equally spaced, and so are numbers from 0 upward whose others span a factor of 5 or more.
    """
    texts = [value if value is not None else "(none)" for value in values]
    order = sorted(set(texts))
    try:
        at = {text: float(text) for text in order}
        order.sort(key=at.__getitem__)
        low, high = at[order[0]], at[order[-1]]
        if low > 0 and high / low >= 50:
            at = {text: math.log10(number) for text, number in at.items()}
        elif len(order) > 2 and low == 0 and high / at[order[1]] >= 5:
            at = {text: float(place) for place, text in enumerate(order)}
    except ValueError:
        at = {text: float(place) for place, text in enumerate(order)}
    least = (at[order[-1]] - at[order[0]]) / MOST_TICKS
    ticks: list[tuple[float, str]] = []
    for text in order:
        if not ticks or at[text] - ticks[-1][0] >= least:
            ticks.append((at[text], text))
    return [at[text] for text in texts], ticks


def error_bars(candidates: Sequence[Candidate]) -> np.ndarray:
    """Return how far the intervals of candidates extend below and above their scores: [2, candidates], 0 if unknown."""
    scores, lows, highs = np.array([candidate.interval for candidate in candidates]).T
    return np.nan_to_num(np.abs([scores - lows, highs - scores]))


@STYLE
def against_keys(scored: Sequence[Candidate], keys: Sequence[str], objective: str) -> Figure:
    """Return a figure with a panel per key: each candidate as a point with its interval, and the mean per value."""
    columns = min(3, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = new_figure(4.2 * columns, 3.4 * rows)
    panels: Any = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[len(keys) :]:
        panel.set_visible(False)
    scores = np.array([candidate.score for candidate in scored])
    for panel, key in zip(panels.flat, keys, strict=False):
        at, ticks = places([candidate.values.get(key) for candidate in scored])
        panel.errorbar(at, scores, yerr=error_bars(scored), fmt="o", color=PALETTE[0], ecolor="lightgray", markersize=4)
        values = sorted(set(at))
        panel.plot(values, [scores[np.equal(at, value)].mean() for value in values], color=PALETTE[1], label="mean")
        name_ticks(panel, [place for place, _ in ticks], [literal(short(text)) for _, text in ticks])
        panel.set_xlabel(key)
        panel.set_ylabel(f"validation {objective}, 95 % interval")
        legend_above(panel)
    return figure


@STYLE
def parallel(scored: Sequence[Candidate], keys: Sequence[str], objective: str) -> Figure:
    """Return a parallel-coordinates plot: an axis per key, the objective's last, and a line per candidate."""
    figure = new_figure(2.2 * (len(keys) + 1) + 1, 4)
    axes = figure.subplots()
    scores = [candidate.score for candidate in scored]
    middle = (min(scores) + max(scores)) / 2
    columns = [places([candidate.values.get(key) for candidate in scored]) for key in keys]
    columns.append((scores, [(value, f"{value:.4g}") for value in sorted({min(scores), middle, max(scores)})]))
    heights = []
    for at, (where, ticks) in enumerate(columns):
        low, span = min(where), max(where) - min(where) or 1.0
        heights.append([(place - low) / span for place in where])
        for place, text in ticks:
            axes.text(
                at + 0.02, (place - low) / span, literal(short(text)), fontsize=SMALL, va="center", zorder=5,
                bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1},
            )  # fmt: skip
        axes.axvline(at, color=QUIET, linewidth=0.8)
    for line in zip(*heights, strict=True):
        axes.plot(range(len(columns)), line, color=colormaps["viridis"](line[-1]), alpha=0.8, zorder=line[-1])
    axes.set_xticks(range(len(columns)), [*keys, objective])
    axes.set_yticks([])
    axes.margins(x=0.08)
    axes.set_xlim(-0.1, len(columns) - 0.5)  # room for the labels of the last axis
    axes.grid(visible=False)
    return figure


@STYLE
def against_time(scored: Sequence[Candidate], objective: str) -> Figure:
    """Return a plot of each candidate's score, with its interval, against the seconds of a run; the best is named."""
    figure = new_figure(6, 4.4)
    axes = figure.subplots()
    seconds, scores = [candidate.seconds for candidate in scored], [candidate.score for candidate in scored]
    axes.errorbar(seconds, scores, yerr=error_bars(scored), fmt="o", color=PALETTE[0], ecolor="lightgray", markersize=4)
    best = scored[0]
    axes.scatter(best.seconds, best.score, s=36, color=PALETTE[1], zorder=3)
    figure.suptitle(f"best: {wrapped(best.name, 70)}", fontsize=SMALL, color=PALETTE[1], x=0.02, ha="left")
    axes.set_xlabel("seconds of a run")
    axes.set_ylabel(f"validation {objective}, 95 % interval")
    return figure


@STYLE
def ladder(climbed: Climbed) -> Figure:
    """Return a figure of each rung's score with its interval against the seconds of a run.

    Rungs of one ladder have one colour and are joined to the rung that they are compared with; a circle marks the rung
    to use.
    """
    figure = new_figure(7.5, 4.8)
    axes = figure.subplots()
    climbs = [climb for climb in climbed.climbs if climb.steps]
    seconds = [step.candidate.cost for step in climbed.steps]
    for color, climb in zip(colors(len(climbs)), climbs, strict=True):
        reached = [step.candidate for step in climb.steps]
        for step in climb.steps:
            if step.below:
                ends = step.below.candidate, step.candidate
                line = [[candidate.cost for candidate in ends], [candidate.score for candidate in ends]]
                axes.plot(*line, color=color, linewidth=1, alpha=0.6)
        costs, scores = [candidate.cost for candidate in reached], [candidate.score for candidate in reached]
        axes.errorbar(
            costs, scores, yerr=error_bars(reached), fmt="o", color=color, capsize=3, markersize=5,
            label=literal(short(" ".join(named.values()), 40)) if (named := climb.steps[0].place.ladder) else None,
        )  # fmt: skip
        for at, (step, cost, score) in enumerate(zip(climb.steps, costs, scores, strict=True)):
            last = cost == max(seconds)
            axes.annotate(
                literal(short(step.place.rung, 30)), (cost, score), fontsize=SMALL, textcoords="offset points",
                xytext=(-6 if last else 6, 5 if at % 2 else -13), ha="right" if last else "left",
            )  # fmt: skip
    if climbed.use:
        where = (climbed.use.candidate.cost, climbed.use.candidate.score)
        axes.scatter(*where, s=160, facecolors="none", edgecolors="black", linewidths=1.5, label="the rung to use")
    if min(seconds) > 0 and max(seconds) / min(seconds) >= 8:
        log_scale(axes)
    axes.margins(x=0.12, y=0.1)
    axes.set_xlabel("seconds of a run")
    axes.set_ylabel(f"validation {climbed.objective}, 95 % interval")
    axes.legend(loc="lower right")
    return figure
