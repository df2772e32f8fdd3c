"""One start of a sweep: it runs jobs through a launcher, records their results and concludes the sweep."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig

from experiments.config.identity import logged
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.runs.run_directory import RunDirectory
from experiments.storage import atomic_files
from experiments.storage.atomic_files import PATIENCE, claim
from experiments.sweeps import plan, sweep_directory, terminal
from experiments.sweeps.launchers import processes, scheduler
from experiments.sweeps.launchers.scheduler import JobLauncher
from experiments.sweeps.plan import InspectedJobs, Job
from experiments.system.progress import PlainConsole, Terminal
from experiments.system.redaction import redacted
from experiments.training.types import Status

LOCK = ".sweep.lock"
# What `summary_files`, `ladder` and `experiments summarize` read in sweep.json, even if it came from the environment.
SUMMARY_KEYS = {"sweep": ("final", "rungs", "climb", "jobs", "target"), "data": ("folds",), "tracking": ("uri",)}


@dataclass(frozen=True)
class Setup:
    """The settings that all jobs of a sweep share."""

    context: HydraContext
    master: DictConfig  # the configuration that Hydra has composed for the whole sweep
    launcher: JobLauncher
    config: Config  # of the first job; sweep, tracking, outputs and objective are the same in all jobs
    command: str  # the whole command line
    began: float  # time.monotonic() at the start


class Session:
    """One start of a sweep, whose name is the same at every start.

    Raises:
        ConfigError: the sweep's directory holds another sweep.
    """

    def __init__(self, setup: Setup, name: str, inspection: InspectedJobs) -> None:
        self.setup, self.config, self.name = setup, setup.config, name
        place = Path(setup.master.hydra.sweep.dir)
        typed = any(line.lstrip("+").startswith("hydra.sweep.dir=") for line in setup.master.hydra.overrides.hydra)
        self.folder = (place if typed else place / name).absolute()
        self.held_out = inspection.held_out
        self.features_missing = inspection.features_missing
        self.console = PlainConsole(quiet=self.config.progress == "none")
        self.parent: str | None = None  # id of the sweep's MLflow run
        self.on_target = False  # whether a candidate has reached sweep.target
        self.repeats = 1  # number of the jobs of a candidate, if they are not all recorded before the first one starts
        sweep_directory.check_sweep(self.folder, name)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the sweep's lock, where locks are supported; raise ConfigError if another process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = claim(self.folder, LOCK, "sweep", PATIENCE)
        try:
            sweep_directory.check_sweep(self.folder, self.name)
            yield
        finally:
            lock.release()

    def print_lines(self, *lines: str) -> None:
        for line in lines:
            self.console.print(line, soft_wrap=True)

    # -- jobs

    def prepare(self, jobs: Sequence[Job]) -> None:
        """Remove directories whose own run is to be trained again; raise ConfigError if one holds another run."""
        new = [job for job in jobs if job.same_as is None and job.status == Status.NEW]
        for job in new:
            sweep_directory.check_owner(job.folder, job.identity)
        for job in new:
            if job.deleted:
                why = f"its MLflow run {job.deleted} has been deleted"
                self.print_lines(f"  job {job.number}: {why}, so it is trained again")
            directory = RunDirectory(job.folder)
            if directory.facts().get("identity") or directory.finished(job.identity) is not None:
                shutil.rmtree(job.folder)

    def open(self, jobs: Sequence[Job]) -> None:
        """Create the sweep's MLflow run or continue that of an earlier start, and write records of sweep and jobs."""
        if self.config.tracking.uri is not None:
            before = sweep_directory.read(self.folder).get("parent")
            self.parent = processes.run_worker_task("open_run", self.config, self.folder, before)
        config = logged(self.config)
        for group, names in SUMMARY_KEYS.items():
            values = getattr(self.config, group)
            config[group] = config.get(group, {}) | {name: getattr(values, name) for name in names}
        about = {
            "name": self.name, "command": self.setup.command, "objective": self.config.objective,
            "parent": self.parent, "config": config, "repeats": self.repeats,
        }  # fmt: skip
        atomic_files.write_json(self.folder / sweep_directory.SWEEP, redacted(about))
        self.write_jobs(jobs)

    def write_jobs(self, jobs: Sequence[Job]) -> None:
        """Write the jobs' records into the sweep's directory, with the results of finished runs on other machines."""
        for job in jobs:
            job.write(self.folder)
        remote = [
            (job.run_id, job.identity, self.folder / str(job.number))
            for job in jobs if job.status == Status.FINISHED and not sweep_directory.results(self.folder, job)
        ]  # fmt: skip
        if remote:
            processes.run_worker_task("fetch", self.config.tracking.uri, remote)
        self.check_target()

    def run(self, jobs: Sequence[Job], stage: str = "jobs") -> None:
        """Run the unfinished jobs, and record how each one ended."""
        todo = [job for job in jobs if job.same_as is None and job.status != Status.FINISHED]
        if not todo:
            return
        if self.features_missing:
            self.features_missing = False
            processes.run_worker_task("share", [job.config for job in todo])
        planned = [planned_run(job, self.setup.launcher, self.parent) for job in todo]
        with Terminal(self.console).stage(stage, len(todo)) as advance:

            def ended(at: int, seconds: float, failure: str | None) -> None:
                todo[at].seconds = seconds
                self.record_result(todo[at], failure)
                advance(note=todo[at].status.lower())

            scheduler.run_jobs(self.setup.launcher, planned, lambda: self.stop_reason(jobs), ended)

    def record_result(self, job: Job, failure: str | None) -> None:
        """Record and print how a job ended, with the reason if it failed or was pruned."""
        facts = RunDirectory(job.folder).facts()
        job.run_id = facts.get("run_id", job.run_id)
        metrics = sweep_directory.results(self.folder, job)
        if failure is None and metrics is None:
            failure = f"{job.folder} does not hold the finished run that was planned"
        job.status, job.reason = (Status.FAILED, failure) if failure else (Status.FINISHED, "")
        if failure and facts.get("status") == Status.PRUNED:
            job.status, job.reason = Status.PRUNED, failure.strip().splitlines()[-1]  # its output ends with the reason
        job.write(self.folder)
        self.check_target()
        objective = self.config.objective
        self.print_lines(terminal.job_line(job, objective, (metrics or {}).get(f"validation.{objective}")))

    def stop_reason(self, jobs: Sequence[Job]) -> str | None:
        """Return why no further job is to start, or None if the sweep is to continue."""
        settings = self.config.sweep
        if settings.on_error == "stop" and any(job.status == Status.FAILED for job in jobs):
            return "one has failed (sweep.on_error=stop)"
        if settings.max_minutes is not None and time.monotonic() - self.setup.began > 60 * settings.max_minutes:
            return f"sweep.max_minutes={settings.max_minutes:g} have passed"
        if self.on_target and not any(job.final for job in jobs):
            return f"sweep.target={settings.target:g} is reached"
        return None

    def check_target(self) -> None:
        """Set `on_target`, also from jobs that have finished in an earlier start or in another process."""
        target, objective = self.config.sweep.target, self.config.objective
        if target is not None:
            from experiments.sweeps import summary

            found = summary.candidates(summary.read_jobs(self.folder, objective), objective, self.repeats)
            self.on_target = summary.is_on_target(found, objective, target)

    # -- the end

    def conclude(self, jobs: Sequence[Job], final: bool | None = None, after: int | None = None) -> None:
        """Report the table and the winner on the terminal, in the sweep's directory and in MLflow.

        Args:
            final: whether to start the winner's final runs now, if `sweep.final`; None: unless a job has failed.
            after: offset of the final runs' numbers from the winner's; None: they follow the last job's number.

        Raises:
            SystemExit: a job has failed.
        """
        sweep_directory.resolve_repeated(self.folder, jobs)
        summary = processes.run_worker_task("conclude", self.folder)
        failed = any(job.status == Status.FAILED for job in jobs)
        if summary["winner"] and self.config.sweep.final and (not failed if final is None else final):
            number = max(job.number for job in jobs) + 1 if after is None else summary["winner"]["number"] + after
            finals = self.final_jobs(summary["winner"], number)
            self.features_missing = True  # the final runs may need features that no job has read
            self.run(finals, "final run of the winner")
            failed = failed or any(job.status == Status.FAILED for job in finals)
            summary = processes.run_worker_task("conclude", self.folder)
        self.close(summary["metrics"], Status.FAILED if failed else Status.FINISHED)
        terminal.show_summary(self.console, summary, self.folder)
        if failed:
            raise SystemExit(1)

    def final_jobs(self, winner: dict[str, Any], number: int) -> list[Job]:
        """Return the winner's final runs, with their records written: one for each seed, on all training images.

        If there are no folds, the winner's jobs have trained on the same images, and their weights are evaluated.

        Args:
            winner: `winner` of the summary.
            number: number of the first final run; numbers whose directories hold other runs are skipped.
        """
        folded = winner["folded"]
        seeds = winner["seeds"] if self.held_out or folded else winner["seeds"][:1]
        unfolded = {"data.fold": "null"} if folded else {}
        runs = [
            (plan.with_values(winner["overrides"], own | unfolded), winner["values"] | own)
            for own in [{"seed": seed} for seed in seeds] or [{}]
        ]
        jobs = plan.compose(runs, self.setup.context, self.setup.master)
        if folded:
            found = processes.run_worker_task("inspect_jobs", [job.config for job in jobs])["jobs"]
        for at, job in enumerate(jobs):
            job.final = True
            seed = job.values.get("seed", "")
            # Without folds it is the winner's job but for its test evaluation, which the run's process verifies.
            job.identity = found[at]["identity"] if folded else winner["identities"][seed]
            while not sweep_directory.is_free(self.folder / str(number), job.identity):
                number += 1
            job.number, job.folder = number, self.folder / str(number)
            place = Path(winner["folders"][seed])
            if not folded and place != job.folder and plan.has_weights(place, job.identity):
                job.trained = str(place)
            number += 1
        sweep_directory.reuse_own_runs(jobs)
        self.prepare(jobs)
        numbers = {job.number for job in jobs}
        for record in sweep_directory.records(self.folder):
            if record.get("final") and record["number"] not in numbers:  # of a former winner
                (self.folder / str(record["number"]) / sweep_directory.JOB).unlink()
        for job in jobs:
            job.write(self.folder)
        return jobs

    def close(self, metrics: dict[str, float], status: Status) -> None:
        """End the sweep's MLflow run, if there is one."""
        if self.parent is not None:
            uri = self.config.tracking.uri
            processes.run_worker_task("close_run", uri, self.parent, self.folder, metrics, status)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """If the block is interrupted, write the summary, end the MLflow run, and add to the error how to continue."""
        try:
            yield
        except SystemExit:
            raise
        except BaseException as error:
            with contextlib.suppress(ConfigError, OSError):  # the disk may be full
                metrics = processes.run_worker_task("conclude", self.folder)["metrics"]
                self.close(metrics, Status.FAILED if isinstance(error, Exception) else Status.KILLED)
            error.add_note("Go on with this sweep: the same command again")
            raise


def inspect_jobs(jobs: Sequence[Job]) -> InspectedJobs:
    """Set the jobs' identities, find their existing runs, and return what the jobs share; see `worker_tasks`.

    No job is evaluated on the test split from here on: it is reserved for a sweep's winner, see `planned_run`.
    """
    for job in jobs:
        job.config = plan.changed(job.config, {"evaluate.test": False})
    response = processes.run_worker_task("inspect_jobs", [job.config for job in jobs])
    for job, known in zip(jobs, response.pop("jobs"), strict=True):
        job.identity = known["identity"]
        if "folder" in known and not job.config.sweep.rerun:
            job.reuse(known)
            job.folder = Path(known["folder"])
        else:
            job.deleted = known.get("deleted")
    return InspectedJobs(**response)


def planned_run(job: Job, launcher: JobLauncher, parent: str | None) -> plan.PlannedRun:
    """Return a job as its process receives it: as planned, with the settings that the sweep adds.

    Only the winner's final runs evaluate the test split and may log the whole model. The launcher determines the thread
    count, unless that is configured or the job resumes a run; `parent` is the id of the sweep's MLflow run.
    """
    threads = job.threads
    if threads is None and job.config.runtime.threads is None:
        threads = launcher.threads()
    settings = {
        "evaluate.test": job.final, "tracking.log_model": None if job.final else False,
        "sweep.job": None if job.final else True, "runtime.threads": threads, "sweep.parent": parent,
        "sweep.trial": job.trial, "sweep.trained": job.trained,
    }  # fmt: skip
    return plan.planned(job, settings)
