"""Archives from the network: a download that continues where it broke off, and unpacking that stays in its folder.

A file is the one expected when its length and sha256 say so; both are checked over the whole file before any use.
"""

from __future__ import annotations

import errno
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
_TIMEOUT = (10.0, 60.0)  # seconds: to connect, and between two arrivals of bytes
_RETRY = urllib3.Retry(  # until an answer begins; an answer that breaks off is `_complete`'s
    total=3,
    connect=2,
    read=1,
    backoff_factor=0.5,
    status_forcelist=(429, 500, 502, 503, 504),
    raise_on_status=False,
    respect_retry_after_header=False,  # nobody waits an hour because a server says so
)
_TRIES = 5  # answers that may break off in a row without bringing _WORTHWHILE
_WORTHWHILE = 2**20  # bytes
_PAUSE = 1.0  # seconds before the second try, doubled before each further one
_RATIO = 200  # unpacked to packed, beyond _SLACK: what has been compressed as a picture never comes near
_SLACK = 2**20  # bytes
_SHOWN = 5  # members named in one error
_MEMBER_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, struct.error, ValueError)

_log = logging.getLogger(__name__)

File = BufferedReader | BufferedRandom  # open; `name` is its path


def fetch(url: str, *, sha256: str, size: int, folder: Path) -> File:
    """Downloads a file, or the rest of one, and checks it.

    The file is `folder/<name>.<first 16 of sha256>.part`. It is kept when the download fails, for the next call to
    continue, and when it succeeds: the caller removes it. Processes that download it at once do each other no harm, as
    all of them write the same bytes at the same places.

    Args:
        url: Where it is, http or https; the environment's proxies are used.
        sha256: Of the whole file, 64 hex digits, lower case.
        size: Of the whole file in bytes.
        folder: Where downloads go; made if need be.

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
    """Checks an open file's length in bytes and its sha256.

    Raises:
        DataError: If it is another file; begins with `what`, and tells what was expected and received.
    """
    expected = f"is not the one expected. Allowed: {size:,} bytes with sha256 {sha256}. Received:"
    if _length(file) != size:
        raise DataError(f"{what} {expected} {_length(file):,} bytes")
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DataError(f"{what} {expected} sha256 {found}")


def extract(file: File, target: Path, *, wanted: re.Pattern[str], member_bytes: int, total_bytes: int) -> None:
    """Unpacks a zip archive's wanted members into a folder that appears whole or not at all.

    Args:
        file: The archive, open for reading; `name` is its path.
        target: The folder. If another process has made it meanwhile, that one stays.
        wanted: Matches the whole name of a member to unpack; its groups are the parts of the path below `target`. All
            other members are passed over.
        member_bytes: The most that a member may unpack to.
        total_bytes: The most that all may unpack to.

    Raises:
        DataError: If the archive is damaged, holds nothing wanted, or holds what no honest one does: names that lead
            out of the folder or are there twice, links, encrypted members, members that unpack to too much. If the
            disk is full or cannot be written. Nothing is left behind then.
    """
    draft = atomic_files.draft(target)
    try:
        with _disk(f"Unpacking {file.name} to {target}"), zipfile.ZipFile(file) as archive:
            members = _members(archive, wanted, member_bytes)
            total = sum(member.file_size for member in members)
            if total > total_bytes:
                raise DataError(f"{file.name} unpacks to {total:,} bytes. Allowed: {total_bytes:,}")
            draft.mkdir(parents=True)
            check_space(draft, total, f"Unpacking {file.name}")
            with Terminal(PlainConsole()).stage("unpacking", len(members)) as advance:
                for member in members:
                    path = draft.joinpath(*_parts(wanted, member))
                    path.parent.mkdir(parents=True, exist_ok=True)
                    total_bytes -= _unpack(archive, member, path, min(member_bytes, total_bytes))
                    advance()
            os.sync()  # one for thousands of files, where an fsync of each takes minutes
            try:
                os.rename(draft, target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            atomic_files.sync(target.parent)
    except DataError:
        raise
    except _MEMBER_ERRORS as error:
        raise DataError(f"{file.name} is no sound zip archive: {error}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raises DataError if a folder's disk has less than `needed` bytes free; begins with `what`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{what} needs {decimal(needed)} in {folder}. Received: {decimal(free)} free. "
            f"Free {decimal(needed - free)}, or set outputs=PATH to a folder on another disk"
        )


# --- the download


def _complete(file: File, url: str, size: int) -> None:
    """Asks for what a file lacks until it has `size` bytes."""
    have = _length(file)
    if have > size:  # not what we wrote
        have = file.truncate(0)
    if have == size:
        return
    check_space(Path(file.name).parent, size - have, f"Downloading {url}")
    _log.info("Downloading %s (%s, %s are there) to %s", url, decimal(size), decimal(have), file.name)
    tries = 0
    with requests.Session() as session, _bar(have, size) as show:
        session.headers["Accept-Encoding"] = "identity"  # byte ranges are those of the file itself
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
    """Writes one answer to the file, from where it begins; tells why it ended, which matters if bytes are missing."""
    have = _length(file)  # only now: another process may be writing the same file
    try:
        answer = _ask(session, url, have)
    except requests.RequestException as error:
        raise DataError(f"{url} cannot be reached: {error}. Check network and proxy. {_kept(file, size)}") from None
    with answer:
        if answer.status_code not in (200, 206):
            text = f"{url} answers {answer.status_code} {answer.reason}. Allowed: 200 or 206"
            raise DataError(f"{text}. {_kept(file, size)}")
        at, whole = _extent(answer)
        if at not in (0, have):
            text = f"{url} answers with a range that was not asked for: {answer.headers.get('Content-Range')!r}"
            raise DataError(f"{text}. {_kept(file, size)}")
        if whole not in (None, size):
            raise DataError(f"{url} is another file. Allowed: {size:,} bytes. Received: one of {whole:,} bytes")
        file.seek(at)
        try:
            while chunk := answer.raw.read1(_CHUNK):  # as it arrives: what did arrive is kept
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


def _ask(session: requests.Session, url: str, have: int) -> requests.Response:
    """The answer to a request for what follows the first `have` bytes, or for the whole where a server has no such
    answer. The whole is written over what is there: the same bytes."""
    if have:
        answer = session.get(url, headers={"Range": f"bytes={have}-"}, stream=True, timeout=_TIMEOUT)
        if answer.status_code != 416 and _extent(answer)[0] in (0, have):
            return answer
        answer.close()
    return session.get(url, stream=True, timeout=_TIMEOUT)


def _extent(answer: requests.Response) -> tuple[int, int | None]:
    """Where an answer begins in the file (-1: it does not say), and how long the file is, if it says."""
    if answer.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if not found:
            return -1, None
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _open(part: Path) -> BufferedRandom:
    """Opens a file to read and write, made if need be; "w+b" would empty what another process has just begun."""
    return open(part, "r+b", opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o666))


def _kept(file: File, size: int) -> str:
    if not _length(file):
        return "Nothing has arrived so far; the same command tries again"
    return f"{_length(file):,} of {size:,} bytes are kept in {file.name}; the same command continues there"


def _length(file: File) -> int:
    return os.fstat(file.fileno()).st_size


@contextmanager
def _bar(have: int, size: int) -> Iterator[Callable[[int], object]]:
    """A progress bar on a terminal, nothing elsewhere; yields the function that takes how many bytes there are."""
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
    """What the file system refuses, as a DataError."""
    try:
        yield
    except OSError as error:
        text = f"{doing} fails: {error.strerror or error}. Check the disk and its permissions, or set outputs=PATH"
        raise DataError(text) from None


# --- unpacking


def _members(archive: zipfile.ZipFile, wanted: re.Pattern[str], member_bytes: int) -> list[zipfile.ZipInfo]:
    """The members to unpack; one error for all members that no honest archive holds."""
    chosen, others, faults = [], [], []
    seen: set[str] = set()
    for member in archive.infolist():
        name = member.orig_filename  # zipfile cuts the other one at a NUL
        fault = _fault(member, member_bytes if wanted.fullmatch(name) else None)
        if not fault and name.casefold() in seen:  # to some file systems case is nothing
            fault = "is there twice"
        seen.add(name.casefold())
        if fault:
            faults.append(f"{name!r} {fault}")
        elif wanted.fullmatch(name):
            chosen.append(member)
        elif not member.is_dir():
            others.append(name)
    if faults:
        more = f", and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise DataError(f"{archive.filename} is not unpacked: {', '.join(faults[:_SHOWN])}{more}")
    if not chosen:
        raise DataError(f"{archive.filename} holds nothing of what is wanted. Allowed: names like {wanted.pattern}")
    if others:
        _log.info("Members of %s passed over: %d, the first: %r", archive.filename, len(others), others[0])
    return chosen


def _fault(member: zipfile.ZipInfo, largest: int | None) -> str | None:
    """What is wrong with a member by its header; `largest` is None for those that are not unpacked."""
    name = member.orig_filename
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or ":" in name or not name.isprintable():
        return "is no plain relative name"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if member.flag_bits & 0x1:
        return "is encrypted"
    if largest is None:
        return None
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile bounds no other's memory
        return "is compressed by a method other than deflate"
    if member.file_size > largest:
        return f"unpacks to {member.file_size:,} bytes, more than {largest:,}"
    return None


def _parts(wanted: re.Pattern[str], member: zipfile.ZipInfo) -> tuple[str, ...]:
    found = wanted.fullmatch(member.filename)
    assert found is not None
    return found.groups()


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, most: int) -> int:
    """Writes one member; counts what really comes out of it, as headers can lie. Returns the bytes written."""
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
