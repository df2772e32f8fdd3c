"""The jobs of a sweep, composed and validated before any of them starts, without TensorFlow or MLflow."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from experiments.config import credentials, messages, validation
from experiments.config.hydra_errors import explain
from experiments.config.identity import effective
from experiments.config.overrides import quoted, spelled
from experiments.config.schema import GROUPS, Config
from experiments.errors import ConfigError
from experiments.runs.active_run import AUTO
from experiments.runs.command import arguments, format_command
from experiments.runs.run_directory import JOB, RunDirectory
from experiments.storage import atomic_files
from experiments.system.private_api import CachingConfigRepository
from experiments.system.redaction import redact_credentials
from experiments.training.types import Status

# Nodes of `hydra` that configure the whole sweep and not a single job.
HYDRA_NODES = ("sweeper", "launcher", "sweep")
Combination = tuple[list[str], dict[str, str]]  # the overrides of a job, and its values of the swept keys


@dataclass(frozen=True)
class PlannedRun:
    """A job as its process receives it: completely composed, so that the process composes nothing."""

    folder: Path
    identity: str  # the identity that the run must have
    config: Config
    hydra: DictConfig  # see `Job`
    arguments: list[str]  # command line of the equivalent single run


@dataclass(frozen=True)
class Place:
    """The position of a job in a ladder sweep."""

    rung: str
    over: str  # the rung that this one builds on if it begins with `best`; else ""
    ladder: Mapping[str, str]  # values of the keys that are swept besides: each combination has a ladder of its own


@dataclass
class Job:
    """One run of a sweep."""

    number: int
    overrides: list[str]  # as typed, one value per key
    values: dict[str, str]  # of the swept keys
    config: Config
    folder: Path  # the job's directory, or that of an earlier run that is reused, if that is on this machine
    hydra: DictConfig | None = None  # the composed configuration, with Hydra's own settings in its node `hydra`
    identity: str = ""
    status: Status = Status.NEW  # or PARTIAL, FINISHED (trained before, in part or completely), FAILED, PRUNED
    reason: str = ""  # why it failed or was pruned
    threads: int | None = None  # the thread count that a partial run started with
    same_as: int | None = None  # number of the job with the same identity, whose result this job shares
    trial: str | None = None  # STUDY/NUMBER of the search trial to which the job reports its validation scores
    trained: str | None = None  # for a final run of the winner: directory of the job whose weights it evaluates
    place: Place | None = None  # in a ladder sweep
    final: bool = False  # a final run of the winner, which starts after all other jobs
    run_id: str | None = None  # of its MLflow run
    deleted: str | None = None  # id of its MLflow run that was deleted, so that the job is trained again
    seconds: float | None = None  # its duration, if it ended in this start of the sweep

    def reuse(self, facts: Mapping[str, Any]) -> None:
        """Take over a run with these facts: its result if it has finished, else its checkpoints and thread count."""
        finished = facts.get("status") == Status.FINISHED
        self.status, self.run_id = Status.FINISHED if finished else Status.PARTIAL, facts.get("run_id")
        self.threads = None if finished else facts.get("threads")

    def write(self, sweep: Path) -> None:
        """Write the job's record, from which summaries are made, into its subdirectory of the sweep's directory."""
        known = {
            "number": self.number, "overrides": self.overrides, "values": self.values, "identity": self.identity,
            "folder": str(self.folder), "status": self.status, "reason": redact_credentials(self.reason),
            "run_id": self.run_id, "seconds": self.seconds, "final": self.final,
            **({"place": asdict(self.place)} if self.place else {}),
        }  # fmt: skip
        atomic_files.write_json(sweep / str(self.number) / JOB, known)


@dataclass(frozen=True)
class InspectedJobs:
    """What the jobs of a sweep share, found by building their networks and reading their data."""

    lines: list[str]  # for the plan
    features_missing: bool  # whether features that jobs share are still to be computed
    seconds: float | None  # usual duration of a job; None if it is not known
    held_out: bool  # whether all jobs have test images, which are reserved for the winner


class ReadOnce(CachingConfigRepository):
    """Hydra's config repository with each YAML file read once, so that edits during a sweep affect none of its jobs."""

    def __deepcopy__(self, memo: Any) -> ReadOnce:
        return self  # Hydra copies the repository for every job, and a copy would read the files again

    def load_config(self, config_path: str) -> Any:
        return copy.deepcopy(super().load_config(config_path))  # composing a job modifies the loaded config


def parse(arguments: Sequence[str], context: HydraContext) -> list[Override]:
    """Return overrides as Hydra parses them, the last one of each key; raise ConfigError if it repeats a value."""
    parsed = OverridesParser.create(config_loader=context.config_loader).parse_overrides(list(arguments))
    overrides = {override.get_key_element().lstrip("+~"): override for override in parsed}
    wrong = []
    for key, override in overrides.items():
        known: list[Any] = []
        for value in override.sweep_iterator() if override.is_discrete_sweep() else ():
            if any(other == value and isinstance(other, bool) == isinstance(value, bool) for other in known):
                wrong.append(
                    f"{key}: {value} is given twice. It would be one and the same run, counted as two. Give each value "
                    f"once. Received: {override.input_line}"
                )
            known.append(value)
    if wrong:
        raise ConfigError(messages.format_errors(wrong))
    return list(overrides.values())


def deferred(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that apply to single jobs only: values within a group, where groups are swept.

    Hydra first composes one configuration for the whole sweep, without the swept keys. For `optimizer=adam,adamw
    optimizer.beta_1=0.8` it contains the default optimizer, which may have no beta_1.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    scalars = Config.model_fields.keys() - GROUPS.keys()
    swept = [override for override in parsed if override.is_sweep_override() and "." not in str(override.key_or_group)]
    if all(override.key_or_group in scalars for override in swept):
        return []
    return [
        str(override.input_line)
        for override in parsed
        if not override.is_sweep_override()
        and "." in override.key_or_group
        and override.key_or_group.partition(".")[0] in GROUPS
    ]


def grid(overrides: Sequence[Override]) -> list[Combination]:
    """Return every combination of values."""
    swept = {override.get_key_element().lstrip("+~") for override in overrides if override.is_sweep_override()}
    jobs = []
    for chosen in itertools.product(*map(spelled, overrides)):
        values = dict(line.lstrip("+~").split("=", 1) for line in chosen if "=" in line)
        jobs.append((list(chosen), {key: value for key, value in values.items() if key in swept}))
    return jobs


def compose(combinations: Sequence[Combination], context: HydraContext, master: DictConfig) -> list[Job]:
    """Return a validated job without a directory for each combination; raise ConfigError with the problems of all."""
    found, wrong = [], dict[str, list[dict[str, str]]]()  # messages, and the values of the jobs that they are about
    before: Any = HydraConfig.instance().cfg
    try:
        for number, (overrides, values) in enumerate(combinations):
            try:
                composed: Any = context.config_loader.load_sweep_config(master, list(overrides))
                composed.hydra.job.num = number
                HydraConfig.instance().cfg = composed  # so that ${hydra:...} resolves to this job's values
                check_hydra(composed, master, overrides)
                credentials.conceal(composed)
                found.append(Job(number, overrides, values, validation.validate(composed), Path(), composed))
            except Exception as error:
                text = str(error) if isinstance(error, ConfigError) else explain(error, overrides)
                if text is None:
                    raise
                for line in messages.lines_of(text):
                    wrong.setdefault(line, []).append(values)
    finally:
        HydraConfig.instance().cfg = before
    if wrong:
        raise ConfigError(messages.format_errors(_with_values(wrong, len(combinations))))
    return found


def _with_values(wrong: Mapping[str, Sequence[Mapping[str, str]]], jobs: int) -> list[str]:
    """Return each message once, and unless it is about all jobs, with the values that those it is about have in common.

    If these have none in common, they are the values of the first one. The value of a message's own key is in it.
    """
    lines = []
    for line, found in wrong.items():
        common = {key: value for key, value in found[0].items() if all(other.get(key) == value for other in found)}
        own = line.partition(":")[0]
        about = format_values({key: value for key, value in (common or found[0]).items() if key != own})
        lines.append(line if len(found) == jobs > 1 or not about else f"{line} (with {about})")
    return lines


def check_hydra(composed: DictConfig, master: DictConfig, overrides: Collection[str]) -> None:
    """Raise ConfigError if a swept choice contains settings of the sweep itself, which would be ignored."""
    given = {line.lstrip("+~").partition("=")[0] for line in overrides}
    for name in HYDRA_NODES:
        own, common = (OmegaConf.to_container(config.hydra[name], resolve=False) for config in (composed, master))
        assert isinstance(own, dict) and isinstance(common, dict)
        if name == "sweep":
            own["dir"] = common["dir"]  # not compared, because the sweeper sets it
        lost = {key: value for key, value in (own.pop("params", None) or {}).items() if key not in given}
        common.pop("params", None)
        if lost:
            swept = shlex.join(f"{key}={value}" for key, value in lost.items())
            raise ConfigError(
                f"hydra.sweeper.params: this choice brings a grid of its own ({swept}), which a sweep over several "
                f"choices does not run. Run that choice in a command of its own, or type the grid, for all choices"
            )
        if own != common:
            raise ConfigError(
                f"hydra.{name}: a choice that is swept over brings other settings of the sweep itself. Allowed: one "
                "setting for all jobs, given on the command line"
            )


def planned(job: Job, settings: Mapping[str, Any]) -> PlannedRun:
    """Return a job as its process receives it; it continues the run in its directory, if there is one.

    Args:
        settings: what the sweep sets, by dotted key of the configuration: texts, numbers, booleans; None leaves a key
            as it was composed. The overrides of the equivalent single run, for its log and for `resume=FOLDER`, have
            them instead of what was typed.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    texts = {key: quoted(value) if isinstance(value, str) else str(value).lower() for key, value in given.items()}
    given["resume"] = AUTO
    hydra: Any = copy.deepcopy(job.hydra)
    with open_dict(hydra), read_write(hydra):
        OmegaConf.update(hydra, "hydra.overrides.task", with_values(job.overrides, texts | {"resume": AUTO}))
        for key, value in given.items():  # so that .hydra/config.yaml shows them
            OmegaConf.update(hydra, key, value)
        hydra.hydra.job.num = job.number
        hydra.hydra.run.dir = str(job.folder)
        hydra.hydra.sweep.dir, hydra.hydra.sweep.subdir = str(job.folder.parent), job.folder.name
    command = [*arguments(format_command(hydra.hydra)), f"hydra.run.dir={quoted(str(job.folder))}"]
    return PlannedRun(job.folder, job.identity, changed(job.config, given), hydra, command)


def with_values(overrides: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Return overrides with other values of some keys, which may have a leading + and come last."""
    keys = {key.lstrip("+~") for key in values}
    kept = [line for line in overrides if line.lstrip("+~").partition("=")[0] not in keys]
    return [*kept, *(f"{key}={value}" for key, value in values.items())]


def changed(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return a validated configuration with other values of dotted keys, without validating it again."""
    for key, value in settings.items():
        group, _, name = key.rpartition(".")
        update = {name: value}
        if group:
            update = {group: getattr(config, group).model_copy(update=update)}
        config = config.model_copy(update=update)
    return config


def has_weights(folder: Path, identity: str) -> bool:
    """Return whether a directory holds the finished run of this identity with the weights that restore its model.

    A run whose regime does not declare what it trains has recorded no weights; a sweep trains it again.
    """
    directory = RunDirectory(folder)
    names = directory.facts().get("weights") or []
    finished = directory.finished(identity) is not None
    return finished and bool(names) and all(directory.weights(name).is_file() for name in names)


def is_folded(overrides: Sequence[str]) -> bool:
    """Return whether a job validates on a fold of the training images, and leaves the given ones unread."""
    folds = [line.partition("=")[2] for line in overrides if line.lstrip("+").startswith("data.fold=")]
    return bool(folds) and folds[-1] != "null"


def format_values(values: Mapping[str, str]) -> str:
    """Return values by key as one line, such as `seed=0 epochs=5`."""
    return " ".join(f"{key}={value}" for key, value in values.items())


def format_short(values: Mapping[str, str]) -> str:
    """Return values as `format_values` does, with short keys."""
    return format_values(dict(zip(short_keys(values), values.values(), strict=True)))


def short_keys(keys: Collection[str]) -> list[str]:
    """Return keys without their group, such as `unfrozen_blocks`, unless another key has this name."""
    short = [key.partition(".")[2] or key for key in keys]
    return [
        name if short.count(name) == 1 and name not in Config.model_fields else key
        for key, name in zip(keys, short, strict=True)
    ]


def format_time(seconds: float, runs: float, slots: int) -> str:
    """Return how long runs take, as text, of which one takes so many seconds and `slots` run at a time."""
    total = seconds * math.ceil(runs / slots)
    return f"about {total / 60:.0f} min" if total >= 90 else f"about {total:.0f} s"


def sweep_name(config: Config, jobs: Sequence[Job]) -> str:
    """Return a name that is always the same for the same sweep and differs for another one; see `digest`."""
    identities = sorted(job.identity for job in jobs)
    rungs = [json.dumps(config.sweep.rungs)] if config.sweep.rungs else []  # not sorted: their order matters
    own = digest([job.config for job in jobs], config.sweep.search, config.sweep.seed, *rungs, *identities)
    return f"{'ladder' if rungs else config.regime.name}-{config.model.name}-{own}"


def digest(jobs: Sequence[Config], *more: str | int) -> str:
    """Return the first 8 hex digits of a hash of the jobs' configurations, independent of the jobs' order."""
    # The identities cover the content of continue_from, a key that version 0.2 did not have.
    plains = [effective(job) | {"sweep": None, "progress": None} for job in jobs]
    configs = sorted(
        json.dumps({key: plain[key] for key in plain if key != "continue_from"}, sort_keys=True) for plain in plains
    )
    return hashlib.sha256(json.dumps([configs, list(more)]).encode()).hexdigest()[:8]
