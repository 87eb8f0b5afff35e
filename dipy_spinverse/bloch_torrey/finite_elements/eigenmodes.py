"""The slowest Laplace modes of a network, and their response to a change of its operator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, eye_array
from scipy.sparse.linalg import LinearOperator, SuperLU, eigsh, splu

from dipy_spinverse.bloch_torrey.finite_elements.sweep import LumpedNetwork, symmetrised_matrix

# Up to this size all modes are computed: a dense problem is then fast; chosen by hand.
_DENSE_NODES = 1200
# Shift of the inverse, in units of the highest rate of interest: the operator itself is singular.
_SHIFT = 1e-2
_MIN_MODES = 24  # also where a body is smaller than the length scale of interest
# Further modes, relative to those of interest, among which the largest gap is looked for.
_GAP_RANGE = 0.3
# Of the response of modes beyond those that are known: below the error of the truncation, 1e-3.
_RESPONSE_TOLERANCE = 1e-4
_ROUNDING = 1e-12  # of forcings, of what projections leave of them


def slowest_modes(
    matrix: csr_matrix, highest_rate: float, n_modes: int, surplus: float = 0.0
) -> tuple[np.ndarray, np.ndarray, SuperLU | None]:
    """Rates (n,), 1/ms, and shapes (N, n) of a positive semidefinite matrix's slowest modes.

    By sparse shift and invert up to a highest rate and a relative `surplus` beyond it, beginning
    with `n_modes`, and the factors of the shifted matrix; or all modes of a small one, and None.
    """
    n_nodes = matrix.shape[0]
    if n_nodes <= _DENSE_NODES or not np.isfinite(highest_rate):
        rates, shapes = np.linalg.eigh(matrix.toarray())
        return np.maximum(rates, 0), shapes, None
    shift = -_SHIFT * highest_rate
    factors = splu((matrix - shift * eye_array(n_nodes)).tocsc())
    inverse = LinearOperator(matrix.shape, factors.solve)
    start = np.random.default_rng(0).normal(size=n_nodes)
    while True:
        n_modes = min(n_modes, n_nodes - 2)  # the most that `eigsh` computes
        rates, shapes = eigsh(matrix, n_modes, sigma=shift, OPinv=inverse, v0=start)
        n_slow = int((rates <= highest_rate).sum())
        if n_modes == n_nodes - 2 or n_modes > n_slow + int(surplus * n_slow):
            order = np.argsort(rates)
            return np.maximum(rates[order], 0), shapes[:, order], factors
        n_modes *= 2


def centred_positions(network: LumpedNetwork) -> np.ndarray:
    """Positions (N, 3) from the centre of mass, so that phases stay small."""
    masses, positions = network.masses, network.positions
    return positions - masses @ positions / masses.sum()


def position_moments(positions: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Phi^T x_d Phi (3, n, n) of positions (N, 3) and shapes (N, n)."""
    return np.array([shapes.T @ (x[:, None] * shapes) for x in positions.T])


@dataclass(frozen=True, eq=False)
class Eigenmodes:
    """The slowest modes of a network, and their response to a change of its operator."""

    matrix: csr_matrix  # (N, N), the symmetrised operator A, 1/ms
    rates: np.ndarray  # (n,), that are kept
    shapes: np.ndarray  # (N, n)
    outer_rates: np.ndarray  # (k,), further ones that are known
    outer_shapes: np.ndarray  # (N, k)
    factors: SuperLU | None  # of A, shifted to be positive, where there are more modes

    @classmethod
    def of(cls, network: LumpedNetwork, highest_rate: float) -> Eigenmodes:
        """Modes up to about a highest rate, cut where the gap between rates is largest.

        Within a group of nearly equal rates the response to a change would be large.
        """
        matrix = symmetrised_matrix(network)
        rates, shapes, factors = slowest_modes(
            matrix, highest_rate, 2 * _MIN_MODES, 2 * _GAP_RANGE
        )
        n_slow = max(int((rates <= highest_rate).sum()), _MIN_MODES)
        stop, n = n_slow + max(int(_GAP_RANGE * n_slow), 4), len(rates)
        if stop < n:
            n = n_slow + int(np.argmax(rates[n_slow:stop] / rates[n_slow - 1 : stop - 1]))
        return cls(matrix, rates[:n], shapes[:, :n], rates[n:], shapes[:, n:], factors)

    def response(self, forcing: np.ndarray) -> np.ndarray:
        """(A - L_k)^+ P forcing_k of each mode: (N, n)."""
        gaps = self.outer_rates[:, None] - self.rates
        response = self.outer_shapes @ ((self.outer_shapes.T @ forcing) / gaps)
        return response if self.factors is None else response + self._far_response(forcing)

    def moments_of_response(self, positions: np.ndarray, forcing: np.ndarray) -> np.ndarray:
        """Phi^T x_d response(forcing_p): (P, 3, n, n) of positions (N, 3), forcing (P, N, n)."""
        weighted = [positions[:, [d]] * self.shapes for d in range(3)]
        gaps = self.outer_rates[:, None] - self.rates
        amplitudes = (self.outer_shapes.T @ forcing) / gaps
        moments = np.stack([(self.outer_shapes.T @ w).T @ amplitudes for w in weighted], axis=1)
        if self.factors is not None:
            for p, forcing_p in enumerate(forcing):
                response = self._far_response(forcing_p)
                moments[p] += np.array([w.T @ response for w in weighted])
        return moments

    def _far_response(self, forcing):
        """The response beyond all known modes, by preconditioned conjugate gradients."""
        factors = self.factors
        assert factors is not None
        basis, tiny = np.hstack([self.shapes, self.outer_shapes]), np.finfo(float).tiny

        def project(v):
            return v - basis @ (basis.T @ v)

        residual = project(forcing)
        # Where nothing but rounding is left of a forcing, its response is 0
        limit = _RESPONSE_TOLERANCE**2 * (residual**2).sum(axis=0)
        limit = np.maximum(limit, _ROUNDING**2 * (forcing**2).sum(axis=0))
        solution = np.zeros_like(residual)
        direction, previous_product = 0.0, 1.0
        while (unconverged := (residual**2).sum(axis=0) > limit).any():
            preconditioned = project(factors.solve(residual))
            product = (residual * preconditioned).sum(axis=0)
            direction = preconditioned + product / previous_product * direction
            image = project(self.matrix @ direction - self.rates * direction)
            # Steps of those that have converged would divide rounding errors
            length = np.where(unconverged, product, 0) / np.where(
                unconverged, np.maximum((direction * image).sum(axis=0), tiny), 1
            )
            solution += length * direction
            residual = residual - length * image
            previous_product = np.maximum(product, tiny)
        return solution
