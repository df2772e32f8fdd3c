"""Fixtures of all tests: composed configurations, small synthetic images, and the photographs where present."""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import composition
import numpy as np
import pytest
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.hydra import Hydra
from omegaconf import DictConfig
from PIL import Image

from experiments.config import schema
from experiments.storage.csv_files import read_rows
from experiments.system import hardware, redaction, signals
from experiments.system.paths import CONF
from experiments.train import main, train

# A shell starts commands in the background with Ctrl-C ignored. The tests send it themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
Compose = Callable[..., DictConfig]
# Calls the main() of a module for each of several command lines in one process, and prints the results as JSON.
DRIVER = """
import contextlib, importlib, io, json, sys, time
module, lines = sys.argv[1], json.loads(sys.argv[2])
results = []
for line in lines:
    sys.argv = [module, *line]
    out, err, began = io.StringIO(), io.StringIO(), time.perf_counter()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            importlib.import_module(module).main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    seconds = time.perf_counter() - began
    results.append({"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": seconds})
print(json.dumps({"results": results, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""


# These files are started first. `make test` gives each file to one worker, so that a long file that started last would
# run alone at the end.
LONGEST = (
    "test_sweeps.py", "test_fit.py", "test_regimes.py", "test_runs_of_python.py", "test_experiments.py",
    "test_run.py", "test_resume.py", "test_tracking.py", "test_saved_run.py", "test_continuation.py", "test_runtime.py",
    "test_conf.py", "test_planned.py", "test_readme.py", "test_injection.py", "test_applications.py", "test_compare.py",
    "test_augmentation_layers.py", "test_inspect.py", "test_schema.py", "test_proportions.py", "test_search.py",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def nothing_loaded_is_garbage() -> None:
    """Keep the garbage collector from going through what earlier modules have loaded and traced.

    Keras collects garbage whenever a network is built. Without this a sixth of the tests' time goes to it.
    """
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Start one worker more than there are cores: each waits for a process or a server part of its time."""
    return hardware.cores() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="write tests/config/golden anew instead of comparing")
    parser.addoption("--full", action="store_true", help="tests/reliability: as many tries as make test-reliability")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of faults that tests/reliability has counted, from all worker processes."""
    rows: dict[str, list[int]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "reliability" and getattr(report, "when", None) == "call":
                    fault, tries, survived = value
                    before = rows.setdefault(fault, [0, 0])
                    rows[fault] = [before[0] + tries, before[1] + survived]
    if rows:
        terminalreporter.section("faults survived")
        width = max(map(len, rows))
        terminalreporter.write_line(f"{'fault':{width}}  tries  survived")
        for fault, (tries, survived) in sorted(rows.items()):
            terminalreporter.write_line(f"{fault:{width}}  {tries:5}  {survived:8}")


@pytest.fixture(scope="module", autouse=True)
def own_store() -> Iterator[None]:
    """Keep each test module from using another's tracking URI, because MLflow sets the variable permanently."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(autouse=True)
def own_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let every test write below its own temporary directory, and leave no tracking URI to the next test."""
    home = tmp_path / "outputs"
    monkeypatch.setenv("EXPERIMENTS_HOME", str(home))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")  # the servers of tests are on this machine
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # restores the variable after a test in which MLflow sets it
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    yield home
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)


@pytest.fixture(scope="session", autouse=True)
def unflushed() -> Iterator[None]:
    """Let no test wait for the disk: none cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "sync"):
            patch.setattr(os, name, lambda *descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def conf_is_read_once() -> Iterator[None]:
    """Let Hydra parse each file of conf/ once, which takes nearly half of a composition's time."""
    parsed: dict[str, Any] = {}
    load = CachingConfigRepository.load_config

    def load_config(repository: CachingConfigRepository, config_path: str) -> Any:
        folders = {source.path for source in repository.get_sources() if source.scheme() == "file"}
        key = f"config_path={config_path}"
        if key in repository.cache or folders != {str(CONF)}:  # the choices of a test's own may change
            return load(repository, config_path)
        if parsed.get(key) is None:
            parsed[key] = load(repository, config_path)
        repository.cache[key] = deepcopy(parsed[key])  # a composition changes what it has loaded
        return repository.cache[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachingConfigRepository, "load_config", load_config)
        yield


@pytest.fixture(scope="session", autouse=True)
def created_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let MLflow create the tables of an SQLite database once, and copy them afterwards: that saves a second each."""
    if "mlflow" not in sys.modules:
        yield
        return
    from mlflow.store.db import utils

    template, initialize = tmp_path_factory.mktemp("mlflow") / "empty.db", utils._initialize_tables

    def copied(engine: Any) -> None:
        fresh = engine.dialect.name == "sqlite" and utils._is_empty_database(engine)
        if fresh and template.exists():
            copy(template, Path(engine.url.database))
            return
        initialize(engine)
        if fresh:
            copy(Path(engine.url.database), template)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", copied)
        yield


def copy(source: Path, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(source)) as origin, contextlib.closing(sqlite3.connect(target)) as other:
        origin.backup(other)


@pytest.fixture(scope="session")
def composed() -> Compose:
    """Return a function that composes a command line's configuration as Hydra does: `composed("regime=finetune")`."""
    return composition.composed


@pytest.fixture(scope="session")
def config() -> Callable[..., schema.Config]:
    """Return a function that composes and validates a configuration: `config("regime=finetune", ...)`."""
    return composition.configured


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw 48-pixel images of discs (blobs) or bars (stripes): 12 per class in train/, 6 in validation/, 4 in test/."""
    root = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:48, :48]
    for split, count in (("train", 12), ("validation", 6), ("test", 4)):
        for name in ("blobs", "stripes"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                y, x = rng.integers(14, 34, 2)
                inside = (rows - y) ** 2 + (columns - x) ** 2 < 120 if name == "blobs" else (columns + x) % 12 < 6
                image = np.where(inside[..., None], rng.integers(150, 256, 3), rng.integers(0, 100, 3))
                noisy = np.clip(image + rng.normal(0, 12, (48, 48, 3)), 0, 255).astype("uint8")
                Image.fromarray(noisy).save(folder / f"{name}.{n}.jpg", quality=90)
    return root


@pytest.fixture
def here(drawn: Path) -> tuple[str, ...]:
    """Return the overrides that select the synthetic images of `drawn`."""
    return "data=folder", f"data.root={drawn}", "data.image_size=48"


@contextlib.contextmanager
def command_line(*arguments: str, figures: bool = False) -> Iterator[pytest.MonkeyPatch]:
    """Let `arguments` be those of `python -m experiments.train`, whose errors keep their types.

    Args:
        figures: whether figures are drawn, and the report compares the configuration with the defaults, which takes
            half of a small run's time. Otherwise blank images are written in their places: tests/test_run.py looks at
            a run's figures and report, tests/reports at each.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not figures:
            blank_figures(patch)
        patch.setattr(sys, "argv", ["train", *arguments])
        patch.setattr(Hydra, "get_mode", lambda *_, **__: None)  # it composes all to find that hydra.mode is not given
        patch.setenv("HYDRA_FULL_ERROR", "1")
        yield patch


def blank_figures(patch: pytest.MonkeyPatch) -> None:
    """Write blank images in place of figures, and compare no configuration with the defaults."""
    from matplotlib.figure import Figure

    from experiments.reports import figures as run_figures
    from experiments.reports import plots, run_report

    blank = Figure()
    for name, function in vars(plots).items():
        if inspect.isfunction(function) and function.__annotations__.get("return") == "Figure":
            patch.setattr(plots, name, lambda *arguments, **options: blank)
    patch.setattr(Figure, "savefig", lambda figure, file, **options: Image.new("L", (8, 8)).save(file, "PNG"))
    patch.setattr(run_figures, "augmented_sample", lambda *arguments: blank)
    patch.setattr(run_report, "differing", lambda run: None)


@pytest.fixture(scope="session")
def draw_nothing() -> Callable[[pytest.MonkeyPatch], None]:
    """Return a function after which no figures are drawn, for runs from Python: `draw_nothing(monkeypatch)`."""
    return blank_figures


@pytest.fixture(scope="session")
def train_here() -> Callable[..., None]:
    """Return a function that composes a configuration and trains in this process: `train_here("regime=scratch", ...)`.

    It is the part of `run_here` behind the command line: errors are raised, not printed.
    """

    def call(*arguments: str, figures: bool = False) -> None:
        with command_line(*arguments, figures=figures) as patch:
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            train()

    return call


@pytest.fixture(scope="session")
def run_here() -> Callable[..., None]:
    """Return a function that runs `python -m experiments.train` in this process: `run_here("regime=scratch", ...)`.

    It cannot set `runtime.threads`, which TensorFlow accepts only before its first operation. It cannot be used with
    `capsys`, because absl closes the standard error stream that it found once another one replaces it.
    """

    def call(*arguments: str) -> None:
        with command_line(*arguments) as patch:
            patch.chdir(Path.cwd())  # restored afterwards: resume= changes to the directory of the original command
            patch.setattr(redaction, "install", lambda: None)  # it would replace the streams of the test process
            patch.setattr(signals, "install", lambda: None)
            main()

    return call


@pytest.fixture(scope="session")
def run_verb() -> Callable[..., None]:
    """Return a function that runs a verb of `experiments`, by its module, in this process: `run_verb(predict, "RUN")`.

    Errors are raised as SystemExit.
    """

    def call(module: ModuleType, *arguments: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
            try:
                module.main()
            except SystemExit as ended:
                if ended.code:
                    raise

    return call


# Two phases, a warm-up, a schedule, a split point inside the network.
ENDED = (
    "regime=finetune", "regime.unfrozen_blocks=2", "regime.head_epochs=2", "model.head.pooling=flatten", "epochs=4",
    "schedule=cosine", "schedule.warmup=1", "augmentation=none", "batch_size=8",
)  # fmt: skip


class Ended(NamedTuple):
    """A finished run."""

    overrides: tuple[str, ...]
    folder: Path
    trainable: dict[str, bool]  # by layer of the backbone, at the end of the run

    @property
    def curves(self) -> list[dict[str, str]]:
        return read_rows(self.folder / "curves.csv")


@pytest.fixture(scope="session")
def ended(drawn: Path, train_here: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Return a finished fine-tuning run on the synthetic images, for tests of what is done with a run."""
    from experiments.evaluation import training_checks

    outputs = tmp_path_factory.mktemp("ended") / "outputs"
    folder = outputs / "runs" / "tuned"
    overrides = ("data=folder", f"data.root={drawn}", "data.image_size=48", *ENDED)
    trainable: dict[str, bool] = {}
    check = training_checks.check_joined

    def listening(config: Any, fitted: Any, splits: Any) -> None:
        trainable.update({layer.name: layer.trainable for layer in fitted.model.get_layer("frozen").layers})
        check(config, fitted, splits)

    with pytest.MonkeyPatch.context() as patch:
        settings = [f"outputs={outputs}", f"hydra.run.dir={folder}", "hydra/job_logging=none", "tracking=none"]
        patch.setattr(training_checks, "check_joined", listening)
        train_here(*overrides, *settings, "progress=none")
    return Ended(overrides, folder, trainable)


@pytest.fixture(scope="session")
def outcome_of() -> Callable[[Path], dict[str, Any]]:
    """Return a function that reads what a run left in its directory, but for times: curves, predictions and weights.

    The weights are bytes, so that equal outcomes are equal in every bit.
    """
    import h5py

    times = ("seconds", "timestamp", "images_per_second", "input_wait")

    def read(directory: Path) -> dict[str, Any]:
        rows = read_rows(directory / "curves.csv")
        curves = [{key: value for key, value in row.items() if key not in times} for row in rows]
        found: dict[str, Any] = {"curves": curves}
        found["predictions"] = (directory / "predictions_validation.csv").read_text("utf-8")
        for path in sorted((directory / "weights").iterdir()):
            with h5py.File(path) as weights:
                nodes: list[tuple[str, Any]] = []
                weights.visititems(lambda key, node, nodes=nodes: nodes.append((key, node)))
                arrays = {key: np.asarray(node[()]) for key, node in nodes if isinstance(node, h5py.Dataset)}
            assert arrays
            found |= {f"{path.name}/{key}": array.tobytes() for key, array in arrays.items()}
        return found

    return read


@pytest.fixture(scope="session")
def drive() -> Callable[..., tuple[list[dict[str, Any]], list[str]]]:
    """Return a function that calls `main()` for several command lines in one new process.

    Call it as `drive("experiments.train", [["epochs=0"], ...], cwd)`. For each command line it returns the exit code
    or text, the output and the seconds; and for the process the packages that were imported.
    """

    def call(module: str, lines: list[list[str]], cwd: Path) -> tuple[list[dict[str, Any]], list[str]]:
        command = [sys.executable, "-c", DRIVER, module, json.dumps(lines)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        return answer["results"], answer["modules"]

    return call


def shared(variable: str, *parts: str) -> Path:
    """Return the path in an environment variable, else the one below ../shared; skip the test if it is absent."""
    place = Path(os.environ.get(variable) or ROOT.parent.joinpath("shared", *parts))
    if not place.exists():
        pytest.skip(f"{place} is absent: set {variable} to run this test")
    return place


@pytest.fixture
def photographs() -> Path:
    return shared("EXPERIMENTS_PHOTOS", "cats_dogs")


@pytest.fixture
def mobilenet_weights() -> Path:
    place = shared("EXPERIMENTS_WEIGHTS", "weights")
    return place / "mobilenet_v2_0.35_224_notop.weights.h5" if place.is_dir() else place
