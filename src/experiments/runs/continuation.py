"""`continue_from`: what a run has in common with the finished run that it trains further; copies of its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.config.identity import effective
from experiments.config.overrides import leaves, value_at
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.runs.run_directory import CONFIG, CURVES, MANIFEST, RunDirectory

KEY = "continue_from"
COPIED = (CONFIG, MANIFEST, CURVES)
# The keys that the network follows from, and below `model` those that change no weight's shape or meaning.
SAME = ("regime.name", "regime.unfrozen_blocks", "data.image_size", "model")
FREE = ("weights", "dropout", "l1", "l2")


def check(config: Config) -> None:
    """Raise ConfigError if there is no finished run to continue, with the same network and fewer epochs."""
    if config.continue_from is None:
        return
    if KEY in config.regime.ignores:
        raise ConfigError(
            f"continue: regime={config.regime.name} ignores {KEY} (regime.ignores), so it trains no run further. "
            f"Allowed: a regime that reads it, or {KEY}=null"
        )
    folder = Path(config.continue_from)
    directory = RunDirectory(folder)
    try:
        directory.facts_of_finished(COPIED)
    except ConfigError as error:
        raise ConfigError(f"continue: {error}\nTo train from the start: {KEY}=null") from None
    before, now = dict(_network(directory.config())), dict(_network(effective(config)))
    lines = [
        f"  {key}: must be {before[key]!r}, as in that run. Received: {now.get(key)!r}"
        for key in before
        if before[key] != now.get(key)
    ]
    if lines:
        raise ConfigError("\n".join([f"continue: the network is not that of {folder}:", *lines]))
    trained = directory.epochs()[-1].epoch + 1
    if config.epochs <= trained:
        raise ConfigError(
            f"continue: epochs: must be more than {trained}, the epochs that {folder.name} has trained, as they count: "
            f"epochs={trained + 20} trains 20 more. Received: {config.epochs}"
        )


def _network(plain: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values, by key, that two runs of the same network have in common."""
    for key in SAME:
        for path, value in leaves(value_at(plain, key), key):
            if path.rpartition(".")[2] not in FREE:
                yield path, value


def copy_source(config: Config, folder: Path) -> Path | None:
    """Copy the small files of the run that `continue_from` names, so that its removal does not affect this run.

    They become inputs of the run directory `folder`, once.

    Returns:
        The directory of the copies; its facts also have `continued`, the folder of that run, and `state`, that of its
        checkpoints. None if the run continues no other.
    """
    if config.continue_from is None:
        return None
    source, target = Path(config.continue_from), RunDirectory(RunDirectory(folder).inputs(KEY))
    if target.facts().get("continued") == str(source):
        return target.folder
    directory = RunDirectory(source)
    facts = directory.facts_of_finished(COPIED)
    try:
        directory.copy_records(COPIED, target.folder)
    except OSError as error:
        raise ConfigError(f"continue: {source}: cannot be read: {error.strerror or error}") from None
    # A sweep's winner has no checkpoints: its weights are those of one of the sweep's jobs.
    trained = directory.config().get("sweep", {}).get("trained")
    places = [place.checkpoints for place in (directory, *([RunDirectory(Path(trained))] if trained else []))]
    phase = directory.epochs()[-1].phase
    states = [str(place) for place in places if any(place.glob(f"{phase}/[0-9]*"))]
    target.write_facts({**facts, "continued": str(source), "state": states[0] if states else None})
    return target.folder


def source_identity(directory: RunDirectory) -> str:
    """Return what identifies the run whose files are copied: its identity, and whether its state was kept."""
    facts = directory.facts()
    return f"{facts['identity']} {'with' if facts['state'] else 'without'} optimizer state"
