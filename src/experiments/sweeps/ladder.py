"""Ladder sweeps: rungs (settings of rising cost), run while each is significantly better than the one below it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.comparison.significance import MOST_IMAGES, Difference, compare_runs, images_for_spread
from experiments.comparison.text import (
    baseline_sentences,
    difference_sentence,
    format_score,
    limitations,
    points,
    rounded,
)
from experiments.config.schema import LOWER_IS_BETTER
from experiments.sweeps import summary
from experiments.sweeps.plan import format_values
from experiments.sweeps.rungs import BEST
from experiments.sweeps.summary import Candidate, Row

MOST_SEEDS = 20  # the largest number of seeds that is suggested


@dataclass(frozen=True)
class Step:
    """A rung whose runs are all finished, with its gain over the rung below it."""

    rung: str
    candidate: Candidate
    below: Step | None = None  # the rung it is compared with: the one below, or the one that it builds on
    gain: Difference | None = None  # difference from `below`, in the metric that candidates are compared in

    @property
    def order(self) -> tuple[float, int]:
        """Sort key of rungs from cheap to expensive: the seconds of a run, but never before the rung below."""
        seconds, below = self.below.order if self.below else (0.0, -1)
        return max(seconds, self.candidate.cost), below + 1


@dataclass
class Climb:
    """One ladder of a sweep; there are several where other keys, such as the backbone, are swept as well."""

    values: Mapping[str, str]  # of the keys that are swept besides the rungs
    steps: list[Step] = field(default_factory=list)
    next: tuple[str, Candidate] | None = None  # the first rung whose runs are not all finished
    left: list[str] = field(default_factory=list)  # rungs above the one that had no significant gain; they are not run

    def add(self, rung: str, candidate: Candidate, below: Step | None) -> bool:
        """Add a rung and return True if its runs are all finished; otherwise set it as the next one."""
        if not candidate.whole or math.isnan(candidate.score):
            self.next = rung, candidate
            return False
        gain = compare_runs(below.candidate.scores, candidate.scores) if below else None
        self.steps.append(Step(rung, candidate, below, gain))
        return True

    def named(self, rung: str) -> str:
        return " ".join(filter(None, [rung, f"({format_values(self.values)})" if self.values else ""]))


@dataclass(frozen=True)
class Climbed:
    """The finished part of a ladder sweep."""

    about: Mapping[str, Any]
    climbs: Sequence[Climb]
    objective: str

    @property
    def steps(self) -> list[tuple[Climb, Step]]:
        return [(climb, step) for climb in self.climbs for step in climb.steps]

    @property
    def reached(self) -> list[Candidate]:
        """Candidates of all rungs, up to and including the next one of each ladder."""
        return [
            candidate
            for climb in self.climbs
            for candidate in [*(step.candidate for step in climb.steps), *([climb.next[1]] if climb.next else [])]
        ]

    @cached_property
    def use(self) -> Step | None:
        """The rung to use, chosen from all ladders; see `to_use`."""
        return to_use([step for _, step in self.steps], self.objective)

    def table(self) -> list[list[str]]:
        """Return the table's header and rows: each rung with its score, its gain and the seconds of a run."""
        keys = list(dict.fromkeys(key for climb in self.climbs for key in climb.values))
        lines = [["", "rung", *keys, self.objective, "gain", "over", "runs", "seconds", "jobs", ""]]
        use, metric = self.use, summary.compared(self.objective)
        for climb in self.climbs:
            for step in climb.steps:
                lines.append([
                    "use" if step is use else "", step.rung, *(climb.values.get(key, "") for key in keys),
                    format_score(self.objective, step.candidate.interval), points(step.gain, metric),
                    step.below.rung if step.below else "", *_cells(step.candidate),
                ])  # fmt: skip
            if climb.next:
                rung, candidate = climb.next
                lines.append(["-", rung, *(climb.values.get(key, "") for key in keys), "", "", "", *_cells(candidate)])
        return lines

    def sentences(self) -> list[str]:
        """Return the conclusion in sentences, or an empty list if no rung is finished."""
        use = self.use
        if use is None:
            return []
        climb = next(climb for climb, step in self.steps if step is use)
        best, metric = top([step for _, step in self.steps], self.objective), summary.compared(self.objective)
        above = next(climb for climb, step in self.steps if step is best)
        why = "It has the best score" if best is use else (
            f"It is the cheapest rung that is not significantly worse than the best one, {above.named(best.rung)} with "
            f"{format_score(self.objective, best.candidate.interval)}"
        )  # fmt: skip
        lines = [
            f"Use {climb.named(use.rung)}: {self.objective} {format_score(self.objective, use.candidate.interval)}, "
            f"{use.candidate.cost:.0f} s a run. {why}."
        ]
        baseline = next((row.baseline for row in use.candidate.rows if row.baseline), None)
        if self.objective == "accuracy" and baseline:
            lines += baseline_sentences([("this rung", baseline, use.candidate.score, use.candidate.low)])
        gains = []
        for climb in self.climbs:
            for step in climb.steps:
                if step.gain and step.below:
                    names = climb.named(step.rung), climb.named(step.below.rung)
                    lines.append(difference_sentence(*names, step.gain, metric))
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
            last = next(step for step in reversed(climb.steps) if step.rung not in self.on_best)
            more = self.minutes(climb, last, len(last.candidate.rows))
            lines.append(
                f"The climb ended at {climb.named(last.rung)}, which has no significant gain. Not run: "
                f"{', '.join(climb.left)}; the next of them would take at least as long as {last.rung}, {more} "
                "(sweep.climb=all runs every rung)."
            )
        inconclusive = [step for step in climb.steps if step.gain and not step.gain.significant and step.gain.value]
        return lines + [self.evidence(climb, step) for step in inconclusive]

    @property
    def on_best(self) -> list[str]:
        return [name for name, lines in self.about["config"]["sweep"]["rungs"].items() if lines[0] == BEST]

    def minutes(self, climb: Climb, step: Step | None, runs: float) -> str:
        """Return the time, as text, of `runs` further runs of a rung or, if `step` is None, of every finished rung."""
        paces = [finished.candidate.seconds for finished in climb.steps if step in (None, finished)]
        seconds = sum(paces) * runs / self.about["config"]["sweep"]["jobs"]
        return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {seconds:.0f} s"

    def evidence(self, climb: Climb, step: Step) -> str:
        """Return a sentence on the seeds, folds or images that would make a difference of this size significant."""
        gain, rows = step.gain, step.candidate.rows
        assert gain is not None and step.below is not None
        size = f"A difference between {climb.named(step.rung)} and {step.below.rung} as large as the observed one"
        seeds = list(dict.fromkeys(row.values.get("seed", "") for row in rows))
        folds = list(dict.fromkeys(row.values.get("data.fold", "") for row in rows))
        if not gain.about_setting:
            needed = gain.needed
            images = (
                f"{size} would need about {rounded(needed)} images to be shown, of two trained models. "
                if needed
                else ""
            )
            return f"{images}Seeds 0, 1 and 2 would show whether it is the rung: {self.minutes(climb, None, 2)} more."
        by_fold = gain.source == "folds"
        key, known, other = ("data.fold", folds, seeds) if by_fold else ("seed", seeds, folds)
        most = int(self.about["config"]["data"]["folds"]) if by_fold else MOST_SEEDS
        needed = gain.repeats_needed(len(known), most)
        if needed is not None:
            values = [*known, *(str(at) for at in range(most) if str(at) not in known)][:needed]
            more = self.minutes(climb, None, (needed - len(known)) * len(other))
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


def _cells(candidate: Candidate) -> list[str]:
    """Return the table cells of a candidate's runs, seconds, jobs and unfinished statuses."""
    *_, runs, _, jobs, wrong = summary.table([candidate], "")[1]
    return [runs, "" if math.isnan(candidate.cost) else f"{candidate.cost:.0f}", jobs, wrong]


def improved(gain: Difference, metric: str) -> bool:
    """Return whether a difference is a significant gain."""
    return gain.significant and (gain.value > 0) != (metric in LOWER_IS_BETTER)


def top(steps: Sequence[Step], objective: str) -> Step:
    """Return the rung with the best score."""
    sign = 1 if objective in LOWER_IS_BETTER else -1
    return min(steps, key=lambda step: sign * step.candidate.score)


def to_use(steps: Sequence[Step], objective: str) -> Step | None:
    """Return the cheapest rung that is not significantly worse than the one with the best score."""
    if not steps:
        return None
    best, metric = top(steps, objective), summary.compared(objective)
    for step in sorted(steps, key=lambda step: step.order):
        if step is best or not improved(compare_runs(step.candidate.scores, best.candidate.scores), metric):
            return step
    return best


def climb(
    values: Mapping[str, str], found: Mapping[tuple[str, str], Candidate], rungs: Mapping[str, Sequence[str]],
    objective: str, every: bool,
) -> Climb:  # fmt: skip
    """Return one ladder with a step for every rung that its finished runs reach.

    Args:
        values: of the keys that are swept besides the rungs.
        found: candidates by rung and by the rung that it builds on, which is "" unless the rung begins with `best`.
        rungs: `sweep.rungs`.
        every: whether to continue after a rung without a significant gain (`sweep.climb=all`).
    """
    ladder = Climb(values)
    fixed = [name for name, lines in rungs.items() if lines[0] != BEST]
    for at, name in enumerate(fixed):
        if not ladder.add(name, found[name, ""], ladder.steps[-1] if ladder.steps else None):
            return ladder
        gain = ladder.steps[-1].gain
        if gain and not every and not improved(gain, summary.compared(objective)):
            ladder.left = fixed[at + 1 :]
            break
    base = to_use(ladder.steps, objective)
    for name in rungs:
        # A rung that is not found has the same runs as another one.
        candidate = found.get((name, base.rung)) if base and name not in fixed else None
        if candidate and not ladder.add(name, candidate, base):
            break
    return ladder


def climbed(about: Mapping[str, Any], rows: Sequence[Row]) -> Climbed | None:
    """Return the finished part of a sweep's ladders, or None if the sweep has no rungs.

    Args:
        about: content of the sweep's sweep.json.
        rows: the sweep's jobs.
    """
    settings = about.get("config", {}).get("sweep", {})
    if not settings.get("rungs"):
        return None
    ladders: dict[str, tuple[Mapping[str, str], dict[tuple[str, str], Candidate]]] = {}
    found_candidates = summary.candidates(rows, about["objective"])
    for candidate in sorted(found_candidates, key=lambda candidate: candidate.rows[0].number):
        if place := candidate.rows[0].place:
            _, found = ladders.setdefault(format_values(place.ladder), (place.ladder, {}))
            found[place.rung, place.over] = candidate
    every = settings["climb"] == "all"
    climbs = [climb(values, found, settings["rungs"], about["objective"], every) for values, found in ladders.values()]
    return Climbed(about, climbs, about["objective"])


def due(folder: Path, tried: Collection[int]) -> list[int]:
    """Return the numbers of the jobs to run next: those of the lowest rung that is next in any ladder.

    Args:
        folder: the sweep's directory.
        tried: numbers of jobs that have been started before; a ladder whose next rung contains one of them has ended.
    """
    about, rows = summary.read(folder)
    found = climbed(about, [row for row in rows if not row.final])
    waiting: dict[str, list[int]] = {}
    for ladder in found.climbs if found else []:
        if ladder.next:
            numbers = [row.number for row in ladder.next[1].rows]
            if not set(numbers) & set(tried):
                waiting.setdefault(ladder.next[0], []).extend(numbers)
    order = list(about["config"]["sweep"]["rungs"])
    return waiting[min(waiting, key=order.index)] if waiting else []
