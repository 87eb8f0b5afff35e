"""The loop of Levenberg-Marquardt for many problems at once: which go on, and how damped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Damping:
    """How damping follows from success.

    Attributes
    ----------
    first, least, largest : float
        To begin with; not below; a problem stops above.
    growth : float
        Factor after a step that does not help, and
    acceleration : float
        factor of that factor after each further one.
    """

    first: float
    least: float
    largest: float
    growth: float
    acceleration: float = 1.0


def levenberg_marquardt(
    advance: Callable, like: Tensor, damping: Damping, max_steps: int
) -> tuple[Tensor, Tensor]:
    """Let V problems take damped steps until each stops.

    Parameters
    ----------
    advance : callable
        ``advance(rows, level) -> better, small, shrink``: one step of the problems ``rows`` (k,)
        damped by ``level`` (k,), taken where it is ``better`` (k,). There the level changes by
        ``shrink`` (k,) or (). A problem stops where its step was ``small`` (k,).
    like : tensor (V,)
        Of the type and on the device of the levels.
    damping : Damping
    max_steps : int

    Returns
    -------
    stopped : tensor (V,) of bool
        By itself, not by `max_steps`.
    steps : tensor (V,) of int
    """
    level, growth = (torch.full_like(like, each) for each in (damping.first, damping.growth))
    stopped = torch.zeros_like(like, dtype=torch.bool)
    steps = torch.zeros_like(like, dtype=torch.int64)
    for _ in range(max_steps):
        rows = torch.nonzero(~stopped)[:, 0]
        if len(rows) == 0:
            break
        better, small, shrink = advance(rows, level[rows])
        changed = level[rows] * torch.where(better, shrink, growth[rows])
        level[rows] = changed.clamp_min(damping.least)
        growth[rows] = torch.where(better, damping.growth, damping.acceleration * growth[rows])
        stopped[rows] = small | (level[rows] > damping.largest)
        steps[rows] += 1
    return stopped, steps
