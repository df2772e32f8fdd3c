"""Listing of the image files and the issues below a data set's root."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.data import decoder
from experiments.data.types import SPLITS

LAYOUTS = "root/train/<class>/ and root/validation/<class>/ (and root/test/<class>/), or root/<class>/ for every class"

_ALIASES = {"val": "validation", "valid": "validation", "training": "train", "testing": "test"}
IGNORED = ("__macosx", "thumbs.db", "desktop.ini")  # created by operating systems; lower case

Groups = dict[tuple[str, str], list[str]]  # (split, class) -> paths; the split is "" while it is not decided


class DataIssue(NamedTuple):
    path: str
    text: str  # what is wrong; what to do
    skippable: bool  # whether data.on_bad=skip can skip this file


def list_images(root: Path, faults: list[DataIssue]) -> tuple[Groups, bool]:
    """Return the image files of every class directory, by name, and whether the top directories are the splits.

    Everything else, unless it is ignored, is added to `faults`.
    """
    groups: Groups = {}
    folders = _folders(root, "", faults)
    presplit = any(_split_name(name) for name in folders)
    if presplit:
        _check_splits(folders, faults)
        present = [split for split in SPLITS if split in folders]
        groups = {(split, name): [] for split in present for name in _folders(root, split, faults)}
        _compare_classes(present, groups, faults)
    else:
        groups = {("", name): [] for name in folders}
    classes = sorted({class_name for _, class_name in groups})
    if len(classes) < 2:
        names = ", ".join(printable(name) for name in classes) or "none"
        text = f"two or more classes are needed, found {names}; set data.root to a folder laid out as {LAYOUTS}"
        faults.append(DataIssue(str(root), text, skippable=False))
    for (split, class_name), members in groups.items():
        _list_class(root, f"{split}/{class_name}" if split else class_name, members, faults)
    return groups, presplit


def _check_splits(folders: Sequence[str], faults: list[DataIssue]) -> None:
    for name in folders:
        split = _split_name(name)
        if split is None:
            text = f"is none of {', '.join(SPLITS)}; move it out of the root. Allowed: {LAYOUTS}"
            faults.append(DataIssue(name, text, skippable=False))
        elif name != split:
            faults.append(DataIssue(name, f"is not the name of a split; rename to {split}", skippable=False))
    for split in ("train", "validation"):
        if not any(_split_name(name) == split for name in folders):
            text = f"is missing; make root/{split}/<class>/, or put all images into root/<class>/, "
            faults.append(DataIssue(split, text + "which data.fractions then splits", skippable=False))


def _split_name(name: str) -> str | None:
    lowered = name.lower()
    return lowered if lowered in SPLITS else _ALIASES.get(lowered)


def _compare_classes(present: Sequence[str], groups: Groups, faults: list[DataIssue]) -> None:
    for class_name in sorted({class_name for _, class_name in groups}):
        having = [split for split in present if (split, class_name) in groups]
        for split in present:
            if split not in having:
                there = f"{' and '.join(having)} {'has' if len(having) == 1 else 'have'} it"
                text = f"this class is missing, though {there}; "
                text += "make the folder, or remove or rename the class there: all splits must have the same classes"
                faults.append(DataIssue(f"{split}/{class_name}", text, skippable=False))


def _folders(root: Path, split: str, faults: list[DataIssue]) -> list[str]:
    """Return the names of the directories in the root (`split` "") or in the directory of a split."""
    names = []
    for entry in _scan(root, split, faults):
        path = f"{split}/{entry.name}" if split else entry.name
        kind = _kind(entry)
        if kind == "folder" and not _is_text(entry.name):
            text = "a folder name that is not UTF-8, and it would name a class; rename it"
            faults.append(DataIssue(path, text, skippable=False))
        elif kind == "folder":
            names.append(entry.name)
        elif split or is_image(entry.name):
            text = "a file outside the class folders; move it into its class's folder, or elsewhere"
            faults.append(DataIssue(path, text, skippable=True))
    return names


def _list_class(root: Path, folder: str, members: list[str], faults: list[DataIssue]) -> None:
    entries = _scan(root, folder, faults)
    for entry in entries:
        path = f"{folder}/{entry.name}"
        kind = _kind(entry)
        if kind == "folder":
            text = "a folder inside a class folder; move its images up into the class folder, or it elsewhere"
            faults.append(DataIssue(path, text, skippable=False))
        elif kind == "dangling link":
            faults.append(DataIssue(path, "a link to nothing; restore what it points to or remove it", skippable=True))
        elif kind == "special file":
            faults.append(DataIssue(path, "not a regular file; remove it", skippable=True))
        elif not is_image(entry.name):
            types = " ".join(decoder.SUFFIXES)
            text = f"not of a type read here ({types}); if an image, convert to PNG or JPEG, else move it elsewhere"
            faults.append(DataIssue(path, text, skippable=True))
        else:
            members.append(path)
    if not entries and not any(fault.path == folder for fault in faults):
        text = "an empty class folder; add images, or remove the class from all splits"
        faults.append(DataIssue(folder, text, skippable=False))


def _scan(root: Path, folder: str, faults: list[DataIssue]) -> list[os.DirEntry[str]]:
    path = os.path.join(root, folder)
    try:
        with os.scandir(path) as entries:
            wanted = [entry for entry in entries if entry.name[0] != "." and entry.name.lower() not in IGNORED]
    except OSError as error:
        text = f"cannot be listed ({error.strerror}); check the path and its permissions"
        faults.append(DataIssue(folder or str(root), text, skippable=False))
        return []
    return sorted(wanted, key=lambda entry: entry.name)


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a loop of links
        pass
    return "dangling link" if entry.is_symlink() else "special file"  # reading a pipe would block forever


def _is_text(name: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in name)  # Python decodes invalid bytes to these


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in decoder.SUFFIXES


def printable(text: str) -> str:
    """Return a name as it is, or quoted and escaped if it has characters that a terminal or a log cannot show."""
    return text if text.isprintable() else repr(text)
