"""The training entry point: `python -m experiments.train [GROUP=CHOICE] [KEY=VALUE] ...`; --help tells more."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from experiments import journal, like, paths, redaction, signals, validation
from experiments.explain import disk_full, explain
from experiments.quiet import quiet_start
from experiments.sweeps.cluster import RayLauncher, SlurmLauncher
from experiments.sweeps.local import LocalLauncher
from experiments.sweeps.sweeper import Sweeper
from experiments.types import ConfigError, DataError, Pruned

for plugin in (Sweeper, LocalLauncher, RayLauncher, SlurmLauncher):
    Plugins.instance().register(plugin)
    # Hydra takes no other name for a plugin.
    Plugins.instance().class_name_to_class[f"hydra_plugins.experiments.{plugin.__name__}"] = plugin
# Where hydra-ray-launcher is installed, its options of the same name would be taken for the schema of ours.
ConfigStore.instance().repo["hydra"].get("launcher", {}).pop("ray.yaml", None)


@hydra.main(version_base="1.3", config_path=str(paths.CONF), config_name="config")
def train(composed: DictConfig) -> float:
    """Runs one experiment; returns its validation metric `objective` to a sweeper."""
    config = validation.read(composed)
    if config.resume == journal.AUTO:
        done = journal.finished(Path(HydraConfig.get().runtime.output_dir), config.objective)
        if done is not None:
            return done
    with quiet_start():
        from experiments.tracking import address

        address.check(config.tracking.uri)
        from experiments.run import run  # imports TensorFlow: only once the configuration is known to be good

    return run(config)


def main() -> None:
    # With this set Hydra raises its errors instead of printing them, and they can be explained.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    signals.install()
    redaction.install()
    try:
        command = journal.resume(redaction.conceal_arguments(sys.argv[1:]))
        if command is None:
            print("This run is finished: there is nothing to resume.")
            return
        sys.argv[1:] = like.expand(command)
        train()
    except (ConfigError, DataError, Pruned) as error:
        sys.exit(str(error))
    except (KeyboardInterrupt, signals.Stopped) as stop:
        print("\n".join([f"Stopped: {stop or 'Ctrl-C'}", *getattr(stop, "__notes__", ())]), file=sys.stderr)
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))
    except SystemExit as stop:
        notes = getattr(stop, "__notes__", None)
        if notes is None:
            raise
        said = [stop.code] if isinstance(stop.code, str) else []
        print("\n".join([*said, *notes]), file=sys.stderr)
        sys.exit(1 if said else stop.code)
    except Exception as error:
        text = explain(error, sys.argv[1:])
        if full := disk_full(error):
            text = "\n".join([full, *getattr(error, "__notes__", ())])
        if text is None:
            raise
        sys.exit(text)


if __name__ == "__main__":
    main()
