"""The summary of a sweep as files: summary.md, .csv, .json and figures, computed from the files of its jobs."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.comparison.groups import seed_order
from experiments.comparison.page import markdown_code, markdown_table, markdown_text
from experiments.errors import ConfigError
from experiments.runs.candidate_runs import without_repeats
from experiments.runs.run_directory import FIGURES
from experiments.storage import atomic_files
from experiments.sweeps import ladder
from experiments.sweeps.plan import format_values, is_folded
from experiments.sweeps.summary import (
    Candidate,
    JobRow,
    candidates,
    held_out_sentences,
    is_on_target,
    read,
    sentences,
    table,
)
from experiments.sweeps.sweep_directory import SUMMARY
from experiments.training.types import UNFINISHED, Status


class Standing(NamedTuple):
    """The candidates of a sweep, and which of them it recommends so far."""

    jobs: list[JobRow]  # without final runs, and without rungs above the end of a climb
    ranked: list[Candidate]  # the best first
    winner: Candidate | None  # None before any has finished
    climbed: ladder.Climbed | None  # of a ladder sweep, whose winner is the rung to use


def standing(about: Mapping[str, Any], rows: Sequence[JobRow]) -> Standing:
    """Return the standing of a sweep from the content of its sweep.json and its jobs."""
    jobs = [row for row in rows if not row.final]
    if climbed := ladder.climbed(about, jobs):
        jobs = [row for step in climbed.reached for row in step.candidate.rows]
    ranked = candidates(jobs, about["objective"], about.get("repeats", 1))
    winner = next((candidate for candidate in ranked if candidate.ranked), None)
    if climbed and climbed.use:
        winner = next(candidate for candidate in ranked if candidate.values == climbed.use.candidate.values)
    return Standing(jobs, ranked, winner, climbed)


def winner_values(folder: Path) -> dict[str, str]:
    """Return the values of a sweep's winner; without one, of the best candidate that has a finished job.

    Raises:
        ConfigError: no job has finished.
    """
    about, rows = read(folder)
    _, ranked, winner, _ = standing(about, rows)
    begun = (candidate for candidate in ranked if any(row.status == Status.FINISHED for row in candidate.rows))
    best = winner or next(begun, None)
    if best is None:
        raise ConfigError(f"{folder}: no job of this sweep has finished")
    return dict(best.values)


def write_summary(folder: Path) -> dict[str, Any]:
    """Write summary.md, .csv, .json and figures into a sweep's directory; return the content of SUMMARY."""
    from experiments.sweeps import plots

    about, rows = read(folder)
    objective = about["objective"]
    jobs, ranked, winner, climbed = standing(about, rows)
    rows = [*jobs, *(row for row in rows if row.final)]
    # The final runs of a former winner are not reported.
    held_out = [row for row in rows if row.final and winner and without_repeats(row.values) == winner.values]
    settings = about.get("config", {}).get("sweep", {})
    final, target = settings.get("final", True), settings.get("target")
    if climbed and winner:
        lines = [*climbed.sentences(), *held_out_sentences(winner, held_out, final)]
    else:
        lines = sentences(ranked, objective, held_out, about["command"], final)
    if unfinished := sum(row.status in UNFINISHED for row in jobs):
        line = "1 job is not finished" if unfinished == 1 else f"{unfinished} jobs are not finished"
        if target is not None and is_on_target(ranked, objective, target):
            lines.append(f"{line}, as sweep.target={target:g} is reached: another target, or none, continues them.")
        else:
            lines.append(f"{line}: the same command again continues them.")
    metrics = {f"jobs_{status.lower()}": float(count) for status, count in Counter(row.status for row in jobs).items()}
    if winner:
        metrics[f"winner.validation.{objective}"] = winner.score
    summary = {
        "sweep": folder.name, "objective": objective, "command": about["command"],
        "table": climbed.table() if climbed else table(ranked, objective), "sentences": lines,
        "failures": failures(rows),
        "metrics": metrics, "winner": _winner_record(winner) if winner else None,
        "runs": [
            {"number": row.number, "values": dict(row.values), "status": row.status, "folder": str(row.folder),
             "final": row.final, "metrics": dict(row.metrics)}
            for row in rows
        ],
    }  # fmt: skip
    text = io.StringIO()
    csv.writer(text).writerows(summary["table"])
    files = {"summary.csv": text.getvalue(), "summary.md": markdown(summary), SUMMARY: json.dumps(summary, indent=1)}
    for name, content in files.items():
        atomic_files.write_file(folder / name, content.encode())
    shares = [found.baseline.accuracy for found in ranked if found.baseline and objective == "accuracy"]
    plots.draw(folder / FIGURES, ranked, objective, max(shares, default=None), climbed)
    return summary


def failures(rows: Sequence[JobRow]) -> list[str]:
    """Return why each failed job has failed; of jobs whose reasons begin and end alike, whole for the first of them."""
    texts, numbers = [], dict[tuple[str, str], int]()
    for row in rows:
        if row.status == Status.FAILED:
            first, *more = row.reason.splitlines() or [""]
            number = numbers.setdefault((first, more[-1] if more else ""), row.number)
            reason = row.reason if number == row.number or not more else f"{first}, as job {number}"
            texts.append(f"job {row.number} ({format_values(row.values)}): {reason}")
    return texts


def _winner_record(winner: Candidate) -> dict[str, Any]:
    first = winner.rows[0]
    seeds = {row.values["seed"] for row in winner.rows if "seed" in row.values}
    return {
        "values": dict(winner.values), "overrides": list(first.overrides), "number": first.number,
        "identities": {row.values.get("seed", ""): row.identity for row in winner.rows},
        "folders": {row.values.get("seed", ""): str(row.folder) for row in winner.rows},
        "folded": any(is_folded(row.overrides) for row in winner.rows),
        "seeds": sorted(seeds, key=seed_order),
    }  # fmt: skip


def markdown(summary: Mapping[str, Any]) -> str:
    """Return a summary as a Markdown page."""
    parts = [f"# Sweep {markdown_text(summary['sweep'])}", markdown_code(summary["command"])]
    parts += [markdown_table(summary["table"]), *map(markdown_text, summary["sentences"])]
    if summary["failures"]:
        parts += ["## Failed", *map(markdown_code, summary["failures"])]
    return "\n\n".join(parts) + "\n"
