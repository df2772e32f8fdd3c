"""Assignment of images to splits and folds, separately for every class, by the hash of (seed, path)."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from experiments.data.issues import DataIssue
from experiments.data.listing import ListedImage
from experiments.data.types import SPLITS


def rank(seed: int, image: ListedImage) -> bytes:
    """Return the sort key of an image, so that one image more or less does not change the order of the others."""
    return hashlib.sha256(f"{seed}:".encode() + os.fsencode(image.path)).digest()


def _ranked_classes(images: Iterable[ListedImage], seed: int) -> Iterator[tuple[str, list[ListedImage]]]:
    """Yield each class with its images, ranked."""
    classes = defaultdict(list)
    for image in images:
        classes[image.class_name].append(image)
    for class_name, members in classes.items():
        yield class_name, sorted(members, key=functools.partial(rank, seed))


def draw_splits(
    images: Sequence[ListedImage], fractions: Mapping[str, float], seed: int, place: str, issues: list[DataIssue]
) -> list[ListedImage]:
    """Split every class by the fractions; add an issue for each class with too few images.

    Images that are in the validation or test split already stay there.
    """
    result = [image for image in images if image.split not in ("", "train")]
    for class_name, ranked in _ranked_classes((image for image in images if image.split in ("", "train")), seed):
        counts = split_counts(len(ranked), fractions)
        if len(ranked) < len(counts):
            number = f"{len(ranked)} image{'s' if len(ranked) > 1 else ''}"
            text = f"has {number} that can be used, too few to split into {', '.join(counts)} "
            text += f"(data.min_per_class={len(counts)} drops such classes); add images, or "
            if len(ranked) > 1:  # train and validation need one each
                train = f"data.fractions.train={fractions['train'] + fractions['test']:g}"
                text += f"set a fraction of data.fractions to 0: {train} data.fractions.test=0"
            else:
                text += "remove the class"
            issues.append(DataIssue(f"{place}{class_name}", text, skippable=False))
        splits = [split for split, count in counts.items() for _ in range(count)]
        result += [image._replace(split=split) for image, split in zip(ranked, splits, strict=True)]
    return result


def draw_fold(
    images: Sequence[ListedImage], fold: int, folds: int, seed: int, place: str, issues: list[DataIssue]
) -> list[ListedImage]:
    """Divide the training images into the training and validation images of a fold.

    The former validation images are dropped; other splits stay as they are.
    """
    result = [image for image in images if image.split not in ("train", "validation")]
    for class_name, ranked in _ranked_classes((image for image in images if image.split == "train"), seed):
        if len(ranked) < folds:
            text = f"has {len(ranked)} training images, too few for data.folds={folds}; add images or lower it"
            issues.append(DataIssue(f"{place}{class_name}", text, skippable=False))
        splits = ("validation" if at % folds == fold else "train" for at in range(len(ranked)))
        result += [image._replace(split=split) for image, split in zip(ranked, splits, strict=True)]
    return result


def keep_together(images: Sequence[ListedImage], groups: Mapping[str, str]) -> list[ListedImage]:
    """Return the images, each in the split of its group's first image by path; `groups` maps paths to groups."""
    splits: dict[str, str] = {}
    for image in sorted(images, key=lambda image: image.path):
        splits.setdefault(groups.get(image.path, image.path), image.split)
    return [image._replace(split=splits[groups.get(image.path, image.path)]) for image in images]


def split_counts(total: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Return how many of `total` images each split with a positive fraction gets.

    The counts are the nearest whole numbers with that sum, but at least 1 each. With fewer images than splits some
    counts stay 0.
    """
    whole = sum(fractions.values())  # 1, except for rounding
    shares = {split: total * fractions[split] / whole for split in SPLITS if fractions.get(split, 0) > 0}
    counts = {split: int(share) for split, share in shares.items()}
    by_remainder = sorted(shares, key=lambda split: counts[split] - shares[split])
    for split in by_remainder[: total - sum(counts.values())]:
        counts[split] += 1
    for split in [split for split, count in counts.items() if count == 0]:
        largest = max(counts, key=lambda name: counts[name])
        if counts[largest] > 1:
            counts[largest] -= 1
            counts[split] = 1
    return counts
