"""Listing of the image files of a data set: the class, split and group of each.

`list_images` takes them from the directories below a root; a data source may return a listing of its own.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from experiments.data import decoder
from experiments.data.issues import DataIssue, printable
from experiments.data.types import SPLITS, SkippedImage

LAYOUTS = "root/train/<class>/ and root/validation/<class>/ (and root/test/<class>/), or root/<class>/ for every class"

_ALIASES = {"val": "validation", "valid": "validation", "training": "train", "testing": "test"}
IGNORED = ("__macosx", "thumbs.db", "desktop.ini")  # created by operating systems; lower case


class ListedImage(NamedTuple):
    path: str  # relative to the root, with forward slashes
    class_name: str
    split: str = ""  # one of SPLITS; empty while it is not decided
    group: str = ""  # images of one group (of one patient, say) stay in one split; empty: in a group of its own


@dataclass(frozen=True)
class Listing:
    """The images of a data set before any is read."""

    root: Path  # absolute
    images: list[ListedImage]
    classes: list[str]  # in the order of their labels; a class may be without images
    splits: list[str] = field(default_factory=list)  # those that the data gives, in SPLITS order; empty: none
    issues: list[DataIssue] = field(default_factory=list)
    skipped: list[SkippedImage] = field(default_factory=list)  # set aside whatever data.on_bad is; logged and recorded
    # Further facts that data.group can name: column -> path -> value.
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def list_images(root: Path) -> Listing:
    """Return the image files of every class directory; the top directories are the splits or the classes.

    Everything else, unless it is ignored, is an issue.
    """
    issues: list[DataIssue] = []
    top = _directories(root, "", issues)
    if any(_split_name(name) for name in top):
        _check_splits(top, issues)
        splits = [split for split in SPLITS if split in top]
        groups = [(split, name) for split in splits for name in _directories(root, split, issues)]
        _compare_classes(splits, groups, issues)
    else:
        splits, groups = [], [("", name) for name in top]
    classes = sorted({class_name for _, class_name in groups})
    if len(classes) < 2:
        names = ", ".join(map(printable, classes)) or "none"
        text = f"two or more classes are needed, found {names}; set data.root to a folder laid out as {LAYOUTS}"
        issues.append(DataIssue(str(root), text, skippable=False))
    images = []
    for split, class_name in groups:
        found: list[DataIssue] = []
        paths = _list_class(root, f"{split}/{class_name}" if split else class_name, found)
        images += [ListedImage(path, class_name, split) for path in paths]
        issues += [issue._replace(class_name=class_name) for issue in found]
    return Listing(root, images, classes, splits, issues)


def _check_splits(folders: Sequence[str], issues: list[DataIssue]) -> None:
    for name in folders:
        split = _split_name(name)
        if split is None:
            text = f"is none of {', '.join(SPLITS)}; move it out of the root. Allowed: {LAYOUTS}"
            issues.append(DataIssue(name, text, skippable=False))
        elif name != split:
            issues.append(DataIssue(name, f"is not the name of a split; rename to {split}", skippable=False))
    for split in ("train", "validation"):
        if not any(_split_name(name) == split for name in folders):
            text = f"is missing; make root/{split}/<class>/, or put all images into root/<class>/, "
            issues.append(DataIssue(split, text + "which data.fractions then splits", skippable=False))


def _split_name(name: str) -> str | None:
    lowered = name.lower()
    return lowered if lowered in SPLITS else _ALIASES.get(lowered)


def _compare_classes(splits: Sequence[str], groups: Collection[tuple[str, str]], issues: list[DataIssue]) -> None:
    """Add an issue for each class that a split lacks, though another has it."""
    for class_name in sorted({class_name for _, class_name in groups}):
        having = [split for split in splits if (split, class_name) in groups]
        for split in splits:
            if split not in having:
                there = f"{' and '.join(having)} {'has' if len(having) == 1 else 'have'} it"
                text = f"this class is missing, though {there}; "
                text += "make the folder, or remove or rename the class there: all splits must have the same classes"
                issues.append(DataIssue(f"{split}/{class_name}", text, skippable=False, class_name=class_name))


def _directories(root: Path, split: str, issues: list[DataIssue]) -> list[str]:
    """Return the names of the directories in the root (`split` "") or in the directory of a split."""
    names = []
    for entry in _scan(root, split, issues):
        path = f"{split}/{entry.name}" if split else entry.name
        kind = _kind(entry)
        if kind == "directory" and not _is_text(entry.name):
            text = "a folder name that is not UTF-8, and it would name a class; rename it"
            issues.append(DataIssue(path, text, skippable=False))
        elif kind == "directory":
            names.append(entry.name)
        elif split or is_image(entry.name):
            text = "a file outside the class folders; move it into its class's folder, or elsewhere"
            issues.append(DataIssue(path, text, skippable=True))
    return names


def _list_class(root: Path, folder: str, issues: list[DataIssue]) -> list[str]:
    """Return the paths of the images in a class directory, sorted."""
    paths = []
    entries = _scan(root, folder, issues)
    for entry in entries:
        path = f"{folder}/{entry.name}"
        kind = _kind(entry)
        if kind == "directory":
            text = "a folder inside a class folder; move its images up into the class folder, or it elsewhere"
            issues.append(DataIssue(path, text, skippable=False))
        elif kind == "dangling link":
            issues.append(DataIssue(path, "a link to nothing; restore what it points to or remove it", skippable=True))
        elif kind == "special file":
            issues.append(DataIssue(path, "not a regular file; remove it", skippable=True))
        elif not is_image(entry.name):
            types = " ".join(decoder.SUFFIXES)
            text = f"not of a type read here ({types}); if an image, convert to PNG or JPEG, else move it elsewhere"
            issues.append(DataIssue(path, text, skippable=True))
        else:
            paths.append(path)
    if not entries and not any(issue.path == folder for issue in issues):
        text = "an empty class folder; add images, or remove the class from all splits"
        issues.append(DataIssue(folder, text, skippable=False))
    return paths


def _scan(root: Path, folder: str, issues: list[DataIssue]) -> list[os.DirEntry[str]]:
    """Return the entries of a directory that are not ignored, sorted by name."""
    path = os.path.join(root, folder)
    try:
        with os.scandir(path) as entries:
            kept = [entry for entry in entries if entry.name[0] != "." and entry.name.lower() not in IGNORED]
    except OSError as error:
        text = f"cannot be listed ({error.strerror}); check the path and its permissions"
        issues.append(DataIssue(folder or str(root), text, skippable=False))
        return []
    return sorted(kept, key=lambda entry: entry.name)


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "directory"
        if entry.is_file():
            return "file"
    except OSError:  # a loop of links
        pass
    return "dangling link" if entry.is_symlink() else "special file"  # reading a pipe would block forever


def _is_text(name: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in name)  # Python decodes invalid bytes to these


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in decoder.SUFFIXES
