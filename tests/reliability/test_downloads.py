"""Downloads that are killed again and again, and archives that no honest one would be."""

from __future__ import annotations

import hashlib
import io
import random
import re
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from experiments.data.sources import download
from experiments.errors import DataError

Tally = Callable[[str, int, int], None]
Tries = Callable[[int, int], int]
Started = Callable[..., subprocess.Popen[str]]

FETCHES = """
import sys
from pathlib import Path
from experiments.data.sources.download import fetch
print("ready", flush=True)
file = fetch(sys.argv[1], sha256=sys.argv[2], size=int(sys.argv[3]), folder=Path(sys.argv[4]))
file.seek(0)
import hashlib
print(hashlib.sha256(file.read()).hexdigest(), flush=True)
"""
BODY = np.random.default_rng(0).bytes(4_000_000)


class Slowly(BaseHTTPRequestHandler):
    """Sends what is asked for in small pieces."""

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(BODY) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        self.end_headers()
        try:
            for at in range(start, len(BODY), 20_000):
                self.wfile.write(BODY[at : at + 20_000])
                time.sleep(0.005)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        pass


def test_kills_of_a_download(started: Started, tries: Tries, tally: Tally, tmp_path: Path) -> None:
    wanted, survived, sha256 = tries(20, 3), 0, hashlib.sha256(BODY).hexdigest()
    rng = random.Random(0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Slowly) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/set.zip"
        folder = tmp_path / "downloads"
        for _ in range(wanted):
            process = started("-c", FETCHES, url, sha256, str(len(BODY)), str(folder))
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0, 0.6))
            process.send_signal(signal.SIGKILL)
            reported = process.communicate()[0].strip()
            survived += reported in ("", sha256)
        process = started("-c", FETCHES, url, sha256, str(len(BODY)), str(folder))
        out, errors = process.communicate(timeout=60)
        assert out.split()[-1] == sha256, errors
        server.shutdown()
    tally("download killed", wanted, survived)


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def link(target: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("set/cats/1.jpg")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, target)
    return file.getvalue()


EVIL: dict[str, Callable[[], bytes]] = {  # made only where a test needs them: they take seconds
    "bomb": lambda: zipped({"set/cats/1.jpg": bytes(200_000_000)}),
    "bomb of many": lambda: zipped({f"set/cats/{n}.jpg": bytes(9_000_000) for n in range(20)}),
    "parent": lambda: zipped({"set/cats/../../../evil.jpg": b"x"}),
    "absolute": lambda: zipped({"/tmp/evil/cats/1.jpg": b"x"}),
    "backslashes": lambda: zipped({"set\\cats\\..\\..\\evil.jpg": b"x"}),
    "symbolic link": lambda: link("/etc/passwd"),
    "cut short": lambda: zipped({"set/cats/1.jpg": bytes(range(256)) * 100})[:-40],
    "no archive": lambda: b"this is no archive" * 100,
}


@pytest.mark.parametrize("name", EVIL)
def test_archives_that_no_honest_one_would_be(name: str, tally: Tally, tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    path.write_bytes(EVIL[name]())
    target = tmp_path / "inside" / "images"
    wanted = re.compile(r"set/(cats|dogs)/([0-9]+\.jpg)")
    with path.open("rb") as file, pytest.raises(DataError):
        download.extract(file, target, wanted=wanted, member_bytes=10_000_000, total_bytes=50_000_000)
    outside = [found for found in tmp_path.rglob("*") if found.is_file() and found != path]
    tally("evil archive", 1, int(not outside and not target.exists() and not Path("/tmp/evil").exists()))
