"""Download and unpacking of archives.

A download continues where it broke off, and unpacking writes into its own directory only.
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
from contextlib import ExitStack, contextmanager
from io import BufferedRandom, BufferedReader
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from rich.filesize import decimal

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

_log = logging.getLogger(__name__)

File = BufferedReader | BufferedRandom  # open; `name` is its path


def fetch(url: str, *, sha256: str, size: int, folder: Path) -> File:
    """Download a file of `size` bytes, or the rest of one, and check it against its hash, in lower case.

    The environment's proxies are used. The file is `folder/<name>.<first 16 of sha256>.part`. It is kept when the
    download fails, so that the next call continues it, and when it succeeds: the caller removes it. Processes that
    download it concurrently do not interfere with each other, because all of them write the same bytes at the same
    positions.

    Returns:
        The file, checked and open for reading; `name` is its path.

    Raises:
        DataError: If the server cannot be reached, refuses, or sends another file (which is removed); if the connection
            keeps breaking off; if the disk is full or cannot be written.
    """
    part = folder / f"{PurePosixPath(urlsplit(url).path).name}.{sha256[:16]}.part"
    with _disk(f"Downloading {url} to {part}"), ExitStack() as opened:
        folder.mkdir(parents=True, exist_ok=True)
        # The mode "w+b" would truncate a file that another process has just begun.
        file = opened.enter_context(
            open(part, "r+b", opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o666))
        )
        _complete(file, url, size)
        try:
            verify(file, sha256=sha256, size=size, what=f"The file from {url}")
        except DataError as error:
            part.unlink(missing_ok=True)
            raise DataError(f"{error}. It is removed; the same command downloads it anew") from None
        opened.pop_all()
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
        file: The archive.
        target: The directory. If another process has created it meanwhile, that one is kept.
        wanted: Matches the whole name of a member to unpack; its groups are the parts of the path below `target`, so
            they must match no separator.
        member_bytes, total_bytes: Largest allowed sizes of an unpacked member, and of all together.

    Raises:
        DataError: If the archive is damaged or has no wanted members; if one of them is a link, encrypted, there twice
            or too large; if the disk is full or cannot be written. Nothing is left behind then.
    """
    try:
        with _disk(f"Unpacking {file.name} to {target}"), zipfile.ZipFile(file) as archive:
            members = _members(archive, wanted, member_bytes, total_bytes)
            with atomic_files.writing_directory(target) as draft:
                check_space(draft, sum(member.file_size for _, member in members), f"Unpacking {file.name}")
                with Terminal(PlainConsole()).stage("unpacking", len(members)) as advance:
                    for path, member in members:
                        (draft / path).parent.mkdir(parents=True, exist_ok=True)
                        with archive.open(member) as packed, (draft / path).open("xb") as unpacked:
                            shutil.copyfileobj(packed, unpacked)  # no more bytes than the header says
                        advance()
                os.sync()  # one call for thousands of files; an fsync of each would take minutes
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, struct.error, ValueError) as error:
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
    with requests.Session() as session, Terminal(PlainConsole()).stage("downloading", size - have) as advance:
        session.headers["Accept-Encoding"] = "identity"  # byte ranges must refer to the file itself
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=_RETRY))
        while (have := _length(file)) < size:
            problem = _receive(session, file, url, size, advance)
            tries = 1 if _length(file) - have >= _WORTHWHILE else tries + 1
            if _length(file) == size:
                break
            if tries == _TRIES:
                raise DataError(f"{url}: {problem}, {tries} times in a row. {_kept(file, size)}")
            _log.info("%s: %s after %d bytes, trying again", url, problem, _length(file))
            time.sleep(_PAUSE * 2 ** (tries - 1))


def _receive(session: requests.Session, file: File, url: str, size: int, advance: Callable[[int], object]) -> str:
    """Write one response to the file, from the position where it begins, and return why it ended."""
    have = _length(file)  # read only now, as another process may be writing the same file
    try:
        response = _request(session, url, have)
    except requests.RequestException as error:
        raise DataError(f"{url} cannot be reached: {error}. Check network and proxy. {_kept(file, size)}") from None
    with response:
        at = have if response.status_code == 206 else 0
        if response.status_code not in (200, 206):
            text = f"{url} answers {response.status_code} {response.reason}. Allowed: 200 or 206"
            raise DataError(f"{text}. {_kept(file, size)}")
        length = response.headers.get("Content-Length", "")
        if at == 0 and length.isdecimal() and int(length) != size:
            raise DataError(f"{url} is another file. Allowed: {size:,} bytes. Received: one of {int(length):,} bytes")
        file.seek(at)
        try:
            while chunk := response.raw.read1(_CHUNK):  # written as it arrives, so that nothing is lost
                at += len(chunk)
                if at > size:
                    Path(file.name).unlink(missing_ok=True)
                    raise DataError(f"{url} is another file, which is removed. Allowed: {size:,} bytes. Received: more")
                file.write(chunk)
                file.flush()
                advance(len(chunk))
        except urllib3.exceptions.HTTPError as error:
            return f"the connection broke off ({error})"
    return "the answer ended early"


def _request(session: requests.Session, url: str, have: int) -> requests.Response:
    """Request the bytes after the first `have`, or the whole file where the server does not send that range.

    The whole file is written over the existing bytes, which are the same.
    """
    if have:
        response = session.get(url, headers={"Range": f"bytes={have}-"}, stream=True, timeout=_TIMEOUT)
        if response.status_code == 200 or response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            return response
        response.close()
    return session.get(url, stream=True, timeout=_TIMEOUT)


def _kept(file: File, size: int) -> str:
    if not _length(file):
        return "Nothing has arrived so far; the same command tries again"
    return f"{_length(file):,} of {size:,} bytes are kept in {file.name}; the same command continues there"


def _length(file: File) -> int:
    return os.fstat(file.fileno()).st_size


@contextmanager
def _disk(doing: str) -> Iterator[None]:
    """Raise errors of the file system as DataError."""
    try:
        yield
    except OSError as error:
        text = f"{doing} fails: {error.strerror or error}. Check the disk and its permissions, or set outputs=PATH"
        raise DataError(text) from None


# --- unpacking


def _members(
    archive: zipfile.ZipFile, wanted: re.Pattern[str], member_bytes: int, total_bytes: int
) -> list[tuple[Path, zipfile.ZipInfo]]:
    """Return the members to unpack with their paths; raise DataError if one is a link or they are too large."""
    chosen, others = [], []
    for member in archive.infolist():
        if found := wanted.fullmatch(member.filename):
            chosen.append((Path(*found.groups()), member))
        elif not member.is_dir():
            others.append(member.filename)
    if not chosen:
        raise DataError(f"{archive.filename} holds nothing of what is wanted. Allowed: names like {wanted.pattern}")
    for _, member in chosen:
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise DataError(f"{archive.filename} is not unpacked: {member.filename!r} is a link or a device")
        if member.file_size > member_bytes:
            text = f"{member.filename!r} unpacks to {member.file_size:,} bytes. Allowed: {member_bytes:,}"
            raise DataError(f"{archive.filename} is not unpacked: {text}")
    total = sum(member.file_size for _, member in chosen)
    if total > total_bytes:
        raise DataError(f"{archive.filename} unpacks to {total:,} bytes. Allowed: {total_bytes:,}")
    if others:
        _log.info("Members of %s passed over: %d, the first: %r", archive.filename, len(others), others[0])
    return chosen
