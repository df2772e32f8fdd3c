"""Who may import whom (DESIGN §2), read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "experiments"

# Each row may import what stands in the rows above it, and from its own row only what `BESIDE` says.
ROWS = (
    ("quiet",),
    ("types", "overrides", "paths", "redaction", "signals", "statistics", "store", "schedules", "machine"),
    ("progress", "significance", "data.file_formats"),
    ("data.colors",),
    ("schema", "data.decoder", "data.download", "data.animals", "checkpoints", "augmentation", "losses"),
    ("validation", "studies"),
    ("unread", "tracking.curves", "tracking.migrations", "tracking.models", "tracking.served"),
    ("tracking.address",),
    ("tracking.outbox", "tracking.owners"),
    ("tracking.stored", "tracking.registry", "tracking.view"),
    ("models.convnet", "models.stages", "models.winograd"),
    ("explain", "runtime", "tracking", "data.pen", "data.listing", "data.pipeline", "evaluate"),
    ("data.splitting",),
    ("journal", "figures", "data.manifest", "data.folder", "data.synthetic", "data.cats_vs_dogs", "models.head"),
    ("comparison", "data.pixels"),
    ("comparison_text",),
    ("page",),
    ("like",),
    ("models.architecture",),
    ("models.weights",),
    ("models.network", "fit"),
    ("activations", "build", "gradcam", "predictions"),
    ("regimes.*", "trained"),
    ("sweeps.plan", "sweeps.plots", "exports", "outcome"),
    ("sweeps.rungs",),
    ("sweeps.local", "sweeps.summary", "sweeps.space"),
    ("sweeps.ladder",),
    ("run", "sweeps.sweeper", "sweeps.search", "sweeps.cluster"),
    ("sweeps.look", "inspection.*"),
    ("reproduction",),
    ("train",),
    ("sweeps.warm",),
    ("commands.*",),
    ("__main__",),
)
BESIDE = {
    ("commands.compare", "commands.arguments"),
    ("commands.export", "commands.arguments"),
    ("commands.inspect", "commands.arguments"),
    ("commands.predict", "commands.arguments"),
    ("commands.register", "commands.arguments"),
    ("commands.reproduce", "commands.arguments"),
    ("commands.ui", "commands.arguments"),
    ("regimes.finetune", "regimes.bottleneck"),
    ("regimes.restored", "regimes.bottleneck"),
    ("regimes.restored", "regimes.finetune"),
    ("sweeps.summary", "sweeps.ladder"),
    ("commands.demo", "commands.compare"),
    ("commands.inspect", "commands.composed"),
    ("commands.backbones", "commands.composed"),
    ("commands.demo", "commands.composed"),
    ("commands.pretrained", "commands.composed"),
    ("commands.reproduce", "commands.composed"),
    ("sweeps.sweeper", "sweeps.search"),
}
# Before the configuration is known to be good, TensorFlow has no place.
LIGHT = (
    "train",
    "trained",
    "journal",
    "like",
    "signals",
    "schema",
    "validation",
    "explain",
    "paths",
    "types",
    "quiet",
    "redaction",
    "__main__",
    "sweeps.plan",
    "sweeps.local",
    "sweeps.cluster",
    "sweeps.sweeper",
    "sweeps.search",
    "sweeps.space",
)
HEAVY = {"tensorflow", "keras", "mlflow", "ray", "submitit", "optuna"}
UNPICKLED = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}

MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(SOURCE.rglob("*.py"))
    if path.name != "__init__.py"
} | {"tracking": ast.parse((SOURCE / "tracking" / "__init__.py").read_text(encoding="utf-8"))}
NAMES = sorted(MODULES)


def imports(tree: ast.AST, lazy: bool = True) -> Iterator[str]:
    """The dotted names that a module imports; those only for type checkers left out.

    Args:
        lazy: with those inside functions.
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


def ours(name: str) -> set[str]:
    """The modules of this package that a module imports, at its top or lazily."""
    dotted = [
        found.removeprefix("experiments.") for found in imports(MODULES[name]) if found.startswith("experiments.")
    ]
    fitting = ([module for module in NAMES if f"{found}.".startswith(f"{module}.")] for found in dotted)
    return {max(modules, key=len) for modules in fitting if modules}  # a package's module, not the package


def rows(name: str) -> list[int]:
    """Where a module stands in the table."""
    return [at for at, row in enumerate(ROWS) for entry in row if fnmatch(name, entry)]


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_one_way(name: str) -> None:
    assert len(rows(name)) == 1, f"{name} stands once in ROWS: give a new module its row"
    allowed = {other for other in NAMES if rows(other)[0] < rows(name)[0] or (name, other) in BESIDE}
    assert ours(name) - allowed == set()


def test_below_the_commands_only_train_imports_run_and_nobody_imports_train() -> None:
    importers = {module: {name for name in NAMES if module in ours(name)} for module in ("run", "train")}
    above = ("commands.", "sweeps.", "inspection.")
    assert {name for name in importers["run"] if not name.startswith(above)} == {"train"}
    assert {name for name in importers["train"] if not name.startswith(above)} == set()
    assert "experiments.run" not in " ".join(imports(MODULES["train"], lazy=False)), "run is imported lazily"


def test_mlflow_is_imported_by_tracking_alone() -> None:
    users = {name for name in NAMES if any(_package(found) == "mlflow" for found in imports(MODULES[name]))}
    assert {_package(name) for name in users} == {"tracking"}


@pytest.mark.parametrize("name", [name for name in NAMES if name in LIGHT or name.startswith("commands.")])
def test_what_starts_fast_imports_no_framework(name: str) -> None:
    """Neither itself nor through what it imports at its top."""
    seen, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        seen.add(module)
        found = list(imports(MODULES[module], lazy=False))
        assert not {_package(one) for one in found} & HEAVY, f"{name} through {module}"
        below = {other for other in NAMES for one in found if f"{one}.".startswith(f"experiments.{other}.")}
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


def _package(name: str) -> str:
    return name.split(".")[0]
