"""A sweep, started from Python, and its result as an object."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.api import display
from experiments.api.overrides import command
from experiments.api.process import executing
from experiments.api.run import Run
from experiments.deploy import saved_run
from experiments.errors import ConfigError
from experiments.runs.run_directory import read_json
from experiments.sweeps.sweep_directory import SUMMARY
from experiments.sweeps.sweeper import Sweeper
from experiments.train import expand
from experiments.train import train as start_hydra
from experiments.training.types import Status

if TYPE_CHECKING:
    import pandas as pd


class Sweep:
    """A sweep with its summary, as `sweep` returns it; a notebook shows its table and sentences.

    Attributes:
        name: the name of the sweep, which is always the same for the same sweep.
        folder: its directory, with summary.md, summary.csv and figures.
        objective: the validation metric by which the candidates are ranked.
        sentences: the winner, and which differences are significant.
        failures: a text for each job that has failed, with the reason.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self._summary: dict[str, Any] = read_json(folder / SUMMARY)
        self.objective: str = self._summary["objective"]
        self.sentences: list[str] = self._summary["sentences"]
        self.failures: list[str] = self._summary["failures"]

    def __repr__(self) -> str:
        return f"Sweep({str(self.folder)!r}, {len(self._summary['runs'])} jobs)"

    def _repr_html_(self) -> str:
        lines = [*self.sentences, *(f"Failed: {text}" for text in self.failures)]
        title, table = display.text(f"Sweep {self.name}"), display.table(self._summary["table"])
        return "".join([title, table, *map(display.text, lines)])

    @property
    def summary(self) -> pd.DataFrame:
        """The candidates, the best first: combinations of values, over whose seeds and folds the scores are averaged.

        The columns are the swept keys (text; `loss` is `params.loss` beside the objective of that name), the objective
        with the bounds of its 95 % interval (`accuracy`, `accuracy_low`, `accuracy_high`), `runs`, `seconds` (of a run)
        and `jobs` (their numbers).
        """
        from experiments.sweeps import summary, summary_files

        about, rows = summary.read(self.folder)
        name = about["objective"]
        return display.frame([
            {f"params.{key}" if key == name else key: value for key, value in found.values.items()}
            | found.interval.columns(name)
            | {"runs": len(found.rows), "seconds": found.seconds, "jobs": [row.number for row in found.rows]}
            for found in summary_files.standing(about, rows).ranked
        ])  # fmt: skip

    @property
    def jobs(self) -> pd.DataFrame:
        """The jobs, a row per run.

        The columns are `number`, the swept keys (text), `status`, `final` (a final run of the winner), the metrics,
        such as `validation.accuracy`, and `folder`.
        """
        return display.frame([
            {"number": job["number"], **job["values"], "status": job["status"], "final": job["final"],
             **job["metrics"], "folder": job["folder"]}
            for job in self._summary["runs"]
        ])  # fmt: skip

    @property
    def winner(self) -> Run | None:
        """The winner: its first final run, which has the whole model and the test score; without one, its first job.

        None if no candidate has finished.
        """
        winner = self._summary["winner"]
        if winner is None:
            return None
        finals = [job["number"] for job in self._summary["runs"] if job["final"] and job["status"] == Status.FINISHED]
        return self.run(finals[0] if finals else winner["number"])

    def run(self, number: int) -> Run:
        """Return the run of a job.

        Args:
            number: that of the job.

        Raises:
            ConfigError: there is no such job, or its run is not finished.
        """
        folders = {job["number"]: Path(job["folder"]) for job in self._summary["runs"]}
        if number not in folders:
            raise ConfigError(f"{self.name}: has no job {number}. Allowed: {', '.join(map(str, folders))}")
        return Run(saved_run.of_folder(folders[number]))

    @property
    def runs(self) -> list[Run]:
        """The runs of the finished jobs, without the winner's final runs, in the order of their numbers."""
        done = [job for job in self._summary["runs"] if job["status"] == Status.FINISHED and not job["final"]]
        return [self.run(job["number"]) for job in done]


def sweep(*overrides: str, config_dir: str | Path | None = None, **keys: Any) -> Sweep | None:
    """Run a sweep, as `experiments train -m` does, and return its summary.

    Each job runs in a process of its own. The same call again continues an interrupted sweep, and of a finished one
    returns the summary without training anything.

    Args:
        overrides: as on the command line: `"seed=0,1,2"`, `"optimizer.lr=interval(1e-5,1e-2)"`, `"sweep.search=tpe"`.
        config_dir: folder with choices of your own (`--config-dir`).
        keys: Python values by key, as for `train`. A list, tuple, range or NumPy array holds the values that the sweep
            runs over: `seed=range(3)`, `model={"head": {"dropout": [0.3, 0.5]}}`. A value that is itself a list is
            given in a list: `data={"species": [["cats", "dogs"]]}`.

    Returns:
        The sweep; failed jobs are in `failures`. None with `sweep.dry_run=true`, which prints the plan.

    Raises:
        ConfigError: a job cannot be run; nothing was started.
        KeyboardInterrupt: Ctrl-C, or a notebook's stop button; the same call continues the sweep.
    """
    given = command(overrides, keys, config_dir, sweep=True)
    Sweeper.folder = None
    try:
        with executing(given):
            expanded = expand(["-m", *given])
            if expanded is None:
                raise ConfigError("resume: a sweep is continued by the same call, without resume")
            sys.argv[1:] = expanded
            start_hydra()
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"stopped. {stop}") from None
    except SystemExit:  # a job has failed
        if Sweeper.folder is None:
            raise
    return Sweep(Sweeper.folder) if Sweeper.folder else None
