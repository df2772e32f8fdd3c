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
    """Return the winner's final runs, with their records written: one for each seed, on all training images.

    If there are no folds, the winner's jobs have trained on the same images, and their weights are evaluated.

    Args:
        winner: `winner` of the summary.
        number: number of the first final run; numbers whose directories hold other runs are skipped.
    """
    folded = winner["folded"]
    seeds = winner["seeds"] if session.held_out or folded else winner["seeds"][:1]
    unfolded = {"data.fold": "null"} if folded else {}
    runs = [
        (plan.with_values(winner["overrides"], own | unfolded), winner["values"] | own)
        for own in [{"seed": seed} for seed in seeds] or [{}]
    ]
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
    numbers = {job.number for job in jobs}
    for record in sweep_directory.records(session.folder):
        if record.get("final") and record["number"] not in numbers:  # of a former winner
            (session.folder / str(record["number"]) / sweep_directory.JOB).unlink()
    for job in jobs:
        job.write(session.folder)
    return jobs
