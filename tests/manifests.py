"""Manifests of small data sets for tests."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from experiments.data import manifest
from experiments.data.listing import Listing
from experiments.data.types import Manifest, SplitSettings


def read(source: Path | Listing, **options: Any) -> Manifest:
    """Read a manifest with a cache beside the images; options are fields of `SplitSettings` and arguments of `read`."""
    root = source.root if isinstance(source, Listing) else source
    settings = {field.name: options.pop(field.name) for field in fields(SplitSettings) if field.name in options}
    return manifest.read(source, SplitSettings(**settings), **{"cache": root.parent / "cache"} | options)
