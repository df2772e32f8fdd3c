"""Manifest of a data set: which images it has, whether they are valid, and which split each is in.

Nothing is guessed: every issue is reported with its path and what to do about it, all of them in one error.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.data import decoder
from experiments.data.listing import DataIssue, Groups, list_images, printable
from experiments.data.splitting import draw_fold, draw_splits, rank
from experiments.data.types import SPLITS, GrayRange, ImageRecord, ImageWarning, Manifest, SkippedImage, SplitSettings
from experiments.errors import ConfigError, DataError
from experiments.storage import array_cache, atomic_files

if TYPE_CHECKING:
    from experiments.data.pixel_cache import Decoded

_SHOWN = 20  # issues listed in one error

_log = logging.getLogger(__name__)

_Facts = tuple[int, int, str, list[str]]  # width, height, mode, warnings


def read(
    root: Path,
    settings: SplitSettings,
    *,
    gray_range: GrayRange | None = None,
    cache: Path,
    decoded: Decoded | None = None,
    found: list[DataIssue] | None = None,
) -> Manifest:
    """List, hash and validate the images of a directory, and assign each to one split.

    There are two layouts: `root/train/<class>/`, `root/validation/<class>/` and optionally `root/test/<class>/`; or
    `root/<class>/` for every class, which is then split. Random choices depend on the hash of (seed, path), so one file
    more or less moves few others. Hidden files and those of operating systems are ignored, as are files other than
    images directly under `root` (a readme, say); everything else that is not an image in its class directory is an
    issue. Images beyond a limit are hashed, but not decoded, unless files with issues are skipped.

    Args:
        root: The directory of the data set.
        settings: Which images are used, and how they are split.
        gray_range: See `decoder.decode`.
        cache: The cache directory. Validation results are kept in `cache/manifests/`, so that no content is validated
            twice.
        decoded: Receives the images decoded for validation, so that they need not be decoded again for their pixels.
        found: Receives every issue, sorted by path; then none is raised, and the manifest holds the remaining images,
            if any.

    Returns:
        The manifest, `root` absolute.

    Raises:
        ConfigError: If a setting is invalid.
        DataError: If there are issues; one error for all of them.
    """
    root = Path(os.path.abspath(root))
    _check_choices(settings.limit, settings.on_bad)
    issues: list[DataIssue] = []
    groups, presplit = list_images(root, issues)
    if not presplit:
        _check_fractions(settings.fractions)
    groups, hashes = _hash_all(root, groups, issues)
    if decoded:
        decoded.expect(len(hashes))
    results = _ValidationResults(root, cache, hashes, gray_range, decoded)
    groups = _without_duplicates(groups, results, issues)
    groups = _split(groups, presplit, settings, results, issues)
    results.save()
    entries, warnings = _records(groups, hashes, results)
    issues += _empty_groups(groups, presplit, settings, issues)
    issues += [
        DataIssue(path, results.bad[sha], skippable=True) for path, (sha, _) in hashes.items() if sha in results.bad
    ]
    left_out = tuple(SkippedImage(path, text) for path, text, _ in sorted(issues))
    if found is not None:
        found += sorted(issues)
    else:
        _report(root, issues, warnings, settings.on_bad)
    classes = tuple(sorted({class_name for _, class_name in groups}))
    return Manifest(root, classes, entries, left_out, warnings, gray_range)


def _hash_all(root: Path, groups: Groups, issues: list[DataIssue]) -> tuple[Groups, dict[str, tuple[str, int]]]:
    """Return the groups without unreadable files, which become issues, and path -> (sha256, bytes) of the others."""
    hashes = {}
    paths = [path for members in groups.values() for path in members]
    with ThreadPoolExecutor() as pool:
        for path, hashed in zip(paths, pool.map(functools.partial(_hash, root), paths), strict=True):
            if isinstance(hashed, str):
                issues.append(DataIssue(path, hashed, skippable=True))
            else:
                hashes[path] = hashed
    return {group: [path for path in members if path in hashes] for group, members in groups.items()}, hashes


def _split(
    groups: Groups, presplit: bool, settings: SplitSettings, results: _ValidationResults, issues: list[DataIssue]
) -> Groups:
    """Return the images that are used, by (split, class), all of them validated."""

    def assign(groups: Groups, issues: list[DataIssue]) -> Groups:
        if not presplit:
            groups = draw_splits(groups, settings.fractions, settings.split_seed, issues)
        if settings.fold is not None:
            prefix = "train/" if presplit else ""
            groups = draw_fold(groups, settings.fold, settings.folds, settings.split_seed, prefix, issues)
        return groups

    if settings.on_bad == "skip" and (not presplit or settings.fold is not None):
        # Images that will probably be used are validated first, with their decoded pixels kept for the run.
        _choose(assign(groups, []), settings.limit, settings.split_seed, results)
        results.judge((path for members in groups.values() for path in members), keep=False)
        groups = {group: results.usable(members) for group, members in groups.items()}
    return _choose(assign(groups, issues), settings.limit, settings.split_seed, results)


def _records(
    groups: Groups, hashes: Mapping[str, tuple[str, int]], results: _ValidationResults
) -> tuple[tuple[ImageRecord, ...], tuple[ImageWarning, ...]]:
    """Return the images as records, sorted by split and path, and their warnings, sorted by path."""
    entries, warnings = [], []
    for (split, class_name), members in groups.items():
        for path in members:
            sha256, size = hashes[path]
            width, height, mode, texts = results.good[sha256]
            entries.append(ImageRecord(path, size, sha256, width, height, mode, class_name, split))
            warnings += [ImageWarning(path, text) for text in texts]
    entries.sort(key=lambda entry: (SPLITS.index(entry.split), entry.path))
    warnings.sort(key=lambda warning: warning.path)
    return tuple(entries), tuple(warnings)


def _empty_groups(
    groups: Groups, presplit: bool, settings: SplitSettings, known: Sequence[DataIssue]
) -> list[DataIssue]:
    """Return an issue for every class without images in a split, unless a more precise one is known."""
    issues: list[DataIssue] = []
    for (split, class_name), members in groups.items():
        origin = "train" if settings.fold is not None and split == "validation" else split
        folder = f"{origin}/{class_name}" if presplit else class_name
        text = f"no image that can be used is left for {split}; add images or remove the class"
        if not members and not any(issue.path == folder for issue in (*known, *issues)):
            issues.append(DataIssue(folder, text, skippable=False))
    return issues


def _report(root: Path, issues: Sequence[DataIssue], warnings: Sequence[ImageWarning], on_bad: str) -> None:
    """Log what was skipped and the warnings.

    Raises:
        DataError: If there are issues that cannot be skipped, or nothing may be skipped.
    """
    fatal = [issue for issue in issues if on_bad == "error" or not issue.skippable]
    if fatal:
        raise DataError(message(root, fatal, on_bad))
    if issues:
        path, text, _ = min(issues)
        _log.warning("Files skipped (data.on_bad=skip): %d, the first: %s", len(issues), f"{printable(path)}: {text}")
    if warnings:
        _log.warning("\n".join([f"Images used, with a warning: {len(warnings)}", *warning_lines(warnings)]))


def warning_lines(warnings: Sequence[ImageWarning], shown: int = _SHOWN) -> list[str]:
    """Return a line for each of the first warnings, with the image's path, and the number of the others."""
    lines = [f"  {printable(warning.path)}: {warning.text}" for warning in warnings[:shown]]
    return [*lines, f"  and {len(warnings) - shown} more"] if len(warnings) > shown else lines


def fingerprint(manifest: Manifest) -> str:
    """Return the identity of a data set: 64 hex digits, whatever the location of its directory.

    It is the sha256 over the class names and every image's split, path and content.
    """
    whole = hashlib.sha256()
    for name in manifest.classes:
        whole.update(os.fsencode(name) + b"\0")
    for entry in manifest.entries:
        whole.update(b"\0".join((b"", entry.split.encode(), os.fsencode(entry.path), entry.sha256.encode())))
    return whole.hexdigest()


def to_rows(manifest: Manifest) -> list[dict[str, str | int]]:
    """Return the manifest as a table: one row per image, in the manifest's order.

    Returns:
        Rows of split, path, class_name, label, bytes, sha256, width, height, mode. Bytes of a name that are not UTF-8
        are written as backslash escapes, so that the table can be encoded.
    """
    labels = {name: label for label, name in enumerate(manifest.classes)}
    return [
        {
            "split": entry.split,
            "path": _encodable(entry.path),
            "class_name": _encodable(entry.class_name),
            "label": labels[entry.class_name],
            "bytes": entry.bytes,
            "sha256": entry.sha256,
            "width": entry.width,
            "height": entry.height,
            "mode": entry.mode,
        }
        for entry in manifest.entries
    ]


# --- validation


def _open(root: Path, path: str) -> BufferedReader:
    return open(os.path.join(root, path), "rb")


def _hash(root: Path, path: str) -> tuple[str, int] | str:
    """Return a file's sha256 and size in bytes, or the reason why it cannot be read."""
    try:
        with _open(root, path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except OSError as error:
        return unreadable(error)


def unreadable(error: OSError) -> str:
    """Return the text of the issue for a file that cannot be read.

    Raises:
        OSError: The error itself, if it is not about the file (too many files are open).
    """
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise error
    return f"cannot be read ({error.strerror}); check its permissions and the disk, or remove it"


def listed_images(kept: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the images in the content of a file of `cache/manifests/`, by sha256.

    Raises:
        KeyError: it lists none.
    """
    images: Mapping[str, Any] = kept["images"] if "images" in kept else kept["pictures"]  # the name in version 0.1
    return images


def read_validation_results(file: Path) -> dict[str, _Facts] | str:
    """Return the valid images that a file of `cache/manifests/` lists, by sha256.

    If the file cannot be used, return the reason instead.
    """
    try:
        kept = json.loads(file.read_bytes())
        images = listed_images(kept)
        if kept["sha256"] != array_cache.key(images):
            return "its content does not have the hash it was stored with"
        return {
            sha256: (int(width), int(height), str(mode), list(map(str, warnings)))
            for sha256, (width, height, mode, warnings) in images.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:  # not a file that `save` wrote
        return f"{type(error).__name__}: {error}"


class _ValidationResults:
    """Validation results by content; content that was valid before is not decoded again.

    One file holds the valid images of one set of files, whatever the limits were when they were validated.
    """

    def __init__(
        self,
        root: Path,
        cache: Path,
        hashes: Mapping[str, tuple[str, int]],
        gray_range: GrayRange | None,
        decoded: Decoded | None,
    ) -> None:
        self.good: dict[str, _Facts] = {}  # by sha256
        self.bad: dict[str, str] = {}
        self._root = root
        self._hashes = hashes
        self._gray_range = gray_range
        self._decoded = decoded
        files = sorted(sha256 for sha256, _ in hashes.values())
        key = array_cache.key({"files": files, "decoder": decoder.VERSION, "gray_range": gray_range})
        self._file = cache / "manifests" / f"{key}.json"
        if self._file.exists():
            kept = read_validation_results(self._file)
            if isinstance(kept, str):
                _log.warning("Damaged validation results, the images are validated again: %s: %s", self._file, kept)
            else:
                self.good = kept
                array_cache.mark_used(self._file, self)
        self._kept = len(self.good)

    def sha256(self, path: str) -> str:
        return self._hashes[path][0]

    def usable(self, paths: Iterable[str]) -> list[str]:
        """Return the images that are not known to be invalid."""
        return [path for path in paths if self.sha256(path) not in self.bad]

    def judge(self, paths: Iterable[str], *, keep: bool = True) -> None:
        """Validate the images whose contents have no result yet.

        With `keep`, the decoded images are kept for the run.
        """
        new = {self.sha256(path): path for path in paths}
        new = {sha256: path for sha256, path in new.items() if sha256 not in self.good and sha256 not in self.bad}
        if not new:
            return
        _log.info("Checking %d images", len(new))
        with ThreadPoolExecutor() as pool:
            judge = functools.partial(self._judge, keep=keep)
            for sha256, verdict in zip(new, pool.map(judge, new, new.values()), strict=True):
                if isinstance(verdict, str):
                    self.bad[sha256] = verdict
                else:
                    self.good[sha256] = verdict

    def _judge(self, sha256: str, path: str, *, keep: bool) -> _Facts | str:
        try:
            content = unchanged(self._root, path, sha256)
            with decoder.decoding(content, self._gray_range) as (image, facts, warnings):
                if self._decoded and keep:
                    self._decoded.keep(sha256, image)
                return facts.width, facts.height, facts.mode, warnings
        except OSError as error:
            return unreadable(error)
        except DataError as error:
            return str(error)

    def save(self) -> None:
        if len(self.good) > self._kept:
            content = {"sha256": array_cache.key(self.good), "images": self.good}
            atomic_files.write_file(self._file, json.dumps(content).encode())


def unchanged(root: Path, path: str, sha256: str) -> bytes:
    """Return a file's content if it is still the one that was hashed.

    Raises:
        DataError: If the content has changed or is too large; the caller adds the path.
        OSError: If the file cannot be read.
    """
    with _open(root, path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > decoder.MAX_BYTES:
            raise DataError(decoder.too_many_bytes(size))
        content = file.read()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError("has changed since it was checked; leave the data alone during a run, and start again")
    return content


def _without_duplicates(groups: Groups, results: _ValidationResults, issues: list[DataIssue]) -> Groups:
    """Add an issue for every duplicate image, and return the groups without those that can be skipped.

    Of duplicates within one split, only the first is kept; none is kept where their classes differ. Duplicates in
    different splits cannot be skipped.
    """
    same = defaultdict(list)
    for (split, class_name), members in groups.items():
        for path in members:
            same[results.sha256(path)].append((split, class_name, path))
    repeated = {sha256: places for sha256, places in same.items() if len(places) > 1}
    # Damaged files often have equal contents (empty files, error pages saved as images): they are no duplicates.
    results.judge(places[0][2] for places in repeated.values())
    dropped = set()
    for sha256, ((split, class_name, path), *others) in repeated.items():
        if sha256 in results.bad:
            continue
        for other_split, other_class, other in others:
            if other_split != split:
                text = f"the same image as {printable(path)}, in another split; remove one, splits may share none"
            elif other_class != class_name:
                text = f"the same image as {printable(path)}, in another class; remove the one that is wrong"
                if path not in dropped:  # both are skipped, as either class may be wrong
                    both = f"the same image as {printable(other)}, in another class; remove the one that is wrong"
                    issues.append(DataIssue(path, both, skippable=True))
                dropped |= {path, other}
            else:
                text = f"the same image as {printable(path)}; remove one"
                dropped.add(other)
            issues.append(DataIssue(other, text, skippable=other in dropped))
    return {group: [path for path in members if path not in dropped] for group, members in groups.items()}


# --- which images are used


def _choose(groups: Groups, limit: Mapping[str, int | None], seed: int, results: _ValidationResults) -> Groups:
    """Return the first valid images of every class and split, up to the limit.

    Images that turn out to be invalid are replaced by the next ones.
    """
    ranked = {group: sorted(members, key=functools.partial(rank, seed)) for group, members in groups.items()}
    while True:
        usable = {group: results.usable(members) for group, members in ranked.items()}
        chosen = {group: members[: limit.get(group[0])] for group, members in usable.items()}
        # In the order in which the array cache is filled, so that the blocks of `Decoded` become free one by one.
        ordered = sorted((SPLITS.index(split), path) for (split, _), members in chosen.items() for path in members)
        paths = [path for _, path in ordered]
        if all(results.sha256(path) in results.good for path in paths):
            return chosen
        results.judge(paths)


# --- arguments and messages


def _check_choices(limit: Mapping[str, int | None], on_bad: str) -> None:
    if on_bad not in ("error", "skip"):
        raise ConfigError(f"data.on_bad must be one of error, skip. Received: {on_bad!r}")
    wrong = {split: n for split, n in limit.items() if split not in SPLITS or (n is not None and n < 1)}
    if wrong:
        allowed = f"for each of {', '.join(SPLITS)} a number of images per class, 1 or more, or null for all"
        raise ConfigError(f"data.limit must have {allowed}. Received: {wrong!r}")


def _check_fractions(fractions: Mapping[str, float]) -> None:
    known = all(split in SPLITS and share >= 0 for split, share in fractions.items())
    used = all(fractions.get(split, 0) > 0 for split in ("train", "validation"))
    if not known or not used or abs(sum(fractions.values()) - 1) > 1e-6:
        allowed = f"{', '.join(SPLITS)}: numbers >= 0 that sum to 1, those of train and validation > 0"
        raise ConfigError(f"data.fractions must be {allowed}. Received: {dict(fractions)!r}")


def message(root: Path, issues: Sequence[DataIssue], on_bad: str) -> str:
    """Return the text of one error for all issues."""
    # Issues that cannot be skipped come first, so that they are among those shown.
    ordered = sorted(issues, key=lambda issue: (issue.skippable, issue.path, issue.text))
    count = f"{len(issues)} issue{'s' if len(issues) > 1 else ''}"
    lines = [f"{count} in the images of {printable(str(root))} (data.root):"]
    lines += [f"  {printable(issue.path)}: {issue.text}" for issue in ordered[:_SHOWN]]
    if len(ordered) > _SHOWN:
        lines.append(f"  and {len(ordered) - _SHOWN} more")
    skippable = sum(issue.skippable for issue in issues)
    if on_bad == "error" and skippable:
        rest = len(issues) - skippable
        what = f"{skippable} of these; the other {rest} must be mended" if rest else "these files, and records which"
        lines.append(f"data.on_bad=skip leaves out {what}.")
    return "\n".join(lines)


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
