"""Groups: images of one patient, camera or video, which stay in one split and in one fold.

A model recognises what the images of a group have in common. If a group were in two splits, the scores would measure
how well it does that, and not how well it does on new patients.
"""

from __future__ import annotations

import random
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from experiments.config.messages import nearest_hint
from experiments.config.overrides import as_typed
from experiments.data.issues import DataIssue, printable
from experiments.data.listing import ListedImage, Listing
from experiments.data.splitting import split_counts
from experiments.errors import ConfigError

_LIKELY_COLUMNS = r"(patient|subject|person|case|group|camera|video|slide)([ _-]?(id|nr|no|number|name))?"
_MOST_PARTS = 100  # into which the groups are divided to form the splits
_TRIES = 100  # assignments of the parts to the splits, until every split has every class


def note_on_columns(listing: Listing) -> str | None:
    """Return the sentence on a column that probably names groups, and None if there is none."""
    for name, values in listing.columns.items():
        if re.fullmatch(_LIKELY_COLUMNS, name, re.IGNORECASE):
            keep = f"{as_typed('data.group', name)} would keep the images of each in one split"
            count = len(set(values.values()))
            return f"column {name!r} has {count:,} values: {keep}; without it scores may be far too high"
    return None


def assign_groups(listing: Listing, group: str) -> Listing:
    """Return a listing in which every image has its group; images without one become issues.

    Args:
        listing: All images.
        group: A column of the listing; or a regular expression, which is searched in the path of an image: its group
            called group, else its first one, else all that it matches is the group of the image.

    Raises:
        ConfigError: If it is neither, matches no image, or puts all images into one group.
    """
    if group in listing.columns:
        groups = listing.columns[group]
        lacking = f"column {group!r} (data.group) is empty or differs between lines; write one group, or remove a line"
    else:
        expression = _compile(group, listing)
        which = "group" if "group" in expression.groupindex else min(expression.groups, 1)
        found_in = ((image.path, expression.search(image.path)) for image in listing.images)
        groups = {path: (found[which] or "") if found else "" for path, found in found_in}
        lacking = f"data.group={group} finds no group in this path; widen the expression, or move the file elsewhere"
    found = set(groups.values()) - {""}
    if len(found) < 2 and listing.images:
        what = f"finds one group for all images: {found.pop()!r}" if found else "finds no group in any path"
        raise ConfigError(f"data.group: {what}. A path is {listing.images[0].path!r}. Received: {group!r}")
    images = [image._replace(group=groups[image.path]) for image in listing.images]
    issues = [DataIssue(image.path, lacking, True, image.class_name) for image in images if not image.group]
    images = [image for image in images if image.group]
    return replace(listing, images=images, issues=[*listing.issues, *issues])


def _compile(group: str, listing: Listing) -> re.Pattern[str]:
    columns = ", ".join(map(repr, listing.columns))
    if listing.columns and group.isidentifier():  # a misspelt column, which may be a part of every path
        hint = nearest_hint(group, listing.columns)
        remedy = f"Columns: {columns}{hint}. Or give an expression that has a group: ({group})[0-9]+"
        raise ConfigError(f"data.group: there is no such column. {remedy}. Received: {group!r}")
    try:
        return re.compile(group)
    except re.error as error:
        allowed = f"a column ({columns}) or a regular expression" if columns else "a regular expression"
        raise ConfigError(f"data.group: must be {allowed}: {error}. Received: {group!r}") from None


def check_splits(images: Sequence[ListedImage]) -> list[DataIssue]:
    """Return an issue for every group that is in several splits."""
    places: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for image in images:
        places[image.group][image.split].append(image.path)
    issues = []
    for group, splits in places.items():
        if len(splits) > 1:
            where = [f"{split} ({len(paths)}, such as {printable(paths[0])})" for split, paths in splits.items()]
            text = f"this group (data.group) has images in {' and '.join(where)}; put all of them into one split"
            issues.append(DataIssue(group, text, skippable=False))
    return issues


def draw_splits(
    images: Sequence[ListedImage], fractions: Mapping[str, float], seed: int, place: str, issues: list[DataIssue]
) -> list[ListedImage]:
    """Split the groups so that the images of every class are divided as nearly by the fractions as groups allow.

    Images that are in the validation or test split already stay there. An issue is added for each class that a split
    lacks.
    """
    given = [image for image in images if image.split not in ("", "train")]
    drawn = [image for image in images if image.split in ("", "train")]
    if not drawn:  # the manifest reports that the training split is missing
        return given
    wanted = [split for split, share in fractions.items() if share > 0]
    split_of = _assign_parts(drawn, fractions, seed)
    drawn = [image._replace(split=split_of[image.group]) for image in drawn]
    having = {(image.split, image.class_name) for image in drawn}
    for name, of_class in _groups_of_classes(drawn).items():
        lacking = [split for split in wanted if (split, name) not in having]
        if lacking:
            number = f"{len(of_class)} group{'s' if len(of_class) > 1 else ''}"
            text = f"has images of {number} (data.group), which leaves none for {' and '.join(lacking)}; "
            remedy = "try another data.split_seed, or add images of other groups"
            if len(of_class) < len(wanted):
                remedy = "add images of other groups, or leave the class out: data.classes selects classes"
            issues.append(DataIssue(f"{place}{name}", text + remedy, skippable=False))
    return [*given, *drawn]


def _assign_parts(images: Sequence[ListedImage], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Return the split of each group.

    The groups are divided into equal parts, which are assigned to the splits at random, until every split has images of
    every class and about its share of all images. Otherwise the best of the random assignments is returned.
    """
    count = _number_of_parts(fractions, _most_parts(images))
    part_of = _divide(images, count, seed)
    classes: list[Counter[str]] = [Counter() for _ in range(count)]  # of each part: class -> images
    for image in images:
        classes[part_of[image.group]][image.class_name] += 1

    def rate(splits: Sequence[str]) -> tuple[int, float]:
        """Return how many classes the splits have, all together, and how near they come to their shares."""
        having = {(split, name) for split, of_part in zip(splits, classes, strict=True) for name in of_part}
        sizes = Counter[str]()
        for split, of_part in zip(splits, classes, strict=True):
            sizes[split] += of_part.total()
        return len(having), -max(abs(sizes[split] / len(images) - fractions[split]) for split in sizes)

    order = [split for split, number in split_counts(count, fractions).items() for _ in range(number)]
    rng = random.Random(seed)
    tries = [rng.sample(order, count) for _ in range(_TRIES)]
    good = (len(set(order)) * len({image.class_name for image in images}), -0.05)
    best = next((splits for splits in tries if rate(splits) > good), None) or max(tries, key=rate)
    return {group: best[part] for group, part in part_of.items()}


def draw_fold(
    images: Sequence[ListedImage], fold: int, folds: int, seed: int, place: str, issues: list[DataIssue]
) -> list[ListedImage]:
    """Divide the training images into the training and validation images of a fold, each group in one of the two.

    The former validation images are dropped; other splits stay as they are.
    """
    rest = [image for image in images if image.split not in ("train", "validation")]
    train = [image for image in images if image.split == "train"]
    for name, groups in _groups_of_classes(train).items():
        if len(groups) < folds:
            text = f"has training images of {len(groups)} groups (data.group), too few for data.folds={folds}; "
            remedy = "lower it, or add images of other groups"
            issues.append(DataIssue(f"{place}{name}", text + remedy, skippable=False))
    part_of = _divide(train, min(folds, _most_parts(train)), seed)
    drawn = (image._replace(split="validation" if part_of[image.group] == fold else "train") for image in train)
    return [*rest, *drawn]


def _groups_of_classes(images: Sequence[ListedImage]) -> dict[str, set[str]]:
    groups = defaultdict(set)
    for image in images:
        groups[image.class_name].add(image.group)
    return groups


def _most_parts(images: Sequence[ListedImage]) -> int:
    """Return the largest number of parts that the groups can be divided into (StratifiedGroupKFold's condition)."""
    largest = max(Counter(image.class_name for image in images).values(), default=0)
    return min(len({image.group for image in images}), largest)


def _number_of_parts(fractions: Mapping[str, float], most: int) -> int:
    """Return the number of equal parts of which the splits are best made up, the smallest of several."""
    shares = {split: share for split, share in fractions.items() if share > 0}
    possible = range(len(shares), min(most, _MOST_PARTS) + 1)

    def error(count: int) -> float:
        counts = split_counts(count, shares)
        return max(abs(counts[split] / count - share) for split, share in shares.items())

    good = (count for count in possible if error(count) < 0.01)
    return next(good, min(possible, key=error, default=max(most, 1)))


def _divide(images: Sequence[ListedImage], parts: int, seed: int) -> dict[str, int]:
    """Return the part of each group, from 0: parts of about as many images of every class."""
    if parts < 2:
        return dict.fromkeys((image.group for image in images), 0)
    from sklearn.model_selection import StratifiedGroupKFold

    ordered = sorted(images, key=lambda image: image.path)
    groups, classes = [image.group for image in ordered], [image.class_name for image in ordered]
    splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed % 2**32)
    part_of = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer images than parts
        for part, (_, chosen) in enumerate(splitter.split(classes, classes, groups)):
            part_of.update(dict.fromkeys((groups[at] for at in chosen), part))
    return part_of
