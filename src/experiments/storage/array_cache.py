"""Arrays kept under a cache folder by what they were made from: decoded pixels, activations.

An entry is a folder `cache/kind/<key>/` with `array.npy` and `meta.json`, or one of several such folders in it. It
appears by one rename, complete, and is verified before it is used, so any number of processes may write and read at
once; locks only keep them from doing the same work twice, and `remove` from what is in use. A folder's time of change
is its last use.
"""

from __future__ import annotations

import errno
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
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from experiments.storage.atomic_files import allocate, draft, hold, sync, write_synced

if sys.platform != "win32":
    import fcntl

_ARRAY = "array.npy"
_META = "meta.json"
_ATTEMPTS = 10
RESIDENT = 64 * 2**20

_log = logging.getLogger(__name__)
_verified: dict[Path, tuple[int, int, str]] = {}  # array file -> mtime_ns, size and sha256 when this process hashed it


def key(spec: Mapping[str, Any]) -> str:
    """The name of what `spec` describes: 32 hex digits, from the sha256 of its canonical JSON.

    Raises:
        TypeError: If the specification holds what JSON cannot.
        ValueError: If it holds NaN or infinity.
    """
    return hashlib.sha256(_canonical(spec).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """A place in the store for one array, and what must be there to be used."""

    folder: Path
    spec: Mapping[str, Any]  # everything the array depends on, as JSON can hold it
    shape: tuple[int, ...]
    dtype: str  # a boolean or a number of NumPy's own
    about: Mapping[str, Any] = field(default_factory=dict)  # what people are told of it

    @property
    def wanted(self) -> dict[str, Any]:
        """What the entry's meta.json must say."""
        return {
            "spec": json.loads(_canonical(self.spec)),
            "shape": [int(length) for length in self.shape],
            "dtype": np.dtype(self.dtype).str,
        }

    def find(self) -> np.ndarray | None:
        """The array as a read-only memory map, if it is there and sound; hashed once per process."""
        found = _open(self.folder, self.wanted)
        return None if isinstance(found, str) else found

    def make(self, write: Callable[[np.ndarray], None]) -> np.ndarray:
        """The array as a read-only memory map, written first unless it is there and sound.

        Args and raises as `array`, which takes the lock, too.
        """
        wanted = self.wanted
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_ATTEMPTS):
            found = _open(self.folder, wanted)  # another process may have been faster
            if not isinstance(found, str):
                return found
            if self.folder.exists():
                _log.warning("Damaged entry in the store, removed and made again: %s: %s", self.folder, found)
                _remove(self.folder)
            _build(self.folder, {**wanted, "about": dict(self.about)}, write)
        raise OSError(
            f"What is written to {self.folder} is not what is read back: {found}; check the disk, or move the cache"
        )


def array(
    cache: Path,
    kind: str,
    spec: Mapping[str, Any],
    shape: tuple[int, ...],
    dtype: str,
    write: Callable[[np.ndarray], None],
    about: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """The array that `spec` describes: from the store if it is there and sound, else written and stored first.

    Args:
        cache: The cache folder.
        kind: What the arrays are, as the name of a folder: "pixels", "activations".
        spec: Everything the array depends on, as JSON can hold it.
        shape: The array's shape.
        dtype: The array's type: a boolean or a number of NumPy's own.
        write: Fills the array it is given, of that shape and type, zeros at first. It may run, and be thrown away, in
            several processes at once.
        about: What `experiments cache` tells of it.

    Returns:
        A read-only memory map of that shape and type.

    Raises:
        OSError: If the cache cannot be written, or what is written there does not last.
        TypeError, ValueError: As `key`, and for a dtype that a `.npy` file cannot hold without pickling.
        Exception: What `write` raises; nothing is left behind then.
    """
    if np.dtype(dtype).kind not in "biufc":
        raise ValueError(f"dtype must be a boolean or a number of NumPy's own. Received: {dtype!r}")
    entry = Entry(cache / kind / key(spec), spec, shape, dtype, about or {})
    found = entry.find()
    if found is None:
        with writing(cache, kind, entry.folder.name):
            found = entry.make(write)
    use(entry.folder, found.base)
    return found


class Rows:
    """Rows of several arrays, one after the other, as of one array.

    Of memory maps of whole files, what is indexed is read from the files, a row at a time: reading through the map
    takes five times as long, and what is read would count to this process. The maps themselves are let go.

    Args:
        parts: one array or more, [n, d, ...] of one type.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = [_RowFile.of(part) or part for part in parts]
        self.starts = np.cumsum([0, *map(len, parts)])
        self.shape: tuple[int, ...] = (int(self.starts[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """A copy [B, ...] of a slice of the rows, or of those with the numbers [B].

        Raises:
            OSError: a file cannot be read, or is shorter than it was.
        """
        wanted = np.arange(len(self))[rows]
        only = self.parts[0] if len(self.parts) == 1 else None
        if isinstance(only, np.ndarray):
            return np.asarray(only[wanted])
        owners = np.searchsorted(self.starts, wanted, side="right") - 1
        found = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        for into, owner, row in zip(found, owners.tolist(), (wanted - self.starts[owners]).tolist(), strict=True):
            part = self.parts[owner]
            if isinstance(part, _RowFile):
                part.read(row, into)
            else:
                into[...] = part[row]
        return found


class _RowFile:
    """The file behind a memory map of all that it holds, read by any number of threads; closed with the last reference.

    Args:
        file: open to be read.
        start: where the first row begins.
        size: bytes of a row.
    """

    def __init__(self, file: FileIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._lock = file, start, size, Lock()
        weakref.finalize(self, file.close).atexit = False  # others may be reading to the end

    @classmethod
    def of(cls, array: np.ndarray) -> _RowFile | None:
        """None where it is no memory map, or its file's name is gone by now, or (as it does not tell its place in the
        file then) it is a part of a map."""
        if not (isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.filename):
            return None
        try:
            return cls(FileIO(array.filename), array.offset, array[:1].nbytes)
        except FileNotFoundError:
            return None

    def read(self, row: int, into: np.ndarray) -> None:
        with self._lock:
            self._file.seek(self._start + row * self._size)
            if self._file.readinto(into.data) != self._size:
                raise OSError(
                    f"{self._file.name} is shorter than it was; make sure that nothing else writes to the cache"
                )


def release(arrays: Sequence[np.ndarray]) -> None:
    """Gives the pages of memory maps back to the system, which reads them again where they are used again.

    What was written to them is not lost. Arrays that are no memory maps stay as they are.
    """
    for array in arrays:
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            base.madvise(mmap.MADV_DONTNEED)


def contains(cache: Path, kind: str, spec: Mapping[str, Any]) -> bool:
    """Whether `array` would find what `spec` describes, sound; hashes the entry once per process, writes nothing."""
    return not isinstance(_open(cache / kind / key(spec), {"spec": json.loads(_canonical(spec))}), str)


def fault(folder: Path) -> str | None:
    """What is wrong with the entry in this folder, hashed again unless this process did; None: it is sound."""
    found = _open(folder, {})
    return found if isinstance(found, str) else None


def use(entry: Path, holder: object = sys) -> None:
    """Notes that an entry is used: now, and for as long as `holder` lives (this process, unless one is given).

    Nothing goes wrong where that cannot be noted.
    """
    with suppress(OSError):
        os.utime(entry)
    if sys.platform != "win32":
        with suppress(OSError):
            descriptor = os.open(entry, os.O_RDONLY)
            weakref.finalize(holder, os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def remove(cache: Path, entry: Path) -> bool:
    """Remove an entry (or what is left of one) that no process writes or uses, as far as locks tell.

    Locks are named KIND-KEY, and what is written under one has KEY in its name. Of a symbolic link the link alone is
    removed: what it leads to is not of the cache.

    Returns:
        Whether it is gone.
    """
    with ExitStack() as held:
        for lock in (cache / "locks").glob("*.lock"):
            if lock.stem.rpartition("-")[2] in entry.name:
                try:
                    held.enter_context(FileLock(lock, blocking=False, fallback_to_soft=False))
                except Timeout:
                    return False
                except (OSError, NotImplementedError):  # no locks to be had: see `hold`
                    pass
        if entry.is_symlink():
            entry.unlink(missing_ok=True)
            return True
        if sys.platform != "win32":
            try:
                descriptor = os.open(entry, os.O_RDONLY)
            except FileNotFoundError:
                return True
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        _remove(entry)
    return True


def _canonical(spec: Mapping[str, Any]) -> str:
    return json.dumps(dict(spec), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _open(entry: Path, wanted: Mapping[str, Any]) -> np.ndarray | str:
    """The entry's array, verified; or why it cannot be used."""
    path = entry / _ARRAY
    try:
        meta = json.loads((entry / _META).read_bytes())
        different = [name for name in wanted if meta[name] != wanted[name]]
        if different:
            return f"its {', '.join(different)} differ from what is asked for"
        if _sha256(path) != meta["sha256"]:
            return "its content does not have the hash it was stored with"
        stored: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        if [list(stored.shape), stored.dtype.str] != [meta["shape"], meta["dtype"]]:
            return "its array is not of the shape and type it was stored with"
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, None):
            raise  # too many open files, no permission: nothing is known of the entry
        return f"{type(error).__name__}: {error}"
    except (ValueError, KeyError, TypeError) as error:  # partial, or not what we write
        return f"{type(error).__name__}: {error}"
    return stored


def _sha256(path: Path) -> str:
    """The file's hash, computed once per process while the file stays the same."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        known = _verified.get(path)
        if known is None or known[:2] != (status.st_mtime_ns, status.st_size):
            known = (status.st_mtime_ns, status.st_size, hashlib.file_digest(file, "sha256").hexdigest())
            _verified[path] = known
    return known[2]


def _build(entry: Path, wanted: Mapping[str, Any], write: Callable[[np.ndarray], None]) -> None:
    """Makes an entry and puts it into place, unless another process has put one there first."""
    temporary = draft(entry)
    temporary.mkdir()
    try:
        path = temporary / _ARRAY
        content = np.lib.format.open_memmap(path, "w+", np.dtype(wanted["dtype"]), tuple(wanted["shape"]))
        with path.open("r+b") as file:
            allocate(file, os.fstat(file.fileno()).st_size)
        write(content)
        content.flush()
        sync(path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        meta = {**wanted, "sha256": sha256, "created": datetime.now(UTC).isoformat(timespec="seconds")}
        write_synced(temporary / _META, json.dumps(meta, indent=1).encode())
        sync(temporary)
        try:
            os.rename(temporary, entry)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            return
        sync(entry.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove(entry: Path) -> None:
    """Moves an entry out of the way first, so that nobody meets half of it."""
    aside = draft(entry)
    try:
        os.rename(entry, aside)
    except FileNotFoundError:  # another process was faster
        return
    if aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink(missing_ok=True)


@contextmanager
def writing(cache: Path, kind: str, name: str) -> Iterator[None]:
    """Holds the lock of the entry `name` while it, or entries in its folder, are written.

    What a killed process left of them is removed.
    """
    with hold(cache / "locks" / f"{kind}-{name}.lock") as locked:
        if locked:  # whoever left these was killed: it would hold the lock
            for leftover in [*(cache / kind).glob(f".{name}.*"), *(cache / kind / name).glob(".*")]:
                shutil.rmtree(leftover, ignore_errors=True)
        yield
