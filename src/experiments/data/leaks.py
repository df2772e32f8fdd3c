"""Near-duplicates of a data set: found once for a set of files, then reported, kept in one split, or left out."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from experiments.data import near_duplicates
from experiments.data.issues import DataIssue, printable
from experiments.data.listing import ListedImage
from experiments.data.types import SPLITS, NearDuplicatePair, SkippedImage
from experiments.data.validation import ValidationResults
from experiments.images import decoder
from experiments.storage import array_cache, atomic_files

DIRECTORY = "near_duplicates"  # of the cache

_log = logging.getLogger(__name__)

_Found = list[tuple[str, str, float, bool]]  # sha256 of two files, similarity, mirrored


def find_pairs(images: Sequence[ListedImage], results: ValidationResults) -> list[NearDuplicatePair]:
    """Return the near-duplicates among validated images; the pairs of a set of files are kept in the cache.

    Raises:
        DataError: If a file has changed since it was validated.
    """
    files = {results.sha256(image): image for image in images}
    hashes = sorted(files)
    spec = {
        "files": hashes,
        "decoder": decoder.VERSION,
        **results.decoder_settings.validation_key(),
        "version": near_duplicates.VERSION,
    }
    file = results.cache / DIRECTORY / f"{array_cache.key(spec)}.json"
    found = read_pairs(file) if file.exists() else "it does not exist"
    if isinstance(found, str):
        if file.exists():
            _log.warning("Damaged near-duplicates, they are searched again: %s: %s", file, found)
        pairs = near_duplicates.find_near_duplicates(results.thumbnails(files[sha256] for sha256 in hashes))
        found = [(hashes[pair.first], hashes[pair.second], round(pair.similarity, 3), pair.mirrored) for pair in pairs]
        content = {"sha256": array_cache.key({"pairs": found}), "pairs": found}
        atomic_files.write_file(file, json.dumps(content).encode())
    else:
        array_cache.mark_used(file, results)
    paths = {sha256: image.path for sha256, image in files.items()}
    return [
        NearDuplicatePair(min(paths[first], paths[second]), max(paths[first], paths[second]), similarity, mirrored)
        for first, second, similarity, mirrored in found
    ]


def read_pairs(file: Path) -> _Found | str:
    """Return the pairs in a file of `cache/near_duplicates/`; if it cannot be used, return the reason instead."""
    try:
        kept = json.loads(file.read_bytes())
        if kept["sha256"] != array_cache.key({"pairs": kept["pairs"]}):
            return "its content does not have the hash it was stored with"
        return [(str(a), str(b), float(similarity), bool(mirrored)) for a, b, similarity, mirrored in kept["pairs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:  # not a file that `find_pairs` wrote
        return f"{type(error).__name__}: {error}"


def group_copies(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the group of every name that is in a pair, directly or through others: its name -> the first of them."""
    groups: dict[str, str] = {}

    def find(name: str) -> str:
        while groups.setdefault(name, name) != name:
            name = groups[name]
        return name

    for pair in pairs:
        first, second = sorted(map(find, pair))
        groups[second] = first
    return {name: find(name) for name in groups}


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

    The test split keeps all its images, and the validation split those without a copy in it. Images whose split
    is drawn later count as training images.
    """
    splits = defaultdict(set)
    for image in images:
        if image.path in groups:
            splits[groups[image.path]].add(image.split)
    kept, left_out = [], []
    for image in images:
        last = max(splits[groups[image.path]], key=("", *SPLITS).index) if image.path in groups else image.split
        if last == image.split:
            kept.append(image)
        else:
            left_out.append(SkippedImage(image.path, f"a near-duplicate of an image in {last} (data.on_leak=group)"))
    return kept, left_out


def leak_issues(leaks: Iterable[NearDuplicatePair]) -> list[DataIssue]:
    """Return an issue for each pair of near-duplicates in two splits."""
    return [
        DataIssue(
            pair.second,
            f"a {'mirrored ' if pair.mirrored else ''}near-duplicate of {printable(pair.first)}, in another split "
            f"(similarity {pair.similarity:.2f}); remove one, or set data.on_leak=group",
            skippable=False,
        )
        for pair in leaks
    ]


def leak_sentence(leaks: Sequence[NearDuplicatePair]) -> str:
    """Return how many near-duplicates are in two splits, at least one, and the first of them."""
    return (
        f"Near-duplicates in two splits: {len(leaks):,} pair{'s' if len(leaks) > 1 else ''}, the first: "
        f"{printable(leaks[0].first)} and {printable(leaks[0].second)}. The scores may be too good: look at them with "
        "`experiments inspect data`; data.on_leak=group keeps copies in one split"
    )
