"""A comparison of runs in words, and as tables of texts or numbers."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence

from experiments.comparison import METRICS, Comparison, Difference, Interval, called, configuration
from experiments.schema import LOWER_IS_BETTER

MOST_SENTENCES = 6  # comparisons up to which each has its own


def sentences(comparison: Comparison) -> list[str]:
    """Each group against the first, then what is to be kept in mind."""
    first = called(comparison.labels[0])
    others = len(comparison.groups) - 1
    if others <= MOST_SENTENCES:
        lines = [
            _sentence(called(label), first, found)
            for label, found in zip(comparison.labels, comparison.differences, strict=True)
            if found
        ]
    else:
        apart = [str(at) for at, found in enumerate(comparison.differences, 1) if found and found.real]
        told = f" (rows {', '.join(apart)})" if apart else ""
        lines = [
            f"Of the {others} others {len(apart)} differ from {first} by more than chance{told}; {others - len(apart)} "
            "are not yet distinguishable from it."
        ]
    if comparison.ranked:
        lines.append(
            f"The rows are in the order of their validation accuracy. The first is the best of {others + 1} by the "
            "very pictures it is judged on, which flatters it."
        )
    if others > 1:
        lines.append(
            f"{others} comparisons, each at the 5 % level: of twenty without any difference, one would be called real."
        )
    if comparison.split == "test":
        lines.append(
            "The rows are in the order given, not ranked: whoever chooses by the test split has no test left. Choose "
            "by validation, and read this once."
        )
    return lines


def _sentence(name: str, first: str, found: Difference) -> str:
    size = 100 * abs(found.value)
    points, needed = f"{size:.1f}" if size >= 0.095 else f"{size:.2f}", found.needed
    if found.value == 0:
        text = f"{name} is neither better nor worse than {first}"
    else:
        text = f"{name} is {'better' if found.value > 0 else 'worse'} than {first} by {points} points"
    text += f" (95 % interval {100 * found.low:+z.1f} to {100 * found.high:+z.1f})"
    if found.paired is None:
        verdict = "more than chance" if found.real else "not distinguishable from chance"
        return f"{text}; they were judged on other pictures, so this is an unpaired comparison: {verdict}."
    which = f"{found.paired.pictures:,} pictures"
    if found.partly:
        which = f"the {which} that both were judged on"
    which += f" and {found.runs} runs of each" if found.runs > 1 else ""
    p = "" if found.p_value is None else f", p = {found.p_value:.2g}"
    if found.real:
        return f"{text}; with {which} this is a real difference{p}."
    text += f"; with {which} this is not yet distinguishable from chance{p}"
    return f"{text}; about {_rounded(needed)} pictures would be needed." if needed else f"{text}."


def _rounded(number: int) -> str:
    """To two digits: more are not known."""
    digits = max(0, len(str(number)) - 2)
    return f"{round(number, -digits):,}"


# --- as tables of texts: a header and rows


def points(found: Difference | None) -> str:
    return "" if found is None else f"{100 * found.value:+z.1f} [{100 * found.low:+z.1f}, {100 * found.high:+z.1f}]"


def shown(name: str, value: Interval | None) -> str:
    """A metric with its interval; an accuracy in per cent."""
    if value is None:
        return "–"
    if name == "accuracy":
        return f"{value.value:.1%} [{100 * value.low:.1f}, {100 * value.high:.1f}]"
    text = f"{value.value:.3f}"
    return text if math.isnan(value.low) else f"{text} [{value.low:.3f}, {value.high:.3f}]"


def duration(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"


def score_table(comparison: Comparison) -> list[list[str]]:
    """Accuracy and what it costs: a row a group, in points from the first; seconds of a run and of an epoch."""
    lines = [["run", "runs", "accuracy", "from first", "p", "s", "s/epoch"]]
    rows = zip(comparison.groups, comparison.names, comparison.measures, comparison.differences, strict=True)
    for group, name, measures, found in rows:
        p = None if found is None else found.p_value
        lines.append([
            name, str(len(group.runs)), shown("accuracy", measures["accuracy"]), points(found),
            "" if p is None else f"{p:.2g}", duration(group.seconds), duration(group.epoch_seconds),
        ])  # fmt: skip
    return _told(lines)


def paired_table(comparison: Comparison) -> list[list[str]]:
    """What stands behind the differences: a row a group but the first."""
    lines = [["run", "compared on", "right: only 1", "right: only this", "by seed, points", "pictures needed"]]
    for name, found in zip(comparison.names, comparison.differences, strict=True):
        if found is None:
            continue
        paired, needed = found.paired, found.needed
        lines.append([
            name, "other pictures" if paired is None else f"{paired.pictures:,} pictures" + " in common" * found.partly,
            *(("", "") if paired is None or paired.only_a is None else (str(paired.only_a), str(paired.only_b))),
            ", ".join(f"{100 * one:+z.1f}" for one in found.by_seed),
            "" if needed is None else _rounded(needed),
        ])  # fmt: skip
    return _told(lines)


def _told(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """A table without the columns that say nothing: empty ones, and how many runs where it is one each."""
    said = [
        at
        for at, name in enumerate(lines[0])
        if any(line[at] not in ("", "1" * (name == "runs")) for line in lines[1:])
    ]
    return [[line[at] for at in said] for line in lines]


def metric_table(comparison: Comparison, names: Sequence[str] = tuple(METRICS)[1:]) -> list[list[str]]:
    """The other metrics, those that any run has: a row a group; an arrow says where better is."""
    known = [name for name in names if any(name in measures for measures in comparison.measures)]
    header = ["run", *(METRICS[name] + (" ↓" if name in LOWER_IS_BETTER else " ↑") for name in known)]
    rows = zip(comparison.names, comparison.measures, strict=True)
    return [header, *([name, *(shown(one, measures.get(one)) for one in known)] for name, measures in rows)]


def configuration_tables(comparison: Comparison) -> tuple[list[list[str]], list[list[str]]]:
    """What differs, a row a key, a column a group: keys of several values; those that some groups do not read (–)."""
    header = ["key", *(str(at) for at in range(1, len(comparison.groups) + 1))]
    valued, unread = [header], [header]
    for key, values in configuration(comparison.groups).items():
        several = len({value for value in values if value is not None}) > 1
        (valued if several else unread).append([key, *("–" if value is None else value for value in values)])
    return valued, unread


def unread_keys(unread: Sequence[Sequence[str]]) -> list[str]:
    """The second of those tables in short: who reads which keys, many of one kind as `kind.*`."""
    by_readers: dict[tuple[int, ...], list[tuple[str, str]]] = {}
    for key, *values in unread[1:]:
        readers = tuple(at for at, value in enumerate(values, 1) if value != "–")
        by_readers.setdefault(readers, []).append((key, values[readers[0] - 1]))
    lines = []
    for readers, members in sorted(by_readers.items()):
        kinds = Counter(key.rpartition(".")[0] for key, _ in members)
        told = dict.fromkeys(
            f"{kind}.* ({kinds[kind]} keys)" if kinds[kind := key.rpartition(".")[0]] > 3 else f"{key}={value}"
            for key, value in members
        )
        lines.append(f"read by {', '.join(map(str, readers))} only: {', '.join(told)}")
    return lines


def csv_text(comparison: Comparison) -> str:
    """Everything as numbers, a row a group: metrics with intervals, difference, cost, what differs in configuration."""
    names = [name for name in METRICS if any(name in measures for measures in comparison.measures)]
    differing = configuration(comparison.groups)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([
        "number", "label", "runs", "run_ids", "pictures",
        *(column for name in names for column in (name, f"{name}_low", f"{name}_high")),
        "difference", "difference_low", "difference_high", "paired_pictures", "p_value", "only_first_right",
        "only_this_right", "pictures_needed", "seconds", "epoch_seconds", *differing,
    ])  # fmt: skip
    for at, (group, label, found) in enumerate(
        zip(comparison.groups, comparison.labels, comparison.differences, strict=True)
    ):
        paired = found.paired if found else None
        measures = [comparison.measures[at].get(name, Interval(math.nan)) for name in names]
        row = [
            at + 1, " ".join(label), len(group.runs), " ".join(run.run_id for run in group.runs), len(group.pictures),
            *(value for one in measures for value in one),
            *((found.value, found.low, found.high) if found else (None,) * 3),
            *((paired.pictures, paired.p_value, paired.only_a, paired.only_b) if paired else (None,) * 4),
            found.needed if found else None, group.seconds, group.epoch_seconds,
            *(values[at] for values in differing.values()),
        ]  # fmt: skip
        writer.writerow(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row])
    return text.getvalue()
