"""Time stepping of finite elements, and the adjoint that gives their derivatives.

The elements are a network: nodes of mass m, joined by links of conductance g (which may be
negative) and displacement d, and in the frame that turns with the local phase

    m_i du_i/dt = sum_links g (exp(i q(t).d) u_j - u_i).

State arrays are (N, M), symmetrised by the root of the mass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy.sparse import coo_matrix, csr_matrix

from dipy_spinverse.bloch_torrey.time_steps import Schedule, phase_difference, series_between


@dataclass(frozen=True, eq=False)
class LumpedNetwork:
    """Nodes and links of finite elements, and the conductances between them.

    Periodic images of a node come after the nodes, so that phases belong to nodes and the
    matrix is real and the same for all measurements.
    """

    home: np.ndarray  # (N + images,), node of each node or image
    free: np.ndarray  # (N,) of bool, False where the magnetisation is fixed at 0
    ends: np.ndarray  # (L, 2), node, and node or image, that a link joins
    positions: np.ndarray  # (N + images, 3), um
    conductance: np.ndarray  # (L,), um^3/ms
    masses: np.ndarray  # (N,), um^3

    @property
    def start(self) -> np.ndarray:
        """Symmetrised uniform magnetisation (N,), of norm 1 if all nodes are free."""
        return np.sqrt(self.masses / self.masses.sum()) * self.free


def symmetrised_matrix(network: LumpedNetwork) -> csr_matrix:
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
    """Exponentials of the operator along the schedule of M measurements."""

    def __init__(self, network: LumpedNetwork, schedule: Schedule):
        self.network, self.schedule = network, schedule
        self.matrix = symmetrised_matrix(network)
        n, images = len(network.masses), len(network.home) - len(network.masses)
        self._n_images = images
        self._fold = csr_matrix(
            (np.ones(images), (network.home[n:], np.arange(images))), (n, images)
        )
        self._series = _series(network, self.matrix, schedule)

    def signals(self) -> np.ndarray:
        """Signals (M,).

        Of a symmetric encoding sum |v|^2 at TE/2, as the second half is the first in reverse.
        """
        state = self._states()[-1]
        if self.schedule.symmetric:
            return (np.abs(state) ** 2).sum(axis=0)
        return self.network.start @ state.real

    def pull_back(self, cotangent: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Derivatives of cotangent.S by conductances (L,), masses (N,) and displacements (L, 3).

        The adjoint of the computation itself, exponential by exponential in reverse: exact
        whatever the steps. With b_k the vectors of Clenshaw's recurrence and w the adjoint state,
        an exponential contributes sum_k (2 - [k=0]) (T_k w)^H dA b_(k+1).
        """
        states, network = self._states(store=True), self.network
        start = network.start[:, None]
        adjoint = (2 * states[-1] if self.schedule.symmetric else start + 0j) * cotangent
        by_link, by_mass = np.zeros((len(network.ends), 4)), np.zeros(len(network.masses))
        of_start = np.zeros(len(network.masses))
        if not self.schedule.symmetric:  # the signal is the last state times the start
            of_start += states[-1].real @ cotangent
        for e in range(len(self.schedule.amplitude) - 1, -1, -1):
            adjoint = self._pull_back_exponential(states[e], adjoint, e, by_link, by_mass)
        # the start is the root of mass / total mass
        of_start = (of_start + adjoint.real.sum(axis=1)) * network.start / 2
        by_mass += of_start / network.masses - of_start.sum() / network.masses.sum()
        return by_link[:, 0], by_mass, network.conductance[:, None] * by_link[:, 1:]

    def _states(self, store=False):
        """The states at the start and after each exponential, or only the last."""
        start = self.network.start[:, None].astype(complex)
        states = [np.repeat(start, self.schedule.q.shape[-1], axis=1)]
        for e in range(len(self.schedule.amplitude)):
            state = self._exponential(states[-1], e)[0]
            states = [*states, state] if store else [state]
        return states

    def _on_images(self, state, phase):
        """A state on nodes and images, in the frame at rest."""
        return phase * (state[self.network.home] if self._n_images else state)

    def _apply(self, state, phase):
        """K(q) of a state, symmetrised."""
        flow = phase.conj() * real_product(self.matrix, self._on_images(state, phase))
        if not self._n_images:
            return flow
        n = len(state)
        return flow[:n] + real_product(self._fold, flow[n:])

    def _exponential(self, state, e, store=False):
        """State after exponential e, and if stored the vectors b_1, b_2, ... (n, N, M) of
        Clenshaw's recurrence."""
        coefficients, terms = self._coefficients(e), self._terms(e)
        current, previous, vectors = coefficients[-1] * state, 0.0, []
        for k in range(len(coefficients) - 2, -1, -1):
            if store:
                vectors.append(current)
            factor = 2 if k > 0 else 1
            current, previous = (
                coefficients[k] * state - previous + factor * self._scaled(current, e, terms),
                current,
            )
        return current, np.array(vectors[::-1])

    def _coefficients(self, e):
        return self._series.coefficients[e, : self._series.degree[e] + 1]

    def _terms(self, e):
        """(amplitude, wave vectors (3, M), exp(i q.x)) of the operators in exponential e."""
        rows = zip(self.schedule.amplitude[e], self.schedule.q[e], strict=True)
        return [
            (amplitude, q, np.exp(1j * (self.network.positions @ q)))
            for amplitude, q in rows
            if amplitude
        ]

    def _scaled(self, state, e, terms):
        """The operator of exponential e, mapped to [-1, 1], applied to a state."""
        total = -self._series.centre[e] * state
        for amplitude, _, phase in terms:
            total -= amplitude * self._apply(state, phase)
        return total / self._series.radius[e]

    def _pull_back_exponential(self, state, adjoint, e, by_link, by_mass):
        """Adjoint state before exponential e; adds its contribution to the derivatives."""
        network, terms, coefficients = self.network, self._terms(e), self._coefficients(e)
        _, vectors = self._exponential(state, e, store=True)
        chebyshev = [adjoint, self._scaled(adjoint, e, terms)]
        for _ in range(len(coefficients) - 2):
            chebyshev.append(2 * self._scaled(chebyshev[-1], e, terms) - chebyshev[-2])
        chebyshev = np.array(chebyshev)
        result = np.tensordot(coefficients, chebyshev, 1)
        factors = -np.where(np.arange(len(vectors)) > 0, 2, 1) / self._series.radius[e]
        vectors *= factors[:, None, None]
        root = np.sqrt(network.masses)[:, None]
        for amplitude, q, phase in terms:
            by_measurement = np.ascontiguousarray(q.T)
            for y, u in zip(chebyshev[:-1], vectors, strict=True):
                flow = y.conj() * self._apply(u, phase) + self._apply(y, phase).conj() * u
                by_mass -= amplitude * flow.real.sum(axis=1) / (2 * network.masses)
                link_products(
                    network.ends, self._on_images(y / root, phase),
                    self._on_images(u / root, phase), by_measurement, amplitude, by_link,
                )  # fmt: skip
        return result


@njit(cache=True, nogil=True, fastmath=True)
def link_products(link_nodes, y, u, q, amplitude, total):
    """Add y^H dK u of every link to its derivatives by conductance and displacement.

    total[l, 0] += amplitude Re sum_m conj(y_i - y_j) (u_i - u_j);
    total[l, 1:] += amplitude sum_m q_m Im(conj(y_i) u_j - conj(y_j) u_i).
    """
    for link in range(len(link_nodes)):
        i, j = link_nodes[link]
        jump = x = y_sum = z = 0.0
        for m in range(y.shape[1]):
            yi, yj, ui, uj = y[i, m], y[j, m], u[i, m], u[j, m]
            dy, du = yi - yj, ui - uj
            jump += dy.real * du.real + dy.imag * du.imag
            swirl = yi.real * uj.imag - yi.imag * uj.real - yj.real * ui.imag + yj.imag * ui.real
            x += swirl * q[m, 0]
            y_sum += swirl * q[m, 1]
            z += swirl * q[m, 2]
        total[link, 0] += amplitude * jump
        total[link, 1] += amplitude * x
        total[link, 2] += amplitude * y_sum
        total[link, 3] += amplitude * z


def real_product(matrix: np.ndarray | csr_matrix, state: np.ndarray) -> np.ndarray:
    """Product of a real matrix with a complex state, without making the matrix complex."""
    return (matrix @ np.ascontiguousarray(state).view(float)).view(complex)


def _series(network, matrix, schedule):
    """Chebyshev series of the exponentials."""
    n = len(network.masses)
    magnitude = np.bincount(network.home, np.asarray(abs(matrix).sum(axis=1)).ravel(), n)
    norm = magnitude.max()
    i, j = network.ends.T
    longest = np.linalg.norm(network.positions[j] - network.positions[i], axis=1).max(initial=0)
    # Both operators of a Magnus step are positive; one has a small negative weight, and lets
    # eigenvalues rise above 0 by no more than the operators differ.
    phase = np.minimum(phase_difference(schedule, longest), 2.0)
    highest = np.maximum(-schedule.amplitude, 0).max(axis=1) * phase * norm
    return series_between(-schedule.amplitude.sum(axis=1) * norm - highest, highest)
