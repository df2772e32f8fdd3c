"""Learning rate of every epoch of a planned run, for `experiments inspect schedule`."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from experiments.config.identity import head_run
from experiments.config.schema import Config
from experiments.config.targets import resolve
from experiments.inspection.inspection import Inspection
from experiments.regimes.build import build_phase
from experiments.regimes.declaration import declaration_of
from experiments.reports.figure_style import BANDS, PALETTE, QUIET, STYLE
from experiments.system.progress import plain_table
from experiments.training.types import TrainingPhase


class Phase(NamedTuple):
    """The learning rates of one phase."""

    name: str
    optimizer: str
    highest: tuple[float, ...]  # by epoch, if the monitored value improves in every epoch
    lowest: tuple[float, ...]  # by epoch, if it never improves after the first epoch

    @property
    def open(self) -> bool:
        """Whether the rates depend on the monitored values of the run."""
        return self.highest != self.lowest


def inspect(config: Config) -> Inspection:
    """Show the learning rate of every epoch."""
    found = phases(config)
    lines: list[str | Table] = [table(found), *sentences(config, found)]
    return Inspection(config, f"schedule-{config.schedule.name}", lines, lambda: draw(config, found))


def phases(config: Config) -> list[Phase]:
    """Return the phases of a run in order; in fine-tuning the head's is first, unless it uses another run's head."""
    found = []
    declared = declaration_of(resolve(config.trusted_packages, "regime", config.regime.target))
    if declared.head_first and config.regime.head_from is None:
        head = head_run(config)
        found.append(phase_rates("head", head.optimizer.name, build_phase(head, "regime.head_optimizer")))
    name = declared.last_phase or config.regime.name
    return [*found, phase_rates(name, config.optimizer.name, build_phase(config, "optimizer"))]


def phase_rates(name: str, optimizer: str, training: TrainingPhase) -> Phase:
    """Return the highest and the lowest rates of a training phase; those of a run are between the two."""
    falling, flat = [-float(epoch) for epoch in range(training.epochs)], [0.0] * training.epochs
    highest, lowest = (
        tuple(training.rate(epoch, monitored[:epoch]) for epoch in range(training.epochs))
        for monitored in (falling, flat)
    )
    return Phase(name, optimizer, highest, lowest)


def table(found: list[Phase]) -> Table:
    """Return the table of the first, highest and last rate of every phase."""
    numbers = ("epochs", "first", "highest", "last")
    drawn = plain_table(("phase", "optimizer", *numbers), numbers)
    for phase in found:
        last = f"{phase.lowest[-1]:.3g} to " if phase.open else ""
        rates = f"{phase.highest[0]:.3g}", f"{max(phase.highest):.3g}", f"{last}{phase.highest[-1]:.3g}"
        drawn.add_row(phase.name, phase.optimizer, str(len(phase.highest)), *rates)
    return drawn


def sentences(config: Config, found: list[Phase]) -> list[str]:
    """Return sentences about what is unknown before the run, and about a missing head phase."""
    lines = []
    if any(phase.open for phase in found):
        lines.append(
            f"schedule={config.schedule.name} follows {config.monitor}: the rate is the upper line while it gets "
            "better every epoch, the lower if it never does"
        )
    if config.early_stopping is not None:
        lines.append(f"early_stopping={config.early_stopping} may end the last phase before")
    if config.regime.head_from is not None and "regime.head_from" not in config.regime.ignores:
        lines.append("no head phase: regime.head_from brings the head")
    return lines


@STYLE
def draw(config: Config, found: list[Phase]) -> Figure:
    """Draw the rates against the steps of the run, with phases as bands; on a logarithmic axis if they vary a lot."""
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    panel = figure.add_subplot()
    start = 0
    for at, phase in enumerate(found):
        epochs = len(phase.highest)
        if at:
            panel.axvline(start - 0.5, color=QUIET, linestyle="--", linewidth=1.2)
        panel.axvspan(start - 0.5, start + epochs - 0.5, color=BANDS[at % len(BANDS)], zorder=0, linewidth=0)
        where = panel.get_xaxis_transform()
        panel.text(start - 0.4, 1.02, f"{phase.name}: {phase.optimizer}", transform=where, fontsize=9, color="#555555")
        steps = range(start, start + epochs)
        color = PALETTE[at]
        label = None
        ends = [(0, phase.highest, "left", 6), (epochs - 1, phase.highest, "right", 6)]
        if phase.open:
            label = f"if {config.monitor} gets better every epoch"
            never = f"if {config.monitor} never gets better"
            panel.fill_between(steps, phase.lowest, phase.highest, color=color, alpha=0.15, linewidth=0)
            panel.plot(steps, phase.lowest, marker="v", markersize=3, color=color, linestyle="--", label=never)
            ends.append((epochs - 1, phase.lowest, "right", -12))
        panel.plot(steps, phase.highest, marker="o", markersize=3, color=color, label=label)
        for epoch, rates, side, above in ends if epochs > 1 else ends[:1]:
            panel.annotate(f"{rates[epoch]:.3g}", (start + epoch, rates[epoch]), xytext=(0, above),
                           textcoords="offset points", ha=side, fontsize=8)  # fmt: skip
        start += epochs
    every = [rate for phase in found for rate in (*phase.highest, *phase.lowest)]
    if min(every) > 0 and max(every) > 10 * min(every):
        panel.set_yscale("log")
        panel.margins(y=0.15)
    else:
        panel.set_ylim(0, 1.15 * max(every))
    panel.set_xlim(-0.5, start - 0.5)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panel.set(xlabel="step (epochs, counted on over the phases)", ylabel="learning rate")
    panel.set_title(f"Learning rate: schedule={config.schedule.name}, regime={config.regime.name}", pad=20)
    if any(phase.open for phase in found):
        panel.legend(loc="best")
    return figure
