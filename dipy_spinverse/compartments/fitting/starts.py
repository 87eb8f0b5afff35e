"""Where searches begin: scalars from a dictionary; and where several of them end."""

from __future__ import annotations

import torch
from scipy.stats import qmc
from torch import Tensor

from dipy_spinverse.compartments.fitting.coordinates import Place, joined
from dipy_spinverse.compartments.fitting.variable_projection import (
    Problem,
    amplitudes_of,
    fit_all,
)

_DICTIONARY_SIZE = 16
_APART = 0.35  # of starts, in ranges


def dictionary_starts(problem: Problem, frames: Tensor, n_starts: int = 1) -> list[Place]:
    """The best of 16 quasi-random scalars in every voxel, with given frames (V, A, 3, 3).

    Further starts are the best of those that lie apart from the former ones.
    """
    n_voxels, n = len(problem.data), len(problem.definition.parameters)
    if n == 0:
        return [Place(frames.new_zeros(n_voxels, 0), frames)]
    points = qmc.Halton(n, scramble=False).random(_DICTIONARY_SIZE + 1)[1:]
    points = torch.tensor(points, dtype=frames.dtype)
    # Scalars of one voxel are those of all.
    places = (Place(point[None], frames) for point in points)
    costs = torch.stack([amplitudes_of(problem.columns(p), problem.data)[1] for p in places], 1)
    near = torch.cdist(points, points) < _APART
    starts = []
    for _ in range(n_starts):
        best = costs.argmin(dim=1)
        starts.append(Place(points[best], frames))
        costs = torch.where(near[best], torch.inf, costs)
    return starts


def best_of(problem: Problem, starts: list[Place]):
    """Search from all starts.

    Returns
    -------
    place : Place
    amplitudes : Tensor (V, K)
    converged : Tensor (V,) of bool
        Of the best end.
    ends : list of Place
        All, the best first.
    """
    if len(starts) == 1:
        place, amplitudes, converged = fit_all(problem, starts[0])
        return place, amplitudes, converged, [place]
    n_voxels, n = len(problem.data), len(starts)
    every = problem.of_voxels(torch.arange(n_voxels).repeat(n))
    place, amplitudes, converged = fit_all(every, joined(starts))
    best = every.misfit(place, amplitudes).reshape(n, n_voxels).argmin(dim=0)
    voxels = torch.arange(n_voxels)
    ends = [place.of_voxels((best + k) % n * n_voxels + voxels) for k in range(n)]
    rows = best * n_voxels + voxels
    return ends[0], amplitudes[rows], converged[rows], ends
