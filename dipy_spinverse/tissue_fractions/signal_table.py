"""Signals of pure tissues as polynomials in B1 and B0: few simulations serve all voxels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.tissue_fractions.mr_simulator import MRSimulator
from dipy_spinverse.tissue_fractions.sequences import Sequence

N_CONSTANTS = 4  # of a tissue that signals depend on: proton density, T1, T2, T2'
# Nodes: interpolate trains of 16 echoes for B1 of 0.5 to 1.5 to 1e-5.
_N_B1, _N_B0 = 32, 9


@dataclass(frozen=True, eq=False)
class Axis:
    """Chebyshev nodes of one field, from `low` to `high`; a single one where these are equal."""

    low: float
    high: float
    most_nodes: int

    @property
    def n_nodes(self) -> int:
        return self.most_nodes if self.high > self.low else 1

    @property
    def nodes(self) -> np.ndarray:
        """Values at which signals are simulated."""
        x = np.cos(np.pi * (np.arange(self.n_nodes) + 0.5) / self.n_nodes)
        return (self.low + self.high) / 2 + (self.high - self.low) / 2 * x

    def weights(self, values: np.ndarray, *, slope: bool = False) -> np.ndarray:
        """Weights (V, K) of the nodes in the interpolating polynomial, or in its derivative."""
        half_width = (self.high - self.low) / 2 or 1.0
        degree, chebyshev = self.n_nodes - 1, np.polynomial.chebyshev
        centre = (self.low + self.high) / 2
        nodes = chebyshev.chebvander((self.nodes - centre) / half_width, degree)
        coefficients = np.linalg.inv(nodes)
        x = (np.asarray(values) - centre) / half_width
        if slope:
            if degree == 0:
                return np.zeros((len(x), 1))
            coefficients = chebyshev.chebder(coefficients) / half_width
            degree -= 1
        return chebyshev.chebvander(x, degree) @ coefficients


def axes_of(b1: np.ndarray, b0: np.ndarray, margin: float) -> tuple[Axis, Axis]:
    """Axes over the values of an image, with a margin of B1 on both sides."""
    b1_range = (float(b1.min()), float(b1.max())) if b1.size else (1.0, 1.0)
    b0_range = (float(b0.min()), float(b0.max())) if b0.size else (0.0, 0.0)
    low, high = max(b1_range[0] - margin, 0.0), b1_range[1] + margin
    return Axis(low, high, _N_B1), Axis(*b0_range, _N_B0)


@dataclass(frozen=True, eq=False)
class SignalTable:
    """Signals (K, T, C) of pure tissues at nodes of B1 and B0, for unit scale."""

    b1: Axis
    b0: Axis
    signals: Tensor

    def pure_signals(self, b1: np.ndarray, b0: np.ndarray) -> Tensor:
        """Signals (V, T, C) in voxels."""
        return self._interpolated(self.weights(b1, b0))

    def slopes(self, b1: np.ndarray, b0: np.ndarray) -> Tensor:
        """Derivatives (V, T, C) by B1."""
        return self._interpolated(self.weights(b1, b0, slope=True))

    def weights(self, b1: np.ndarray, b0: np.ndarray, *, slope: bool = False) -> Tensor:
        """Weights (V, K) of the nodes."""
        of_b1, of_b0 = self.b1.weights(b1, slope=slope), self.b0.weights(b0)
        return torch.tensor(np.einsum("vi,vj->vij", of_b1, of_b0)).flatten(1)

    def _interpolated(self, weights):
        return (weights @ self.signals.flatten(1)).reshape(len(weights), *self.signals.shape[1:])


@dataclass(frozen=True, eq=False)
class SignalSimulation:
    """Simulates signal tables and their derivatives by constants, over axes of B1 and B0."""

    simulator: MRSimulator
    sequences: tuple[Sequence, ...]
    axes: tuple[Axis, Axis]

    @cached_property
    def _fields(self) -> list[Tensor]:
        """B1 and B0 (K,) of the nodes."""
        nodes = torch.meshgrid(*(torch.tensor(axis.nodes) for axis in self.axes), indexing="ij")
        return [field.reshape(-1) for field in nodes]

    def table(self, constants: Tensor) -> SignalTable:
        """Signals for constants (T, 5)."""
        signals = self.simulator.signals(self.sequences, constants, *self._fields)
        return SignalTable(*self.axes, signals.to(torch.float64))

    def derivatives(self, constants: Tensor) -> Tensor:
        """Derivatives (K, T, C, 4) by the logarithms of constants."""
        shape = len(self._fields[0]), *constants.shape
        logarithms = torch.log(constants).expand(shape).clone().requires_grad_()
        slopes: list[Tensor] = []
        for sequence in self.sequences:
            signals = self.simulator.signals([sequence], torch.exp(logarithms), *self._fields)
            # Signals of a tissue and node depend on its own constants only: the sum mixes none.
            slopes += torch.autograd.grad(signals.to(torch.float64).sum(), logarithms)
        return torch.stack(slopes, dim=-2)[..., :N_CONSTANTS]
