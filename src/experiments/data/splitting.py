"""Which split an image is in: drawn by the hash of (seed, path), for every class by itself."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping

from experiments.data.listing import DataIssue, Groups
from experiments.data.types import SPLITS


def rank(seed: int, path: str) -> bytes:
    """Return what images are sorted by: an order that one image more or less does not change."""
    return hashlib.sha256(f"{seed}:".encode() + os.fsencode(path)).digest()


def draw_splits(groups: Groups, fractions: Mapping[str, float], seed: int, faults: list[DataIssue]) -> Groups:
    """Return every class split by the fractions."""
    result: Groups = {}
    for (_, class_name), members in groups.items():
        ranked = sorted(members, key=functools.partial(rank, seed))
        counts = split_counts(len(ranked), fractions)
        if 0 < len(ranked) < len(counts):
            text = f"has {len(ranked)} pictures that can be used, too few to split into {', '.join(counts)}; "
            text += "add pictures, or set a fraction of data.fractions to 0"
            faults.append(DataIssue(class_name, text, skippable=False))
        start = 0
        for split, count in counts.items():
            result[split, class_name] = ranked[start : start + count]
            start += count
    return result


def draw_fold(groups: Groups, fold: int, folds: int, seed: int, place: str, faults: list[DataIssue]) -> Groups:
    """Return the training images as training and validation images, other splits but validation as they are."""
    result = {group: members for group, members in groups.items() if group[0] not in ("train", "validation")}
    for (split, class_name), members in groups.items():
        if split == "train":
            ranked = sorted(members, key=functools.partial(rank, seed))
            if len(ranked) < folds:
                text = f"has {len(ranked)} training pictures, too few for data.folds={folds}; add pictures or lower it"
                faults.append(DataIssue(f"{place}{class_name}", text, skippable=False))
            result["validation", class_name] = ranked[fold::folds]
            result["train", class_name] = [path for at, path in enumerate(ranked) if at % folds != fold]
    return result


def split_counts(total: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Return how many of `total` images each split with a positive fraction gets.

    They are the nearest whole numbers of that sum, but at least one each, so more than `total` where there are too few.
    """
    whole = sum(fractions.values())  # 1, but for rounding
    shares = {split: total * fractions[split] / whole for split in SPLITS if fractions.get(split, 0) > 0}
    counts = {split: int(share) for split, share in shares.items()}
    by_remainder = sorted(shares, key=lambda split: counts[split] - shares[split])
    for split in by_remainder[: total - sum(counts.values())]:
        counts[split] += 1
    for split in [split for split, count in counts.items() if count == 0]:
        counts[max(counts, key=lambda name: counts[name])] -= 1
        counts[split] = 1
    return counts
