"""The figures of a sweep: objective against each swept key, parallel coordinates, objective against time, ladder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from experiments.evaluation.plots import literal, short

if TYPE_CHECKING:
    from experiments.sweeps.ladder import Climbed
    from experiments.sweeps.summary import Candidate


def draw(
    folder: Path,
    ranked: Sequence[Candidate],
    objective: str,
    baseline: float | None = None,
    climbed: Climbed | None = None,
) -> None:
    """Write the figures as PNG files; candidates without a score are not drawn.

    Args:
        folder: the directory for the figures.
        ranked: candidates, the best first.
        objective: name of the validation metric.
        baseline: accuracy of always predicting the most frequent class, drawn as a line if a candidate's interval is
            not above it.
        climbed: the finished part of a ladder sweep.
    """
    scored = [one for one in ranked if not math.isnan(one.score)]
    keys = list(dict.fromkeys(key for one in scored for key in one.values))
    keys = [key for key in keys if len({one.values.get(key) for one in scored}) > 1]
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Figure] = {}
    if scored:
        drawn["time"] = against_time(scored, objective)
    if keys:
        drawn["parameters"] = against_keys(scored, keys, objective)
        drawn["parallel"] = parallel(scored, keys, objective)
    if climbed and climbed.steps:
        drawn["ladder"] = ladder(climbed)
    lowest = min((one.score if math.isnan(one.low) else one.low for one in scored), default=math.inf)
    if baseline is not None and baseline >= lowest:
        panels = [panel for name in ("time", "parameters", "ladder") if name in drawn for panel in drawn[name].axes]
        for panel in filter(Artist.get_visible, panels):
            panel.axhline(baseline, color="gray", linestyle="--", linewidth=1, label="most frequent class")
            panel.legend(fontsize=8)
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=100)


def places(values: Sequence[str | None]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the positions of values on an axis, and its ticks as (position, label).

    Numbers are on a linear scale, or on a log10 scale if they are positive and span a factor of 50 or more. Text is
    equally spaced, and so are numbers from 0 upward whose others span a factor of 5 or more.
    """
    texts = [value if value is not None else "(none)" for value in values]
    order = sorted(set(texts))
    try:
        numbers = {text: float(text) for text in order}
    except ValueError:
        return [float(order.index(text)) for text in texts], [(float(at), text) for at, text in enumerate(order)]
    order.sort(key=lambda text: numbers[text])
    low, high = min(numbers.values()), max(numbers.values())
    if low > 0 and high / low >= 50:
        numbers = {text: math.log10(number) for text, number in numbers.items()}
    elif len(order) > 2 and low == 0 and high / min(number for number in numbers.values() if number) >= 5:
        numbers = {text: float(at) for at, text in enumerate(order)}
    shown = order if len(order) <= 8 else order[:: math.ceil(len(order) / 8)]
    return [numbers[text] for text in texts], [(numbers[text], text) for text in shown]


def against_keys(scored: Sequence[Candidate], keys: Sequence[str], objective: str) -> Figure:
    """Return a figure with a panel per key: each candidate as a point with its interval, and the mean per value."""
    columns = min(3, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    panels: Any = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[len(keys) :]:
        panel.set_visible(False)
    scores = np.array([one.score for one in scored])
    for panel, key in zip(panels.flat, keys, strict=False):
        at, ticks = places([one.values.get(key) for one in scored])
        bars = [[0 if math.isnan(one.low) else one.score - one.low for one in scored],
                [0 if math.isnan(one.high) else one.high - one.score for one in scored]]  # fmt: skip
        panel.errorbar(at, scores, yerr=bars, fmt="o", color="tab:blue", ecolor="lightgray", markersize=4)
        means = sorted(
            {place: float(np.mean([s for p, s in zip(at, scores, strict=True) if p == place])) for place in at}.items()
        )
        panel.plot(*zip(*means, strict=True), color="tab:orange", label="mean")
        panel.set_xticks([place for place, _ in ticks], [literal(short(text)) for _, text in ticks])
        panel.set_xlabel(key)
        panel.set_ylabel(f"validation {objective}")
        panel.legend(fontsize=8)
    return figure


def parallel(scored: Sequence[Candidate], keys: Sequence[str], objective: str) -> Figure:
    """Return a parallel-coordinates plot: an axis per key and one for the objective, a line per candidate.

    The objective's axis is the last one, and the colour of a line is its score.
    """
    figure = Figure(figsize=(2.2 * (len(keys) + 1) + 1, 4), layout="constrained")
    axes = figure.subplots()
    columns = []
    for at, key in enumerate(keys):
        where, ticks = places([one.values.get(key) for one in scored])
        low, high = min(where), max(where)
        columns.append([(place - low) / (high - low or 1) for place in where])
        for place, text in ticks:
            axes.text(at, (place - low) / (high - low or 1), f" {literal(short(text))}", fontsize=8, va="center")
    scores = np.array([one.score for one in scored])
    span = float(np.ptp(scores)) or 1.0
    columns.append(list((scores - scores.min()) / span))
    colours = colormaps["viridis"]
    for heights in zip(*columns, strict=True):
        axes.plot(range(len(columns)), heights, color=colours(heights[-1]), alpha=0.8, zorder=heights[-1])
    for height in (0.0, 0.5, 1.0):
        axes.text(len(keys), height, f" {scores.min() + height * span:.4g}", fontsize=8, va="center")
    axes.set_xticks(range(len(columns)), [*keys, objective])
    axes.set_yticks([])
    axes.margins(x=0.08)
    for at in range(len(columns)):
        axes.axvline(at, color="gray", linewidth=0.8)
    return figure


def against_time(scored: Sequence[Candidate], objective: str) -> Figure:
    """Return a scatter plot of the objective against the seconds of a run, with the best candidate labelled."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter([one.seconds for one in scored], [one.score for one in scored], s=16)
    best = scored[0]
    axes.annotate(
        literal(short(best.name, 60)), (best.seconds, best.score), fontsize=8, xytext=(4, 4), textcoords="offset points"
    )
    axes.set_xlabel("seconds of a run")
    axes.set_ylabel(f"validation {objective}")
    return figure


def ladder(climbed: Climbed) -> Figure:
    """Return a figure of each rung's score with its interval against the seconds of a run.

    Rungs of one ladder have one colour and are joined to the rung that they are compared with; a circle marks the rung
    to use.
    """
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    use, latest = climbed.use, max(step.candidate.cost for _, step in climbed.steps)
    for number, climb in enumerate(one for one in climbed.climbs if one.steps):
        colour = f"C{number % 10}"
        seconds = [step.candidate.cost for step in climb.steps]
        scores = [step.candidate.score for step in climb.steps]
        bars = [
            [abs(score - (score if math.isnan(bound) else bound)) for score, bound in zip(scores, bounds, strict=True)]
            for bounds in ([s.candidate.low for s in climb.steps], [s.candidate.high for s in climb.steps])
        ]
        label = literal(short(" ".join(climb.values.values()), 40)) if climb.values else None
        for step in climb.steps:
            if step.below:
                ends = step.below.candidate, step.candidate
                line = [[one.cost for one in ends], [one.score for one in ends]]
                axes.plot(*line, color=colour, linewidth=1, alpha=0.6)
        axes.errorbar(seconds, scores, yerr=bars, fmt="o", color=colour, capsize=3, markersize=5, label=label)
        for at, step in enumerate(climb.steps):
            axes.annotate(
                literal(short(step.rung, 30)), (seconds[at], scores[at]), fontsize=9, textcoords="offset points",
                xytext=(-6 if seconds[at] == latest else 6, 5 if at % 2 else -13),
                ha="right" if seconds[at] == latest else "left",
            )  # fmt: skip
    if use:
        where = (use.candidate.cost, use.candidate.score)
        axes.scatter(*where, s=160, facecolors="none", edgecolors="black", linewidths=1.5, label="the rung to use")
    every = [step.candidate.cost for _, step in climbed.steps]
    if min(every) > 0 and max(every) / min(every) >= 8:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.12, y=0.1)
    axes.set_xlabel("seconds of a run")
    axes.set_ylabel(f"validation {climbed.objective}, 95 % interval")
    axes.legend(fontsize=8, loc="lower right")
    return figure
