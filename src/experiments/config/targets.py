"""Components named in the configuration: which functions and classes a `_target_` may name, and how they are called."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config import messages
from experiments.config.schema import Config
from experiments.errors import ConfigError, DataError

APPLICATIONS = "keras.applications."
OURS = {
    "data": "experiments.data.",
    "augmentation": "experiments.data.augmentation.",
    "model": "experiments.models.",
    "schedule": "experiments.training.schedules.",
    "regime": "experiments.regimes.",
}


def resolve(trusted_packages: Sequence[str], key: str, target: str, kind: type | None = None) -> Any:
    """Return the class or function that a `_target_` names.

    Args:
        trusted_packages: the packages of the user in which any name is allowed.
        key: the key in the configuration that has the `_target_`.
        target: the dotted name.
        kind: the Keras class whose subclass it must be; None for keys that take a function of this project.

    Raises:
        ConfigError: the name is not allowed for this key, which is checked before anything is imported; it does not
            exist; or it is a class of another kind.
    """
    group = key.split(".")[0]
    allowed = [*(f"{name}." for name in trusted_packages), OURS[group] if kind is None else "keras."]
    if group == "model":
        allowed.append(APPLICATIONS)
    if not target.startswith(tuple(allowed)):
        raise ConfigError(
            f"{key}._target_: must begin with {' or '.join(allowed)} (a package of yours: trusted_packages=[NAME]). "
            f"Received: {target!r}"
        )
    module, _, name = target.rpartition(".")
    own = [package for package in trusted_packages if target.startswith(f"{package}.")]
    try:
        for package in own:  # before the import, as the files may be edited after it
            _source_hash(package)
        found = getattr(importlib.import_module(module), name)
        for package in own:  # which modules are loaded now, so that it is known later if one was loaded again
            _source_hash(package)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}._target_: there is no {target!r}: {error}") from None
    if kind is not None and not (inspect.isclass(found) and issubclass(found, kind)):
        raise ConfigError(f"{key}._target_: must name a {kind.__module__}.{kind.__name__}. Received: {target!r}")
    # Names that a module of this project has imported from elsewhere are not allowed.
    borrowed = target.startswith("experiments.") and getattr(found, "__module__", None) != module
    if kind is None and (borrowed or not inspect.isfunction(found)):
        raise ConfigError(f"{key}._target_: must name a function. Received: {target!r}")
    return found


def parameters_of(function: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a call; of a class, those of the first `__init__` in its bases that names any.

    For a class without an `__init__` of its own, `inspect.signature` would return the *args and **kwargs that some of
    Keras's base classes take.
    """
    for base in function.__mro__ if inspect.isclass(function) else ():
        if "__init__" in vars(base):
            parameters = list(inspect.signature(vars(base)["__init__"]).parameters.items())[1:]  # without self
            if any(one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for _, one in parameters):
                return dict(parameters)
    return inspect.signature(function).parameters


def construct(key: str, function: Any, arguments: Mapping[str, Any]) -> Any:
    """Call a class or function with arguments from the configuration; wrong ones are a ConfigError about the key."""
    parameters = parameters_of(function)
    named = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    unknown = [name for name in arguments if name not in (*named, "dtype", "name", "trainable")]
    # Keras's classes pass their **kwargs on to a base class, which accepts little else than the three names above.
    if unknown and (inspect.isclass(function) or len(named) == len(parameters)):
        lines = [messages.unknown_key(f"{key}.{name}", named, arguments[name]) for name in unknown]
        raise ConfigError(messages.format_errors(lines))
    # YAML and the command line yield the integer 0 for 0.0, which Keras's SGD does not accept as momentum.
    numbers = {name for name, parameter in parameters.items() if type(parameter.default) is float}
    typed = {
        name: float(value) if name in numbers and type(value) is int else value for name, value in arguments.items()
    }
    try:
        return function(**typed)
    except (ConfigError, DataError):
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {error}{_place(function, error)}") from error


def build_source(config: Config) -> Callable[[], Any]:
    """Return a function of no arguments that provides the data set: its root directory, or a listing of its images."""
    function = resolve(config.trusted_packages, "data", config.data.target)
    return functools.partial(construct, "data", function, config.data.arguments | {"cache": config.cache})


def _place(function: Any, error: Exception) -> str:
    """Return where a component of the user's own raised an error; empty for other components and wrong arguments."""
    if function.__module__.startswith(("experiments.", "keras.")):
        return ""
    file = inspect.getsourcefile(function)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({file}, line {lines[-1]})" if lines else ""


def own_code(trusted_packages: Sequence[str], plain: Any) -> dict[str, list[str]]:
    """Return {"own_code": [sha256, ...]} of the user's packages that targets in a plain value name, {} if none do."""
    targets = list(_targets(plain))
    named = [name for name in trusted_packages if any(target.startswith(f"{name}.") for target in targets)]
    return {"own_code": [_source_hash(name) for name in sorted(named)]} if named else {}


def _targets(plain: Any) -> Iterator[str]:
    if isinstance(plain, Mapping):
        yield from (str(value) for key, value in plain.items() if key == "_target_")
        plain = list(plain.values())
    for value in plain if isinstance(plain, list) else ():
        yield from _targets(value)


# Package -> the modules of it that this process had loaded, each with its spec, and the hash of its files.
_hashed: dict[str, tuple[dict[str, object], str]] = {}


def _source_hash(package: str) -> str:
    """Return the sha256 over a package's or module's Python files, as they were when this process imported them.

    This process runs the code that it has imported, also after the files have changed, until a module is reloaded.
    """
    loaded = {
        name: getattr(module, "__spec__", None)
        for name, module in list(sys.modules.items())
        if f"{name}.".startswith(f"{package}.")
    }
    specs, digest = _hashed.get(package, ({}, ""))
    if not digest or any(loaded.get(name) is not spec for name, spec in specs.items()):
        digest = _hash_files(package)
    _hashed[package] = loaded, digest
    return digest


def _hash_files(package: str) -> str:
    """Return the sha256 over the names and contents of a package's or module's Python files."""
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # `resolve` reports a missing one; ValueError: a script, as __main__
        found = None
    places = [Path(place) for place in (found and found.submodule_search_locations) or ()]
    files = {path.relative_to(place).as_posix(): path for place in places for path in place.rglob("*.py")}
    if found and found.origin and not places:
        files[package] = Path(found.origin)
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
