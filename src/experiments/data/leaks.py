"""Near-duplicates of a data set: found once for a set of files, then reported, kept in one split, or left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from experiments.data import near_duplicates
from experiments.data.issues import DataIssue, printable
from experiments.data.listing import ListedImage
from experiments.data.types import SPLITS, NearDuplicatePair, SkippedImage
from experiments.data.validation import ValidationResults
from experiments.storage import named_arrays

_PAIR = [("first", "i8"), ("second", "i8"), ("similarity", "f8"), ("mirrored", "?")]  # a `NearDuplicate`


def find_pairs(images: Sequence[ListedImage], results: ValidationResults) -> list[NearDuplicatePair]:
    """Return the near-duplicates among validated images; the pairs of a set of files are kept in the cache.

    Raises:
        DataError: If a file has changed since it was validated.
    """
    files = {results.sha256(image): image for image in images}
    hashes = sorted(files)
    file = results.cache / "near_duplicates" / f"{results.key(hashes, version=near_duplicates.VERSION)}.npz"
    kept = named_arrays.load(file, results)
    if not kept:
        found = near_duplicates.find_near_duplicates(results.thumbnails(files[sha256] for sha256 in hashes))
        kept = {"pairs": np.array(found, _PAIR)}
        named_arrays.write(file, kept)
    pairs = []
    for first, second, similarity, mirrored in kept["pairs"].tolist():
        one, other = sorted(files[hashes[at]].path for at in (first, second))
        pairs.append(NearDuplicatePair(one, other, round(similarity, 3), mirrored))
    return pairs


def group_copies(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the group of every name that is in a pair, directly or through others: its name -> the first of them."""
    from scipy.cluster.hierarchy import DisjointSet

    groups = DisjointSet()
    for first, second in pairs:
        groups.add(first)
        groups.add(second)
        groups.merge(first, second)
    return {name: min(members) for members in groups.subsets() for name in members}


def join_groups(images: Sequence[ListedImage], pairs: Iterable[NearDuplicatePair]) -> list[ListedImage]:
    """Return images with groups; groups that share copies of an image become one group."""
    groups = {image.path: image.group for image in images}
    joined = group_copies(
        (groups[pair.first], groups[pair.second]) for pair in pairs if pair.first in groups and pair.second in groups
    )
    return [image._replace(group=joined.get(image.group, image.group)) for image in images]


def without_leaks(
    images: Sequence[ListedImage], groups: Mapping[str, str]
) -> tuple[list[ListedImage], list[SkippedImage]]:
    """Return the images without those that have a copy in a later split that is given, and these.

    Images whose split is drawn later count as training images.
    """
    splits = defaultdict(set)
    for image in images:
        splits[groups.get(image.path, image.path)].add(image.split)
    kept, left_out = [], []
    for image in images:
        last = max(splits[groups.get(image.path, image.path)], key=("", *SPLITS).index)
        if last == image.split:
            kept.append(image)
        else:
            left_out.append(SkippedImage(image.path, f"a near-duplicate of an image in {last} (data.on_leak=group)"))
    return kept, left_out


def leak_issues(leaks: Iterable[NearDuplicatePair]) -> list[DataIssue]:
    """Return an issue for each pair of near-duplicates in two splits."""
    issues = []
    for pair in leaks:
        text = f"a {'mirrored ' if pair.mirrored else ''}near-duplicate of {printable(pair.first)}, in another split "
        text += f"(similarity {pair.similarity:.2f}); remove one, or set data.on_leak=group"
        issues.append(DataIssue(pair.second, text, skippable=False))
    return issues


def leak_sentence(leaks: Sequence[NearDuplicatePair]) -> str:
    """Return how many near-duplicates are in two splits, at least one, and the first of them."""
    return (
        f"Near-duplicates in two splits: {len(leaks):,} pair{'s' if len(leaks) > 1 else ''}, the first: "
        f"{printable(leaks[0].first)} and {printable(leaks[0].second)}. The scores may be too good: look at them with "
        "`experiments inspect data`; data.on_leak=group keeps copies in one split"
    )
