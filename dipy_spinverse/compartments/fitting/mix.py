"""Where searches begin, found by differential evolution (the MIX scheme) [1]_.

Fractions are eliminated by non-negative least squares for every member; Levenberg-Marquardt then
refines the best.

References
----------
.. [1] Farooq et al., Sci. Rep. 6 (2016) 38927, https://doi.org/10.1038/srep38927
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.compartments.fitting.parameters import (
    NonlinearParameters,
    apply_step,
    n_nonlinear,
)
from dipy_spinverse.compartments.fitting.variable_projection import (
    SeparableProblem,
    optimal_amplitudes,
)

_MEMBERS_PER_UNKNOWN = 6
_LEAST_MEMBERS = 8
_GENERATIONS = 30
_WIDTH_OF_TURNS = 0.3  # rad, of the first axes about the start's
# Probability that an unknown is the mutant's.
_CROSSOVER = 0.7


def differential_evolution(
    problem: SeparableProblem, start: NonlinearParameters, seed: int
) -> NonlinearParameters:
    """Best member of a population after 30 generations (best of two and random differences).

    Parameters
    ----------
    problem : Problem
    start : Place
        One of the members, and what axes are turned from.
    seed : int
    """
    rng = np.random.default_rng(seed)
    n, n_scalars = n_nonlinear(problem.definition), start.unit.shape[1]
    if n == 0:
        return start
    n_members, n_voxels = max(_LEAST_MEMBERS, _MEMBERS_PER_UNKNOWN * n), len(start.unit)
    like = {"dtype": start.unit.dtype}

    def random(*shape):
        return torch.tensor(rng.random(shape), **like)

    members = random(n_members, n_voxels, n)
    members[..., n_scalars:] = _WIDTH_OF_TURNS * (2 * members[..., n_scalars:] - 1)
    members[0, :, :n_scalars], members[0, :, n_scalars:] = start.unit, 0
    costs = torch.stack([_cost(problem, start, member) for member in members])
    voxel = torch.arange(n_voxels)
    for _ in range(_GENERATIONS):
        best = members[costs.argmin(dim=0), voxel]
        for k in range(n_members):
            first, second = rng.choice(n_members, 2, replace=False)
            length = 0.5 + 0.5 * rng.random()
            mutant = best + length * (members[first] - members[second])
            mixed = torch.where(random(n_voxels, n) < _CROSSOVER, mutant, members[k])
            scalars = mixed[:, :n_scalars]
            # Outside of the bounds: halfway from the member to the bound.
            low, high = 0.5 * members[k][:, :n_scalars], 0.5 * (1 + members[k][:, :n_scalars])
            scalars = torch.where(scalars < 0, low, torch.where(scalars > 1, high, scalars))
            mixed = torch.cat([scalars, mixed[:, n_scalars:]], dim=1)
            cost = _cost(problem, start, mixed)
            better = cost < costs[k]
            members[k] = torch.where(better[:, None], mixed, members[k])
            costs[k] = torch.where(better, cost, costs[k])
    return _place(problem, start, members[costs.argmin(dim=0), voxel])


def _place(problem, start, member: Tensor) -> NonlinearParameters:
    n = start.unit.shape[1]
    step = torch.cat([member[:, :n] - start.unit, member[:, n:]], dim=1)
    return apply_step(problem.definition, start, step)


def _cost(problem, start, member):
    return optimal_amplitudes(problem.columns(_place(problem, start, member)), problem.data)[1]
