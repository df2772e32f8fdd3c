"""Damage to files, for tests of what reads them."""

from __future__ import annotations

from pathlib import Path


def flip_bit(file: Path, at: int = -1) -> None:
    """Flip the lowest bit of a file's byte, by default of the last one."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
