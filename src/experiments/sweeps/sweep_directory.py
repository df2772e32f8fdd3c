"""A sweep's directory: sweep.json, the records of its jobs, their numbers and directories."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.runs import run_directory
from experiments.runs.run_directory import RunDirectory, read_json
from experiments.sweeps.launchers import processes
from experiments.sweeps.plan import Job
from experiments.system.paths import default_outputs
from experiments.tracking import queries
from experiments.tracking.queries import RUN_ID, RunFacts
from experiments.training.types import Status

SUMMARY = "summary.json"  # what `summary_files.write_summary` returns
JOB, SWEEP, records = run_directory.JOB, run_directory.SWEEP, run_directory.job_records


def read(folder: Path) -> dict[str, Any]:
    """Return the content of sweep.json, or an empty dictionary if there is none."""
    path = folder / SWEEP
    return read_json(path) if path.exists() else {}


def find(named: str) -> Path:
    """Return the directory of a sweep, named by its path, its name or its MLflow run's id; or raise ConfigError."""
    sweeps = Path(default_outputs()) / "sweeps"
    for folder in (Path(named).expanduser(), sweeps / named):
        if (folder / SWEEP).is_file():
            return folder.resolve()
    known = sorted(sweeps.glob(f"*/{SWEEP}"), key=lambda path: path.stat().st_mtime)
    for path in known:
        if read_json(path).get("parent") == named:
            return path.parent
    latest = ", ".join(path.parent.name for path in known[-5:]) or "none"
    raise ConfigError(
        f"{named}: no such sweep. Give its folder, a name in {sweeps}, or the id of its MLflow run. "
        f"The latest: {latest}"
    )


def finished_runs(uri: str, named: str) -> list[RunFacts]:
    """Return the runs of a sweep's jobs, without the winner's final runs; raise ConfigError if there are none."""
    try:  # the sweep's files also list jobs that were trained before, whose runs have another parent
        folder = find(named)
        done = [job for job in records(folder) if job["status"] == Status.FINISHED and not job.get("final")]
        if not done:
            raise ConfigError(f"{folder.name}: no job of this sweep can be compared: none has finished")
        return queries.find_runs(uri, list(dict.fromkeys(job.get("run_id") or Path(job["folder"]) for job in done)))
    except ConfigError:
        if not RUN_ID.fullmatch(named):
            raise
    children = queries.search_runs(uri, f"tags.`mlflow.parentRunId` = '{named}'")
    if not children:
        raise ConfigError(f"--sweep: no finished job has {named} as its parent run")
    # A final run has the identity of its job, which is older; after a sweep over folds, it is one without a fold.
    if folded := [run for run in children if run.params.get("data.fold", "null") != "null"]:
        children = folded
    jobs: dict[str, RunFacts] = {}
    for run in children:
        jobs.setdefault(run.tags.get("identity", run.run_id), run)
    return list(jobs.values())


def folders(outputs: Path) -> Iterator[Path]:
    """Yield the directories of all runs below outputs/, those of jobs before final runs of the same identity."""
    yield from outputs.glob("runs/*/")
    yield from sorted(outputs.glob("sweeps/*/[0-9]*/"), key=lambda path: (path.parent, len(path.name), path.name))


def results(folder: Path, job: Job) -> dict[str, float] | None:
    """Return a job's metrics from its run's directory or, if they were fetched, the job's; None without results."""
    directory = run_directory.job_directory(folder, job.number, job.folder, job.identity)
    return directory.metrics() if directory else None


# -- before the jobs run


def check_sweep(folder: Path, name: str) -> None:
    """Raise ConfigError if a directory holds another sweep than the one of this name."""
    before = read(folder)
    if before and before.get("name") != name:
        what = (
            f"another sweep ({before.get('command')})" if "name" in before
            else "a sweep of an earlier version of this program, which has not recorded what its jobs were"
        )  # fmt: skip
        raise ConfigError(
            f"hydra.sweep.dir: {folder} holds {what}. Its jobs, data, weights, tracking or version of this "
            "program are not those planned now, so its results are not theirs. Nothing was started. Give another "
            "hydra.sweep.dir, or leave it out (every sweep then has a folder of its own), or remove that folder"
        )


def number_jobs(folder: Path, jobs: Sequence[Job]) -> None:
    """Set the numbers and directories of jobs, which keep their numbers of earlier starts in whatever order."""
    known: dict[str, list[int]] = {}
    taken = set()
    for record in records(folder):
        taken.add(record["number"])
        if not record.get("final"):
            known.setdefault(record["identity"], []).append(record["number"])
    free = (number for number in itertools.count() if number not in taken)
    first: dict[str, int] = {}
    for job in jobs:
        before = known.get(job.identity)
        job.number = before.pop(0) if before else next(free)
        job.same_as = first.get(job.identity)
        first.setdefault(job.identity, job.number)
        if job.status == Status.NEW or job.same_as is not None:
            job.status, job.folder = Status.NEW, folder / str(job.number)


def reuse_own_runs(jobs: Sequence[Job]) -> None:
    """Reuse the runs in the directories of new jobs, unless their MLflow runs were deleted or `sweep.rerun` is set.

    `inspect_jobs` searches below outputs/ only, and another start of the sweep may have finished jobs since.
    """
    new = [job for job in jobs if job.same_as is None and job.status == Status.NEW and not job.deleted]
    for job in new:
        facts = RunDirectory(job.folder).facts()
        known = facts.get("identity") == job.identity and facts.get("status") != Status.PRUNED
        if known and not job.config.sweep.rerun:
            job.reuse(facts)
    finished = [job for job in new if job.status == Status.FINISHED]
    gone = deleted_runs(finished[0].config, [job.run_id for job in finished]) if finished else set()
    for job in finished:
        if job.run_id in gone:
            job.status, job.deleted, job.run_id = Status.NEW, job.run_id, None


def deleted_runs(config: Config, run_ids: Sequence[str | None]) -> set[str]:
    """Return the ids of those MLflow runs that were deleted, whether they are still in MLflow's trash or not."""
    known = [run_id for run_id in run_ids if run_id]
    if not known or config.tracking.uri is None:
        return set()
    return set(processes.run_worker_task("deleted", config.tracking.uri, known))


def resolve_repeated(folder: Path, jobs: Sequence[Job]) -> None:
    """Copy the result of a run to the jobs with the same identity under another number."""
    numbered = {job.number: job for job in jobs}
    for job in jobs:
        if job.same_as is not None:
            first = numbered[job.same_as]
            job.status, job.folder, job.reason = first.status, first.folder, first.reason
            job.run_id, job.seconds = first.run_id, first.seconds
            job.write(folder)


def owner(folder: Path) -> str | None:
    """Return the identity of the run in a job's directory; "" if it is not recorded, None if the directory is free."""
    facts = RunDirectory(folder).facts()
    if facts.get("identity"):
        return str(facts["identity"])
    if (folder / JOB).exists():  # the run ended before its data were read, and recorded no identity itself
        recorded = read_json(folder / JOB).get("identity")
        if recorded != "":  # a job that has failed before its identity was known has no run
            return str(recorded or "")
    return "" if facts or (folder / run_directory.METRICS).exists() else None


def is_free(folder: Path, identity: str) -> bool:
    """Return whether the run of this identity may be written to a directory: it is free, or holds that run."""
    return owner(folder) in (None, identity)


def check_owner(folder: Path, identity: str) -> None:
    """Raise ConfigError if a directory holds another run than the one of this identity."""
    if not is_free(folder, identity):
        raise ConfigError(
            f"{folder}: this folder holds another run than the job that is to be written there (identity "
            f"{owner(folder) or 'unknown'}, planned {identity}), so its results are not the job's. Nothing was "
            "started. Give another hydra.sweep.dir, or leave it out, or remove that folder"
        )
