"""Data source for the photographs of cats and dogs that the tutorial uses, downloaded once."""

from __future__ import annotations

import re
from pathlib import Path

from experiments.data.sources import download
from experiments.data.sources.folder import existing
from experiments.errors import DataError
from experiments.storage import array_cache

_IMAGES = re.compile(r"PetImages/(Cat|Dog)/([0-9]+\.jpg)")
_IMAGE_BYTES = 64 * 2**20  # largest allowed size of one unpacked image
_TOTAL_BYTES = 4 * 2**30  # largest allowed size of all together; they take 0.9 GB


def cats_vs_dogs(*, url: str, sha256: str, bytes: int, archive: str | None, cache: Path) -> Path:
    """Download Kaggle's cats and dogs, about 12,500 images each, as Microsoft publishes them.

    Images are unpacked into `cache/cats_vs_dogs/<first 16 of sha256>/Cat/` and `Dog/`; once these exist, the archive is
    not used. Many files are not valid images, which the manifest detects (use `data.on_bad=skip`).

    Source: https://www.microsoft.com/en-us/download/details.aspx?id=54765; J. Elson, J. Douceur, J. Howell, J. Saul:
    Asirra: a CAPTCHA that exploits interest-aligned manual image categorization, CCS 2007.

    Args:
        url, sha256, bytes: Address, hash and size of the archive.
        archive: Path of an archive that exists already, which is checked and kept; None to download it, and remove it
            when it is unpacked.
        cache: The cache directory; it needs room for the archive and for as much again.

    Raises:
        ConfigError: If `archive` is not a file.
        DataError: If the archive cannot be downloaded, is another one, is damaged or does not fit on the disk.
    """
    sha256 = sha256.lower()
    root = cache / "cats_vs_dogs" / sha256[:16]
    if not root.is_dir():
        allowed = "the path of the downloaded zip file, or null to download it"
        own = existing("data.archive", archive, allowed, is_file=True) if archive is not None else None
        with array_cache.writing(cache, "cats_vs_dogs", root.name):
            if root.is_dir():  # another process has created it meanwhile
                return root
            with _open(url, sha256, bytes, own, cache) as file:
                download.extract(file, root, wanted=_IMAGES, member_bytes=_IMAGE_BYTES, total_bytes=_TOTAL_BYTES)
            if own is None:
                Path(file.name).unlink(missing_ok=True)
    array_cache.mark_used(root)
    return root


def _open(url: str, sha256: str, bytes: int, own: Path | None, cache: Path) -> download.File:
    """Return the archive, open and checked: the user's own file, or a download."""
    if own is None:
        try:
            return download.fetch(url, sha256=sha256, size=bytes, folder=cache / "downloads")
        except DataError as error:
            raise DataError(f"{error}. Or download it by hand and give data.archive=PATH") from None
    try:
        file = own.open("rb")
    except OSError as error:
        raise DataError(f"data.archive: {own} cannot be read: {error.strerror}; check its permissions") from None
    try:
        download.verify(file, sha256=sha256, size=bytes, what=f"data.archive: {own}")
    except DataError as error:
        file.close()
        raise DataError(f"{error}. Give another path, or null to download it from {url}") from None
    return file
