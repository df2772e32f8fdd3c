"""The benchmark: `python -m benchmarks.run` (make bench), `--full` (make bench-full).

Every row runs in a process of its own, so that neither memory nor threads of one reach the next, and is shown and
written as soon as it is measured. A row that fails does not affect the others.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import finetuning, report, rows
from benchmarks.rows import Setup
from experiments.system.paths import default_outputs

ROWS = {**rows.ROWS, **finetuning.ROWS}
ONLY_FULL = (*rows.ONLY_FULL, *finetuning.ONLY_FULL)
REPEATS = {False: 3, True: 5}  # quick, full
PROCESS_REPEATS = {False: 2, True: 3}  # of the rows whose repeats are new processes


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description="Ours beside its peers, in turn, on this machine. Leave the machine alone meanwhile.",
    )
    parser.add_argument("--full", action="store_true", help="all images in every row, and the rows that take long")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"only these: {', '.join(ROWS)}")
    parser.add_argument(
        "--repeats", type=int,
        help=f"of each side; {REPEATS[False]}, with --full {REPEATS[True]}; of whole processes "
        f"{PROCESS_REPEATS[False]}, with --full {PROCESS_REPEATS[True]}",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=int, metavar="N",
        help="training images in every row (the largest number in `scaling`): to try it out, not to measure",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder for the report and what is kept between benchmarks")
    parser.add_argument("--worker", type=Path, metavar="JSON", help=argparse.SUPPRESS)  # measure one row into this file
    options = parser.parse_args(given)
    options.output = (options.output or Path(default_outputs()) / "benchmarks").resolve()
    if options.repeats is not None and options.repeats < 1:
        parser.error(f"--repeats must be 1 or more. Received: {options.repeats}")
    if options.images is not None and options.images < 20:
        parser.error(f"--images must be 20 or more. Received: {options.images}")
    return options


def main() -> int:
    options = arguments()
    if options.worker:
        return work(options)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # lines of a log file are not wrapped
    facts = report.machine()
    chosen = options.rows or [name for name in ROWS if options.full or name not in ONLY_FULL]
    settings: dict[str, Any] = {
        "make": "bench-full" if options.full else "bench", "rows": " ".join(chosen), "images": options.images,
        "repeats": options.repeats or f"{REPEATS[options.full]} ({PROCESS_REPEATS[options.full]} of whole processes)",
    }  # fmt: skip
    stem = time.strftime("%Y-%m-%d-%H%M%S")
    console.print(
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB; TensorFlow "
        f"{facts['packages']['tensorflow']}, Keras {facts['packages']['keras']}; rows: {settings['rows']}",
        highlight=False,
    )
    for warning in report.warnings(facts, settings):
        console.print(warning, style="yellow")
    rows: list[report.Row] = []
    began = time.perf_counter()
    for name in chosen:
        with console.status(f"measuring {name}"):
            rows.append(measure(name, options))
        report.show(console, rows[-1])
        settings["minutes"] = round((time.perf_counter() - began) / 60, 1)
        written = report.write(options.output, stem, facts, settings, rows)
    report.summary(console, rows)
    for path in written:
        console.print(f"{path}", highlight=False, soft_wrap=True)
    return 1 if any(row.error for row in rows) else 0


def measure(name: str, options: argparse.Namespace) -> report.Row:
    """Measure one row in a process of its own."""
    result = options.output / "work" / f"{name}-{os.getpid()}.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.run", "--rows", name, "--worker", str(result)]
    command += ["--output", str(options.output)]
    command += ["--full"] if options.full else []
    command += ["--repeats", str(options.repeats)] if options.repeats else []
    command += ["--images", str(options.images)] if options.images else []
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, cwd=report.ROOT, env=environment, capture_output=True, text=True)
    try:
        return report.row_from(json.loads(result.read_text(encoding="utf-8")))
    except FileNotFoundError:  # the process was killed before it wrote its result
        end = (done.stderr or done.stdout)[-1000:]
        return report.Row(name, name, {}, error=f"its process ended with {done.returncode}: {end}")
    finally:
        result.unlink(missing_ok=True)


def work(options: argparse.Namespace) -> int:
    """Measure one row in this process and write it to a file."""
    (name,) = options.rows
    setup = Setup(
        repeats=options.repeats or REPEATS[options.full],
        process_repeats=options.repeats or PROCESS_REPEATS[options.full],
        full=options.full,
        images=options.images,
        cache=options.output / "data",
        work=options.output / "work" / f"{name}-{os.getpid()}",
    )
    try:
        row = ROWS[name](setup)
    except Exception:
        traceback.print_exc()
        row = report.Row(name, name, {}, error=traceback.format_exc()[-2000:])
    finally:
        shutil.rmtree(setup.work, ignore_errors=True)
    (record,) = json.loads(report.to_json({}, {}, [row]))["rows"]
    options.worker.write_text(json.dumps(record), encoding="utf-8")
    return 1 if row.error else 0


if __name__ == "__main__":
    sys.exit(main())
