"""Learning rate finder: train with a rate that grows with every batch, and suggest a rate from the losses.

Source: L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3 (range test). The
rate grows exponentially, as in the learning rate finders of fastai and PyTorch Lightning.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d
from scipy.stats import median_abs_deviation

from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.inspection.inspection import Inspection
from experiments.regimes import continuation
from experiments.regimes.build import build
from experiments.regimes.declaration import declaration_of
from experiments.reports.figure_style import PALETTE, QUIET, STYLE
from experiments.run import read_data
from experiments.system.progress import PlainConsole, Terminal
from experiments.tracking import inputs
from experiments.training import lr_finder, runtime
from experiments.training.checkpoints import Checkpoints
from experiments.training.lr_finder import LRFinder
from experiments.training.types import Progress, TrainingContext

WIDTH = 0.2  # standard deviation, in decades of the rate, of the Gaussian that smooths the losses
LEAST = 12  # the smallest number of losses from which a rate is suggested
MARGIN = 6  # standard errors of the smoothed loss; a smaller change counts as noise
FALLEN = 0.55  # the share of the total fall of the loss that is reached at the suggested rate
FAR = 10  # ratio of the configured to the suggested rate, or the inverse, above which there is a warning


class RangeTest(NamedTuple):
    """The losses of a range test, and the learning rate that they suggest."""

    rates: np.ndarray  # [N] increasing
    losses: np.ndarray  # [N] of the batches trained with these rates
    smoothed: np.ndarray  # [N]
    suggested: float | None  # rounded to one digit, as a range test is no more precise
    reason: str  # how the rate was found, or why there is none and what to do
    diverged: float | None  # the rate at which training diverged and the test ended early
    highest: bool = False  # whether a lower rate may be as good as the suggested one


def inspect(config: Config, *, lowest: float, highest: float, batches: int) -> Inspection:
    """Run a learning rate range test of `batches` batches, with rates from `lowest` to `highest`."""
    rates = np.geomspace(lowest, highest, batches)
    with tempfile.TemporaryDirectory() as folder, runtime.apply(config.runtime):
        files = inputs.fetch(config, Path(folder))
        found = range_test(config, files, rates, Terminal(PlainConsole(stderr=True)))
    name, facts = f"lr-{config.regime.name}-{config.optimizer.name}", {"rates": f"{lowest} {highest} {batches}"}
    return Inspection(config, name, sentences(config, found), lambda: draw(config, found), facts)


def range_test(config: Config, files: Mapping[str, Path], rates: np.ndarray, progress: Progress) -> RangeTest:
    """Train the last phase of a run in the same way as the run, but with these increasing rates [N], one batch each.

    Everything before that phase is computed or read from the cache in the same way as by the run; the weights are
    discarded. A run that continues a finished one goes on from the weights and the optimizer of that one.

    Raises:
        ConfigError, DataError: the same as from a run, and ConfigError if the regime does not declare how its last
            phase is prepared.
    """
    components = build(config, files)
    prepare = declaration_of(components.regime).prepare
    if prepare is None:
        raise ConfigError(
            f"regime={config.regime.name}: has no learning rate range test, as it does not declare how its last phase "
            "is prepared (`prepare` of experiments.regimes.declaration.Declaration)"
        )
    dataset = read_data(components)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        state = continuation.write_first_checkpoint(components, dataset, checkpoints)
        past = len(state.history) if state else 0
        epochs = past + math.ceil(len(rates) / math.ceil(len(dataset.train) / config.batch_size))
        phase = dataclasses.replace(components.phase, epochs=epochs)
        components = dataclasses.replace(components, config=config.model_copy(update={"epochs": epochs}), phase=phase)
        inputs = prepare(components, dataset, TrainingContext(progress, lambda _: None, checkpoints))
    losses, guessing = lr_finder.range_test(inputs, components.phase, rates.tolist(), progress, state)
    return suggest(rates, np.array(losses), guessing, trained=inputs.first_step > 0 or state is not None)


def suggest(rates: np.ndarray, losses: np.ndarray, guessing: float, trained: bool = False) -> RangeTest:
    """Return the rate that the losses of a range test suggest.

    If the loss falls by more than its noise, to below the loss of predicting the class frequencies, the suggested rate
    is the one at which little more than half of the fall is reached. Like the steepest point, this is in the middle of
    the descent, but it does not depend on a derivative, which noise distorts. If the network is already trained, so
    that its loss cannot fall, it is a tenth of the rate at which the loss begins to exceed its start. If the network
    learns nothing at any rate, there is none: the last rate before such a loss explodes may be a hundred times too
    high. docs/learning_rates.md compares this rule with others on recorded curves.

    Args:
        rates: [M] the planned rates, each higher than the one before by the same factor.
        losses: [N] of the first N rates; fewer than M if training diverged.
        guessing: the loss of a network that predicts the class frequencies.
        trained: whether the network, or its head, was trained before the range test.
    """
    diverged = float(rates[len(losses)]) if len(losses) < len(rates) else None
    rates = rates[: len(losses)]
    if (count := len(losses)) < LEAST:
        if diverged is None:
            reason = f"{count} batches are too few: --batches 100"
        elif count == 0:
            reason = "the loss is not finite from the first batch on: look at the data (experiments inspect data)"
        else:
            begin = f"begin lower (--from {diverged / 1e4:.0e})"
            reason = f"training diverges after {count} batches, at {diverged:.1g}: {begin}"
        return RangeTest(rates, losses, losses, None, reason, diverged)
    decades = np.log10(rates)
    width = WIDTH / (decades[1] - decades[0])  # in batches
    # Without this bound, the smoothing would spread a single loss of a diverging training to many rates around it.
    bounded = np.minimum(losses, LRFinder.RUNAWAY * max(np.median(losses[:LEAST]), guessing / 100))
    smoothed = gaussian_filter1d(bounded, width)
    # The noise is a robust estimate from the batches up to the minimum, as training is unstable beyond it.
    before = slice(max(int(smoothed.argmin()) + 1, len(losses) // 3))
    noise = float(median_abs_deviation((bounded - smoothed)[before], scale="normal"))
    # The square root's argument is the effective number of batches that the Gaussian averages.
    margin = MARGIN * noise / math.sqrt(2 * math.sqrt(math.pi) * width)
    margin = max(margin, guessing / 100)  # Losses near zero have hardly any noise, but their changes mean nothing.
    bottom = int(smoothed.argmin())
    # The loss before training has an effect is the median of the first batches.
    start = float(np.median(bounded[: max(LEAST, bottom // 3)]))
    falls = bottom >= LEAST and start - smoothed[bottom] > margin
    if falls:
        rate, reason = descent(rates, smoothed, start, margin, guessing, trained)
    else:
        start = float(np.median(bounded[: max(LEAST, len(rates) // 3)]))
        rate, reason = rise(rates, smoothed, start, margin, guessing, diverged)
    suggested = None if rate is None else float(f"{rate:.1g}")
    return RangeTest(rates, losses, smoothed, suggested, reason, diverged, highest=not falls)


def descent(
    rates: np.ndarray, smoothed: np.ndarray, start: float, margin: float, guessing: float, trained: bool
) -> tuple[float | None, str]:
    """Return the rate at which a falling loss has fallen by the share FALLEN of its total fall, and the reason.

    Changes of the smoothed loss below `margin` count as noise.
    """
    bottom = int(smoothed.argmin())
    lowest = float(smoothed[bottom])
    if trained and start > guessing:
        return None, (
            f"the loss starts at {start:.2g}, above that of guessing ({guessing:.2g}), although the head is "
            "trained: these images are not like those it was trained on, which are not augmented. A loss that falls "
            "shows that the network gets used to them, not that the validation split gains. Compare: augmentation=none"
        )
    if bottom >= len(rates) - 2:
        return None, f"the loss still falls at the highest rate: go on higher (--to {rates[-1] * 100:g})"
    if lowest > guessing - margin:
        return None, nothing_learned(guessing, len(rates))
    threshold = start - FALLEN * (start - lowest)
    at = int(np.flatnonzero(smoothed[: bottom + 1] > threshold).max(initial=-1)) + 1
    if at < LEAST:  # These batches are used to estimate the loss at the start.
        return None, f"the loss falls from the lowest rates on: begin lower (--from {rates[0] / 1000:.0e})"
    return float(rates[at]), f"where the loss has fallen by {FALLEN:.0%} of what it falls"


def rise(
    rates: np.ndarray, smoothed: np.ndarray, start: float, margin: float, guessing: float, diverged: float | None
) -> tuple[float | None, str]:
    """Return a tenth of the rate at which a loss that does not fall begins to exceed its start, and the reason."""
    if start > guessing - margin:
        return None, nothing_learned(guessing, len(rates))
    if diverged is None and smoothed[-1] <= start + margin:
        return None, (
            "the loss neither falls nor rises by more than its noise: all these rates are alike to it. For less noise "
            f"--batches {5 * len(rates)}, for higher rates --to {rates[-1] * 100:g}"
        )
    at = int(np.flatnonzero(smoothed <= start + margin).max(initial=-1)) + 1
    first = float(rates[at]) if at < len(rates) else diverged or float(rates[-1])
    if first / 10 < rates[0]:
        return None, f"the loss rises from the lowest rates on: begin lower (--from {rates[0] / 1000:.0e})"
    return first / 10, (
        "a tenth of where the loss begins to rise. Below that it changes by no more than its noise, so that a lower "
        "rate may do as well"
    )


def nothing_learned(guessing: float, batches: int) -> str:
    """Return why there is no suggestion if the loss never falls below that of guessing, and what to do."""
    return (
        f"the loss does not get below that of guessing ({guessing:.2g}) by more than its noise: so few batches "
        f"teach the network nothing, at any rate. Give more (--batches {3 * batches}), or better train with a "
        "few rates and compare: experiments.train -m optimizer.lr=1e-4,3e-4,1e-3,3e-3"
    )


def sentences(config: Config, found: RangeTest) -> list[str]:
    """Return the suggestion, its reason, and a warning if the configured rate is far from it."""
    rate = config.optimizer.lr
    tried = f"{len(found.losses)} batches of {config.batch_size}"
    if len(found.rates):
        tried += f", {found.rates[0]:.1g} to {found.rates[-1]:.2g}"
    if found.diverged:
        tried += ", where training diverged"
    result = f"suggested: optimizer.lr={found.suggested:g}, " if found.suggested else "no suggestion: "
    lines = [
        f"range test of {config.optimizer.name}, regime={config.regime.name}: {tried}",
        result + found.reason,
        f"configured: optimizer.lr={rate:g}",
    ]
    ratio = rate / found.suggested if found.suggested else 1.0
    if ratio > FAR or (ratio < 1 / FAR and not found.highest):
        lines.append(
            f"WARNING: the configured rate is {max(ratio, 1 / ratio):.0f} times {'above' if ratio > 1 else 'below'} "
            f"the suggested one. To train with that: optimizer.lr={found.suggested:g}"
        )
    elif found.diverged and rate >= found.diverged:
        lines.append(
            f"WARNING: training diverged at {found.diverged:.1g}, below the configured rate. Choose a lower one"
        )
    return lines


@STYLE
def draw(config: Config, found: RangeTest) -> Figure:
    """Draw raw and smoothed losses against the learning rate, with the suggested and the configured rate."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    panel = figure.add_subplot()
    panel.plot(found.rates, found.losses, ".", markersize=4, color=QUIET, alpha=0.6, label="a batch")
    panel.plot(found.rates, found.smoothed, color=PALETTE[0], label=f"smoothed over {WIDTH:g} decades")
    if found.suggested:
        panel.axvline(found.suggested, color=PALETTE[1], linewidth=1.6, label=f"suggested {found.suggested:g}")
    panel.axvline(config.optimizer.lr, color=PALETTE[2], linestyle="--", label=f"configured {config.optimizer.lr:g}")
    if found.diverged:
        panel.axvspan(found.diverged, found.diverged * 3, color="#f3dcdc", linewidth=0, label="training diverged")
    panel.set_xscale("log")
    if len(found.losses):
        # The last losses of a diverging training are not used for the limits, as they would flatten the other losses.
        most = np.percentile(found.losses[: max(LEAST, len(found.losses) * 2 // 3)], [2, 98])
        low, high = min(float(most[0]), float(found.smoothed.min())), float(most[1])
        margin = max(0.25 * (high - low), 0.05 * high)
        panel.set_ylim(max(0, low - margin), high + 2 * margin)
    panel.set(xlabel="learning rate", ylabel="training loss")
    phase = f"{config.model.name}, regime={config.regime.name}, {config.optimizer.name}"
    panel.set_title(f"Learning-rate range test: {phase}")
    figure.legend(loc="outside right upper")
    return figure
