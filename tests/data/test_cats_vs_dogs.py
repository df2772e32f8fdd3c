"""The photographs of cats and dogs, from an archive of the same layout with drawn ones."""

from __future__ import annotations

import hashlib
import io
import signal
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.config import schema
from experiments.data import manifest
from experiments.data.sources import cats_vs_dogs
from experiments.data.types import SplitSettings
from experiments.errors import ConfigError, DataError
from experiments.storage import atomic_files
from tests.data.test_download import Host

Read = Callable[..., schema.Config]
COUNT = 12  # sound images of each class


def image(*seed: int) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


def archive() -> bytes:
    """As Microsoft's: images, some of which are none, and what Windows and lawyers leave."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for label, name in enumerate(("Cat", "Dog")):
            for n in range(COUNT):
                file.writestr(f"PetImages/{name}/{n}.jpg", image(label, n))
            file.writestr(f"PetImages/{name}/Thumbs.db", b"\xd0\xcf\x11\xe0")
        file.writestr("PetImages/Cat/666.jpg", b"")
        file.writestr("PetImages/Cat/667.jpg", image(0, 667)[:-100])
        file.writestr("PetImages/Dog/11702.jpg", b"<html>Not found</html>")
        file.writestr("readme[1].txt", "?")
        file.writestr("MSR-LA - 3467.docx", b"PK")
    return content.getvalue()


ARCHIVE = archive()
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()
BAD = {"Cat/666.jpg", "Cat/667.jpg", "Dog/11702.jpg"}


@pytest.fixture
def host() -> Iterator[Host]:
    with Host(ARCHIVE) as server:
        threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
        yield server
        server.shutdown()


def order(host: Host, cache: Path, **changes: Any) -> Path:
    wanted: dict[str, Any] = {"url": host.url, "sha256": SHA256, "bytes": len(ARCHIVE), "archive": None, "cache": cache}
    return cats_vs_dogs.cats_vs_dogs(**wanted | changes)


def in_process(host: Host, cache: Path, before: str = "") -> subprocess.Popen[str]:
    code = f"""
import os, sys
from pathlib import Path
from experiments.data.sources import download
from experiments.data.sources import cats_vs_dogs
{before}
url, sha256, size, cache = sys.argv[1:]
print(cats_vs_dogs.cats_vs_dogs(url=url, sha256=sha256, bytes=int(size), archive=None, cache=Path(cache)))
"""
    arguments = [host.url, SHA256, str(len(ARCHIVE)), str(cache)]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def names(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


ALL = {f"{name}/{n}.jpg" for name in ("Cat", "Dog") for n in range(COUNT)} | BAD


def test_the_folder_holds_the_images_alone_and_is_made_once(host: Host, tmp_path: Path) -> None:
    root = order(host, tmp_path)
    assert root == tmp_path / "cats_vs_dogs" / SHA256[:16] and names(root) == ALL
    assert (root / "Dog" / "3.jpg").read_bytes() == image(1, 3)
    assert list((tmp_path / "downloads").iterdir()) == [], "our own archive is removed"
    assert list(root.parent.iterdir()) == [root]
    assert order(host, tmp_path) == order(host, tmp_path, sha256=SHA256.upper()) == root
    assert len(host.ranges) == 1


def test_its_manifest_leaves_out_what_is_no_image(host: Host, tmp_path: Path) -> None:
    root = order(host, tmp_path)
    fractions = {"train": 0.5, "validation": 0.1, "test": 0.4}
    found = manifest.read(root, SplitSettings(fractions, on_bad="skip"), cache=tmp_path)
    assert found.classes == ("Cat", "Dog")
    assert {left.path for left in found.skipped} == BAD
    assert {entry.path for entry in found.entries} == ALL - BAD

    limit = {"train": 3, "validation": 1, "test": 2}
    found = manifest.read(root, SplitSettings(fractions, limit=limit, on_bad="skip"), cache=tmp_path)
    counts = Counter((entry.split, entry.class_name) for entry in found.entries)
    assert counts == {(split, name): limit[split] for split in limit for name in ("Cat", "Dog")}


def test_the_yaml_has_what_the_tutorial_took_and_what_is_held_out(host: Host, tmp_path: Path, config: Read) -> None:
    data = config("data=cats_vs_dogs").data
    assert data.limit.model_dump() == {"train": 1000, "validation": 200, "test": 2500}
    smallest = 12_500 - 1738  # if all images that are skipped were of one class
    shares = data.fractions.model_dump()
    assert all(shares[split] * smallest > count for split, count in data.limit.model_dump().items())
    assert (data.on_bad, data.arguments["archive"], data.arguments["bytes"]) == ("skip", None, 824_887_076)

    overrides = [f"data.url={host.url}", f"data.sha256={SHA256}", f"data.bytes={len(ARCHIVE)}"]
    data = config("data=cats_vs_dogs", *overrides).data
    assert names(cats_vs_dogs.cats_vs_dogs(**data.arguments, cache=tmp_path)) == ALL


@pytest.mark.parametrize("key, value", [
    ("url", "ftp://host/set.zip"), ("url", "http:///set.zip"), ("sha256", "b7974b"), ("bytes", 0), ("bytes", "many"),
    ("archive", 3),
])  # fmt: skip
def test_arguments_that_cannot_work(key: str, value: Any, config: Read) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{key}: .*Received: {value!r}"):
        config("data=cats_vs_dogs", f"data.{key}={value}")


def test_an_archive_of_ones_own_is_used_and_stays(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "mine.zip"
    own.write_bytes(ARCHIVE)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for n, given in enumerate((str(own), "~/mine.zip", "mine.zip")):
        assert names(order(host, tmp_path / str(n), archive=given)) == ALL
    assert own.read_bytes() == ARCHIVE and len(host.ranges) == 0
    own.unlink()
    assert names(order(host, tmp_path / "0", archive=str(own))) == ALL, "once unpacked, it is not looked at"


def test_another_archive_of_ones_own_is_refused_and_stays(host: Host, tmp_path: Path) -> None:
    own = tmp_path / "mine.zip"
    for content, received in (
        (ARCHIVE[:-1] + b"?", "Received: sha256 "),
        (ARCHIVE[:-1], f"Received: {len(ARCHIVE) - 1:,} bytes"),
    ):
        own.write_bytes(content)
        with pytest.raises(DataError) as caught:
            order(host, tmp_path / "cache", archive=str(own))
        text = str(caught.value)
        assert text.startswith(f"data.archive: {own} is not the one expected") and host.url in text
        assert SHA256 in text and received in text
        assert own.read_bytes() == content
    assert not (tmp_path / "cache" / "cats_vs_dogs").exists() and len(host.ranges) == 0


@pytest.mark.parametrize("given, problem", [("absent.zip", "does not exist"), (".", "is not a file"), ("", "is empty")])
def test_an_archive_that_is_no_file(given: str, problem: str, host: Host, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"data\.archive {problem}.*\. Allowed: .*Received: '{given}'"):
        order(host, tmp_path, archive=given)


def test_another_archive_from_the_server_is_not_unpacked(host: Host, tmp_path: Path) -> None:
    host.body = ARCHIVE[:-1] + b"?"
    with pytest.raises(DataError, match=r"download it by hand and give data\.archive=PATH") as caught:
        order(host, tmp_path)
    assert host.url in str(caught.value) and hashlib.sha256(host.body).hexdigest() in str(caught.value)
    assert not (tmp_path / "cats_vs_dogs").exists() and list((tmp_path / "downloads").iterdir()) == []


def test_two_processes_share_one_download(host: Host, tmp_path: Path) -> None:
    slow = "import time; extract = download.extract\n"
    slow += "download.extract = lambda *a, **k: (time.sleep(0.5), extract(*a, **k))"
    processes = [in_process(host, tmp_path, slow) for _ in range(2)]
    roots = {process.communicate(timeout=20)[0].strip() for process in processes}
    assert roots == {str(tmp_path / "cats_vs_dogs" / SHA256[:16])}
    assert names(Path(*roots)) == ALL and len(host.ranges) == 1


def test_nothing_depends_on_the_lock(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_files, "hold", lambda _: nullcontext(False))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(order(host, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (root,) = set(found)
    assert len(found) == 4 and names(root) == ALL
    assert list(root.parent.iterdir()) == [root] and list((tmp_path / "downloads").iterdir()) == []


def test_what_a_killed_extraction_leaves_is_not_used(host: Host, tmp_path: Path) -> None:
    killed = "import shutil; copy, done = shutil.copyfileobj, []\n"
    killed += "shutil.copyfileobj = lambda *a: os.kill(os.getpid(), 9) if len(done) == 5 else done.append(copy(*a))"
    process = in_process(host, tmp_path, killed)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "cats_vs_dogs").iterdir()
    assert left.name.startswith(".") and len(names(left)) == 6, "the last one is not complete"
    root = order(host, tmp_path)
    assert names(root) == ALL and list(root.parent.iterdir()) == [root]
    assert len(host.ranges) == 1, "the archive was kept"
