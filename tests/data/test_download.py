"""Downloads from a server that misbehaves, and archives that no honest one would be."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest

from experiments.data.sources import download
from experiments.errors import DataError

BODY = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


# --- a server


class Handler(BaseHTTPRequestHandler):
    """Answers by the plan of its server, then properly; HTTP/1.0: the connection ends with the answer."""

    server: Host

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        self.server.encodings.append(self.headers["Accept-Encoding"])
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        answer = self.server.plan.pop(0) if self.server.plan else properly
        answer(self, self.server.body, start)

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Host(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = body
        self.plan: list[Callable[[Any, bytes, int], object]] = []
        self.ranges: list[str | None] = []  # of the requests so far
        self.encodings: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/some/set.zip"


def properly(to: Handler, body: bytes, start: int, most: int | None = None) -> None:
    """At most `most` bytes of what was promised."""
    if start:
        extent = f"bytes {start}-{len(body) - 1}/{len(body)}"
        to.head(206, Content_Length=len(body) - start, Content_Range=extent)
    else:
        to.head(200, Content_Length=len(body))
    to.wfile.write(body[start:][:most])


def cut(most: int) -> Callable[[Handler, bytes, int], object]:
    return partial(properly, most=most)


def whole(to: Handler, body: bytes, start: int) -> None:
    properly(to, body, 0)


def fail(status: int) -> Callable[[Handler, bytes, int], object]:
    return lambda to, body, start: to.head(status, Content_Length=0)


def unsized(to: Handler, body: bytes, start: int, most: int | None = None, more: bytes = b"") -> None:
    """The whole without saying how long it is."""
    to.head(200)
    to.wfile.write(body[:most] + more)


def ranged(extent: str) -> Callable[[Handler, bytes, int], object]:
    def answer(to: Handler, body: bytes, start: int) -> None:
        to.head(206, Content_Range=extent)
        to.wfile.write(body[start:])

    return answer


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(download, "_PAUSE", 0.001)
    monkeypatch.setattr(download, "_RETRY", download._RETRY.new(backoff_factor=0))
    with Host(BODY) as server:
        threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
        yield server
        server.shutdown()


def part(folder: Path) -> Path:
    return folder / f"set.zip.{SHA256[:16]}.part"


def fetch(host: Host, folder: Path) -> bytes:
    with download.fetch(host.url, sha256=SHA256, size=len(BODY), folder=folder) as file:
        assert Path(file.name) == part(folder)
        file.seek(0)
        return file.read()


def refused(host: Host, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        fetch(host, folder)
    assert host.url in str(caught.value)
    assert not part(folder).exists() or part(folder).stat().st_size <= len(BODY)
    return str(caught.value)


# --- downloads


def test_a_download_is_the_file_and_is_not_repeated(host: Host, tmp_path: Path) -> None:
    assert fetch(host, tmp_path / "new" / "folder") == BODY
    assert fetch(host, tmp_path / "new" / "folder") == BODY
    assert host.ranges == [None]
    assert host.encodings == ["identity"], "ranges must not be those of a compressed file"


@pytest.mark.parametrize("at", [1, 1000, len(BODY) // 2, len(BODY) - 1])
def test_a_connection_that_breaks_off_is_continued_there(at: int, host: Host, tmp_path: Path) -> None:
    host.plan = [cut(at)]
    assert fetch(host, tmp_path) == BODY
    assert host.ranges == [None, f"bytes={at}-"]


def test_one_that_keeps_breaking_off_is_given_up_and_continued_by_the_next_call(host: Host, tmp_path: Path) -> None:
    host.plan = [cut(1000)] * download._TRIES
    text = refused(host, tmp_path)
    kept = 1000 * download._TRIES
    assert "broke off" in text and f"{kept:,} of 300,000 bytes are kept in {part(tmp_path)}" in text
    assert "the same command continues" in text
    host.ranges.clear()
    assert fetch(host, tmp_path) == BODY
    assert host.ranges == [f"bytes={kept}-"]


def test_breaks_do_not_count_while_enough_arrives_between_them(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_WORTHWHILE", 1000)
    host.plan = [cut(1000)] * (3 * download._TRIES)
    assert fetch(host, tmp_path) == BODY


def test_a_stalled_connection_is_left_and_what_arrived_is_kept(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stall(to: Handler, body: bytes, start: int) -> None:
        properly(to, body, start, most=777)
        to.wfile.flush()
        time.sleep(1)

    monkeypatch.setattr(download, "_TIMEOUT", (1.0, 0.2))
    host.plan = [stall]
    assert fetch(host, tmp_path) == BODY
    assert host.ranges == [None, "bytes=777-"]


def test_a_server_that_ignores_ranges_sends_the_whole_once_more(host: Host, tmp_path: Path) -> None:
    host.plan = [cut(1000), whole]
    assert fetch(host, tmp_path) == BODY
    assert host.ranges == [None, "bytes=1000-"]


@pytest.mark.parametrize(
    "answer",
    [fail(416), ranged("bytes 5-299999/300000")],
    ids=["416", "another range"],
)
def test_a_range_that_is_not_to_be_had_starts_again(answer: Any, host: Host, tmp_path: Path) -> None:
    host.plan = [cut(1000), answer]
    assert fetch(host, tmp_path) == BODY
    assert host.ranges == [None, "bytes=1000-", None]


def test_a_body_of_unknown_length_will_do(host: Host, tmp_path: Path) -> None:
    host.plan = [partial(unsized, most=1000), unsized]
    assert fetch(host, tmp_path) == BODY


def test_a_file_of_another_length_is_refused_by_its_header(host: Host, tmp_path: Path) -> None:
    for body in (BODY[:-1], BODY + b"x"):
        host.body = body
        text = refused(host, tmp_path)
        assert "another file" in text and "300,000" in text and f"{len(body):,}" in text
        assert part(tmp_path).stat().st_size == 0, "nothing of it is taken"


def test_a_body_that_is_too_long_is_cut_short_and_removed(host: Host, tmp_path: Path) -> None:
    host.plan = [partial(unsized, more=b"x" * 100_000)]
    assert "Received: more" in refused(host, tmp_path)
    assert not part(tmp_path).exists()


def test_a_body_that_is_too_short_is_no_success(host: Host, tmp_path: Path) -> None:
    host.plan = [partial(unsized, most=2000)] * download._TRIES
    text = refused(host, tmp_path)
    assert "ended early" in text and "2,000 of 300,000 bytes are kept" in text


def test_another_hash_is_refused_and_the_file_removed(host: Host, tmp_path: Path) -> None:
    host.body = BODY[:-1] + b"?"
    text = refused(host, tmp_path)
    assert SHA256 in text and hashlib.sha256(host.body).hexdigest() in text and "removed" in text
    assert list(tmp_path.iterdir()) == []
    host.body = BODY
    assert fetch(host, tmp_path) == BODY


def test_a_part_of_another_archive_or_of_too_much_is_not_continued(host: Host, tmp_path: Path) -> None:
    (tmp_path / f"set.zip.{'0' * 16}.part").write_bytes(b"another's")
    part(tmp_path).write_bytes(BODY + b"more")
    assert fetch(host, tmp_path) == BODY
    assert host.ranges == [None]


def test_a_damaged_part_is_noticed_at_the_end(host: Host, tmp_path: Path) -> None:
    part(tmp_path).write_bytes(b"?" * 1000)
    assert "removed" in refused(host, tmp_path)
    assert fetch(host, tmp_path) == BODY


def test_refusals_are_passed_on_and_passing_trouble_is_not(host: Host, tmp_path: Path) -> None:
    host.plan = [fail(404)]
    assert "answers 404" in refused(host, tmp_path)
    host.plan = [lambda *_: None, fail(500), fail(503)]  # the first hangs up without an answer
    assert fetch(host, tmp_path / "other") == BODY
    host.plan = [fail(500)] * 10
    assert "answers 500" in refused(host, tmp_path)


def test_a_redirection_is_followed_with_its_range(host: Host, tmp_path: Path) -> None:
    def elsewhere(to: Handler, body: bytes, start: int) -> None:
        to.head(302, Location="/elsewhere", Content_Length=0)

    host.plan = [elsewhere, cut(1000), elsewhere]
    assert fetch(host, tmp_path) == BODY
    assert host.ranges == [None, None, "bytes=1000-", "bytes=1000-"]


def test_an_unreachable_server_is_an_error_soon(host: Host, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    host.url = f"http://127.0.0.1:{closed}/set.zip"
    began = time.monotonic()
    text = refused(host, tmp_path)
    assert time.monotonic() - began < 5
    assert "cannot be reached" in text and "Check network and proxy" in text and "Nothing has arrived" in text


def test_without_room_nothing_is_asked_for(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    text = refused(host, tmp_path)
    assert "300.0 kB" in text and "100.0 kB free" in text and "Free 200.0 kB" in text and "outputs=PATH" in text
    assert host.ranges == []


def test_a_folder_that_cannot_be_made_is_named(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=rf"Downloading .* to {re.escape(str(tmp_path / 'file'))}.* fails: .*outputs=PATH"
    ):
        fetch(host, tmp_path / "file" / "below")


def test_downloading_the_same_at_once_does_no_harm(host: Host, tmp_path: Path) -> None:
    """Without any lock."""
    host.plan = [cut(100_000), cut(5), cut(200_000), cut(77)]
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(host, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [BODY] * 4


def test_importing_it_is_cheap() -> None:
    code = (
        "import sys, experiments.data.sources.cats_vs_dogs; print({'tensorflow', 'keras', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- unpacking

WANTED = re.compile(r"images/(a|b)/([0-9]+\.jpg)")
SOUND = {f"images/{name}/{n}.jpg": f"{name}{n}".encode() * 50 for name in "ab" for n in range(3)}


def packed(path: Path, members: Mapping[Any, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return path


def member(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def extract(path: Path, target: Path, member_bytes: int = 10**8, total_bytes: int = 10**9) -> None:
    with path.open("rb") as file:
        download.extract(file, target, wanted=WANTED, member_bytes=member_bytes, total_bytes=total_bytes)


def unpacked(target: Path) -> dict[str, bytes]:
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def rejected(path: Path, target: Path, **bounds: int) -> str:
    """The error; nothing may have been written beside the archive."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(DataError) as caught:
        extract(path, target, **bounds)
    assert str(path) in str(caught.value)
    left = [entry for entry in sorted(path.parent.iterdir()) if entry not in before]
    assert all(entry == target.parent and not list(entry.iterdir()) for entry in left)
    return str(caught.value)


def test_only_what_is_wanted_is_unpacked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    others: dict[Any, bytes] = {
        "readme[1].txt": b"?",
        "images/a/Thumbs.db": b"?",
        "images/a/7.jpg.exe": b"?",
        "images/c/0.jpg": b"?",
        "/images/a/9.jpg": b"?",
        "images/a/../../../9.jpg": b"?",
        "images\\a\\9.jpg": b"?",
        member("images/link", stat.S_IFLNK | 0o777): b"../../elsewhere",
    }
    archive = packed(tmp_path / "set.zip", {"images/": b"", "images/a/": b""} | SOUND | others)
    with caplog.at_level("INFO"):
        extract(archive, tmp_path / "set" / "one")
    assert unpacked(tmp_path / "set" / "one") == {name.removeprefix("images/"): SOUND[name] for name in SOUND}
    assert "passed over: 8, the first: 'readme[1].txt'" in caplog.text
    assert sorted(tmp_path.rglob(".*")) == []


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o666])
def test_links_and_devices_are_refused(mode: int, tmp_path: Path) -> None:
    archive = packed(tmp_path / "set.zip", SOUND | {member("images/a/9.jpg", mode): b"../../elsewhere"})
    assert "'images/a/9.jpg' is a link or a device" in rejected(archive, tmp_path / "set" / "one")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    archive = packed(tmp_path / "twice.zip", SOUND | {member("images/a/1.jpg"): b"another"})
    assert "File exists" in rejected(archive, tmp_path / "set" / "one")


def header(path: Path, name: str, offset: int, new: bytes) -> Path:
    """Overwrites a field of a member's local and central header: `offset` counts from the flags on."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        local = archive.getinfo(name).header_offset + 6
    central = content.index(name.encode(), content.index(b"PK\x01\x02")) - 46 + 8
    for start in (local, central):
        content[start + offset : start + offset + len(new)] = new
    path.write_bytes(content)
    return path


FLAGS, CRC, SIZE = 0, 8, 16


def test_encrypted_members(tmp_path: Path) -> None:
    archive = header(packed(tmp_path / "set.zip", SOUND), "images/b/1.jpg", FLAGS, b"\1\0")
    assert "encrypted" in rejected(archive, tmp_path / "set" / "one")


def test_members_that_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = packed(tmp_path / "set.zip", SOUND | {"images/a/9.jpg": bytes(5 * 10**6)})
    target = tmp_path / "set" / "one"
    text = rejected(bomb, target, member_bytes=10**4)
    assert "'images/a/9.jpg' unpacks to 5,000,000 bytes. Allowed: 10,000" in text
    assert "unpacks to 5,000,600 bytes. Allowed: 10,000" in rejected(bomb, target, total_bytes=10**4)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    assert "needs 5.0 MB" in rejected(bomb, target)


@pytest.mark.parametrize("says", [100, 5 * 10**6 - 1])
def test_headers_that_lie_about_sizes(says: int, tmp_path: Path) -> None:
    archive = packed(tmp_path / "set.zip", SOUND | {"images/a/9.jpg": bytes(5 * 10**6)})
    header(archive, "images/a/9.jpg", SIZE, says.to_bytes(4, "little"))
    rejected(archive, tmp_path / "set" / "one", member_bytes=6 * 10**6)


def test_damaged_archives(tmp_path: Path) -> None:
    target = tmp_path / "set" / "one"
    archive = header(packed(tmp_path / "crc.zip", SOUND), "images/b/2.jpg", CRC, b"\1\2\3\4")
    assert "Bad CRC-32" in rejected(archive, target)
    whole = packed(tmp_path / "whole.zip", SOUND).read_bytes()
    for name, content in (
        ("short", whole[:-30]),
        ("empty", b""),
        ("text", b"<html>Not found</html>"),
        ("late", whole[40:]),
    ):
        path = tmp_path / f"{name}.zip"
        path.write_bytes(content)
        rejected(path, target)
    assert "holds nothing of what is wanted" in rejected(packed(tmp_path / "other.zip", {"a/1.jpg": b"?"}), target)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_extraction_leaves_nothing(
    interruption: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, target = packed(tmp_path / "set.zip", SOUND), tmp_path / "set" / "one"
    copy, done = shutil.copyfileobj, list[None]()

    def interrupted(*files: Any) -> None:
        done.append(copy(*files))
        if len(done) == 3:
            raise interruption

    monkeypatch.setattr(shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt if interruption is KeyboardInterrupt else DataError, match=r"No space|^$"):
        extract(archive, target)
    assert len(done) == 3 and list((tmp_path / "set").iterdir()) == []
    monkeypatch.undo()
    extract(archive, target)
    assert len(unpacked(target)) == len(SOUND)


def test_everything_is_flushed_before_the_folder_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> NoReturn:
        raise KeyboardInterrupt

    archive = packed(tmp_path / "set.zip", SOUND)
    monkeypatch.setattr(os, "sync", crash)
    with pytest.raises(KeyboardInterrupt):
        extract(archive, tmp_path / "set" / "one")
    assert list((tmp_path / "set").iterdir()) == []
