"""Validation of configurations and identity of runs.

All errors are found at once, before anything is imported or written. The identity depends on what a run reads.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from experiments.config import messages, validation
from experiments.config.hydra_errors import explain
from experiments.config.identity import effective, head_run, logged, run_identity, unlogged_setting
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.images.decoder_settings import DecoderSettings
from experiments.runs import continuation

Read = Callable[..., Config]


def fault(config: Read, *overrides: str) -> list[str]:
    """The lines of the error that a command line earns."""
    with pytest.raises(ConfigError) as raised:
        config(*overrides)
    first, *lines = str(raised.value).splitlines()
    assert first == "The configuration cannot be used:"
    return [line.strip() for line in lines]


@pytest.mark.parametrize("override, nearest, allowed", [
    ("+sed=1", "seed", "seed"),
    ("+optimizer.lrr=1", "optimizer.lr", "momentum"),
    ("+model.head.dropot=0.5", "model.head.dropout", "pooling"),
    ("+model.head.dense.dense1.unts=3", "model.head.dense.dense1.units", "activation"),
    ("+model.layers.block1.kernl=3", "model.layers.block1.kernel", "filters"),
    ("+data.limit.valid=3", "data.limit.validation", "train"),
    ("+data.fractions.valid=0.5", "data.fractions.validation", "train"),
    ("+data.per_class.valid=1", "data.per_class.validation", "train"),
    ("+data.per_class.tran=3", "data.per_class.train", "validation"),
    ("+data.perclass=3", "data.per_class", "species"),
    ("+augmentation.rotate=3", "augmentation.rotation", "zoom"),
    ("+regime.unfrozen=3", "regime.unfrozen_blocks", "views"),
    ("+regime.head_optimizer.bta_1=1", "regime.head_optimizer.beta_1", "lr"),
    ("+runtime.thread=1", "runtime.threads", "threads"),
    ("+tracking.urll=x", "tracking.uri", "experiment"),
    ("+evaluate.tst=true", "evaluate.test", "test"),
])  # fmt: skip
def test_an_unread_key_is_refused_at_every_depth(override: str, nearest: str, allowed: str, config: Read) -> None:
    """`+` passes Hydra: in a component slot, a typed node, a mapping of nodes, and at the root."""
    (line,) = fault(config, override)
    key, value = override.lstrip("+").split("=")
    received = f"'{value}'" if value == "x" else value.capitalize() if value == "true" else value
    assert line.startswith(f"{key}: nothing reads this key. Received: {received}. Allowed here: ")
    assert line.endswith(f" Nearest: {nearest}.")
    names = line.partition("Allowed here: ")[2].partition(". Nearest")[0].split(", ")
    assert allowed in names
    assert not {"_target_", "name", "target"} & set(names), "what nobody types is not offered"


def test_an_unread_key_like_no_other_gets_no_hint(config: Read) -> None:
    (line,) = fault(config, "+xyzzy=1")
    assert "Allowed here: augmentation, batch_size, " in line
    assert "Nearest" not in line


@pytest.mark.parametrize("override, key, allowed, received", [
    ("epochs=ten", "epochs", "a valid integer", "'ten'"),
    ("epochs=1.5", "epochs", "a valid integer", "1.5"),
    ("epochs=true", "epochs", "a valid integer", "True"),
    ("batch_size=null", "batch_size", "a valid integer", "None"),
    ("optimizer.lr=abc", "optimizer.lr", "a valid number", "'abc'"),
    ("optimizer.lr=true", "optimizer.lr", "a valid number", "True"),
    ("optimizer.lr=nan", "optimizer.lr", "a finite number", "nan"),
    ("optimizer.lr=inf", "optimizer.lr", "a finite number", "inf"),
    ("optimizer.momentum=abc", "optimizer.momentum", "a valid number", "'abc'"),
    ("optimizer.momentum=null", "optimizer.momentum", "a valid number", "None"),
    ("optimizer.centered=3", "optimizer.centered", "a valid boolean", "3"),
    ("regime.head_optimizer.beta_1=abc", "regime.head_optimizer.beta_1", "a valid number", "'abc'"),
    ("evaluate.test=0", "evaluate.test", "a valid boolean", "0"),
    ("notes=5", "notes", "a valid string", "5"),
    ("+tags.question=3", "tags.question", "a valid string", "3"),
    ("trusted_packages=mine", "trusted_packages", "a valid list", "'mine'"),
    ("augmentation.layers=[3]", "augmentation.layers.0", "a valid dictionary", "3"),
    ("augmentation.rotation=abc", "augmentation.rotation", "a valid number", "'abc'"),
    ("data.species=cats", "data.species", "a valid list", "'cats'"),
    ("data.per_class=3", "data.per_class", "given by its keys: data.per_class.train, data.per_class.validation, "
     "data.per_class.test", "3"),
    ("data.per_class.train=abc", "data.per_class.train", "a valid integer", "'abc'"),
    ("evaluate=3", "evaluate", "given by its keys: evaluate.test", "3"),
    ("best_weights=1", "best_weights", "a valid boolean", "1"),
    ("early_stopping=1.5", "early_stopping", "a valid integer", "1.5"),
    ("label_smoothing=abc", "label_smoothing", "a valid number", "'abc'"),
    ("runtime.xla=3", "runtime.xla", "a valid boolean", "3"),
    ("schedule.warmup=1.5", "schedule.warmup", "a number of epochs, at least 0, or a share of them below 1", "1.5"),
    ("data.fold=abc", "data.fold", "a valid integer", "'abc'"),
])  # fmt: skip
def test_a_wrong_type_is_refused(override: str, key: str, allowed: str, received: str, config: Read) -> None:
    assert fault(config, override) == [f"{key}: must be {allowed}. Received: {received}"]


@pytest.mark.parametrize("override, limit, received", [
    ("outputs=", "at least 1 character", "''"),  # of an unset variable; its runs would be in /runs
    ("model.weights=", "at least 1 character", "''"),
    ("data.group=", "at least 1 character", "''"),
    ("data.gray_range=[1]", "at least 2 items", "[1]"),
    ("data.gray_range=[1,2,3]", "at most 2 items", "[1, 2, 3]"),
])  # fmt: skip
def test_a_wrong_length_is_refused(override: str, limit: str, received: str, config: Read) -> None:
    key = override.partition("=")[0]
    assert fault(config, override) == [f"{key}: must have {limit}. Received: {received}"]


@pytest.mark.parametrize("key, good, bad", [
    ("schedule=cosine schedule.final", (0, 1), (-0.1, 1.1)),
    ("schedule=exponential schedule.decay", (0.001, 1), (0, 1.1)),
    ("schedule=plateau schedule.factor", (0.001, 0.999), (0, 1)),
    ("schedule=plateau schedule.patience", (1,), (0,)),
    ("schedule=plateau schedule.min_delta", (0,), (-0.1,)),
    ("schedule=plateau schedule.cooldown", (0,), (-1,)),
    ("schedule=plateau schedule.floor", (0,), (-0.1,)),
    ("augmentation=randaugment augmentation.operations", (1, 3), (0,)),
    ("augmentation=randaugment augmentation.magnitude", (0, 1), (-0.1, 1.1)),
    ("seed", (0, 2**31 - 1), (-1, 2**31)),
    ("data.seed", (0, 2**31 - 1), (-1, 2**31)),
    ("batch_size", (1,), (0, 10**20)),
    ("epochs", (1,), (0,)),
    ("optimizer.lr", (1e-12,), (0, -1)),
    ("optimizer.ema_momentum", (0, 1), (-0.1, 1.1)),
    ("optimizer.rho", (0, 0.999), (-0.1, 1)),
    ("optimizer.momentum", (0, 1), (-0.1, 1.1)),
    ("optimizer.gradient_accumulation_steps", (2,), (1,)),
    ("model.head.dropout", (0, 0.999), (-0.1, 1)),
    ("model.head.l2", (0,), (-1e-9,)),
    ("model.head.dense.dense1.units", (1,), (0,)),
    ("model.layers.block1.dropout", (0, 0.5), (-0.1, 1.0)),
    ("model.layers.block1.pool", (1,), (0,)),
    ("data.image_size", (8,), (7,)),
    ("data.limit.train", (1,), (0,)),
    ("data.min_per_class", (1,), (0,)),
    ("data.fractions.train", (), (0, 1.2)),
    ("data.fractions.validation", (), (-0.2, 0, 1)),
    ("data.fractions.test", (), (-0.1, 1)),
    ("data.per_class.test", (0,), (-1,)),
    ("augmentation.rotation", (0, 180), (-1, 181)),
    ("augmentation.width_shift", (0, 1), (-0.1, 1.1)),
    ("augmentation.height_shift", (0, 1), (-0.1, 1.1)),
    ("augmentation.shear", (0, 89), (-1, 90)),
    ("augmentation.zoom", (0, 0.99), (-0.1, 1)),
    ("regime.views", (0,), (-1,)),
    ("regime.lr_decay", (0.1, 1), (0, 1.1)),
    ("runtime.threads", (1,), (0,)),
    ("runtime.devices", (1,), (0,)),
    ("label_smoothing", (0, 0.999), (-0.1, 1)),
    ("early_stopping", (1,), (0,)),
    ("must_reach", (0.001, 1), (0, 1.1)),
    ("schedule.warmup", (0, 0.1, 3), ()),
    ("data.fold", (0, 4), (-1,)),
    ("data.folds", (2,), (1,)),
])  # fmt: skip
def test_a_value_out_of_range_is_refused_at_both_ends(
    key: str, good: tuple[float, ...], bad: tuple[float, ...], config: Read
) -> None:
    *choice, key = key.split()
    for value in good:
        config(*choice, f"{key}={value}")
    for value in bad:
        (line,) = fault(config, *choice, f"{key}={value}")
        assert line.startswith((f"{key}: must be greater than", f"{key}: must be less than"))
        assert line.endswith(f". Received: {value}")


@pytest.mark.parametrize("override, choices, nearest", [
    ("objective=acuracy", ("roc_auc", "calibration_error"), "accuracy"),
    ("model.head.pooling=averge", ("flatten", "max"), "average"),
    ("data.on_bad=skp", ("error",), "skip"),
    ("progress=non", ("auto",), "none"),
    ("augmentation.fill=reflct", ("wrap", "constant"), "reflect"),
    ("model.layers.block1.activation=rleu", ("selu", "tanh"), "relu"),
    ("data.species=[cats,dgos]", ("cats", "owls"), "dogs"),
    ("loss=hing", ("cross_entropy", "mse", "hinge"), "hinge"),
    ("loss=crossentropy", ("mse",), "cross_entropy"),
    ("monitor=validation_acc", ("validation_loss", "validation_accuracy"), "validation_accuracy"),
    ("runtime.precision=float17", ("float32", "mixed_bfloat16", "mixed_float16"), "float32"),
])  # fmt: skip
def test_a_choice_that_is_none_names_the_nearest(
    override: str, choices: tuple[str, ...], nearest: str, config: Read
) -> None:
    (line,) = fault(config, override)
    key, received = override.split("=")
    assert line.startswith(key)
    assert f"Received: '{received.rpartition(',')[2].strip(']')}'. " in line
    assert all(f"'{choice}'" in line for choice in choices)
    assert line.endswith(f"Nearest: {nearest}")


@pytest.mark.parametrize("choice", ["none", "randaugment", "trivialaugment"])
def test_a_fill_that_is_none_is_refused(choice: str, config: Read) -> None:
    (line,) = fault(config, f"augmentation={choice}", "augmentation.fill=mirror")
    assert line.startswith("augmentation.fill: must be 'nearest', 'reflect', 'wrap' or 'constant'")
    assert "Received: 'mirror'" in line


@pytest.mark.parametrize("value, line", [
    ("balancd", "class_weights: must be 'balanced', null (all alike) or {CLASS: WEIGHT, ...}. Received: 'balancd'. "
     "Nearest: balanced"),
    ("3", "class_weights: must be 'balanced', null (all alike) or {CLASS: WEIGHT, ...}. Received: 3"),
    ("{cats: 0}", "class_weights.cats: must be greater than 0. Received: 0"),
    ("{cats: x}", "class_weights.cats: must be a valid number. Received: 'x'"),
])  # fmt: skip
def test_class_weights_are_balanced_or_by_name(value: str, line: str, config: Read) -> None:
    assert fault(config, f"class_weights={value}") == [line]
    assert config("class_weights=balanced").class_weights == "balanced"
    assert config("class_weights={cats: 1.5, dogs: 2}").class_weights == {"cats": 1.5, "dogs": 2}
    assert config("class_weights={0: 1.5, 1: 2}").class_weights == {"0": 1.5, "1": 2}, "classes may be called so"


def test_a_schedule_that_is_none_names_the_nearest(composed: Callable[..., DictConfig]) -> None:
    with pytest.raises(Exception, match="schedule/cosin") as raised:
        composed("schedule=cosin")
    assert explain(raised.value, ["schedule=cosin"]) == (
        "The configuration cannot be used:\n  schedule: no such choice. Received: 'cosin'. "
        "Allowed: constant, cosine, exponential, plateau. Nearest: schedule=cosine."
    )


def test_a_key_of_another_schedule_is_refused_with_and_without_plus(
    config: Read, composed: Callable[..., DictConfig]
) -> None:
    (line,) = fault(config, "schedule=cosine", "+schedule.decay=0.9")
    assert line == (
        "schedule.decay: nothing reads this key. Received: 0.9. Allowed here: final, warmup. A key of "
        "schedule=exponential."
    )
    overrides = ["schedule=cosine", "schedule.decay=0.9"]
    with pytest.raises(Exception, match="decay") as raised:
        composed(*overrides)
    text = explain(raised.value, overrides)
    assert text is not None and "schedule.decay: nothing reads this key. Received: '0.9'" in text
    assert "Allowed here: final, warmup" in text
    text = explain(raised.value, ["schedule=cosine", "schedule.decay='a b'"])
    assert text is not None and "Received: 'a b'." in text, "without the quotes of Hydra's grammar"


def test_a_warm_up_leaves_epochs_to_train(config: Read) -> None:
    for warmup in (3, 4):
        assert fault(config, "epochs=3", f"schedule.warmup={warmup}") == [
            f"schedule.warmup: must be less than epochs (3). Received: {warmup}"
        ]
    assert config("epochs=3", "schedule.warmup=2").schedule.warmup == 2


def test_a_fold_is_one_of_the_folds(config: Read) -> None:
    assert fault(config, "data.fold=5") == ["data.fold: must be less than data.folds (5). Received: 5"]
    assert fault(config, "data.folds=3", "data.fold=3") == ["data.fold: must be less than data.folds (3). Received: 3"]
    assert config("data.folds=3", "data.fold=2").data.fold == 2


def test_a_gray_range_ascends(config: Read) -> None:
    for value in ("[5,5]", "[9,5]"):
        (line,) = fault(config, f"data.gray_range={value}")
        assert line.startswith("data: gray_range must be [black, white], black below white. Received: ")
    assert config("data.gray_range=[5,6]").data.gray_range == [5, 6]


def test_hinge_gives_no_probabilities(config: Read) -> None:
    assert fault(config, "loss=hinge", "label_smoothing=0.1") == [
        "label_smoothing: must be 0 with loss=hinge. Received: 0.1"
    ]
    for objective in ("loss", "brier", "calibration_error"):
        assert fault(config, "loss=hinge", f"objective={objective}") == [
            f"objective: '{objective}' scores probabilities, which loss=hinge does not give. "
            "Allowed: accuracy, precision, recall, f1, roc_auc, balanced_accuracy, macro_f1, matthews, "
            "average_precision, top3_accuracy, top5_accuracy"
        ]
        config("loss=mse", f"objective={objective}", "label_smoothing=0.1")
    for objective in ("accuracy", "precision", "recall", "f1", "roc_auc", "balanced_accuracy", "average_precision"):
        config("loss=hinge", f"objective={objective}")


def test_a_threshold_is_a_probability_or_has_one_goal(config: Read) -> None:
    assert config("threshold.recall=0.95").threshold.recall == 0.95
    assert fault(config, "threshold.recall=0.9", "threshold.precision=0.8") == [
        "threshold: give one of fixed, recall, precision; the others null. Received: recall=0.9, precision=0.8"
    ]
    assert fault(config, "threshold=1.5") == ["threshold.fixed: must be less than 1. Received: 1.5"]
    assert fault(config, "threshold.recall=0") == ["threshold.recall: must be greater than 0. Received: 0"]


def test_mixing_images_needs_soft_labels_and_fresh_augmentation(config: Read) -> None:
    (line,) = fault(config, "augmentation=mixup", "loss=hinge")
    assert line == "augmentation.layers: keras.layers.MixUp mixes labels, and loss=hinge needs whole ones"
    (line,) = fault(config, "augmentation=mixup", "regime=finetune")
    assert line.startswith("regime.views: must be 0 with keras.layers.MixUp") and line.endswith("Received: 8")
    for fine in (["regime=finetune", "regime.views=0"], ["regime=bottleneck", "loss=hinge"], ["regime=scratch"]):
        config("augmentation=mixup", *fine)


def test_faults_between_keys_come_in_one_error(config: Read) -> None:
    lines = fault(
        config, "epochs=2", "schedule.warmup=2", "data.fold=9", "loss=hinge", "label_smoothing=0.5", "objective=loss",
        "regime=finetune", "regime.unfrozen_blocks=9", "augmentation=mixup",
    )  # fmt: skip
    assert [line.partition(":")[0] for line in lines] == [
        "regime.unfrozen_blocks", "schedule.warmup", "data.fold", "label_smoothing", "objective",
        "augmentation.layers", "regime.views",
    ]  # fmt: skip


def test_a_missing_value_is_named_with_what_to_type(config: Read) -> None:
    assert fault(config, "data=folder") == ["data.root: no value. Give one: data.root=..."]
    assert fault(config, "~epochs") == ["epochs: no value, and the run needs one. Give one: +epochs=..."]
    (line,) = fault(config, "tracking=server")
    assert line.startswith("tracking.uri: no value") and "MLFLOW_TRACKING_URI" in line


def test_a_dangling_interpolation_is_a_configuration_fault(config: Read) -> None:
    assert fault(config, "optimizer.lr=${sed}")[0] == (
        r"optimizer.lr: Interpolation key 'sed' not found. Where ${ is meant as text, write \${"
    )


def test_the_tags_that_a_run_records_itself_are_refused(config: Read) -> None:
    lines = fault(config, "+tags={threshold: '0.99', version.keras: mine, question: which}")
    assert lines == [
        "tags.threshold: a run records a tag of this name itself. Give yours another name. Received: '0.99'",
        "tags.version.keras: a run records a tag of this name itself. Give yours another name. Received: 'mine'",
    ]


def test_an_interpolation_in_outputs_is_refused(config: Read) -> None:
    (line,) = fault(config, r"outputs='/a/\${b}'")
    assert line == "outputs: must not have ${ in it, which Hydra replaces. Received: /a/${b}"


def test_more_blocks_than_there_are(config: Read) -> None:
    (line,) = fault(config, "regime=finetune", "regime.unfrozen_blocks=4")
    assert line == (
        "regime.unfrozen_blocks: must be at most 3, as model=convnet has 3 blocks (block1, block2, block3), or all, or "
        "the name of a layer. Received: 4"
    )
    for accepted in (3, "all", "block2"):
        assert config("regime=finetune", f"regime.unfrozen_blocks={accepted}").regime.unfrozen_blocks == accepted
    config("regime=scratch", "regime.unfrozen_blocks=4")  # scratch ignores it
    for refused in ("0", "-1", "1.5", "true", "null", "''", "[1,2]"):
        (line,) = fault(config, "regime=finetune", f"regime.unfrozen_blocks={refused}")
        assert line.startswith("regime.unfrozen_blocks: must be how many stages, at least 1, or all, or the name"), line


def test_pretrained_is_the_body_of_the_convnet_only(config: Read) -> None:
    (line,) = fault(config, "regime=bottleneck", "model=vgg16", "model.weights=pretrained")
    assert line.startswith("model.weights: ")
    assert "Received: model=vgg16. Allowed: imagenet, a file, an MLflow run id, null" in line
    config("regime=scratch", "model=vgg16", "model.weights=pretrained")  # scratch reads no weights


def test_fractions_sum_to_one(config: Read) -> None:
    assert fault(config, "data.fractions.train=0.5") == [
        "data.fractions: train, validation and test must sum to 1; they sum to 0.7"
    ]
    config("data.fractions={train: 0.7, validation: 0.2, test: 0.1}")  # whose floating-point sum is not exactly 1


def test_all_faults_come_in_one_error(config: Read) -> None:
    lines = fault(
        config, "data=folder", "epochs=0", "data.fractions.train=0.5", "optimizer.beta_1=abc", "+optimizer.foo=1",
        "+bar=2", "objective=acuracy", "regime=finetune", "regime.unfrozen_blocks=9",
    )  # fmt: skip
    keys = [line.partition(":")[0] for line in lines]
    assert sorted(keys) == [
        "bar", "data.fractions", "data.root", "epochs", "objective", "optimizer.beta_1", "optimizer.foo",
        "regime.unfrozen_blocks",
    ]  # fmt: skip


def test_a_component_of_the_users_own_may_have_any_arguments(config: Read) -> None:
    """What is not shipped is checked in build, against the constructor's signature."""
    read = config("optimizer._target_=mine.Lion", "+optimizer.beta=0.95")
    assert read.optimizer.arguments["beta"] == 0.95


@pytest.mark.parametrize(
    "target",
    [
        "experiments.augmentation.affine", "experiments.augmentation.randaugment",
        "experiments.data.cats_vs_dogs.cats_vs_dogs", "experiments.data.folder.folder",
        "experiments.data.synthetic.synthetic", "experiments.models.convnet.convnet",
        "experiments.regimes.bottleneck.bottleneck", "experiments.regimes.finetune.finetune",
        "experiments.regimes.scratch.scratch", "experiments.schedules.constant", "experiments.schedules.cosine",
        "experiments.schedules.exponential", "experiments.schedules.plateau",
    ],
)  # fmt: skip
def test_the_targets_of_version_0_1_name_functions_of_today(target: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        current = validation.current_target(target, "layers.0._target_")
    module, _, name = current.rpartition(".")
    assert getattr(importlib.import_module(module), name).__module__ == module
    assert [warning.category for warning in caught] == ([FutureWarning] if current != target else [])


def test_a_moved_target_is_read_with_a_warning_that_names_the_new_one(config: Read) -> None:
    with pytest.warns(FutureWarning, match="is now called experiments.data.augmentation.affine"):
        moved = config("augmentation._target_=experiments.augmentation.affine")
    assert moved.augmentation == config().augmentation


def test_effective_drops_what_the_regime_ignores(config: Read) -> None:
    scratch, bottleneck, finetune = (
        effective(config(f"regime={name}")) for name in ("scratch", "bottleneck", "finetune")
    )
    assert "weights" not in scratch["model"] and "augmentation" in scratch
    assert "augmentation" not in bottleneck and bottleneck["model"]["weights"] == "pretrained"
    for plain in (scratch, bottleneck):
        assert not {"unfrozen_blocks", "views", "head_from", "head_epochs", "head_optimizer"} & set(plain["regime"])
    assert {"unfrozen_blocks", "views", "head_from", "head_epochs", "head_optimizer"} < set(finetune["regime"])
    assert finetune["optimizer"]["_target_"] == "keras.optimizers.AdamW", "as in YAML, so that it can be read back"


@pytest.mark.parametrize("override", [
    "optimizer.lr=0.5", "optimizer.beta_1=0.5", "optimizer=adam", "seed=1", "batch_size=8", "epochs=3",
    "model.head.dropout=0.1", "model.head.dense.dense1.l2=0.1", "model.layers.block1.filters=8",
    "model.head.pooling=max", "data.image_size=96", "augmentation=none", "augmentation.seed=1",
    "augmentation.layers=[{_target_: keras.layers.RandomContrast, factor: 0.2}]", "regime.unfrozen_blocks=2",
    "regime.views=2", "regime.head_epochs=3", "regime.head_optimizer.lr=0.5", "regime=bottleneck", "regime=scratch",
    "regime.activations=float16", "model=vgg16",
    "schedule=constant", "schedule.warmup=1", "loss=mse", "label_smoothing=0.1", "class_weights=balanced",
    "class_weights={cats: 2.0}", "early_stopping=3", "best_weights=true", "monitor=validation_accuracy",
    "runtime.precision=mixed_bfloat16", "runtime.xla=true", "runtime.xla=false", "optimizer.clipnorm=1",
    "optimizer.weight_decay=0.1", "optimizer.use_ema=false", "model.layers.block1.batch_norm=true",
    "model.head.dense.dense1=null", "positive=cats", "threshold.recall=0.9", "threshold=0.3",
])  # fmt: skip
def test_identity_moves_with_what_a_fine_tuning_run_reads(override: str, config: Read) -> None:
    base = ["regime=finetune"] if not override.startswith("regime=") else []
    assert run_identity(config("regime=finetune")) != run_identity(config(*base, override))


@pytest.mark.parametrize("override", [
    "tracking=none", "tracking.experiment=other", "runtime.threads=1", "notes=hello", "+tags.question=dropout",
    "outputs=/elsewhere", "progress=none", "evaluate.test=false", "data.root=B", "objective=loss",
    "trusted_packages=[mine]", "must_reach=0.5", "runtime.devices=1", "runtime.deterministic=true",
    "tracking.log_model=false", "model.weights=body.weights.h5", "regime.head_from='0123456789abcdef0123456789abcdef'",
    "continue_from=/a/run",
])  # fmt: skip
def test_identity_rests_where_a_run_only_happens_elsewhere(override: str, config: Read) -> None:
    base = ["regime=finetune", "data=folder", "data.root=A"]
    assert run_identity(config(*base)) == run_identity(config(*base, override))


def test_settings_from_the_environment_are_known_by_a_hash(config: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(number: int, *overrides: str) -> Config:
        monkeypatch.setenv("NUMBER", str(number))
        return config("regime=finetune", "data=folder", "data.root=${oc.env:NUMBER}", *overrides)

    number = "'${oc.decode:${oc.env:NUMBER}}'"
    rate, seed, fold = f"optimizer.lr={number}", f"seed={number}", f"data.fold={number}"
    assert unlogged_setting(read(1)) is unlogged_setting(read(1, seed, fold)) is None
    assert (logged(read(2, seed))["seed"], logged(read(2, fold))["data"]["fold"]) == (2, 2)
    assert logged(read(1, rate)) == logged(read(2, rate)), "their values are not logged"
    assert unlogged_setting(read(1, rate)) != unlogged_setting(read(2, rate))
    assert unlogged_setting(read(1, rate)) == unlogged_setting(read(1, rate, "seed=5"))


def test_what_a_model_is_used_with_is_logged_even_if_it_came_from_the_environment(
    config: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "HOW": "pad",
        "SIZE": "64",
        "GRAYS": "[0,4095]",
        "LOSS": "hinge",
        "EPOCHS": "3",
        "POOL": "max",
        "FILE": "w",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    given = {"data.image_size": "SIZE", "data.gray_range": "GRAYS", "epochs": "EPOCHS"}
    decoded = [f"{key}='${{oc.decode:${{oc.env:{name}}}}}'" for key, name in given.items()]
    texts = ["data.resize=${oc.env:HOW}", "loss=${oc.env:LOSS}", "model.head.pooling=${oc.env:POOL}"]
    found = config(
        "data=folder", "data.root=x", "regime=finetune", "model=vgg16", "model.weights=${oc.env:FILE}", *texts, *decoded
    )
    plain = logged(found)
    assert DecoderSettings.of(plain["data"]) == DecoderSettings((0, 4095), "pad")
    assert (plain["data"]["image_size"], plain["loss"], plain["epochs"]) == (64, "hinge", 3)
    assert plain["model"]["head"]["pooling"] == "max"
    assert plain["model"]["weights"] == "${oc.env:FILE}", "a path is no part of the model"


@pytest.mark.parametrize("regime, override", [
    ("scratch", "model.weights=null"), ("scratch", "regime.unfrozen_blocks=2"), ("scratch", "regime.views=0"),
    ("scratch", "regime.head_epochs=2"), ("scratch", "regime.head_optimizer.lr=0.5"),
    ("scratch", "regime.activations=float16"),
    ("bottleneck", "augmentation=none"), ("bottleneck", "augmentation.rotation=5"),
    ("bottleneck", "regime.unfrozen_blocks=2"), ("bottleneck", "regime.head_optimizer.lr=0.5"),
])  # fmt: skip
def test_identity_rests_where_the_regime_ignores_a_key(regime: str, override: str, config: Read) -> None:
    assert run_identity(config(f"regime={regime}")) == run_identity(config(f"regime={regime}", override))


@pytest.mark.parametrize("key", [
    "runtime", "runtime.xla", "regime", "regime.ignores", "model", "data", "tags", "evaluate", "evaluate.test"
])  # fmt: skip
def test_a_regime_cannot_ignore_what_every_run_needs(key: str, config: Read) -> None:
    (line,) = fault(config, f"regime.ignores=[{key}]")
    assert line.startswith(f"regime.ignores: a regime cannot ignore '{key}'. Allowed: ")


def test_a_regime_cannot_ignore_what_is_no_key(config: Read) -> None:
    assert fault(config, "regime.ignores=[augmentatoin.zoom]") == [
        "regime.ignores: 'augmentatoin.zoom' is no key of the configuration"
    ]


def test_a_regime_may_ignore_a_key_below_one_without_keys(config: Read) -> None:
    assert run_identity(config("regime.ignores=[class_weights.cats,model.weights.file]"))


def test_a_regime_may_ignore_the_run_that_is_continued(config: Read) -> None:
    ignoring = ("regime=scratch", "regime.ignores=[continue_from]")
    assert run_identity(config(*ignoring)) == run_identity(config(*ignoring, "continue_from=/a/run"))
    with pytest.raises(ConfigError, match="regime=scratch ignores continue_from"):
        continuation.check(config(*ignoring, "continue_from=/a/run"))


def test_identity_of_a_debug_run_includes_what_it_changes(config: Read) -> None:
    """The experiment it is filed under and what it must reach do not count."""
    same = ("epochs=60", "batch_size=8", "augmentation=none", "model.head.dropout=0.0")
    assert run_identity(config("debug=overfit")) == run_identity(config(*same))
    assert run_identity(config("debug=fast")) == run_identity(config("epochs=1", "batch_size=8"))


@pytest.mark.parametrize("override, counts", [
    ("positive=cats", False), ("threshold.fixed=0.3", False), ("monitor=validation_accuracy", False),
    ("schedule=cosine", False), ("schedule.warmup=1", False), ("early_stopping=3", False), ("best_weights=true", False),
    ("must_reach=0.5", False), ("epochs=3", False), ("optimizer.clipnorm=1", False),
    ("loss=mse", True), ("label_smoothing=0.1", True), ("class_weights=balanced", True),
    ("runtime.precision=mixed_bfloat16", True), ("regime.head_optimizer.clipnorm=1", True),
    ("regime.activations=float16", True),
])  # fmt: skip
def test_identity_of_a_head_moves_with_what_its_own_phase_reads(override: str, counts: bool, config: Read) -> None:
    head, other = head_run(config("regime=finetune")), head_run(config("regime=finetune", override))
    assert (run_identity(head) != run_identity(other)) is counts


def test_identity_includes_hashes_of_inputs(config: Read) -> None:
    read = config("regime=finetune")
    facts = {"data": "d", "weights": "w", "head": None, "version": "1"}
    assert run_identity(read, **facts) == run_identity(read, **facts)
    for changed in ({"data": "e"}, {"weights": "v"}, {"head": "h"}, {"version": "2"}):
        assert run_identity(read, **{**facts, **changed}) != run_identity(read, **facts)


@pytest.mark.parametrize("finetune, bottleneck", [
    ([], []),
    (
        ["seed=3", "batch_size=8", "model.head.dropout=0.2", "regime.head_epochs=5", "epochs=2", "optimizer.lr=1e-5",
         "optimizer@regime.head_optimizer=adam", "regime.head_optimizer.lr=3e-4", "regime.unfrozen_blocks=2",
         "augmentation=light"],
        ["seed=3", "batch_size=8", "model.head.dropout=0.2", "epochs=5", "optimizer=adam", "optimizer.lr=3e-4"],
    ),
])  # fmt: skip
def test_the_head_of_fine_tuning_is_a_bottleneck_run(finetune: list[str], bottleneck: list[str], config: Read) -> None:
    """So that the head cache serves what a bottleneck run trained, and the other way round."""
    typed = config("regime=bottleneck", *bottleneck)
    derived = head_run(config("regime=finetune", *finetune))
    assert run_identity(derived) == run_identity(typed)
    shown, expected = effective(derived), effective(typed)
    assert shown == expected
    other = config("regime=bottleneck", *bottleneck, "seed=9")
    assert run_identity(derived) != run_identity(other)


def test_reads_distinguishes_a_key_with_a_place_from_a_typo() -> None:
    good = ("tags.question", "model.layers.block9.filters", "model.head.dense.dense2", "optimizer.lr")
    assert all(map(messages.is_known_key, good))
    bad = ("tag.question", "model.layers.block9.filers", "model.head.dense.dense1.unts", "lr", "epochs.more")
    assert not any(map(messages.is_known_key, bad))


def test_classes_are_selected_or_merged(config: Read) -> None:
    assert config().data.merged_classes is None
    assert config("data.classes=[dogs,1]").data.merged_classes == {"dogs": ["dogs"], "1": ["1"]}
    merged = config("data.classes={pets: [cats,dogs], 0: wild}").data.merged_classes
    assert merged == {"pets": ["cats", "dogs"], "0": ["wild"]} and list(merged) == ["pets", "0"]
    for value in ("cats", "[]", "3"):
        (line,) = fault(config, f"data.classes={value}")
        assert line.startswith("data.classes: must be a list of classes, [cats,dogs], or new classes")
