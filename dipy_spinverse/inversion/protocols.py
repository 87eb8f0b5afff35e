"""What the parts of an inversion promise each other: whatever keeps a promise can take part.

V voxels, M measurements, N unknowns, F faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from torch import Tensor

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
        """Diagonal (V, F) >= 0 that stands in for its curvature."""


@runtime_checkable
class ForwardModel(Protocol):
    """Signals as a function of bounded unknowns, with derivatives."""

    @property
    def n_unknowns(self) -> int:
        """N."""

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Least and largest values (N,), of the type and on the device of `like`."""

    def signals(self, unknowns: Tensor) -> Tensor:
        """Signals (V, M) of unknowns (V, N)."""

    def sensitivities(self, unknowns: Tensor) -> tuple[Tensor, Tensor]:
        """Signals (V, M) and their derivatives (V, M, N)."""

    def penalty(self, unknowns: Tensor, priors: Sequence) -> tuple[Tensor, Tensor, Tensor]:
        """Value (V,), gradient (V, N) and weight (V, N) >= 0, for the curvature, of priors.

        What the unknowns stand for, and so what a prior on them means, only the model knows.
        """


Model = TypeVar("Model", bound=ForwardModel, contravariant=True)


class Optimiser(Protocol[Model]):
    """Lowers |(S(x) - data) / sigma|^2 / 2 + priors(x) of each voxel through one stage."""

    def __call__(
        self, model: Model, data: Tensor, sigma: Tensor, start: Tensor, stage: Stage, /
    ) -> tuple[Tensor, StageResult]:
        """Unknowns (V, N) for data and noise (V, M), from a start (V, N), and what was done."""


@runtime_checkable
class WallSolver(Protocol):
    """From the signals of voxels to wall fields."""

    @property
    def n_stages(self) -> int:
        """Number of entries of the history."""

    @property
    def estimates_noise(self) -> bool:
        """Whether it does better on its own where the noise is not given."""

    def run(self, data: np.ndarray, sigma: np.ndarray | None) -> Reconstruction:
        """Wall fields for data (V, M) with noise (V,)."""
