"""The Hydra sweeper behind `-m`: it plans the jobs of a grid or a ladder and runs them, or starts a search.

Whatever needs TensorFlow, MLflow or matplotlib runs in a process of its own (see `worker_tasks`), so that this process
stays small.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper as HydraSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from experiments.config import credentials, unused
from experiments.config.identity import REPEATS
from experiments.config.schema import LOWER_IS_BETTER, LOWEST, Config
from experiments.errors import ConfigError
from experiments.runs import continuation, inputs
from experiments.runs.candidate_runs import without_repeats
from experiments.sweeps import plan, rungs, sweep_directory, terminal
from experiments.sweeps.launchers.scheduler import JobLauncher
from experiments.sweeps.plan import Job
from experiments.sweeps.session import Session, Setup, inspect_jobs

_log = logging.getLogger(__name__)


class Sweeper(HydraSweeper):
    """Sweeper that plans the jobs of a command line, runs those that are not done, and reports the result."""

    # The overrides as typed, if Hydra has received only some of them; see `plan.deferred`.
    typed: list[str] | None = None
    # The directory of the latest sweep of this process; None after a dry run.
    folder: Path | None = None

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = params or {}
        self.context: Any = None
        self.task: Any = None
        self.master: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.master = hydra_context, task_function, config
        loader: Any = hydra_context.config_loader
        loader.repository = plan.ReadOnce(loader.repository)

    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep that the overrides describe; raise SystemExit if a job has failed."""
        preset = [f"{key}={value}" for key, value in self.params.items()]
        overrides = plan.parse([*preset, *(arguments if self.typed is None else self.typed)], self.context)
        settings = self.master.sweep
        if settings.search == "grid":
            self.run_grid(overrides)
        elif settings.rungs is not None:
            raise ConfigError("sweep.rungs: a ladder is no search. Leave sweep.search out")
        else:
            from experiments.sweeps.search.search import search

            search(self, overrides)

    def set_up(self, configs: Sequence[Config]) -> Setup:
        """Return what all jobs share; raise ConfigError if it differs between jobs, or cannot be used."""
        began, common = time.monotonic(), configs[0]
        if len({(config.tracking.uri, config.outputs, config.objective) for config in configs}) > 1:
            raise ConfigError(
                "tracking, outputs and objective: a sweep has one of each. They cannot be swept over, nor come with a "
                "choice that is"
            )
        master = credentials.revealed(OmegaConf.to_container(self.master.sweep, resolve=True), "sweep")
        if any(config.sweep != common.sweep for config in configs) or common.sweep.model_dump() != master:
            raise ConfigError(
                "sweep: its own settings cannot be swept over, nor come with a choice that is (such as a preset with "
                "sweep.search). Type them, or run that choice in a command of its own"
            )
        validate_target(common)
        overrides = self.master.hydra.overrides.task if self.typed is None else self.typed
        apart = [line for line in self.typed or () if line not in sys.argv]  # Hydra has not received them
        command = shlex.join(["python", "-m", "experiments.train", *sys.argv[1:], *apart])
        for config in configs:
            continuation.check(config)
        unused.check_weights(configs, overrides)
        inputs.check(configs)
        unused.warn(configs, overrides)
        if common.sweep.search == "grid":
            unused.warn_of_sweep_keys(overrides, "a sweep without sweep.search", unused.SEARCH_KEYS)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=self.task, config=self.master
        )
        if not isinstance(launcher, JobLauncher):
            raise ConfigError(
                "hydra/launcher: must be one that runs a job as it was planned: local, ray, slurm, slurm_local. "
                f"Received: {self.master.hydra.launcher._target_}"
            )
        return Setup(self.context, self.master, launcher, common, command, began)

    def run_grid(self, overrides: Sequence[Override]) -> None:
        """Run every combination of the values that the overrides sweep over, or the rungs of a ladder sweep."""
        if self.master.sweep.rungs is None:
            jobs = plan.compose(plan.grid(overrides), self.context, self.master)
        else:
            expanded = rungs.expand(overrides, OmegaConf.to_container(self.master.sweep.rungs), self.context)
            jobs = plan.compose([combination for combination, _ in expanded], self.context, self.master)
            for job, (_, place) in zip(jobs, expanded, strict=True):
                job.place = place
        setup = self.set_up([job.config for job in jobs])
        inspection = inspect_jobs(jobs)
        # A job of a rung that begins with `best` may be the same run as one of another rung.
        fixed = {job.identity for job in jobs if job.place and not job.place.over}
        jobs = [job for job in jobs if not (job.place and job.place.over and job.identity in fixed)]
        check_repeats(jobs)
        session = Session(setup, plan.sweep_name(setup.config, jobs), inspection)
        dry_run = setup.config.sweep.dry_run
        Sweeper.folder = None if dry_run else session.folder
        with contextlib.nullcontext() if dry_run else session.lock():
            sweep_directory.number_jobs(session.folder, jobs)
            sweep_directory.reuse_own_runs(jobs)
            session.print_lines(*terminal.grid_plan(session.folder.name, jobs, inspection))
            if dry_run:
                return
            session.prepare(jobs)
            session.open(jobs)
            with session.interruptible():
                if setup.config.sweep.rungs is None:
                    session.run(jobs)
                else:
                    run_rungs(session, jobs)
                session.conclude(jobs)


def run_rungs(session: Session, jobs: Sequence[Job]) -> None:
    """Run a ladder sweep's jobs rung by rung until every ladder has ended."""
    from experiments.sweeps import ladder

    started: set[int] = set()
    features_missing = session.features_missing
    while due := ladder.due(session.folder, started):
        if reason := session.stop_reason(jobs):
            _log.info("No further rung is started: %s", reason)
            return
        started |= set(due)
        session.features_missing = features_missing  # each rung may need other features
        level = [job for job in jobs if job.number in due]
        # A rung that begins with `best` may have the same run on two rungs, of which the first one has the number.
        numbers = {*due, *(job.same_as for job in level)}
        rung = level[0].place.rung if level[0].place else "rung"
        session.run([job for job in jobs if job.number in numbers], rung)
        sweep_directory.resolve_repeated(session.folder, jobs)


def validate_target(config: Config) -> None:
    """Raise ConfigError for a target that no value of the objective can miss, or none can reach."""
    target, objective = config.sweep.target, config.objective
    low, high = LOWEST.get(objective, 0.0), math.inf if objective in LOWER_IS_BETTER else 1.0
    if target is not None and not low < target <= high:
        bound = "" if high == math.inf else f" and at most {high:g}"
        raise ConfigError(
            f"sweep.target: must be greater than {low:g}{bound}, as it is a value of objective={objective}. "
            f"Received: {target:g}"
        )


def check_repeats(jobs: Sequence[Job]) -> None:
    """Raise ConfigError if two jobs of one candidate are the same run, which would be counted as two."""
    known: dict[tuple[str, str], Job] = {}
    for job in jobs:
        candidate = json.dumps(without_repeats(job.values), sort_keys=True)
        before = known.setdefault((candidate, job.identity), job)
        if before is not job:
            raise ConfigError(
                f"{', '.join(REPEATS)}: jobs of one candidate are the same run, which would be counted as two: "
                f"{plan.format_values(before.values)} and {plan.format_values(job.values)}. Give each value once"
            )
