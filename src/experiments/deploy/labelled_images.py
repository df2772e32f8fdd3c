"""Labelled images on which a finished model is evaluated: a folder for each class, or a CSV file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.config.messages import nearest
from experiments.data.issues import printable
from experiments.data.listing import SPLIT_NAMES, is_image, is_litter, name_key, walk
from experiments.errors import ConfigError


class Labelled(NamedTuple):
    """Image files with the class of each, before any is read."""

    place: Path  # the folder or the CSV file, absolute
    root: Path  # absolute
    files: list[tuple[str, str]]  # path relative to the root, and class of the model
    notes: list[str]  # sentences about files that are not among them


def find(place: Path, classes: Sequence[str], split: str | None, ignore_unknown: bool) -> Labelled:
    """Return the labelled images in a folder, or those that a CSV file lists.

    The images of a class are those in and below the folder with its name; of names that look the same (composed
    letters, spaces at the ends), either fits.

    Args:
        place: a folder that has a folder for each class, or such folders for each split; or a CSV file, as `data=csv`.
        classes: those of the model.
        split: the split to use; None if the folder has no splits, or for all rows of the CSV file.
        ignore_unknown: whether images of classes that the model does not have are left out, instead of an error.

    Raises:
        ConfigError: the place, the split or a class is not known, or there are no images.
    """
    place = Path(os.path.abspath(place.expanduser()))
    if place.is_dir():
        root, files, notes = _in_folders(place, classes, split)
    elif place.is_file() and place.suffix.lower() in (".csv", ".tsv"):
        root, files, notes = _in_table(place, split)
    else:
        problem = "is neither a folder nor a CSV file" if place.exists() else "does not exist"
        raise ConfigError(f"{place}: {problem}. Allowed: a folder with a folder for each class, or a CSV file")
    known = {name_key(name): name for name in classes}
    unknown = Counter(name for _, name in files if name_key(name) not in known)
    if unknown and not ignore_unknown:
        raise ConfigError("\n".join([f"{place}: the model does not have these classes:", *_unknown(unknown, classes)]))
    if unknown:
        count = f"{unknown.total():,} images of {len(unknown)} classes"
        notes.append(f"Left out: {count} that the model does not have ({', '.join(map(printable, unknown))})")
    files = [(path, known[name_key(name)]) for path, name in files if name_key(name) in known]
    if not files:
        raise ConfigError(f"{place}: no image of the model's classes ({', '.join(classes)}) is in it")
    absent = sorted(set(classes) - {name for _, name in files})
    if absent:
        notes.append(f"Without images: {', '.join(map(printable, absent))}")
    return Labelled(place, root, files, notes)


def _unknown(unknown: Counter[str], classes: Sequence[str]) -> list[str]:
    lines = []
    for name, count in sorted(unknown.items()):
        close = nearest(name, classes)
        lines.append(f"  {printable(name)} ({count:,} images)" + (f". Nearest: {close}" if close else ""))
    return [*lines, f"Allowed: {', '.join(classes)}. Rename them, or leave them out with --ignore-unknown"]


def _in_folders(
    place: Path, classes: Sequence[str], split: str | None
) -> tuple[Path, list[tuple[str, str]], list[str]]:
    """Return the root, the files with their folders' names as classes, and notes."""
    entries = sorted(os.listdir(place))
    splits = {SPLIT_NAMES[name.lower()]: name for name in entries
              if name.lower() in SPLIT_NAMES and name not in classes and (place / name).is_dir()}  # fmt: skip
    if split is not None:
        if split not in splits:
            raise ConfigError(
                f"--split: {place} has no folder for {split}. Allowed here: {', '.join(splits) or 'none'}"
            )
        place = place / splits[split]
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
    notes = [f"Passed over, as of no image type or outside the folders of classes: {others:,} files"] if others else []
    return place, files, notes


def _in_table(file: Path, split: str | None) -> tuple[Path, list[tuple[str, str]], list[str]]:
    """Return the root, the files with their classes, and notes."""
    from experiments.data.sources.csv_labels import csv_labels

    listing = csv_labels(
        labels=str(file), images=None, path_column=None, label_column=None,
        split_column=None if split else "", cache=Path(),
    )  # fmt: skip
    if split is not None and split not in listing.splits:
        raise ConfigError(
            f"--split: {file} has no rows of {split}. Allowed here: {', '.join(listing.splits) or 'none'}"
        )
    files = [(image.path, image.class_name) for image in listing.images if split in (None, image.split)]
    notes = [f"Not used: {printable(issue.path)}: {issue.text}" for issue in listing.issues]
    return listing.root, files, [*listing.notes, *notes]
