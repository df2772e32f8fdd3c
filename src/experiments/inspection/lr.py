"""The learning-rate range test: a training whose rate grows with every batch, and what its losses say.

Source: L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3; growing by a
factor, as the learning-rate finders of fastai and PyTorch Lightning do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d
from scipy.stats import median_abs_deviation

from experiments.build import build
from experiments.figures import PALETTE, QUIET, STYLE
from experiments.fit import Growing
from experiments.run import read_data
from experiments.schema import Config
from experiments.types import Progress, Tried, Watch

WIDTH = 0.2  # decades: the deviation of the bell that smooths the losses
LEAST = 12  # losses from which anything is read


class Reading(NamedTuple):
    """What a range test says."""

    rates: np.ndarray  # [N] growing
    losses: np.ndarray  # [N] of the batches that had them
    smoothed: np.ndarray  # [N]
    steepest: float | None  # the rate where the smoothed loss falls fastest; None: it falls by no more than its noise
    rises: float | None  # the rate from which on it is above its first value by more than that
    runaway: float | None  # the rate at which the test ended early

    @property
    def suggested(self) -> float | None:
        """One digit, as a range test is no more exact than that."""
        found = self.steepest or (self.rises and self.rises / 10)
        return None if found is None else float(f"{found:.1g}")

    @property
    def rule(self) -> str:
        """How the suggestion was found, or why there is none."""
        if self.steepest:
            return "where the smoothed loss falls fastest (the rule of PyTorch Lightning's finder)"
        if self.rises:
            return (
                "a tenth of where the smoothed loss begins to rise; before that it changes by no more than its noise, "
                "so that a lower rate may do as well (--batches for less noise)"
            )
        return "the loss neither falls nor rises by more than its noise, or at once: try other limits (--from, --to)"


def range_test(config: Config, files: Mapping[str, Path], rates: np.ndarray, progress: Progress) -> Reading:
    """Trains the last phase of a run as the run would, but with these learning rates, a batch each.

    What comes before that phase is done or found in the cache as the run does it; the weights are thrown away.

    Args:
        files: as `build` takes them.
        rates: [N] growing.

    Raises:
        ConfigError, DataError: as a run.
        RuntimeError: a regime that does not train with the recipe of `parts`.
    """
    parts = build(config, files)
    splits = read_data(parts)
    epochs = math.ceil(len(rates) / math.ceil(len(splits.train) / config.batch_size))
    parts = dataclasses.replace(
        parts,
        config=config.model_copy(update={"epochs": epochs}),
        recipe=dataclasses.replace(parts.recipe, epochs=epochs, tried=[float(rate) for rate in rates]),
    )
    try:
        parts.regime(parts, splits, Watch(progress, record=lambda _: None))
    except Tried as tried:
        return read(rates, np.array(tried.losses))
    raise RuntimeError(f"regime={config.regime.name} ended without a call to fit with parts.recipe")


def read(rates: np.ndarray, losses: np.ndarray) -> Reading:
    """What the losses say; nothing if they are too few.

    Args:
        rates: [M] that were to be tried, each the same factor above the one before.
        losses: [N] of the first N of them.
    """
    runaway = float(rates[len(losses)]) if len(losses) < len(rates) else None
    rates = rates[: len(losses)]
    if len(losses) < LEAST:
        return Reading(rates, losses, losses, None, None, runaway)
    decades = np.log10(rates)
    # One loss of the runaway would be seen far around it.
    bounded = np.minimum(losses, Growing.RUNAWAY * np.median(losses[:LEAST]))
    smoothed = gaussian_filter1d(bounded, WIDTH / (decades[1] - decades[0]), mode="nearest")
    noise = 2 * float(median_abs_deviation(bounded - smoothed, scale="normal"))  # of a batch; robust to the runaway's
    start, bottom = float(smoothed[0]), int(smoothed.argmin())
    falls = bottom > 1 and start - smoothed[bottom] > noise
    steepest = float(rates[np.gradient(smoothed, decades)[:bottom].argmin()]) if falls else None
    below = np.flatnonzero(smoothed <= start + noise)
    rises = float(rates[below[-1] + 1]) if 1 < below[-1] < len(rates) - 1 else None
    return Reading(rates, losses, smoothed, steepest, rises, runaway)


def sentences(config: Config, found: Reading) -> list[str]:
    """The suggestion, and what it stands on."""
    tried = f"{len(found.losses)} batches of {config.batch_size}, {found.rates[0]:.1g} to {found.rates[-1]:.2g}"
    lines = [f"range test of {config.optimizer.name}, regime={config.regime.name}: {tried}"]
    if found.runaway:
        lines[0] += ", where the loss ran away"
    if found.suggested:
        lines.append(f"suggested: optimizer.lr={found.suggested:g}, {found.rule}")
    else:
        lines.append(f"no suggestion: {found.rule}")
    lines.append(f"configured: optimizer.lr={config.optimizer.lr:g}")
    return lines


@STYLE
def draw(config: Config, found: Reading) -> Figure:
    """Losses against rates, as they were and smoothed, with the suggested and the configured rate."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    panel = figure.add_subplot()
    panel.plot(found.rates, found.losses, ".", markersize=4, color=QUIET, alpha=0.6, label="a batch")
    panel.plot(found.rates, found.smoothed, color=PALETTE[0], label=f"smoothed over {WIDTH:g} decades")
    if found.suggested:
        panel.axvline(found.suggested, color=PALETTE[1], linewidth=1.6, label=f"suggested {found.suggested:g}")
    panel.axvline(config.optimizer.lr, color=PALETTE[2], linestyle="--", label=f"configured {config.optimizer.lr:g}")
    if found.runaway:
        panel.axvspan(found.runaway, found.runaway * 3, color="#f3dcdc", linewidth=0, label="the loss ran away")
    panel.set_xscale("log")
    # The runaway's last losses would flatten all that is to be seen.
    low, start = float(found.smoothed.min()), float(found.smoothed[0])
    spread = max(start - low, 0.25 * start)
    panel.set_ylim(max(0, low - 0.6 * spread), start + 1.5 * spread)
    panel.set(xlabel="learning rate", ylabel="training loss")
    phase = f"{config.model.name}, regime={config.regime.name}, {config.optimizer.name}"
    panel.set_title(f"Learning-rate range test: {phase}")
    figure.legend(loc="outside right upper")
    return figure
