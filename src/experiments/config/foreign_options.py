"""Options typed as in other tools (Lightning's Hydra template, argparse scripts), with what they are called here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from experiments.config.choices import shipped
from experiments.config.messages import format_errors, is_known_key
from experiments.config.schema import GROUPS
from experiments.errors import ConfigError
from experiments.system.private_api import get_args_parser

# Key here -> its names in other tools. None of them is a key here, which a test checks.
OTHER_NAMES = {
    "epochs": "max_epochs num_epochs n_epochs trainer.max_epochs trainer.epochs training.epochs train.epochs",
    "optimizer.lr": "lr learning_rate optimizer.learning_rate model.lr model.optimizer.lr trainer.lr",
    "optimizer.weight_decay": "weight_decay model.optimizer.weight_decay",
    "optimizer.clipnorm": "trainer.gradient_clip_val",
    "optimizer.gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "batch_size": "bs batch data.batch_size datamodule.batch_size train.batch_size training.batch_size",
    "data.root": "data_root data_dir data_path dataset paths.data_dir data.data_dir data.path data.dir",
    "data.image_size": "imgsz image_size img_size data.img_size",
    "early_stopping": "patience callbacks.early_stopping.patience",
    "model": "arch backbone architecture",
    "model.head.dropout": "dropout model.dropout",
    "seed": "random_seed seed_everything",
    "runtime.precision": "trainer.precision precision",
    "runtime.devices": "trainer.devices devices",
    "runtime.threads": "threads",
    "runtime.deterministic": "trainer.deterministic",
    "hydra.run.dir": "output_dir save_dir",
    "tracking.uri": "tracking_uri mlflow.tracking_uri tracking.tracking_uri",
    "tracking.experiment": "experiment_name project mlflow.experiment_name tracking.experiment_name wandb.project",
    "sweep.jobs": "n_jobs hydra.launcher.n_jobs",
    "sweep.trials": "n_trials hydra.sweeper.n_trials",
}
KEYS = {name: key for key, names in OTHER_NAMES.items() for name in names.split()}
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
    """Raise ConfigError for options of other tools, with the equivalent of each here.

    With --config-dir or --config-path, keys may be the user's own: only options with dashes are refused.
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
    key = "data.root" if key == "data" and value not in shipped("data") else KEYS.get(key, key)
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
    if key in GROUPS and value.startswith("["):  # Hydra would merge the files of all of these choices
        alternatives = shlex.quote(f"{key}={value.strip('[]')}")
        return f"{override}: a list of choices would mix them. One choice: {key}=NAME. Each in turn: -m {alternatives}"
    is_added = override.startswith("+") and not override.startswith("++") and key in (*GROUPS, "experiment")
    return f"{override}: {key}={value}, without the plus" if is_added and value in shipped(key) else None
