"""The rungs of a ladder sweep (`sweep.rungs`) as jobs: cheap rungs first, those that build on the best one last."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from hydra.types import HydraContext

from experiments.config import messages
from experiments.config.identity import REPEATS
from experiments.errors import ConfigError
from experiments.runs.candidate_runs import without_repeats
from experiments.sweeps.plan import Combination, Place, grid, with_values

BEST = "best"  # first item of a rung that extends the rung to use among those without this item
SHAPE = "a rung is a list of overrides such as [regime=finetune, regime.unfrozen_blocks=2]"


def expand(overrides: Sequence[Override], rungs: Any, context: HydraContext) -> list[tuple[Combination, Place]]:
    """Return the jobs of a ladder sweep and their places, rung by rung.

    Every combination of the values that the overrides sweep over is run on every rung of `sweep.rungs`. A rung that
    begins with `best` has jobs for every rung that it may build on. Raise ConfigError if a rung is invalid.
    """
    if not isinstance(rungs, Mapping) or not rungs:
        raise ConfigError(f"sweep.rungs: must map names to rungs; {SHAPE}. Received: {rungs}")
    found = {name: _values(name, lines, context) for name, lines in rungs.items()}
    fixed = [name for name, lines in rungs.items() if lines[0] != BEST]
    _check(rungs, found, fixed, [override.get_key_element().lstrip("+~") for override in overrides])
    places = [(name, "") for name in fixed]
    places += [(name, base) for name in found if name not in fixed for base in fixed]
    jobs = []
    for (name, base), (typed, values) in itertools.product(places, grid(overrides)):
        own = found.get(base, {}) | found[name]
        plain = {key.lstrip("+~"): value for key, value in own.items()}
        jobs.append(((with_values(typed, own), values | plain), Place(name, base, without_repeats(values))))
    return jobs


def _values(name: str, lines: Any, context: HydraContext) -> dict[str, str]:
    """Return the values that a rung sets, by key; raise ConfigError if it is no such list, or must not set a key."""
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
        raise ConfigError(f"sweep.rungs.{name}: {SHAPE}. Received: {lines}")
    given = [line for line in lines if line != BEST]
    try:
        parsed = OverridesParser.create(config_loader=context.config_loader).parse_overrides(given)
    except OverrideParseException as error:
        raise ConfigError(f"sweep.rungs.{name}: {error}. Allowed: {SHAPE}. Received: {given}") from None
    wrong = [
        str(override.input_line)
        for override in parsed
        if override.is_sweep_override() or override.is_delete() or override.key_or_group in REPEATS
        or override.key_or_group.partition(".")[0] in ("hydra", "sweep")
    ]  # fmt: skip
    if wrong or not parsed or BEST in lines[1:]:
        raise ConfigError(
            f"sweep.rungs.{name}: {SHAPE}, with one value a key; {BEST} may stand before them. What is swept over, "
            f"{' and '.join(REPEATS)} among it, is typed. Received: {', '.join(wrong) or list(lines)}"
        )
    return dict(str(override.input_line).split("=", 1) for override in parsed)


def _check(
    rungs: Mapping[str, Sequence[str]], found: Mapping[str, Mapping[str, str]], fixed: Sequence[str],
    typed: Sequence[str],
) -> None:  # fmt: skip
    """Raise ConfigError if the rungs do not form a ladder, or if they override a typed key."""
    wrong = []
    if len(fixed) < 2 or list(rungs)[: len(fixed)] != list(fixed):
        wrong.append(f"sweep.rungs: needs two rungs, before those that begin with {BEST}. Received: {list(rungs)}")
    known: dict[str, str] = {}
    for name in fixed:
        same = known.setdefault(str(sorted(found[name].items())), name)
        if same != name:
            wrong.append(f"sweep.rungs.{name}: is the same as {same}. Give each rung once")
    own = {key.lstrip("+~") for name in fixed for key in found[name]}
    wrong += [
        f"{key}: is set by the rungs (sweep.rungs). Leave it out, or change the rungs" for key in typed if key in own
    ]
    if wrong:
        raise ConfigError(messages.format_errors(wrong))
