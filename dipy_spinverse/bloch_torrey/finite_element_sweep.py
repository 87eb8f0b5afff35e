"""Time stepping of finite elements, and the adjoint that gives their derivatives.

The elements are a network: nodes of mass m, joined by links of conductance g (which may be
negative) and displacement d, and in the frame that turns with the local phase

    m_i du_i/dt = sum_links g (exp(i q(t).d) u_j - u_i).

State arrays are (N, M), symmetrised by the root of the mass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.special import eval_chebyt, ive

from dipy_spinverse.bloch_torrey.propagators import CHEBYSHEV_TOLERANCE, Schedule


@dataclass(frozen=True, eq=False)
class Network:
    """Nodes and links of finite elements, and what flows between them.

    Periodic images of a node stand behind the nodes, so that phases belong to nodes and the
    matrix is real and the same for all measurements.

    Attributes
    ----------
    home : ndarray (N + images,)
        Node of each node or image.
    free : ndarray (N,) of bool
        False where the magnetisation is held at 0.
    ends : ndarray (L, 2)
        Node, and node or image, that a link joins.
    positions : ndarray (N + images, 3)
        um.
    conductance : ndarray (L,)
        um^3/ms.
    masses : ndarray (N,)
        um^3.
    """

    home: np.ndarray
    free: np.ndarray
    ends: np.ndarray
    positions: np.ndarray
    conductance: np.ndarray
    masses: np.ndarray

    @property
    def start(self) -> np.ndarray:
        """Symmetrised uniform magnetisation (N,), of norm 1 where nothing is held."""
        return np.sqrt(self.masses / self.masses.sum()) * self.free


def symmetrised_matrix(network: Network) -> csr_matrix:
    """K between nodes and images, divided by the roots of both masses, 1/ms."""
    scale = (network.free / np.sqrt(network.masses))[network.home]
    (i, j), g = network.ends.T, network.conductance
    rows, columns = np.concatenate([i, j, i, j]), np.concatenate([j, i, i, j])
    values = np.concatenate([-g, -g, g, g]) * scale[rows] * scale[columns]
    n = len(network.home)
    matrix = coo_matrix((values, (rows, columns)), (n, n)).tocsr()
    matrix.sum_duplicates()
    return matrix


class Stepper:
    """Exponentials of the operator along a schedule, for M measurements of one timing.

    Parameters
    ----------
    network : Network
    q : ndarray (M, 3)
        Wave vectors of the plateau, rad/um.
    schedule : Schedule
    """

    def __init__(self, network: Network, q: np.ndarray, schedule: Schedule):
        self.network, self.q, self.schedule = network, q, schedule
        self.matrix = symmetrised_matrix(network)
        n, images = len(network.masses), len(network.home) - len(network.masses)
        self._n_images = images
        self._fold = csr_matrix(
            (np.ones(images), (network.home[n:], np.arange(images))), (n, images)
        )
        self.phase = network.positions @ q.T
        self.series = _series(network, self.matrix, q, schedule)

    def turn(self, level: float) -> np.ndarray:
        """exp(i q.x) of nodes and images at a relative wave vector."""
        return np.exp(1j * level * self.phase)

    def spread(self, state: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """A state on nodes and images, in the frame at rest."""
        return turn * (state[self.network.home] if self._n_images else state)

    def apply(self, state: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """K(q) of a state, symmetrised."""
        flow = turn.conj() * real_product(self.matrix, self.spread(state, turn))
        if not self._n_images:
            return flow
        n = len(state)
        return flow[:n] + real_product(self._fold, flow[n:])

    def exponential(self, state: np.ndarray, e: int) -> np.ndarray:
        """State after exponential e of the schedule, by Clenshaw's recurrence."""
        centre, radius, coefficients = self.series[e]
        terms = [
            (amplitude, self.turn(level))
            for amplitude, level in zip(
                self.schedule.amplitude[e], self.schedule.level[e], strict=True
            )
            if amplitude != 0
        ]
        now, before = coefficients[-1] * state, 0.0
        for k in range(len(coefficients) - 2, -1, -1):
            scale = (2 if k > 0 else 1) / radius
            following = coefficients[k] * state - before - (scale * centre) * now
            for amplitude, turn in terms:
                following -= (scale * amplitude) * self.apply(now, turn)
            now, before = following, now
        return now

    def signals(self) -> np.ndarray:
        """Signals (M,): sum |v|^2 at TE/2; the second half is the first in reverse."""
        state = self._start()
        for e in range(len(self.schedule.level)):
            state = self.exponential(state, e)
        return (np.abs(state) ** 2).sum(axis=0)

    def pull_back(self, cotangent: np.ndarray):
        """Derivatives of cotangent.S by conductances (L,), masses (N,) and displacements (L, 3).

        The adjoint state is the state in reverse (see the finite volumes), so that one sweep over
        the whole encoding serves both. The schedule must have nodes.
        """
        schedule, network = self.schedule, self.network
        stored, state = [self._start()], self._start()
        for e in range(len(schedule.level)):
            state = self.exponential(state, e)
            if schedule.node_after[e] >= 0:
                stored.append(state)
        signals = (np.abs(state) ** 2).sum(axis=0)
        total = [
            np.zeros(len(network.ends)),
            np.zeros(len(state)),
            np.zeros((len(network.ends), 3)),
        ]
        for e in range(len(schedule.level) - 1, -2, -1):
            if e < 0 or schedule.node_after[e] >= 0:
                node = len(stored) - 1
                weight = schedule.node_weight[node] * cotangent
                parts = self._integrand(stored.pop(), state, schedule.node_level[node], weight)
                total = [t + p for t, p in zip(total, parts, strict=True)]
            if e >= 0:
                state = self.exponential(state, e)
        root = np.sqrt(network.masses * network.masses.sum())
        at_the_end = state.real @ cotangent / root - signals @ cotangent / network.masses.sum()
        return total[0], total[1] + at_the_end, total[2]

    def _start(self):
        return np.repeat(self.network.start[:, None].astype(complex), len(self.q), axis=1)

    def _integrand(self, state, adjoint, level, weight):
        network, turn = self.network, self.turn(level)
        root = np.sqrt(network.masses)[:, None]
        u, y = (self.spread(x / root, turn) for x in (state, adjoint))
        (i, j), g = network.ends.T, network.conductance
        jumps = ((y[i] - y[j]).conj() * (u[i] - u[j])).real
        swirl = (y[i].conj() * u[j] - y[j].conj() * u[i]).imag
        flow = adjoint.conj() * self.apply(state, turn) + state.conj() * self.apply(adjoint, turn)
        return (
            -jumps @ weight,
            flow.real @ weight / (2 * network.masses),
            -g[:, None] * ((swirl * weight) @ (level * self.q)),
        )


def real_product(matrix: csr_matrix, state: np.ndarray) -> np.ndarray:
    """Product of a real sparse matrix with a complex state, without making the matrix complex."""
    parts = np.ascontiguousarray(state).view(float)
    return (matrix @ parts).view(complex)


def _series(network, matrix, q, schedule):
    """Centre, radius and Chebyshev coefficients of each exponential."""
    n = len(network.masses)
    magnitude = np.bincount(network.home, np.asarray(abs(matrix).sum(axis=1)).ravel(), n)
    norm = magnitude.max()
    i, j = network.ends.T
    largest_phase = np.abs((network.positions[j] - network.positions[i]) @ q.T).max(initial=0)
    # Both operators of a Magnus step are positive; one has a small negative weight, and lets
    # eigenvalues rise above 0 by no more than the operators differ.
    turn = np.minimum(np.abs(np.diff(schedule.level, axis=1)[:, 0]) * largest_phase, 2.0)
    negative = np.maximum(-schedule.amplitude, 0).max(axis=1)
    series = []
    for span, highest in zip(schedule.amplitude.sum(axis=1), negative * turn * norm, strict=True):
        lowest = -span * norm - highest
        centre, radius = (highest + lowest) / 2, (highest - lowest) / 2
        k = np.arange(int(8 * np.sqrt(radius)) + 40)
        coefficients = np.where(k == 0, 1, 2) * ive(k, radius) * np.exp(highest)
        tail = np.cumsum(coefficients[::-1])[::-1]
        coefficients = coefficients[: max(int((tail > CHEBYSHEV_TOLERANCE).sum()), 2)]
        # the equilibrium (eigenvalue 0) is kept exactly
        k = np.arange(len(coefficients))
        coefficients = coefficients / (coefficients @ eval_chebyt(k, -centre / radius))
        series.append((centre, radius, coefficients))
    return series
