"""What a sweep says: its table, its winner, how sure that is. Read from the files of its jobs, at any time."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments import journal, store
from experiments.page import markdown_code, markdown_table, markdown_text
from experiments.schema import LOWER_IS_BETTER
from experiments.statistics import mean_interval, paired_difference, wilson
from experiments.sweeps.plan import REPEATS, SWEEP, records, told
from experiments.types import ConfigError


@dataclass(frozen=True)
class Row:
    """A job of the sweep."""

    number: int
    values: Mapping[str, str]
    overrides: Sequence[str]
    folder: Path
    status: str  # FINISHED, FAILED, PRUNED, or PARTIAL and NEW: not ended
    reason: str
    metrics: Mapping[str, float]
    correct: Mapping[str, bool]  # by validation picture
    final: bool = False  # the winner once more
    identity: str = ""  # of the run, as planned and as found


@dataclass
class Candidate:
    """Jobs that differ in seed and fold only."""

    values: Mapping[str, str]
    rows: list[Row] = field(default_factory=list)
    score: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def name(self) -> str:
        return told(self.values) or "the one candidate"

    @property
    def whole(self) -> bool:
        return all(row.status == "FINISHED" for row in self.rows)

    @property
    def seconds(self) -> float:
        return float(np.mean([row.metrics.get("total_seconds", math.nan) for row in self.rows]))


def read(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """A sweep's folder: what it is, and its jobs.

    Raises:
        ConfigError: no sweep is there.
    """
    try:
        about = json.loads((folder / SWEEP).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: is no sweep's folder: {error}") from None
    rows = []
    for job in records(folder):
        rows.append(_row(job, folder / str(job["number"])))
    return about, rows


def _row(job: Mapping[str, Any], own: Path) -> Row:
    """Return a job with its results, if a folder holds those of the run that was planned."""
    identity, status, correct = job.get("identity", ""), job["status"], {}
    # The run's own folder; where that is on another machine or was moved, the job's, with what was fetched of it.
    places = [Path(job["folder"]), own]
    found = [(place, metrics) for place in places if (metrics := journal.finished(place, identity)) is not None]
    folder, metrics = found[0] if found else (places[0], {})
    if found:
        status = "FINISHED"
        with (folder / "predictions_validation.csv").open(newline="", encoding="utf-8") as file:
            correct = {f"{row['path']} {row['sha256']}": row["correct"] == "True" for row in csv.DictReader(file)}
    elif status != "FAILED":
        facts = journal.read(folder) or {}
        same = bool(identity) and facts.get("identity") in (None, identity)
        status = facts.get("status", "NEW") if same else "NEW" if status == "FINISHED" else status
        status = "NEW" if status == "FINISHED" else status  # its results are gone
    return Row(
        job["number"], job["values"], job["overrides"], folder, status, job.get("reason", ""), metrics, correct,
        job.get("final", False), identity,
    )  # fmt: skip


def _candidate(row: Row) -> dict[str, str]:
    return {key: value for key, value in row.values.items() if key not in REPEATS}


def candidates(rows: Sequence[Row], objective: str) -> list[Candidate]:
    """The rows as candidates, the best first; those of which a run is missing or failed last, unranked."""
    found: dict[str, Candidate] = {}
    for row in rows:
        if not row.final:
            values = _candidate(row)
            found.setdefault(json.dumps(values, sort_keys=True), Candidate(values)).rows.append(row)
    for one in found.values():
        scores = [row.metrics.get(f"validation.{objective}", math.nan) for row in one.rows if row.metrics]
        if scores:
            one.score, one.low, one.high = interval(one.rows, scores, objective)
    sign = 1 if objective in LOWER_IS_BETTER else -1
    return sorted(found.values(), key=lambda one: (not one.whole, math.isnan(one.score), sign * one.score, one.seconds))


def interval(rows: Sequence[Row], scores: Sequence[float], objective: str) -> tuple[float, float, float]:
    """Mean and 95 % interval: over runs; of a single run's accuracy over pictures."""
    if len(scores) == 1 and objective == "accuracy":
        correct = next(row.correct for row in rows if row.correct)
        return (scores[0], *wilson(sum(correct.values()), len(correct)))
    return mean_interval(list(scores))


def correctness(one: Candidate, runs: Sequence[str], pictures: Sequence[str]) -> np.ndarray:
    """[S, N] bool: of each of the runs whether it got each picture right; a run's folds have its pictures together."""
    by_run: dict[str, dict[str, bool]] = {}
    for row in one.rows:
        by_run.setdefault(row.values.get("seed", ""), {}).update(row.correct)
    return np.array([[by_run[run][picture] for picture in pictures] for run in runs], dtype=bool)


def paired(winner: Candidate, other: Candidate) -> Any:
    """The winner against another, over the runs and pictures that both have; None where there are none."""
    runs, pictures = [], None
    for one in (winner, other):
        found: dict[str, set[str]] = {}
        for row in one.rows:
            found.setdefault(row.values.get("seed", ""), set()).update(row.correct)
        runs.append(found)
    common = [run for run in runs[0] if run in runs[1]]
    for run in common:
        same = runs[0][run] & runs[1][run]
        pictures = same if pictures is None else pictures & same
    if not common or not pictures or len(pictures) < 2:
        return None
    order = sorted(pictures)
    return paired_difference(correctness(other, common, order), correctness(winner, common, order))


def sentences(ranked: Sequence[Candidate], objective: str, held: Sequence[Row], folds: bool) -> list[str]:
    """The conclusion in words."""
    whole = [one for one in ranked if one.whole and not math.isnan(one.score)]
    if not whole:
        return ["No candidate has finished: there is no winner."]
    winner = whole[0]
    runs = f" over {len(winner.rows)} runs" if len(winner.rows) > 1 else ""
    lines = [f"Winner by validation {objective}: {winner.name}, {shown(winner, objective)}{runs}."]
    if len(whole) > 1:
        second = whole[1]
        test = paired(winner, second)
        if test is None:
            lines.append(
                f"Runner-up: {second.name}, {shown(second, objective)}; judged on other pictures: no paired test."
            )
        else:
            p = "" if test.p_value is None else f", McNemar p = {test.p_value:.2g}"
            lines.append(
                f"Runner-up: {second.name}, {shown(second, objective)}. On the same {test.pictures} pictures the "
                f"winner's accuracy differs by {100 * test.difference:+.1f} points (95 % interval "
                f"{100 * test.low:+.1f} to {100 * test.high:+.1f}{p}): "
                + (
                    "a real difference."
                    if test.real
                    else "not distinguishable from chance, so noise may have chosen between them."
                )
            )
        tests = [paired(winner, other) for other in whole[1:]]
        alike = sum(one is not None and not one.real for one in tests)
        lines.append(
            f"{alike} of the {len(whole) - 1} other candidates cannot be told from the winner on these pictures."
        )
        lines.append(
            f"The winner is the best of {len(whole)}: the score it was chosen by is flattering, the more so the more "
            "there were to choose from."
        )
    done = [row for row in held if row.status == "FINISHED"]
    split = "validation" if folds else "test"
    scores = [row.metrics[f"{split}.accuracy"] for row in done if f"{split}.accuracy" in row.metrics]
    if scores:
        if len(scores) > 1:
            mean, low, high = mean_interval(scores)
        else:
            mean, low, high = (
                scores[0],
                done[0].metrics[f"{split}.accuracy_low"],
                done[0].metrics[f"{split}.accuracy_high"],
            )
        what = "the given validation pictures, which no job has read" if folds else "the test pictures"
        lines.append(
            f"Read once on {what}: accuracy {mean:.1%} [95 % interval {100 * low:.1f}, {100 * high:.1f}]"
            + (f", mean of {len(scores)} seeds." if len(scores) > 1 else ".")
        )
    elif not held or done:
        lines.append(
            "No pictures were held back from the choice: sweep data.fold=0,1,2,3,4 as well, or give the data a test "
            "split."
        )
    return lines


def shown(one: Candidate, objective: str) -> str:
    """A score with its interval."""
    if objective in ("loss", "brier"):
        text = f"{one.score:.4f}"
        return text if math.isnan(one.low) else f"{text} [{one.low:.4f}, {one.high:.4f}]"
    text = f"{one.score:.1%}"
    return text if math.isnan(one.low) else f"{text} [{100 * one.low:.1f}, {100 * one.high:.1f}]"


def table(ranked: Sequence[Candidate], objective: str) -> list[list[str]]:
    """Header and rows: rank, swept values, score with interval, runs, seconds, what went wrong."""
    keys = list(dict.fromkeys(key for one in ranked for key in one.values))
    lines = [["", *keys, objective, "runs", "seconds", "jobs", ""]]
    rank = 0
    for one in ranked:
        rank += one.whole
        wrong = [row.status.lower() for row in one.rows if row.status != "FINISHED"]
        numbers = [str(row.number) for row in one.rows]
        lines.append([
            str(rank) if one.whole else "-",
            *(one.values.get(key, "") for key in keys),
            "" if math.isnan(one.score) else shown(one, objective),
            f"{sum(row.status == 'FINISHED' for row in one.rows)}/{len(one.rows)}" if wrong else str(len(one.rows)),
            "" if math.isnan(one.seconds) else f"{one.seconds:.0f}",
            ",".join(numbers) if len(numbers) <= 3 else f"{numbers[0]}-{numbers[-1]}",
            ", ".join(dict.fromkeys(wrong)),
        ])  # fmt: skip
    return lines


def failures(rows: Sequence[Row]) -> list[str]:
    """Why jobs have failed, each with its last words."""
    return [f"job {row.number} ({told(row.values)}): {row.reason}" for row in rows if row.status == "FAILED"]


def conclude(folder: Path) -> dict[str, Any]:
    """Writes the summary of a sweep into its folder: summary.md, .csv, .json and figures.

    Returns:
        What summary.json holds: table, sentences, failures, the winner's values and overrides, metrics.
    """
    from experiments.sweeps import plots

    about, rows = read(folder)
    objective, jobs = about["objective"], [row for row in rows if not row.final]
    ranked = candidates(jobs, objective)
    folds = any("data.fold" in row.values for row in jobs)
    winner = next((one for one in ranked if one.whole and not math.isnan(one.score)), None)
    # Of a former winner's last runs nothing is reported beside this one.
    held = [row for row in rows if row.final and winner and _candidate(row) == winner.values]
    said = sentences(ranked, objective, held, folds)
    left = sum(row.status in ("NEW", "PARTIAL", "KILLED", "RUNNING") for row in jobs)
    said += [f"{left} jobs are not at their end: the same command again goes on with them."] if left else []
    lines = table(ranked, objective)
    metrics = {
        f"jobs_{status.lower()}": float(sum(row.status == status for row in jobs))
        for status in {r.status for r in jobs}
    }
    if winner:
        metrics[f"winner.validation.{objective}"] = winner.score
    summary = {
        "sweep": folder.name, "objective": objective, "command": about["command"], "table": lines, "sentences": said,
        "failures": failures(rows), "metrics": metrics,
        "winner": winner and {
            "values": dict(winner.values), "overrides": list(winner.rows[0].overrides),
            "number": winner.rows[0].number,
            "identities": {row.values.get("seed", ""): row.identity for row in winner.rows},
            "seeds": sorted({row.values["seed"] for row in winner.rows if "seed" in row.values}, key=int),
        },
        "runs": [
            {"number": row.number, "values": dict(row.values), "status": row.status, "folder": str(row.folder),
             "final": row.final, "metrics": dict(row.metrics)}
            for row in rows
        ],
    }  # fmt: skip
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    store.write_file(folder / "summary.csv", text.getvalue().encode())
    store.write_file(
        folder / "summary.md", markdown(folder.name, about["command"], lines, said, summary["failures"]).encode()
    )
    store.write_file(folder / "summary.json", json.dumps(summary, indent=1).encode())
    plots.draw(folder / "figures", ranked, objective)
    return summary


def markdown(name: str, command: str, lines: Sequence[Sequence[str]], said: Sequence[str], wrong: Sequence[str]) -> str:
    parts = [f"# Sweep {markdown_text(name)}", markdown_code(command), markdown_table(lines), *map(markdown_text, said)]
    if wrong:
        parts += ["## Failed", *map(markdown_code, wrong)]
    return "\n\n".join(parts) + "\n"
