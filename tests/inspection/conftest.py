"""A finished run that the tests of inspections compare with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from experiments import run as run_module
from experiments.evaluation import training_checks
from experiments.storage.csv_files import read_rows

# Two phases, a warm-up, a schedule, a split point inside the network.
OVERRIDES = (
    "regime=finetune", "regime.unfrozen_blocks=2", "regime.head_epochs=2", "model.head.pooling=flatten", "epochs=4",
    "schedule=cosine", "schedule.warmup=1", "augmentation=none", "batch_size=8",
)  # fmt: skip


class Ended(NamedTuple):
    """A finished run."""

    overrides: tuple[str, ...]
    folder: Path
    trainable: dict[str, bool]  # by layer of the backbone, at the end of the run

    @property
    def curves(self) -> list[dict[str, str]]:
        return read_rows(self.folder / "curves.csv")


@pytest.fixture(scope="session")
def ended(drawn: Path, train_here: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Return a finished fine-tuning run on the synthetic images."""
    outputs = tmp_path_factory.mktemp("inspected") / "outputs"
    folder = outputs / "runs" / "tuned"
    overrides = ("data=folder", f"data.root={drawn}", "data.image_size=48", *OVERRIDES)
    trainable: dict[str, bool] = {}
    checked = training_checks.check_joined

    def listening(config: Any, fitted: Any, splits: Any) -> None:
        trainable.update({layer.name: layer.trainable for layer in fitted.model.get_layer("frozen").layers})
        checked(config, fitted, splits)

    with pytest.MonkeyPatch.context() as patch:
        settings = [f"outputs={outputs}", f"hydra.run.dir={folder}", "hydra/job_logging=none", "tracking=none"]
        patch.setattr(run_module, "check_joined", listening)
        train_here(*overrides, *settings, "progress=none")
    return Ended(overrides, folder, trainable)
