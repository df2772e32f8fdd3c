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
from typing import TYPE_CHECKING

from experiments.data import decoder
from experiments.data.listing import DataIssue, Groups, list_images, printable
from experiments.data.splitting import draw_fold, draw_splits, rank
from experiments.data.types import SPLITS, GrayRange, ImageRecord, ImageWarning, Manifest, SkippedImage
from experiments.errors import ConfigError, DataError
from experiments.storage import array_cache, atomic_files

if TYPE_CHECKING:
    from experiments.data.pixel_cache import Decoded

_SHOWN = 20  # issues listed in one error

_log = logging.getLogger(__name__)

_Facts = tuple[int, int, str, list[str]]  # width, height, mode, warnings


def read(
    root: Path,
    *,
    fractions: Mapping[str, float],
    split_seed: int,
    fold: int | None = None,
    folds: int = 5,
    limit: Mapping[str, int | None],
    on_bad: str,
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
    issue.

    Args:
        root: The directory of the data set.
        fractions: The share of every class in "train", "validation" and "test"; they sum to 1, and a positive one gets
            at least one image of each class. Not used where the directories are the splits.
        split_seed: Seeds the split, the folds and the choice of `limit`.
        fold: From 0 to folds - 1: this fold of every class's training images becomes the validation split, and the
            images that would have been the validation split are not used at all. None: the splits as they are.
        folds: Number of folds; their sizes differ by one image at most.
        limit: The largest number of images per class in a split; None, or no such key, for all. The images of a
            smaller limit are among those of a larger. Those beyond it are hashed, but not decoded (but see `on_bad`).
        on_bad: "error"; or "skip" to skip files (not directories) with issues, which are recorded in `left_out`: the
            splits and folds are drawn as if those files did not exist, for which every file is decoded once.
        gray_range: See `decoder.decode`.
        cache: The cache directory. Validation results are kept in `cache/manifests/`, so that no content is validated
            twice.
        decoded: Receives the images decoded for validation, so that they need not be decoded again for their pixels.
        found: Receives every issue, sorted by path; then none is raised, and the manifest holds the remaining images,
            if any.

    Returns:
        The manifest, `root` absolute.

    Raises:
        ConfigError: If an argument is invalid.
        DataError: If there are issues; one error for all of them.
    """
    root = Path(os.path.abspath(root))
    _check_choices(limit, on_bad)
    faults: list[DataIssue] = []
    groups, presplit = list_images(root, faults)
    if not presplit:
        _check_fractions(fractions)

    hashes: dict[str, tuple[str, int]] = {}  # path -> sha256, bytes
    paths = [path for members in groups.values() for path in members]
    with ThreadPoolExecutor() as pool:
        for path, hashed in zip(paths, pool.map(functools.partial(_hash, root), paths), strict=True):
            if isinstance(hashed, str):
                faults.append(DataIssue(path, hashed, skippable=True))
            else:
                hashes[path] = hashed
    groups = {group: [path for path in members if path in hashes] for group, members in groups.items()}

    if decoded:
        decoded.expect(len(hashes))
    verdicts = _ValidationResults(root, cache, hashes, gray_range, decoded)
    groups = _without_duplicates(groups, verdicts, faults)

    def assign(groups: Groups, faults: list[DataIssue]) -> Groups:
        if not presplit:
            groups = draw_splits(groups, fractions, split_seed, faults)
        if fold is not None:
            groups = draw_fold(groups, fold, folds, split_seed, "train/" if presplit else "", faults)
        return groups

    if on_bad == "skip" and (not presplit or fold is not None):
        # Images that will probably be used are validated first, with their decoded pixels kept for the run.
        _choose(assign(groups, []), limit, split_seed, verdicts)
        verdicts.judge((path for members in groups.values() for path in members), keep=False)
        groups = {group: verdicts.usable(members) for group, members in groups.items()}
    groups = _choose(assign(groups, faults), limit, split_seed, verdicts)
    verdicts.save()

    entries, warnings = [], []
    for (split, class_name), members in groups.items():
        for path in members:
            sha256, size = hashes[path]
            width, height, mode, texts = verdicts.good[sha256]
            entries.append(ImageRecord(path, size, sha256, width, height, mode, class_name, split))
            warnings += [ImageWarning(path, text) for text in texts]
        if not members:
            origin = "train" if fold is not None and split == "validation" else split
            folder = f"{origin}/{class_name}" if presplit else class_name
            text = f"no image that can be used is left for {split}; add images or remove the class"
            if not any(fault.path == folder for fault in faults):  # a more precise issue may exist
                faults.append(DataIssue(folder, text, skippable=False))
    faults += [
        DataIssue(path, verdicts.bad[sha], skippable=True) for path, (sha, _) in hashes.items() if sha in verdicts.bad
    ]

    fatal = [fault for fault in faults if on_bad == "error" or not fault.skippable]
    if found is not None:
        found += sorted(faults)
    elif fatal:
        raise DataError(message(root, fatal, on_bad))
    left_out = tuple(SkippedImage(path, text) for path, text, _ in sorted(faults))
    if left_out and found is None:
        first = f"{printable(left_out[0].path)}: {left_out[0].reason}"
        _log.warning("Files skipped (data.on_bad=skip): %d, the first: %s", len(left_out), first)
    warnings.sort(key=lambda warning: warning.path)
    if warnings and found is None:
        _log.warning("\n".join([f"Images used, with a warning: {len(warnings)}", *warning_lines(warnings)]))
    entries.sort(key=lambda entry: (SPLITS.index(entry.split), entry.path))
    classes = tuple(sorted({class_name for _, class_name in groups}))
    return Manifest(root, classes, tuple(entries), left_out, tuple(warnings), gray_range)


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


def read_validation_results(file: Path) -> dict[str, _Facts] | str:
    """Return the valid images that a file of `cache/manifests/` lists, by sha256.

    If the file cannot be used, return the reason instead.
    """
    try:
        kept = json.loads(file.read_bytes())
        images = kept["images"] if "images" in kept else kept["pictures"]  # the name in version 0.1
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


def _without_duplicates(groups: Groups, verdicts: _ValidationResults, faults: list[DataIssue]) -> Groups:
    """Add an issue for every duplicate image, and return the groups without those that can be skipped.

    Of duplicates within one split, only the first is kept; none is kept where their classes differ. Duplicates in
    different splits cannot be skipped.
    """
    same = defaultdict(list)
    for (split, class_name), members in groups.items():
        for path in members:
            same[verdicts.sha256(path)].append((split, class_name, path))
    repeated = {sha256: places for sha256, places in same.items() if len(places) > 1}
    # Damaged files often have equal contents (empty files, error pages saved as images): they are no duplicates.
    verdicts.judge(places[0][2] for places in repeated.values())
    dropped = set()
    for sha256, ((split, class_name, path), *others) in repeated.items():
        if sha256 in verdicts.bad:
            continue
        for other_split, other_class, other in others:
            if other_split != split:
                text = f"the same image as {printable(path)}, in another split; remove one, splits may share none"
            elif other_class != class_name:
                text = f"the same image as {printable(path)}, in another class; remove the one that is wrong"
                if path not in dropped:  # both are skipped, as either class may be wrong
                    both = f"the same image as {printable(other)}, in another class; remove the one that is wrong"
                    faults.append(DataIssue(path, both, skippable=True))
                dropped |= {path, other}
            else:
                text = f"the same image as {printable(path)}; remove one"
                dropped.add(other)
            faults.append(DataIssue(other, text, skippable=other in dropped))
    return {group: [path for path in members if path not in dropped] for group, members in groups.items()}


# --- which images are used


def _choose(groups: Groups, limit: Mapping[str, int | None], seed: int, verdicts: _ValidationResults) -> Groups:
    """Return the first valid images of every class and split, up to the limit.

    Images that turn out to be invalid are replaced by the next ones.
    """
    ranked = {group: sorted(members, key=functools.partial(rank, seed)) for group, members in groups.items()}
    while True:
        usable = {group: verdicts.usable(members) for group, members in ranked.items()}
        chosen = {group: members[: limit.get(group[0])] for group, members in usable.items()}
        # In the order in which the array cache is filled, so that the blocks of `Decoded` become free one by one.
        ordered = sorted((SPLITS.index(split), path) for (split, _), members in chosen.items() for path in members)
        paths = [path for _, path in ordered]
        if all(verdicts.sha256(path) in verdicts.good for path in paths):
            return chosen
        verdicts.judge(paths)


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


def message(root: Path, faults: Sequence[DataIssue], on_bad: str) -> str:
    """Return the text of one error for all issues."""
    # Issues that cannot be skipped come first, so that they are among those shown.
    ordered = sorted(faults, key=lambda fault: (fault.skippable, fault.path, fault.text))
    count = f"{len(faults)} issue{'s' if len(faults) > 1 else ''}"
    lines = [f"{count} in the images of {printable(str(root))} (data.root):"]
    lines += [f"  {printable(fault.path)}: {fault.text}" for fault in ordered[:_SHOWN]]
    if len(ordered) > _SHOWN:
        lines.append(f"  and {len(ordered) - _SHOWN} more")
    skippable = sum(fault.skippable for fault in faults)
    if on_bad == "error" and skippable:
        rest = len(faults) - skippable
        what = f"{skippable} of these; the other {rest} must be mended" if rest else "these files, and records which"
        lines.append(f"data.on_bad=skip leaves out {what}.")
    return "\n".join(lines)


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
