"""Assignment of images to splits and folds, separately for every class, by the hash of (seed, path)."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping

from experiments.data.listing import DataIssue, Groups
from experiments.data.types import SPLITS


def rank(seed: int, path: str) -> bytes:
    """Return the sort key of an image.

    It depends on nothing but seed and path, so one image more or less does not change the order of the others.
    """
    return hashlib.sha256(f"{seed}:".encode() + os.fsencode(path)).digest()


def draw_splits(groups: Groups, fractions: Mapping[str, float], seed: int, faults: list[DataIssue]) -> Groups:
    """Split every class by the fractions; add an issue for each class with too few images."""
    result: Groups = {}
    for (_, class_name), members in groups.items():
        ranked = sorted(members, key=functools.partial(rank, seed))
        counts = split_counts(len(ranked), fractions)
        if 0 < len(ranked) < len(counts):
            text = f"has {len(ranked)} images that can be used, too few to split into {', '.join(counts)}; "
            text += "add images, or set a fraction of data.fractions to 0"
            faults.append(DataIssue(class_name, text, skippable=False))
        start = 0
        for split, count in counts.items():
            result[split, class_name] = ranked[start : start + count]
            start += count
    return result


def draw_fold(groups: Groups, fold: int, folds: int, seed: int, place: str, faults: list[DataIssue]) -> Groups:
    """Return the groups with the training images divided into the training and validation images of a fold.

    The former validation images are dropped; other splits stay as they are.
    """
    result = {group: members for group, members in groups.items() if group[0] not in ("train", "validation")}
    for (split, class_name), members in groups.items():
        if split == "train":
            ranked = sorted(members, key=functools.partial(rank, seed))
            if len(ranked) < folds:
                text = f"has {len(ranked)} training images, too few for data.folds={folds}; add images or lower it"
                faults.append(DataIssue(f"{place}{class_name}", text, skippable=False))
            result["validation", class_name] = ranked[fold::folds]
            result["train", class_name] = [path for at, path in enumerate(ranked) if at % folds != fold]
    return result


def split_counts(total: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Return how many of `total` images each split with a positive fraction gets.

    The counts are the nearest whole numbers with that sum, but at least 1 each. With fewer images than splits some
    counts stay 0; `draw_splits` reports such a class.
    """
    whole = sum(fractions.values())  # 1, except for rounding
    shares = {split: total * fractions[split] / whole for split in SPLITS if fractions.get(split, 0) > 0}
    counts = {split: int(share) for split, share in shares.items()}
    by_remainder = sorted(shares, key=lambda split: counts[split] - shares[split])
    for split in by_remainder[: total - sum(counts.values())]:
        counts[split] += 1
    for split in [split for split, count in counts.items() if count == 0]:
        counts[max(counts, key=lambda name: counts[name])] -= 1
        counts[split] = 1
    return counts
