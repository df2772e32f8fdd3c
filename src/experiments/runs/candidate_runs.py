"""The finished runs of one candidate of a sweep. Those of its folds rate the labels of images in turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from experiments.config.identity import REPEATS
from experiments.runs.run_directory import SWEEP, RunDirectory, job_directory, job_records


class CandidateRun(NamedTuple):
    """A finished run of a candidate."""

    directory: RunDirectory  # in the sweep's directory, or elsewhere if the sweep has reused an earlier run
    fold: str | None  # its data.fold, if that is swept
    final: bool  # whether it is a final run of the winner, which is trained on all folds


def without_repeats(values: Mapping[str, str]) -> dict[str, str]:
    """Return those values of a job's swept keys that its candidate has."""
    return {key: value for key, value in values.items() if key not in REPEATS}


def of_job(folder: Path) -> list[CandidateRun]:
    """Return the finished runs of the candidate of a run, which may be no job; none if its sweep goes over no folds."""
    if not (folder.parent / SWEEP).is_file():
        return []
    record = next((job for job in job_records(folder.parent) if str(job["number"]) == folder.name), None)
    found = of_candidate(folder.parent, record["values"]) if record else []
    return found if any(run.fold is not None for run in found) else []


def of_candidate(sweep: Path, values: Mapping[str, str]) -> list[CandidateRun]:
    """Return the finished runs of the candidate with these values of the swept keys, whatever its seeds and folds.

    Its final runs have other validation images than the jobs, and are among them, only if the sweep goes over folds.
    """
    found = []
    for job in job_records(sweep):
        if without_repeats(job["values"]) == without_repeats(values):
            directory = job_directory(sweep, job["number"], Path(job["folder"]), job.get("identity", ""))
            if directory:
                found.append(CandidateRun(directory, job["values"].get("data.fold"), job.get("final", False)))
    folds = any(run.fold is not None for run in found)
    return [run for run in found if folds or not run.final]


def unrated(images: Iterable[Mapping[str, str]], rated: Iterable[str]) -> int:
    """Return how many training and validation images of a manifest's rows have no rating, by their SHA-256 hashes."""
    known = set(rated)
    return sum(row["split"] != "test" and row["sha256"] not in known for row in images)
