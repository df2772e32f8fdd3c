"""What a regime declares about itself, so that sweeps and searches treat every regime alike, a user's own included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from experiments.config.schema import Config
from experiments.data.types import Dataset
from experiments.errors import ConfigError
from experiments.regimes.feature_cache import FeatureRequest
from experiments.training.types import PhaseInputs, Regime, RunComponents, TrainingContext

ATTRIBUTE = "declaration"


class Trains(StrEnum):
    """The weights that a regime changes."""

    HEAD = "head"
    UNFROZEN_BLOCKS = "unfrozen_blocks"  # the head and the stages that regime.unfrozen_blocks names
    ALL = "all"

    def unfrozen(self, config: Config) -> int | str:
        """Return the trained stages of the backbone, in the form that `split_network` takes."""
        named: dict[Trains, int | str] = {Trains.HEAD: 0, Trains.ALL: "all"}
        return named.get(self, config.regime.unfrozen_blocks)


@dataclass(frozen=True)
class Declaration:
    """What a regime reads, trains and logs.

    The default of each field is safe for any regime: what is not declared is not shared, not restored, not left out.
    """

    # The features that a run reads from the feature cache: jobs of a sweep compute them once, before they start.
    features: Callable[[RunComponents, Dataset], Sequence[FeatureRequest]] = lambda components, dataset: ()
    # The trained weights. A job of a sweep saves these only, and a sweep's winner is evaluated with them instead of
    # being trained again: its scores have to be those of backbone and head, joined, on images without augmentation.
    # None: the job saves all weights, and the winner is trained again.
    trains: Trains | None = None
    # Whether the regime first obtains a head as regime=bottleneck trains it, which jobs share, by `find_trained_head`
    # and `train_new_head` of `finetune`.
    head_first: bool = False
    # The name of the last phase in the curves. A search prunes by this phase. None: by every phase.
    last_phase: str | None = None
    # Everything before the last phase, whose inputs it returns. None: the regime has no learning rate range test.
    prepare: Callable[[RunComponents, Dataset, TrainingContext], PhaseInputs] | None = None


def declare(declaration: Declaration) -> Callable[[Regime], Regime]:
    """Return a decorator that attaches a declaration to a regime."""

    def attach(regime: Regime) -> Regime:
        setattr(regime, ATTRIBUTE, declaration)
        return regime

    return attach


def declaration_of(regime: Regime) -> Declaration:
    """Return what a regime declares; the safe defaults if it declares nothing.

    Raises:
        ConfigError: its declaration is of another type.
    """
    found = getattr(regime, ATTRIBUTE, Declaration())
    if not isinstance(found, Declaration):
        raise ConfigError(
            f"regime._target_: the attribute `{ATTRIBUTE}` of {regime} must be an experiments.regimes.declaration."
            f"Declaration. Received: {found!r:.200}"
        )
    return found
