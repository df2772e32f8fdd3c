"""Ladder sweeps: rungs (settings of rising cost), run while each is significantly better than the one below it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.comparison.significance import MOST_IMAGES, Difference, compare_runs, images_for_spread
from experiments.comparison.text import baseline_sentences, difference_sentence, limitations, points, rounded
from experiments.config.schema import LOWER_IS_BETTER
from experiments.reports.text import format_score
from experiments.sweeps import summary
from experiments.sweeps.plan import Place, format_time, format_values
from experiments.sweeps.rungs import BEST
from experiments.sweeps.summary import Candidate, JobRow

MOST_SEEDS = 20  # the largest number of seeds that is suggested


@dataclass(frozen=True)
class Step:
    """A rung of a ladder with its runs and, once they are all finished, its gain over the rung below it."""

    place: Place
    candidate: Candidate
    below: Step | None = None  # the rung it is compared with: the one below, or the one that it builds on
    gain: Difference | None = None  # difference from `below`, in the metric that candidates are compared in

    @property
    def name(self) -> str:
        """The rung, with the values of the keys that are swept besides."""
        return f"{self.place.rung} ({format_values(self.place.ladder)})" if self.place.ladder else self.place.rung

    @property
    def order(self) -> tuple[float, int]:
        """Sort key of rungs from cheap to expensive: the seconds of a run, but never before the rung below."""
        seconds, below = self.below.order if self.below else (0.0, -1)
        return max(seconds, self.candidate.cost), below + 1


@dataclass
class Climb:
    """One ladder of a sweep; there are several where other keys, such as the backbone, are swept as well."""

    steps: list[Step] = field(default_factory=list)  # the rungs whose runs are all finished
    next: Step | None = None  # the first rung whose runs are not
    left: list[str] = field(default_factory=list)  # rungs above the one that had no significant gain; they are not run

    def add(self, step: Step, below: Step | None) -> bool:
        """Add a rung and return True if its runs are all finished; otherwise set it as the next one."""
        if not step.candidate.ranked:
            self.next = step
            return False
        gain = compare_runs(below.candidate.scores, step.candidate.scores) if below else None
        self.steps.append(replace(step, below=below, gain=gain))
        return True


@dataclass(frozen=True)
class Climbed:
    """The finished part of a ladder sweep."""

    config: Mapping[str, Any]  # of the sweep, as in its sweep.json
    climbs: Sequence[Climb]
    objective: str

    @property
    def steps(self) -> list[Step]:
        return [step for climb in self.climbs for step in climb.steps]

    @property
    def reached(self) -> list[Step]:
        """The rungs of all ladders, up to and including the next one of each."""
        return [step for climb in self.climbs for step in [*climb.steps, *filter(None, [climb.next])]]

    @cached_property
    def use(self) -> Step | None:
        """The rung to use, chosen from all ladders; see `to_use`."""
        return to_use(self.steps, self.objective) if self.steps else None

    def table(self) -> list[list[str]]:
        """Return the table's header and rows: each rung with its score, its gain and the seconds of a run."""
        keys = list(dict.fromkeys(key for step in self.reached for key in step.place.ladder))
        lines = [["", "rung", *keys, self.objective, "gain", "over", "runs", "seconds", "jobs", ""]]
        metric = summary.compared(self.objective)
        for step in self.reached:
            *_, runs, _, jobs, wrong = summary.table([step.candidate], "")[1]
            lines.append([
                "use" if step is self.use else "" if step.candidate.ranked else "-", step.place.rung,
                *(step.place.ladder.get(key, "") for key in keys),
                format_score(self.objective, step.candidate.interval) if step.candidate.ranked else "",
                points(step.gain, metric), step.below.place.rung if step.below else "", runs,
                "" if math.isnan(step.candidate.cost) else f"{step.candidate.cost:.0f}", jobs, wrong,
            ])  # fmt: skip
        return lines

    def sentences(self) -> list[str]:
        """Return the conclusion in sentences, or an empty list if no rung is finished."""
        use = self.use
        if use is None:
            return []
        best, metric = top(self.steps, self.objective), summary.compared(self.objective)
        why = "It has the best score" if best is use else (
            f"It is the cheapest rung that is not significantly worse than the best one, {best.name} with "
            f"{format_score(self.objective, best.candidate.interval)}"
        )  # fmt: skip
        lines = [
            f"Use {use.name}: {self.objective} {format_score(self.objective, use.candidate.interval)}, "
            f"{use.candidate.cost:.0f} s a run. {why}."
        ]
        if self.objective == "accuracy" and (baseline := use.candidate.baseline):
            lines += baseline_sentences([("this rung", baseline, use.candidate.score, use.candidate.interval.low)])
        gains = []
        for climb in self.climbs:
            for step in climb.steps:
                if step.gain and step.below:
                    lines.append(difference_sentence(step.name, step.below.name, step.gain, metric))
                    gains.append(step.gain)
            lines += self.ending(climb)
        lines += limitations(gains)
        lines.append(
            "Seconds are the mean of a run with the training of its head; stored features, which runs share and which "
            "are computed before the first of them, are not included."
        )
        return lines

    def ending(self, climb: Climb) -> list[str]:
        """Return sentences on where a ladder ended and on the evidence that its inconclusive comparisons need."""
        lines = []
        if climb.left and not climb.next:
            last = next(step for step in reversed(climb.steps) if not step.place.over)
            more = self.minutes([last], len(last.candidate.rows))
            lines.append(
                f"The climb ended at {last.name}, which has no significant gain. Not run: {', '.join(climb.left)}; the "
                f"next of them would take at least as long as {last.place.rung}, {more} (sweep.climb=all runs every "
                "rung)."
            )
        inconclusive = [step for step in climb.steps if step.gain and not step.gain.significant and step.gain.value]
        return lines + [self.evidence(climb, step) for step in inconclusive]

    def minutes(self, steps: Sequence[Step], runs: float) -> str:
        """Return the time, as text, of `runs` further runs of each of some rungs."""
        return format_time(sum(step.candidate.seconds for step in steps), runs, self.config["sweep"]["jobs"])

    def evidence(self, climb: Climb, step: Step) -> str:
        """Return a sentence on the seeds, folds or images that would make a difference of this size significant."""
        gain, rows = step.gain, step.candidate.rows
        assert gain is not None and step.below is not None
        size = f"A difference between {step.name} and {step.below.place.rung} as large as the observed one"
        seeds, folds = (list(dict.fromkeys(repeats)) for repeats in zip(*(row.repeat for row in rows), strict=True))
        if not gain.about_setting:
            more, images = self.minutes(climb.steps, 2), ""
            if gain.needed:
                images = f"{size} would need about {rounded(gain.needed)} images to be shown, of two trained models. "
            return f"{images}Seeds 0, 1 and 2 would show whether it is the rung: {more} more."
        by_fold = gain.source == "folds"
        key, known, other = ("data.fold", folds, seeds) if by_fold else ("seed", seeds, folds)
        most = int(self.config["data"]["folds"]) if by_fold else MOST_SEEDS
        needed = gain.repeats_needed(len(known), most)
        if needed is not None:
            values = [*known, *(str(at) for at in range(most) if str(at) not in known)][:needed]
            more = self.minutes(climb.steps, (needed - len(known)) * len(other))
            return (
                f"{size} would be shown, with a chance of 80 %, by about {needed} {'folds' if by_fold else 'seeds'}: "
                f"the same command with {key}={','.join(values)}, {more} more."
            )
        limit = f"all {most} folds" if by_fold else f"{most} seeds"
        spread = gain.spread.repeated(len(known), most) if gain.spread and len(known) < most else gain.spread
        if spread is None:
            return f"{size} is more than these runs can show."
        evaluated = gain.images * (most / len(known) if by_fold else 1)
        lacking = images_for_spread(spread, gain.value, evaluated)
        if lacking is None:
            return f"{size} would not be shown by {limit} (chance of 80 %), not even on {rounded(MOST_IMAGES)} images."
        return (
            f"{size} would not be shown by {limit} on these images (chance of 80 %): it would take about "
            f"{rounded(lacking)} images to evaluate on."
        )


def improved(gain: Difference, metric: str) -> bool:
    """Return whether a difference is a significant gain."""
    return gain.significant and (gain.value > 0) != (metric in LOWER_IS_BETTER)


def top(steps: Sequence[Step], objective: str) -> Step:
    """Return the rung with the best score."""
    sign = 1 if objective in LOWER_IS_BETTER else -1
    return min(steps, key=lambda step: sign * step.candidate.score)


def to_use(steps: Sequence[Step], objective: str) -> Step:
    """Return the cheapest rung that is not significantly worse than the one with the best score."""
    best, metric = top(steps, objective), summary.compared(objective)
    return next(
        step for step in sorted(steps, key=lambda step: step.order)
        if step is best or not improved(compare_runs(step.candidate.scores, best.candidate.scores), metric)
    )  # fmt: skip


def climb(found: Mapping[tuple[str, str], Step], settings: Mapping[str, Any], objective: str) -> Climb:
    """Return one ladder with a step for every rung that its finished runs reach.

    `found` has the rungs with their runs, by rung and by the rung that it builds on, which is "" unless the rung begins
    with `best`; `settings` is `sweep` of the configuration.
    """
    ladder = Climb()
    fixed = [name for name, lines in settings["rungs"].items() if lines[0] != BEST]
    for at, name in enumerate(fixed):
        if not ladder.add(found[name, ""], ladder.steps[-1] if ladder.steps else None):
            return ladder
        gain = ladder.steps[-1].gain
        if gain and settings["climb"] != "all" and not improved(gain, summary.compared(objective)):
            ladder.left = fixed[at + 1 :]
            break
    base = to_use(ladder.steps, objective)
    for name in settings["rungs"]:
        # A rung on the best one that is not found has the same runs as another one.
        step = None if name in fixed else found.get((name, base.place.rung))
        if step and not ladder.add(step, base):
            break
    return ladder


def climbed(about: Mapping[str, Any], rows: Sequence[JobRow]) -> Climbed | None:
    """Return the finished part of the ladders of a sweep with these jobs, or None if it has no rungs."""
    config, objective = about.get("config", {}), about["objective"]
    if not config.get("sweep", {}).get("rungs"):
        return None
    ladders: dict[str, dict[tuple[str, str], Step]] = {}
    for candidate in sorted(summary.candidates(rows, objective), key=lambda candidate: candidate.rows[0].number):
        if place := candidate.rows[0].place:
            found = ladders.setdefault(format_values(place.ladder), {})
            found[place.rung, place.over] = Step(place, candidate)
    return Climbed(config, [climb(found, config["sweep"], objective) for found in ladders.values()], objective)


def due(folder: Path, tried: Collection[int]) -> list[int]:
    """Return the numbers of the jobs to run next: those of the lowest rung that is next in any ladder.

    A ladder whose next rung contains a job of `tried`, which was started before, has ended.
    """
    about, rows = summary.read(folder)
    found = climbed(about, [row for row in rows if not row.final])
    waiting: dict[str, list[int]] = {}
    for ladder in found.climbs if found else []:
        if ladder.next:
            numbers = [row.number for row in ladder.next.candidate.rows]
            if not set(numbers) & set(tried):
                waiting.setdefault(ladder.next.place.rung, []).extend(numbers)
    order = list(about["config"]["sweep"]["rungs"])
    return waiting[min(waiting, key=order.index)] if waiting else []
