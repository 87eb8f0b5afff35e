"""Interfaces between the components of an inversion: a class with these methods can be used.

V voxels, M measurements, N unknowns, F faces.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.grid import TetrahedralGrid


@runtime_checkable
class Prior(Protocol):
    """A penalty on walls, in units of -ln(probability)."""

    @property
    def weight(self) -> float:
        """Factor of the penalty."""

    def value(self, grid: TetrahedralGrid, walls: Tensor) -> Tensor:
        """Penalty (V,) of wall strengths (V, F) in [0, 1]; differentiable by torch."""

    def gauss_newton_weight(self, grid: TetrahedralGrid, walls: Tensor) -> Tensor:
        """Diagonal approximation (V, F) >= 0 of its curvature."""


@dataclass(frozen=True, eq=False)
class WallProblem:
    """What is known about the voxels of a fit, and what is to be estimated.

    Diffusivities are in um^2/ms; `diffusivity` is an assumption unless `diffusivity_known`. If
    `S0_known`, signals are relative to the initial magnetisation, which is estimated otherwise;
    `free_water` is a fraction outside the grid. `n_fields` is the number of further permeability
    fields per voxel, `n_draws` that of posterior samples of packed cells.
    """

    acquisition: Acquisition
    grid: TetrahedralGrid
    diffusivity: float = 2.0
    diffusivity_known: bool = True
    free_diffusivity: float = 3.0
    S0_known: bool = False
    free_water: bool = False
    n_fields: int = 0
    n_draws: int = 0
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Permeability fields of V voxels; signals are relative to the S0 of the data.

    Arrays have voxels first, or (n, V, ...) for n further fields, which are transformed to the
    best agreement with the estimate (`walls.patterns`). `amplitudes` (V, K) are the initial
    magnetisation of each echo time, `free_water` is the fraction outside the grid. A solver may
    add `cells` (see `cell_search.smooth`), `maps` (n + 1, V) that are not computed from the faces,
    relative standard deviations `errors` of maps that all fields share, and the estimated
    diffusivity (V,), um^2/ms.
    """

    scaled_transmissibility: np.ndarray
    scaled_transmissibility_fields: np.ndarray
    wall_probability: np.ndarray
    amplitudes: np.ndarray
    free_water: np.ndarray
    free_water_fields: np.ndarray
    sigma: np.ndarray
    predicted: np.ndarray
    converged: np.ndarray
    cells: dict[str, np.ndarray] = field(default_factory=dict)
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    diffusivity: np.ndarray | None = None


@runtime_checkable
class WallSolver(Protocol):
    """Estimates permeability fields of many voxels of one `WallProblem`."""

    @property
    def estimates_noise(self) -> bool:
        """Whether it estimates an unknown noise level itself; otherwise repeated b0 give it."""

    def run(self, data: np.ndarray, sigma: np.ndarray | None) -> Reconstruction:
        """Permeability fields for data (V, M) with noise level (V,)."""
