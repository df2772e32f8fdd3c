"""`experiments cache [list|verify|prune]`: list the cache's entries, verify their hashes, or remove unused ones."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.system.paths import default_outputs

if TYPE_CHECKING:
    from rich.table import Table

DAY = 24 * 60 * 60
KINDS = ("pixels", "activations", "heads", "manifests", "drawn", "cats_vs_dogs", "downloads")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Held(NamedTuple):
    """An entry of the cache, created and removed as a whole; a feature table is one entry with all its shards."""

    path: Path
    size: int  # bytes
    created: float  # seconds since 1970, of the entry's oldest file
    used: float  # seconds since 1970

    @property
    def kind(self) -> str:
        return self.path.parent.name


def main() -> None:
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--outputs", type=Path, default=argparse.SUPPRESS, metavar="DIR", help="(default: as train's)")
    parser = argparse.ArgumentParser(
        prog="experiments cache",
        description="The cache holds what runs can compute again: decoded pixels, features, trained heads, synthetic "
        "and downloaded images. What is removed from it is made again by the next run that needs it.",
        parents=[place],
    )
    parts = parser.add_subparsers(dest="part", metavar="list|verify|prune")
    parts.add_parser("list", parents=[place], help="entries with size, age and what they are for (the default)")
    verify_parser = parts.add_parser(
        "verify", parents=[place], help="hash everything again; exit code 1 if any is damaged"
    )
    verify_parser.add_argument("--remove", action="store_true", help="remove what is damaged")
    prune_parser = parts.add_parser(
        "prune", parents=[place], help="remove what was not used for long, or the longest unused down to a size"
    )
    prune_parser.add_argument("--older", type=days, metavar="DAYS", help="what was not used for so many days")
    prune_parser.add_argument("--to", type=size, metavar="SIZE", help="the longest unused, until 5GB, say, remain")
    prune_parser.add_argument("--dry-run", action="store_true", help="say what would be removed")
    arguments = parser.parse_args()
    outputs = getattr(arguments, "outputs", None)
    if outputs and not outputs.is_dir():
        parser.error(f"--outputs: no such folder. Received: {outputs}")
    cache = (outputs or Path(default_outputs())) / "cache"
    if arguments.part == "prune" and arguments.older is None and arguments.to is None:
        prune_parser.error("give --older DAYS, --to SIZE or both")
    try:
        if arguments.part == "verify":
            sys.exit(verify(cache, remove=arguments.remove))
        if arguments.part == "prune":
            prune(cache, older=arguments.older, to=arguments.to, dry_run=arguments.dry_run)
        else:
            show(cache)
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")


def days(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of days, 0 or more. Received: {text!r}")
    return value


def size(text: str) -> int:
    """Return the number of bytes of a size such as 5GB, 500 MB, 1.5G or 800000, as an argparse type."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"must be a size such as 5GB, 500MB or 0. Received: {text!r}")
    return int(float(found[1]) * UNITS[found[2].upper()])


def scan(cache: Path) -> list[Held]:
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
        found.append(Held(path, sum(file.st_size for file in files), min(created, used), used))
    return sorted(found, key=lambda held: held.used)


def purpose(path: Path) -> str:
    """Return a description of an entry's content, read from its metadata."""
    import numpy as np

    from experiments.data.manifest import listed_images

    if path.is_symlink():
        return f"a link to {os.readlink(path)}, which stays when it is removed"
    if path.name.startswith("."):
        return "unfinished"
    try:
        if path.suffix == ".json":
            return f"{len(listed_images(json.loads(path.read_bytes()))):,} images validated"
        metas = [json.loads((part / "meta.json").read_bytes()) for part in arrays(path)]
        if not metas:
            return f"files: {sum(1 for file in path.rglob('*') if file.is_file()):,}" if path.is_dir() else "a file"
        if "history" in metas[0]:
            history = metas[0]["history"]
            return f"{len(history)} epochs, validation accuracy {history[-1]['metrics']['validation_accuracy']:.1%}"
        about = metas[0].get("about", {})
        rows = sum(meta["shape"][0] for meta in metas)
        parts = [
            f"{about['network']} at {about['boundary']}," if "network" in about else "",
            about.get("split", ""),
            f"view {about['view'] + 1}" if about.get("view") is not None else "",
            f"{rows:,}" + (f" of {about['rows']:,}" if about.get("rows", rows) != rows else ""),
            "x",
            "x".join(map(str, metas[0]["shape"][1:])),
            np.dtype(metas[0]["dtype"]).name,
        ]
        return " ".join(part for part in parts if part)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return "unreadable: experiments cache verify"


def arrays(path: Path) -> list[Path]:
    """Return the directories of an entry that have a hash: the entry itself, or its shards."""
    if (path / "meta.json").exists():
        return [path]
    return sorted(meta.parent for meta in path.glob("*/meta.json") if not meta.parent.name.startswith("."))


def show(cache: Path) -> None:
    """Print one line for each entry, and the total."""
    from experiments.storage.atomic_files import readable

    found = scan(cache)
    if found:
        from experiments.system.progress import PlainConsole

        PlainConsole().print(listing(found))
    total = sum(held.size for held in found)
    print(f"{len(found)} entries, {readable(total)} in {cache}")


def listing(found: Sequence[Held]) -> Table:
    """Return a table of entries by kind, the last used first."""
    from rich import box
    from rich.table import Table

    from experiments.storage.atomic_files import readable

    now = time.time()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("kind", "what for", "size", "used", "made"):
        table.add_column(name, justify="left" if name in ("kind", "what for") else "right", no_wrap=name != "what for")
    for held in sorted(found, key=lambda held: (held.kind, -held.used)):
        ages = age(now - held.used), age(now - held.created)
        table.add_row(held.kind, purpose(held.path), readable(held.size), *ages)
    return table


def age(seconds: float) -> str:
    for unit, length in (("d", DAY), ("h", 3600)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0) / 60:.0f} min"


def verify(cache: Path, *, remove: bool) -> int:
    """Verify all entries that were stored with a hash; print the damaged ones, and remove them if `remove` is set.

    Returns:
        The exit code: 1 if an entry is damaged, else 0.
    """
    from experiments.storage import array_cache

    checked, unhashed, damaged = 0, 0, 0
    for held in scan(cache):
        faults = list(check(held))
        checked, unhashed = checked + len(faults), unhashed + (not faults)
        for path, fault in faults:
            if fault is None or not path.exists():  # removed by another process meanwhile
                continue
            damaged += 1
            removed = " (removed)" if remove and array_cache.remove(cache, path) else ""
            print(f"{path}: {fault}{removed}")
    print(f"{checked} hashes checked, {damaged} damaged; {unhashed} entries were stored without one")
    return 1 if damaged else 0


def check(held: Held) -> Iterator[tuple[Path, str | None]]:
    """Yield each directory of an entry that has a hash, with the reason why it is damaged, or None if it is not."""
    from experiments.data import manifest
    from experiments.storage import array_cache
    from experiments.training import checkpoints

    if held.path.name.startswith(".") or held.path.is_symlink():
        return
    if held.kind == "heads":
        history = checkpoints.read(held.path)
        yield held.path, history if isinstance(history, str) else None
    elif held.kind == "manifests":
        kept = manifest.read_validation_results(held.path)
        yield held.path, kept if isinstance(kept, str) else None
    elif held.kind in ("pixels", "activations"):
        # A directory of features without shards is left by a process that ended before it had written the first one.
        for part in arrays(held.path) or ([held.path] if held.kind == "pixels" else []):
            yield part, array_cache.find_damage(part)


def prune(cache: Path, *, older: float | None, to: int | None, dry_run: bool) -> None:
    """Remove entries unused for more than `older` days, then the longest unused until at most `to` bytes remain.

    Entries that another process writes or uses at the moment are kept.
    """
    from experiments.storage import array_cache, atomic_files

    found = scan(cache)
    total, count = sum(held.size for held in found), 0
    for held in found:
        unused = time.time() - held.used
        if not (older is not None and unused > older * DAY) and not (to is not None and total > to):
            continue
        what = f"{atomic_files.readable(held.size)} {held.kind}: {purpose(held.path)}, last used {age(unused)} ago"
        if not dry_run and not array_cache.remove(cache, held.path):
            print(f"in use, kept: {what}")
            continue
        total, count = total - held.size, count + 1
        print(f"{'would remove' if dry_run else 'removed'} {what}")
    print(f"{count} entries {'would be ' if dry_run else ''}removed, {atomic_files.readable(total)} remain in {cache}")
    if to is not None and total > to:
        print(f"that is more than {atomic_files.readable(to)}: what remains is in use")


if __name__ == "__main__":
    main()
