"""The Hydra sweeper behind `-m`: it plans the jobs, computes shared features, launches the jobs and summarizes them.

Whatever needs TensorFlow, MLflow or matplotlib runs in a process of its own (see `worker_tasks`), so that this process
stays small.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper as HydraSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.config import credentials, unused
from experiments.config.overrides import quoted
from experiments.config.schema import LOWER_IS_BETTER, Config
from experiments.errors import ConfigError
from experiments.runs import run_directory
from experiments.storage import atomic_files
from experiments.sweeps import plan, processes, rungs, scheduler
from experiments.sweeps.plan import Job
from experiments.system.progress import PlainConsole, Terminal
from experiments.system.redaction import redacted
from experiments.training.types import Status

LOCK = ".sweep.lock"
# Jobs neither evaluate the test split nor log the whole model; the winner's final runs do.
CHOSEN_FROM = ["evaluate.test=false", "tracking.log_model=false", "sweep.job=true"]  # overrides of jobs
FINAL = ["evaluate.test=true"]  # overrides of final runs
_log = logging.getLogger(__name__)


class Sweeper(HydraSweeper):
    """Sweeper that plans the jobs of a command line, runs those that are not done, and reports the result."""

    # The overrides as typed, if Hydra has received only some of them; see `plan.deferred`.
    typed: list[str] | None = None

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.master = hydra_context, task_function, config
        loader: Any = hydra_context.config_loader
        loader.repository = plan.ReadOnce(loader.repository)

    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep that the overrides describe.

        Raises:
            ConfigError: a job cannot be run; nothing was started.
            SystemExit: a job has failed.
        """
        preset = [f"{key}={value}" for key, value in self.params.items()]
        overrides = plan.parse([*preset, *(arguments if self.typed is None else self.typed)], self.context)
        ladder = self.master.sweep.rungs
        if ladder is not None and self.master.sweep.search != "grid":
            raise ConfigError("sweep.rungs: a ladder is no search. Leave sweep.search out")
        if self.master.sweep.search != "grid":
            from experiments.sweeps.search import search as run_search

            run_search(self, overrides)
            return
        places: list[Any] = []
        if ladder is None:
            combinations = plan.grid(overrides)
        else:
            expanded = rungs.expand(overrides, OmegaConf.to_container(ladder), self.context)
            combinations, places = [(given, values) for given, values, _ in expanded], [place for *_, place in expanded]
        composed = plan.compose(combinations, self.context, self.master)
        self.begin([one.config for one in composed])
        jobs = [
            Job(number, overrides, values, plan.without_test_evaluation(one.config), Path(), one.hydra, place=place)
            for number, ((overrides, values), one, place) in enumerate(
                zip(combinations, composed, places or [None] * len(composed), strict=True)
            )
        ]
        self.inspect_jobs(jobs)
        jobs = rungs.without_repeated(jobs)
        check_repeats(jobs)
        self.place(plan.sweep_name(self.common, jobs))
        with contextlib.nullcontext() if self.common.sweep.dry_run else self.claimed():
            self.check_folder()
            self.number(jobs)
            self.tell_plan(jobs)
            if self.common.sweep.dry_run:
                return
            self.prepare(jobs)
            self.open(jobs)
            try:
                (self.run if ladder is None else self.climb)(jobs)
                self.conclude(jobs)
            except BaseException as error:
                if not isinstance(error, SystemExit):
                    self.stop(error)
                raise

    # -- the plan

    def begin(self, configs: Sequence[Config]) -> None:
        """Set the settings and the launcher that all jobs share.

        Raises:
            ConfigError: the settings differ between jobs, or cannot be used.
        """
        self.common = configs[0]
        if len({config.tracking.uri for config in configs}) > 1 or len({config.outputs for config in configs}) > 1:
            raise ConfigError("tracking and outputs: a sweep has one of each. They cannot be swept over")
        whole = credentials.revealed(OmegaConf.to_container(self.master.sweep, resolve=True), "sweep")
        if any(config.sweep != self.common.sweep for config in configs) or self.common.sweep.model_dump() != whole:
            raise ConfigError(
                "sweep: its own settings cannot be swept over, nor come with a choice that is (such as a preset with "
                "sweep.search). Type them, or run that choice in a command of its own"
            )
        overrides = self.master.hydra.overrides.task if self.typed is None else self.typed
        unused.check_weights(configs, overrides)
        unused.warn(configs, overrides)
        self.console = PlainConsole(quiet=self.common.progress == "none")
        self.parent: str | None = None
        self.began = time.monotonic()
        self.jobs_by: Any = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=self.task, config=self.master
        )
        if not isinstance(self.jobs_by, scheduler.JobLauncher):
            raise ConfigError(
                "hydra/launcher: must be one that runs a job as it was planned: local, ray, slurm, slurm_local. "
                f"Received: {self.master.hydra.launcher._target_}"
            )

    def place(self, name: str) -> None:
        """Set the sweep's name and directory: hydra.sweep.dir if it was typed, else a subdirectory with the name."""
        self.name, given = name, Path(self.master.hydra.sweep.dir)
        fixed = any(one.lstrip("+").startswith("hydra.sweep.dir=") for one in self.master.hydra.overrides.hydra)
        self.folder = (given if fixed else given / name).absolute()

    def check_folder(self) -> None:
        """Raise ConfigError if the sweep's directory holds another sweep than this one."""
        path = self.folder / plan.SWEEP
        if not path.exists():
            return
        before = json.loads(path.read_bytes())
        if before.get("name") != self.name:
            what = (
                f"another sweep ({before.get('command')})" if "name" in before
                else "a sweep of an earlier version of this program, which has not recorded what its jobs were"
            )  # fmt: skip
            raise ConfigError(
                f"hydra.sweep.dir: {self.folder} holds {what}. Its jobs, data, weights, tracking or version of this "
                "program are not those planned now, so its results are not theirs. Nothing was started. Give another "
                "hydra.sweep.dir, or leave it out (every sweep then has a folder of its own), or remove that folder"
            )

    def number(self, jobs: Sequence[Job]) -> None:
        """Set every job's number and directory; jobs keep their numbers of earlier starts, whatever the typed order."""
        known: dict[str, list[int]] = {}
        taken = set()
        for one in plan.records(self.folder):
            taken.add(one["number"])
            if not one.get("final"):
                known.setdefault(one["identity"], []).append(one["number"])
        free = (number for number in itertools.count() if number not in taken)
        first: dict[str, int] = {}
        for job in jobs:
            before = known.get(job.identity)
            job.number = before.pop(0) if before else next(free)
            job.same_as = first.get(job.identity)
            first.setdefault(job.identity, job.number)
            if job.status == Status.NEW or job.same_as is not None:
                job.status, job.folder = Status.NEW, self.folder / str(job.number)
            if job.same_as is None:
                self.find_own_run(job)

    def find_own_run(self, job: Job) -> None:
        """Reuse the same run if it is in the job's directory; `look` searches below outputs/ only."""
        if job.status != Status.NEW or "deleted" in job.facts or self.common.sweep.rerun:
            return
        facts = run_directory.read_record(job.folder) or {}
        done, tracked = facts.get("status") == Status.FINISHED, self.common.tracking.uri is not None
        if facts.get("identity") != job.identity or facts.get("status") == Status.PRUNED or (done and tracked):
            return
        job.status, job.threads = (Status.FINISHED, None) if done else (Status.PARTIAL, facts.get("threads"))
        job.facts = {"run_id": facts.get("run_id")}

    def prepare(self, jobs: Sequence[Job]) -> None:
        """Check the directories that jobs will write to, and remove those whose own run is to be trained again.

        Raises:
            ConfigError: a directory holds another run.
        """
        todo = [job for job in jobs if job.same_as is None and job.status == Status.NEW]
        for job in todo:
            plan.check_owner(job.folder, job.identity)
        for job in todo:
            if deleted := job.facts.pop("deleted", None):
                self.print_line(
                    f"  job {job.number}: its MLflow run {deleted} has been deleted, so it is trained again"
                )
            if (facts := run_directory.read_record(job.folder)) and facts.get("identity"):
                shutil.rmtree(job.folder)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the sweep's lock while the block runs, on file systems that support locks.

        Raises:
            ConfigError: the same sweep is running in another process.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = run_directory.claim(self.folder, LOCK, "sweep", run_directory.PATIENCE)
        try:
            yield
        finally:
            lock.release()

    def run_worker_task(self, function: str, *arguments: Any) -> dict[str, Any]:
        """Call a function of `worker_tasks` in a process of its own and return its result.

        Raises:
            ConfigError: the function reported an error, or its process failed.
        """
        return processes.run_worker_task(function, *arguments)

    def inspect_jobs(self, jobs: Sequence[Job]) -> None:
        """Set the jobs' identities, find their existing runs, and record what the jobs share."""
        said = self.run_worker_task("inspect_jobs", [plain(job.config) for job in jobs])
        for job, known in zip(jobs, said["jobs"], strict=True):
            job.identity = known["identity"]
            if known.get("status") and not self.common.sweep.rerun:
                job.status, job.folder, job.threads = known["status"], Path(known["folder"]), known.get("threads")
                job.facts = {"run_id": known.get("run_id")}
            elif known.get("deleted"):
                job.facts = {"deleted": known["deleted"]}
        self.shared, self.usual, self.held_back = said["shared"], said["seconds"], said["held_back"]
        self.lacking = said["lacking"]

    def tell_plan(self, jobs: Sequence[Job]) -> None:
        """Print how many jobs there are and how many are done, what they share, and how long they may take."""
        new = [job for job in jobs if job.same_as is None and job.status != Status.FINISHED]
        partial = sum(job.status == Status.PARTIAL for job in new)
        finished = sum(job.status == Status.FINISHED for job in jobs)
        duplicates = sum(job.same_as is not None for job in jobs)
        bound = "at most " if self.common.sweep.rungs else ""
        parts = [
            f"{len(jobs)} jobs",
            f"{bound}{len(new)} to run" + (f" ({partial} of them from a checkpoint)" if partial else ""),
        ]
        parts += [f"{finished} already finished"] if finished else []
        parts += [f"{duplicates} the same as another"] if duplicates else []
        self.print_line(f"Sweep {self.folder.name}: " + ", ".join(parts))
        for line in self.shared if new else []:
            self.print_line(f"  {line}")
        for line in rungs.plan_lines(jobs):
            self.print_line(f"  {line}")
        if self.usual and new and self.common.sweep.rungs is None:
            minutes = self.usual * len(new) / self.common.sweep.jobs / 60
            self.print_line(f"  about {minutes:.0f} min: runs like these took {self.usual:.0f} s")
        for job in jobs if self.common.sweep.dry_run else []:
            state = f"same as {job.same_as}" if job.same_as is not None else job.status.lower()
            self.print_line(f"  {job.number:>3}  {state:9} {plan.format_values(job.values)}")

    def print_line(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    # -- the work

    def open(self, jobs: Sequence[Job]) -> None:
        """Create the sweep's MLflow run or continue that of an earlier start, and write records of sweep and jobs."""
        path = self.folder / plan.SWEEP
        before = json.loads(path.read_bytes()) if path.exists() else {}
        if self.common.tracking.uri is not None:
            said = self.run_worker_task("open_run", plain(self.common), str(self.folder), before.get("parent"))
            self.parent = said["run_id"]
        about: dict[str, Any] = {
            "name": self.name,
            "command": shlex.join(["python", "-m", "experiments.train", *sys.argv[1:]]),
            "objective": self.common.objective, "parent": self.parent, "config": plain(self.common),
        }  # fmt: skip
        atomic_files.write_file(path, json.dumps(redacted(about), indent=1).encode())
        self.write_jobs(jobs)

    def write_jobs(self, jobs: Sequence[Job]) -> None:
        """Write the jobs' records into the sweep's directory, with the results of finished runs on other machines."""
        for job in jobs:
            job.write(self.folder)
        away = [job for job in jobs if job.status == Status.FINISHED and self.results(job) is None]
        if away:
            places = [(job.facts["run_id"], job.identity, str(self.folder / str(job.number))) for job in away]
            self.run_worker_task("fetch", plain(self.common), places)

    def run(self, jobs: Sequence[Job], stage: str = "jobs") -> None:
        """Run the unfinished jobs through the launcher."""
        todo = [job for job in jobs if job.same_as is None and job.status != Status.FINISHED]
        if todo and self.lacking:
            self.lacking = False
            self.run_worker_task("share", [plain(job.config) for job in todo])
        if not todo:
            return
        with Terminal(self.console).stage(stage, len(todo)) as advance:

            def ended(at: int, seconds: float, failure: str | None) -> None:
                job = todo[at]
                job.facts["seconds"] = seconds
                self.note(job, failure)
                self.print_result(job)
                advance(note=job.status.lower())

            planned = [self.planned(job) for job in todo]
            scheduler.run_jobs(self.jobs_by, planned, lambda: self.enough(jobs), ended)

    def climb(self, jobs: Sequence[Job]) -> None:
        """Run a ladder sweep's jobs rung by rung until every ladder has ended."""
        from experiments.sweeps import ladder

        tried: set[int] = set()
        lacking = self.lacking
        while due := ladder.due(self.folder, tried):
            if why := self.enough(jobs):
                _log.info("No further rung is started: %s", why)
                break
            tried |= set(due)
            self.lacking = lacking  # each rung may need other features
            level = [job for job in jobs if job.number in due]
            self.run(level, level[0].place.rung if level[0].place else "rung")
            self.resolve_repeated(jobs)

    def resolve_repeated(self, jobs: Sequence[Job]) -> None:
        """Copy the result of a run to the jobs with the same identity under another number."""
        numbered = {job.number: job for job in jobs}
        for job in jobs:
            if job.same_as is not None:
                first = numbered[job.same_as]
                job.status, job.folder, job.reason = first.status, first.folder, first.reason
                job.facts = dict(first.facts)
                job.write(self.folder)

    def planned(self, job: Job) -> plan.PlannedRun:
        """Return a job as its process receives it: as planned, with the settings that the sweep adds."""
        threads = job.threads
        if threads is None and self.common.runtime.threads is None:
            threads = self.jobs_by.threads()
        common = [
            *(FINAL if job.final else CHOSEN_FROM),
            *([f"runtime.threads={threads}"] if threads else []),
            *([f"sweep.parent={self.parent}"] if self.parent else []),
            *([f"sweep.trial={quoted(job.trial)}"] if job.trial else []),
            *([f"sweep.trained={quoted(job.trained)}"] if job.trained else []),
        ]  # fmt: skip
        keep = [one for one in job.overrides if not one.startswith(("evaluate.test=", "tracking.log_model="))]
        changes = {
            "resume": run_directory.AUTO, "evaluate": {"test": job.final},
            "tracking": {} if job.final else {"log_model": False}, "runtime": {"threads": threads} if threads else {},
            "sweep": {"job": not job.final, "parent": self.parent, "trial": job.trial, "trained": job.trained},
        }  # fmt: skip
        return plan.planned(job, changes, [*keep, *common, "resume=auto"])

    def results(self, job: Job) -> dict[str, float] | None:
        """Return a job's metrics from its run's directory or, if they were fetched, the job's; None without results."""
        places = (job.folder, self.folder / str(job.number))
        return next(filter(None, (run_directory.finished(place, job.identity) for place in places)), None)

    def note(self, job: Job, failure: str | None) -> None:
        """Record how a job ended, with the reason if it failed or was pruned."""
        facts = run_directory.read_record(job.folder) or {}
        job.facts |= {name: facts[name] for name in ("run_id",) if name in facts}
        if failure is None and self.results(job) is None:
            failure = f"{job.folder} does not hold the finished run that was planned"
        job.status, job.reason = (Status.FAILED, failure) if failure else (Status.FINISHED, "")
        if failure and facts.get("status") == Status.PRUNED:
            job.status, job.reason = Status.PRUNED, failure.strip().splitlines()[-1]  # its output ends with the reason
        job.write(self.folder)

    def print_result(self, job: Job) -> None:
        """Print a line for a job that has ended."""
        key, metrics = f"validation.{self.common.objective}", self.results(job) or {}
        score = f"{self.common.objective} {metrics[key]:.4g}  " if key in metrics else ""
        reason = job.reason.splitlines()[:1]
        line = f"  {job.number:>3}  {job.status.lower():8}  {score}{job.facts['seconds']:.0f} s"
        self.print_line("  ".join([line, plan.format_values(job.values), *reason]))

    def enough(self, jobs: Sequence[Job]) -> str | None:
        """Return why no further job is to start, or None if the sweep is to continue."""
        settings = self.common.sweep
        if settings.on_error == "stop" and any(job.status == Status.FAILED for job in jobs):
            return "one has failed (sweep.on_error=stop)"
        if settings.max_minutes is not None and time.monotonic() - self.began > 60 * settings.max_minutes:
            return f"sweep.max_minutes={settings.max_minutes:g} have passed"
        ended = any("seconds" in job.facts and not job.final for job in jobs)  # in this start of the sweep
        if settings.target is not None and ended and self.reached(settings.target):
            return f"sweep.target={settings.target:g} is reached"
        return None

    def reached(self, target: float) -> bool:
        """Return whether the whole interval of a candidate is at least as good as the target."""
        from experiments.sweeps import summary

        _, rows = summary.read(self.folder)
        objective = self.common.objective
        whole = [one for one in summary.candidates(rows, objective) if one.whole]
        if objective in LOWER_IS_BETTER:
            return any(one.high <= target for one in whole)
        return any(one.low >= target for one in whole)

    # -- the end

    def stop(self, error: BaseException) -> None:
        """Write the summary of an interrupted sweep, end its MLflow run, and add to the error how to continue."""
        with contextlib.suppress(ConfigError):
            said = self.run_worker_task("conclude", str(self.folder))
            if self.parent is not None:
                status = Status.FAILED if isinstance(error, Exception) else Status.KILLED
                self.run_worker_task(
                    "close_run", plain(self.common), self.parent, str(self.folder), said["metrics"], status
                )
        error.add_note("Go on with this sweep: the same command again")

    def conclude(self, jobs: Sequence[Job], final: bool | None = None, after: int | None = None) -> None:
        """Report the table and the winner on the terminal, in the sweep's directory and in MLflow.

        Args:
            jobs: the jobs of the sweep.
            final: whether to start the winner's final runs now, if `sweep.final`; None: unless a job has failed.
            after: offset of the final runs' numbers from the winner's; None: they follow the last job's number.

        Raises:
            SystemExit: a job has failed.
        """
        self.resolve_repeated(jobs)
        said = self.run_worker_task("conclude", str(self.folder))
        failed = any(job.status == Status.FAILED for job in jobs)
        finals: list[Job] = []
        if said["winner"] and self.common.sweep.final and (not failed if final is None else final):
            number = max(job.number for job in jobs) + 1 if after is None else said["winner"]["number"] + after
            finals = self.finals(said["winner"], number)
            self.run(finals, "the winner")
            failed = failed or any(job.status == Status.FAILED for job in finals)
            said = self.run_worker_task("conclude", str(self.folder))
        if self.parent is not None:
            status = Status.FAILED if failed else Status.FINISHED
            self.run_worker_task(
                "close_run", plain(self.common), self.parent, str(self.folder), said["metrics"], status
            )
        show(self.console, said, self.folder)
        if failed:
            raise SystemExit(1)

    def finals(self, winner: dict[str, Any], number: int) -> list[Job]:
        """Return the winner's final runs, which keep its whole model and evaluate it on images that no job has read.

        If no fold was swept, the winner's jobs have trained on the same images, and their weights are evaluated.

        Args:
            winner: `winner` of the summary: its values, overrides, seeds, and its jobs' identities and directories.
            number: number of the first final run; numbers whose directories hold other runs are skipped.
        """
        folds = any(one.startswith("data.fold=") for one in winner["overrides"])
        seeds = winner["seeds"] if self.held_back or folds else winner["seeds"][:1]
        self.lacking = True  # the final runs may need features that no job has read
        made = []
        for seed in seeds or [None]:
            dropped = (("data.fold=",) if folds else ()) + (("seed=",) if seed is not None else ())
            overrides = [one for one in winner["overrides"] if not one.startswith(dropped or ("\0",))]
            overrides += [f"seed={seed}"] if seed is not None else []
            overrides += ["data.fold=null"] if folds else []
            made.append((overrides, {**winner["values"], **({"seed": seed} if seed is not None else {})}))
        composed = plan.compose(made, self.context, self.master)
        trained: list[str | None] = [None] * len(made)
        if folds:
            known = self.run_worker_task("inspect_jobs", [plain(one.config) for one in composed])["jobs"]
            identities = [about["identity"] for about in known]
        else:  # the same run except for its test evaluation, which the run's process verifies
            identities = [winner["identities"][values.get("seed", "")] for _, values in made]
            places = [Path(winner["folders"][values.get("seed", "")]) for _, values in made]
            trained = [
                str(place) if plan.has_weights(place, one.config, identity) else None
                for place, one, identity in zip(places, composed, identities, strict=True)
            ]
        jobs = []
        for (overrides, values), one, identity, place in zip(made, composed, identities, trained, strict=True):
            while not plan.is_free(self.folder / str(number), identity):
                number += 1
            folder = self.folder / str(number)
            job = Job(number, overrides, values, one.config, folder, one.hydra, identity, facts={"final": True},
                      trained=place if place != str(folder) else None)  # fmt: skip
            facts = run_directory.read_record(job.folder) or {}
            if facts.get("identity") == identity and not self.common.sweep.rerun:
                job.status = Status.FINISHED if facts.get("status") == Status.FINISHED else Status.PARTIAL
                job.threads, job.facts["run_id"] = facts.get("threads"), facts.get("run_id")
            jobs.append(job)
            number += 1
        finished = [job for job in jobs if job.status == Status.FINISHED]
        gone = self.deleted([job.facts["run_id"] for job in finished])
        for job in finished:
            if job.facts["run_id"] in gone:
                job.status, job.facts["deleted"] = Status.NEW, job.facts.pop("run_id")
        self.prepare(jobs)
        for job in jobs:
            job.write(self.folder)
        for path in self.folder.glob(f"[0-9]*/{plan.JOB}"):  # records of a former winner's final runs
            before = json.loads(path.read_bytes())
            if before.get("final") and before["number"] not in {job.number for job in jobs}:
                path.unlink()
        return jobs

    def deleted(self, run_ids: Sequence[str | None]) -> set[str]:
        """Return the ids of those MLflow runs that were deleted, whether they are still in MLflow's trash or not."""
        known = [one for one in run_ids if one]
        if not known or self.common.tracking.uri is None:
            return set()
        return set(self.run_worker_task("deleted", plain(self.common), known)["deleted"])


def check_repeats(jobs: Sequence[Job]) -> None:
    """Raise ConfigError if two jobs of one candidate are the same run, which would be counted as two."""
    known: dict[tuple[str, ...], Job] = {}
    for job in jobs:
        candidate = {key: value for key, value in job.values.items() if key not in plan.REPEATS}
        before = known.setdefault((json.dumps(candidate, sort_keys=True), job.identity), job)
        if before is not job:
            raise ConfigError(
                f"{', '.join(plan.REPEATS)}: jobs of one candidate are the same run, which would be counted as two: "
                f"{plan.format_values(before.values)} and {plan.format_values(job.values)}. Give each value once"
            )


def plain(config: Config) -> dict[str, Any]:
    return config.model_dump(by_alias=True, mode="json")


def show(console: Console, said: dict[str, Any], folder: Path) -> None:
    """Print a summary on the terminal."""
    header, *rows = said["table"]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in header:
        table.add_column(name, overflow="fold", no_wrap=name == said["objective"])
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for sentence in said["sentences"]:
        console.print(sentence, soft_wrap=True)
    for text in said["failures"]:
        console.print(f"\nFAILED {text}", soft_wrap=True, style="red")
    named = folder.name if folder.parent.name == "sweeps" else shlex.quote(str(folder))
    console.print(f"summary  {folder / 'summary.md'}   again: experiments summarize {named}", soft_wrap=True)
