"""A user's own regime: its declaration lets it share features, prune, resume and be evaluated as a sweep's winner."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.inspection import lr, model, schedule
from experiments.models.head import POOLING
from experiments.regimes.build import build
from experiments.regimes.declaration import Declaration, declaration_of
from experiments.run import read_data
from experiments.runs.run_directory import RunDirectory
from experiments.sweeps import plan, worker_tasks
from experiments.sweeps.launchers.processes import WorkerTask
from experiments.system.progress import Terminal
from experiments.training import pruning
from experiments.training.checkpoints import Checkpoints
from experiments.training.types import EpochRecord, TrainingContext

OWN = """
from experiments.data.input_pipeline import eval_batches, feature_batches
from experiments.models.network import join, stack
from experiments.regimes.bottleneck import feature_requests, frozen_backbone, predict_splits
from experiments.regimes.declaration import Declaration, Trains, declare
from experiments.regimes.feature_cache import cached_features
from experiments.training.fit import fit
from experiments.training.types import PhaseInputs, TrainingResult


def prepare(components, dataset, context):
    config, frozen = components.config, frozen_backbone(components)
    train, validation = (
        cached_features(components, frozen, images, context.progress) for images in (dataset.train, dataset.validation)
    )
    epochs = context.remaining("probe", config.epochs)
    return PhaseInputs(
        "probe",
        stack(frozen.trainable_part, components.head(len(dataset.classes)), training=False),
        feature_batches([train], dataset.train.labels, batch_size=8, seed=config.seed, epochs=epochs),
        eval_batches(validation, dataset.validation.labels, 8),
        dataset.classes,
    )


def undeclared(components, dataset, context):
    inputs = prepare(components, dataset, context)
    history = fit(inputs, components.phase, context)
    scores = predict_splits(components, dataset, context, frozen_backbone(components), inputs.model)
    head = inputs.model.get_layer("head")
    return TrainingResult(join(components.backbone, components.config.model.head.pooling, head), history, scores)


@declare(Declaration(feature_requests, Trains.HEAD, last_phase="probe", prepare=prepare))
def probe(components, dataset, context):
    return undeclared(components, dataset, context)
"""
PROGRESS = Terminal(Console(quiet=True))


@pytest.fixture
def given(here: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[str, ...]]:
    """Return a function from a name in the user's module to the overrides of a run with that regime."""
    (tmp_path / "ownregime.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name: (
        *here, "regime=bottleneck", "regime.name=own", f"regime._target_=ownregime.{name}",
        "trusted_packages=[ownregime]", "model.weights=null", "model.head.pooling=average", "epochs=3", "batch_size=8",
        "tracking=none", "progress=none",
    )  # fmt: skip


def test_the_tasks_of_a_sweep_are_functions() -> None:
    assert all(callable(getattr(worker_tasks, name)) for name in get_args(WorkerTask))


def test_what_is_inspected_is_what_a_regime_declares_whatever_it_ignores(
    given: Callable[[str], tuple[str, ...]], config: Callable[..., Config]
) -> None:
    """As the regime of docs/components.md, which does not list regime.unfrozen_blocks and the keys of the head."""
    for name, split_point in (("probe", POOLING), ("undeclared", None)):
        own = config(*given(name), "regime.ignores=[augmentation]", "data.image_size=48")
        summary = model.summarize_model(own, 2)
        assert summary.split_point == split_point
        assert ("does not declare" in model.sentences(own, summary)[1]) == (name == "undeclared")
        assert [phase.name for phase in schedule.phases(own)] == [{"undeclared": "own"}.get(name, name)]


def test_jobs_share_the_features_that_a_regime_declares(
    given: Callable[[str], tuple[str, ...]], config: Callable[..., Config]
) -> None:
    jobs = [config(*given("probe"), f"optimizer.lr={rate}") for rate in (0.1, 0.2)]
    lines, lacking = worker_tasks.shared(worker_tasks.prepare_jobs(jobs))
    assert lacking and "3 tables for 6 readings by jobs" in lines[0]
    worker_tasks.share(jobs)
    lines, lacking = worker_tasks.shared(worker_tasks.prepare_jobs(jobs))
    assert not lacking and "all cached" in lines[0]
    assert worker_tasks.shared(worker_tasks.prepare_jobs([config(*given("undeclared"))])) == ([], False)


def test_what_is_noteworthy_of_the_images_is_in_a_sweeps_plan_once(
    drawn: Path, here: tuple[str, ...], config: Callable[..., Config], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    root = tmp_path / "copied"
    shutil.copytree(drawn, root)
    pixels = np.kron(np.random.default_rng(0).integers(0, 256, (12, 12, 3)), np.ones((8, 8, 1))).astype("uint8")
    Image.fromarray(pixels).save(root / "train" / "blobs" / "scene.png")
    Image.fromarray(pixels).save(root / "validation" / "blobs" / "scene.jpg", quality=60)
    jobs = [config(*here, f"data.root={root}", "regime=bottleneck", "model.weights=null", "tracking=none",
                   f"data.on_bad={value}") for value in ("error", "skip")]  # fmt: skip
    lines = worker_tasks.inspect_jobs(jobs)["lines"]
    assert sum("Near-duplicates in two splits: 1 pair, the first: train/blobs/scene.png" in line for line in lines) == 1
    worker_tasks.share(jobs)
    assert "Near-duplicates" not in caplog.text


@pytest.mark.parametrize("name, files", [("probe", {"head"}), ("undeclared", {"head", "backbone"})])
def test_a_winner_is_evaluated_with_its_weights_if_its_regime_declares_them(
    name: str,
    files: set[str],
    given: Callable[[str], tuple[str, ...]],
    run_here: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("experiments.run.save_figures", lambda *_: None)
    phases: list[str | None] = []
    reporting = pruning.reporting
    monkeypatch.setattr(pruning, "reporting", lambda *given: phases.append(given[2]) or reporting(*given))
    trained, evaluated = tmp_path / "trained", tmp_path / "evaluated"
    run_here(*given(name), f"hydra.run.dir={trained}", "sweep.job=true")
    assert phases == ["probe" if name == "probe" else None], "the phase that a search prunes by"
    assert {path.name.partition(".")[0] for path in (trained / "weights").iterdir()} == files
    identity = json.loads((trained / "run.json").read_bytes())["identity"]
    assert plan.has_weights(trained, identity) == (name == "probe")
    recorded = {"first_candidate": 1, "reused_seconds": 4.5}
    RunDirectory(trained).write_facts(RunDirectory(trained).facts() | recorded)
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("trained once more"))
    again = (*given(name), f"hydra.run.dir={evaluated}", f"sweep.trained={trained}")
    if name == "undeclared":
        with pytest.raises(SystemExit, match="sweep.trained: regime=own does not declare which weights it trains"):
            run_here(*again)
        return
    run_here(*again)
    for file in ("metrics.json", "predictions_test.csv", "predictions_validation.csv", "curves.csv"):
        assert (evaluated / file).read_bytes() == (trained / file).read_bytes(), file
    assert recorded.items() <= RunDirectory(evaluated).facts().items()


@pytest.mark.slow  # `fit` resumes in tests/training/test_fit.py
def test_an_own_regime_resumes_to_the_bit(
    given: Callable[[str], tuple[str, ...]], config: Callable[..., Config], tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def interrupt(record: EpochRecord) -> None:
        if record.epoch == 1:
            raise Killed

    def result(checkpoints: Checkpoints | None, record: Callable[[EpochRecord], Any] = lambda _: None) -> Any:
        components = build(config(*given("probe")), {})
        context = TrainingContext(PROGRESS, record, checkpoints)
        return components.regime(components, read_data(components), context)

    whole = result(None)
    with pytest.raises(Killed):
        result(Checkpoints(tmp_path / "checkpoints", share=1), interrupt)
    resumed = result(Checkpoints(tmp_path / "checkpoints", share=1))
    assert [record.phase for record in resumed.history] == ["probe"] * 3
    for split, scores in whole.scores.items():
        np.testing.assert_array_equal(resumed.scores[split], scores)


def test_a_range_test_needs_a_declaration(
    given: Callable[[str], tuple[str, ...]], config: Callable[..., Config]
) -> None:
    rates = np.geomspace(1e-4, 1, 14)
    found = lr.range_test(config(*given("probe")), {}, rates, PROGRESS)
    assert np.all(found.rates == rates[: len(found.losses)]) and len(found.losses) >= lr.LEAST
    with pytest.raises(ConfigError, match="regime=own: has no learning rate range test"):
        lr.range_test(config(*given("undeclared")), {}, rates, PROGRESS)


def test_a_regime_without_a_declaration_has_the_safe_defaults() -> None:
    def regime(*_: Any) -> Any: ...

    assert declaration_of(regime) == Declaration()
    regime.declaration = "everything"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="must be an experiments.regimes.declaration.Declaration"):
        declaration_of(regime)
