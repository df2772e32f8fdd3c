"""The summary of a sweep as files: summary.md, .csv, .json and figures, computed from the files of its jobs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.evaluation.comparison_page import markdown_code, markdown_table, markdown_text
from experiments.runs.run_directory import FIGURES
from experiments.storage import atomic_files
from experiments.sweeps import ladder
from experiments.sweeps.summary import candidate_of, candidates, failures, held_out_sentences, read, sentences, table
from experiments.training.types import Status


def write_summary(folder: Path) -> dict[str, Any]:
    """Write the summary of a sweep into its directory: summary.md, .csv, .json and figures.

    Returns:
        The content of summary.json: table, sentences, failures, the winner's values and overrides, metrics.
    """
    from experiments.sweeps import plots

    about, rows = read(folder)
    objective, jobs = about["objective"], [row for row in rows if not row.final]
    climbed = ladder.climbed(about, jobs)
    if climbed:  # rungs above the end of the climb are not reported
        jobs = [row for one in climbed.reached for row in one.rows]
        rows = [*jobs, *(row for row in rows if row.final)]
    ranked = candidates(jobs, objective)
    folds = any("data.fold" in row.values for row in jobs)
    winner = next((one for one in ranked if one.whole and not math.isnan(one.score)), None)
    if climbed and climbed.use:
        winner = next(one for one in ranked if one.values == climbed.use.candidate.values)
    # The final runs of a former winner are not reported.
    held = [row for row in rows if row.final and winner and candidate_of(row) == winner.values]
    final = about.get("config", {}).get("sweep", {}).get("final", True)
    if climbed and winner:
        said = [*climbed.sentences(), *held_out_sentences(winner, held, folds, final)]
    else:
        said = sentences(ranked, objective, held, folds, about["command"], final)
    left = sum(row.status in (Status.NEW, Status.PARTIAL, Status.KILLED, Status.RUNNING) for row in jobs)
    said += [f"{left} jobs are not finished: the same command again continues them."] if left else []
    lines = climbed.table() if climbed else table(ranked, objective)
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
            "folders": {row.values.get("seed", ""): str(row.folder) for row in winner.rows},
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
    atomic_files.write_file(folder / "summary.csv", text.getvalue().encode())
    atomic_files.write_file(
        folder / "summary.md", markdown(folder.name, about["command"], lines, said, summary["failures"]).encode()
    )
    atomic_files.write_file(folder / "summary.json", json.dumps(summary, indent=1).encode())
    shares = [row.baseline.accuracy for row in jobs if row.baseline and objective == "accuracy"]
    plots.draw(folder / FIGURES, ranked, objective, max(shares, default=None), climbed)
    return summary


def markdown(name: str, command: str, lines: Sequence[Sequence[str]], said: Sequence[str], wrong: Sequence[str]) -> str:
    parts = [f"# Sweep {markdown_text(name)}", markdown_code(command), markdown_table(lines), *map(markdown_text, said)]
    if wrong:
        parts += ["## Failed", *map(markdown_code, wrong)]
    return "\n\n".join(parts) + "\n"
