"""The final runs of a sweep's winner, which keep its whole model and evaluate it on images that no job has read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config.schema import Config
from experiments.runs.run_directory import RunDirectory
from experiments.sweeps import plan, processes, sweep_directory
from experiments.sweeps.plan import Job
from experiments.training.types import Status

if TYPE_CHECKING:
    from experiments.sweeps.session import Session


def final_jobs(session: Session, winner: dict[str, Any], number: int) -> list[Job]:
    """Return the winner's final runs, with their records written.

    If no fold was swept, the winner's jobs have trained on the same images, and their weights are evaluated.

    Args:
        session: the sweep.
        winner: `winner` of the summary: its values, overrides, seeds, and its jobs' identities and directories.
        number: number of the first final run; numbers whose directories hold other runs are skipped.
    """
    folded = any(line.lstrip("+").startswith("data.fold=") for line in winner["overrides"])
    runs = final_overrides(winner, folded, every_seed=session.held_out or folded)
    jobs = []
    for (overrides, values), composed in zip(
        runs, plan.compose(runs, session.setup.context, session.setup.master), strict=True
    ):
        job = Job(number, overrides, values, composed.config, Path(), composed.hydra, final=True)
        if not folded:  # the same run except for its test evaluation, which the run's process verifies
            job.identity = winner["identities"][values.get("seed", "")]
            place = Path(winner["folders"][values.get("seed", "")])
            job.trained = str(place) if plan.has_weights(place, job.identity) else None
        jobs.append(job)
    if folded:
        response = processes.run_worker_task("inspect_jobs", [plan.plain(job.config) for job in jobs])
        for job, known in zip(jobs, response["jobs"], strict=True):
            job.identity = known["identity"]
    for job in jobs:
        while not sweep_directory.is_free(session.folder / str(number), job.identity):
            number += 1
        job.number, job.folder = number, session.folder / str(number)
        job.trained = None if job.trained == str(job.folder) else job.trained
        number += 1
    reuse_runs(jobs)
    session.prepare(jobs)
    remove_former(session.folder, {job.number for job in jobs})
    for job in jobs:
        job.write(session.folder)
    return jobs


def final_overrides(winner: dict[str, Any], folded: bool, every_seed: bool) -> list[tuple[list[str], dict[str, str]]]:
    """Return overrides and values of the swept keys of each final run: one for each seed, on all training images."""
    seeds = winner["seeds"] if every_seed else winner["seeds"][:1]
    runs = []
    for seed in seeds or [None]:
        dropped = [*(["data.fold="] if folded else []), *(["seed="] if seed is not None else [])]
        overrides = [line for line in winner["overrides"] if not line.lstrip("+").startswith(tuple(dropped))]
        own = {"seed": seed} if seed is not None else {}
        overrides += [f"{key}={value}" for key, value in own.items()] + (["data.fold=null"] if folded else [])
        runs.append((overrides, {**winner["values"], **own}))
    return runs


def reuse_runs(jobs: Sequence[Job]) -> None:
    """Reuse the final runs of an earlier start, unless their MLflow runs have been deleted or `sweep.rerun` is set."""
    for job in jobs:
        facts = RunDirectory(job.folder).facts() or {}
        if facts.get("identity") == job.identity and not job.config.sweep.rerun:
            job.status = Status.FINISHED if facts.get("status") == Status.FINISHED else Status.PARTIAL
            job.threads, job.run_id = facts.get("threads"), facts.get("run_id")
    finished = [job for job in jobs if job.status == Status.FINISHED]
    gone = deleted_runs(jobs[0].config, [job.run_id for job in finished])
    for job in finished:
        if job.run_id in gone:
            job.status, job.deleted, job.run_id = Status.NEW, job.run_id, None


def remove_former(folder: Path, numbers: set[int]) -> None:
    """Remove the records of a former winner's final runs, those with other numbers."""
    for record in sweep_directory.records(folder):
        if record.get("final") and record["number"] not in numbers:
            (folder / str(record["number"]) / sweep_directory.JOB).unlink()


def deleted_runs(config: Config, run_ids: Sequence[str | None]) -> set[str]:
    """Return the ids of those MLflow runs that were deleted, whether they are still in MLflow's trash or not."""
    known = [run_id for run_id in run_ids if run_id]
    if not known or config.tracking.uri is None:
        return set()
    return set(processes.run_worker_task("deleted", plan.plain(config), known)["deleted"])
