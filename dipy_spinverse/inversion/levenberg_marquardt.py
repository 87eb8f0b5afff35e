"""The loop of Levenberg-Marquardt over many problems at once: damping and termination."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Damping:
    """How the damping parameter changes.

    Attributes
    ----------
    initial, minimum, maximum : float
        A problem stops above the maximum.
    growth : float
        Factor after a rejected step.
    acceleration : float
        Factor of `growth` after each further rejected step.
    """

    initial: float
    minimum: float
    maximum: float
    growth: float
    acceleration: float = 1.0


def levenberg_marquardt(
    advance: Callable, template: Tensor, damping: Damping, max_steps: int
) -> tuple[Tensor, Tensor]:
    """Damped steps of V problems until each stops.

    Parameters
    ----------
    advance : callable
        ``advance(rows, level) -> accepted, converged, shrink``: one step of the problems ``rows``
        (k,) with damping ``level`` (k,), applied where it is ``accepted`` (k,). There the damping
        is multiplied by ``shrink`` (k,) or (). A problem stops where it has ``converged`` (k,).
    template : tensor (V,)
        Of the type and on the device of the damping parameters.
    damping : Damping
    max_steps : int

    Returns
    -------
    stopped : tensor (V,) of bool
        By convergence or at the maximum damping, not by `max_steps`.
    steps : tensor (V,) of int
    """
    level, growth = (
        torch.full_like(template, value) for value in (damping.initial, damping.growth)
    )
    stopped = torch.zeros_like(template, dtype=torch.bool)
    steps = torch.zeros_like(template, dtype=torch.int64)
    for _ in range(max_steps):
        rows = torch.nonzero(~stopped)[:, 0]
        if len(rows) == 0:
            break
        accepted, converged, shrink = advance(rows, level[rows])
        changed = level[rows] * torch.where(accepted, shrink, growth[rows])
        level[rows] = changed.clamp_min(damping.minimum)
        growth[rows] = torch.where(accepted, damping.growth, damping.acceleration * growth[rows])
        stopped[rows] = converged | (level[rows] > damping.maximum)
        steps[rows] += 1
    return stopped, steps
