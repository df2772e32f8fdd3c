"""Python values as overrides of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.api.run import Run
from experiments.config.messages import is_node
from experiments.config.overrides import format_value
from experiments.errors import ConfigError

# A text that Hydra's grammar reads as this text without quotes.
_WORD = re.compile(r"(?!(?:true|false|null|nan|inf|none)$)[a-z_][\w.-]*", re.IGNORECASE | re.ASCII)
_OF_RUNS = ("like", "resume", "continue")  # the arguments that name a run to start from
# Options of Hydra that say where configurations are; its other options print something, or start a sweep.
_OPTIONS = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")


def command(
    overrides: Sequence[str], keys: Mapping[str, Any], config_dir: str | Path | None = None, *, sweep: bool = False
) -> list[str]:
    """Return the command line of `train` that overrides and keyword arguments describe.

    Args:
        overrides: as on the command line.
        keys: values by key. A mapping for a part of the configuration gives values of its keys, at any depth; a dotted
            key gives one. Texts are taken literally; a run stands for its directory, or for its MLflow id.
        config_dir: folder with the user's own choices (`--config-dir`), if any.
        sweep: whether a list, tuple, range or NumPy array holds the values that a sweep runs over. A value that is
            itself a list is then given in a list.

    Raises:
        ConfigError: an override is no text, a value cannot be written, or an option does not apply here.
    """
    wrong = [override for override in overrides if not isinstance(override, str)]
    if wrong:
        raise ConfigError(
            f"overrides: must be texts as on the command line, 'epochs=10', or keyword arguments, epochs=10. Received: "
            f"{wrong[0]!r}"
        )
    options = [word for word in overrides if word.startswith("-") and word.partition("=")[0] not in _OPTIONS]
    if options:
        raise ConfigError(
            f"{options[0]}: options of the command line do not apply here, but for {', '.join(_OPTIONS[::2])}. A sweep "
            "is ex.sweep(...), the checked configuration ex.compose(...)"
        )
    place = ["--config-dir", str(config_dir)] if config_dir is not None else []
    given = [*place, *overrides, *_written(keys, sweep)]
    modes = [override for override in given if override.lstrip("+").startswith("hydra.mode=")]
    if modes:
        raise ConfigError(f"{modes[0]}: does not apply here. One run is ex.train(...), a sweep ex.sweep(...)")
    return given


def _written(keys: Mapping[str, Any], sweep: bool, above: str = "") -> Iterator[str]:
    """Yield an override for every value below the key `above`, which ends with a dot."""
    for name, value in keys.items():
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{above}{name}: a key must be a text. Received: {name!r}")
        key = f"{above}{name}"
        if isinstance(value, Mapping) and (is_node(key) or key.partition(".")[0] == "hydra"):
            yield from _written(value, sweep, f"{key}.")
            continue
        try:
            yield f"{key}={','.join(_word(choice, key) for choice in _values(value)) if sweep else _word(value, key)}"
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"{key}: {error}") from None


def _values(value: Any) -> Sequence[Any]:
    """Return the values that a sweep runs over."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(plain, list | tuple | range):
        return [plain]
    if not plain:
        raise ConfigError("a sweep needs at least one value. Received: none")
    return plain


def _word(value: Any, key: str) -> str:
    """Return the value of a key as it is typed, quoted where Hydra's grammar would read it as something else."""
    if isinstance(value, Run):
        # The directory is found whatever the tracking store. Keys of weights take the ids of runs only.
        value = str(value.folder or value.id) if key in _OF_RUNS else value.id or str(value.folder)
    return value if isinstance(value, str) and _WORD.fullmatch(value) else format_value(value)
