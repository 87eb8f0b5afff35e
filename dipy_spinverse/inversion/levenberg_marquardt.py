"""The loop of Levenberg-Marquardt over many problems at once: damping and termination."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Damping:
    """How the damping parameter changes; a problem stops where it exceeds `maximum`.

    A rejected step multiplies it by `growth`, and `growth` by `acceleration` for the next one.
    """

    initial: float
    minimum: float
    maximum: float
    growth: float
    acceleration: float = 1.0


def levenberg_marquardt(
    advance: Callable, template: Tensor, damping: Damping, max_steps: int
) -> Tensor:
    """Damped steps of V problems until each stops; whether it has (V,), before `max_steps`.

    ``advance(rows, level) -> accepted, converged, shrink`` makes one step of the problems ``rows``
    (k,) with damping ``level`` (k,), applied where it is ``accepted`` (k,); there the damping is
    multiplied by ``shrink`` (k,) or (). A problem stops where it has ``converged`` (k,), or at the
    maximum damping. Damping parameters have type and device of `template` (V,).
    """
    level, growth = (
        torch.full_like(template, value) for value in (damping.initial, damping.growth)
    )
    stopped = torch.zeros_like(template, dtype=torch.bool)
    for _ in range(max_steps):
        rows = torch.nonzero(~stopped)[:, 0]
        if len(rows) == 0:
            break
        accepted, converged, shrink = advance(rows, level[rows])
        changed = level[rows] * torch.where(accepted, shrink, growth[rows])
        level[rows] = changed.clamp_min(damping.minimum)
        growth[rows] = torch.where(accepted, damping.growth, damping.acceleration * growth[rows])
        stopped[rows] = converged | (level[rows] > damping.maximum)
    return stopped
