"""Hyperparameter search: an Optuna study proposes the trials, and a worker runs them.

Workers and later starts of the same command share the study. A trial is one point of the search space, with one run
for each seed and fold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from experiments.config.identity import defining, effective
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.sweeps import plan, terminal
from experiments.sweeps.plan import InspectedJobs
from experiments.sweeps.search.space import Space, space
from experiments.sweeps.session import Session, inspect_jobs
from experiments.system.redaction import redact_credentials
from experiments.tracking import liveness
from experiments.training import pruning

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from experiments.sweeps.sweeper import Sweeper


def search(sweeper: Sweeper, overrides: Sequence[Override]) -> None:
    """Run or continue the search that the overrides describe; raise SystemExit if a job has failed."""
    pruning.need_optuna(sweeper.master)
    search_space = space(overrides, lambda key: OmegaConf.select(sweeper.master, key, default=None))
    probes = plan.compose(list(search_space.corners()), sweeper.context, sweeper.master)
    if between := search_space.fractions():
        plan.compose([between], sweeper.context, sweeper.master)  # raises what its trials would end with
    configs = [job.config for job in probes]
    setup = sweeper.set_up(configs)
    # The corners are inspected for what a search must not start without, such as weights, and for what trials share.
    inspection = inspect_jobs(probes)
    content = hashlib.sha256(" ".join(job.identity for job in probes).encode()).hexdigest()
    name = search_name(configs, search_space, content)
    session = Session(setup, name, inspection)
    session.repeats = len(search_space.repeats)
    from experiments.sweeps.search import study as studies
    from experiments.sweeps.search import trials

    if setup.config.sweep.dry_run:
        existing = studies.existing_trials(setup.config, session.folder.name)
        session.print_lines(*search_plan(session, search_space, inspection, existing))
        return
    type(sweeper).folder = session.folder
    session.folder.mkdir(parents=True, exist_ok=True)
    attributes = {studies.SEARCH: name, pruning.EPOCHS: max(config.epochs for config in configs)}
    study = studies.open_study(setup.config, session.folder, attributes)
    session.print_lines(*search_plan(session, search_space, inspection, study.trials))
    session.print_lines(*trials.deleted_lines(setup.config, study.trials))
    worker = trials.Worker(session, search_space, study)
    with worker.lock:  # so that only one of several workers creates the MLflow run
        session.open([])
    import optuna
    import sqlalchemy.exc

    try:
        with session.interruptible():
            with liveness.heartbeat(worker.heartbeat):
                worker.work()
            trials.conclude(worker)
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        reason = redact_credentials(str(error.__cause__ or error)).strip().splitlines()[0][:300]
        raise ConfigError(
            f"sweep.storage: the study was lost: {reason}. When it is back, the same command goes on"
        ) from None


def search_name(configs: Sequence[Config], search_space: Space, content: str) -> str:
    """Return the name of a search, the same at every start and on every machine.

    It does not depend on the number of trials, on the workers or on where the study and the runs are stored. The
    configurations, always the same ones, contain every choice of the search space; `content` is a hash of their
    identities, which covers the data and weights of each.
    """
    corners = []
    for config in configs:
        plain = effective(config)
        corner = defining(plain) | {"evaluate": plain["evaluate"]}
        for key in ("data", "continue_from"):  # paths on this machine; the identities cover the content
            corner.pop(key, None)
        corners.append(corner)
    first, settings = configs[0], configs[0].sweep
    dimensions, repeats = list(map(str, search_space.dimensions)), list(map(list, search_space.repeats))
    what = [corners, content, first.objective, dimensions, repeats, settings.search, settings.seed, settings.pruner]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return f"{first.regime.name}-{first.model.name}-{settings.search}-{digest[:8]}"


def search_plan(
    session: Session, search_space: Space, inspection: InspectedJobs, trials: Sequence[FrozenTrial]
) -> list[str]:
    """Return how many trials are done and how many remain, what they share and how long they may take."""
    settings = session.config.sweep
    count = {state: sum(trial.state.name == state for trial in trials) for state in ("COMPLETE", "PRUNED", "RUNNING")}
    done = count["COMPLETE"] + count["PRUNED"]
    to_do = max(0, settings.trials - done)
    parts = [f"{settings.trials} trials", f"{done} done" + (f" ({count['PRUNED']} pruned)" if count["PRUNED"] else "")]
    parts += [f"{to_do} to do"]
    parts += [f"{count['RUNNING']} of them begun"] if count["RUNNING"] else []
    runs = f", {len(search_space.repeats)} runs each" if len(search_space.repeats) > 1 else ""
    lines = [f"Search {session.folder.name} ({settings.search}{runs}): " + ", ".join(parts)]
    lines += [f"  {line}" for line in inspection.lines if to_do]
    lines += terminal.duration(inspection, to_do * len(search_space.repeats), settings.jobs)
    return lines + [f"  {dimension}" for dimension in search_space.dimensions if settings.dry_run]
