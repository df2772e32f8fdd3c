"""`experiments demo`: train with the regimes scratch, bottleneck and finetune on synthetic images, and compare them."""

from __future__ import annotations

import argparse
import shlex
import time

from experiments.cli.arguments import add_overrides, exit_on_error
from experiments.errors import ConfigError

REGIMES = ("scratch", "bottleneck", "finetune")


@exit_on_error()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments demo",
        description="Trains the small convnet on synthetic cats and dogs in all three regimes (experiment=demo) and "
        "compares them. What follows is given to every run.",
    )
    add_overrides(parser)
    arguments = parser.parse_args()
    began = time.perf_counter()

    from experiments.api.training import compose, train
    from experiments.cli.compare import show
    from experiments.comparison.class_differences import compare_classes
    from experiments.comparison.comparison import compare
    from experiments.system.progress import PlainConsole
    from experiments.tracking.queries import find_runs

    commands = [["experiment=demo", f"regime={regime}", *arguments.overrides] for regime in REGIMES]
    configs = [compose(*command) for command in commands]  # An invalid one is an error before the first is trained.
    uri = configs[0].tracking.uri
    if uri is None:
        raise ConfigError("tracking: these runs are compared in MLflow. Allowed: tracking=sqlite, server")
    run_ids = []
    for command in commands:
        print(f"\n$ experiments train {shlex.join(command)}", flush=True)
        run_ids.append(str(train(*command).id))
    comparison = compare(uri, find_runs(uri, run_ids), "validation")
    console = PlainConsole()
    console.print()
    show(console, comparison, compare_classes(comparison))
    console.print(f"\nThree runs in {time.perf_counter() - began:.0f} s. Look at them: make ui (or: experiments ui)")
