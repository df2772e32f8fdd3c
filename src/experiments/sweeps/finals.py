"""The final runs of a sweep's winner, which keep its whole model and evaluate it on images that no job has read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.sweeps import plan, sweep_directory
from experiments.sweeps.launchers import processes
from experiments.sweeps.plan import Job

if TYPE_CHECKING:
    from experiments.sweeps.session import Session


def final_jobs(session: Session, winner: dict[str, Any], number: int) -> list[Job]:
    """Return the winner's final runs, with their records written.

    If there are no folds, the winner's jobs have trained on the same images, and their weights are evaluated.

    Args:
        session: the sweep.
        winner: `winner` of the summary: its values, overrides, seeds, whether its jobs validated on folds, and their
            identities and directories.
        number: number of the first final run; numbers whose directories hold other runs are skipped.
    """
    folded = winner["folded"]
    runs = final_overrides(winner, folded, every_seed=session.held_out or folded)
    jobs = plan.compose(runs, session.setup.context, session.setup.master)
    if folded:
        found = processes.run_worker_task("inspect_jobs", [job.config for job in jobs])["jobs"]
    for at, job in enumerate(jobs):
        job.final = True
        if folded:
            job.identity = found[at]["identity"]
        else:  # the same run except for its test evaluation, which the run's process verifies
            seed = job.values.get("seed", "")
            job.identity, place = winner["identities"][seed], Path(winner["folders"][seed])
            job.trained = str(place) if plan.has_weights(place, job.identity) else None
        while not sweep_directory.is_free(session.folder / str(number), job.identity):
            number += 1
        job.number, job.folder = number, session.folder / str(number)
        job.trained = None if job.trained == str(job.folder) else job.trained
        number += 1
    sweep_directory.reuse_own_runs(jobs)
    session.prepare(jobs)
    remove_former(session.folder, {job.number for job in jobs})
    for job in jobs:
        job.write(session.folder)
    return jobs


def final_overrides(winner: dict[str, Any], folded: bool, every_seed: bool) -> list[tuple[list[str], dict[str, str]]]:
    """Return overrides and values of the swept keys of each final run: one for each seed, on all training images."""
    seeds = winner["seeds"] if every_seed else winner["seeds"][:1]
    unfolded = {"data.fold": "null"} if folded else {}
    return [
        (plan.with_values(winner["overrides"], own | unfolded), winner["values"] | own)
        for own in [{"seed": seed} for seed in seeds] or [{}]
    ]


def remove_former(folder: Path, numbers: set[int]) -> None:
    """Remove the records of a former winner's final runs, those with other numbers."""
    for record in sweep_directory.records(folder):
        if record.get("final") and record["number"] not in numbers:
            (folder / str(record["number"]) / sweep_directory.JOB).unlink()
