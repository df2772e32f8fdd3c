"""Configurations and model files from others are data: nothing in them runs."""

from __future__ import annotations

import base64
import copy
import functools
import io
import marshal
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from experiments.config import schema, validation
from experiments.config.identity import dump_yaml, hidden, run_identity
from experiments.config.identity import logged as logged_config
from experiments.config.overrides import quoted
from experiments.errors import ConfigError
from experiments.regimes import build
from experiments.reuse import like
from experiments.system import paths

Tally = Callable[[str, int, int], None]
Plain = dict[str, Any]


def changed(key: str, value: Any) -> Callable[[Plain, Path], Plain]:
    """Sets a dotted key; in texts, CANARY stands for a file that must never appear."""

    def change(plain: Plain, canary: Path) -> Plain:
        *parents, last = key.split(".")
        node = plain
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = with_canary(value, canary)
        return plain

    return change


def with_canary(value: Any, canary: Path) -> Any:
    if isinstance(value, dict):
        return {with_canary(key, canary): with_canary(below, canary) for key, below in value.items()}
    if isinstance(value, list):
        return [with_canary(item, canary) for item in value]
    return value.replace("CANARY", str(canary)) if isinstance(value, str) else value


def touch() -> str:
    """A lambda that makes the canary, as Keras's old files hold one."""
    code = compile("lambda x: open('CANARY', 'w')", "x", "eval").co_consts[0]
    return base64.b64encode(marshal.dumps(code)).decode()


CALL = {"_target_": "os.system", "command": "touch CANARY"}
LAMBDA = {"class_name": "__lambda__", "config": {"value": touch(), "defaults": None, "closure": None}}
FOREIGN = {"module": "os", "class_name": "system", "config": "touch CANARY", "registered_name": None}

# Of each probe: what a logged configuration becomes.
VALUES: dict[str, Callable[[Plain, Path], Plain]] = {
    "optimizer of os": changed("optimizer", {**CALL, "name": "sgd", "lr": 0.1}),
    "optimizer that evaluates": changed("optimizer._target_", "builtins.eval"),
    "optimizer of a module that runs on import": changed("optimizer._target_", "antigravity.geohash"),
    "model of subprocess": changed("model._target_", "subprocess.run"),
    "model loaded from a file": changed("model._target_", "keras.models.load_model"),
    "model of another application's module": changed("model._target_", "keras.applications.os.system"),
    "model that is imported by ours": changed("model._target_", "experiments.models.network.keras"),
    "regime of our own commands": changed("regime._target_", "experiments.cli.ui.main"),
    "regime of another package": changed("regime._target_", "os.abort"),
    "data source of shutil": changed("data._target_", "shutil.rmtree"),
    "data source that is no source": changed("data._target_", "experiments.data.sources.download.fetch"),
    "schedule of os": changed("schedule._target_", "os.system"),
    "augmentation of os": changed("augmentation._target_", "os.system"),
    "Lambda layer": changed("augmentation.layers", [{"_target_": "keras.layers.Lambda", "function": LAMBDA}]),
    "TFSMLayer": changed("augmentation.layers", [{"_target_": "keras.layers.TFSMLayer", "filepath": "CANARY"}]),
    "TorchModuleWrapper": changed(
        "augmentation.layers", [{"_target_": "keras.layers.TorchModuleWrapper", "module": 1}]
    ),
    "layer with a lambda inside": changed(
        "augmentation.layers", [{"_target_": "keras.layers.Activation", "activation": LAMBDA}]
    ),
    "layer with a foreign function inside": changed(
        "augmentation.layers", [{"_target_": "keras.layers.Activation", "activation": FOREIGN}]
    ),
    "layer around a layer": changed(
        "augmentation.layers", [{"_target_": "keras.layers.TimeDistributed", "layer": {"class_name": "Lambda"}}]
    ),
    "layer of another package": changed("augmentation.layers", [CALL]),
    "layer with a call among its arguments": changed(
        "augmentation.layers", [{"_target_": "keras.layers.RandomContrast", "factor": CALL}]
    ),
    "deserializer as a layer": changed(
        "augmentation.layers", [{"_target_": "keras.layers.deserialize", "config": LAMBDA}]
    ),
    "packages to trust": lambda plain, canary: changed("trusted_packages", ["os"])(
        changed("optimizer._target_", "os.system")(plain, canary), canary
    ),
    "hydra's launcher": changed("hydra", {"launcher": CALL, "callbacks": {"evil": CALL}}),
    "hydra's callbacks": changed("hydra.callbacks.evil", CALL),
    "hydra's search path": changed("hydra.searchpath", ["pkg://nowhere"]),
    "environment": changed("data.root", "${oc.env:HOME}"),
    "environment in a list": changed("data.species", ["${oc.env:HOME}", "cats"]),
    "another resolver": changed("notes", "${run_name:x}"),
    "resolver in a name": changed("model.name", "${oc.env:HOME}"),
    "group from elsewhere": changed("model.name", "../../../tmp/evil"),
    "override in a name": changed("model.name", "convnet hydra/launcher=evil"),
    "override in a value": changed("data.root", "a' hydra.run.dir='CANARY"),
    "override in a value, escaped": changed("data.root", "a\\' 'hydra.run.dir=CANARY"),
    "override in a key": changed("data", {"root=1 hydra.run.dir": "CANARY"}),
    "tracking elsewhere": changed("tracking", {"uri": "http://evil.invalid", "name": "server"}),
    "outputs elsewhere": changed("outputs", "CANARY"),
    "name that is a list": changed("regime.name", [1]),
    "group that is a list": changed("model", ["CANARY"]),
    "huge number": changed("seed", 10**4000),
    "unknown keys": changed("evil", CALL),
    "layer that reads a file": changed(
        "augmentation.layers", [{"_target_": "keras.layers.StringLookup", "vocabulary": "CANARY.txt"}]
    ),
    "weights that are a model": changed("model.weights", "CANARY.keras"),
    "weights that are a pickle": changed("model.weights", "CANARY.weights.h5"),
}


@pytest.fixture
def logged(config: Callable[..., schema.Config], drawn: Path) -> Plain:
    return logged_config(config("data=folder", f"data.root={drawn}", "regime=finetune", "tracking=none"))


@functools.cache
def compose_once(lines: tuple[str, ...], config_dir: str | None, compose: Callable[..., Plain] = like.compose) -> Plain:
    """Return what `like` composes of choices of groups: most probes make the same."""
    return compose(lines, config_dir)


@pytest.fixture(autouse=True)
def composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(like, "compose", lambda lines, config_dir: compose_once(tuple(lines), config_dir))


@pytest.mark.parametrize("name", VALUES)
def test_values(name: str, logged: Plain, tally: Tally, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    evil_files(canary)
    before = set(tmp_path.iterdir())
    plain = VALUES[name](copy.deepcopy(logged), canary)
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    refused, given = "", []
    try:
        given = like.expand([f"like={folder}"])
        with initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
            composed = compose("config", [*given, "tracking=none"], return_hydra_config=True)
        assert "evil" not in str(composed.hydra.callbacks) + str(composed.hydra.launcher)
        config = validation.validate(composed)
        assert config.trusted_packages == [] and config.tracking.uri is None and config.outputs != str(canary)
        build.build(config, {})
    except (ConfigError, HydraException) as error:
        refused = str(error)
    if not refused:  # what was dropped must not have come back
        assert not any(line.lstrip("+").startswith(("hydra", "trusted", "tracking", "outputs")) for line in given)
        assert "${" not in " ".join(given)
    runs_nothing = not canary.exists() and set(tmp_path.iterdir()) <= before | {folder}
    tally("injection probe", 1, int(runs_nothing))


def evil_files(canary: Path) -> None:
    """Model files beside the canary: a pickle that is called weights, and a whole model with a Lambda."""
    import os
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {canary}",)

    canary.with_name("canary.weights.h5").write_bytes(pickle.dumps(Evil()))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("config.json", '{"class_name": "Lambda", "module": "keras.layers", "config": {}}')
    canary.with_name("canary.keras").write_bytes(file.getvalue())


TEXTS: dict[str, tuple[bytes, str]] = {
    "a billion laughs": (
        b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
            b"%c: &%c [%s]\n" % (ord(n), ord(n), b", ".join([b"*%c" % (ord(n) - 1)] * 9)) for n in "bcdefghi"
        ), "alias",
    ),
    "too large": (b"notes: " + b"x" * 2_000_000, "larger than 1,000,000 bytes"),
    "too deep": (b"[" * 5000, "nested deeper"),
    "Python objects": (b"notes: !!python/object/apply:os.system ['touch /tmp/canary']", "cannot be read"),
    "Python names": (b"notes: !!python/name:os.system", "cannot be read"),
    "a list": (b"- a\n- b\n", "is no mapping"),
    "nothing": (b"", "is no mapping"),
    "bytes": (bytes(range(256)), "cannot be read"),
    "no YAML": (b"a: [1, 2", "cannot be read"),
    "cut off": (b"data:\n  name: folder\nmodel:\n  name: vgg", "ends before outputs: it is damaged"),
    "a key that is a mapping": (b"? {a: 1}\n: 2\n", "cannot be read"),
}  # fmt: skip


READERS = ("StringLookup", "IntegerLookup", "TextVectorization")


@pytest.mark.parametrize("target", [f"keras.layers.{name}" for name in READERS] + ["keras.utils.FeatureSpace"])
def test_a_layer_that_reads_files_is_refused_by_name(
    target: str, config: Callable[..., schema.Config], tmp_path: Path
) -> None:
    """Also where it is hidden in another layer's argument; the file is a pipe, whose reader would wait for ever."""
    os.mkfifo(tmp_path / "words")
    name = target.split(".")[-1]
    arguments = f"vocabulary:'{tmp_path / 'words'}'" if target.startswith("keras.layers") else "features:{}"
    layers = f"augmentation.layers=[{{_target_:{target},{arguments}}}]"
    with pytest.raises(ConfigError, match=rf"augmentation\.layers\.0\._target_: {name} reads files"):
        build.build(config("model.weights=null", layers), {})
    inner = f"{{module:keras.layers,class_name:{name},config:{{{arguments}}}}}"
    layers = f"augmentation.layers=[{{_target_:keras.layers.Activation,activation:{inner}}}]"
    with pytest.raises(ConfigError, match=r"augmentation\.layers\.0\.activation: must be plain values"):
        build.build(config("model.weights=null", layers), {})


def test_all_layers_of_keras_that_read_files_are_refused() -> None:
    """By the source of every layer that Keras offers, so that a new one is noticed."""
    import inspect

    import keras

    layers = dict(inspect.getmembers(keras.layers, inspect.isclass))
    modules = {base.__module__: base for layer in layers.values() for base in layer.__mro__}
    for base in keras.layers.Layer.__mro__:
        modules.pop(base.__module__)
    opens = re.compile(r"gfile|\bopen\(|\bexists\(|get_file")
    reading = {
        name for name, base in modules.items()
        if name.startswith("keras.") and opens.search(Path(inspect.getfile(base)).read_text(encoding="utf-8"))
    }  # fmt: skip
    refused = {*build.READ_FILES, *build.RUN_CODE}
    readers = {name for name, layer in layers.items() if {base.__module__ for base in layer.__mro__} & reading}
    assert {"StringLookup", "IntegerLookup"} <= readers
    assert [name for name in readers if not {base.__name__ for base in layers[name].__mro__} & refused] == []


def test_addresses_archives_and_weights_of_a_stranger_are_not_opened(
    config: Callable[..., schema.Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def expand(changes: Mapping[str, Any], *overrides: str) -> schema.Config:
        plain = logged_config(config("data=cats_vs_dogs", "regime=bottleneck"))
        for key, value in changes.items():
            plain = changed(key, value)(plain, tmp_path / "canary")
        (tmp_path / "config.yaml").write_text(dump_yaml(plain), encoding="utf-8")
        return config(*like.expand([f"like={tmp_path}", *overrides]))

    shipped = config("data=cats_vs_dogs").data
    evil = {
        "data.url": "https://evil.invalid/a.zip", "data.sha256": "0" * 64, "data.bytes": 7,
        "data.archive": "/etc/shadow", "tracking.uri": "http://evil.invalid",
    }  # fmt: skip
    found = expand(evil)
    assert found.data == shipped and found.tracking.uri != "http://evil.invalid"
    line = capsys.readouterr().err
    assert line.startswith("like: skipped") and "data.url='https://evil.invalid/a.zip'" in line
    assert "data.archive='/etc/shadow'" in line and "data.sha256=" in line
    assert expand(evil, "data.archive=/mine.zip").data.arguments["archive"] == "/mine.zip"
    for weights in ("https://evil.invalid/w.h5", "ftp://evil.invalid/w.h5", "//evil.invalid/share/w.h5"):
        with pytest.raises(ConfigError, match=r"like: model\.weights: .*not opened unless you type it") as caught:
            expand({"model.weights": weights})
        assert f"model.weights='{weights}'" in str(caught.value)
    assert expand({"model.weights": weights}, f"model.weights='{weights}'").model.weights == weights
    assert expand({"model.weights": weights}, "model=convnet").model.weights == "pretrained"
    for named in ("a" * 32, "/mine.weights.h5", None):
        assert expand({"model.weights": named}).model.weights == named
    (tmp_path / "config.yaml").unlink()
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"like: .*config\.yaml: must be a file, no directory, pipe or device"):
        like.expand([f"like={tmp_path}"])


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str, tally: Tally, tmp_path: Path) -> None:
    text, reason = TEXTS[name]
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        like.expand([f"like={tmp_path}"])
    assert str(caught.value).startswith("like: ") and len(str(caught.value)) < 1000
    tally("injection probe", 1, 1)


def test_a_stored_array_of_objects_is_not_read(tally: Tally, tmp_path: Path) -> None:
    """Neither by the store of activations nor as a checkpoint."""
    from experiments.storage import array_cache
    from experiments.storage.atomic_files import file_hash

    objects = np.array([{"a": 1}], dtype=object)
    entry = tmp_path / "numbers" / array_cache.key({"of": 1})
    entry.mkdir(parents=True)
    np.save(entry / "array.npy", objects, allow_pickle=True)
    sha256 = file_hash(entry / "array.npy")
    meta = {"spec": {"of": 1}, "shape": [1], "dtype": "|O", "sha256": sha256}
    (entry / "meta.json").write_text(str(meta).replace("'", '"'))
    assert array_cache.find_damage(entry) is not None
    tally("injection probe", 1, 1)


def test_what_is_taken_over_composes_into_the_same(config: Callable[..., schema.Config], tmp_path: Path) -> None:
    """The logged configuration of many a run, written out and read back, is the same experiment."""
    for overrides in (
        ["regime=scratch", "augmentation=randaugment", "class_weights={cats: 1.0, dogs: 2.5}"],
        ["regime=finetune", "model=mobilenet_v2", "model.weights=null", "optimizer=adamw", "schedule=cosine"],
        ["regime=bottleneck", "+model.head.dense.more={units: 9, dropout: 0.1}", "notes='it\\'s so'"],
        ["regime=finetune", "augmentation=strong", "regime.views=0", "data.root='/a b/it\\'s'", "data=folder"],
    ):
        wanted = config(*overrides)
        (tmp_path / "config.yaml").write_text(dump_yaml(logged_config(wanted)), encoding="utf-8")
        found = config(*like.expand([f"like={tmp_path}"]))
        assert run_identity(found) == run_identity(wanted), overrides
        assert found.data == wanted.data


def test_what_was_taken_away_stays_away_and_what_follows_from_other_keys_still_does(
    config: Callable[..., schema.Config], tmp_path: Path
) -> None:
    def again(wanted: schema.Config, *overrides: str) -> schema.Config:
        (tmp_path / "config.yaml").write_text(dump_yaml(logged_config(wanted)), encoding="utf-8")
        return config(*like.expand([f"like={tmp_path}", *overrides]))

    for overrides in (
        ["~model.layers.block3"], ["~model.head.dense.dense1"], ["+model.layers.block4={filters: 9}"],
        ["model.head.dense.dense1=null"], ["+model.head.dense.one-more={units: 9}", "~model.head.dense.dense1"],
    ):  # fmt: skip
        wanted = config(*overrides)
        assert run_identity(again(wanted)) == run_identity(wanted), overrides
    first = config("regime=scratch", "optimizer.lr=0.5")
    assert again(first, "+model.layers.block4={filters: 9}").model.blocks == ["block1", "block2", "block3", "block4"]
    assert again(first, "model=mobilenet_v2", "model.weights=null").data.image_size == 224
    tuned = again(config("regime=bottleneck", "optimizer.lr=0.3", "optimizer.ema_momentum=0.5"), "regime=finetune")
    assert (tuned.optimizer.name, tuned.regime.name) == ("adamw_finetune", "finetune") and tuned.optimizer.lr != 0.3
    head = config("regime=finetune", "optimizer@regime.head_optimizer=adam", "regime.head_optimizer.beta_1=0.8")
    assert again(head, "optimizer@regime.head_optimizer=sgd").regime.head_optimizer.name == "sgd"


def test_a_configuration_of_an_earlier_version_is_completed(
    config: Callable[..., schema.Config], tmp_path: Path
) -> None:
    plain = logged_config(config("epochs=7"))
    del plain["data"]["on_bad"], plain["loss"], plain["evaluate"]
    (tmp_path / "config.yaml").write_text(dump_yaml(plain), encoding="utf-8")
    found = config(*like.expand([f"like={tmp_path}"]))
    assert (found.epochs, found.data.on_bad, found.loss) == (7, "error", "cross_entropy")


def test_the_values_of_options_stay_with_them(tmp_path: Path, config: Callable[..., schema.Config]) -> None:
    (tmp_path / "config.yaml").write_text(dump_yaml(logged_config(config("epochs=7", "seed=5"))), "utf-8")
    given = like.expand(["--config-dir", str(tmp_path), "-m", f"like={tmp_path}", "seed=1,2"])
    assert given == ["--config-dir", str(tmp_path), "-m", "++epochs=7", "seed=1,2"]


@pytest.mark.parametrize("text", ["it's", "a\\b", "a\\", "\\'", "a\\\\'b\\", "plain", "", "{a: 1}", "a,b"])
def test_quoted_values_come_back_as_they_were(text: str, config: Callable[..., schema.Config]) -> None:
    assert config(f"notes={quoted(text)}").notes == text


def test_overrides_come_on_top_and_a_group_chosen_anew_is_chosen_whole(
    config: Callable[..., schema.Config], tmp_path: Path
) -> None:
    wanted = config("regime=finetune", "optimizer.lr=0.5", "model.head.dropout=0.9", "epochs=7")
    (tmp_path / "config.yaml").write_text(dump_yaml(logged_config(wanted)), encoding="utf-8")
    found = config(*like.expand(["epochs=8", f"like={tmp_path}", "optimizer=adam"]))
    assert found.epochs == 8 and found.optimizer.name == "adam" and found.optimizer.lr != 0.5
    assert found.model.head.dropout == 0.9 and found.regime.name == "finetune"
    for preset in ("experiment=tutorial_scratch", "debug=fast"):
        with pytest.raises(ConfigError, match=f"like: .*{preset}"):
            like.expand([f"like={tmp_path}", preset])
    with pytest.raises(ConfigError, match="one run at a time"):
        like.expand([f"like={tmp_path}", f"like={tmp_path}"])
    with pytest.raises(ConfigError, match=r"^like: \S*config\.yaml: No such file .*its MLflow id$"):
        like.expand([f"like={tmp_path.parent}"])


@pytest.mark.parametrize("way", ["${data.root}", "${ data.root }", "${data[root]}", "${oc.select:data.root}"])
def test_no_way_around_hides_the_environment(
    way: str, config: Callable[..., schema.Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    monkeypatch.setenv("NUMBER", "0.123")
    found = config("data=folder", "data.root=${oc.env:SECRET}", f"notes={way}", "+tags={of.dot: '${oc.env:SECRET}'}")
    assert found.notes == "hidden" and "hidden" not in dump_yaml(logged_config(found))
    assert hidden(found, "no folder hidden/x") == "no folder ${oc.env:SECRET}/x"
    nested = config("optimizer=sgd", "optimizer.clipnorm='${oc.decode:${oc.env:NUMBER}}'")
    assert nested.optimizer.clipnorm == 0.123 and "0.123" not in dump_yaml(logged_config(nested))


def test_what_comes_from_the_environment_is_logged_as_it_was_written(
    config: Callable[..., schema.Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from experiments.config.identity import logged
    from experiments.tracking.description import flat_parameters

    monkeypatch.setenv("SECRET", str(tmp_path / "hidden"))
    found = config("data=folder", "data.root=${oc.env:SECRET}/photos", "notes=${data.root}", "model.weights=null")
    assert found.data.arguments["root"] == f"{tmp_path}/hidden/photos"
    text = dump_yaml(logged_config(found))
    assert "hidden" not in text and "root: ${oc.env:SECRET}/photos" in text and "notes: ${data.root}" in text
    assert flat_parameters(logged(found))["data.root"] == "${oc.env:SECRET}/photos"
    assert run_identity(found) == run_identity(config("data=folder", "data.root=elsewhere", "model.weights=null"))
