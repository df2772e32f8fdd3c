"""Rules for imports between packages (DESIGN §2), checked on the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "experiments"

# A package may import the packages before it in this list, never those after it. A module at the root counts as a
# package.
ORDER = (
    "errors",
    "storage",
    "system",
    "config",
    "images",
    "data",
    "models",
    "training",
    "runs",
    "tracking",
    "reuse",
    "evaluation",
    "reports",
    "comparison",
    "regimes",
    "run",
    "deploy",
    "inspection",
    "sweeps",
    "train",
    "preload",
    "api",
    "cli",
    "__main__",
)
# TensorFlow must not be imported before the configuration is validated, so that errors appear at once. These modules
# import none of HEAVY at their top, neither directly nor through other modules. A package's name stands for all of its
# modules.
LIGHT = (
    "errors",
    "storage",
    "system",
    "config",
    "data.types",
    "training.types",
    "runs",
    "reuse",
    "deploy.saved_run",
    "sweeps.plan",
    "sweeps.launchers.scheduler",
    "sweeps.launchers.local",
    "sweeps.launchers.ray_cluster",
    "sweeps.launchers.slurm",
    "sweeps.sweeper",
    "sweeps.sweep_directory",
    "sweeps.search.search",
    "sweeps.search.space",
    "train",
    "api",
    "cli",
    "__main__",
)
HEAVY = {"tensorflow", "keras", "mlflow", "ray", "submitit", "optuna"}
# Names of files in a run directory, as a string that is no sentence or as a part of one.
RUN_FILES = re.compile(
    r"\S*((run|metrics|fetched|job|sweep)\.json|curves\.csv|manifest\.csv|predictions_|(head|unfrozen)\.weights\.h5)\S*"
    r"|config\.yaml|weights/\S*|figures(/\S*)?"
)
UNPICKLED = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}

MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(SOURCE.rglob("*.py"))
    if path.name != "__init__.py"
}
NAMES = sorted(MODULES)


def imports(tree: ast.AST, lazy: bool = True) -> Iterator[str]:
    """Yield the dotted names that a module imports, except those for type checkers only.

    Args:
        lazy: include imports inside functions.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node, lazy)


def _package(name: str) -> str:
    return name.split(".")[0]


def ours(name: str) -> set[str]:
    """Return the modules of this package that a module imports, at its top or lazily."""
    dotted = [
        found.removeprefix("experiments.") for found in imports(MODULES[name]) if found.startswith("experiments.")
    ]
    fitting = ([module for module in NAMES if f"{found}.".startswith(f"{module}.")] for found in dotted)
    return {max(modules, key=len) for modules in fitting if modules}  # a package's module, not the package


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_one_way(name: str) -> None:
    place = ORDER.index(_package(name))
    assert {other for other in ours(name) if ORDER.index(_package(other)) > place} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Include lazy imports."""
    list(TopologicalSorter({name: ours(name) - {name} for name in NAMES}).static_order())  # raises CycleError


def test_below_the_commands_only_train_imports_run_and_no_module_imports_train() -> None:
    importers = {module: {name for name in NAMES if module in ours(name)} for module in ("run", "train")}
    above = ("cli.", "api.", "sweeps.", "inspection.", "preload")
    assert {name for name in importers["run"] if not name.startswith(above)} == {"train"}
    assert {name for name in importers["train"] if not name.startswith(above)} == set()
    at_the_top = imports(MODULES["train"], lazy=False)
    assert not any(f"{found}.".startswith("experiments.run.") for found in at_the_top), "run is imported lazily"


def test_mlflow_is_imported_by_tracking_alone() -> None:
    users = {name for name in NAMES if any(_package(found) == "mlflow" for found in imports(MODULES[name]))}
    assert {_package(name) for name in users} == {"tracking"}


@pytest.mark.parametrize("name", [name for name in NAMES if _package(name) != "runs"])
def test_runs_alone_names_the_files_of_a_run_directory(name: str) -> None:
    constants = (node.value for node in ast.walk(MODULES[name]) if isinstance(node, ast.Constant))
    assert [value for value in constants if isinstance(value, str) and RUN_FILES.fullmatch(value)] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name in LIGHT or _package(name) in LIGHT])
def test_what_starts_fast_imports_no_framework(name: str) -> None:
    """Follow the imports at the top of modules."""
    seen, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        seen.add(module)
        found = list(imports(MODULES[module], lazy=False))
        assert not {_package(dotted) for dotted in found} & HEAVY, f"{name} through {module}"
        below = {other for other in NAMES for dotted in found if f"{dotted}.".startswith(f"experiments.{other}.")}
        waiting += below - seen


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_pickled_and_no_model_file_may_run_code(name: str) -> None:
    assert not {_package(found) for found in imports(MODULES[name])} & UNPICKLED
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "safe_mode"):
            assert isinstance(node.value, ast.Constant), (
                f"{name}:{node.value.lineno}: {node.arg} is given as a constant"
            )
            assert node.value.value is (node.arg == "safe_mode"), f"{name}:{node.value.lineno}: {node.arg}"
        if isinstance(node, ast.Attribute | ast.Name):
            called = node.attr if isinstance(node, ast.Attribute) else node.id
            assert called != "enable_unsafe_deserialization", f"{name}:{node.lineno}"
