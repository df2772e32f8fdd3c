"""The Hydra callback that validates a run before Hydra creates its directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from experiments.config import credentials, unused, validation
from experiments.errors import ConfigError, DataError
from experiments.runs import continuation, inputs
from experiments.runs.active_run import check_vacant

SWEEPER = "hydra_plugins.experiments.Sweeper"


class ValidateBeforeRun(Callback):
    """Validate a run before Hydra creates its directory, so that an error leaves nothing behind.

    Errors are raised as SystemExit, because Hydra turns all other exceptions of a callback into warnings.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        check_chdir(config)
        before = HydraConfig.instance().cfg
        try:
            # Hydra does the same before it calls the task; from then on ${hydra:...} can be resolved.
            HydraConfig.instance().set_config(config)
            folder = os.path.abspath(str(config.hydra.run.dir))
            with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
                config.hydra.runtime.output_dir = folder
            HydraConfig.instance().set_config(config)
            credentials.conceal(config)
            checked = validation.validate(config)
            if checked.resume is None:
                continuation.check(checked)
                unused.check_weights([checked], config.hydra.overrides.task)
                inputs.check([checked])
            check_vacant(Path(folder), checked)
        except (ConfigError, DataError) as error:
            raise SystemExit(str(error)) from None
        finally:
            HydraConfig.instance().cfg = before

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raise SystemExit for any sweeper but ours, and for `hydra.job.chdir`.

        Another sweeper would compose the jobs one by one, and run them unplanned, in directories of other runs.
        """
        check_chdir(config)
        target = OmegaConf.select(config, "hydra.sweeper._target_")
        if target != SWEEPER:
            raise SystemExit(
                "hydra/sweeper: must be experiments, which plans a sweep's jobs and runs them as planned. Leave it "
                f"out. For a search: sweep.search=random or tpe. Received: {target}"
            )


def check_chdir(config: DictConfig) -> None:
    """Raise SystemExit if Hydra is to enter the run's directory, where the command's relative paths lead elsewhere."""
    if config.hydra.job.chdir:
        raise SystemExit(
            "hydra.job.chdir: must be false: in the run's folder, relative paths such as data.root=photos would lead "
            f"elsewhere. What a run writes is in its folder anyway. Received: {config.hydra.job.chdir}"
        )
