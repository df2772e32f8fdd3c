"""The public names: runs from Python, and what components of your own import. Each is loaded at its first use."""

import importlib
import sys
import types
from typing import TYPE_CHECKING

from experiments.system import signals

if TYPE_CHECKING:  # for type checkers and editors, which cannot follow __getattr__
    from experiments.api.comparison import Comparison as Comparison
    from experiments.api.comparison import compare as compare
    from experiments.api.display import Page as Page
    from experiments.api.inspection import Inspected as Inspected
    from experiments.api.inspection import inspect as inspect
    from experiments.api.run import Run as Run
    from experiments.api.run import load as load
    from experiments.api.sweep import Sweep as Sweep
    from experiments.api.sweep import sweep as sweep
    from experiments.api.training import compose as compose
    from experiments.api.training import train as train
    from experiments.data.types import Dataset as Dataset
    from experiments.data.types import ImageRecord as ImageRecord
    from experiments.data.types import ImageSet as ImageSet
    from experiments.errors import ConfigError as ConfigError
    from experiments.errors import DataError as DataError
    from experiments.models.network import join as join
    from experiments.models.network import predict_probabilities as predict_probabilities
    from experiments.models.network import split_network as split_network
    from experiments.models.stages import Backbone as Backbone
    from experiments.regimes.bottleneck import feature_requests as feature_requests
    from experiments.regimes.declaration import Declaration as Declaration
    from experiments.regimes.declaration import Trains as Trains
    from experiments.regimes.declaration import declare as declare
    from experiments.regimes.feature_cache import cached_features as cached_features
    from experiments.training.fit import fit as fit
    from experiments.training.types import EpochRecord as EpochRecord
    from experiments.training.types import PhaseInputs as PhaseInputs
    from experiments.training.types import RunComponents as RunComponents
    from experiments.training.types import TrainingContext as TrainingContext
    from experiments.training.types import TrainingResult as TrainingResult

__version__ = "0.2.0"

_MODULES = {
    "api.comparison": ("Comparison", "compare"),
    "api.display": ("Page",),
    "api.inspection": ("Inspected", "inspect"),
    "api.run": ("Run", "load"),
    "api.sweep": ("Sweep", "sweep"),
    "api.training": ("compose", "train"),
    "errors": ("ConfigError", "DataError"),
    "data.types": ("Dataset", "ImageRecord", "ImageSet"),
    "models.network": ("join", "predict_probabilities", "split_network"),
    "models.stages": ("Backbone",),
    "regimes.bottleneck": ("feature_requests",),
    "regimes.declaration": ("Declaration", "Trains", "declare"),
    "regimes.feature_cache": ("cached_features",),
    "training.fit": ("fit",),
    "training.types": ("EpochRecord", "PhaseInputs", "RunComponents", "TrainingContext", "TrainingResult"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with signals.loading():
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


class _Package(types.ModuleType):
    """This package, whose `train` is the function: Python would set it to the module `experiments.train`."""

    @property
    def train(self) -> object:
        return __getattr__("train")

    @train.setter
    def train(self, module: types.ModuleType) -> None:
        """Ignore the module, which the import system sets after loading it."""


sys.modules[__name__].__class__ = _Package
