"""Where searches begin: scalars from a dictionary."""

from __future__ import annotations

import torch
from scipy.stats import qmc
from torch import Tensor

from dipy_spinverse.compartments.fitting.coordinates import Place
from dipy_spinverse.compartments.fitting.variable_projection import Problem, amplitudes_of

_DICTIONARY_SIZE = 16


def dictionary_start(problem: Problem, frames: Tensor) -> Place:
    """The best of 16 quasi-random scalars in every voxel, with given frames (V, A, 3, 3)."""
    n_voxels, n = len(problem.data), len(problem.definition.parameters)
    best = Place(frames.new_full((n_voxels, n), 0.5), frames)
    if n == 0:
        return best
    points = qmc.Halton(n, scramble=False).random(_DICTIONARY_SIZE + 1)[1:]
    lowest = torch.full_like(problem.data[:, 0], torch.inf)
    for point in torch.tensor(points, dtype=frames.dtype):
        place = Place(point.expand(n_voxels, n), frames)
        _, cost = amplitudes_of(problem.columns(place), problem.data)
        better = cost < lowest
        lowest = torch.where(better, cost, lowest)
        best.unit[better] = point
    return best
