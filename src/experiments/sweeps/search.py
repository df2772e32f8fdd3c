"""Hyperparameter search: an Optuna study proposes the trials, and the sweeper runs them.

Workers and later starts of the same command share the study. A trial is one point of the search space, with one run
for each seed and fold. Workers on several machines need no common lock: a worker that has drawn one trial too many
requeues it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from experiments.config.identity import NOT_IDENTITY, effective
from experiments.config.schema import LOWER_IS_BETTER, Config
from experiments.errors import ConfigError
from experiments.sweeps import plan
from experiments.sweeps.plan import Job
from experiments.sweeps.space import RUNS, Space, space
from experiments.system.paths import sqlite_file
from experiments.system.redaction import redact_credentials
from experiments.tracking import liveness
from experiments.training import pruning
from experiments.training.types import Status

if TYPE_CHECKING:
    from experiments.sweeps.sweeper import Sweeper

FINAL = 1_000_000  # offset of the winner's final runs from its job number; the numbers of trials stay below it
LOCK, CONCLUDING = ".search.lock", ".conclude.lock"
WAIT = 2.0  # seconds between checks whether other workers have ended their trials
# Names of the user attributes of a trial.
OWNER, NUMBER, IDENTITY, DUPLICATE, REASON, TRACKED = "owner", "number", "identity", "twin", "reason", "runs"
# Names of the user attributes of a study; `pruning.EPOCHS` is another one.
SEARCH, DATA = "search", "data"
_log = logging.getLogger(__name__)


def search_name(configs: Sequence[Config], over: Space, identity: str) -> str:
    """Return the name of a search, the same at every start and on every machine.

    It does not depend on the number of trials, on the workers or on where the study and the runs are stored.

    Args:
        configs: configurations that together contain every choice of the search space, always the same ones.
        over: the search space.
        identity: identity of the first of `configs`, which covers data and weights.
    """
    corners = []
    for one in configs:
        plain: dict[str, Any] = {key: value for key, value in effective(one).items() if key not in NOT_IDENTITY}
        plain["runtime"] = {name: plain["runtime"][name] for name in ("precision", "xla")}
        del plain["data"]  # paths on this machine; the identity covers the content
        corners.append(plain)
    config, settings = configs[0], configs[0].sweep
    what = [corners, identity, config.objective, [str(one) for one in over.dimensions],
            [list(one) for one in over.repeats], settings.search, settings.seed, settings.pruner]  # fmt: skip
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return f"{config.regime.name}-{config.model.name}-{settings.search}-{digest[:8]}"


def sampler(name: str, seed: int, trials: int) -> Any:
    """Return the Optuna sampler that draws the next trial of a study.

    Args:
        name: `sweep.search`.
        seed: `sweep.seed`.
        trials: number of trials in the study. It is part of the sampler's seed, so that each trial has its own seed and
            no other worker or later start draws the same point again.
    """
    import optuna

    own = int(np.random.SeedSequence([seed, trials]).generate_state(1)[0])
    if name == "random":
        return optuna.samplers.RandomSampler(own)
    return optuna.samplers.TPESampler(seed=own, multivariate=True, constant_liar=True)


# -- the search


def search(sweeper: Sweeper, overrides: Sequence[Override]) -> None:
    """Run the search that the overrides describe, or continue it.

    Raises:
        ConfigError: the search cannot be run, and nothing was started; or the connection to the study was lost.
        SystemExit: a job has failed.
    """
    over = space(overrides, lambda key: OmegaConf.select(sweeper.master, key, default=None))
    corners = list(over.corners())
    composed = plan.compose(corners, sweeper.context, sweeper.master)
    configs = [one.config for one in composed]
    pruning.need_optuna(configs[0])
    sweeper.begin(configs)
    # One job is inspected for the identity of data and weights, and for what all trials share.
    probe = Job(0, *corners[0], plan.without_test_evaluation(configs[0]), Path())
    sweeper.inspect_jobs([probe])
    name = search_name(configs, over, probe.identity)
    sweeper.place(name)
    sweeper.check_folder()
    if sweeper.common.sweep.dry_run:
        print_plan(sweeper, over, trials_so_far(sweeper))
        return
    sweeper.folder.mkdir(parents=True, exist_ok=True)
    storage = pruning.storage(sweeper.common)
    study = open_study(sweeper, storage, name, probe.identity, max(config.epochs for config in configs))
    trials = study.get_trials(deepcopy=False)
    print_plan(sweeper, over, trials)
    tell_deleted(sweeper, trials)
    worker = Worker(sweeper, over, study, storage)
    with FileLock(sweeper.folder / LOCK):  # so that only one of several workers creates the MLflow run
        sweeper.open([])
    import optuna
    import sqlalchemy.exc

    try:
        with worker.heartbeat():
            worker.work()
        worker.conclude()
    except SystemExit:
        raise
    except BaseException as error:
        sweeper.stop(error)
        if isinstance(error, optuna.exceptions.StorageInternalError | sqlalchemy.exc.SQLAlchemyError):
            reason = redact_credentials(str(error.__cause__ or error)).strip().splitlines()[0][:300]
            raise ConfigError(
                f"sweep.storage: the study was lost: {reason}. When it is back, the same command goes on"
            ) from None
        raise


def trials_so_far(sweeper: Sweeper) -> list[Any]:
    """Return the trials of the study if it exists; the study is not created."""
    import optuna

    place = sweeper.common.sweep.storage
    if (file := sqlite_file(place)) and not file.exists():
        return []
    storage = pruning.storage(sweeper.common)
    try:
        found = optuna.load_study(study_name=sweeper.folder.name, storage=storage).get_trials(deepcopy=False)
    except KeyError:
        return []
    return list(found)


def open_study(sweeper: Sweeper, storage: Any, name: str, identity: str, epochs: int) -> Any:
    """Return the study of this search, creating it if it does not exist.

    Args:
        sweeper: its directory's name is the name of the study.
        storage: Optuna's storage.
        name: name of the search.
        identity: identity of the first of `Space.corners`.
        epochs: number of epochs of the longest trial.

    Raises:
        ConfigError: the study belongs to another search, or to other data, weights or version of this package.
    """
    import optuna

    config, called = sweeper.common, sweeper.folder.name
    study = optuna.create_study(
        storage=storage,
        study_name=called,
        direction="minimize" if config.objective in LOWER_IS_BETTER else "maximize",
        pruner=pruning.pruner(config.sweep.pruner, epochs),
        load_if_exists=True,
    )
    about = study.user_attrs
    for key, value in {SEARCH: name, DATA: identity, pruning.EPOCHS: epochs}.items():
        if key not in about:
            study.set_user_attr(key, value)
    if about.get(SEARCH, name) != name:
        raise ConfigError(
            f"hydra.sweep.dir: the study {called} is of another search. Give another folder or sweep.storage. "
            f"Received: {sweeper.folder}"
        )
    if about.get(DATA, identity) != identity:
        raise ConfigError(
            f"sweep.storage: the study {called} is of other images, weights or another version of this program: its "
            "trials cannot be compared with new ones. Give another sweep.seed. "
            f"Received: {config.sweep.seed}"
        )
    return study


def print_plan(sweeper: Sweeper, over: Space, trials: Sequence[Any]) -> None:
    """Print how many trials are done and how many remain, what they share and how long they may take."""
    settings = sweeper.common.sweep
    count = {state: sum(trial.state.name == state for trial in trials) for state in ("COMPLETE", "PRUNED", "RUNNING")}
    done = count["COMPLETE"] + count["PRUNED"]
    to_do = max(0, settings.trials - done)
    parts = [f"{settings.trials} trials", f"{done} done" + (f" ({count['PRUNED']} pruned)" if count["PRUNED"] else "")]
    parts += [f"{to_do} to do"]
    parts += [f"{count['RUNNING']} of them begun"] if count["RUNNING"] else []
    runs = f", {len(over.repeats)} runs each" if len(over.repeats) > 1 else ""
    sweeper.print_line(f"Search {sweeper.folder.name} ({settings.search}{runs}): " + ", ".join(parts))
    for line in sweeper.shared if to_do else []:
        sweeper.print_line(f"  {line}")
    if sweeper.usual and to_do:
        minutes = sweeper.usual * to_do * len(over.repeats) / settings.jobs / 60
        sweeper.print_line(f"  about {minutes:.0f} min: runs like these took {sweeper.usual:.0f} s")
    for one in over.dimensions if settings.dry_run else []:
        sweeper.print_line(f"  {one}")


def tell_deleted(sweeper: Sweeper, trials: Sequence[Any]) -> None:
    """Print the trials whose MLflow runs have been deleted; the study keeps their values."""
    runs = {run: one.number for one in trials if ended(one) for run in one.user_attrs.get(TRACKED, []) if run}
    if numbers := sorted({runs[run] for run in sweeper.deleted(list(runs))}):
        sweeper.print_line(
            f"  trials whose MLflow runs have been deleted: {', '.join(map(str, numbers))}. Their values stay in the "
            "study and in its conclusion. To train them again, begin another search: sweep.seed=..."
        )


@dataclass
class Trial:
    """A trial of this worker, with its jobs."""

    number: int  # in the study
    place: int  # number from which its jobs' numbers follow; a requeued trial keeps that of the trial it continues
    parameters: Mapping[str, Any]
    values: Mapping[str, str]
    jobs: list[Job]


class Worker:
    """A process that runs trials of a search; others may work on the same study."""

    def __init__(self, sweeper: Sweeper, over: Space, study: Any, storage: Any) -> None:
        self.sweeper, self.space, self.study, self.storage = sweeper, over, study, storage
        self.settings = sweeper.common.sweep
        self.distributions = {one.key: one.distribution for one in over.dimensions}
        self.owner = liveness.owner()
        self.mine: dict[int, Trial] = {}  # trials drawn by this worker and not ended yet, by number
        self.duplicates: dict[int, int] = {}  # duplicates among them: number of the trial whose result each one gets
        self.jobs: list[Job] = []
        self.failed = 0

    # -- the trials of the study

    def work(self) -> None:
        """Run trials until the study has enough, then requeue those of this worker that have not ended."""
        try:
            while True:
                self.requeue_stale()
                self.resolve_duplicates()
                enough = self.sweeper.enough(self.jobs)
                batch = [] if enough else self.ask()
                if batch:
                    self.run(batch)
                elif self.duplicates and not enough:
                    time.sleep(WAIT)
                else:
                    if enough:
                        _log.info("No further trial is started: %s", enough)
                    return
        finally:
            for number in list(self.mine):
                self.requeue(number)

    def ask(self) -> list[Trial]:
        """Draw as many trials as run at a time, requeued ones first; duplicates of earlier trials are not returned."""
        batch: list[Trial] = []
        with FileLock(self.sweeper.folder / LOCK):  # workers that draw at the same time would draw the same point
            while len(batch) < self.settings.jobs:
                trials = self.study.get_trials(deepcopy=False)
                if sum(map(counts, trials)) >= self.settings.trials - self.failed:
                    break
                self.study.sampler = sampler(self.settings.search, self.settings.seed, len(trials))
                asked = self.study.ask(self.distributions)
                asked.set_user_attr(OWNER, self.owner)
                place = asked.user_attrs.get(NUMBER, asked.number)
                trial = Trial(asked.number, place, asked.params, self.space.spell(asked.params), [])
                self.mine[trial.number] = trial
                before = [one for one in self.study.get_trials(deepcopy=False) if one.number < trial.number]
                if sum(map(counts, before)) >= self.settings.trials:  # other machines have drawn in the same moment
                    self.requeue(trial.number)
                    break
                if not self.known(trial, before):
                    batch.append(trial)
        return batch

    def known(self, trial: Trial, before: Sequence[Any]) -> bool:
        """Return whether the same point was drawn before; if so, the trial gets the result of that earlier trial.

        A point that failed before this start is run again, under its earlier place; one that failed since then is not.
        """
        for one in before:
            if REASON in one.user_attrs and self.space.spell(one.params) == trial.values:
                trial.place = one.user_attrs.get(NUMBER, one.number)
                if trial.place in {self.place_of(job.number) for job in self.jobs if job.status == Status.FAILED}:
                    self.fail(trial, one.user_attrs[REASON])
                    return True
                self.note(trial.number, {NUMBER: trial.place})
            if counts(one) and DUPLICATE not in one.user_attrs and self.space.spell(one.params) == trial.values:
                if ended(one):
                    self.tell_duplicate(trial, one)
                else:
                    self.wait_for(trial, one.number)
                return True
        return False

    def wait_for(self, trial: Trial, other: int) -> None:
        """Mark a trial as the duplicate of another one, whose result it gets when that ends."""
        self.note(trial.number, {DUPLICATE: other})
        self.duplicates[trial.number] = other

    def tell_duplicate(self, trial: Trial, other: Any) -> None:
        """End a trial with the result of another one."""
        if other.state.name == "COMPLETE":
            self.tell(trial.number, "COMPLETE", other.value)
            return
        for step, value in other.intermediate_values.items():
            with contextlib.suppress(RuntimeError):  # another worker has ended it
                self.storage.set_trial_intermediate_value(self.key(trial.number), step, value)
        self.tell(trial.number, "PRUNED")

    def tell(self, number: int, state: str, value: float | None = None) -> None:
        """End a trial in the study; if another worker has ended it meanwhile, that worker's result stays."""
        import optuna

        self.mine.pop(number, None)
        self.duplicates.pop(number, None)
        try:
            self.study.tell(number, value, optuna.trial.TrialState[state])
        except (ValueError, RuntimeError) as error:
            _log.warning("Trial %d was ended by another worker: %s", number, error)

    def requeue(self, number: int) -> None:
        """Requeue a trial for the next worker that draws one, which resumes from the trial's checkpoints."""
        trial = self.mine[number]
        self.tell(number, "FAIL")
        self.study.enqueue_trial(dict(trial.parameters), {NUMBER: trial.place})

    def requeue_stale(self) -> None:
        """Requeue the trials of processes that no longer run."""
        import optuna

        with FileLock(self.sweeper.folder / LOCK):
            for one in self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
                if one.number in self.mine or not is_abandoned(one):
                    continue
                with contextlib.suppress(ValueError, RuntimeError):  # another worker has done so first
                    self.study.tell(one.number, state=optuna.trial.TrialState.FAIL)
                    if set(one.params) == set(self.distributions):
                        self.study.enqueue_trial(one.params, {NUMBER: one.user_attrs.get(NUMBER, one.number)})

    def resolve_duplicates(self) -> None:
        """Resolve duplicates: end them with the result of the trial they duplicate; requeue them if that has failed."""
        trials = {one.number: one for one in self.study.get_trials(deepcopy=False)}
        for number, other in list(self.duplicates.items()):
            if ended(trials[other]):
                self.tell_duplicate(self.mine[number], trials[other])
            elif trials[other].state.name == "FAIL":
                self.requeue(number)

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Write a heartbeat into this worker's trials every `liveness.HEARTBEAT` seconds while the block runs.

        Workers on other machines detect by it whether this process still runs.
        """
        over = threading.Event()

        def record_heartbeat() -> None:
            while not over.wait(liveness.HEARTBEAT):
                alive = {**self.owner, "owner.heartbeat": str(int(time.time()))}
                for number in list(self.mine):
                    with contextlib.suppress(Exception):  # the study may be unreachable for a while
                        self.storage.set_trial_user_attr(self.key(number), OWNER, alive)

        threading.Thread(target=record_heartbeat, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def key(self, number: int) -> int:
        """Return the id of a trial in Optuna's storage."""
        study = self.storage.get_study_id_from_name(self.study.study_name)
        found: int = self.storage.get_trial_id_from_study_id_trial_number(study, number)
        return found

    def note(self, number: int, facts: Mapping[str, Any]) -> None:
        """Set user attributes of a trial, unless another worker has ended it."""
        for name, value in facts.items():
            with contextlib.suppress(RuntimeError):  # another worker has ended it
                self.storage.set_trial_user_attr(self.key(number), name, value)

    # -- the jobs of trials

    def run(self, batch: Sequence[Trial]) -> None:
        """Run trials: first the first run of each, which may be pruned, then the other runs."""
        ready = [trial for trial in batch if self.compose(trial)]
        if ready:
            jobs = [job for trial in ready for job in trial.jobs]
            self.sweeper.inspect_jobs(jobs)
            self.sweeper.prepare(jobs)
            with FileLock(self.sweeper.folder / LOCK):
                ready = [trial for trial in ready if not self.mark_duplicate(trial)]
        for trial in ready if self.settings.pruner != "none" else []:
            trial.jobs[0].trial = f"{self.study.study_name}/{trial.number}"
        self.launch([trial.jobs[0] for trial in ready])
        going_on = [trial for trial in ready if trial.jobs[0].status == Status.FINISHED]
        self.launch([job for trial in going_on for job in trial.jobs[1:]])
        for trial in ready:
            self.report_result(trial)

    def first_number(self, place: int) -> int:
        """Return the number of a trial's first job."""
        return place * (RUNS if len(self.space.repeats) > 1 else 1)

    def place_of(self, number: int) -> int:
        """Return the place of the trial that a job belongs to."""
        return number // (RUNS if len(self.space.repeats) > 1 else 1)

    def compose(self, trial: Trial) -> bool:
        """Compose a trial's jobs and return whether they can be run; if not, the trial has failed."""
        sweeper, at = self.sweeper, self.first_number(trial.place)
        made = [self.space.job(trial.values, repeat) for repeat in self.space.repeats]
        try:
            composed = plan.compose(made, sweeper.context, sweeper.master)
        except ConfigError as error:
            job = Job(at, *made[0], sweeper.common, sweeper.folder / str(at), status=Status.FAILED, reason=str(error))
            trial.jobs = [job]
            self.jobs.append(job)
            sweeper.write_jobs([job])
            self.report_result(trial)
            return False
        trial.jobs = [
            Job(
                at + n,
                overrides,
                values,
                plan.without_test_evaluation(one.config),
                sweeper.folder / str(at + n),
                one.hydra,
            )
            for n, ((overrides, values), one) in enumerate(zip(made, composed, strict=True))
        ]
        return True

    def mark_duplicate(self, trial: Trial) -> bool:
        """Return whether a trial duplicates another, with the same runs from other values; if so, mark it as such."""
        identity = " ".join(job.identity for job in trial.jobs)
        for job in trial.jobs:
            job.same_as = None  # a trial's result is that of its own runs or of one other trial, never of both
        self.note(trial.number, {IDENTITY: identity})
        for one in self.study.get_trials(deepcopy=False):
            same = one.user_attrs.get(IDENTITY) == identity and DUPLICATE not in one.user_attrs
            if same and one.number != trial.number and counts(one):
                self.wait_for(trial, one.number)
                return True
        return False

    def launch(self, jobs: Sequence[Job]) -> None:
        if jobs:
            self.jobs += jobs
            self.sweeper.write_jobs(jobs)
            self.sweeper.run(jobs, self.progress())

    def progress(self) -> str:
        done = sum(map(ended, self.study.get_trials(deepcopy=False)))
        return f"trials ({done} of {self.settings.trials} done)"

    def report_result(self, trial: Trial) -> None:
        """Report the result of a trial to the study; a trial with unfinished runs stays in the state RUNNING."""
        states = [job.status for job in trial.jobs]
        self.note(trial.number, {TRACKED: [job.facts.get("run_id") for job in trial.jobs]})
        if Status.FAILED in states:
            self.fail(trial, next(job.reason for job in trial.jobs if job.status == Status.FAILED))
        elif "PRUNED" in states:
            self.tell(trial.number, "PRUNED")
        elif all(state == Status.FINISHED for state in states):
            value = float(np.mean([self.score(job) for job in trial.jobs]))
            if math.isnan(value):
                self.fail(trial, f"validation {self.sweeper.common.objective} is not defined")
            else:
                self.tell(trial.number, "COMPLETE", value)

    def fail(self, trial: Trial, reason: str) -> None:
        """End a trial as failed, with the reason; this start then draws one trial less."""
        self.failed += 1
        last = redact_credentials(reason.strip().splitlines()[-1])[:500]
        self.note(trial.number, {REASON: last, NUMBER: trial.place})
        self.tell(trial.number, "FAIL")

    def score(self, job: Job) -> float:
        """Return a finished job's value of the objective, NaN if it has none."""
        metrics = self.sweeper.results(job) or {}
        return float(metrics.get(f"validation.{self.sweeper.common.objective}", math.nan))

    # -- the end

    def import_remote(self) -> None:
        """Import the ended trials of other machines into this directory, for the summary; their runs are in MLflow."""
        adopted = []
        for one in self.study.get_trials(deepcopy=False) if self.sweeper.common.tracking.uri else []:
            at, values = self.first_number(one.user_attrs.get(NUMBER, one.number)), self.space.spell(one.params)
            runs = one.user_attrs.get(TRACKED, []) if ended(one) else []
            identities = one.user_attrs.get(IDENTITY, "").split()
            # Of a pruned trial only the first run was started.
            for n, run in enumerate(runs[:1] if one.state.name == "PRUNED" else runs):
                folder = self.sweeper.folder / str(at + n)
                if run and n < len(identities) and not (folder / plan.JOB).exists():
                    overrides, own = self.space.job(values, self.space.repeats[n])
                    status = "PRUNED" if one.state.name == "PRUNED" else Status.FINISHED
                    adopted.append(
                        Job(at + n, overrides, own, self.sweeper.common, folder, identity=identities[n], status=status,
                            facts={"run_id": run})
                    )  # fmt: skip
        self.sweeper.write_jobs(adopted)

    def conclude(self) -> None:
        """Conclude the sweep; the winner's final runs start only if the search is over.

        The search is over when all trials are done and none is running in another process.
        """
        with FileLock(self.sweeper.folder / CONCLUDING):
            trials = self.study.get_trials(deepcopy=False)
            done = sum(map(ended, trials))
            begun = sum(one.state.name == "RUNNING" for one in trials)
            if begun:
                self.sweeper.print_line(f"trials that go on in other processes: {begun}. The last to end concludes")
            elif done < self.settings.trials:
                self.sweeper.print_line(f"{done} of {self.settings.trials} trials are done: the same command goes on")
            self.import_remote()
            final = not begun and done >= self.settings.trials
            self.sweeper.conclude(self.jobs, final, FINAL)


def counts(trial: Any) -> bool:
    """Return whether a trial counts towards `sweep.trials`: it is done or running."""
    return trial.state.name in ("COMPLETE", "PRUNED", "RUNNING")


def ended(trial: Any) -> bool:
    return trial.state.name in ("COMPLETE", "PRUNED")


def is_abandoned(trial: Any) -> bool:
    """Return whether the process that started a trial no longer runs."""
    owner = trial.user_attrs.get(OWNER)
    if owner is None:  # the process has not written it yet, or was killed before it could
        return bool(trial.datetime_start) and (datetime.now() - trial.datetime_start).total_seconds() > liveness.STALE
    return liveness.lost(owner)
