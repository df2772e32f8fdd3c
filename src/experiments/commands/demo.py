"""`experiments demo`: scratch, bottleneck and finetune on drawn pictures, and one table."""

from __future__ import annotations

import argparse
import secrets
import subprocess
import sys
import time

REGIMES = ("scratch", "bottleneck", "finetune")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments demo",
        description="Trains the small convnet on drawn cats and dogs in all three regimes (experiment=demo) and "
        "compares them. What follows is given to every run.",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides, such as seed=1")
    arguments = parser.parse_args()
    began = time.perf_counter()
    token = f"t{secrets.token_hex(4)}"  # a letter first: Hydra reads 12345678 as a number
    for regime in REGIMES:
        command = [
            "experiments.train",
            "experiment=demo",
            f"regime={regime}",
            f"+tags.demo={token}",
            *arguments.overrides,
        ]
        print(f"\n$ python -m {' '.join(command)}", flush=True)
        done = subprocess.run([sys.executable, "-m", *command])
        if done.returncode:
            sys.exit(done.returncode)

    from rich.console import Console

    from experiments.commands.compare import comparison_table, group_by_seed, sentences
    from experiments.tracking import find_runs, local_store

    uri = local_store()
    groups = group_by_seed(uri, find_runs(uri, (), tag=("demo", token)), "validation")
    console = Console()
    console.print()
    console.print(comparison_table(groups, "validation"))
    for sentence in sentences(groups):
        console.print(sentence, highlight=False)
    console.print(
        f"\nThree runs in {time.perf_counter() - began:.0f} s. Look at them: make ui (or: experiments ui)",
        highlight=False,
    )


if __name__ == "__main__":
    main()
