"""The trials of a search that one worker draws and runs; other workers may use the same study.

Workers on several machines need no common lock: a worker that has drawn one trial too many requeues it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.sweeps import plan, sweep_directory
from experiments.sweeps.plan import Job
from experiments.sweeps.search import study
from experiments.sweeps.search.space import Space
from experiments.sweeps.search.study import DUPLICATE, IDENTITY, OWNER, PLACE, REASON, RUNS
from experiments.sweeps.session import Session, inspect_jobs
from experiments.system.redaction import redact_credentials
from experiments.tracking import liveness
from experiments.training.types import Status

LOCK, CONCLUDING = ".search.lock", ".conclude.lock"
FINAL = 1_000_000  # offset of the winner's final runs from its job number; the numbers of trials stay below it
WAIT = 2.0  # seconds between checks whether other workers have ended their trials
_log = logging.getLogger(__name__)


@dataclass
class Trial:
    """A trial of this worker: one point of the search space, with one job for each seed and fold."""

    drawn: optuna.Trial
    place: int  # see `study.place`
    values: Mapping[str, str]
    jobs: list[Job] = field(default_factory=list)
    same_as: int | None = None  # number of the trial whose result this one gets, as its duplicate

    @property
    def number(self) -> int:
        return self.drawn.number


class Worker:
    """A process that runs trials of a search."""

    def __init__(self, session: Session, space: Space, study: optuna.Study) -> None:
        self.session, self.space, self.study = session, space, study
        self.settings = session.config.sweep
        self.distributions = {dimension.key: dimension.distribution for dimension in space.dimensions}
        self.owner = liveness.owner()
        self.lock = FileLock(session.folder / LOCK)  # of the workers that share the sweep's directory
        self.trials: dict[int, Trial] = {}  # drawn by this worker and not ended yet, by number
        self.jobs: list[Job] = []
        self.failed: list[int] = []  # places of the trials that failed in this start

    def work(self) -> None:
        """Run trials until the study has enough, then requeue those of this worker that have not ended."""
        try:
            while True:
                self.requeue_stale()
                self.resolve_duplicates()
                if reason := self.session.stop_reason(self.jobs):
                    _log.info("No further trial is started: %s", reason)
                    return
                if batch := self.draw():
                    self.run(batch)
                elif self.duplicates:
                    time.sleep(WAIT)
                else:
                    return
        finally:
            for trial in list(self.trials.values()):
                self.requeue(trial)

    def heartbeat(self, now: str) -> None:
        """Write a heartbeat into this worker's trials, by which other machines detect whether this process runs."""
        for trial in list(self.trials.values()):
            study.annotate(trial.drawn, {OWNER: {**self.owner, "owner.heartbeat": now}})

    @property
    def duplicates(self) -> list[Trial]:
        """The trials of this worker that get the result of another one."""
        return [trial for trial in self.trials.values() if trial.same_as is not None]

    def all_trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    # -- drawing and ending trials

    def draw(self) -> list[Trial]:
        """Draw as many trials as run at a time, requeued ones first, without duplicates of earlier trials."""
        batch: list[Trial] = []
        with self.lock:  # workers that draw at the same time would draw the same point
            while len(batch) < self.settings.jobs:
                trials = self.all_trials()
                if sum(map(study.counts, trials)) >= self.settings.trials - len(self.failed):
                    break
                self.study.sampler = study.sampler(self.settings.search, self.settings.seed, len(trials))
                drawn = self.study.ask(self.distributions)
                drawn.set_user_attr(OWNER, self.owner)
                trial = Trial(drawn, drawn.user_attrs.get(PLACE, drawn.number), self.space.spell(drawn.params))
                self.trials[trial.number] = trial
                before = [other for other in self.all_trials() if other.number < trial.number]
                if sum(map(study.counts, before)) >= self.settings.trials:
                    self.requeue(trial)  # workers on other machines have drawn at the same moment
                    break
                if not self.repeats_earlier(trial, before):
                    batch.append(trial)
        return batch

    def repeats_earlier(self, trial: Trial, before: Sequence[FrozenTrial]) -> bool:
        """Return whether the same point was drawn before; if so, the trial gets the result of that earlier trial.

        A point that failed before this start is run again, under its earlier place; one that failed since then is not.
        """
        for earlier in before:
            candidate = REASON in earlier.user_attrs or study.counts(earlier)  # others may have no parameters yet
            if not candidate or self.space.spell(earlier.params) != trial.values:
                continue
            if REASON in earlier.user_attrs:
                trial.place = study.place(earlier)
                if trial.place in self.failed:
                    self.fail(trial, earlier.user_attrs[REASON])
                    return True
                study.annotate(trial.drawn, {PLACE: trial.place})
            if study.counts(earlier) and DUPLICATE not in earlier.user_attrs:
                if study.is_done(earlier):
                    self.copy_result(trial, earlier)
                else:
                    study.annotate(trial.drawn, {DUPLICATE: earlier.number})
                    trial.same_as = earlier.number
                return True
        return False

    def copy_result(self, trial: Trial, other: FrozenTrial) -> None:
        """End a trial with the result of another one."""
        if other.state == TrialState.PRUNED:
            with contextlib.suppress(RuntimeError):  # another worker has ended this one
                for step, value in other.intermediate_values.items():
                    trial.drawn.report(value, step)
        self.end(trial, other.state, other.value if other.state == TrialState.COMPLETE else None)

    def resolve_duplicates(self) -> None:
        """End duplicates with the result of the trial that they duplicate; requeue them if that has failed."""
        if not self.duplicates:
            return
        others: dict[int | None, FrozenTrial] = {other.number: other for other in self.all_trials()}
        for trial in self.duplicates:
            other = others[trial.same_as]
            if study.is_done(other):
                self.copy_result(trial, other)
            elif other.state == TrialState.FAIL:
                self.requeue(trial)

    def end(self, trial: Trial, state: TrialState, value: float | None = None) -> None:
        """End a trial; if another worker has ended it meanwhile, that worker's result stays."""
        self.trials.pop(trial.number, None)
        try:
            self.study.tell(trial.drawn, value, state)
        except (ValueError, RuntimeError) as error:
            _log.warning("Trial %d was ended by another worker: %s", trial.number, error)

    def fail(self, trial: Trial, reason: str) -> None:
        """End a trial as failed, with the reason; this start then draws one trial less."""
        self.failed.append(trial.place)
        last = redact_credentials(reason.strip().splitlines()[-1])[:500]
        study.annotate(trial.drawn, {REASON: last, PLACE: trial.place})
        self.end(trial, TrialState.FAIL)

    def requeue(self, trial: Trial) -> None:
        """Requeue a trial for the next worker that draws one."""
        self.end(trial, TrialState.FAIL)
        self.study.enqueue_trial(trial.drawn.params, {PLACE: trial.place})

    def requeue_stale(self) -> None:
        """Requeue the trials of processes that no longer run."""
        with self.lock:
            for trial in self.all_trials():
                if trial.state != TrialState.RUNNING or trial.number in self.trials or not study.is_abandoned(trial):
                    continue
                with contextlib.suppress(ValueError, RuntimeError):  # another worker has done so first
                    self.study.tell(trial.number, state=TrialState.FAIL)
                    if set(trial.params) == set(self.distributions):
                        self.study.enqueue_trial(trial.params, {PLACE: study.place(trial)})

    # -- the jobs of trials

    def run(self, batch: Sequence[Trial]) -> None:
        """Run trials: first the first job of each, which may be pruned, then the other jobs."""
        ready = [trial for trial in batch if self.compose(trial)]
        if ready:
            self.session.features_missing = False
            ready = self.inspect(ready)
            jobs = [job for trial in ready for job in trial.jobs]
            sweep_directory.reuse_own_runs(jobs)
            self.session.prepare(jobs)
            with self.lock:
                ready = [trial for trial in ready if not self.duplicates_runs(trial)]
        for trial in ready if self.settings.pruner != "none" else []:
            trial.jobs[0].trial = f"{self.study.study_name}/{trial.number}"
        self.launch([trial.jobs[0] for trial in ready])
        self.launch([job for trial in ready if trial.jobs[0].status == Status.FINISHED for job in trial.jobs[1:]])
        for trial in ready:
            self.report_result(trial)

    def compose(self, trial: Trial) -> bool:
        """Compose a trial's jobs and return whether they can be run; if not, the trial has failed."""
        setup, folder, first = self.session.setup, self.session.folder, self.space.first_job(trial.place)
        combinations = [self.space.job(trial.values, repeat) for repeat in self.space.repeats]
        try:
            trial.jobs = plan.compose(combinations, setup.context, setup.master)
        except ConfigError as error:
            trial.jobs = [Job(first, *combinations[0], setup.config, folder / str(first))]
            self.refuse(trial, error)
            return False
        for number, job in enumerate(trial.jobs, first):
            job.number, job.folder = number, folder / str(number)
        return True

    def inspect(self, batch: Sequence[Trial]) -> list[Trial]:
        """Inspect the jobs of trials, and return the trials that can be run; the others have failed."""
        try:
            missing = inspect_jobs([job for trial in batch for job in trial.jobs]).features_missing
        except ConfigError as error:
            if len(batch) > 1:
                return [trial for each in batch for trial in self.inspect([each])]
            # The first corner could be run when the search started. If it can no longer be run, this raises an error.
            inspect_jobs([Job(0, [], {}, self.session.config, Path())])
            self.refuse(batch[0], error)
            return []
        self.session.features_missing |= missing
        return list(batch)

    def refuse(self, trial: Trial, error: ConfigError) -> None:
        """End a trial that cannot be run as failed; the record of its first job has the reason."""
        job = trial.jobs[0]
        job.status, job.reason = Status.FAILED, str(error)
        self.jobs.append(job)
        self.session.write_jobs([job])
        self.report_result(trial)

    def duplicates_runs(self, trial: Trial) -> bool:
        """Return whether another trial has the same runs from other values; if so, mark this one as its duplicate."""
        identity = " ".join(job.identity for job in trial.jobs)
        study.annotate(trial.drawn, {IDENTITY: identity})
        for other in self.all_trials():
            same = other.user_attrs.get(IDENTITY) == identity and DUPLICATE not in other.user_attrs
            if same and other.number != trial.number and study.counts(other):
                study.annotate(trial.drawn, {DUPLICATE: other.number})
                trial.same_as = other.number
                return True
        return False

    def launch(self, jobs: Sequence[Job]) -> None:
        if jobs:
            self.jobs += jobs
            self.session.write_jobs(jobs)
            done = sum(map(study.is_done, self.all_trials()))
            self.session.run(jobs, f"trials ({done} of {self.settings.trials} done)")

    def report_result(self, trial: Trial) -> None:
        """Report the result of a trial to the study; a trial with unfinished jobs stays in the state RUNNING."""
        states = [job.status for job in trial.jobs]
        study.annotate(trial.drawn, {RUNS: [job.run_id for job in trial.jobs]})
        if Status.FAILED in states:
            self.fail(trial, next(job.reason for job in trial.jobs if job.status == Status.FAILED))
        elif Status.PRUNED in states:
            self.end(trial, TrialState.PRUNED)
        elif all(state == Status.FINISHED for state in states):
            name = f"validation.{self.session.config.objective}"
            results = [sweep_directory.results(self.session.folder, job) or {} for job in trial.jobs]
            value = float(np.mean([metrics.get(name, math.nan) for metrics in results]))
            if math.isnan(value):
                self.fail(trial, f"validation {self.session.config.objective} is not defined")
            else:
                self.end(trial, TrialState.COMPLETE, value)


def deleted_lines(config: Config, trials: Sequence[FrozenTrial]) -> list[str]:
    """Return a line about trials whose MLflow runs have been deleted, if any; the study keeps their values."""
    runs = {
        run: trial.number for trial in trials if study.is_done(trial) for run in trial.user_attrs.get(RUNS, []) if run
    }
    numbers = sorted({runs[run] for run in sweep_directory.deleted_runs(config, list(runs))})
    if not numbers:
        return []
    return [
        f"  trials whose MLflow runs have been deleted: {', '.join(map(str, numbers))}. Their values stay in the "
        "study and in its conclusion. To train them again, begin another search: sweep.seed=..."
    ]


def conclude(worker: Worker) -> None:
    """Conclude the sweep; final runs start only if all trials are done and none runs in another process."""
    session, wanted = worker.session, worker.settings.trials
    with FileLock(session.folder / CONCLUDING):
        trials = worker.all_trials()
        done = sum(map(study.is_done, trials))
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        if running:
            session.print_lines(f"trials that go on in other processes: {running}. The last to end concludes")
        elif done < wanted and not session.on_target:
            session.print_lines(f"{done} of {wanted} trials are done: the same command goes on")
        if session.config.tracking.uri:
            session.write_jobs(remote_jobs(session, worker.space, trials))
        session.conclude(worker.jobs, not running and (done >= wanted or session.on_target), FINAL)


def remote_jobs(session: Session, search_space: Space, trials: Sequence[FrozenTrial]) -> list[Job]:
    """Return the jobs of trials that other machines have ended, for the summary; their runs are in MLflow."""
    jobs = []
    for trial in filter(study.is_done, trials):
        pruned = trial.state == TrialState.PRUNED
        runs = trial.user_attrs.get(RUNS, [])[: 1 if pruned else None]  # of a pruned trial only the first job was run
        identities = trial.user_attrs.get(IDENTITY, "").split()
        for number, (run, identity, repeat) in enumerate(
            zip(runs, identities, search_space.repeats, strict=False), search_space.first_job(study.place(trial))
        ):
            folder = session.folder / str(number)
            if run and not (folder / sweep_directory.JOB).exists():
                given = search_space.job(search_space.spell(trial.params), repeat)
                status = Status.PRUNED if pruned else Status.FINISHED
                jobs.append(Job(number, *given, session.config, folder, identity=identity, status=status, run_id=run))
    return jobs
