"""The entry point of training: `python -m experiments.train [GROUP=CHOICE] [KEY=VALUE] ...`; see --help."""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take a second
    from experiments.system import signals

    signals.end_while_loading()

import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
from hydra import version
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig

from experiments.config import foreign_options, unused, validation
from experiments.config.hydra_errors import explain
from experiments.config.overrides import implies_folder
from experiments.config.schema import Config
from experiments.errors import ConfigError, DataError, Pruned
from experiments.reuse import like, resume
from experiments.runs.active_run import AUTO, check_same
from experiments.runs.run_directory import RunDirectory
from experiments.sweeps import plan
from experiments.sweeps.launchers.local import LocalLauncher
from experiments.sweeps.launchers.ray_cluster import RayLauncher
from experiments.sweeps.launchers.slurm import SlurmLauncher
from experiments.sweeps.plan import PlannedRun
from experiments.sweeps.sweeper import Sweeper
from experiments.system import machine_errors, paths, redaction, signals
from experiments.system.private_api import Callbacks, get_args_parser
from experiments.system.startup import quiet_start
from experiments.training.types import Status

for plugin in (Sweeper, LocalLauncher, RayLauncher, SlurmLauncher):
    Plugins.instance().register(plugin)
    # Hydra accepts plugins only under names in `hydra_plugins`.
    Plugins.instance().class_name_to_class[f"hydra_plugins.experiments.{plugin.__name__}"] = plugin
# If hydra-ray-launcher is installed, its options of the same name would be used as the schema of our launcher.
ConfigStore.instance().repo["hydra"].get("launcher", {}).pop("ray.yaml", None)


RAISES = "HYDRA_FULL_ERROR"  # With this variable Hydra raises its errors instead of printing them.
main_of_hydra = hydra.main(version_base="1.3", config_path=str(paths.CONF), config_name="config")


@main_of_hydra
def train(composed: DictConfig) -> float:
    """Run one experiment and return its validation metric `objective` to a sweeper."""
    return train_composed(composed)


def train_composed(composed: DictConfig) -> float:
    """Validate a configuration that Hydra has composed for this job, and run its experiment; see `start`."""
    config = validation.validate(composed)
    unused.warn([config], HydraConfig.get().overrides.task)
    if config.resume is None:
        preset = [f"sweep.search={config.sweep.search}"] * (config.sweep.search != "grid")
        preset += ["sweep.rungs"] * bool(config.sweep.rungs)
        overrides = dict.fromkeys([*HydraConfig.get().overrides.task, *preset])
        unused.warn_of_sweep_keys(overrides, "without -m this is a single run, which")
    return start(config)


def start(config: Config, planned: str | None = None) -> float:
    """Run an experiment; with `resume=auto`, return the result of a finished run in its directory instead.

    Args:
        config: the validated configuration.
        planned: the identity that the run must have; None for the one that follows from its configuration and data.

    Raises:
        ConfigError: with `resume=auto`, the directory holds a run of another identity.
    """
    with quiet_start():
        from experiments.tracking import connection

        connection.check(config.tracking.uri)
        with signals.loading():
            from experiments.run import run  # imports TensorFlow, hence only after validation
    directory = RunDirectory(Path(HydraConfig.get().runtime.output_dir))
    begun = directory.facts() if config.resume == AUTO else {}
    if begun.get("identity"):
        if config.runtime.threads is None and begun.get("status") != Status.FINISHED:  # as with resume=RUN
            threads = config.runtime.model_copy(update={"threads": begun.get("threads")})
            config = config.model_copy(update={"runtime": threads})
        if planned is None:
            from experiments.sweeps.worker_tasks import identity

            planned = identity(config)
        check_same(directory.folder, begun["identity"], planned)
        if (metrics := directory.finished(planned)) is not None:
            return metrics.get(f"validation.{config.objective}", math.nan)
    return run(config, planned)


def run_planned(job: PlannedRun) -> None:
    """Run a job of a sweep from its planned configuration, in the way Hydra runs a job that it has composed itself."""
    sys.argv = ["train", *job.arguments]  # logs and tags record it

    def call() -> None:
        version.setbase("1.3")
        setup_globals()
        JobRuntime.instance().set("name", job.hydra.hydra.job.name)
        done = run_job(
            task_function=lambda _: start(job.config, job.identity),
            config=job.hydra,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=HydraContext(config_loader=cast(Any, None), callbacks=Callbacks(job.hydra)),
        )
        _ = done.return_value  # raises the job's exception, if there is one

    reported(call)


def main() -> None:
    def call() -> None:
        command = expand(sys.argv[1:])
        if command is None:
            print("This run is finished: there is nothing to resume.")
            return
        sys.argv[1:] = command
        train()

    reported(call)


def expand(given: Sequence[str]) -> list[str] | None:
    """Return a command line as Hydra takes it: `resume=`, `continue=` and `like=` expanded, credentials redacted.

    The current directory may be changed; see `resume.expand`.

    Returns:
        The arguments; None if `resume=` names a finished run.

    Raises:
        ConfigError: there are options of other tools, or no such run.
    """
    foreign_options.check(given)
    command = resume.expand(given)
    if command is None:
        return None
    paths.check_directory()  # after resume=, which may have changed the directory
    # Redacted after resume= and like= are expanded, because they may add addresses with passwords.
    return deferring(redaction.conceal_arguments(with_data_source(like.expand(command))))


def with_data_source(command: list[str]) -> list[str]:
    """Return a command line with data=folder, if it gives data.root and no data source."""
    given = get_args_parser().parse_args(command)
    if given.config_path or not implies_folder(given.overrides, given.config_dir, given.config_name or "config"):
        return command
    first = command.index(given.overrides[0])
    return [*command[:first], "data=folder", *command[first:]]


def deferring(command: list[str]) -> list[str]:
    """Return a sweep's command line without the overrides that can be applied only to its jobs.

    If there are such overrides, `Sweeper.typed` is set to all overrides of the command line.
    """
    given = get_args_parser().parse_args(command)
    if not given.multirun:
        return command
    later = plan.deferred(given.overrides)
    Sweeper.typed = [word for word in given.overrides if not word.lstrip("+~").startswith("hydra")] if later else None
    return [word for word in command if word not in later]


def reported(call: Callable[[], None]) -> None:
    """Call the program, and turn errors that users can act on into a message and an exit code."""
    os.environ.setdefault(RAISES, "1")  # so that `explain` can rewrite them
    signals.install()
    redaction.install()
    try:
        with signals.preferred():
            call()
    except (ConfigError, DataError, Pruned) as error:
        sys.exit("\n".join([str(error), *getattr(error, "__notes__", ())]))
    except (KeyboardInterrupt, signals.Stopped) as stop:
        how = getattr(stop, "__notes__", ["No run had begun. Give the same command again"])
        print("\n".join([f"Stopped: {str(stop) or 'Ctrl-C'}", *how]), file=sys.stderr)
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))
    except SystemExit as stop:
        notes = getattr(stop, "__notes__", None)
        if notes is None:
            raise
        message = [stop.code] if isinstance(stop.code, str) else []
        print("\n".join([*message, *notes]), file=sys.stderr)
        sys.exit(1 if message else stop.code)
    except Exception as error:
        text = error_text(error, sys.argv[1:])
        if text is None:
            raise
        sys.exit(text)


def error_text(error: Exception, command: Sequence[str]) -> str | None:
    """Return the message for an error of Hydra or the machine that users can act on; None for any other error."""
    if text := machine_errors.explain(error):
        return "\n".join([text, *getattr(error, "__notes__", ())])
    return explain(error, command)


if __name__ == "__main__":
    main()
