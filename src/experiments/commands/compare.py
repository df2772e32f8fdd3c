"""`experiments compare RUN RUN ...`: what differs, how well each does, and whether the difference is real."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.types import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from experiments.statistics import Paired
    from experiments.tracking.stored import RunFacts


CHOICES = ("regime", "model", "data", "augmentation", "optimizer")  # what a row is named by first


class Group(NamedTuple):
    """Runs that differ in their seed only."""

    runs: tuple[RunFacts, ...]
    params: Mapping[str, str]  # without the seed
    correct: np.ndarray  # [S, N] bool, the runs' predictions on the same pictures


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments compare",
        description="Compares finished runs on the same pictures. Runs that differ in their seed only are one row: "
        "their mean, with its interval over the seeds. The first row is what the others are compared with, picture by "
        "picture (bootstrap interval of the difference; exact McNemar test for single runs).",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run ids, their beginnings, or run names")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument(
        "--uri", help="MLflow tracking store (default: MLFLOW_TRACKING_URI, or this place's SQLite file)"
    )
    arguments = parser.parse_args()
    from rich.console import Console

    from experiments.tracking.stored import find_runs, local_store

    uri = arguments.uri or local_store()
    try:
        groups = group_by_seed(uri, find_runs(uri, arguments.runs), arguments.split)
    except ConfigError as error:
        sys.exit(str(error))
    console = Console()
    console.print(comparison_table(groups, arguments.split))
    for sentence in sentences(groups):
        console.print(sentence, highlight=False)


def group_by_seed(uri: str, runs: Sequence[RunFacts], split: str) -> list[Group]:
    """Runs gathered by their parameters without the seed, in the order given.

    Raises:
        ConfigError: runs judged on different pictures, or the same run twice.
    """
    import numpy as np

    from experiments.tracking.stored import read_predictions

    gathered: dict[tuple[tuple[str, str], ...], list[RunFacts]] = {}
    for run in runs:
        params = {key: value for key, value in run.params.items() if key != "seed"}
        gathered.setdefault(tuple(sorted(params.items())), []).append(run)
    groups: list[Group] = []
    pictures: list[Any] | None = None
    for params_key, members in gathered.items():
        correct = []
        for run in members:
            table = read_predictions(uri, run, split)
            seen = list(zip(table["path"], table["sha256"], strict=True))
            if pictures is not None and seen != pictures:
                raise ConfigError(
                    f"{run.name} was judged on other {split} pictures than {runs[0].name}: a comparison picture by "
                    "picture needs the same ones"
                )
            pictures = seen
            correct.append(table["correct"])
        if len({run.run_id for run in members}) < len(members):
            raise ConfigError(f"{members[0].name} is named twice")
        groups.append(Group(tuple(members), dict(params_key), np.array(correct, dtype=bool)))
    return groups


def difference(first: Group, other: Group) -> Paired:
    """How much better `other` is than `first`, over the same pictures and the seeds that both have.

    Where they have no seed in common, as many runs of each as the smaller group holds.
    """
    from experiments.statistics import paired_difference

    one, two = ({run.params.get("seed"): at for at, run in enumerate(group.runs)} for group in (first, other))
    common = [seed for seed in one if seed in two]
    if common:
        return paired_difference(
            first.correct[[one[seed] for seed in common]], other.correct[[two[seed] for seed in common]]
        )
    runs = min(len(first.correct), len(other.correct))
    return paired_difference(first.correct[:runs], other.correct[:runs])


def label(group: Group, groups: Sequence[Group]) -> str:
    """What sets a group apart: as few of the parameters in which the groups differ as tell all of them from each other.

    The choices of groups come first, then short keys; what a regime ignores, some runs do not have.
    """
    every = {key for one in groups for key in one.params}
    keys = [key for key in every if len({one.params.get(key) for one in groups}) > 1]
    keys.sort(key=lambda key: (CHOICES.index(key) if key in CHOICES else len(CHOICES), key.count("."), key))
    telling: list[str] = []
    for key in keys:
        if _distinct(groups, [*telling, key]) > _distinct(groups, telling):
            telling.append(key)
    return " ".join(f"{key}={group.params[key]}" for key in telling if key in group.params) or group.runs[0].name


def _distinct(groups: Sequence[Group], keys: Sequence[str]) -> int:
    return len({tuple(one.params.get(key) for key in keys) for one in groups})


def comparison_table(groups: Sequence[Group], split: str) -> Table:
    """One row a group: accuracy and paired difference from the first, each with its 95 % interval; p, seconds."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from experiments.statistics import mean_interval, wilson

    title = f"{split}: accuracy on {groups[0].correct.shape[1]} pictures [95 % interval], differences in points"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("run", "runs", "accuracy", "from first", "p", "s"):
        if name == "run":
            table.add_column(name, overflow="fold", min_width=18)
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        accuracies = [float(value) for value in group.correct.mean(axis=1)]
        if len(accuracies) > 1:
            mean, low, high = mean_interval(accuracies)
        else:
            mean = accuracies[0]
            low, high = wilson(int(group.correct.sum()), group.correct.size)
        compared, p = "", ""
        if group is not groups[0]:
            paired = difference(groups[0], group)
            compared = f"{100 * paired.difference:+.1f} [{100 * paired.low:+.1f}, {100 * paired.high:+.1f}]"
            p = "" if paired.p_value is None else f"{paired.p_value:.2g}"
        seconds = [run.metrics.get("total_seconds", float("nan")) for run in group.runs]
        table.add_row(
            escape(label(group, groups).replace(" ", "\n")),
            str(len(group.runs)),
            escape(f"{mean:.1%} [{100 * low:.1f}, {100 * high:.1f}]"),
            escape(compared),
            p,
            f"{sum(seconds) / len(seconds):.0f}",
        )
    return table


def sentences(groups: Sequence[Group]) -> list[str]:
    """Each group against the first, in words."""
    first = label(groups[0], groups)
    lines = []
    for group in groups[1:]:
        paired = difference(groups[0], group)
        real = not paired.low <= 0 <= paired.high
        verdict = "a real difference" if real else "not distinguishable from chance on these pictures"
        direction = (
            "better" if paired.difference > 0 else "worse" if paired.difference < 0 else "neither better nor worse"
        )
        lines.append(
            f"{label(group, groups)} is {direction} than {first} by {100 * abs(paired.difference):.1f} points "
            f"(95 % interval {100 * paired.low:+.1f} to {100 * paired.high:+.1f}): {verdict}."
        )
    return lines


if __name__ == "__main__":
    main()
