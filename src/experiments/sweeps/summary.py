"""The result of a sweep, computed from its jobs' files at any time: table, winner, intervals and comparisons."""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.comparison.groups import Scores, gather_scores, metric_interval
from experiments.comparison.significance import compare_runs
from experiments.comparison.text import baseline_sentences, difference_sentence, limitations
from experiments.config.overrides import value_at
from experiments.config.schema import LOWER_IS_BETTER, LOWEST
from experiments.errors import ConfigError
from experiments.evaluation.evaluate import IMAGE_METRICS, Baseline, image_score, majority_baseline
from experiments.evaluation.statistics import UNKNOWN, Interval
from experiments.reports.text import format_score
from experiments.runs.candidate_runs import without_repeats
from experiments.runs.run_directory import CONFIG, RunDirectory, job_directory, predictions_file, read_json
from experiments.sweeps import sweep_directory
from experiments.sweeps.plan import Place, format_values, is_folded
from experiments.sweeps.sweep_directory import JOB, SWEEP, records
from experiments.training.types import Status

STEERED = ("early_stopping", "best_weights", "threshold.recall", "threshold.precision")  # by the validation images


@dataclass(frozen=True)
class JobRow:
    """A job of the sweep, with its results."""

    number: int
    values: Mapping[str, str]
    overrides: Sequence[str]
    folder: Path
    status: str  # FINISHED, FAILED or PRUNED; NEW, PARTIAL, RUNNING or KILLED: not at its end
    reason: str
    metrics: Mapping[str, float]
    scores: Mapping[Hashable, float]  # per image: the objective if it is a mean over images, else accuracy
    labels: Counter[str] = field(default_factory=Counter)  # of these images
    final: bool = False  # a final run of the winner
    identity: str = ""  # of the run, as planned and as found
    place: Place | None = None  # in a ladder sweep
    reused: float = 0.0  # seconds that another run took to train the head that this run reuses
    split: str = "validation"  # of the images that have scores
    steered: tuple[str, ...] = ()  # of a final run on validation images: the settings that these images have steered

    @property
    def repeat(self) -> tuple[str, str]:
        """The seed and the fold, in which jobs of a candidate differ."""
        return self.values.get("seed", ""), self.values.get("data.fold", "")


@dataclass
class Candidate:
    """A combination of the swept values: jobs that differ only in seed and fold."""

    values: Mapping[str, str]
    rows: list[JobRow] = field(default_factory=list)
    interval: Interval = UNKNOWN  # of the objective
    repeats: int = 1  # number of its jobs, of which a search records the first one before the others

    @property
    def score(self) -> float:
        return self.interval.value

    @property
    def name(self) -> str:
        return format_values(self.values) or "the one candidate"

    @property
    def whole(self) -> bool:
        return len(self.rows) >= self.repeats and all(row.status == Status.FINISHED for row in self.rows)

    @property
    def ranked(self) -> bool:
        """Whether all its runs have finished, with a defined objective."""
        return self.whole and not math.isnan(self.score)

    @property
    def scores(self) -> Scores:
        return gather_scores((*row.repeat, row.scores) for row in self.rows if row.scores)

    @property
    def baseline(self) -> Baseline | None:
        """The baseline for the images of all its runs; None without any."""
        labels = sum((row.labels for row in self.rows), Counter[str]())
        return majority_baseline(labels.elements()) if labels else None

    @property
    def seconds(self) -> float:
        return float(np.mean([row.metrics.get("total_seconds", math.nan) for row in self.rows]))

    @property
    def cost(self) -> float:
        """Mean seconds of a run, including the training of a head that it reuses from another run."""
        return self.seconds + float(np.mean([row.reused for row in self.rows]))


def read(folder: Path) -> tuple[dict[str, Any], list[JobRow]]:
    """Return the content of sweep.json, and the jobs; raise ConfigError if the directory holds no sweep."""
    about = sweep_directory.read(folder)
    if not about:
        raise ConfigError(f"{folder}: is no sweep's folder: it has no {SWEEP}")
    jobs = records(folder)
    folded = [is_folded(job["overrides"]) for job in jobs if not job.get("final")]
    held = "validation" if folded and all(folded) else "test"
    metric = compared(about["objective"])
    return about, [
        _row(job, folder / str(job["number"]), *((held, "accuracy") if job.get("final") else ("validation", metric)))
        for job in jobs
    ]


def read_jobs(folder: Path, objective: str) -> list[JobRow]:
    """Return the jobs of a sweep with their validation scores; those whose records are unchanged are not read again."""
    paths = sorted(folder.glob(f"[0-9]*/{JOB}"))
    return [_read_job(path, path.stat().st_mtime_ns, compared(objective)) for path in paths]


@functools.cache
def _read_job(path: Path, written: int, metric: str) -> JobRow:
    return _row(read_json(path), path.parent, "validation", metric)


def _row(job: Mapping[str, Any], own: Path, split: str, metric: str) -> JobRow:
    """Return a job with its scores on a split's images, if a directory holds the results of the planned run."""
    identity, status = job.get("identity", ""), job["status"]
    found = job_directory(own.parent, job["number"], Path(job["folder"]), identity)
    directory = found or RunDirectory(Path(job["folder"]))
    facts = directory.facts()
    reused = float(facts.get("reused_seconds", 0.0)) if found else 0.0
    steered = steered_settings(directory) if split == "validation" and job.get("final") else ()
    if steered and directory.has_predictions("test"):
        split, steered = "test", ()
    scored = split == "validation" or not directory.lacks([predictions_file(split)])  # the data may have no test split
    predictions = directory.predictions(split) if found and scored else []
    if found:
        status = Status.FINISHED
    elif status != Status.FAILED:
        if identity and facts.get("identity") in (None, identity):
            status = facts.get("status", Status.NEW)
        if status == Status.FINISHED:  # its results are missing
            status = Status.NEW
    return JobRow(
        job["number"], job["values"], job["overrides"], directory.folder, status, job.get("reason", ""),
        found.metrics() if found else {},
        {f"{prediction.path} {prediction.sha256}": image_score(metric, prediction) for prediction in predictions},
        Counter(prediction.label for prediction in predictions if prediction.label), job.get("final", False), identity,
        Place(**job["place"]) if job.get("place") else None, reused, split, steered,
    )  # fmt: skip


def steered_settings(directory: RunDirectory) -> tuple[str, ...]:
    """Return the settings of a run by which its validation images have steered its training or its threshold."""
    plain = {} if directory.lacks([CONFIG]) else directory.config()
    plateau = ["schedule=plateau"] if value_at(plain, "schedule.name") == "plateau" else []
    return (*(key for key in STEERED if value_at(plain, key)), *plateau)


def compared(objective: str) -> str:
    """Return the metric in which candidates are compared: the objective if it is a mean over images, else accuracy."""
    return objective if objective in IMAGE_METRICS else "accuracy"


def candidates(rows: Sequence[JobRow], objective: str, repeats: int = 1) -> list[Candidate]:
    """Return the rows as candidates, the best first; those with an unfinished or failed run come last, unranked."""
    found: dict[str, Candidate] = {}
    key = f"validation.{objective}"
    for row in rows:
        if not row.final:
            own = without_repeats(row.values)
            candidate = found.setdefault(json.dumps(own, sort_keys=True), Candidate(own, repeats=repeats))
            candidate.rows.append(row)
    for candidate in found.values():
        values = [(*row.repeat, row.metrics[key]) for row in candidate.rows if key in row.metrics]
        scores = candidate.scores if objective in IMAGE_METRICS else None
        if values:
            candidate.interval = metric_interval(values, scores, LOWEST.get(objective, 0.0))
    sign = 1 if objective in LOWER_IS_BETTER else -1

    def ranking(candidate: Candidate) -> tuple[bool, bool, float, float]:
        return not candidate.whole, math.isnan(candidate.score), sign * candidate.score, candidate.seconds

    return sorted(found.values(), key=ranking)


def is_on_target(found: Sequence[Candidate], objective: str, target: float) -> bool:
    """Return whether the whole interval of a candidate is at least as good as `sweep.target`."""
    intervals = [candidate.interval for candidate in found if candidate.whole]
    if objective in LOWER_IS_BETTER:
        return any(interval.high <= target for interval in intervals)
    return any(interval.low >= target for interval in intervals)


def sentences(
    ranked: Sequence[Candidate], objective: str, held: Sequence[JobRow], command: str, final: bool
) -> list[str]:
    """Return the conclusion in sentences.

    Args:
        ranked: candidates, the best first.
        held: the winner's final runs, on images that no job has read.
        command: the sweep's command line.
        final: `sweep.final`, whether the sweep ends with final runs.
    """
    finished = [candidate for candidate in ranked if candidate.ranked]
    if not finished:
        return ["No candidate has finished: there is no winner."]
    distinct: dict[tuple[str, ...], Candidate] = {}
    for candidate in finished:  # those that differ in keys that their regime does not read are the same runs
        distinct.setdefault(tuple(sorted(row.identity for row in candidate.rows)), candidate)
    whole = list(distinct.values())
    winner = whole[0]
    runs = f" over {len(winner.rows)} runs" if len(winner.rows) > 1 else ""
    lines = [f"Winner by validation {objective}: {winner.name}, {format_score(objective, winner.interval)}{runs}."]
    if objective == "accuracy" and (baseline := winner.baseline):
        lines += baseline_sentences([("the winner", baseline, winner.score, winner.interval.low)])
    if len(whole) < len(finished):
        lines.append(
            f"{len(finished) - len(whole)} of the {len(finished)} candidates are the same runs as others, as their "
            "regime does not read what they differ in: they are not compared."
        )
    if len(whole) > 1:
        lines += _differences(whole, objective, command)
    return lines + held_out_sentences(winner, held, final)


def held_out_sentences(winner: Candidate, held: Sequence[JobRow], final: bool) -> list[str]:
    """Return sentences on the winner's results on images that no job has read; arguments as in `sentences`."""
    lines = []
    done = [row for row in held if row.status == Status.FINISHED and row.scores]
    if done:
        last = Candidate(winner.values, done)
        mean, low, high = last.scores.interval()
        what = "the test images" if done[0].split == "test" else "the given validation images, which no job has read"
        seeds = f", mean of {len(last.scores.by_seed)} seeds" if len(done) > 1 else ""
        beside = f"; {baseline.describe(mean, low)}" if (baseline := last.baseline) else ""
        lines.append(
            f"{'Evaluated' if done[0].steered else 'Read once'} on {what}: accuracy {mean:.1%} "
            f"[95 % interval {100 * low:.1f}, {100 * high:.1f}]{seeds}{beside}."
        )
        if done[0].steered:
            lines.append(
                f"These images have steered the final run ({', '.join(done[0].steered)}), so this accuracy is biased "
                "upward. With a test split, that of the test images is reported instead."
            )
    elif not final:
        lines.append("The winner was not evaluated on images that no job has read (sweep.final=false).")
    elif held and all(row.status == Status.FINISHED for row in held):
        lines.append(
            "No images were held back from the choice: sweep data.fold=0,1,2,3,4 as well, or give the data a test "
            "split."
        )
    elif all(row.status != Status.FAILED for row in held):
        lines.append(
            "The winner has not been evaluated yet on images that no job has read. The same command again runs what is "
            "missing and then, unless a job fails, the winner's final run for each seed."
        )
    return lines


def _differences(whole: Sequence[Candidate], objective: str, command: str) -> list[str]:
    """Return sentences that compare the winner with the other candidates."""
    winner, second, metric = whole[0], whole[1], compared(objective)
    scores = winner.scores
    found = [compare_runs(other.scores, scores) for other in whole[1:]]
    lines = [f"Runner-up: {second.name}, {format_score(objective, second.interval)}."]
    if metric != objective:
        lines.append(f"The winner is chosen by {objective}; the comparisons that follow are of accuracy.")
    lines.append(difference_sentence(winner.name, second.name, found[0], metric))
    if len(found) > 1:
        alike = sum(not difference.significant for difference in found)
        lines.append(f"{alike} of the {len(found)} other candidates are not significantly different from the winner.")
    command = re.sub(r"\s+seed=\S+", "", command)
    return lines + limitations(found, f"To test the settings, sweep seeds as well: {command} seed=0,1,2", "candidate")


def table(ranked: Sequence[Candidate], objective: str) -> list[list[str]]:
    """Return header and rows: rank, swept values, score with interval, runs, seconds, jobs, unfinished statuses."""
    keys = list(dict.fromkeys(key for candidate in ranked for key in candidate.values))
    lines = [["", *keys, objective, "runs", "seconds", "jobs", ""]]
    rank = 0
    for candidate in ranked:
        rank += candidate.whole
        wrong = [row.status.lower() for row in candidate.rows if row.status != Status.FINISHED]
        runs = f"{len(candidate.rows) - len(wrong)}/{len(candidate.rows)}" if wrong else str(len(candidate.rows))
        lines.append([
            str(rank) if candidate.whole else "-", *(candidate.values.get(key, "") for key in keys),
            "" if math.isnan(candidate.score) else format_score(objective, candidate.interval), runs,
            "" if math.isnan(candidate.seconds) else f"{candidate.seconds:.0f}", _numbers(candidate.rows),
            ", ".join(dict.fromkeys(wrong)),
        ])  # fmt: skip
    return lines


def _numbers(rows: Sequence[JobRow]) -> str:
    """Return the numbers of jobs in short: 0,2,4 or 0-8, or 0,2,...,16 if some between belong to others."""
    numbers = [row.number for row in rows]
    if len(numbers) <= 3:
        return ",".join(map(str, numbers))
    first, last = numbers[0], numbers[-1]
    return f"{first}-{last}" if numbers == list(range(first, last + 1)) else f"{first},{numbers[1]},...,{last}"
