"""The array cache: arrays on disk under a hash of what they were made from, such as decoded pixels and features.

An entry is a directory `cache/kind/<key>/` with `array.npy` and `meta.json`, or one of several such directories in it.
It is created by one atomic rename and verified before it is used, so any number of processes may write and read
concurrently. Locks only prevent duplicate work, and keep `remove` from deleting what is in use. The modification time
of a directory is its last use.
"""

from __future__ import annotations

import copy
import errno
import fcntl
import hashlib
import json
import logging
import mmap
import os
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from experiments.storage.atomic_files import draft, file_hash, hold, sync, write_file, writing_directory

_ARRAY = "array.npy"
_META = "meta.json"
_ATTEMPTS = 10
RESIDENT = 64 * 2**20

_log = logging.getLogger(__name__)
_verified: dict[Path, tuple[int, int, str]] = {}  # array file -> mtime_ns, size and sha256 when this process hashed it


def key(spec: Mapping[str, Any]) -> str:
    """Return the key of a specification: the first 32 hex digits of the sha256 of its canonical JSON.

    Raises:
        TypeError, ValueError: If the specification holds a value that JSON cannot represent, such as NaN.
    """
    canonical = json.dumps(dict(spec), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class CacheEntry:
    """The place of one array in the cache, and the specification that a stored array must match to be used."""

    folder: Path
    spec: Mapping[str, Any]  # everything the array depends on, as JSON values
    shape: tuple[int, ...]
    dtype: str  # NumPy's name of a boolean or numeric type
    about: Mapping[str, Any] = field(default_factory=dict)  # facts that `experiments cache` shows

    @property
    def wanted(self) -> dict[str, Any]:
        """The values that the entry's meta.json must have."""
        return {
            "spec": json.loads(json.dumps(dict(self.spec))),
            "shape": [int(length) for length in self.shape],
            "dtype": np.dtype(self.dtype).str,
        }

    def find(self) -> np.ndarray | None:
        """Return the array as a read-only memory map; None if it is missing or damaged."""
        found = _open(self.folder, self.wanted)
        return None if isinstance(found, str) else found

    def make(self, write: Callable[[np.ndarray], object]) -> np.ndarray:
        """Return the array as a read-only memory map; write it first if it is missing or damaged.

        Args:
            write: Fills the array it is given, which holds zeros. It may run in several processes concurrently; then
                one result is kept and the others are discarded.

        Raises:
            OSError: If the cache cannot be written, or does not hold afterwards what was written.
            Exception: If `write` raises it; nothing is left behind then.
        """
        wanted = self.wanted
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_ATTEMPTS):
            found = _open(self.folder, wanted)  # another process may have written it meanwhile
            if not isinstance(found, str):
                return found
            if self.folder.exists():
                _log.warning("Damaged cache entry, removed and computed again: %s: %s", self.folder, found)
                _remove(self.folder)
            _build(self.folder, {**wanted, "about": dict(self.about)}, write)
        problem = f"What is written to {self.folder} is not what is read back: {found}"
        raise OSError(f"{problem}; check the disk, or move the cache")

    def load_or_create(self, write: Callable[[np.ndarray], object]) -> np.ndarray:
        """Return the array as `make` does, under a lock of its own, and mark it as used while its map lives."""
        found = self.find()
        if found is None:
            with writing(self.folder.parent.parent, self.folder.parent.name, self.folder.name):
                found = self.make(write)
        mark_used(self.folder, found.base)
        return found


class Rows:
    """The rows of several arrays, indexed like their concatenation.

    Rows of arrays that are memory maps of whole files are read from the files, one at a time: reading through the map
    takes five times as long, and its pages would count as memory of this process. The maps themselves are released.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:  # at least one, [n, d, ...]
        self.parts = [_row_reader(part) or part for part in parts]
        self.starts = np.cumsum([0, *map(len, parts)])
        self.shape: tuple[int, ...] = (int(self.starts[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype
        self.order = np.arange(len(self))  # index of a row -> its index in the concatenation

    def __len__(self) -> int:
        return self.shape[0]

    def select(self, rows: np.ndarray) -> Rows:
        """Return the rows with the indices [N], which are read as they are used."""
        selected = copy.copy(self)
        selected.order, selected.shape = self.order[rows], (len(rows), *self.shape[1:])
        return selected

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Return a copy [B, ...] of a slice of the rows, or of the rows with the indices [B].

        Raises:
            OSError: a file cannot be read, or is shorter than it was.
        """
        wanted = self.order[rows]
        only = self.parts[0] if len(self.parts) == 1 else None
        if isinstance(only, np.ndarray):
            return np.asarray(only[wanted])
        owners = np.searchsorted(self.starts, wanted, side="right") - 1
        found = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        for into, owner, row in zip(found, owners.tolist(), (wanted - self.starts[owners]).tolist(), strict=True):
            part = self.parts[owner]
            if isinstance(part, np.ndarray):
                into[...] = part[row]
            else:
                part(row, into)
        return found


def _row_reader(array: np.ndarray) -> Callable[[int, np.ndarray], None] | None:
    """Return a function, for any thread, that reads a row of a memory map's file into an array.

    It closes the file when it is gone itself. None if the array is no memory map of a whole file, or the file was
    removed or renamed.
    """
    if not (isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.filename):
        return None
    name, start, size = str(array.filename), array.offset, array[:1].nbytes
    try:
        file = os.open(name, os.O_RDONLY)
    except FileNotFoundError:
        return None

    def read(row: int, into: np.ndarray) -> None:
        if os.preadv(file, [into.data], start + row * size) != size:
            raise OSError(f"{name} is shorter than it was; make sure that nothing else writes to the cache")

    weakref.finalize(read, os.close, file).atexit = False  # other threads may read until the process ends
    return read


def release(arrays: Sequence[np.ndarray]) -> None:
    """Release the pages of memory maps to the operating system, which reads them again at their next use.

    Data that was written to them is not lost. Arrays that are not memory maps are ignored.
    """
    for array in arrays:
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap):
            base.madvise(mmap.MADV_DONTNEED)


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with the entry in this directory, hashed once per process; None if it is undamaged."""
    found = _open(folder, {})
    return found if isinstance(found, str) else None


def mark_used(entry: Path, holder: object = sys) -> None:
    """Set an entry's time of last use to now, and mark it as in use while `holder` lives (by default this process).

    The mark is a shared lock on the directory, which `remove` respects. Errors are ignored, since both only protect
    the entry from being removed.
    """
    with suppress(OSError):
        os.utime(entry)
    with suppress(OSError):
        descriptor = os.open(entry, os.O_RDONLY)
        weakref.finalize(holder, os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def remove(cache: Path, entry: Path) -> bool:
    """Remove an entry, or the remains of one, unless a lock shows that a process uses it; return whether it is gone.

    Lock files are named KIND-KEY, and what is written under such a lock has KEY in its name. If the entry is a symbolic
    link, only the link is removed, because its target does not belong to the cache.
    """
    with ExitStack() as held:
        for lock in (cache / "locks").glob("*.lock"):
            if lock.stem.rpartition("-")[2] in entry.name:
                try:
                    held.enter_context(FileLock(lock, blocking=False, fallback_to_soft=False))
                except Timeout:
                    return False
                except (OSError, NotImplementedError):  # locks are not supported here: see `hold`
                    pass
        if entry.is_symlink():
            entry.unlink(missing_ok=True)
            return True
        try:
            descriptor = os.open(entry, os.O_RDONLY)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        _remove(entry)
    return True


def _open(entry: Path, wanted: Mapping[str, Any]) -> np.ndarray | str:
    """Return the entry's verified array, or the reason why it cannot be used."""
    path = entry / _ARRAY
    try:
        meta = json.loads((entry / _META).read_bytes())
        different = [name for name in wanted if meta[name] != wanted[name]]
        if different:
            return f"its {', '.join(different)} differ from what was requested"
        if _sha256(path) != meta["sha256"]:
            return "its content does not have the hash it was stored with"
        stored: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        if [list(stored.shape), stored.dtype.str] != [meta["shape"], meta["dtype"]]:
            return "its array is not of the shape and type it was stored with"
    except (OSError, ValueError, KeyError, TypeError) as error:  # incomplete, or not written by this module
        damaged = errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, None
        if getattr(error, "errno", None) not in damaged:
            raise  # too many open files, no permission: the entry may be undamaged
        return f"{type(error).__name__}: {error}"
    return stored


def _sha256(path: Path) -> str:
    """Return the file's hash, computed once per process unless the file's size or modification time changes."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        known = _verified.get(path)
        if known is None or known[:2] != (status.st_mtime_ns, status.st_size):
            known = (status.st_mtime_ns, status.st_size, hashlib.file_digest(file, "sha256").hexdigest())
            _verified[path] = known
    return known[2]


def _build(entry: Path, wanted: Mapping[str, Any], write: Callable[[np.ndarray], object]) -> None:
    """Write an entry to a temporary directory and rename it into place, unless another process was faster."""
    with writing_directory(entry) as temporary:
        path = temporary / _ARRAY
        content = np.lib.format.open_memmap(path, "w+", np.dtype(wanted["dtype"]), tuple(wanted["shape"]))
        with path.open("r+b") as file:  # on a full disk, writing to the map of a sparse file would kill the process
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        write(content)
        content.flush()
        sync(path)
        write_file(temporary / _META, json.dumps({**wanted, "sha256": file_hash(path)}, indent=1).encode())


def _remove(entry: Path) -> None:
    """Rename an entry, then delete it, so that no process reads a partly deleted one."""
    aside = draft(entry)
    with suppress(FileNotFoundError):  # another process has removed it
        os.rename(entry, aside)
    if aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink(missing_ok=True)


@contextmanager
def writing(cache: Path, kind: str, name: str) -> Iterator[None]:
    """Hold the lock of the entry `name` while it, or the entries in its directory, are written.

    Temporary directories that a killed process left of them are removed.
    """
    with hold(cache / "locks" / f"{kind}-{name}.lock") as locked:
        if locked:  # their process was killed: a living one would hold the lock
            for leftover in [*(cache / kind).glob(f".{name}.*"), *(cache / kind / name).glob(".*")]:
                shutil.rmtree(leftover, ignore_errors=True)
        yield
