"""Where searches begin: scalars from a dictionary; and where several of them end."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from dipy_spinverse.compartments.fitting.parameters import NonlinearParameters, concatenated
from dipy_spinverse.compartments.fitting.variable_projection import (
    SeparableProblem,
    optimal_amplitudes,
    variable_projection,
)

_DICTIONARY_SIZE = 16
MEASURED_S0 = 0.5  # of levels: S0 of echo times is what the b0 say
_APART = 0.35  # of starts, in ranges


def dictionary_initial_values(
    problem: SeparableProblem, frames: Tensor, n_starts: int = 1
) -> list[NonlinearParameters]:
    """The best of 16 quasi-random scalars in every voxel, with given frames (V, A, 3, 3).

    Further starts are the best of those that lie apart from the former ones.
    """
    n_voxels, n_levels = len(problem.data), problem.definition.n_S0_corrections
    n = len(problem.definition.parameters) - n_levels
    if n == 0:
        return [NonlinearParameters(frames.new_full((n_voxels, n_levels), MEASURED_S0), frames)]
    points = qmc.Halton(n, scramble=False).random(_DICTIONARY_SIZE + 1)[1:]
    points = np.pad(points, ((0, 0), (0, n_levels)), constant_values=MEASURED_S0)
    points = torch.tensor(points, dtype=frames.dtype)
    # Scalars of one voxel are those of all.
    places = (NonlinearParameters(point[None], frames) for point in points)
    costs = torch.stack(
        [optimal_amplitudes(problem.columns(p), problem.data)[1] for p in places], 1
    )
    near = torch.cdist(points, points) < _APART
    starts = []
    for _ in range(n_starts):
        best = costs.argmin(dim=1)
        starts.append(NonlinearParameters(points[best], frames))
        costs = torch.where(near[best], torch.inf, costs)
    return starts


def best_local_minimum(problem: SeparableProblem, starts: list[NonlinearParameters]):
    """Search from all starts.

    Returns
    -------
    place : Place
    columns : Tensor (V, K, M)
    amplitudes : Tensor (V, K)
    converged : Tensor (V,) of bool
        Of the best end.
    ends : list of Place
        All, the best first.
    """
    if len(starts) == 1:
        place, columns, amplitudes, converged = variable_projection(problem, starts[0])
        return place, columns, amplitudes, converged, [place]
    n_voxels, n = len(problem.data), len(starts)
    every = problem.of_voxels(torch.arange(n_voxels).repeat(n))
    place, columns, amplitudes, converged = variable_projection(every, concatenated(starts))
    best = every.misfit(columns, amplitudes).reshape(n, n_voxels).argmin(dim=0)
    voxels = torch.arange(n_voxels)
    ends = [place.of_voxels((best + k) % n * n_voxels + voxels) for k in range(n)]
    rows = best * n_voxels + voxels
    return ends[0], columns[rows], amplitudes[rows], converged[rows], ends
