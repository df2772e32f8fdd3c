"""Entries of the cache for `experiments cache`: their sizes and purposes, damaged ones, and unused ones."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.filesize import decimal

from experiments.storage import array_cache, named_arrays

if TYPE_CHECKING:
    from rich.table import Table

DAY = 24 * 60 * 60
KINDS = (
    "pixels", "activations", "heads", "manifests", "thumbnails", "near_duplicates", "drawn", "cats_vs_dogs", "downloads"
)  # fmt: skip

COUNTED = {  # kinds of entries that are a file of named arrays, and what one row of the first array is, and several are
    "manifests": ("image validated", "images validated"), "thumbnails": ("thumbnail", "thumbnails"),
    "near_duplicates": ("pair of near-duplicates", "pairs of near-duplicates"),
}  # fmt: skip


class StoredEntry(NamedTuple):
    """An entry of the cache, created and removed as a whole; a feature table is one entry with all its shards."""

    path: Path
    size: int  # bytes
    created: float  # seconds since 1970, of the entry's oldest file
    used: float  # seconds since 1970

    @property
    def kind(self) -> str:
        return self.path.parent.name


def scan(cache: Path) -> list[StoredEntry]:
    """Return all entries of the cache except locks, the longest unused first.

    Unfinished entries, whose names begin with a dot, are included, and so are symbolic links, with the link's own size.
    """
    found = []
    for path in cache.glob("*/*"):
        if path.parent.name == "locks" or (path.parent.is_symlink() and path.parent.name not in KINDS):
            continue  # a foreign symbolic link: its target does not belong to the cache
        try:
            used = path.lstat().st_mtime
            is_folder = path.is_dir() and not path.is_symlink()
            files = [file.lstat() for file in path.rglob("*") if file.is_file()] if is_folder else [path.lstat()]
        except FileNotFoundError:  # removed by another process
            continue
        created = min((file.st_mtime for file in files), default=used)
        found.append(StoredEntry(path, sum(file.st_size for file in files), min(created, used), used))
    return sorted(found, key=lambda entry: entry.used)


def purpose(path: Path) -> str:
    """Return a description of an entry's content, read from its metadata."""
    import numpy as np

    if path.is_symlink():
        return f"a link to {os.readlink(path)}, which stays when it is removed"
    if path.name.startswith("."):
        return "unfinished"
    try:
        if path.parent.name in COUNTED and path.suffix == ".npz":
            found = named_arrays.read(path)
            if isinstance(found, str):
                return found
            count = len(next(iter(found.values())))
            return f"{count:,} {COUNTED[path.parent.name][count != 1]}"
        metas = [json.loads((part / "meta.json").read_bytes()) for part in arrays(path)]
        if not metas:
            return f"files: {sum(1 for file in path.rglob('*') if file.is_file()):,}" if path.is_dir() else "a file"
        if "history" in metas[0]:
            history = metas[0]["history"]
            epochs = "1 epoch" if len(history) == 1 else f"{len(history)} epochs"
            return f"{epochs}, validation accuracy {history[-1]['metrics']['validation_accuracy']:.1%}"
        about = metas[0].get("about", {})
        rows = sum(meta["shape"][0] for meta in metas)
        parts = [
            f"{about['network']} at {about['boundary']}," if "network" in about else "",
            about.get("split", ""),
            f"view {about['view'] + 1}" if about.get("view") is not None else "",
            f"{rows:,}" + (f" of {about['rows']:,}" if about.get("rows", rows) != rows else ""),
            f"x {'x'.join(map(str, metas[0]['shape'][1:]))}",
            np.dtype(metas[0]["dtype"]).name,
        ]
        return " ".join(filter(None, parts))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return "unreadable: experiments cache verify"


def arrays(path: Path) -> list[Path]:
    """Return the directories of an entry that have, or had, a hash: the entry itself, or its shards."""
    if (path / "meta.json").exists():
        return [path]
    return sorted({file.parent for name in ("meta.json", "array.npy") for file in path.glob(f"[!.]*/{name}")})


def listing(found: Sequence[StoredEntry]) -> Table:
    """Return a table of entries by kind, the last used first."""
    from experiments.system.progress import plain_table

    now = time.time()
    table = plain_table(("kind", "what for", "size", "used", "made"), numbers=("size", "used", "made"))
    for entry in sorted(found, key=lambda entry: (entry.kind, -entry.used)):
        ages = age(now - entry.used), age(now - entry.created)
        table.add_row(entry.kind, purpose(entry.path), decimal(entry.size), *ages)
    return table


def age(seconds: float) -> str:
    for unit, length in (("d", DAY), ("h", 3600)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0) / 60:.0f} min"


def verify(entry: StoredEntry) -> Iterator[tuple[Path, str | None]]:
    """Yield each directory of an entry that has a hash, with the reason why it is damaged, or None if it is not."""
    from experiments.training import checkpoints

    if entry.path.name.startswith(".") or entry.path.is_symlink():
        return
    if entry.kind == "heads":
        history = checkpoints.read(entry.path)
        yield entry.path, history if isinstance(history, str) else None
    elif entry.kind in COUNTED and entry.path.suffix == ".npz":
        found = named_arrays.read(entry.path)
        yield entry.path, found if isinstance(found, str) else None
    elif entry.kind in ("pixels", "activations"):
        # A directory of features without shards is left by a process that ended before it had written the first one.
        for part in arrays(entry.path) or ([entry.path] if entry.kind == "pixels" else []):
            yield part, array_cache.find_damage(part)


def prune(cache: Path, *, older: float | None, to: int | None, dry_run: bool) -> Iterator[str]:
    """Remove entries unused for more than `older` days, then the longest unused until at most `to` bytes remain.

    Entries that another process writes or uses at the moment are kept. A line is yielded for each of these entries,
    and lines about what remains.
    """
    found = scan(cache)
    total, count = sum(entry.size for entry in found), 0
    for entry in found:
        unused = time.time() - entry.used
        if not (older is not None and unused > older * DAY) and not (to is not None and total > to):
            continue
        what = f"{decimal(entry.size)} {entry.kind}: {purpose(entry.path)}, last used {age(unused)} ago"
        if not dry_run and not array_cache.remove(cache, entry.path):
            yield f"in use, kept: {what}"
            continue
        total, count = total - entry.size, count + 1
        yield f"{'would remove' if dry_run else 'removed'} {what}"
    yield f"{count} entries {'would be ' if dry_run else ''}removed, {decimal(total)} remain in {cache}"
    if to is not None and total > to:
        yield f"that is more than {decimal(to)}: what remains is in use"
