"""Moments of the displacement of spins, by the tetrahedron in which they start.

The operator K(q) of a resting wave vector gives E[exp(i q.(x(t) - x_i)) | start in i] as the row
sums of exp(t K(q)). At a small q, its real and imaginary parts are the moments.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from dipy_spinverse.bloch_torrey.finite_volumes.compiled_sweep import (
    CompiledSweep,
    face_operator,
)
from dipy_spinverse.bloch_torrey.finite_volumes.operator import (
    largest_rate,
    links_of,
    symmetrised_operator,
)
from dipy_spinverse.bloch_torrey.medium import medium_of
from dipy_spinverse.bloch_torrey.time_steps import Schedule, exponential_series
from dipy_spinverse.grid import TetrahedralGrid

# Wave vectors along x, y, z and the three diagonals between them give the second moments.
_DIRECTIONS = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=float
)
_DIAGONALS = ((3, 0, 1), (4, 0, 2), (5, 1, 2))
# Phase of a free spin's root mean square displacement, rad: the fourth moments add a relative
# 1e-3 to the second, and the tolerance of the series, 1e-8, is far below the phase squared.
_PHASE = 0.05


def displacement_moments(
    grid: TetrahedralGrid, transmissibility: torch.Tensor, time: float, diffusivity: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """Moments of the displacement of the spins that start in each tetrahedron, after a time in ms.

    Mean (V, T, 3), um, and mean outer product with itself (V, T, 3, 3), um^2, for relative
    transmissibilities (V, F). Spins are reflected at the boundary, also at an absorbing one.
    """
    medium = medium_of(grid, diffusivity)
    medium = replace(medium, loss_rate=np.zeros_like(medium.loss_rate))
    start = medium.equilibrium(grid)
    tau = transmissibility.detach().to("cpu", torch.float64)
    coupling, diagonals = symmetrised_operator(grid, tau, medium)
    q = _PHASE / np.sqrt(2 * diffusivity * time)
    n_directions = len(_DIRECTIONS)
    at_rest = Schedule(
        q=np.broadcast_to(q * _DIRECTIONS.T, (1, 2, 3, n_directions)),
        amplitude=np.array([[time, 0.0]]),
        stored=np.zeros(1, dtype=int),
        node_q=np.empty((0, 3, n_directions)),
        node_weight=np.empty(0),
        node_after=np.array([-1]),
        symmetric=False,
    )
    series = exponential_series(at_rest, largest_rate(grid, medium), longest_link=0.0)
    operator = face_operator(links_of(grid), coupling.numpy(), diagonals.numpy())
    states = CompiledSweep(operator, start, at_rest, series).states()
    states /= start[:, None, None]

    squared = 2 * (1 - states[:, :, 0, :n_directions]) / q**2
    second_moment = np.empty((len(tau), grid.n_tetrahedra, 3, 3))
    for k in range(3):
        second_moment[..., k, k] = squared[..., k]
    for lane, a, b in _DIAGONALS:
        mixed = (squared[..., lane] - squared[..., a] - squared[..., b]) / 2
        second_moment[..., a, b] = second_moment[..., b, a] = mixed
    return states[:, :, 1, :3] / q, second_moment
