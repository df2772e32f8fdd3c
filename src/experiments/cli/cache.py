"""`experiments cache [list|verify|prune]`: list the cache's entries, verify their hashes, or remove unused ones."""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path

from experiments.cli.arguments import exit_on_error, folder, number
from experiments.system.paths import default_outputs

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@exit_on_error(OSError)
def main() -> None:
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--outputs", type=folder, default=argparse.SUPPRESS, metavar="DIR", help="(default: as train's)")
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
    prune_parser.add_argument(
        "--older",
        type=number("a number of days, 0 or more", lambda value: 0 <= value < math.inf),
        metavar="DAYS",
        help="what was not used for so many days",
    )
    prune_parser.add_argument("--to", type=size, metavar="SIZE", help="the longest unused, until 5GB, say, remain")
    prune_parser.add_argument("--dry-run", action="store_true", help="print what would be removed")
    arguments = parser.parse_args()
    if arguments.part == "prune" and arguments.older is None and arguments.to is None:
        prune_parser.error("give --older DAYS, --to SIZE or both")
    directory = Path(getattr(arguments, "outputs", default_outputs())) / "cache"
    from experiments.inspection import cache

    if arguments.part == "verify":
        sys.exit(verify(directory, remove=arguments.remove))
    if arguments.part == "prune":
        for line in cache.prune(directory, older=arguments.older, to=arguments.to, dry_run=arguments.dry_run):
            print(line)
    else:
        show(directory)


def size(text: str) -> int:
    """Return the number of bytes of a size such as 5GB, 500 MB, 1.5G or 800000, as an argparse type."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"must be a size such as 5GB, 500MB or 0. Received: {text!r}")
    return int(float(found[1]) * UNITS[found[2].upper()])


def show(directory: Path) -> None:
    """Print one line for each entry, and the total."""
    from rich.filesize import decimal

    from experiments.inspection import cache

    entries = cache.scan(directory)
    if entries:
        from experiments.system.progress import PlainConsole

        PlainConsole().print(cache.listing(entries))
    print(f"{len(entries)} entries, {decimal(sum(entry.size for entry in entries))} in {directory}")


def verify(directory: Path, *, remove: bool) -> int:
    """Verify the entries stored with a hash; print the damaged ones, or also `remove` them; return the exit code."""
    from experiments.inspection import cache
    from experiments.storage import array_cache

    checked, unhashed, damaged = 0, 0, 0
    for entry in cache.scan(directory):
        results = list(cache.verify(entry))
        checked, unhashed = checked + len(results), unhashed + (not results)
        for path, issue in results:
            if issue is None or not path.exists():  # removed by another process meanwhile
                continue
            damaged += 1
            removed = " (removed)" if remove and array_cache.remove(directory, path) else ""
            print(f"{path}: {issue}{removed}")
    print(f"{checked} hashes checked, {damaged} damaged; {unhashed} entries were stored without one")
    return 1 if damaged else 0
