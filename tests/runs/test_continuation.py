"""A finished run that is trained further: as if it had not ended, with an identity and a directory of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import yaml

from experiments.config.schema import Config
from experiments.errors import ConfigError, DataError
from experiments.inspection import lr
from experiments.reuse import like, resume
from experiments.runs import continuation as continuation_of
from experiments.runs.curves import Curves
from experiments.runs.run_directory import RunDirectory
from experiments.sweeps.worker_tasks import prepare_jobs, shared
from experiments.system.paths import default_outputs
from experiments.system.progress import PlainConsole, Terminal
from experiments.training.callbacks import build_variables
from experiments.training.checkpoints import Checkpoints
from experiments.training.types import EpochRecord

SMALL = (
    "model.head.pooling=average", "batch_size=8", "model.weights=null", "regime.head_epochs=2", "tracking=none",
    "progress=none", "early_stopping=9", "best_weights=true", "model.head.dropout=0.4", "schedule=constant",
)  # fmt: skip
QUIET = ("tracking=none", "progress=none")
Run = Callable[..., None]


@pytest.fixture(scope="module", autouse=True)
def bottleneck(run_here: Run, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train heads for two and for four epochs, and yield the directory of their runs, `short` and `straight`."""
    home = tmp_path_factory.mktemp("continued")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.run.save_figures", lambda *_: None)
        patch.setattr("experiments.run.run_report.write", lambda *_: None)
        data = ("data=folder", f"data.root={drawn}", "data.image_size=48", f"outputs={home}", "regime=bottleneck")
        for name, epochs in (("a-short", 2), ("a-straight", 4)):
            run_here(*data, *SMALL, f"epochs={epochs}", f"hydra.run.dir={home / 'runs' / name}")
        yield home / "runs"


@pytest.fixture
def short(bottleneck: Path, tmp_path: Path) -> Path:
    """Return a copy of the run of two epochs, which a test may change."""
    return Path(shutil.copytree(bottleneck / "a-short", tmp_path / "runs" / "a-copy"))


def read(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def test_a_continued_run_equals_a_longer_one_though_killed_and_without_the_first(
    run_here: Run, bottleneck: Path, short: Path, outcome_of: Callable[[Path], dict[str, Any]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    longer, add = tmp_path / "longer", Curves.add

    def dies(self: Curves, record: EpochRecord) -> None:
        if record.epoch == 3:
            raise KeyboardInterrupt
        add(self, record)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Curves, "add", dies)
        patch.setattr(Checkpoints, "due", True)
        run_here(
            f"continue={short}", "epochs=4", "progress=none", "tracking.log_model=false", f"hydra.run.dir={longer}"
        )
    assert len((longer / "curves.csv").read_text().splitlines()) == 1 + 3
    shutil.rmtree(short)
    run_here(f"resume={longer}", "runtime.threads=null")
    assert outcome_of(longer) == outcome_of(bottleneck / "a-straight")
    trained = sum(record.metrics["seconds"] for record in RunDirectory(longer).epochs()[2:])
    metrics = read(longer, "metrics.json")
    assert trained <= metrics["fit_seconds"] <= metrics["total_seconds"], "with those before the interruption"
    facts = read(longer, "run.json")
    identities = {read(bottleneck / name, "run.json")["identity"] for name in ("a-short", "a-straight")}
    assert facts["identity"] not in identities and facts["continues"] == str(short)
    assert facts["first_candidate"] == 0, "the best epoch is that of all epochs"
    client = mlflow.MlflowClient(f"sqlite:///{default_outputs()}/mlflow.db")
    assert client.get_run(facts["run_id"]).data.tags["continues"] == str(short)
    assert [point.step for point in client.get_metric_history(facts["run_id"], "loss")] == [0, 1, 2, 3]
    assert [path.name for path in (longer / "checkpoints").glob("*/*")] == ["00004"]


@pytest.mark.slow  # of a head it is above; tests/regimes/test_continued_state.py has the state that is taken over
@pytest.mark.parametrize("regime", ["scratch", "finetune"])
def test_a_continued_run_equals_a_longer_one(
    regime: str, run_here: Run, here: tuple[str, ...], outcome_of: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    given = (*here, *SMALL, f"regime={regime}")
    first, longer, straight = tmp_path / "first", tmp_path / "longer", tmp_path / "straight"
    run_here(*given, "epochs=2", f"hydra.run.dir={first}")
    run_here(f"continue={first}", "epochs=4", *QUIET, f"hydra.run.dir={longer}")
    run_here(*given, "epochs=4", f"hydra.run.dir={straight}")
    assert outcome_of(longer) == outcome_of(straight)


def test_without_its_state_the_optimizer_starts_anew_from_the_weights(
    run_here: Run, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer, (arrays,) = tmp_path / "longer", short.glob("checkpoints/head/*/arrays.npz")
    arrays.write_bytes(arrays.read_bytes()[:-9])
    with pytest.raises(SystemExit, match=r"state that .*a-copy has kept is gone or damaged: .*remove it, and begin"):
        run_here(f"continue={short}", "epochs=3", *QUIET, f"hydra.run.dir={tmp_path / 'refused'}")
    shutil.rmtree(short / "checkpoints")
    candidates: list[list[int]] = []
    monkeypatch.setattr(
        "experiments.run.best_epoch", lambda found, _: candidates.append([record.epoch for record in found])
    )
    run_here(f"continue={short}", "epochs=3", "optimizer.lr=1e-12", *QUIET, f"hydra.run.dir={longer}")
    assert "WARNING] - continue: the optimizer starts anew, from the weights" in (longer / "train.log").read_text()
    rows = [(path / "curves.csv").read_text().splitlines() for path in (short, longer)]
    assert rows[1][:3] == rows[0] and len(rows[1]) == 1 + 3
    assert read(longer, "run.json")["first_candidate"] == 2, "the weights of the best epoch before are not known"
    assert candidates == [[2]]
    before, now = (read(path, "metrics.json")["validation.loss"] for path in (short, longer))
    assert now == pytest.approx(before, rel=1e-5), "a tiny rate leaves the weights as they were"


@pytest.mark.slow  # the state is in tests/regimes/test_continued_state.py
def test_another_optimizer_starts_from_the_averaged_weights(
    run_here: Run, here: tuple[str, ...], tmp_path: Path
) -> None:
    first, longer = tmp_path / "first", tmp_path / "longer"
    averaged = ("regime=bottleneck", "best_weights=false", "optimizer=adamw_finetune", "optimizer.lr=0.1")
    run_here(*here, *SMALL, *averaged, "epochs=2", f"hydra.run.dir={first}")
    run_here(f"continue={first}", "epochs=3", "optimizer=sgd", "optimizer.lr=1e-12", *QUIET, f"hydra.run.dir={longer}")
    assert "WARNING] - continue: the optimizer starts anew, from the weights" in (longer / "train.log").read_text()
    before, now = (read(path, "metrics.json")["validation.loss"] for path in (first, longer))
    assert now == pytest.approx(before, rel=1e-5), "a tiny rate leaves the weights as they were"


def test_a_range_test_goes_on_from_the_finished_run(
    short: Path, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = RunDirectory(short).config()["data"]["root"]
    given = config(
        "data=folder", f"data.root={root}", "data.image_size=48", "regime=bottleneck", *SMALL, "epochs=4",
        f"continue_from={short}",
    )  # fmt: skip
    started: list[keras.Model] = []
    monkeypatch.setattr(keras.Model, "fit", lambda model, *_, **__: started.append(model))
    files = {continuation_of.KEY: continuation_of.copy_source(given, tmp_path) or tmp_path}
    lr.range_test(given, files, np.geomspace(1e-12, 1e-9, 14), Terminal(PlainConsole(quiet=True)))
    state = Checkpoints(short / "checkpoints").latest("head")
    assert state and np.any(state.variables[-1])
    for variable, value in zip(build_variables(started[0]), state.variables, strict=True):
        if variable.name != "seed_generator_state":
            np.testing.assert_array_equal(variable, value)


def test_jobs_of_a_sweep_continue_a_run_with_identities_of_their_own(
    short: Path, config: Callable[..., Config]
) -> None:
    root = RunDirectory(short).config()["data"]["root"]
    given = ("data=folder", f"data.root={root}", "data.image_size=48", "regime=bottleneck", *SMALL, "epochs=4")
    continued = [config(*given, f"continue_from={short}", f"optimizer.lr={rate}") for rate in (1e-4, 1e-5)]
    jobs = prepare_jobs([*continued, config(*given)])
    assert len({job.identity for job in jobs}) == 3
    continuation_of.check(config(*given, f"continue_from={short}", "model.head.dropout=0.1", "model.head.l2=0.1"))
    assert [bool(job.components.continued) for job in jobs] == [True, True, False]
    tuned = (*given, "regime=finetune")
    jobs = prepare_jobs([config(*tuned, f"continue_from={short}"), config(*tuned), config(*tuned, "optimizer.lr=1e-5")])
    assert "head phases: 1 for 2 jobs" in shared(jobs)[0], "a continued run trains no head"


def test_a_winner_is_continued_from_the_state_of_its_job(
    short: Path, config: Callable[..., Config], tmp_path: Path
) -> None:
    winner = Path(shutil.copytree(short, tmp_path / "winner"))
    shutil.rmtree(winner / "checkpoints")
    plain = RunDirectory(short).config()
    plain["sweep"]["trained"] = str(short)
    (winner / "config.yaml").write_text(yaml.safe_dump(plain))
    copies = continuation_of.copy_source(config(f"continue_from={winner}"), tmp_path / "longer")
    assert copies and read(copies, "run.json")["state"] == str(short / "checkpoints")
    assert RunDirectory(copies).epochs() == RunDirectory(short).epochs()
    shutil.rmtree(short / "checkpoints")
    stateless = continuation_of.copy_source(config(f"continue_from={winner}"), tmp_path / "other")
    assert stateless and read(stateless, "run.json")["state"] is None
    identities = {continuation_of.source_identity(RunDirectory(place)) for place in (copies, stateless)}
    assert len(identities) == 2, "a run without the optimizer's state ends otherwise"


REFUSED = {
    "as many epochs": (["epochs=2"], "must be more than 2, the epochs that a-copy has trained.*Received: 2"),
    "a job of a sweep": (["-m", "epochs=4,2"], "must be more than 2, the epochs that a-copy has trained"),
    "another network": (
        ["epochs=4", "model.head.pooling=max"],
        "model.head.pooling: must be 'average', as in that run. Received: 'max'",
    ),
    "another regime": (["epochs=4", "regime=scratch"], "regime.name: must be 'bottleneck'"),
    "other classes": (["epochs=4", "data.classes=[stripes,blobs]"], "was trained for blobs, stripes. Allowed"),
    "images of its training": (["epochs=4", "data.fold=0"], "was trained on .* of the images that this run validates"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(
    name: str, run_here: Run, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides, text = REFUSED[name]
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(SystemExit, match=text):
        run_here(f"continue={short}", *overrides, *QUIET, f"hydra.run.dir={tmp_path / 'longer'}")


def test_a_sweep_refuses_what_a_job_would_refuse(short: Path, drawn: Path, config: Callable[..., Config]) -> None:
    data = ("data=folder", f"data.root={drawn}", "data.image_size=48", f"outputs={short.parent}", "regime=bottleneck")
    jobs = [config(*data, *SMALL, "epochs=4", f"continue_from={short}", f"data.fold={fold}") for fold in ("null", "0")]
    assert len(prepare_jobs(jobs[:1])) == 1
    with pytest.raises(DataError, match="was trained on .* of the images that this run validates"):
        prepare_jobs(jobs)


def test_an_unfinished_run_is_refused_with_the_command_that_resumes_it(run_here: Run, short: Path) -> None:
    (short / "run.json").write_text(json.dumps({**read(short, "run.json"), "status": "KILLED"}))
    with pytest.raises(SystemExit, match=r"is not finished \(KILLED\).*resume=.*a-copy"):
        run_here(f"continue={short}", "epochs=4", *QUIET)
    with pytest.raises(ConfigError, match="one run at a time"):
        like.without_continue([f"continue={short}", "like=other"])


def test_a_run_is_found_by_the_end_of_its_name(short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERIMENTS_HOME", str(tmp_path))
    assert [resume.find(name, [], "resume") for name in ("copy", "-copy", "a-copy")] == [short] * 3
    assert like.without_continue(["continue=copy", "epochs=4"]) == [
        f"like='{short}'", "epochs=4", f"++continue_from='{short}'"
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"continue: must be a run's folder, or the id or the end of the name"):
        like.without_continue(["continue=opy", "epochs=4"])
    shutil.copytree(short, short.with_name("b-copy"))
    assert resume.find("a-copy", [], "resume") == short
    with pytest.raises(ConfigError, match="resume: must be a run's folder"):
        resume.find("copy", [], "resume")
