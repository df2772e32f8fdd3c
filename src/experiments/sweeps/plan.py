"""What a sweep will do: its jobs, composed and checked, before any of them starts. No TensorFlow, no MLflow."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext
from omegaconf import DictConfig

from experiments import store, validation
from experiments.explain import explain
from experiments.paths import default_outputs
from experiments.redaction import redact_credentials
from experiments.schema import Config, Evaluate, effective
from experiments.types import ConfigError

# Values of these repeat a candidate, they make no other one.
REPEATS = ("seed", "data.fold")
JOB, SWEEP = "job.json", "sweep.json"  # in a job's folder, in a sweep's


@dataclass
class Job:
    """One run of a sweep."""

    number: int
    overrides: list[str]  # as typed, one value a key
    values: dict[str, str]  # of the swept keys
    config: Config
    folder: Path  # of its own; where it is not run again, of the run that stands for it, if that is on this machine
    identity: str = ""
    status: str = "NEW"  # or PARTIAL, FINISHED: trained before, to some part or whole
    reason: str = ""  # why it failed
    threads: int | None = None  # that a partial one began with
    same_as: int | None = None  # the number of the job with the same identity
    trial: str | None = None  # of a search, that the job tells its curve to: STUDY/NUMBER
    facts: dict[str, Any] = field(default_factory=dict)

    def write(self, sweep: Path) -> None:
        """Keeps what a summary needs to know of it, in its place in the sweep's folder."""
        known = {
            "number": self.number, "overrides": self.overrides, "values": self.values, "identity": self.identity,
            "folder": str(self.folder), "status": self.status, "reason": redact_credentials(self.reason),
            **self.facts,
        }  # fmt: skip
        store.write_file(sweep / str(self.number) / JOB, json.dumps(known, indent=1).encode())


def parse(arguments: Sequence[str], context: HydraContext) -> list[Override]:
    """Overrides as Hydra's grammar has them, the last of each key; `a=1,2` sweeps."""
    parsed = OverridesParser.create(config_loader=context.config_loader).parse_overrides(list(arguments))
    return list({override.get_key_element().lstrip("+~"): override for override in parsed}.values())


def spelled(override: Override) -> list[str]:
    """One override for each of the values that an override sweeps over.

    Raises:
        ConfigError: values between which there is no end of others.
    """
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key = override.get_key_element()
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{key}: a grid needs single values, and an interval has no end of them. Received: {override.input_line}. "
            "Use choice or range, or sweep.search=random or tpe"
        )
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def grid(overrides: Sequence[Override]) -> list[tuple[list[str], dict[str, str]]]:
    """Every combination: the overrides of a job, and the values of the swept keys."""
    swept = {override.get_key_element().lstrip("+~") for override in overrides if override.is_sweep_override()}
    jobs = []
    for chosen in itertools.product(*map(spelled, overrides)):
        values = dict(one.lstrip("+~").split("=", 1) for one in chosen if "=" in one)
        jobs.append((list(chosen), {key: value for key, value in values.items() if key in swept}))
    return jobs


def compose(
    combinations: Sequence[tuple[list[str], dict[str, str]]], context: HydraContext, master: DictConfig
) -> list[Config]:
    """The checked configuration of every job.

    Raises:
        ConfigError: with the faults of all of them.
    """
    configs, wrong = [], {}
    for overrides, values in combinations:
        try:
            configs.append(validation.read(context.config_loader.load_sweep_config(master, list(overrides))))
        except ConfigError as error:
            wrong[str(error)] = values
        except Exception as error:
            text = explain(error, overrides)
            if text is None:
                raise
            wrong[text] = values
    if wrong:
        lines = [f"with {told(values)}:\n{text}" if values else text for text, values in wrong.items()]
        raise ConfigError("\n".join(lines))
    return configs


def told(values: Mapping[str, str]) -> str:
    """Values by key, in a line."""
    return " ".join(f"{key}={value}" for key, value in values.items())


def unjudged(config: Config) -> Config:
    """Without the test split: that is the winner's."""
    return config.model_copy(update={"evaluate": Evaluate(test=False)})


def sweep_name(config: Config, jobs: Sequence[Config]) -> str:
    """The name that the same sweep has every time: of what, and a part of the hash over all jobs."""
    return f"{config.regime.name}-{config.model.name}-{digest(jobs, config.sweep.search, config.sweep.seed)}"


def digest(jobs: Sequence[Config], *more: str | int) -> str:
    """A part of the hash over what jobs are, in whatever order."""
    plain = sorted(json.dumps(effective(job) | {"sweep": None, "progress": None}, sort_keys=True) for job in jobs)
    return hashlib.sha256(json.dumps([plain, list(more)]).encode()).hexdigest()[:8]


def find(named: str) -> Path:
    """The folder of a sweep: given as such, by its name, or by the id of its MLflow run.

    Raises:
        ConfigError: there is none of this name.
    """
    sweeps = Path(default_outputs()) / "sweeps"
    for folder in (Path(named).expanduser(), sweeps / named):
        if (folder / SWEEP).is_file():
            return folder.resolve()
    known = sorted(sweeps.glob(f"*/{SWEEP}"), key=lambda path: path.stat().st_mtime)
    for path in known:
        if json.loads(path.read_bytes())["parent"] == named:
            return path.parent
    latest = ", ".join(path.parent.name for path in known[-5:]) or "none"
    raise ConfigError(
        f"{named}: no such sweep. Give its folder, a name in {sweeps}, or the id of its MLflow run. "
        f"The latest: {latest}"
    )


def run_ids(folder: Path) -> list[str]:
    """The MLflow runs of a sweep's finished jobs, each once, in order; the winner's last training is no job.

    Raises:
        ConfigError: no job has finished, or they were not tracked.
    """
    jobs = [json.loads(path.read_bytes()) for path in folder.glob(f"[0-9]*/{JOB}")]
    done = sorted(
        (job for job in jobs if job["status"] == "FINISHED" and not job.get("final")), key=lambda job: job["number"]
    )
    found = list(dict.fromkeys(job["run_id"] for job in done if job.get("run_id")))
    if not found:
        why = "they were not tracked in MLflow" if done else "none has finished"
        raise ConfigError(f"{folder.name}: no job of this sweep can be compared: {why}")
    return found


def folders(outputs: Path) -> Iterator[Path]:
    """Of all runs under outputs/."""
    yield from outputs.glob("runs/*/")
    yield from outputs.glob("sweeps/*/[0-9]*/")
