"""Sentences and tables that describe a comparison of runs."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from experiments.comparison.comparison import FINGERPRINT, Comparison, Group, called, configuration, fold_of
from experiments.comparison.significance import Difference
from experiments.config.overrides import as_typed
from experiments.config.schema import LOWER_IS_BETTER
from experiments.evaluation.evaluate import METRICS, Baseline
from experiments.evaluation.statistics import LEVEL, UNKNOWN
from experiments.reports.text import format_score, other_store

MOST_METRICS = 6  # columns of a table of metrics
MOST_SENTENCES = 6  # Up to this number of comparisons, each has a sentence of its own.


def sentences(comparison: Comparison) -> list[str]:
    """Return the findings: accuracies against the baseline, each group against the first, and the limitations."""
    first = called(comparison.labels[0])
    others = len(comparison.groups) - 1
    found = [difference for difference in comparison.differences if difference]
    rows = zip(comparison.labels, comparison.groups, (each["accuracy"] for each in comparison.measures), strict=True)
    lines = baseline_sentences(
        [(called(label), group.baseline, accuracy.value, accuracy.low) for label, group, accuracy in rows]
    )
    lines += [
        f"{run.name} has the configuration and seed of another of these runs: it is no new evidence and not counted."
        for group in comparison.groups
        for run in group.duplicates
    ]
    if others <= MOST_SENTENCES:
        lines += [
            difference_sentence(called(label), first, one)
            for label, one in zip(comparison.labels, comparison.differences, strict=True)
            if one
        ]
    else:
        apart = [str(at) for at, one in enumerate(comparison.differences, 1) if one and one.significant]
        which = f" (rows {', '.join(apart)})" if apart else ""
        lines.append(
            f"Of the {others} others {len(apart)} are significantly different from {first}{which}; "
            f"{others - len(apart)} are not."
        )
    known = comparison.groups[0].classes
    classes = [set(group.classes or known) for group in comparison.groups]
    if other := [str(at) for at, names in enumerate(classes, 1) if names != classes[0]]:
        lines.append(
            f"Row {', '.join(other)}: other classes than in row 1. These accuracies are of different tasks, so that "
            "their difference does not show which model or setting is better."
        )
    changed = [data_changed(comparison.groups[0], group) for group in comparison.groups]
    if other := [str(at) for at, is_changed in enumerate(changed, 1) if is_changed]:
        lines.append(
            f"Row {', '.join(other)}: other images or labels than in row 1, under the same settings of the data. These "
            "have changed between the runs, which may be why the rows differ."
        )
    if comparison.ranked:
        lines.append("The rows are in the order of their validation accuracy.")
    lines += limitations(found, f"To test the setting: {more_seeds(comparison)}", "row" * comparison.ranked)
    if comparison.split == "test":
        lines.append(
            "The rows are in the order given, not ranked: a choice by the test split would leave no unbiased test. "
            "Choose by validation, and read this once."
        )
    return lines


SINGLE = (
    "A comparison of single runs is about these trained models and these images: training noise is not in its "
    "interval, and another seed would train other models. It does not show that a setting is better."
)
FOLDED = (
    "The intervals over folds are corrected for training sets that overlap (Nadeau and Bengio 2003), and cover the "
    "variance of training, of training sets and of images."
)


def limitations(differences: Sequence[Difference], more: str = "", chosen: str = "") -> list[str]:
    """Return sentences on what differences from one side do not show.

    Args:
        differences: of the compared groups, in any metric.
        more: a sentence on how to test settings, if models were compared.
        chosen: what the best of the groups, which all others are compared with, is called; empty if it was not chosen.
    """
    lines = []
    if not all(difference.about_setting for difference in differences):
        lines += [SINGLE, *filter(None, [more])]
    if any(difference.source == "folds" for difference in differences):
        lines.append(FOLDED)
    if chosen:
        lines.append(
            f"The first {chosen} is the best of {len(differences) + 1}: the score that it was chosen by is biased "
            "upward, the more so the more there are."
        )
    if len(differences) > 1:
        lines.append(
            f"{len(differences)} comparisons, each at the 5 % level: of twenty without any difference, one would be "
            "called significant."
        )
    return lines


def data_changed(one: Group, other: Group) -> bool:
    """Return whether two groups have read other images or labels, though their settings name the same ones."""
    same = {key for key in one.params.keys() | other.params.keys() if key.startswith("data.")}
    same -= {FINGERPRINT, "data.image_size", "data.resize"}
    prints = {group.params.get(FINGERPRINT) for group in (one, other)}
    return len(prints - {None}) == 2 and all(one.params.get(key) == other.params.get(key) for key in same)


def more_seeds(comparison: Comparison) -> str:
    """Return the commands that train the seeds which a comparison of the settings needs."""
    if any(data_changed(one, other) for one, other in itertools.combinations(comparison.groups, 2)):
        return (
            "train every row with several seeds on the same images (like=RUN reads those that are there now). To "
            "compare states of the data, keep each in a folder of its own."
        )
    single = [group.runs[0] for group in comparison.groups if len(group.by_seed) == 1]
    if not single or any(map(fold_of, comparison.runs)):  # `like` of a run trains on its fold alone
        return "give every row the same folds and seeds."
    most = max((list(group.accuracy.by_seed) for group in comparison.groups), key=len)
    seeds = ",".join(most if len(most) > 1 else ("0", "1", "2"))
    # `train` searches the store in use here, and compares nothing with runs in another one.
    place = other_store(comparison.uri)
    store = f" {as_typed('tracking.uri', place) or f'tracking.uri={place}'}" if place else ""
    shown = [
        f"python -m experiments.train -m {as_typed('like', run.run_id) or f'like={run.run_id}'} seed={seeds} "
        f"sweep.final=false{'' if run.folder else store}"
        for run in single[:2]
    ]
    further = {0: "", 1: " (and so on for the further row)"}
    more = further.get(len(single[2:]), f" (and so on for the {len(single) - 2} further rows)")
    return f"{' and '.join(shown)}{more}, then compare all runs (experiments compare RUN ... --sweep SWEEP ...)."


def baseline_sentences(rows: Sequence[tuple[str, Baseline, float, float]]) -> list[str]:
    """Compare accuracies with the most frequent class; `rows` have name, baseline, accuracy and its lower bound."""
    found = {name: baseline.describe(accuracy, low) for name, baseline, accuracy, low in rows}
    by_text: dict[str, list[str]] = {}
    for name, text in found.items():
        by_text.setdefault(text, []).append(name)
    if len(found) > 1 and len(by_text) == 1 and next(iter(by_text)).startswith("significantly"):
        return [f"All accuracies are {next(iter(by_text))}."]
    return [f"The accuracy of {', '.join(names)} is {text}." for text, names in by_text.items()]


def difference_sentence(name: str, first: str, found: Difference, metric: str = "accuracy") -> str:
    """Return the sentence about a difference, in the same words for comparisons and sweeps."""
    better = (found.value > 0) != (metric in LOWER_IS_BETTER)
    if not found.about_setting:
        name, first = f"The model trained with {name}", f"the one trained with {first}"
    if metric == "accuracy":
        size, unit = f"{signed(abs(found.value)).lstrip('+')} points", ""
        bounds = f"{signed(found.low)} to {signed(found.high)}"
    else:
        size, unit = f"{abs(found.value):.{_decimals(found.value, 4)}f}", f" in {metric}"
        bounds = f"{found.low:+.3g} to {found.high:+.3g}"
    if found.value == 0:
        text = f"{name} is neither better nor worse than {first}{unit}"
    else:
        text = f"{name} is {'better' if better else 'worse'} than {first} by {size}{unit}"
    images = f"{found.images:,} images" + (" that both were evaluated on" if found.partly else "")
    if not found.paired:
        images = f"different images, at least {found.images:,} on each side"
    runs = ""
    if found.about_setting:
        a, b = found.runs
        runs = f", {a} {'seed' if a == 1 else 'seeds'} of each" if a == b else f", {a} and {b} seeds"
        runs = f", the {a} seeds that both have" if found.some_seeds else runs
        runs += ", in folds" if found.source == "folds" else ""
    elif found.some_seeds:
        runs = ", one seed of each"
    text += f" (95 % interval {bounds}, {p_text(found.p_value)}, {images}{runs})"
    result = "significantly different" if found.significant else "not significantly different"
    if found.about_setting:
        return f"{text}: {result}."
    text += f": these two trained models are {result}"
    if found.significant or not found.needed:
        return f"{text}."
    return f"{text}; about {rounded(found.needed)} images would show a difference as large as this."


def signed(share: float) -> str:
    """Format a difference in percentage points, with as many digits as it takes not to round it to 0."""
    return _with_sign(100 * share, 1)


def _with_sign(number: float, least: int) -> str:
    return f"{number:+z.{_decimals(number, least)}f}"


def _decimals(number: float, least: int) -> int:
    """Return how many decimals, at least `least`, it takes not to round a number to 0."""
    if number == 0 or not math.isfinite(number):
        return least
    return max(least, min(least + 5, math.ceil(-math.log10(2 * abs(number)))))


def p_text(p_value: float) -> str:
    """Format a p-value with two digits, or with more if two would round it to the level of the test."""
    if p_value < 1e-4:
        return "p < 0.0001"
    digits = next((digits for digits in range(2, 12) if float(f"{p_value:.{digits}g}") != LEVEL), 12)
    return f"p = {p_value:.{digits}g}"


def rounded(number: float) -> str:
    """Format a number rounded to two digits, as an estimate has no more precision."""
    return f"{float(f'{number:.1e}'):,.0f}"


# --- Tables of texts: a header and rows


def points(found: Difference | None, metric: str = "accuracy") -> str:
    """Format a difference with its interval; one in accuracy in percentage points."""
    if found is None:
        return ""
    if metric == "accuracy":
        return f"{signed(found.value)} [{signed(found.low)}, {signed(found.high)}]"
    value, low, high = (_with_sign(number, 4) for number in found.interval)
    return f"{value} [{low}, {high}]"


def duration(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"


def score_table(comparison: Comparison) -> list[list[str]]:
    """Return the table of accuracies and costs, a row per group; differences are in points, durations in seconds."""
    lines = [["run", "runs", "accuracy", "from first", "p", "s", "s/epoch"]]
    rows = zip(comparison.groups, comparison.names, comparison.measures, comparison.differences, strict=True)
    for group, name, measures, found in rows:
        p = "" if found is None else p_text(found.p_value).removeprefix("p = ").replace("p < 0.0001", "<1e-4")
        lines.append([
            name, str(len(group.runs)), format_score("accuracy", measures["accuracy"]), points(found),
            p, duration(group.seconds), duration(group.epoch_seconds),
        ])  # fmt: skip
    return _informative(lines)


def paired_table(comparison: Comparison) -> list[list[str]]:
    """Return the table of details about the differences, with one row per group except the first."""
    lines = [["run", "about", "compared on", "right: only 1", "right: only this", "by seed, points", "images needed"]]
    for name, found in zip(comparison.names, comparison.differences, strict=True):
        if found is None:
            continue
        images = f"{found.images:,} images" + " in common" * found.partly if found.paired else "other images"
        seeds = f", {found.runs[0]} seeds in common" if found.about_setting else ", one seed"
        lines.append([
            name, "the setting" if found.about_setting else "two models", images + seeds * found.some_seeds,
            *("" if count is None else str(count) for count in (found.only_a, found.only_b)),
            ", ".join(signed(value) for value in found.by_seed), "" if found.needed is None else rounded(found.needed),
        ])  # fmt: skip
    return _informative(lines)


def _informative(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return a table without uninformative columns: empty ones, and the number of runs if each group has one."""
    columns = [
        column for column in zip(*lines, strict=True)
        if any(cell not in ("", "1" * (column[0] == "runs")) for cell in column[1:])
    ]  # fmt: skip
    return [list(line) for line in zip(*columns, strict=True)]


def metric_table(comparison: Comparison, names: Sequence[str]) -> list[list[str]]:
    """Return the table of those metrics that any group has, a row per group; an arrow shows what is better."""
    known = [name for name in names if any(name in measures for measures in comparison.measures)]
    header = ["run", *(METRICS[name] + (" ↓" if name in LOWER_IS_BETTER else " ↑") for name in known)]
    rows = zip(comparison.names, comparison.measures, strict=True)
    return [header, *([name, *(format_score(key, measures.get(key)) for key in known)] for name, measures in rows)]


def metric_tables(comparison: Comparison) -> list[list[list[str]]]:
    """Return the tables of all metrics but accuracy, of at most MOST_METRICS each.

    Of more than two classes, balanced accuracy is the recall and macro F1 is F1: these columns are shown once.
    """
    known = {name: [of_group.get(name) for of_group in comparison.measures] for name in tuple(METRICS)[1:]}
    names = [name for name, column in known.items() if any(column)]
    for name, same in (("balanced_accuracy", "recall"), ("macro_f1", "f1")):
        values, others = ([interval and interval.value for interval in known[metric]] for metric in (name, same))
        if name in names and values == others:
            names.remove(name)
    return [metric_table(comparison, names[at : at + MOST_METRICS]) for at in range(0, len(names), MOST_METRICS)]


def configuration_tables(comparison: Comparison) -> tuple[list[list[str]], list[list[str]]]:
    """Return two tables of the differences in configuration, with one row per key and one column per group.

    The first has the keys with several values, the second those that merely some groups do not read (–).
    """
    header = ["key", *(str(at) for at in range(1, len(comparison.groups) + 1))]
    valued, unread = [header], [header]
    for key, values in configuration(comparison.groups).items():
        several = len({value for value in values if value is not None}) > 1
        (valued if several else unread).append([key, *("–" if value is None else value for value in values)])
    return valued, unread


def unread_keys(unread: Sequence[Sequence[str]]) -> list[str]:
    """Summarize which groups read which keys; more than three keys of one section are combined as `section.*`."""
    by_readers: dict[tuple[int, ...], list[tuple[str, str]]] = {}
    for key, *values in unread[1:]:
        readers = tuple(at for at, value in enumerate(values, 1) if value != "–")
        by_readers.setdefault(readers, []).append((key, values[readers[0] - 1]))
    lines = []
    for readers, members in sorted(by_readers.items()):
        kinds = Counter(key.rpartition(".")[0] for key, _ in members)
        texts = dict.fromkeys(
            f"{kind}.* ({kinds[kind]} keys)" if kinds[kind := key.rpartition(".")[0]] > 3 else f"{key}={value}"
            for key, value in members
        )
        lines.append(f"read by {', '.join(map(str, readers))} only: {', '.join(texts)}")
    return lines


# --- Tables of values, for CSV files and data frames: a row is a mapping of columns to values


def group_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row per group: metrics with intervals, difference from the first group, durations, differing keys."""
    names = [name for name in METRICS if any(name in measures for measures in comparison.measures)]
    differing = configuration(comparison.groups)
    groups = zip(comparison.groups, comparison.labels, comparison.measures, comparison.differences, strict=True)
    rows = []
    for at, (group, label, measures, found) in enumerate(groups):
        row: dict[str, Any] = {
            "number": at + 1, "label": " ".join(label), "runs": len(group.runs),
            "run_ids": " ".join(run.run_id for run in group.runs), "images": len(group.images),
            "accuracy_baseline": group.baseline.accuracy,
        }  # fmt: skip
        for name in names:
            row |= measures.get(name, UNKNOWN).columns(name)
        row |= (found.interval if found else UNKNOWN).columns("difference")
        row |= {
            "about": found and ("setting" if found.about_setting else "models"),
            "paired_images": found.images if found and found.paired else None, "p_value": found and found.p_value,
            "only_first_right": found and found.only_a, "only_this_right": found and found.only_b,
            "images_needed": found and found.needed, "seconds": group.seconds, "epoch_seconds": group.epoch_seconds,
        }  # fmt: skip
        # The key `loss` has the name of a metric.
        rows.append(row | {f"params.{key}" if key in row else key: values[at] for key, values in differing.items()})
    return rows
