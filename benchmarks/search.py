"""Comparison of pruned TPE with random search at equal training: `python -m benchmarks.search FOLDER`.

FOLDER is a finished grid sweep (outputs/sweeps/NAME). Nothing is trained: a trial replays one of the grid's candidates.
It costs the epochs of the candidate's last phase up to where the trial ends, and its score is the recorded one. Sampler
and pruner are those of sweep.search and sweep.pruner.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.config.schema import LOWER_IS_BETTER
from experiments.errors import ConfigError
from experiments.storage.csv_files import read_rows
from experiments.sweeps import summary
from experiments.sweeps.search import study as studies
from experiments.training import pruning


@dataclass(frozen=True)
class Recorded:
    """A candidate of the grid, whose runs have all finished."""

    score: float  # mean of the objective over its runs
    curves: Sequence[Sequence[float]]  # of each run's last phase, by epoch

    @property
    def epochs(self) -> int:
        return sum(map(len, self.curves))


@dataclass(frozen=True)
class Grid:
    """A recorded grid: its keys, their values in order, and the result of each combination."""

    objective: str
    keys: Sequence[str]
    levels: Sequence[Sequence[str]]
    found: Mapping[tuple[str, ...], Recorded]

    @property
    def sign(self) -> int:
        return -1 if self.objective in LOWER_IS_BETTER else 1

    @property
    def epochs(self) -> int:
        return sum(recorded.epochs for recorded in self.found.values())


@dataclass(frozen=True)
class Replay:
    """Result of one replayed study."""

    best: float  # the true score of the best trial that was not pruned
    epochs: int
    trials: int
    pruned: int


def read(folder: Path) -> Grid:
    """Read a grid from the directory of its sweep.

    Raises:
        ConfigError: the grid is not complete.
    """
    about, rows = summary.read(folder)
    objective = about["objective"]
    found = summary.candidates([row for row in rows if not row.final], objective)
    keys = sorted({key for candidate in found for key in candidate.values})
    levels = [sorted({candidate.values[key] for candidate in found}, key=order) for key in keys]
    recorded = {
        tuple(candidate.values[key] for key in keys): Recorded(
            candidate.score, [curve(row.folder, objective) for row in candidate.rows]
        )
        for candidate in found
        if candidate.whole
    }
    missing = [combination for combination in itertools.product(*levels) if combination not in recorded]
    if missing or len(recorded) < 2:
        raise ConfigError(
            f"{folder}: a grid is needed of which every candidate has finished. Received: {len(recorded)} finished, "
            f"{len(missing)} missing" + (f", such as {' '.join(missing[0])}" if missing else "")
        )
    return Grid(objective, keys, levels, recorded)


def order(text: str) -> tuple[bool, float, str]:
    """Return a sort key that puts numbers first, by size, and other texts after them."""
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text


def curve(run: Path, objective: str) -> list[float]:
    """Return a run's validation metric by epoch of its last phase, as its job would have reported it to its trial."""
    rows = read_rows(run / "curves.csv")
    metric = "validation_loss" if objective in LOWER_IS_BETTER else "validation_accuracy"
    return [float(row[metric]) for row in rows if row["phase"] == rows[-1]["phase"]]


def replay(grid: Grid, name: str, pruner: str, seed: int, budget: int) -> Replay:
    """Replay one study on a recorded grid until its epochs are spent or every candidate has been tried.

    Args:
        name: the sampler, as in `sweep.search`.
        pruner: the pruner, as in `sweep.pruner`.
        budget: the number of epochs. A trial that would exceed it has no score.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    longest = max(len(curve) for recorded in grid.found.values() for curve in recorded.curves)
    study = optuna.create_study(
        study_name=f"{name} {seed}",  # Hyperband assigns trials to brackets by this name
        direction="maximize" if grid.sign > 0 else "minimize",
        pruner=pruning.pruner(pruner, longest),
    )
    spans = {key: span(levels) for key, levels in zip(grid.keys, grid.levels, strict=True)}
    done: dict[tuple[str, ...], Any] = {}
    best, spent, pruned = -np.inf, 0, 0
    for at in range(50 * len(grid.found)):
        if spent >= budget or len(done) == len(grid.found):
            break
        study.sampler = studies.sampler(name, seed, at)
        trial = study.ask(spans)
        drawn = tuple(
            levels[trial.params[key]] if isinstance(trial.params[key], int) else trial.params[key]
            for key, levels in zip(grid.keys, grid.levels, strict=True)
        )
        if drawn in done:  # a repeated candidate gets its former result, at no cost
            before = done[drawn]
            for step, value in before.intermediate_values.items():
                trial.report(value, step)
            study.tell(trial, before.value if before.state.name == "COMPLETE" else None, before.state)
            continue
        recorded, behind = grid.found[drawn], False
        first = recorded.curves[0]
        for step, value in enumerate(first[: budget - spent]):
            spent += 1
            trial.report(value, step)
            behind = step + 1 < len(first) and trial.should_prune()
            if behind:
                break
        if behind:
            pruned += 1
            done[drawn] = study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            continue
        spent += recorded.epochs - len(first)
        if spent > budget or len(first) > len(trial.study.trials[trial.number].intermediate_values):
            spent = budget
            break
        best = max(best, grid.sign * recorded.score)
        done[drawn] = study.tell(trial, recorded.score)
    return Replay(grid.sign * best, spent, len(done), pruned)


def span(levels: Sequence[str]) -> Any:
    """Return the search space of a key: positions among its values where these are ordered numbers, else choices."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if all(not order(level)[0] for level in levels):
        return IntDistribution(0, len(levels) - 1)
    return CategoricalDistribution(list(levels))


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a grid that has been run: outputs/sweeps/NAME")
    parser.add_argument(
        "--budget-epochs", type=int, metavar="N", help="epochs that each study may train; a quarter of the grid's"
    )
    parser.add_argument("--studies", type=int, default=5, help="of each kind, with seeds from 0 on (5)")
    parser.add_argument("--pruner", choices=("median", "hyperband"), default="median", help="of TPE (median)")
    options = parser.parse_args(given)
    try:
        grid = read(options.folder)
    except ConfigError as error:
        parser.error(str(error))
    budget = options.budget_epochs or grid.epochs // 4
    if budget < 1 or options.studies < 1:
        parser.error(f"--budget-epochs and --studies must be 1 or more. Received: {budget}, {options.studies}")
    show = Console(highlight=False, soft_wrap=True).print
    scores = [recorded.score for recorded in grid.found.values()]
    best = grid.sign * max(grid.sign * score for score in scores)
    show(
        f"{options.folder.name}: {len(scores)} candidates of {', '.join(grid.keys)}, {grid.epochs} epochs in all; "
        f"{grid.objective} {min(scores):.4f} to {max(scores):.4f}, best {best:.4f}"
    )
    show(f"Studies of {budget} epochs each. Best true score (candidates tried, of them pruned):")
    better = equal = 0
    totals: list[list[float]] = [[], []]
    for seed in range(options.studies):
        random = replay(grid, "random", "none", seed, budget)
        tpe = replay(grid, "tpe", options.pruner, seed, budget)
        better += grid.sign * (tpe.best - random.best) > 0
        equal += tpe.best == random.best
        totals[0].append(random.best)
        totals[1].append(tpe.best)
        show(
            f"  seed {seed}  random {random.best:.4f} ({random.trials})"
            f"   TPE, {options.pruner} {tpe.best:.4f} ({tpe.trials}, {tpe.pruned})"
        )
    show(f"  mean    random {np.mean(totals[0]):.4f}   TPE, {options.pruner} {np.mean(totals[1]):.4f}")
    show(f"TPE better in {better} of {options.studies}" + (f", equal in {equal}" if equal else ""))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
