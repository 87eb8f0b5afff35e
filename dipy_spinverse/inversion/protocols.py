"""Interfaces between the components of an inversion: a class with these methods can be used.

V voxels, M measurements, N unknowns, F faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from torch import Tensor

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.inversion.curriculum import Stage, StageResult
from dipy_spinverse.inversion.reconstruction import Reconstruction


@runtime_checkable
class Prior(Protocol):
    """A penalty on wall fields, in units of -ln(probability)."""

    @property
    def weight(self) -> float:
        """Factor of the penalty."""

    def value(self, grid: TetrahedralGrid, walls: Tensor) -> Tensor:
        """Penalty (V,) of wall strengths (V, F) in [0, 1]; differentiable by torch."""

    def gauss_newton_weight(self, grid: TetrahedralGrid, walls: Tensor) -> Tensor:
        """Diagonal approximation (V, F) >= 0 of its curvature."""


@runtime_checkable
class ForwardModel(Protocol):
    """Signals as a function of bounded unknowns, with derivatives."""

    @property
    def n_unknowns(self) -> int:
        """N."""

    def bounds(self, template: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds (N,), of the type and on the device of `template`."""

    def signals(self, unknowns: Tensor) -> Tensor:
        """Signals (V, M) of unknowns (V, N)."""

    def sensitivities(self, unknowns: Tensor) -> tuple[Tensor, Tensor]:
        """Signals (V, M) and their derivatives (V, M, N)."""

    def penalty(self, unknowns: Tensor, priors: Sequence) -> tuple[Tensor, Tensor, Tensor]:
        """Value (V,), gradient (V, N) and diagonal curvature (V, N) >= 0 of priors."""


Model = TypeVar("Model", bound=ForwardModel, contravariant=True)


class Optimiser(Protocol[Model]):
    """Minimises |(S(x) - data) / sigma|^2 / 2 + priors(x) of each voxel in one stage."""

    def __call__(
        self, model: Model, data: Tensor, sigma: Tensor, initial: Tensor, stage: Stage, /
    ) -> tuple[Tensor, StageResult]:
        """Unknowns (V, N) for data and noise (V, M), from initial values (V, N), and a summary."""


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


@runtime_checkable
class WallSolver(Protocol):
    """Estimates permeability fields of many voxels of one `WallProblem`."""

    @property
    def n_stages(self) -> int:
        """Number of entries of the history."""

    @property
    def estimates_noise(self) -> bool:
        """Whether it estimates an unknown noise level itself; otherwise repeated b0 give it."""

    def run(self, data: np.ndarray, sigma: np.ndarray | None) -> Reconstruction:
        """Permeability fields for data (V, M) with noise level (V,)."""
