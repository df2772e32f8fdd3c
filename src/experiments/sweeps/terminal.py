"""What a sweep prints on the terminal: its plan, a line for each job that has ended, and the summary."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.config.identity import REPEATS
from experiments.sweeps.plan import InspectedJobs, Job, format_short, format_time, format_values, is_folded, short_keys
from experiments.system.progress import fits, plain_table
from experiments.training.types import Status

LONGEST_WORD = 24  # characters of a cell's word that is not broken


def grid_plan(name: str, jobs: Sequence[Job], inspection: InspectedJobs) -> list[str]:
    """Return how many jobs there are and how many are done, what they share, and how long they may take."""
    settings = jobs[0].config.sweep
    new = [job for job in jobs if job.same_as is None and job.status != Status.FINISHED]
    lines = [f"Sweep {name}: " + ", ".join(_counts(jobs, new, inspection))]
    lines += [f"  {line}" for line in inspection.lines if new]
    if settings.rungs is None:
        lines += duration(inspection, len(new), settings.jobs)
    else:
        names = dict.fromkeys(job.place.rung for job in jobs if job.place)
        lines.append(f"  at most {len(names)} rungs, one after the other: {', '.join(names)}")
        if not any(key in job.values for job in jobs for key in REPEATS):
            lines.append(
                "  one run a rung: a gain is then about two trained models, not about the rungs. With data.fold=0,1,2 "
                "or seed=0,1,2 it is about the rungs"
            )
    for job in jobs if settings.dry_run else []:
        state = f"same as {job.same_as}" if job.same_as is not None else job.status.lower()
        lines.append(f"  {job.number:>3}  {state:9} {format_short(job.values)}")
    return lines


def _counts(jobs: Sequence[Job], new: Sequence[Job], inspection: InspectedJobs) -> list[str]:
    """Return how many jobs there are, to be run (`new`), finished and the same as others, and the final runs."""
    settings = jobs[0].config.sweep
    partial = sum(job.status == Status.PARTIAL for job in new)
    finished = sum(job.status == Status.FINISHED for job in jobs)
    duplicates = sum(job.same_as is not None for job in jobs)
    most = "at most " if settings.rungs else ""
    begun = f" ({partial} of them from a checkpoint)" if partial else ""
    parts = [f"{len(jobs)} jobs", f"{most}{len(new)} to run{begun}"]
    parts += [f"{finished} already finished"] if finished else []
    parts += [f"{duplicates} the same as another"] if duplicates else []
    if settings.final:
        held_out = inspection.held_out or any(is_folded(job.overrides) for job in jobs)
        seeds = len({job.config.seed for job in jobs}) if held_out else 1  # else a single run has all figures
        parts.append("then the winner's final " + ("run" if seeds == 1 else f"runs, one for each of {seeds} seeds"))
    return parts


def duration(inspection: InspectedJobs, runs: int, slots: int) -> list[str]:
    """Return a line about how long runs may take, if similar ones were run before."""
    if not inspection.seconds or not runs:
        return []
    return [f"  {format_time(inspection.seconds, runs, slots)}: runs like these took {inspection.seconds:.0f} s"]


def job_line(job: Job, objective: str, score: float | None) -> str:
    """Return the line about a job that has ended."""
    shown = f"{objective} {score:.4g}  " if score is not None else ""
    line = f"  {job.number:>3}  {job.status.lower():8}  {shown}{job.seconds:.0f} s"
    label = ["final run of the winner"] if job.final else []
    return "  ".join([line, *label, format_short(job.values), *job.reason.splitlines()[:1]])


def summary_table(lines: Sequence[Sequence[str]], objective: str) -> Table:
    """Return the candidates as a table; its scores are not wrapped, nor words of a usual length."""
    table = plain_table(lines[0], [objective])
    for line in lines[1:]:
        table.add_row(*line)
    for column, cells in zip(table.columns, zip(*lines, strict=True), strict=True):
        words = cells if column.no_wrap else " ".join(cells).split()
        column.min_width = min(LONGEST_WORD, max(map(len, words), default=0))
    return table


def joined(lines: Sequence[Sequence[str]], objective: str) -> list[Sequence[str]]:
    """Return a table with several swept values in one column, which is wrapped between values where it is narrow."""
    header, *rows = lines
    at = header.index(objective)
    if at < 3:
        return [header, *rows]
    values = (dict(zip(header[1:at], row[1:at], strict=True)) for row in rows)
    texts = [format_values({key: value for key, value in each.items() if value}) for each in values]
    return [[header[0], "values", *header[at:]], *([row[0], t, *row[at:]] for row, t in zip(rows, texts, strict=True))]


def show_summary(console: Console, summary: dict[str, Any], folder: Path) -> None:
    """Print a summary, the content of summary.json."""
    objective, lines = summary["objective"], [short_keys(summary["table"][0]), *summary["table"][1:]]
    if not any(line[-1] for line in lines):  # the column of remarks
        lines = [line[:-1] for line in lines]
    table = summary_table(lines, objective)
    if not fits(console, table):
        table = summary_table(joined(lines, objective), objective)
        is_wide = fits(console, table, wrapped=True)
        for column in table.columns:  # words are broken only where columns would be cut off otherwise
            column.width = column.min_width if is_wide and column.header not in ("values", objective) else None
            column.min_width = column.min_width if is_wide else None
    console.print(table)
    for sentence in summary["sentences"]:
        console.print(sentence, soft_wrap=True)
    for text in summary["failures"]:
        console.print(f"\nFAILED {text}", soft_wrap=True, style="red")
    named = folder.name if folder.parent.name == "sweeps" else shlex.quote(str(folder))
    console.print(f"summary  {folder / 'summary.md'}   again: experiments summarize {named}", soft_wrap=True)
