"""Listing of the image files of a data set, from directories: the class, split and group of each."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from experiments.data.issues import DataIssue, printable
from experiments.data.types import SPLITS, SkippedImage
from experiments.errors import DataError
from experiments.images.plugins import SUFFIXES
from experiments.storage.csv_files import encodable

LAYOUTS = (
    "root/<class>/ for every class; or root/train/<class>/, with root/validation/<class>/ and root/test/<class>/ "
    "where there are such images (val, valid, dev, training and testing are read, too, in any case)"
)

SPLIT_NAMES = {  # lower case
    **{split: split for split in SPLITS},
    "training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test",
}  # fmt: skip
# Names that are not read as splits, but are hardly those of classes: train_set, 2-val, test1.
_LIKE_SPLIT = re.compile(rf"[\W\d_]*({'|'.join(SPLIT_NAMES)})[\W\d_]*(set|data|images)?[\W\d_]*", re.IGNORECASE)
_OUTSIDE = "a file outside the class folders; move it into its class's folder, or elsewhere"
_NOT_LISTED = "cannot be listed ({}); check the path and its permissions"
# What systems, file servers and image browsers leave in folders, beside entries whose names begin with a dot.
_LITTER = re.compile(
    r"""
    thumbs\.db(:encryptable)? | ehthumbs(_vista)?\.db | desktop\.ini | folder\.htt | picasa\.ini | zbthumbnail\.info
    | system\ volume\ information | \$recycle\.bin | found\.\d{3} | .*:zone\.identifier        # Windows
    | __macosx | icon(\r|\^m|\uf00d) | network\ trash\ folder | temporary\ items               # macOS
    | lost\+found | [~@\#](recycle|snapshot|recently-snapshot) | @tmp | @eadir | .*@syno\w+       # file servers
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


class ListedImage(NamedTuple):
    """An image file, with what is known of it before it is read."""

    path: str  # relative to the root, with forward slashes
    class_name: str
    split: str = ""  # one of SPLITS; empty while it is not decided
    group: str = ""  # images of one group (of one patient, say) stay in one split; empty: there are no groups


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
    folders: Mapping[str, str] = field(default_factory=dict)  # split -> its directory, if the splits are directories
    notes: list[str] = field(default_factory=list)  # sentences on how the directories are understood


def is_litter(name: str) -> bool:
    """Return whether a file or directory is ignored: left by a system, a file server or an image browser, or hidden."""
    return name.startswith(".") or _LITTER.fullmatch(name) is not None


def list_images(root: Path) -> Listing:
    """Return the image files of every class directory; everything else, unless it is ignored, is an issue."""
    issues: list[DataIssue] = []
    notes: list[str] = []
    top = _directories(root, "", issues)
    folders = _split_folders(root, top, issues, notes)
    if folders:
        groups = [(split, name) for split in folders for name in _directories(root, folders[split], issues)]
    else:
        groups = [("", name) for name in top]
    class_of = class_names((name for _, name in groups), notes)
    _compare_classes(folders, {(split, class_of[name]) for split, name in groups}, issues)
    classes = sorted(set(class_of.values()))
    if len(classes) < 2:
        names = ", ".join(map(printable, classes)) or "none"
        text = f"two or more classes are needed, found {names}; set data.root to a folder laid out as {LAYOUTS}"
        if len(top) == 1 and not folders and len(_directories(root, top[0], [])) > 1:
            text += f". Is it {printable(str(root / top[0]))}?"
        outside = sum(issue.text == _OUTSIDE and is_image(issue.path) for issue in issues)
        if outside and not groups:
            issues = [issue for issue in issues if issue.text != _OUTSIDE]
            text += f". Its {outside:,} images are in no class folder: if the classes are in their names, use "
            text += "data=filenames 'data.pattern=\"(?P<label>[a-z]+)\\.\\d+\\.jpg\"' (for cat.0.jpg); if in a CSV "
            text += "file, data=csv"
        issues.append(DataIssue(str(root), text, skippable=False))
    images = []
    for split, name in groups:
        found: list[DataIssue] = []
        paths = _list_class(root, f"{folders[split]}/{name}" if split else name, found)
        images += [ListedImage(path, class_of[name], split) for path in paths]
        issues += [issue._replace(class_name=class_of[name]) for issue in found]
    return Listing(root, images, classes, list(folders), issues, folders=folders, notes=notes)


def _split_folders(root: Path, top: Sequence[str], issues: list[DataIssue], notes: list[str]) -> dict[str, str]:
    """Return the directory of each split, in the order of SPLITS; none if the top directories are classes.

    A directory that has the name of a split is a class if it stands beside other classes and has no directories itself.
    Where all names resemble those of splits (train_set and val_set, train and test1), none is a class.
    """
    named = {name: SPLIT_NAMES[name.lower()] for name in top if name.lower() in SPLIT_NAMES}
    others = [name for name in top if name not in named]
    alike = {name: SPLIT_NAMES[like[1].lower()] for name in top if (like := _LIKE_SPLIT.fullmatch(name))}
    are_splits = len(alike) == len(top) and "train" in alike.values() and len({*alike.values()}) > 1
    if not are_splits and (not named or (others and not any(_holds_classes(root, name) for name in named))):
        notes += [f"{name} is a class here, as {printable(others[0])} is, and not a split" for name in named]
        return {}
    renamed = {name: alike[name] for name in others if name in alike and alike[name] not in named.values()}
    for name in others:
        remedy = f"rename it to {renamed[name]}, or move it" if name in renamed else "move it"
        text = f"is none of {', '.join(SPLITS)}; {remedy} out of the root. Allowed: {LAYOUTS}"
        issues.append(DataIssue(name, text, skippable=False))
    if are_splits:  # so that their classes are listed
        named |= renamed
    found: dict[str, str] = {}
    for name, split in sorted(named.items(), key=lambda item: SPLITS.index(item[1])):
        if found.setdefault(split, name) != name:
            text = f"is the {split} split, and so is {found[split]}; join the two, or move one out of the root"
            issues.append(DataIssue(name, text, skippable=False))
        elif name != split and name not in renamed:
            notes.append(f"{name} is read as the {split} split")
    if "train" not in found:
        text = "is missing; make root/train/<class>/, or put all images into root/<class>/, "
        issues.append(DataIssue("train", text + "which data.fractions then splits", skippable=False))
    if "test" in found:
        known = [name for split in found if split != "test" for name in _directories(root, found[split], [])]
        if note := _unlabelled(root, found["test"], known):
            notes.append(note)
            del found["test"]
    return found


def _holds_classes(root: Path, folder: str) -> bool:
    entries = _scan(root, folder, [])
    return any(_kind(entry) == "directory" for entry in entries) and not any(is_image(entry.name) for entry in entries)


def _unlabelled(root: Path, test: str, classes: Sequence[str]) -> str | None:
    """Return the note on a test directory that has no class directories, and None for any other.

    A single directory in it that is no class of the other splits (`test/unknown/`) is none.
    """
    entries = _scan(root, test, [])
    folders = [entry.name for entry in entries if _kind(entry) == "directory"]
    if len(folders) > 1 or (folders and folders[0].casefold() in (name.casefold() for name in classes)):
        return None
    if folders:
        entries += _scan(root, f"{test}/{folders[0]}", [])
    count = sum(is_image(entry.name) for entry in entries)
    return (
        f"{test} has no folder for each class: its {count:,} images have no labels and are left aside "
        "(experiments predict RUN FOLDER classifies them)"
    )


def name_key(name: str) -> str:
    """Return what names of classes that look the same have in common: composed letters, no spaces at the ends."""
    return unicodedata.normalize("NFC", name).strip() or name


def class_names(names: Iterable[str], notes: list[str]) -> dict[str, str]:
    """Return the class of each name; names that look the same are one class, which is noted."""
    alike = defaultdict(list)
    for name in dict.fromkeys(names):
        alike[name_key(name)].append(name)
    class_of: dict[str, str] = {}
    for key, variants in alike.items():
        class_of |= dict.fromkeys(variants, key if len(variants) > 1 else variants[0])
        if len(variants) > 1:
            notes.append(f"{' and '.join(map(ascii, sorted(variants)))} are one class: their names look the same")
    return class_of


def _compare_classes(folders: Mapping[str, str], groups: Collection[tuple[str, str]], issues: list[DataIssue]) -> None:
    """Add an issue for each class that a split lacks, though another has it."""
    for class_name in sorted({class_name for _, class_name in groups}):
        having = [folder for split, folder in folders.items() if (split, class_name) in groups]
        for folder in folders.values():
            if folder not in having:
                there = f"{' and '.join(having)} {'has' if len(having) == 1 else 'have'} it"
                text = f"this class is missing, though {there}; "
                text += "make the folder, or remove or rename the class there: all splits must have the same classes"
                issues.append(DataIssue(f"{folder}/{class_name}", text, False, class_name, lacks_images=True))


def _directories(root: Path, folder: str, issues: list[DataIssue]) -> list[str]:
    """Return the names of the directories in the root (`folder` "") or in the directory of a split."""
    names = []
    for entry in _scan(root, folder, issues):
        path = f"{folder}/{entry.name}" if folder else entry.name
        kind = _kind(entry)
        if kind == "directory" and encodable(entry.name) != entry.name:
            text = "a folder name that is not UTF-8, and it would name a class; rename it"
            issues.append(DataIssue(path, text, skippable=False))
        elif kind == "directory":
            names.append(entry.name)
        elif folder or is_image(entry.name):
            issues.append(DataIssue(path, _OUTSIDE, skippable=True))
    return names


def _list_class(root: Path, folder: str, issues: list[DataIssue]) -> list[str]:
    """Return the paths of the images in a class directory, sorted."""
    paths, inner = [], []
    entries = _scan(root, folder, issues)
    for entry in entries:
        path = f"{folder}/{entry.name}"
        kind = _kind(entry)
        if kind == "directory":
            inner.append(entry.name)
        elif kind != "file":
            issues.append(DataIssue(path, kind, skippable=True))
        elif not is_image(entry.name):
            types = " ".join(SUFFIXES)
            text = f"not of a type read here ({types}); if an image, convert to PNG or JPEG, else move it elsewhere"
            issues.append(DataIssue(path, text, skippable=True))
        else:
            paths.append(path)
    if inner:
        pattern = ("(?P<split>[^/]+)/" if "/" in folder else "") + "(?P<label>[^/]+)/.+"
        if "/" not in folder and all(name.lower() in SPLIT_NAMES for name in inner):
            pattern = "(?P<label>[^/]+)/(?P<split>[^/]+)/.+"
        text = f"folders inside a class folder are not read, such as {printable(inner[0])}; move their images up into "
        text += f"it, or them elsewhere, or read classes from paths: data=filenames 'data.pattern=\"{pattern}\"'"
        issues.append(DataIssue(folder, text, skippable=False))
    if not entries and not any(issue.path == folder for issue in issues):
        text = "an empty class folder; add images, or remove the class from all splits"
        issues.append(DataIssue(folder, text, skippable=False, lacks_images=True))
    return paths


def _scan(root: Path, folder: str, issues: list[DataIssue]) -> list[os.DirEntry[str]]:
    """Return the entries of a directory that are not ignored, sorted by name."""
    path = os.path.join(root, folder)
    try:
        with os.scandir(path) as entries:
            kept = [entry for entry in entries if not is_litter(entry.name)]
    except OSError as error:
        issues.append(DataIssue(folder or str(root), _NOT_LISTED.format(error.strerror), skippable=False))
        return []
    return sorted(kept, key=lambda entry: entry.name)


def _kind(entry: os.DirEntry[str]) -> str:
    """Return "directory", "file", or why an entry is neither: reading a pipe, for example, would block forever."""
    with suppress(OSError):  # a loop of links
        if entry.is_dir():
            return "directory"
        if entry.is_file():
            return "file"
    link = "a link to nothing; restore what it points to or remove it"
    return link if entry.is_symlink() else "not a regular file; remove it"


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def walk(folder: str) -> tuple[list[str], int]:
    """Return the sorted image files in and below a directory, and the number of other files. Links are followed.

    Raises:
        DataError: If a directory cannot be listed.
    """

    def unreadable(error: OSError) -> None:
        raise DataError(f"{printable(str(error.filename))}: {_NOT_LISTED.format(error.strerror)}") from None

    files, others, visited = [], 0, set()
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in visited:  # visited already: a link leads back here
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_litter(name))
        for name in sorted(name for name in names if not is_litter(name)):
            if is_image(name):
                files.append(os.path.join(place, name))
            else:
                others += 1
    return files, others
