"""Options as other tools name them are refused with their names here, before TensorFlow is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from experiments.config import foreign_options
from experiments.config.arguments import ARGUMENTS
from experiments.config.choices import shipped
from experiments.config.schema import Config
from experiments.errors import ConfigError


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["--epochs", "3"], "--epochs 3: options are typed KEY=VALUE, without dashes: epochs=3"),
        (["--batch-size=16"], "--batch-size=16: options are typed KEY=VALUE, without dashes: batch_size=16"),
        (["--data-dir", "my images"], "without dashes: 'data.root=my images'"),
        (["--data", "my images"], "without dashes: 'data.root=my images'"),
        (["--data", "csv"], "without dashes: data=csv"),
        (["--lr", "1e-3"], "--lr 1e-3: options are typed KEY=VALUE, without dashes: optimizer.lr=1e-3"),
        (["--nonsense"], "--nonsense: no such option. Options are typed KEY=VALUE"),
        (
            ["trainer.max_epochs=3"],
            "trainer.max_epochs: nothing reads this key. Received: '3'. Nearest: epochs. Type: epochs=3",
        ),
        (
            ["-m", "learning_rate=0.1,0.2"],
            "learning_rate: nothing reads this key. Received: '0.1,0.2'. Nearest: optimizer.lr. Type: optimizer.lr=0",
        ),
        (["ckpt_path=/a/last.ckpt"], "ckpt_path=/a/last.ckpt: an interrupted run goes on with resume=RUN"),
        (["logger=csv"], "logger=csv: every run writes curves.csv"),
        (["+experiment=demo"], "+experiment=demo: experiment=demo, without the plus"),
        (
            ["model=[vgg16,convnet]"],
            "a list of choices would mix them. One choice: model=NAME. Each in turn: -m model=vgg16",
        ),
    ],
)
def test_the_equivalent_is_named(command: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        foreign_options.check(command)
    assert line in str(raised.value).splitlines()[1]


def test_all_are_named_in_one_error() -> None:
    with pytest.raises(ConfigError) as raised:
        foreign_options.check(["seed=1", "--epochs", "3", "logger=csv", "+experiment=demo", "batch_size=8"])
    assert [line.split(":")[0] for line in str(raised.value).splitlines()[1:]] == [
        "  --epochs 3", "  logger=csv", "  +experiment=demo"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        ["epochs=3", "optimizer.lr=0.1", "experiment=demo", "~schedule", "+tags.question=x"],
        ["-m", "seed=0,1", "--cfg", "job", "--resolve"],
        ["--config-dir", "mine", "+experiment=own", "logger=csv", "model=[vgg16,mine]"],  # choices of the user's own
        ["resume=20261129-121932"],
    ],
)
def test_other_commands_pass(command: list[str]) -> None:
    foreign_options.check(command)


def test_no_name_of_another_tool_is_a_key_here() -> None:
    of_components = {
        f"{group}.{name}" for group in ARGUMENTS for choice in shipped(group).values() for name in choice
    } | {f"{group}.{name}" for group, names in ARGUMENTS.items() for name in names}
    names = {*foreign_options.KEYS, *foreign_options.ADVICE}
    assert not names & {*Config.model_fields, *of_components}


def test_train_refuses_them_without_tensorflow() -> None:
    code = (
        "import sys; sys.argv = ['train', 'trainer.max_epochs=3', '--epochs', '3']\n"
        "from experiments.train import main\n"
        "try: main()\n"
        "except SystemExit as ended: print(ended.code); assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        "epochs=3" in done.stdout
        and "trainer.max_epochs: nothing reads this key. Received: '3'. Nearest: epochs. Type: epochs=3" in done.stdout
    )
