"""Learning rate schedules: stateless functions of the epoch and of the monitored values so far.

A schedule counts its epochs from the end of the warm-up, which `rate` puts before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple


def warmup_epochs(warmup: float, epochs: int) -> int:
    """Return how many epochs a warm-up takes.

    Args:
        warmup: the value of `schedule.warmup`: a number of epochs or, below 1, a share of them, rounded down.
        epochs: the number of epochs of the whole phase.
    """
    return int(warmup * epochs + 1e-9 if warmup < 1 else warmup)  # 0.58 * 50 is a little below 29


class Epoch(NamedTuple):
    """An epoch after the warm-up, with what a schedule computes its learning rate from."""

    number: int  # from 0
    monitored: Sequence[float]  # the validation value of every epoch before it, negated if higher is better
    lr: float  # the optimizer's learning rate
    epochs: int  # how many there are after the warm-up


def rate(
    schedule: Callable[[Epoch], float], epoch: int, monitored: Sequence[float], *, lr: float, epochs: int, warmup: int
) -> float:
    """Return the learning rate of an epoch: a linear rise over `warmup` epochs, then the schedule.

    Args:
        schedule: one of this module's schedules, with its own arguments already bound.
        epoch: from 0.
        monitored: as in `Epoch`, with those of the warm-up.
        lr: the optimizer's learning rate.
        epochs: the number of epochs of the whole phase.
        warmup: the number of epochs of the warm-up.
    """
    if epoch < warmup:
        return lr * (epoch + 1) / (warmup + 1)
    return schedule(Epoch(epoch - warmup, monitored[warmup:], lr, epochs - warmup))


def constant(epoch: Epoch) -> float:
    return epoch.lr


def cosine(epoch: Epoch, *, final: float) -> float:
    """Return a rate that falls along half a cosine from lr to final * lr (Loshchilov and Hutter, 2017, no restarts)."""
    return epoch.lr * (final + (1 - final) * (1 + math.cos(math.pi * epoch.number / epoch.epochs)) / 2)


def exponential(epoch: Epoch, *, decay: float) -> float:
    return epoch.lr * decay**epoch.number


def plateau(epoch: Epoch, *, factor: float, patience: int, min_delta: float, cooldown: int, floor: float) -> float:
    """Return the rate that Keras's ReduceLROnPlateau has reached after these monitored values.

    It is multiplied by `factor`, but not below `floor`, after `patience` epochs without an improvement.
    """
    lr, best, waited, resting = epoch.lr, math.inf, 0, 0
    for value in epoch.monitored:
        resting = max(resting - 1, 0)
        if value < best - min_delta:
            best, waited = value, 0
        elif not resting:
            waited += 1
            if waited >= patience and lr > floor:
                lr = max(lr * factor, floor)
                waited, resting = 0, cooldown
    return lr
