"""`experiments demo`: train with the regimes scratch, bottleneck and finetune on synthetic images, and compare them."""

from __future__ import annotations

import argparse
import time

from experiments.cli.arguments import add_overrides, exit_on_error

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

    from experiments.cli.compare import show
    from experiments.cli.starting import start
    from experiments.comparison.class_differences import compare_classes
    from experiments.comparison.comparison import compare
    from experiments.system.progress import PlainConsole

    uri, runs = start([["experiment=demo", f"regime={regime}", *arguments.overrides] for regime in REGIMES], "demo")
    comparison = compare(uri, runs, "validation")
    console = PlainConsole()
    console.print()
    show(console, comparison, compare_classes(comparison))
    console.print(
        f"\nThree runs in {time.perf_counter() - began:.0f} s. Look at them: make ui (or: experiments ui)",
        highlight=False,
    )


if __name__ == "__main__":
    main()
