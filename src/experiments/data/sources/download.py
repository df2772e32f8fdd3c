"""Download and unpacking of archives.

A download continues where it broke off, and unpacking writes into its own directory only. A file is accepted when its
length and its sha256 are the expected ones; both are checked over the whole file before any use.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import stat
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedRandom, BufferedReader
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from experiments.errors import DataError
from experiments.storage import atomic_files
from experiments.system.progress import PlainConsole, Terminal

_CHUNK = 2**16  # bytes
_TIMEOUT = (10.0, 60.0)  # seconds: to connect, and between two chunks
_RETRY = urllib3.Retry(  # until a response begins; `_complete` retries those that break off
    total=3,
    connect=2,
    read=1,
    backoff_factor=0.5,
    status_forcelist=(429, 500, 502, 503, 504),
    raise_on_status=False,
    respect_retry_after_header=False,  # a server could make a run wait for an hour
)
_TRIES = 5  # responses in a row, each of fewer than _WORTHWHILE bytes, before the download fails
_WORTHWHILE = 2**20  # bytes
_PAUSE = 1.0  # seconds before the first retry, doubled before each further one
_RATIO = 200  # most unpacked bytes per packed byte, beyond _SLACK; compressed images are far below
_SLACK = 2**20  # bytes
_SHOWN = 5  # members named in one error
_MEMBER_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, struct.error, ValueError)

_log = logging.getLogger(__name__)

File = BufferedReader | BufferedRandom  # open; `name` is its path


def fetch(url: str, *, sha256: str, size: int, folder: Path) -> File:
    """Download a file, or the rest of one, and check it.

    The file is `folder/<name>.<first 16 of sha256>.part`. It is kept when the download fails, so that the next call
    continues it, and when it succeeds: the caller removes it. Processes that download it concurrently do not interfere
    with each other, because all of them write the same bytes at the same positions.

    Args:
        url: Address of the file, http or https; the environment's proxies are used.
        sha256: Hash of the whole file, 64 hex digits, lower case.
        size: Size of the whole file in bytes.
        folder: Directory of the downloads; created if it is missing.

    Returns:
        The file, checked and open for reading; `name` is its path.

    Raises:
        DataError: If the server cannot be reached, refuses, or sends another file (which is removed); if the connection
            keeps breaking off; if the disk is full or cannot be written.
    """
    part = folder / f"{PurePosixPath(urlsplit(url).path).name}.{sha256[:16]}.part"
    with _disk(f"Downloading {url} to {part}"):
        folder.mkdir(parents=True, exist_ok=True)
        file = _open(part)
        try:
            _complete(file, url, size)
            try:
                verify(file, sha256=sha256, size=size, what=f"The file from {url}")
            except DataError as error:
                part.unlink(missing_ok=True)
                raise DataError(f"{error}. It is removed; the same command downloads it anew") from None
        except BaseException:
            file.close()
            raise
    return file


def verify(file: File, *, sha256: str, size: int, what: str) -> None:
    """Check an open file's length in bytes and its sha256.

    Raises:
        DataError: If it is another file; the message begins with `what` and has the expected and the received values.
    """
    expected = f"is not the one expected. Allowed: {size:,} bytes with sha256 {sha256}. Received:"
    if _length(file) != size:
        raise DataError(f"{what} {expected} {_length(file):,} bytes")
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DataError(f"{what} {expected} sha256 {found}")


def extract(file: File, target: Path, *, wanted: re.Pattern[str], member_bytes: int, total_bytes: int) -> None:
    """Unpack a zip archive's wanted members into a new directory, which appears atomically.

    Args:
        file: The archive, open for reading; `name` is its path.
        target: The directory. If another process has created it meanwhile, that one is kept.
        wanted: Matches the whole name of a member to unpack; its groups are the parts of the path below `target`. All
            other members are skipped.
        member_bytes: Largest allowed size of an unpacked member.
        total_bytes: Largest allowed size of all unpacked members together.

    Raises:
        DataError: If the archive is damaged, has no wanted members, or may be malicious: names that lead out of the
            directory or occur twice, links, encrypted members, members that unpack to too many bytes. Also if the disk
            is full or cannot be written. Nothing is left behind in any of these cases.
    """
    try:
        with _disk(f"Unpacking {file.name} to {target}"), zipfile.ZipFile(file) as archive:
            members = _members(archive, wanted, member_bytes)
            total = sum(member.file_size for member in members)
            if total > total_bytes:
                raise DataError(f"{file.name} unpacks to {total:,} bytes. Allowed: {total_bytes:,}")
            with atomic_files.writing_directory(target) as draft:
                check_space(draft, total, f"Unpacking {file.name}")
                with Terminal(PlainConsole()).stage("unpacking", len(members)) as advance:
                    for member in members:
                        path = draft.joinpath(*_parts(wanted, member))
                        path.parent.mkdir(parents=True, exist_ok=True)
                        total_bytes -= _unpack(archive, member, path, min(member_bytes, total_bytes))
                        advance()
                os.sync()  # one call for thousands of files; an fsync of each would take minutes
    except DataError:
        raise
    except _MEMBER_ERRORS as error:
        raise DataError(f"{file.name} is not a valid zip archive: {error}") from None


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise DataError, beginning with `what`, if a directory's disk has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{what} needs {decimal(needed)} in {folder}. Received: {decimal(free)} free. "
            f"Free {decimal(needed - free)}, or set outputs=PATH to a folder on another disk"
        )


# --- the download


def _complete(file: File, url: str, size: int) -> None:
    """Request the missing bytes of a file until it has `size` bytes."""
    have = _length(file)
    if have > size:  # not a part of this file
        have = file.truncate(0)
    if have == size:
        return
    check_space(Path(file.name).parent, size - have, f"Downloading {url}")
    _log.info("Downloading %s (%s, %s are there) to %s", url, decimal(size), decimal(have), file.name)
    tries = 0
    with requests.Session() as session, _bar(have, size) as show:
        session.headers["Accept-Encoding"] = "identity"  # byte ranges must refer to the file itself
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=_RETRY))
        while (have := _length(file)) < size:
            problem = _receive(session, file, url, size, show)
            tries = 1 if _length(file) - have >= _WORTHWHILE else tries + 1
            if _length(file) == size:
                break
            if tries == _TRIES:
                raise DataError(f"{url}: {problem}, {tries} times in a row. {_kept(file, size)}")
            _log.info("%s: %s after %d bytes, trying again", url, problem, _length(file))
            time.sleep(_PAUSE * 2 ** (tries - 1))


def _receive(session: requests.Session, file: File, url: str, size: int, show: Callable[[int], object]) -> str:
    """Write one response to the file, from the position where it begins, and return why it ended.

    The reason matters only if bytes are missing afterwards.
    """
    have = _length(file)  # read only now, as another process may be writing the same file
    try:
        response = _request(session, url, have)
    except requests.RequestException as error:
        raise DataError(f"{url} cannot be reached: {error}. Check network and proxy. {_kept(file, size)}") from None
    with response:
        if response.status_code not in (200, 206):
            text = f"{url} answers {response.status_code} {response.reason}. Allowed: 200 or 206"
            raise DataError(f"{text}. {_kept(file, size)}")
        at, whole = _extent(response)
        if at not in (0, have):
            text = f"{url} answers with a range that was not requested: {response.headers.get('Content-Range')!r}"
            raise DataError(f"{text}. {_kept(file, size)}")
        if whole not in (None, size):
            raise DataError(f"{url} is another file. Allowed: {size:,} bytes. Received: one of {whole:,} bytes")
        file.seek(at)
        try:
            while chunk := response.raw.read1(_CHUNK):  # written as it arrives, so that nothing is lost
                at += len(chunk)
                if at > size:
                    Path(file.name).unlink(missing_ok=True)
                    text = f"{url} is another file, which is removed. Allowed: {size:,} bytes. Received: more"
                    raise DataError(text)
                file.write(chunk)
                file.flush()
                show(at)
        except urllib3.exceptions.HTTPError as error:
            return f"the connection broke off ({error})"
    return "the answer ended early"


def _request(session: requests.Session, url: str, have: int) -> requests.Response:
    """Request the bytes after the first `have`, or the whole file where the server does not support that.

    The whole file is written over the existing bytes, which are the same.
    """
    if have:
        response = session.get(url, headers={"Range": f"bytes={have}-"}, stream=True, timeout=_TIMEOUT)
        if response.status_code != 416 and _extent(response)[0] in (0, have):
            return response
        response.close()
    return session.get(url, stream=True, timeout=_TIMEOUT)


def _extent(response: requests.Response) -> tuple[int, int | None]:
    """Return the position in the file where a response begins, and the length of the file.

    The position is -1 and the length None where the response does not contain them.
    """
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not found:
            return -1, None
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _open(part: Path) -> BufferedRandom:
    """Open a file for reading and writing, and create it if it is missing.

    The mode "w+b" would truncate a file that another process has just begun.
    """
    return open(part, "r+b", opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o666))


def _kept(file: File, size: int) -> str:
    if not _length(file):
        return "Nothing has arrived so far; the same command tries again"
    return f"{_length(file):,} of {size:,} bytes are kept in {file.name}; the same command continues there"


def _length(file: File) -> int:
    return os.fstat(file.fileno()).st_size


@contextmanager
def _bar(have: int, size: int) -> Iterator[Callable[[int], object]]:
    """Show a progress bar on a terminal, and nothing elsewhere.

    Yield the function that receives the number of bytes so far.
    """
    console = PlainConsole()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("downloading", total=size, completed=have)
        yield lambda at: progress.update(task, completed=at)


@contextmanager
def _disk(doing: str) -> Iterator[None]:
    """Raise errors of the file system as DataError."""
    try:
        yield
    except OSError as error:
        text = f"{doing} fails: {error.strerror or error}. Check the disk and its permissions, or set outputs=PATH"
        raise DataError(text) from None


# --- unpacking


def _members(archive: zipfile.ZipFile, wanted: re.Pattern[str], member_bytes: int) -> list[zipfile.ZipInfo]:
    """Return the members to unpack; raise one DataError for all members that make the archive unsafe."""
    chosen, others, issues = [], [], []
    seen: set[str] = set()
    for member in archive.infolist():
        name = member.orig_filename  # `filename` is cut at a NUL by zipfile
        issue = _issue(member, member_bytes if wanted.fullmatch(name) else None)
        if not issue and name.casefold() in seen:  # some file systems ignore case
            issue = "is there twice"
        seen.add(name.casefold())
        if issue:
            issues.append(f"{name!r} {issue}")
        elif wanted.fullmatch(name):
            chosen.append(member)
        elif not member.is_dir():
            others.append(name)
    if issues:
        more = f", and {len(issues) - _SHOWN} more" if len(issues) > _SHOWN else ""
        raise DataError(f"{archive.filename} is not unpacked: {', '.join(issues[:_SHOWN])}{more}")
    if not chosen:
        raise DataError(f"{archive.filename} holds nothing of what is wanted. Allowed: names like {wanted.pattern}")
    if others:
        _log.info("Members of %s passed over: %d, the first: %r", archive.filename, len(others), others[0])
    return chosen


def _issue(member: zipfile.ZipInfo, largest: int | None) -> str | None:
    """Return what is wrong with a member according to its header, or None.

    `largest` is None for members that are not unpacked.
    """
    name = member.orig_filename
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or ":" in name or not name.isprintable():
        return "is no plain relative name"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if member.flag_bits & 0x1:
        return "is encrypted"
    if largest is None:
        return None
    # zipfile limits the memory that decompression takes for these two methods only.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed by a method other than deflate"
    if member.file_size > largest:
        return f"unpacks to {member.file_size:,} bytes, more than {largest:,}"
    return None


def _parts(wanted: re.Pattern[str], member: zipfile.ZipInfo) -> tuple[str, ...]:
    found = wanted.fullmatch(member.filename)
    assert found is not None
    return found.groups()


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, most: int) -> int:
    """Write one member and return the number of bytes written.

    The bytes are counted while they are unpacked, because sizes in headers can be wrong.
    """
    most = min(most, _SLACK + _RATIO * member.compress_size)
    written = 0
    with archive.open(member) as source, path.open("xb") as file:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > most:
                raise DataError(f"{archive.filename}: {member.filename!r} unpacks to more than {most:,} bytes")
            file.write(chunk)
    if written != member.file_size:
        text = f"{member.filename!r} unpacks to {written:,} bytes, not the {member.file_size:,} that it says"
        raise DataError(f"{archive.filename}: {text}")
    return written
