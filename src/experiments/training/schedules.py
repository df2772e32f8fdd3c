"""Learning rates by epoch: functions of the epoch and of the monitored values so far, so that they have no state.

Epochs count from the end of the warm-up; `rate` adds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def warmup_epochs(warmup: float, epochs: int) -> int:
    """Return how many epochs a warm-up takes.

    Args:
        warmup: as `schedule.warmup`: a number of epochs or, below 1, a share of them, rounded down.
        epochs: of the whole phase.
    """
    return int(warmup * epochs if warmup < 1 else warmup)


def rate(
    schedule: Callable[..., float], epoch: int, monitored: Sequence[float], *, lr: float, epochs: int, warmup: int
) -> float:
    """The learning rate of an epoch: a linear rise over `warmup` epochs, then the schedule.

    Args:
        schedule: one of this module's functions, its own arguments given.
        epoch: from 0.
        monitored: the validation value of every epoch before this one, turned so that lower is better.
        lr: the optimizer's learning rate.
        epochs: of the whole phase.
    """
    if epoch < warmup:
        return lr * (epoch + 1) / (warmup + 1)
    return schedule(epoch - warmup, monitored[warmup:], lr=lr, epochs=epochs - warmup)


def constant(epoch: int, monitored: Sequence[float], *, lr: float, epochs: int) -> float:
    return lr


def cosine(epoch: int, monitored: Sequence[float], *, lr: float, epochs: int, final: float) -> float:
    """Half a cosine from lr to final * lr (Loshchilov and Hutter, 2017, without restarts)."""
    return lr * (final + (1 - final) * (1 + math.cos(math.pi * epoch / epochs)) / 2)


def exponential(epoch: int, monitored: Sequence[float], *, lr: float, epochs: int, decay: float) -> float:
    return lr * decay**epoch


def plateau(
    epoch: int,
    monitored: Sequence[float],
    *,
    lr: float,
    epochs: int,
    factor: float,
    patience: int,
    min_delta: float,
    cooldown: int,
    floor: float,
) -> float:
    """Lowered after `patience` epochs without an improvement: what Keras's ReduceLROnPlateau has come to by then."""
    best, waited, resting = math.inf, 0, 0
    for value in monitored[:epoch]:
        resting = max(resting - 1, 0)
        if value < best - min_delta:
            best, waited = value, 0
        elif not resting:
            waited += 1
            if waited >= patience and lr > floor:
                lr = max(lr * factor, floor)
                waited, resting = 0, cooldown
    return lr
