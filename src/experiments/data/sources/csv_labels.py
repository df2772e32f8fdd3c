"""Data source for images whose labels are in a CSV file."""

from __future__ import annotations

import csv
import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from experiments.config.messages import nearest_hint
from experiments.data.issues import DataIssue, printable
from experiments.data.listing import SPLIT_NAMES, ListedImage, Listing, class_names, is_image, is_litter
from experiments.data.sources.folder import existing
from experiments.data.types import SPLITS, SkippedImage
from experiments.errors import ConfigError
from experiments.images.plugins import SUFFIXES

# Names of columns, without case, spaces and punctuation; of several path columns the first in this order is used.
_PATHS = (
    "path", "filepath", "filepaths", "imagepath", "file", "filename", "filenames", "imagefile", "imagename", "image",
    "images", "img", "imageid", "id",
)  # fmt: skip
_LABELS = ("label", "labels", "class", "classname", "category", "target")
_SPLITS = ("split", "subset", "dataset", "partition")


class LabelRow(NamedTuple):
    """A row of a table."""

    line: int  # of the file, from 1
    cells: Mapping[str, str]  # by column, without spaces around them
    path: str
    label: str
    split: str  # as in SPLITS where it is known, else as written; "": no column of splits is used


@dataclass(frozen=True)
class Table:
    """The rows of a CSV file, and which of its columns are meant."""

    file: Path
    columns: Sequence[str]
    rows: Sequence[LabelRow]
    path: str  # the column of paths
    label: str  # the column of classes
    split: str | None  # the column of splits
    notes: Sequence[str] = ()  # sentences on how its classes are understood


def csv_labels(
    *,
    labels: str,
    images: str | None,
    path_column: str | None,
    label_column: str | None,
    split_column: str | None,
    cache: Path,
) -> Listing:
    """Return the images that a CSV file lists, each with its class. Nothing is copied.

    Args:
        labels: The CSV file; its first line names the columns. They are separated by commas, semicolons or tabs.
        images: The folder that the paths in the file are relative to; None for the folder of the file.
        path_column: The column of paths; None to find it by its name. Paths may lack the suffix of their files.
        label_column: The column of classes; None to find it by its name.
        split_column: The column of splits; None for a column called split, if there is one; "" for none.
        cache: Not used; every data source receives it.

    Raises:
        ConfigError: If the file or a column is missing, or none of the images exists.
    """
    file = existing("data.labels", labels, "a CSV file with a column of paths and one of classes", is_file=True)
    base = existing("data.images", images, "the folder that the paths are relative to") if images else file.parent
    table = read_table(file, path_column, label_column, split_column)
    listing = list_rows(table, base)
    if table.split and "train" not in listing.splits:
        raise ConfigError(f"data.split_column: no row of column {table.split!r} in {printable(str(file))} is train")
    if len(listing.classes) < 2:
        received = ", ".join(map(printable, listing.classes)) or "none"
        problem = f"two or more classes are needed, column {table.label!r} of {file} has {received}"
        raise ConfigError(f"data.label_column: {problem}")
    return listing


def list_rows(table: Table, base: Path, *, count_others: bool = True) -> Listing:
    """Return the images in the rows of a table, of any number of classes and splits.

    Rows without an image, a label or a split, and images with two labels or splits, are issues.

    Args:
        table: The table.
        base: The folder that its paths are relative to.
        count_others: Whether a note counts the images that are beside the listed ones, but not in the table.

    Raises:
        ConfigError: If none of the images exists.
    """
    issues, found = _locate(table, base)
    places = [place for _, place in found]
    root = base
    if not all(Path(place).is_relative_to(base) for place in places):
        root = Path(os.path.commonpath([os.path.dirname(place) for place in places]))
    rows: dict[str, LabelRow] = {}  # by path
    unlabelled = not any(row.label for row in table.rows if row.split == "test")
    skipped: list[SkippedImage] = []
    for row, place in found:
        path = os.path.relpath(place, root).replace(os.sep, "/")
        before = rows.get(path, row)
        if row.split == "test" and unlabelled:
            skipped.append(SkippedImage(path, "an image of the test split, which has no labels"))
        elif problem := _row_issue(table, row):
            issues.append(DataIssue(path, problem, skippable=True, class_name=row.label))
        elif (before.label, before.split) != (row.label, row.split):
            lines = f"lines {before.line} and {row.line} of {table.file.name}"
            text = f"has two classes or splits, on {lines}; remove the line that is wrong"
            issues.append(DataIssue(path, text, skippable=False, class_name=row.label))
        else:
            cells = {name: text if text == before.cells[name] else "" for name, text in row.cells.items()}
            rows[path] = row._replace(cells=cells)
    given = {row.split for row in rows.values()}
    facts = [name for name in table.columns if name != table.path]
    return Listing(
        root=root,
        images=[ListedImage(path, rows[path].label, rows[path].split) for path in sorted(rows)],
        classes=sorted({row.label for row in table.rows} - {""}),
        splits=[split for split in SPLITS if split in given],
        notes=_notes(table, places if count_others else [], len(skipped)),
        issues=issues,
        skipped=skipped,
        columns={name: {path: row.cells[name] for path, row in rows.items()} for name in facts},
    )


def read_table(file: Path, path_column: str | None, label_column: str | None, split_column: str | None) -> Table:
    """Read a CSV file and decide which of its columns are meant; see `csv_labels`.

    Raises:
        ConfigError: If the file cannot be read, or a column is missing.
    """
    where = printable(str(file))
    columns, rows = _read_rows(file, where, is_header=bool(path_column))
    path = _column("data.path_column", path_column or None, _by_name(columns, _PATHS)[:1], columns, where)
    labels = _by_name(columns, _LABELS) or [name for name in columns if len(columns) == 2 and name != path]
    label = _column("data.label_column", label_column or None, labels, columns, where)
    # A column that holds something else (numbers of folds, say) gives no splits.
    usable = [name for name in _by_name(columns, _SPLITS) if any(row[name].lower() in SPLIT_NAMES for _, row in rows)]
    split = _column("data.split_column", split_column, usable[:1] or [""], columns, where)
    splits = [SPLIT_NAMES.get(row[split].lower(), row[split]) if split else "" for _, row in rows]
    notes: list[str] = []
    class_of = class_names((row[label] for _, row in rows), notes)
    named = zip(rows, splits, strict=True)
    found = [LabelRow(line, row, row[path], class_of[row[label]], name) for (line, row), name in named]
    return Table(file, columns, found, path, label, split or None, notes)


def _read_rows(file: Path, where: str, *, is_header: bool) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the columns of a CSV file, and the number of the line and the cells of each row.

    Args:
        file: The CSV file.
        where: Its path, for errors.
        is_header: Whether the first line is known to name the columns, even if it names an image.

    Raises:
        ConfigError: If the file cannot be read, or is no table with rows.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            header = lines.readline()
            lines.seek(0)
            reader = csv.reader(lines, delimiter=max(",;\t", key=header.count), skipinitialspace=True)
            columns = [name.strip() for name in next(reader, [])]
            numbered = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except UnicodeDecodeError as error:
        text = f"is not encoded in UTF-8 ({error.reason} at byte {error.start}); save it as CSV UTF-8"
        raise ConfigError(f"data.labels: {where} {text}") from None
    except (OSError, csv.Error) as error:
        raise ConfigError(f"data.labels: {where} cannot be read as CSV: {error}") from None
    if (first := next(filter(is_image, columns), None)) and not is_header:
        text = "its first line names an image and not the columns; write a line such as path,label above it"
        raise ConfigError(f"data.labels: {where}: {text}. Received: {first!r}")
    uneven = [line for line, row in numbered if len(row) != len(columns)]
    if uneven:
        text = f"{len(uneven)} rows have another number of cells than the first line, such as line {uneven[0]}"
        raise ConfigError(f"data.labels: {where}: {text}; put quotes around texts that hold the separator")
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise ConfigError(f"data.labels: {where}: two columns are called {repeated[0]!r}; rename one")
    if not numbered:
        raise ConfigError(f"data.labels: {where} has no rows below its first line")
    return columns, [(line, dict(zip(columns, map(str.strip, row), strict=True))) for line, row in numbered]


def _by_name(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the columns that have one of the names, in the order of the names."""
    plain = {re.sub(r"[\W_]", "", column.lower()): column for column in columns}
    return [plain[name] for name in names if name in plain]


def _column(key: str, given: str | None, found: Sequence[str], columns: Sequence[str], where: str) -> str:
    """Return the column that is given, or the only one that was found by its name."""
    allowed = f"Columns of {where}: {', '.join(map(repr, columns))}"
    if given and given not in columns:
        hint = nearest_hint(given, columns)
        raise ConfigError(f"{key}: there is no such column. {allowed}. Received: {given!r}{hint}")
    if given is None and len(found) != 1:
        what = "no column has a usual name" if not found else f"{' and '.join(map(repr, found))} may be meant"
        raise ConfigError(f"{key}: {what}; give the one that is: {key}=NAME. {allowed}")
    return found[0] if given is None else given


def _locate(table: Table, base: Path) -> tuple[list[DataIssue], list[tuple[LabelRow, str]]]:
    """Return an issue for every row without an image, and the other rows with the absolute paths of their files."""
    issues, found = [], []
    images_in = functools.cache(_images_by_stem)
    for row in table.rows:
        where = f"line {row.line} of {table.file.name}"
        place = _file(base, row.path, images_in) if row.path else None
        if place is not None and is_image(place):
            found.append((row, place))
            continue
        if not row.path:
            problem = f"column {table.path!r} is empty"
        elif place is None:
            problem = f"no such file; it is on {where}"
        else:
            problem = f"not of a type read here ({' '.join(SUFFIXES)}); it is on {where}"
        issues.append(DataIssue(row.path or where, problem, skippable=True, class_name=row.label))
    if not found:
        raise ConfigError(
            f"data.images: none of the {len(table.rows):,} images in column {table.path!r} of "
            f"{printable(str(table.file))} exists below {printable(str(base))}, such as {printable(issues[0].path)}. "
            "Give the folder that the paths are relative to: data.images=PATH"
        )
    return issues, found


def _file(base: Path, text: str, images_in: Callable[[str], Mapping[str, str]]) -> str | None:
    """Return the absolute path of the file that a cell names, and None if there is none.

    A backslash may separate folders, and the suffix of an image may be missing.
    """
    for name in dict.fromkeys((text, text.replace("\\", "/"))):
        path = os.path.normpath(os.path.join(base, name))
        if os.path.isfile(path):
            return path
        folder, stem = os.path.split(path)
        if found := images_in(folder).get(stem):
            return os.path.join(folder, found)
    return None


def _images_by_stem(folder: str) -> dict[str, str]:
    """Return the images of a folder by their names without suffix, except those of which two have the same."""
    if not os.path.isdir(folder):
        return {}
    names = [(os.path.splitext(name)[0], name) for name in os.listdir(folder) if is_image(name)]
    count = Counter(stem for stem, _ in names)
    return {stem: name for stem, name in names if count[stem] == 1}


def _row_issue(table: Table, row: LabelRow) -> str | None:
    """Return what is wrong with a row whose image exists, and None if it can be used."""
    where = f"line {row.line} of {table.file.name}"
    if not row.label:
        return f"column {table.label!r} is empty on {where}; write the class there, or remove the line"
    if table.split and row.split not in SPLITS:
        return (
            f"column {table.split!r} must have a split on {where}. Allowed: {', '.join(SPLIT_NAMES)}. "
            f"Received: {row.split!r}. To draw the splits instead: 'data.split_column=\"\"'"
        )
    return None


def _notes(table: Table, places: Sequence[str], unlabelled: int) -> list[str]:
    """Return sentences on how the file was read."""
    used = f"paths from column {table.path!r}, classes from {table.label!r}"
    used += f", splits from {table.split!r}" if table.split else ""
    notes = [f"{printable(table.file.name)}: {len(table.rows):,} rows, {used}", *table.notes]
    unused = (name for name in _by_name(table.columns, _SPLITS) if name != table.split)
    notes += [f"column {name!r} is not used for splits" for name in unused]
    if unlabelled:
        notes.append(f"the {unlabelled:,} images of the test split have no labels and are left aside")
    listed = set(places)
    beside = (
        os.path.join(folder, name)
        for folder in sorted(set(map(os.path.dirname, places)))
        for name in sorted(os.listdir(folder))
        if is_image(name) and not is_litter(name)
    )
    if others := [path for path in beside if path not in listed]:
        text = f"{len(others):,} images beside those of {printable(table.file.name)} are not in it and are not used"
        notes.append(f"{text}, such as {printable(others[0])}")
    return notes
