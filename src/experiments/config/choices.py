"""The shipped choices of the configuration's groups, as conf/ has them."""

from __future__ import annotations

from functools import cache
from typing import Any

from omegaconf import OmegaConf

from experiments.system.paths import CONF


@cache
def shipped(group: str) -> dict[str, dict[str, Any]]:
    """Return the shipped choices of a group by name, as plain values with unresolved interpolations."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((CONF / group).glob("*.yaml")):
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        found[path.stem] = content.get(group, content)
    return found
