"""Selection of classes: which are used, in which order, and which are merged."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from experiments.config.messages import nearest
from experiments.config.overrides import as_typed
from experiments.data.issues import printable
from experiments.data.listing import Listing
from experiments.data.types import SkippedImage
from experiments.errors import ConfigError


def select_classes(listing: Listing, classes: Mapping[str, Sequence[str]]) -> Listing:
    """Return a listing of the selected classes, without the images and issues of the others.

    Args:
        listing: All images.
        classes: The new classes in the order of their labels; for each the classes that are merged into it.

    Raises:
        ConfigError: If a class does not exist, or is selected twice.
    """
    names = [name for merged in classes.values() for name in merged]
    unknown = sorted(set(names) - set(listing.classes))
    if unknown:
        close = {name: nearest(name, listing.classes) for name in unknown}
        hints = ", ".join(f"{name!r}" + (f" (nearest: {near!r})" if near else "") for name, near in close.items())
        found = ", ".join(map(printable, listing.classes)) or "none"
        special = [near for near in close.values() if near and as_typed("key", near) != shlex.quote(f"key={near}")]
        quotes = f". As text Hydra reads it in quotes: 'data.classes=[\"{special[0]}\",...]'" if special else ""
        raise ConfigError(f"data.classes: no such class: {hints}. Classes of this data: {found}{quotes}")
    if len(classes) < 2 or len(set(names)) < len(names):
        problem = "two or more classes are needed" if len(classes) < 2 else "a class can be selected only once"
        raise ConfigError(f"data.classes: {problem}. Received: {dict(classes)}")
    new = {name: target for target, merged in classes.items() for name in merged}
    merged = {name for group in classes.values() if len(group) > 1 for name in group}
    issues = [
        issue._replace(class_name=new.get(issue.class_name, ""))
        for issue in listing.issues
        if not issue.class_name or issue.class_name in new
        # If none of the merged classes has images, the manifest reports that.
        if not (issue.lacks_images and issue.class_name in merged)
    ]
    images = [image._replace(class_name=new[image.class_name]) for image in listing.images if image.class_name in new]
    return replace(listing, images=images, classes=list(classes), issues=issues)


def drop_small_classes(listing: Listing, min_per_class: int) -> Listing:
    """Return a listing without the classes that have fewer images, which it notes.

    Raises:
        ConfigError: If fewer than two classes remain.
    """
    counts = Counter(image.class_name for image in listing.images)
    small = [name for name in listing.classes if counts[name] < min_per_class]
    if not small:
        return listing
    kept = [name for name in listing.classes if name not in small]
    shown = ", ".join(f"{printable(name)} ({counts[name]})" for name in small)
    if len(kept) < 2:
        largest = counts.most_common(2)[-1][1] if counts else 0
        raise ConfigError(
            f"data.min_per_class: must be at most {largest} for two classes to remain. Classes with fewer images, with "
            f"their numbers: {shown}. Received: {min_per_class}"
        )
    note = f"classes with fewer than {min_per_class} images (data.min_per_class) are dropped: {shown}"
    skipped = [*listing.skipped]
    for name in small:
        number = f"{counts[name]} image{'' if counts[name] == 1 else 's'}"
        reason = f"this class has {number}, fewer than data.min_per_class={min_per_class}"
        skipped.append(SkippedImage(name, reason))
    images = [image for image in listing.images if image.class_name not in small]
    issues = [issue for issue in listing.issues if issue.class_name not in small]
    notes = [*listing.notes, note]
    return replace(listing, images=images, classes=kept, issues=issues, notes=notes, skipped=skipped)


def note_on_capitals(classes: Sequence[str]) -> str | None:
    """Return the sentence on classes whose names differ in nothing but capitals, and None if there are none."""
    variants = defaultdict(list)
    for name in classes:
        variants[name.casefold()].append(name)
    alike = ", ".join(" and ".join(map(repr, names)) for names in variants.values() if len(names) > 1)
    remedy = "where they are meant to be one, rename them or merge them with data.classes"
    return f"classes whose names differ in capitals only: {alike}; {remedy}" if alike else None
