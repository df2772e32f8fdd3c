"""Manifest of a data set: which images it has, whether they are valid, and which split each is in."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from experiments.data import grouping, splitting
from experiments.data.duplicates import without_duplicates
from experiments.data.issues import DataIssue, printable, raise_issues
from experiments.data.leaks import find_pairs, group_copies, join_groups, leak_issues, leak_sentence, without_leaks
from experiments.data.listing import ListedImage, Listing, list_images
from experiments.data.pixel_buffer import PixelBuffer
from experiments.data.selection import drop_small_classes, note_on_capitals, select_classes
from experiments.data.splitting import keep_together, rank
from experiments.data.types import (
    SPLITS,
    ImageRecord,
    ImageWarning,
    Manifest,
    NearDuplicatePair,
    SkippedImage,
    SplitSettings,
)
from experiments.data.validation import ValidationResults, hash_files
from experiments.images.decoder_settings import DEFAULTS, DecoderSettings

_log = logging.getLogger(__name__)


def read(
    source: Path | Listing,
    settings: SplitSettings,
    *,
    decoder_settings: DecoderSettings = DEFAULTS,
    cache: Path,
    buffer: PixelBuffer | None = None,
    found: list[DataIssue] | None = None,
) -> Manifest:
    """List, hash and validate the images of a data set, and assign each to one split.

    Splits that are not given are drawn. Random choices depend on the hash of (seed, path), so one file more or less
    moves few others. Images beyond a limit are hashed, but not decoded, unless files with issues are skipped or
    near-duplicates are grouped.

    Args:
        source: The directory of the data set, laid out as `listing.LAYOUTS` says, or the listing of its images.
        settings: Which images are used, and how they are split.
        decoder_settings: See `decoder.decode`.
        cache: The cache directory. It keeps validation results, thumbnails and near-duplicates.
        buffer: Receives the images decoded for validation, so that they need not be decoded again for their pixels.
        found: Receives every issue, sorted by path; then none is raised, and the manifest holds the remaining images,
            if any.

    Raises:
        DataError: If there are issues; one error for all of them.
    """
    listing = source if isinstance(source, Listing) else list_images(Path(os.path.abspath(source)))
    listing = _select(listing, settings)
    settings = replace(settings, fractions=_drawn_fractions(listing, settings))
    root, issues = listing.root, list(listing.issues)
    hashes = hash_files(root, listing.images, issues)
    if buffer:
        buffer.expect(len(hashes))
    results = ValidationResults(root, hashes, cache, decoder_settings, buffer)
    images = [image for image in listing.images if image.path in hashes]
    images = without_duplicates(images, results, issues)
    images, pairs, left_out = _split(images, listing, settings, results, issues)
    results.save()
    issues += _missing_images(listing, images, settings, issues)
    records, warnings = _records(images, hashes, results)
    notes = (*listing.notes, *_notes_on_drawn(listing, settings))
    result = Manifest(root, tuple(listing.classes), records, (), warnings, decoder_settings, notes, pairs)
    if settings.on_leak == "error":
        issues += leak_issues(result.leaks)
    issues = sorted([*issues, *results.issues()])
    if found is None:
        for note in notes:
            _log.info("%s", note)
        raise_issues(root, issues, settings.on_bad)
    else:
        found += issues
    skipped = (*listing.skipped, *(SkippedImage(issue.path, issue.text) for issue in issues), *left_out)
    return replace(result, skipped=skipped)


def _select(listing: Listing, settings: SplitSettings) -> Listing:
    """Return the listing of the classes that are used, with the group of every image."""
    if settings.classes:
        listing = select_classes(listing, settings.classes)
    if settings.min_per_class:
        listing = drop_small_classes(listing, settings.min_per_class)
    if settings.group:
        listing = grouping.assign_groups(listing, settings.group)
    notes = [note_on_capitals(listing.classes), None if settings.group else grouping.note_on_columns(listing)]
    if "validation" in listing.splits and "test" not in listing.splits and settings.fractions.get("test"):
        notes.append("no test images are drawn (data.fractions.test), as the data has validation images of its own")
    return replace(listing, notes=[*listing.notes, *filter(None, notes)])


def _drawn_fractions(listing: Listing, settings: SplitSettings) -> Mapping[str, float]:
    """Return the shares in which each class's images are drawn into splits; empty if the data gives them.

    Test images that the data gives stay what they are.
    """
    if not listing.splits:
        return settings.fractions
    if "validation" in listing.splits:
        return {}
    test = 0.0 if "test" in listing.splits else settings.fractions["test"]
    # A fold needs no validation images beside it; but test images are drawn as they are without folds.
    validation = 0.0 if settings.fold is not None and not test else settings.fractions["validation"]
    return {"train": 1 - validation - test, "validation": validation, "test": test}


def _notes_on_drawn(listing: Listing, settings: SplitSettings) -> list[str]:
    """Return the sentence on splits that are drawn from the training images that the data gives."""
    splits = ("test",) if settings.fold is not None else ("validation", "test")
    drawn = [f"{settings.fractions[split]:.0%} {split}" for split in splits if settings.fractions.get(split)]
    if not listing.splits or not drawn:
        return []
    train = listing.folders.get("train", "train")
    return [f"no validation images are given: of each class in {train}, {' and '.join(drawn)} images are drawn"]


def _split(
    images: Sequence[ListedImage],
    listing: Listing,
    settings: SplitSettings,
    results: ValidationResults,
    issues: list[DataIssue],
) -> tuple[list[ListedImage], tuple[NearDuplicatePair, ...], list[SkippedImage]]:
    """Return the images that are used, each in its split and validated, their near-duplicates, and those left out.

    The latter have a copy in a later split.
    """
    is_drawn = bool(settings.fractions) or settings.fold is not None
    if settings.on_leak == "group" or (settings.on_bad == "skip" and is_drawn):
        # Images that will probably be used are validated first, with their decoded pixels kept for the run.
        _choose(_assign_splits(images, listing, settings, {}, []), settings, results)
        results.validate(images, keep=False)
        images = results.usable(images)
    copies: dict[str, str] = {}  # the group of an image that has near-duplicates
    left_out: list[SkippedImage] = []
    pairs = None
    if settings.on_leak == "group":
        if settings.fold is not None:  # the given validation images are not used
            images = [image for image in images if image.split != "validation"]
        pairs = find_pairs(images, results)
        copies = group_copies((pair.first, pair.second) for pair in pairs)
        images, left_out = without_leaks(images, copies)
        if any(image.group for image in images):  # the copies are drawn with their groups, not beside them
            images, copies = join_groups(images, pairs), {}
    chosen = _choose(_assign_splits(images, listing, settings, copies, issues), settings, results)
    if pairs is None:
        pairs = find_pairs(chosen, results)
    paths = {image.path for image in chosen}
    return chosen, tuple(pair for pair in pairs if {pair.first, pair.second} <= paths), left_out


def _assign_splits(
    images: Sequence[ListedImage],
    listing: Listing,
    settings: SplitSettings,
    copies: Mapping[str, str],
    issues: list[DataIssue],
) -> Sequence[ListedImage]:
    """Return the images with their splits: drawn where the data does not give them, then a fold's.

    Args:
        copies: The groups of near-duplicates by path; each stays in one split.
        issues: Receives what prevents a draw, and groups that given splits divide.
    """
    has_groups = any(image.group for image in images)
    drawing = grouping if has_groups else splitting
    place = f"{listing.folders.get('train', 'train')}/" if listing.splits else ""
    if settings.fractions:
        images = drawing.draw_splits(images, settings.fractions, settings.split_seed, place, issues)
        images = keep_together(images, copies)
    if settings.fold is not None:
        if listing.splits and settings.fractions:  # the validation images were drawn of those for training
            images = [image._replace(split="train") if image.split == "validation" else image for image in images]
        images = drawing.draw_fold(images, settings.fold, settings.folds, settings.split_seed, place, issues)
        images = keep_together(images, copies)
    if has_groups:
        issues += grouping.check_splits(images)
    return images


def _choose(images: Sequence[ListedImage], settings: SplitSettings, results: ValidationResults) -> list[ListedImage]:
    """Return the first valid images of every class and split, up to the limit, sorted by split and path.

    Images that turn out to be invalid are replaced by the next ones.
    """
    ranked = sorted(images, key=functools.partial(rank, settings.split_seed))
    while True:
        groups = defaultdict(list)
        for image in results.usable(ranked):
            groups[image.split, image.class_name].append(image)
        chosen = [image for (split, _), members in groups.items() for image in members[: settings.limit.get(split)]]
        # In the order in which the array cache is filled, so that the blocks of the buffer become free one by one.
        chosen.sort(key=lambda image: (SPLITS.index(image.split), image.path))
        if not results.validate(chosen):
            return chosen


def _missing_images(
    listing: Listing, images: Sequence[ListedImage], settings: SplitSettings, known: Sequence[DataIssue]
) -> list[DataIssue]:
    """Return an issue for every class without images in a split, unless a more precise one is known."""
    issues: dict[str, DataIssue] = {}
    drawn = [split for split, share in settings.fractions.items() if share > 0]
    if settings.fold is not None:
        drawn.append("validation")
    having = {(image.split, image.class_name) for image in images}
    paths = {issue.path for issue in known}
    for split in dict.fromkeys([*listing.splits, *drawn]):
        for class_name in listing.classes:
            origin = "train" if split in drawn else split
            path = f"{listing.folders.get(origin, origin)}/{class_name}" if listing.splits else class_name
            if (split, class_name) not in having and path not in paths:
                text = f"no image that can be used is left for {split}; add images or remove the class"
                issues.setdefault(path, DataIssue(path, text, skippable=False))
    return list(issues.values())


def _records(
    images: Sequence[ListedImage], hashes: Mapping[str, tuple[str, int]], results: ValidationResults
) -> tuple[tuple[ImageRecord, ...], tuple[ImageWarning, ...]]:
    """Return the images as records, sorted by split and path, and their warnings, sorted by path."""
    records, warnings = [], []
    for path, class_name, split, group in images:
        sha256, size = hashes[path]
        width, height, mode, texts = results.valid[sha256]
        records.append(ImageRecord(path, size, sha256, width, height, mode, class_name, split, group))
        warnings += [ImageWarning(path, text) for text in texts]
    return tuple(records), tuple(sorted(warnings, key=lambda warning: warning.path))


def warning_sentences(manifests: Sequence[Manifest]) -> list[str]:
    """Return sentences about images that are not used, images with a warning, and near-duplicates in two splits.

    Args:
        manifests: at least one; of several, such as those of the folds of one data set, what each has is counted once.
    """
    skipped = dict.fromkeys((image.path, image.reason) for manifest in manifests for image in manifest.skipped)
    warnings = dict.fromkeys((image.path, image.text) for manifest in manifests for image in manifest.warnings)
    leaks = {(pair.first, pair.second): pair for manifest in manifests for pair in manifest.leaks}
    sentences = []
    for title, listed in (("Images left out", skipped), ("Images used, with a warning", warnings)):
        for path, text in [*listed][:1]:
            sentences.append(f"{title}: {len(listed):,}, the first: {printable(path)}: {text}")
    return [*sentences, *([leak_sentence(list(leaks.values()))] if leaks else [])]


def fingerprint(manifest: Manifest) -> str:
    """Return the identity of a data set: 64 hex digits, whatever the location of its directory.

    It is the sha256 over the class names and every image's split, path and content; and its group, and its class where
    that is not the name of its directory.
    """
    whole = hashlib.sha256()
    for name in manifest.classes:
        whole.update(os.fsencode(name) + b"\0")
    for entry in manifest.entries:
        whole.update(b"\0".join((b"", entry.split.encode(), os.fsencode(entry.path), entry.sha256.encode())))
        if os.path.basename(os.path.dirname(entry.path)) != entry.class_name:
            whole.update(b"\0class\0" + os.fsencode(entry.class_name))
        if entry.group:
            whole.update(b"\0group\0" + os.fsencode(entry.group))
    return whole.hexdigest()


def near_duplicate_rows(manifest: Manifest) -> list[dict[str, str | float]]:
    """Return a row for each pair of near-duplicates: split and path of both images, similarity, mirrored."""
    splits = {entry.path: entry.split for entry in manifest.entries}
    return [
        {
            "split": splits[pair.first],
            "path": pair.first,
            "other_split": splits[pair.second],
            "other_path": pair.second,
            "similarity": pair.similarity,
            "mirrored": str(pair.mirrored).lower(),
        }
        for pair in manifest.near_duplicates
    ]


def to_rows(manifest: Manifest) -> list[dict[str, str | int]]:
    """Return the manifest as a table, one row per image in its order; it has a column of groups if there are any."""
    labels = {name: label for label, name in enumerate(manifest.classes)}
    columns = ["split", "path", "class_name", "label", "bytes", "sha256", "width", "height", "mode"]
    columns += ["group"] if any(entry.group for entry in manifest.entries) else []
    rows = [vars(entry) | {"label": labels[entry.class_name]} for entry in manifest.entries]
    return [{name: row[name] for name in columns} for row in rows]
