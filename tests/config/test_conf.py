"""Everything in conf/ composes, is accepted by the schema, and means what its groups promise."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import composition
import pytest
from omegaconf import DictConfig, OmegaConf

from experiments.config import schema, validation
from experiments.config.identity import dump_yaml, effective, run_identity
from experiments.system import paths

GOLDEN = Path(__file__).parent / "golden"
PRESETS = sorted(path.stem for path in (paths.CONF / "experiment").glob("*.yaml"))
SOME_PRESETS = [
    name if name in ("scratch_better", "mobilenet_bottleneck", "finetune_best", "above_95")
    else pytest.param(name, marks=pytest.mark.slow)
    for name in PRESETS
]  # fmt: skip
REGIMES = ("scratch", "bottleneck", "finetune")
CHOICES = sorted(
    f"{path.parent.name}={path.stem}"
    for path in paths.CONF.glob("*/*.yaml")
    if path.parent.name not in ("experiment", "debug", "hydra", "sweep")
)
DEBUGS = sorted(path.stem for path in (paths.CONF / "debug").glob("*.yaml"))
SCHEDULES = sorted(path.stem for path in (paths.CONF / "schedule").glob("*.yaml"))
Compose = Callable[..., DictConfig]
Read = Callable[..., schema.Config]


def inputs(*overrides: str) -> list[str]:
    """What a command line needs besides, where it names no data folder or server of its own."""
    return [*overrides, "outputs=OUTPUTS"]


def needs_root(name: str) -> bool:
    return "override /data: folder" in (paths.CONF / "experiment" / f"{name}.yaml").read_text()


def preset(name: str) -> list[str]:
    return [f"experiment={name}", *(["data.root=IMAGES"] if needs_root(name) else [])]


@pytest.mark.parametrize("name", ["default", *(f"regime_{regime}" for regime in REGIMES), *PRESETS])
def test_golden(name: str, composed: Compose, request: pytest.FixtureRequest) -> None:
    """What a run reads, whole. A wanted change: `make golden`, and read the diff before committing it."""
    overrides = {"default": [], **{f"regime_{regime}": [f"regime={regime}"] for regime in REGIMES}}.get(name)
    config = composed(*inputs(*(preset(name) if overrides is None else overrides)))
    found = dump_yaml(effective(validation.validate(config)))
    golden = GOLDEN / f"{name}.yaml"
    if request.config.getoption("--golden"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(found, encoding="utf-8")
        return
    assert golden.exists(), f"{golden.name} is missing: make golden writes it"
    expected = golden.read_text(encoding="utf-8")
    if found != expected:
        diff = difflib.unified_diff(
            expected.splitlines(), found.splitlines(), f"golden/{name}", "composed", lineterm=""
        )
        pytest.fail("\n".join(["the composed configuration changed (make golden accepts it):", *diff]), pytrace=False)


@pytest.mark.parametrize("overrides", [
    ("regime=finetune", "epochs=3", "optimizer=adam", "++optimizer.lr=0.5"),
    ("optimizer.lr=0.5", "optimizer@regime.head_optimizer=adam", "regime=finetune", "regime.head_optimizer.lr=2"),
    ("+tags.mine=yes", "debug=fast", "experiment=scratch_better", "data.limit={train: 2}", "~model.layers.block3"),
    ("model={native_size: 64}", "model=mobilenet_v2", "data.classes={pets: [cats, dogs]}"),
], ids=str)  # fmt: skip
def test_the_tests_own_composition_is_hydras(overrides: tuple[str, ...], composed: Compose) -> None:
    assert composed(*overrides) == composition.hydras(*overrides)


def test_no_golden_is_left_over() -> None:
    names = {"default", *(f"regime_{regime}" for regime in REGIMES), *PRESETS}
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == names


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_is_accepted(choice: str, config: Read) -> None:
    needs = {
        "data=folder": ["data.root=IMAGES"],
        "data=csv": ["data.labels=LABELS"],
        "data=filenames": ["data.root=IMAGES", 'data.pattern="(?P<label>[a-z]+).*"'],
        "tracking=server": ["tracking.uri=http://host:5000"],
    }
    read = config(*inputs(choice, *needs.get(choice, [])))
    group, name = choice.split("=")
    node = getattr(read, group)
    assert getattr(node, "name", name) == name, "the name in a YAML is its file's"


def test_server_takes_its_address_from_the_environment(config: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    assert config("tracking=server").tracking.uri == "http://elsewhere:5000"


@pytest.mark.parametrize(
    "regime, default", [("scratch", "rmsprop"), ("bottleneck", "adamw_head"), ("finetune", "adamw_finetune")]
)
def test_regime_brings_its_optimizer_and_the_command_line_wins(regime: str, default: str, config: Read) -> None:
    assert config(f"regime={regime}").optimizer.name == default
    for order in itertools.permutations([f"regime={regime}", "optimizer=adam"]):
        assert config(*order).optimizer.name == "adam"
    for order in itertools.permutations([f"regime={regime}", "optimizer=adamw", "optimizer.lr=0.5"]):
        optimizer = config(*order).optimizer
        assert (optimizer.name, optimizer.lr) == ("adamw", 0.5)
    read = config("optimizer.lr=0.25", f"regime={regime}")
    assert (read.optimizer.name, read.optimizer.lr) == (default, 0.25)
    assert read.regime.head_optimizer.lr != 0.25, "the head's optimizer is a slot of its own"


def test_head_optimizer_is_a_slot_of_its_own(config: Read) -> None:
    read = config("optimizer@regime.head_optimizer=adam", "regime=finetune", "regime.head_optimizer.lr=0.125")
    assert (read.regime.head_optimizer.name, read.regime.head_optimizer.lr) == ("adam", 0.125)
    assert read.optimizer.name == "adamw_finetune"


def test_a_backbone_names_the_learning_rate_of_its_fine_tuning(config: Read) -> None:
    tuned = {name: config("regime=finetune", f"model={name}") for name in ("mobilenet_v2", "vgg16", "vgg19")}
    assert {name: read.optimizer.lr for name, read in tuned.items()} == {
        "mobilenet_v2": 5e-4, "vgg16": 1e-4, "vgg19": 1e-4,
    }  # fmt: skip
    typed = config("regime=finetune", "model=vgg16", "optimizer.lr=5e-4")
    assert typed.optimizer.lr == 5e-4
    assert run_identity(typed) == run_identity(config("regime=finetune", "model=vgg16", "model.finetune_lr=5e-4"))
    assert run_identity(typed) != run_identity(tuned["vgg16"])
    tutorial = config("experiment=tutorial_finetune", "data.root=x", "model.finetune_lr=0.5")
    assert tutorial.optimizer.lr == 1e-4, "SGD's, as the tutorial has it"


def test_a_sweep_over_regimes_and_their_options_composes(config: Read) -> None:
    """-m regime=scratch,finetune regime.unfrozen_blocks=1,2 model.head.dropout=0.3,0.5"""
    for regime, blocks, dropout in itertools.product(("scratch", "finetune"), (1, 2), (0.3, 0.5)):
        read = config(f"regime={regime}", f"regime.unfrozen_blocks={blocks}", f"model.head.dropout={dropout}")
        assert (read.regime.name, read.regime.unfrozen_blocks, read.model.head.dropout) == (regime, blocks, dropout)


@pytest.mark.parametrize("model, regime, optimizer", [
    (model, regime, ("sgd", "adagrad")[number % 2])
    for number, (model, regime) in enumerate(itertools.product(("convnet", "mobilenet_v2", "vgg16"), REGIMES))
])  # fmt: skip
def test_groups_combine_freely(model: str, regime: str, optimizer: str, config: Read) -> None:
    read = config(f"model={model}", f"regime={regime}", f"optimizer={optimizer}")
    assert (read.model.name, read.regime.name, read.optimizer.name) == (model, regime, optimizer)
    assert read.data.image_size == read.model.native_size


@pytest.mark.parametrize("name", SOME_PRESETS)
def test_preset_wins_over_the_root_and_the_command_line_over_the_preset(name: str, config: Read) -> None:
    content: Any = OmegaConf.load(paths.CONF / "experiment" / f"{name}.yaml")
    read = config(*preset(name))
    values = {key: content[key] for key in ("epochs", "batch_size") if key in content}
    assert {key: getattr(read, key) for key in values} == values
    chosen = {key.removeprefix("override /"): name for default in content.defaults for key, name in default.items()}
    groups = {group: chosen[group] for group in ("data", "model", "regime") if group in chosen}
    assert groups and {group: getattr(read, group).name for group in groups} == groups
    other = config("epochs=7", "batch_size=7", "optimizer=adagrad", *preset(name))
    assert (other.epochs, other.batch_size, other.optimizer.name) == (7, 7, "adagrad")


def test_a_preset_takes_another_regime_with_that_regimes_optimizer(config: Read) -> None:
    """What `make demo` types."""
    found = {regime: config("experiment=demo", f"regime={regime}") for regime in REGIMES}
    assert {regime: read.optimizer.name for regime, read in found.items()} == {
        "scratch": "rmsprop", "bottleneck": "adamw_head", "finetune": "adamw_finetune"}  # fmt: skip
    assert len({read.epochs for read in found.values()}) == 1


def test_layers_of_the_convnet_are_configuration(config: Read) -> None:
    read = config(
        "+model.layers.block4={filters:128}", "model.layers.block1.kernel=5", "model.layers.block2.l2=1e-3",
        "model.head.dense.dense1.dropout=0.1", "+model.head.dense.dense2.units=8", "regime=finetune",
        "regime.unfrozen_blocks=4",
    )  # fmt: skip
    assert read.model.layers is not None
    assert read.model.blocks == ["block1", "block2", "block3", "block4"]
    assert read.model.layers["block4"] == schema.ConvBlock(filters=128)
    assert (read.model.layers["block1"].kernel, read.model.layers["block2"].l2) == (5, 1e-3)
    assert read.model.head.dense["dense1"].dropout == 0.1
    assert read.model.head.dense["dense2"].units == 8
    del_read = config("~model.layers.block3")
    assert del_read.model.blocks == ["block1", "block2"]


def test_image_size_follows_the_model_unless_given(config: Read) -> None:
    assert config("model=mobilenet_v2").data.image_size == 224
    assert config("model=mobilenet_v2", "data.image_size=96").data.image_size == 96


@pytest.mark.parametrize("name", SOME_PRESETS)
def test_debug_fast_wins_over_every_preset(name: str, config: Read) -> None:
    plain, read = config(*preset(name)), config(*preset(name), "debug=fast")
    assert plain.epochs > 1 and plain.tracking.experiment != "debug"
    assert (read.epochs, read.regime.head_epochs, read.regime.views, read.schedule.warmup) == (1, 1, 1, 0)
    assert read.batch_size == 8 and read.tracking.experiment == "debug"
    assert (read.data.limit.train, read.data.limit.validation, read.data.limit.test) == (4, 4, 4)
    assert read.must_reach is None
    for group in ("data", "model", "regime", "optimizer", "augmentation", "schedule"):
        assert getattr(read, group).name == getattr(plain, group).name, "it is the preset that is tried out"


@pytest.mark.parametrize("name", SOME_PRESETS)
def test_debug_overfit_wins_over_every_preset(name: str, config: Read) -> None:
    read = config(*preset(name), "debug=overfit")
    assert read.must_reach == 1.0 and read.tracking.experiment == "debug"
    off = config("augmentation=none").augmentation.arguments
    assert read.augmentation.layers == []
    assert {**read.augmentation.arguments, "fill": "nearest"} == off, "no value of the preset's is left"
    assert read.schedule.name == "constant"
    assert read.epochs == read.regime.head_epochs == 60
    assert (read.data.limit.train, read.batch_size, read.regime.views) == (8, 8, 1)
    assert (read.model.head.dropout, read.model.head.l1, read.model.head.l2) == (0, 0, 0)
    assert read.label_smoothing == 0 and read.early_stopping is None
    assert read.regime.name == config(*preset(name)).regime.name


@pytest.mark.parametrize("debug, regime", list(itertools.product(DEBUGS, REGIMES)))
def test_the_command_line_wins_over_debug(debug: str, regime: str, config: Read) -> None:
    given = [f"debug={debug}", "epochs=3", f"regime={regime}"]
    for order in (given, given[::-1]):
        read = config(*order)
        assert (read.epochs, read.regime.name, read.tracking.experiment) == (3, regime, "debug")
    read = config("data.limit.train=2", f"debug={debug}", "experiment=scratch_better", "data.root=IMAGES")
    assert read.data.limit.train == 2 and read.data.limit.validation == 4


def test_debug_changes_no_run_unless_it_is_given(config: Read) -> None:
    read = config()
    assert read.must_reach is None and read.data.limit.train is None and read.tracking.experiment != "debug"


@pytest.mark.parametrize("schedule, regime", list(itertools.product(SCHEDULES, REGIMES)))
def test_a_schedule_goes_with_every_regime(schedule: str, regime: str, config: Read) -> None:
    given = [f"schedule={schedule}", f"regime={regime}", "schedule.warmup=2"]
    read = config(*(given if regime == "finetune" else given[::-1]))
    assert (read.schedule.name, read.schedule.warmup, read.regime.name) == (schedule, 2, regime)


def test_a_schedule_has_its_own_keys_only(config: Read) -> None:
    keys = {name: set(config(f"schedule={name}").schedule.arguments) for name in SCHEDULES}
    assert keys == {
        "constant": set(), "cosine": {"final"}, "exponential": {"decay"},
        "plateau": {"factor", "patience", "min_delta", "cooldown", "floor"},
    }  # fmt: skip
    assert config("schedule=cosine", "schedule.final=0.25").schedule.arguments == {"final": 0.25}


def test_a_layer_of_the_head_is_left_out_by_null(config: Read) -> None:
    assert config("model=convnet", "model.head.dense.dense1=null").model.head.dense == {"dense1": None}
