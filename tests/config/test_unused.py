"""Overrides that a run's regime does not read: one warning names them; weights that it would not load are refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from experiments.config import schema, unused
from experiments.config.identity import dump_yaml, logged
from experiments.errors import ConfigError
from experiments.reuse import like
from experiments.runs.run_directory import CONFIG

Read = Callable[..., schema.Config]
RUN = "0123456789abcdef0123456789abcdef"


def named(config: Read, caplog: pytest.LogCaptureFixture, *overrides: str, regimes: Sequence[str] = ()) -> list[str]:
    """What the warning lists, for a run or for jobs of several regimes."""
    configs = [config(*overrides, *more) for more in ([f"regime={name}"] for name in regimes)] or [config(*overrides)]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        unused.check_weights(configs, overrides)
        unused.warn(configs, overrides)
    assert len(caplog.messages) <= 1
    return caplog.messages[0].partition(": ")[2].split(", ") if caplog.messages else []


def test_typed_keys_that_the_regime_does_not_read_are_named(config: Read, caplog: pytest.LogCaptureFixture) -> None:
    for regime, ignored, used in (
        ("scratch", ["regime.unfrozen_blocks=2", "regime.activations=float16"], ["augmentation=strong", "epochs=3"]),
        ("bottleneck", ["augmentation=strong", "regime.views=4", "regime.batch_norm_momentum=0.9"], ["epochs=3"]),
        ("bottleneck", ["optimizer@regime.head_optimizer=adam", "augmentation.seed=3"], ["model.head.l2=0.1"]),
        ("finetune", ["regime.batch_norm_momentum=0.9"], ["regime.unfrozen_blocks=2", "augmentation=light"]),
        ("finetune", ["regime.head_epochs=3", "regime.head_optimizer.lr=0.1"], [f"regime.head_from={RUN}"]),
        ("finetune", ["regime.views=4"], ["augmentation=none"]),
        ("scratch", [], ["model.weights=null"]),  # which is what happens
        ("scratch", [], ["experiment=demo"]),  # the preset sets the key, not the user
    ):
        assert named(config, caplog, f"regime={regime}", *ignored, *used) == ignored


def test_a_rate_of_fine_tuning_that_no_optimizer_refers_to_is_named(
    config: Read, caplog: pytest.LogCaptureFixture
) -> None:
    rate = "model.finetune_lr=2e-5"
    assert named(config, caplog, "regime=finetune", "optimizer=sgd", rate) == [rate]
    assert caplog.messages[0].startswith("optimizer=sgd does not read: ")
    assert named(config, caplog, "regime=finetune", "optimizer.lr=1e-3", rate) == [rate]
    assert named(config, caplog, "regime=finetune", rate) == []
    assert named(config, caplog, rate, regimes=["bottleneck", "finetune"]) == []


def test_a_sweep_reads_what_one_of_its_jobs_reads(config: Read, caplog: pytest.LogCaptureFixture) -> None:
    assert named(config, caplog, "regime.unfrozen_blocks=2", regimes=["scratch", "finetune"]) == []
    assert named(config, caplog, "model.weights=pretrained", regimes=["scratch", "bottleneck"]) == []
    both = ["scratch", "bottleneck"]
    assert named(config, caplog, "regime.unfrozen_blocks=2", "epochs=3", regimes=both) == ["regime.unfrozen_blocks=2"]


def test_settings_of_a_search_that_a_grid_does_not_read_are_named(caplog: pytest.LogCaptureFixture) -> None:
    typed = ["sweep.pruner=median", "sweep.jobs=2", "sweep.trials=5", "seed=0,1"]
    unused.warn_of_sweep_keys(typed, "a sweep without sweep.search", unused.SEARCH_KEYS)
    assert caplog.messages == ["a sweep without sweep.search does not read: sweep.pruner=median, sweep.trials=5"]


@pytest.mark.parametrize("regime, override", [
    ("scratch", "model.weights=body.weights.h5"), ("scratch", "model.weights=pretrained"),
    ("bottleneck", f"regime.head_from={RUN}"), ("scratch", f"regime.head_from={RUN}"),
])  # fmt: skip
def test_weights_that_would_not_be_loaded_are_refused(config: Read, regime: str, override: str) -> None:
    key, _, value = override.partition("=")
    with pytest.raises(ConfigError, match=rf"{key}: regime={regime} loads no such weights.*Received: {value}"):
        unused.check_weights([config(f"regime={regime}", override)], [f"regime={regime}", override])


def test_what_like_brings_is_not_typed(tmp_path: Path, config: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unused, "brought", [])
    text = dump_yaml(logged(config("regime=finetune", "model.weights=body.weights.h5")))
    (tmp_path / CONFIG).write_text(text)
    command = like.expand([f"like={tmp_path}", "regime=scratch"])
    assert any("weights" in override for override in unused.brought), "or there is nothing to be refused"
    unused.check_weights([config(*command)], command)
    like.expand(["regime=scratch"])
    assert not unused.brought, "the next run of this process is like none"
