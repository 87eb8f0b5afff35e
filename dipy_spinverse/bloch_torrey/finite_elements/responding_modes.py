"""The slowest modes of a network, and how they respond to a change of its operator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, eye_array
from scipy.sparse.linalg import LinearOperator, SuperLU, eigsh, splu

from dipy_spinverse.bloch_torrey.finite_elements.sweep import LumpedNetwork, symmetrised_matrix

_LEAST_MODES = 24
_MORE_MODES = 0.3  # of those wanted, among which the largest gap is looked for
_DENSE_NODES = 1200  # up to which all modes are found at once
_RESPONSE_TOLERANCE = 1e-4  # of the response of modes beyond those that are known


@dataclass(frozen=True, eq=False)
class Modes:
    """The slowest modes of a network, and how they respond to a change of its operator.

    Attributes
    ----------
    matrix : csr_matrix (N, N)
        The symmetrised operator A, 1/ms.
    rates, shapes : ndarray (n,), (N, n)
        That are kept.
    others, beyond : ndarray (k,), (N, k)
        Rates and shapes of further ones that are known.
    factors : SuperLU or None
        Of A, shifted to be positive, where there are more than these.
    """

    matrix: csr_matrix
    rates: np.ndarray
    shapes: np.ndarray
    others: np.ndarray
    beyond: np.ndarray
    factors: SuperLU | None

    def respond(self, pushed: np.ndarray) -> np.ndarray:
        """(A - L_k)^+ P pushed_k of each mode: (N, n)."""
        apart = self.others[:, None] - self.rates
        known = self.beyond @ ((self.beyond.T @ pushed) / apart)
        return known if self.factors is None else known + self._rest(pushed, self.rates)

    def moments_of_response(self, x: np.ndarray, pushed: np.ndarray) -> np.ndarray:
        """Phi^T x_d respond(pushed_p): (P, 3, n, n) of positions (N, 3) and pushed (P, N, n)."""
        weighted = [x[:, [d]] * self.shapes for d in range(3)]
        apart = self.others[:, None] - self.rates
        inside = (self.beyond.T @ pushed) / apart
        moments = np.stack([(self.beyond.T @ w).T @ inside for w in weighted], axis=1)
        if self.factors is not None:
            for p, each in enumerate(pushed):
                rest = self._rest(each, self.rates)
                moments[p] += np.array([w.T @ rest for w in weighted])
        return moments

    def _rest(self, pushed, shifts):
        """The response beyond all known modes, by conjugate gradients with the factors."""
        factors = self.factors
        assert factors is not None
        known = np.hstack([self.shapes, self.beyond])

        def beyond(v):
            return v - known @ (known.T @ v)

        residual = beyond(pushed)
        size = (residual**2).sum(axis=0)
        solved = np.zeros_like(residual)
        direction, before = 0.0, 1.0
        while ((residual**2).sum(axis=0) > _RESPONSE_TOLERANCE**2 * size).any():
            smooth = beyond(factors.solve(residual))
            along = (residual * smooth).sum(axis=0)
            direction = smooth + along / before * direction
            image = beyond(self.matrix @ direction - shifts * direction)
            length = along / np.maximum((direction * image).sum(axis=0), np.finfo(float).tiny)
            solved += length * direction
            residual = residual - length * image
            before = np.maximum(along, np.finfo(float).tiny)
        return solved


def modes_of(network: LumpedNetwork, highest: float) -> Modes:
    """Modes up to about a highest rate, cut where the gap between rates is largest."""
    matrix, n_nodes = symmetrised_matrix(network), len(network.masses)
    if n_nodes <= _DENSE_NODES or not np.isfinite(highest):
        rates, shapes = np.linalg.eigh(matrix.toarray())
        factors = None
    else:
        rates, shapes, factors = _slowest(matrix, highest)
    rates = np.maximum(rates, 0)
    wanted = max(int((rates <= highest).sum()), _LEAST_MODES)
    most = wanted + max(int(_MORE_MODES * wanted), 4)
    n = n_nodes
    if most < len(rates):
        # within a group of alike rates the response would be large
        n = wanted + int(np.argmax(rates[wanted:most] / rates[wanted - 1 : most - 1]))
    return Modes(matrix, rates[:n], shapes[:, :n], rates[n:], shapes[:, n:], factors)


def _slowest(matrix, highest):
    """Rates, modes and factors of the shifted matrix: enough modes to cut them somewhere."""
    n_nodes = matrix.shape[0]
    shift = -1e-2 * highest
    factors = splu((matrix - shift * eye_array(n_nodes)).tocsc())
    inverse = LinearOperator(matrix.shape, factors.solve)
    start = np.random.default_rng(0).normal(size=n_nodes)
    n = 2 * _LEAST_MODES
    while True:
        n = min(n, n_nodes - 2)  # the most that shift and invert can tell
        rates, shapes = eigsh(matrix, n, sigma=shift, OPinv=inverse, v0=start)
        order = np.argsort(rates)
        rates, shapes = rates[order], shapes[:, order]
        wanted = max(int((rates <= highest).sum()), _LEAST_MODES)
        if n == n_nodes - 2 or n > wanted + max(int(2 * _MORE_MODES * wanted), 8):
            return rates, shapes, factors
        n *= 2
