"""`experiments reproduce`: run the tutorial's three experiments and its exercise, and compare results with claims."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.arguments import add_overrides, exit_on_error, positive
from experiments.errors import ConfigError
from experiments.system import signals
from experiments.training.types import Status

if TYPE_CHECKING:
    from experiments.config.schema import Config
    from experiments.sweeps.plan import Job

LOCK, PARENT = ".reproduce.lock", "reproduce.json"
DRAWN = "convnet"  # the default backbone of --quick, whose weights are in the package


@exit_on_error()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments reproduce",
        description="Runs the tutorial's experiments (from scratch, bottleneck features, fine-tuning, and its exercise "
        "'above 95 %') over the seeds, and puts its claims beside what came out, with the outcome. The same command "
        "again goes on where it was interrupted; what is finished, by whatever command, is not run again.",
    )
    parser.add_argument(
        "--data", metavar="PATH",
        help="a folder with train/<class>/ and validation/<class>/, or the zip file of the Kaggle set (default: that "
        "is downloaded, 825 MB; with --quick images are synthetic)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="seeds 0 to N-1 (default: 3)")
    parser.add_argument(
        "--backbone", metavar="MODEL",
        help=f"a choice of the group model (default: vgg16, the tutorial's; with --quick {DRAWN}, with our weights)",
    )  # fmt: skip
    parser.add_argument("--weights", metavar="FILE", help="the backbone's, where they are not at hand by themselves")
    parser.add_argument(
        "--quick", action="store_true", help="a few minutes: fewer images and epochs, without comparison to the claims"
    )
    add_overrides(parser)
    arguments = parser.parse_args()
    signals.install()
    try:
        sys.exit(reproduce(arguments))
    except (KeyboardInterrupt, signals.Stopped) as stop:
        print(f"Stopped: {stop or 'Ctrl-C'}. The same command again goes on with it.", file=sys.stderr)
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))


def reproduce(arguments: argparse.Namespace) -> int:
    """Plan the runs, train those that are not finished, write the table, and return the exit code.

    Raises:
        ConfigError: something would stop a run; none was started.
    """
    from experiments.cli.compare import table
    from experiments.storage.atomic_files import claim
    from experiments.sweeps import plan, reproduction
    from experiments.sweeps.launchers import processes
    from experiments.sweeps.session import inspect_jobs
    from experiments.system.progress import PlainConsole

    jobs = planned(arguments)
    common = jobs[-1].config  # the last job uses the backbone; the first ones train from scratch
    backbone = common.model.name
    comparable = not arguments.quick and reproduction.same_task(common, arguments.overrides)
    folder = Path(common.outputs) / "reproduce" / f"{backbone}-{plan.digest([job.config for job in jobs])}"
    folder.mkdir(parents=True, exist_ok=True)
    _lock = claim(folder, LOCK, "reproduction")  # until this process ends
    try:
        # In reverse order, because networks are built before images are read: so missing weights are reported first.
        # The first job of all, training from scratch, reads no weights.
        inspect_jobs(jobs[::-1])
    except ConfigError as error:
        lines = ["Cannot be run here, and nothing has been.", str(error), *hints(arguments, str(error))]
        raise ConfigError("\n".join(lines)) from None
    todo = [job for job in jobs if job.status != Status.FINISHED]
    print(f"{len(jobs)} runs, {len(jobs) - len(todo)} of them finished")
    parent = open_parent(folder, common) if common.tracking.uri is not None else None
    status = Status.KILLED
    try:
        for at, job in enumerate(todo, 1):
            print(f"\n{at} of {len(todo)}: {job.values['experiment']}, seed {job.values['seed']}", flush=True)
            reproduction.train(job, parent)
        failed = [job for job in jobs if job.status == Status.FAILED]
        status = Status.FAILED if failed else Status.FINISHED
    finally:
        rows, explanation = reproduction.conclude(folder, jobs, backbone, comparable, command(arguments))
        if parent is not None:
            found, uri = reproduction.metrics(rows), common.tracking.uri
            processes.run_worker_task("close_run", uri, parent, folder, found, status)
    cells = [[row["experiment"], *reproduction.cells(row)] for row in rows]
    console = PlainConsole()
    console.print()
    table(console, [reproduction.HEADER, *cells], numbers=False)
    for sentence in explanation:
        console.print(sentence)
    print(f"\ntable  {folder / reproduction.PAGE}")
    for job in failed:
        where = f"{job.values['experiment']}, seed {job.values['seed']}"
        print(f"FAILED {where}: {job.reason}; {job.folder}", file=sys.stderr)
    return 1 if failed else 0


def planned(arguments: argparse.Namespace) -> list[Job]:
    """Return a job for every run, composed and validated, in order."""
    from experiments.config import composing
    from experiments.sweeps import reproduction
    from experiments.sweeps.plan import Job

    typed = (arguments.data, arguments.weights)
    data, weights = (str(Path(path).expanduser().absolute()) if path else None for path in typed)
    if data and not Path(data).exists():
        raise ConfigError(f"--data: there is no such folder or zip file. Received: {arguments.data}")
    if weights and not Path(weights).is_file():
        raise ConfigError(f"--weights: there is no such file. Received: {arguments.weights}")
    if any(override.lstrip("+").startswith("seed=") for override in arguments.overrides):
        raise ConfigError(f"seed: the runs have those of --seeds. Received: {' '.join(arguments.overrides)}")
    backbone = arguments.backbone or (DRAWN if arguments.quick else reproduction.CLAIMED_FOR)
    jobs: list[Job] = []
    for name in reproduction.CLAIMS:
        given = reproduction.overrides(name, backbone=backbone, data=data, weights=weights, quick=arguments.quick)
        for seed in range(arguments.seeds):
            line = [*given, *arguments.overrides, f"seed={seed}"]
            values = {"experiment": name, "seed": str(seed)}
            composed = composing.whole(line)
            jobs.append(Job(len(jobs), line, values, composed.config, Path(), composed.hydra))
    return jobs


def hints(arguments: argparse.Namespace, error: str) -> list[str]:
    """Return hints on this command's options that replace the missing weights or data."""
    if error.startswith("model.weights"):
        return [
            "Here: --weights FILE, or --backbone mobilenet_v2, whose weights are 2 MB, or --quick, which needs none."
        ]
    if arguments.data is None and not arguments.quick:
        return ["Here: --data PATH, a folder or the zip file; or --quick, which needs no network."]
    return []


def open_parent(folder: Path, config: Config) -> str:
    """Create the parent MLflow run, or continue that of the same command's earlier start, and return its id."""
    from experiments.storage import atomic_files
    from experiments.sweeps.launchers import processes

    path = folder / PARENT
    before = json.loads(path.read_bytes())["run_id"] if path.exists() else None
    run_id: str = processes.run_worker_task("open_run", config, folder, before)
    atomic_files.write_json(path, {"run_id": run_id})
    return run_id


def command(arguments: argparse.Namespace) -> str:
    """Return the command line with placeholders for paths on this machine, so that others can use it."""
    options = {
        "--data PATH": arguments.data, "--weights FILE": arguments.weights,
        f"--backbone {arguments.backbone}": arguments.backbone, f"--seeds {arguments.seeds}": True,
        "--quick": arguments.quick, shlex.join(arguments.overrides): arguments.overrides,
    }  # fmt: skip
    return " ".join(["experiments reproduce", *(option for option, given in options.items() if given)])
