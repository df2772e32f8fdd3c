"""Data source for images whose classes are in the names of their files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from experiments.config.messages import nearest_hint
from experiments.data.issues import DataIssue
from experiments.data.listing import SPLIT_NAMES, ListedImage, Listing, class_names, walk
from experiments.data.sources.folder import existing
from experiments.data.types import SPLITS
from experiments.errors import ConfigError

_GROUPS = ("label", "split", "group")


def filenames(*, root: str | Path, pattern: str, cache: Path) -> Listing:
    r"""Return the images in and below a folder, each with the class that is in its name. Nothing is copied.

    An image that the pattern does not match is an issue.

    Args:
        root: The folder.
        pattern: A regular expression with a group called label, such as `(?P<label>[a-z]+)\.\d+\.jpg` for `cat.0.jpg`,
            and where there are such parts, groups called split and group (see `ListedImage`). It must match the whole
            name of every file; or, if it has a slash, the whole path below the folder.
        cache: Not used; every data source receives it.

    Raises:
        ConfigError: If the folder does not exist, or the pattern cannot be used or matches no image.
    """
    folder = existing("data.root", root, "a folder with images whose classes are in their names")
    expression = _compile(pattern)
    files, others = walk(str(folder))
    paths = [os.path.relpath(file, folder).replace(os.sep, "/") for file in files]
    images, issues = [], []
    for path in paths:
        found = expression.fullmatch(path if "/" in pattern else path.rpartition("/")[2])
        named = found.groupdict(default="") if found else {}
        if problem := _problem(named):
            issues.append(DataIssue(path, problem, skippable=True, class_name=named.get("label", "")))
        else:
            split = SPLIT_NAMES[named["split"].lower()] if "split" in named else ""
            images.append(ListedImage(path, named["label"], split, named.get("group", "")))
    if not images:
        such = f"{issues[0].path!r}" if issues else "none, as no image is in this folder or below it"
        raise ConfigError(
            f"data.pattern: matches none of the {len(paths)} images of {folder}. Such as: {such}. Received: {pattern!r}"
        )
    notes = [f"{others:,} files of other types are ignored"] if others else []
    class_of = class_names([*(image.class_name for image in images), *(issue.class_name for issue in issues)], notes)
    images = [image._replace(class_name=class_of[image.class_name]) for image in images]
    issues = [issue._replace(class_name=class_of[issue.class_name]) for issue in issues]
    given = {image.split for image in images}
    if given != {""} and "train" not in given:
        raise ConfigError(f"data.pattern: its group split is train for none of the images of {folder}")
    classes = sorted({image.class_name for image in images})
    if len(classes) < 2:
        problem = f"two or more classes are needed, its group label finds {classes[0]!r} in all names"
        raise ConfigError(f"data.pattern: {problem}")
    splits = [split for split in SPLITS if split in given]
    return Listing(folder, images, classes, splits, issues, notes=notes)


def _problem(named: Mapping[str, str]) -> str | None:
    """Return why the parts of a path cannot be used; there are none where the pattern does not match it."""
    if not named:
        return "data.pattern does not match it; widen the pattern, or move the file elsewhere"
    for name in ("label", "group"):
        if named.get(name) == "":
            return f"the group {name} of data.pattern is empty here"
    if "split" in named and named["split"].lower() not in SPLIT_NAMES:
        allowed = ", ".join(SPLIT_NAMES)
        return f"the group split of data.pattern must be one of {allowed}. Received: {named['split']!r}"
    return None


def _compile(pattern: str) -> re.Pattern[str]:
    """Return the expression of `data.pattern`, if it has the groups that are needed and no others."""
    example = r"""Such as: 'data.pattern="(?P<label>[a-z]+)\.\d+\.jpg"' for cat.0.jpg"""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        problem = f"is no regular expression: {error}. {example}"
        raise ConfigError(f"data.pattern: {problem}. Received: {pattern!r}") from None
    if unknown := sorted(set(expression.groupindex) - set(_GROUPS)):
        problem = f"unknown group {unknown[0]!r}. Allowed: {', '.join(_GROUPS)}{nearest_hint(unknown[0], _GROUPS)}"
        raise ConfigError(f"data.pattern: {problem}. Received: {pattern!r}")
    if "label" not in expression.groupindex:
        raise ConfigError(f"data.pattern: needs a group called label. {example}. Received: {pattern!r}")
    return expression
