"""Duplicate images: files with equal contents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from experiments.data.issues import DataIssue, printable
from experiments.data.listing import ListedImage
from experiments.data.validation import ValidationResults


def without_duplicates(
    images: Sequence[ListedImage], results: ValidationResults, issues: list[DataIssue]
) -> list[ListedImage]:
    """Add an issue for every duplicate image, and return the images without those that can be skipped.

    Of duplicates within one split, only the first is kept; none is kept where their classes differ. Duplicates in
    different splits cannot be skipped.
    """
    same = defaultdict(list)
    for image in images:
        same[results.sha256(image)].append(image)
    repeated = {sha256: members for sha256, members in same.items() if len(members) > 1}
    # Damaged files often have equal contents (empty files, error pages saved as images): they are no duplicates.
    results.validate(members[0] for members in repeated.values())
    dropped = set()
    for sha256, (first, *others) in repeated.items():
        if sha256 in results.invalid:
            continue
        for other in others:
            text = f"the same image as {printable(first.path)}"
            if other.split != first.split:
                text += ", in another split; remove one, splits may share none"
            elif other.class_name != first.class_name:
                remedy = ", in another class; remove the one that is wrong"
                text += remedy
                if first.path not in dropped:  # both are skipped, as either class may be wrong
                    both = f"the same image as {printable(other.path)}{remedy}"
                    issues.append(DataIssue(first.path, both, skippable=True))
                dropped |= {first.path, other.path}
            else:
                text += "; remove one"
                dropped.add(other.path)
            issues.append(DataIssue(other.path, text, skippable=other.path in dropped))
    return [image for image in images if image.path not in dropped]
