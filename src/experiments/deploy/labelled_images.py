"""Labelled images on which a finished model is evaluated: a folder for each class, or a CSV file."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from experiments.config.messages import nearest_hint
from experiments.data.issues import DataIssue, printable
from experiments.data.listing import SPLIT_NAMES, is_image, is_litter, name_key, walk
from experiments.data.types import SPLITS
from experiments.errors import ConfigError


class LabelledFiles(NamedTuple):
    """Image files with the class of each, before any is read."""

    place: Path  # the folder or the CSV file, absolute
    root: Path  # absolute
    files: list[tuple[str, str]]  # path relative to the root, and class of the model
    notes: list[str]  # sentences about files that are not among them
    issues: Sequence[DataIssue] = ()  # rows of the CSV file that cannot be used


def find(
    place: Path, classes: Sequence[str], split: str | None, ignore_unknown: bool,
    merged: Mapping[str, Sequence[str]] | None = None,
) -> LabelledFiles:  # fmt: skip
    """Return the labelled images in a folder, or those that a CSV file lists.

    The images of a class are those in and below the folder with its name; of names that look the same (composed
    letters, spaces at the ends), either fits. Images of the classes of the data that were `merged` into a class of the
    model are taken as well; those of classes that it does not have are an error, or left out with `ignore_unknown`.

    Raises:
        ConfigError: the place, the split or a class is not known, an image has two classes, or there are no images.
        DataError: a folder cannot be listed.
    """
    place = Path(os.path.abspath(place.expanduser()))
    issues: Sequence[DataIssue] = ()
    if place.is_dir():
        root, files, notes = _in_folders(place, classes, split)
    elif place.is_file() and place.suffix.lower() in (".csv", ".tsv"):
        root, files, notes, issues = _in_table(place, split)
    else:
        problem = "is neither a folder nor a CSV file" if place.exists() else "does not exist"
        raise ConfigError(f"{place}: {problem}. Allowed: a folder with a folder for each class, or a CSV file")
    known = {name_key(name): new for new, names in (merged or {}).items() for name in names}
    known |= {name_key(name): name for name in classes}
    unknown = Counter(name for _, name in files if name_key(name) not in known)
    if unknown and not ignore_unknown:
        lines = [
            f"  {printable(name)} ({count:,} images){nearest_hint(name, classes)}"
            for name, count in sorted(unknown.items())
        ]
        allowed = f"Allowed: {', '.join(classes)}. Rename them, or leave them out with --ignore-unknown"
        raise ConfigError("\n".join([f"{place}: the model does not have these classes:", *lines, allowed]))
    if unknown:
        count = f"{unknown.total():,} images of {len(unknown)} classes"
        notes.append(f"Left out: {count} that the model does not have ({', '.join(map(printable, unknown))})")
    files = [(path, known[name_key(name)]) for path, name in files if name_key(name) in known]
    if not files:
        found = "".join(f". {note}" for note in notes)
        allowed = "Allowed: a folder with a folder for each class, or a CSV file"
        raise ConfigError(f"{place}: no image of the model's classes ({', '.join(classes)}) is in it{found}. {allowed}")
    if ignore_unknown:
        issues = [issue for issue in issues if not issue.class_name or name_key(issue.class_name) in known]
    absent = sorted(set(classes) - {name for _, name in files})
    if absent:
        notes.append(f"Without images: {', '.join(map(printable, absent))}")
    return LabelledFiles(place, root, files, notes, issues)


def _in_folders(
    place: Path, classes: Sequence[str], split: str | None
) -> tuple[Path, list[tuple[str, str]], list[str]]:
    """Return the root, the files with their folders' names as classes, and notes."""
    entries = sorted(os.listdir(place))
    splits = defaultdict(list)
    for name in entries:
        if name.lower() in SPLIT_NAMES and name not in classes and (place / name).is_dir():
            splits[SPLIT_NAMES[name.lower()]].append(name)
    if split is not None:
        if split not in splits:
            raise ConfigError(
                f"--split: {place} has no folder for {split}. Allowed here: {', '.join(splits) or 'none'}"
            )
        if len(splits[split]) > 1:
            both = " and ".join(splits[split])
            raise ConfigError(f"--split: {place} has several folders for {split}: {both}. Join them, or give one alone")
        place = place / splits[split][0]
        entries = sorted(os.listdir(place))
    elif splits:
        raise ConfigError(f"{place} has splits: choose one with --split. Allowed: {', '.join(splits)}")
    files, others = [], 0
    for name in entries:
        if is_litter(name):
            continue
        if not (place / name).is_dir():
            others += is_image(name)
            continue
        found, left = walk(str(place / name))
        files += [(os.path.relpath(path, place), name) for path in found]
        others += left
    number = f"{others:,} file{'' if others == 1 else 's'}"
    notes = [f"Passed over, as of no image type or outside the folders of classes: {number}"] if others else []
    return place, files, notes


def _in_table(file: Path, split: str | None) -> tuple[Path, list[tuple[str, str]], list[str], list[DataIssue]]:
    """Return the root, the files with their classes, notes, and an issue for each row that cannot be used."""
    from experiments.data.sources.csv_labels import list_rows, read_table

    try:
        table = read_table(file, None, None, None if split else "")
        given = {row.split for row in table.rows}
        if split:
            table = replace(table, rows=[row for row in table.rows if row.split == split])
        listing = list_rows(table, file.parent, count_others=split is None) if table.rows else None
    except ConfigError as error:  # names keys of `data=csv`, and there are none here
        raise ConfigError(
            f"{error}. Of images to evaluate on, the paths are relative to the folder of the CSV file, and its columns "
            "are found by their names, such as path and label"
        ) from None
    if listing is None:
        allowed = ", ".join(name for name in SPLITS if name in given) or "none"
        raise ConfigError(f"--split: {file} has no rows of {split}. Allowed here: {allowed}")
    if fatal := [issue for issue in listing.issues if not issue.skippable]:
        more = f" (and {len(fatal) - 1} more)" if len(fatal) > 1 else ""
        raise ConfigError(f"{file}: {printable(fatal[0].path)} {fatal[0].text}{more}")
    files = [(image.path, image.class_name) for image in listing.images]
    return listing.root, files, list(listing.notes), listing.issues
