"""Overrides: errors show how to type a value, and what they show is accepted; data.root alone means a folder."""

from __future__ import annotations

import random
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote
from omegaconf import OmegaConf

from experiments.config import composing
from experiments.config.hydra_errors import explain
from experiments.config.overrides import as_typed, implies_folder, literal, quoted
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.sweeps.sweeper import Sweeper
from experiments.train import deferring, with_data_source


def value_of(override: str) -> str:
    """Return what a configuration holds after an override."""
    return str(OmegaConf.create({"key": OverridesParser.create().parse_override(override).value()}).key)


def test_any_text_can_be_typed() -> None:
    draw = random.Random(0)
    for _ in range(200):
        text = "".join(draw.choice("ab'\"\\${}()[],=#;&~ é1:%\n") for _ in range(draw.randint(1, 7))).lstrip("~")
        for quote in Quote:
            assert value_of(f"key={quoted(text, quote)}") == text
        typed = as_typed("key", text)
        assert typed is not None
        (word,) = shlex.split(typed)
        assert value_of(word) == text


@pytest.mark.parametrize(
    "text, typed",
    [
        ("/data/plain", "data.root=/data/plain"),
        ("/data/archive (1)", "'data.root=\"/data/archive (1)\"'"),
        ("a=b", "'data.root=\"a=b\"'"),
        ("/Fotos/Hündchen", "'data.root=\"/Fotos/Hündchen\"'"),
        ("a,b", "'data.root=\"a,b\"'"),
        ("2024", "'data.root=\"2024\"'"),
        ("~/x", "data.root=/people/me/x"),
    ],
)
def test_what_is_shown_is_what_works(
    text: str, typed: str, config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/people/me")
    assert as_typed("data.root", text) == typed
    assert config("data=folder", *shlex.split(typed)).data.arguments["root"] == text.replace("~", "/people/me")


@pytest.mark.parametrize(
    "override, line",
    [
        ("data.root=/a (1)", "As text it is typed: 'data.root=\"/a (1)\"'"),
        ("+tags.why=é", "As text it is typed: '+tags.why=\"é\"'"),
        ("data.root=[a", "A list ends with ], and what is special in it is quoted, too. As text it is typed:"),
        ("notes=a,b", "several values are a sweep: add -m. One text: 'notes=\"a,b\"'. A list: 'notes=[a,b]'"),
        ("optimizer=adam,sgd", "optimizer=adam,sgd: several values are a sweep: add -m"),
        ("seed=0,1", "seed=0,1: several values are a sweep: add -m"),
        ("optimizer.lr=1e-3,1e-4", "optimizer.lr=1e-3,1e-4: several values are a sweep: add -m"),
        ("data.classes=a,b", "add -m. One text: 'data.classes=\"a,b\"'. A list: 'data.classes=[a,b]'"),
        ("notes", "notes: not an override that Hydra can read. Allowed: KEY=VALUE, +KEY=VALUE, ~KEY"),
    ],
)
def test_hydras_errors_say_what_to_type(override: str, line: str, config: Callable[..., Config]) -> None:
    with pytest.raises(Exception) as caught:
        config(override)
    text = explain(caught.value, [override])
    assert text is not None and line in text
    if "sgd" in override or "1" in override:
        assert "One text" not in text and "A list" not in text, "a choice and a number are neither"


@pytest.mark.parametrize(
    "value, classes",
    [
        ("[my cats,Äpfel & Birnen]", ["my cats", "Äpfel & Birnen"]),
        ('["a, b",c (1)]', ["a, b", "c (1)"]),
        ("{wild: [Füchse,owls], pets: [cats & dogs]}", {"wild": ["Füchse", "owls"], "pets": ["cats & dogs"]}),
    ],
)
def test_the_list_that_is_shown_for_an_unreadable_one_is_that_list(
    value: str, classes: object, config: Callable[..., Config]
) -> None:
    with pytest.raises(Exception) as caught:
        config(f"data.classes={value}")
    text = explain(caught.value, [f"data.classes={value}"])
    assert text is not None
    typed = text.split("is quoted, too: ")[1].split(". As text it is typed: ")[0]
    assert config(*shlex.split(typed)).data.classes == classes


@pytest.mark.parametrize(
    "overrides, typed",
    [
        (["seed=1", "data.root=My", "Photos", "of", "2026", "epochs=3"], "'data.root=My Photos of 2026'"),
        (["data.classes=[cats,", "Äpfel]"], "'data.classes=[cats,\"Äpfel\"]'"),
        (["data.root=/Fotos/Blüten", "(neu)", "seed=1"], "'data.root=\"/Fotos/Blüten (neu)\"'"),
        (["data.classes=[cats,", "dogs]"], "'data.classes=[cats, dogs]'"),
        (["data.classes=[cats,", "great", "danes]", "~notes"], "'data.classes=[cats, great danes]'"),
        (["model.head.dropout=0.2,", "0.5"], "'model.head.dropout=0.2, 0.5'"),
        (["regime=finetune", "data.root=/a (1)", "seed=1"], None),
        (["finetune", "seed=1"], None),
        (["finetune", "vgg16"], None),
    ],
)
def test_what_the_shell_has_divided_is_shown_as_one_argument(
    overrides: list[str], typed: str | None, config: Callable[..., Config]
) -> None:
    with pytest.raises(Exception) as caught:
        config(*overrides)
    text = explain(caught.value, overrides)
    assert text is not None
    if typed is None:
        assert "The shell divides" not in text
        return
    assert text.endswith(f"The shell divides arguments at spaces. As one argument: {typed}")
    key, _, value = shlex.split(typed)[0].partition("=")
    assert OverridesParser.create().parse_override(f"{key}={value}").key_or_group == key


def test_an_argument_may_have_the_quotes_of_the_grammar() -> None:
    assert [literal(text) for text in ("'a b'", '"it\'s"', "plain", "it's (1)", "7")] == [
        "a b", "it's", "plain", "it's (1)", "7"
    ]  # fmt: skip


def test_a_yaml_file_with_an_error_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for text in ("name: mine\n\troot: x\n", "name: mine\nname: other\n"):
        (tmp_path / "data" / "mine.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r'A YAML file cannot be read: .*data/mine\.yaml", line 2, column 1'):
            composing.read(["data=mine"], tmp_path)


def test_a_missing_folder_of_choices_is_refused(tmp_path: Path) -> None:
    for overrides in (["model=mine"], ["epochs=3"]):
        with pytest.raises(ConfigError, match=f"^--config-dir: there is no such folder. Received: {tmp_path}/none$"):
            composing.read(overrides, tmp_path / "none")
    with warnings.catch_warnings(action="error"):
        assert not implies_folder(["data.root=/x", "experiment=mine"], tmp_path / "none")


# --- data.root alone


@pytest.mark.parametrize(
    ("overrides", "implied"),
    [
        (["data.root=/x"], True),
        (["++data.root=/x", "model=vgg16,vgg19", "data.fold=0,1"], True),
        (["data.root=/a,/b"], True),
        (["experiment=demo", "data.root=/x"], True),
        (["experiment=tutorial_scratch", "data.root=/x"], False),  # it brings data=folder itself
        (["data=synthetic", "data.root=/x"], False),
        (["data=folder", "data.root=/x"], False),
        (["data.image_size=32"], False),
        (["data.root=/a (1)"], False),  # an error of Hydra's grammar
        (["experiment=none_such", "data.root=/x"], False),
    ],
)
def test_a_folder_is_implied_by_data_root_and_by_no_other_data_source(overrides: list[str], implied: bool) -> None:
    assert implies_folder(overrides) == implied


def test_a_data_source_of_your_own_with_a_root_is_kept(tmp_path: Path) -> None:
    for folder in ("data", "experiment"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data/mine.yaml").write_text("name: mine\n_target_: mine.images\nroot: ???\n")
    preset = "# @package _global_\ndefaults:\n  - override /data: mine\n"
    (tmp_path / "experiment/with_mine.yaml").write_text(preset)
    assert not implies_folder(["experiment=with_mine", "data.root=/x"], tmp_path)
    assert composing.read(["experiment=with_mine", "data.root=/x"], tmp_path).data.target == "mine.images"


def test_data_root_alone_composes_a_folder() -> None:
    for given in (["data.root=/x"], ["data.root=/x", "experiment=demo"]):
        config = composing.read(given)
        assert (config.data.name, config.data.arguments["root"]) == ("folder", "/x")


def test_another_data_source_beside_data_root_is_an_error() -> None:
    with pytest.raises(ConfigError, match="data.root: nothing reads this key.*leave out the other data source"):
        composing.read(["data=synthetic", "data.root=/x"])


def test_a_folder_of_choices_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config-dir: there is no such folder\. Received: .*/nowhere"):
        composing.read([], tmp_path / "nowhere")


def test_train_and_its_sweeps_get_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["--cfg", "job", "epochs=2", "data.root=/x"]
    assert with_data_source(command) == ["--cfg", "job", "data=folder", "epochs=2", "data.root=/x"]
    assert with_data_source(["epochs=2"]) == ["epochs=2"]
    monkeypatch.setattr(Sweeper, "typed", None)
    sweep = with_data_source(["-m", "model=convnet,vgg16", "data.root=/x"])
    assert deferring(sweep) == ["-m", "data=folder", "model=convnet,vgg16"]
    assert Sweeper.typed == ["data=folder", "model=convnet,vgg16", "data.root=/x"]
