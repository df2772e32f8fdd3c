"""Inspection of one part of a configuration before a run, or of a finished run's mistakes and labels."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from experiments.api import display
from experiments.api.overrides import command
from experiments.api.process import executing
from experiments.api.run import Run
from experiments.api.training import checked
from experiments.config.messages import nearest_hint
from experiments.deploy import saved_run
from experiments.errors import ConfigError
from experiments.inspection.parts import LEAST, OF_RUNS, OPTIONS
from experiments.runs import candidate_runs
from experiments.sweeps import sweep_directory
from experiments.system import signals
from experiments.system.progress import PlainConsole, Terminal
from experiments.system.startup import quiet_start

if TYPE_CHECKING:
    import pandas as pd

    from experiments.deploy.saved_run import Trained
    from experiments.inspection.inspection import Inspection


class Inspected:
    """What an inspection has found; a notebook shows its tables, sentences and figure.

    `is_refused` says whether a run would refuse what was inspected, such as a data set with damaged files.
    """

    def __init__(self, inspection: Inspection) -> None:
        self._inspection = inspection
        self.is_refused = inspection.is_refused

    @property
    def sentences(self) -> list[str]:
        """The findings in sentences."""
        return [line for line in self._inspection.lines if isinstance(line, str)]

    @property
    def table(self) -> pd.DataFrame:
        """The images that were inspected, a row per image (of labels); else without rows."""
        return display.frame(list(self._inspection.table))

    @cached_property
    def figure(self) -> Image.Image | None:
        """The figure; None if there is nothing to draw."""
        return Image.open(io.BytesIO(self._png)) if self._png else None

    @cached_property
    def _png(self) -> bytes | None:
        from experiments.reports.figure_style import save_figure

        return save_figure(self._inspection.draw()) if self._inspection.draw else None

    def __repr__(self) -> str:
        from experiments.inspection.inspection import show

        file = io.StringIO()
        show(self._inspection, file)
        return file.getvalue()

    def _repr_html_(self) -> str:
        lines = self._inspection.lines
        parts = [display.text(line) if isinstance(line, str) else display.rich_table(line) for line in lines]
        return "".join([*parts, display.image(self._png) if self._png else ""])


def inspect(
    part: str, *overrides: str, run: Run | str | os.PathLike[str] | None = None,
    uri: str | None = None, config_dir: str | Path | None = None, **keys: Any,
) -> Inspected:  # fmt: skip
    """Inspect one part of a configuration, or a finished run, as `experiments inspect` does; only the cache is written.

    Args:
        part: `data`: classes, splits, sizes, invalid files; `augmentation`: training images and what becomes of them;
            `model`: layers, parameters, what is trained; `schedule`: the learning rate of every epoch; `lr`: a range
            test of learning rates. Of a finished run: `mistakes` with Grad-CAM; `labels` that the run doubts.
        overrides: the configuration, as for `train`.
        run: a finished run, whose configuration is inspected instead; needed for `mistakes` and `labels`.
        uri: the MLflow tracking store in which a run is looked up by name or id; not needed for a `Run`.
        config_dir: see `train`.
        keys: values of the configuration by key, as for `train`; or options of the part: `images`, `views`
            (augmentation), `images` (data), `classes`, `layers` (model), `lowest`, `highest`, `batches` (lr), `split`,
            `count`, `data` (mistakes; labels without `split`). `data` is the folder where the images are now.

    Raises:
        ConfigError: there is no such part, or the configuration or the run cannot be used.
        DataError: the data set cannot be read.
    """
    if part not in OPTIONS:
        hint = nearest_hint(part, OPTIONS)
        raise ConfigError(f"inspect: no such part. Received: {part!r}. Allowed: {', '.join(OPTIONS)}{hint}.")
    options = {name: keys.pop(name, default) for name, default in OPTIONS[part].items()}
    for name, default in OPTIONS[part].items():
        value, least = options[name], LEAST.get(name)
        if least and value != default and not (isinstance(value, Integral) and int(value) >= least):
            raise ConfigError(f"inspect: {name} must be a whole number of {least} or more. Received: {value!r}")
        if isinstance(default, float) and not isinstance(value, Real):
            raise ConfigError(f"inspect: {name} must be a number. Received: {value!r}")
    if (run is not None or part in OF_RUNS) and (overrides or keys):
        raise ConfigError(
            f"inspect: a run is inspected as it was, without overrides. Received: {', '.join([*overrides, *keys])}"
        )
    if part in OF_RUNS and run is None:
        raise ConfigError(f"inspect: {part} are those of a finished run: ex.inspect({part!r}, run=RUN)")
    given = command(overrides, keys, config_dir)
    with executing(given):
        named, place = (run.folder or run.id, run.store) if isinstance(run, Run) else (run, uri)
        instead = f"Inspect it by ex.inspect({part!r}, run=RUN)"
        return Inspected(inspect_part(part, given, os.fspath(named) if named else None, place, options, instead)[0])


def inspect_part(
    part: str, given: Sequence[str], named: str | None, uri: str | None, options: Mapping[str, Any], instead: str
) -> tuple[Inspection, Trained | None]:
    """Inspect a part of the configuration that a command gives, or of the run that is named instead.

    Returns:
        The result, and the run that it belongs to; None for a configuration or a sweep.
    """
    if part == "labels":
        return inspect_labels(named or "", uri, **options)
    run = saved_run.find(named, uri) if named else None
    config = run.config if run else checked(given, instead)
    if part == "lr" and not (0 < options["lowest"] < options["highest"] and options["batches"] >= 2):
        raise ConfigError(
            "lr: the lowest rate (--from) must be above 0 and below the highest (--to), with two batches or more. "
            f"Received: {options['lowest']:g} to {options['highest']:g}, {options['batches']} batches"
        )
    if part == "model":
        options = {**options, "classes": options["classes"] or (len(run.classes) if run else 2)}
    with quiet_start(), signals.loading():
        module = importlib.import_module(f"experiments.inspection.{part}")
    return module.inspect(run if part in OF_RUNS else config, **options), run


def inspect_labels(named: str, uri: str | None, *, count: int, data: Path | None) -> tuple[Inspection, Trained | None]:
    """Inspect the labels of a run's images; for a sweep those of its winner's folds, for one of its jobs likewise.

    Returns:
        The result, and the run that it belongs to; None for a sweep.
    """
    from experiments.sweeps import summary_files

    run = sweep = None
    try:
        sweep = sweep_directory.find(named)
    except ConfigError:
        run = saved_run.find(named, uri)
        found = candidate_runs.of_job(run.folder) if run.folder else []
        sweep = run.folder.parent if run.folder and found else None
    else:
        found = candidate_runs.of_candidate(sweep, summary_files.winner_values(sweep))
    runs = [saved_run.of_folder(other.directory.folder) for other in found] if run is None or found else [run]
    with quiet_start(), signals.loading():
        from experiments.inspection import labels
    progress = Terminal(PlainConsole(stderr=True))
    return labels.inspect(runs, sweep=sweep, count=count, data=data, progress=progress), None if sweep else run
