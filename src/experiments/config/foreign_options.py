"""Options typed as in other tools (Lightning's Hydra template, argparse scripts), with what they are called here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from experiments.config.choices import shipped
from experiments.config.messages import format_errors, is_known_key
from experiments.config.schema import GROUPS
from experiments.errors import ConfigError
from experiments.system.private_api import get_args_parser

# Names in other tools -> the key here. None of them is a key here, which a test checks.
KEYS = {
    "max_epochs": "epochs", "num_epochs": "epochs", "n_epochs": "epochs", "trainer.max_epochs": "epochs",
    "trainer.epochs": "epochs", "training.epochs": "epochs", "train.epochs": "epochs",
    "lr": "optimizer.lr", "learning_rate": "optimizer.lr", "optimizer.learning_rate": "optimizer.lr",
    "model.lr": "optimizer.lr", "model.optimizer.lr": "optimizer.lr", "trainer.lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay", "model.optimizer.weight_decay": "optimizer.weight_decay",
    "bs": "batch_size", "batch": "batch_size", "data.batch_size": "batch_size", "datamodule.batch_size": "batch_size",
    "train.batch_size": "batch_size", "training.batch_size": "batch_size",
    "data_root": "data.root", "data_dir": "data.root", "data_path": "data.root", "dataset": "data.root",
    "paths.data_dir": "data.root", "data.data_dir": "data.root", "data.path": "data.root", "data.dir": "data.root",
    "imgsz": "data.image_size", "image_size": "data.image_size", "img_size": "data.image_size",
    "data.img_size": "data.image_size", "patience": "early_stopping",
    "callbacks.early_stopping.patience": "early_stopping", "dropout": "model.head.dropout",
    "model.dropout": "model.head.dropout", "random_seed": "seed", "seed_everything": "seed",
    "trainer.precision": "runtime.precision", "precision": "runtime.precision",
    "trainer.devices": "runtime.devices", "devices": "runtime.devices", "threads": "runtime.threads",
    "trainer.deterministic": "runtime.deterministic", "output_dir": "hydra.run.dir", "save_dir": "hydra.run.dir",
    "trainer.accumulate_grad_batches": "optimizer.gradient_accumulation_steps",
    "trainer.gradient_clip_val": "optimizer.clipnorm", "arch": "model", "backbone": "model", "architecture": "model",
    "n_trials": "sweep.trials", "hydra.sweeper.n_trials": "sweep.trials",
}  # fmt: skip
# Names whose value means something else here -> what to type instead.
ADVICE = {
    "ckpt_path": "an interrupted run goes on with resume=RUN, a finished one with continue=RUN epochs=N; weights to "
    "start from are model.weights=RUN; a trained model is used by: experiments predict RUN IMAGE",
    "resume_from_checkpoint": "an interrupted run goes on with resume=RUN",
    "checkpoint": "an interrupted run goes on with resume=RUN; weights to start from are model.weights=RUN",
    "logger": "every run writes curves.csv, metrics.json and figures to its folder, and to MLflow: tracking.uri=URI "
    "chooses where, tracking.uri=null leaves MLflow out",
    "trainer": "runs use all processors, and GPUs where there are any: runtime.devices, runtime.precision",
    "callbacks": "early_stopping=EPOCHS and best_weights=true|false are keys of their own",
    "train": "to train is the default; for a finished model: experiments predict RUN IMAGE",
    "test": "evaluate.test=true|false decides whether the test images are evaluated",
}  # fmt: skip
ADVICE |= {"checkpoint_path": ADVICE["ckpt_path"], "trainer.resume_from_checkpoint": ADVICE["resume_from_checkpoint"]}


def check(command: Sequence[str]) -> None:
    """Refuse options of other tools with the equivalent here, before anything else reads the command line.

    Args:
        command: the arguments of `train`. With --config-dir or --config-path, keys may be the user's own: of these
            only options with dashes are refused.

    Raises:
        ConfigError: there is such an option; the message has a line for each.
    """
    given, unknown = get_args_parser().parse_known_args(list(command))
    lines = [_dashed(option, command) for option in unknown if option.startswith("--") and option != "--"]
    if not given.config_dir and not given.config_path:
        # argparse counts the overrides after an unknown option as unknown, too.
        typed = [text for text in (*given.overrides, *unknown) if "=" in text and not text.startswith("-")]
        lines += [line for line in map(_equivalent, typed) if line]
    if lines:
        raise ConfigError(format_errors(lines))


def _dashed(option: str, command: Sequence[str]) -> str:
    """Return the line about an option that is typed with dashes, with its value, which may be the next argument."""
    name, equals, value = option.removeprefix("--").partition("=")
    if not equals:
        following = list(command)[list(command).index(option) + 1 :][:1]
        value = following[0] if following and not following[0].startswith("-") and "=" not in following[0] else ""
    key = name.replace("-", "_")
    typed = option if equals or not value else f"{option} {value}"
    if key in ADVICE:
        return f"{typed}: {ADVICE[key]}"
    key = KEYS.get(key, key)
    if is_known_key(key.partition(".")[0]) or key.startswith("hydra."):
        override = shlex.quote(f"{key}={value or '...'}")
        return f"{typed}: options are typed KEY=VALUE, without dashes: {override}"
    return f"{typed}: no such option. Options are typed KEY=VALUE, as in epochs=3; all keys: docs/configuration.md"


def _equivalent(override: str) -> str | None:
    """Return the line about an override whose key has another name here; None if it has none."""
    key, _, value = override.lstrip("+~").partition("=")
    if key in ADVICE:
        return f"{override}: {ADVICE[key]}"
    if key in KEYS:
        equivalent = shlex.quote(f"{KEYS[key]}={value}")
        return f"{key}: nothing reads this key. Received: {value!r}. Nearest: {KEYS[key]}. Type: {equivalent}"
    is_added = override.startswith("+") and not override.startswith("++") and key in (*GROUPS, "experiment")
    return f"{override}: {key}={value}, without the plus" if is_added and value in shipped(key) else None
