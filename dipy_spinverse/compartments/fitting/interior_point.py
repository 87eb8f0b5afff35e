"""A fit over all parameters and fractions by an interior-point method, voxel by voxel.

Slow; to compare with. Where variable projection eliminates the fractions, here they are unknowns
with bounds, which a barrier keeps.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import Bounds, minimize

from dipy_spinverse.compartments.fitting.coordinates import Place, moved
from dipy_spinverse.compartments.fitting.variable_projection import (
    Problem,
    amplitudes_of,
    combined,
    linearised,
)
from dipy_spinverse.voxels.rician import log_likelihoods

# Of the start from its bounds: of a scalar's range, and of S0.
_MARGIN = 1e-6
_MOST_STEPS = 300


def interior_point(problem: Problem, start: Place):
    """As `variable_projection.fit_all`, with `scipy.optimize.minimize` (trust-constr)."""
    places, amplitudes, converged = [], [], []
    for v in range(len(start.unit)):
        one = slice(v, v + 1)
        place, amount, done = _fit_voxel(problem.of_voxels(one), start.of_voxels(one))
        places.append(place)
        amplitudes.append(amount)
        converged.append(done)
    place = Place(torch.cat([p.unit for p in places]), torch.cat([p.frames for p in places]))
    return place, torch.cat(amplitudes), torch.tensor(converged)


def _fit_voxel(problem, start):
    n, n_pools = start.unit.shape[1], len(problem.definition.pools)
    first, _ = amplitudes_of(problem.columns(start), problem.data)
    _, slopes = linearised(problem, start, first)
    n_steps = slopes.shape[1]
    rician = problem.sigma is not None
    sigma = problem.sigma if rician else torch.ones_like(problem.data[:, 0])

    def unpacked(x):
        x = torch.tensor(x, dtype=start.unit.dtype)[None]
        step = torch.cat([x[:, :n] - start.unit, x[:, n:n_steps]], dim=1)
        return moved(problem.definition, start, step), x[:, n_steps:]

    def objective(x):
        place, amplitudes = unpacked(x)
        predicted = combined(problem.columns(place), amplitudes)
        return -float(log_likelihoods(problem.data, predicted, sigma, rician))

    inside = start.unit[0].double().clamp(_MARGIN, 1 - _MARGIN).numpy()
    turns = np.zeros(n_steps - n)
    x0 = np.concatenate([inside, turns, first[0].double().numpy().clip(_MARGIN)])
    low = np.concatenate([np.zeros(n), turns - np.inf, np.zeros(n_pools)])
    high = np.concatenate([np.ones(n), turns + np.inf, np.full(n_pools, np.inf)])
    result = minimize(
        objective, x0, method="trust-constr", jac="2-point",
        bounds=Bounds(low, high, keep_feasible=True), options={"maxiter": _MOST_STEPS},
    )  # fmt: skip
    place, amplitudes = unpacked(result.x)
    return place, amplitudes, bool(result.status in (1, 2))
