"""Signals of pure tissues as polynomials in B1 and B0: a few simulations serve all voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Polynomials of this degree follow trains of 16 echoes for B1 of 0.5 to 1.5 to 1e-5.
_N_B1, _N_B0 = 32, 9


@dataclass(frozen=True, eq=False)
class Axis:
    """Chebyshev nodes of one field.

    Attributes
    ----------
    low, high : float
        Of its values; where they are equal there is one node.
    most : int
        Nodes.
    """

    low: float
    high: float
    most: int

    @property
    def n_nodes(self) -> int:
        return self.most if self.high > self.low else 1

    @property
    def nodes(self) -> np.ndarray:
        """Values at which signals are simulated."""
        x = np.cos(np.pi * (np.arange(self.n_nodes) + 0.5) / self.n_nodes)
        return (self.low + self.high) / 2 + (self.high - self.low) / 2 * x

    def weights(self, values: np.ndarray, *, slope: bool = False) -> np.ndarray:
        """Of each node (V, K) in the value, or the slope, of the polynomial through the nodes."""
        half = (self.high - self.low) / 2 or 1.0
        degree, chebyshev = self.n_nodes - 1, np.polynomial.chebyshev
        middle = (self.low + self.high) / 2
        coefficients = np.linalg.inv(chebyshev.chebvander((self.nodes - middle) / half, degree))
        x = (np.asarray(values) - middle) / half
        if slope:
            if degree == 0:
                return np.zeros((len(x), 1))
            coefficients = chebyshev.chebder(coefficients) / half
            degree -= 1
        return chebyshev.chebvander(x, degree) @ coefficients


@dataclass(frozen=True, eq=False)
class SignalTable:
    """Signals (K, T, C) of tissues at nodes of B1 and B0, over unit proton density scale.

    Attributes
    ----------
    b1, b0 : Axis
    signals : Tensor (K, T, C)
    """

    b1: Axis
    b0: Axis
    signals: Tensor

    def columns(self, b1: np.ndarray, b0: np.ndarray) -> Tensor:
        """Signals (V, T, C) in voxels."""
        return self._of(self.weights(b1, b0), self.signals)

    def slopes(self, b1: np.ndarray, b0: np.ndarray) -> Tensor:
        """Their derivatives (V, T, C) by B1."""
        return self._of(self.weights(b1, b0, slope=True), self.signals)

    def weights(self, b1: np.ndarray, b0: np.ndarray, *, slope: bool = False) -> Tensor:
        """Weights (V, K) of the nodes."""
        first, second = self.b1.weights(b1, slope=slope), self.b0.weights(b0)
        return torch.tensor(np.einsum("vi,vj->vij", first, second)).flatten(1)

    @staticmethod
    def _of(weights, values):
        return (weights @ values.flatten(1)).reshape(len(weights), *values.shape[1:])


def axes_of(b1: np.ndarray, b0: np.ndarray, margin: float) -> tuple[Axis, Axis]:
    """Axes of the values of an image, with so much more B1 on both sides."""
    low, high = (float(b1.min()), float(b1.max())) if b1.size else (1.0, 1.0)
    ends = (float(b0.min()), float(b0.max())) if b0.size else (0.0, 0.0)
    return Axis(max(low - margin, 0.0), high + margin, _N_B1), Axis(*ends, _N_B0)


def table_of(simulator, sequences, constants: Tensor, axes: tuple[Axis, Axis]) -> SignalTable:
    """Simulate at all nodes."""
    return SignalTable(*axes, _simulated(simulator, sequences, constants, axes))


def slopes_by_constants(simulator, sequences, constants: Tensor, axes) -> Tensor:
    """Derivatives (K, T, C, P) of a table's signals by the logarithms of constants."""
    n_nodes = axes[0].n_nodes * axes[1].n_nodes
    logarithms = torch.log(constants).expand(n_nodes, *constants.shape).clone().requires_grad_()
    slopes: list[Tensor] = []
    for sequence in sequences:
        signals = _simulated(simulator, [sequence], torch.exp(logarithms), axes)
        # They depend on the constants of their own tissue and node only: sums do not mix them.
        slopes += torch.autograd.grad(signals.sum(), logarithms)
    return torch.stack(slopes, dim=-2)


def _simulated(simulator, sequences, constants, axes):
    b1, b0 = (torch.tensor(each.nodes) for each in axes)
    grid = torch.meshgrid(b1, b0, indexing="ij")
    signals = simulator.signals(sequences, constants, *(each.reshape(-1) for each in grid))
    return signals.to(torch.float64)
