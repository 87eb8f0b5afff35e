"""Sweeps over time on the CPU: the compiled loops of `sweep_kernels` on all threads."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.bloch_torrey.finite_volumes import sweep_kernels
from dipy_spinverse.bloch_torrey.finite_volumes.operator import Links
from dipy_spinverse.bloch_torrey.finite_volumes.vector_operations import REGISTER_BYTES
from dipy_spinverse.bloch_torrey.time_steps import ExponentialSeries, Schedule
from dipy_spinverse.threads import in_equal_parts


def lanes_of(dtype: np.dtype) -> int:
    """Measurements that are carried together: numbers in a vector register."""
    return REGISTER_BYTES // dtype.itemsize


def face_operator(links: Links, coupling: np.ndarray, diagonals: np.ndarray) -> tuple:
    """Operator of the kernels for one pool of water in each tetrahedron."""
    return (
        coupling, links.neighbours, coupling[:, :0], links.neighbours[:0],
        np.zeros(len(links.neighbours), dtype=bool), links.slot_links, diagonals,
        links.link_vectors,
    )  # fmt: skip


class CompiledSweep:
    """Sweeps of V operators and M measurements that are alike in time; cf. `TorchSweep`.

    For the operator see `sweep_kernels`; `start` (n,) is the symmetrised equilibrium, `columns`
    are those of the schedule's measurements.
    """

    def __init__(
        self,
        operator: tuple,
        start: np.ndarray,
        schedule: Schedule,
        series: ExponentialSeries,
        columns: slice = slice(None),
    ):
        self._lanes, self._n_fields = lanes_of(start.dtype), len(operator[0])
        self._schedule, self._columns, self._dtype = schedule, columns, start.dtype
        self._n_measurements = schedule.q[..., columns].shape[-1]
        q = self._in_blocks(schedule.q)
        plan = (
            schedule.amplitude, schedule.stored,
            series.centre, series.radius, series.degree, series.coefficients,
        )  # fmt: skip
        self._n_blocks, self._operator = len(q), (operator, start, q, plan)

    def signals(self) -> np.ndarray:
        """Signals (V, M)."""
        signals = self._empty()
        arguments = (*self._operator, self._schedule.symmetric, signals)
        in_equal_parts(sweep_kernels.sweep_signals, self._n_tasks, *arguments)
        return self._measurements(signals)

    def by_conductances(
        self, face_tetrahedra: np.ndarray, face_links: np.ndarray, inverse_root: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Signals (V, M) and their derivatives (V, M, F) by the conductances of faces."""
        faces = face_tetrahedra, face_links, inverse_root.astype(self._dtype)
        signals, by_face, *_ = self._sensitivities(faces, _no_pairs(face_links), n_diagonal=0)
        return signals, by_face

    def by_entries(self, pairs: np.ndarray, pair_links: np.ndarray) -> tuple[np.ndarray, ...]:
        """Signals (V, M), derivatives by entries for pairs (P, 2), by the diagonal and the start.

        The derivatives are (V, M, P), (V, M, n) and (V, M, n).
        """
        start = self._operator[1]
        faces = (*_no_pairs(pair_links), start[:0])
        signals, _, *derivatives = self._sensitivities(faces, (pairs, pair_links), len(start))
        return (signals, *derivatives)

    def states(self) -> np.ndarray:
        """States (V, n, 2, lanes) of the first block after the first exponential."""
        operator, start, q, plan = self._operator
        states = np.empty((self._n_fields, len(start), 2, self._lanes), self._dtype)
        arguments = operator, start, q[0], plan, states
        in_equal_parts(sweep_kernels.sweep_states, self._n_fields, *arguments)
        return states

    def _sensitivities(self, faces, pairs, n_diagonal):
        """Signals, and derivatives by conductances, pairs' entries, the diagonal and the start."""
        schedule = self._schedule
        nodes = self._in_blocks(schedule.node_q), schedule.node_weight, schedule.node_after
        sizes = len(faces[0]), len(pairs[0]), n_diagonal, n_diagonal
        results = [self._empty(), *(self._empty(size) for size in sizes)]
        signals, *derivatives = results
        in_equal_parts(
            sweep_kernels.sweep_sensitivities, self._n_tasks, *self._operator,
            schedule.symmetric, signals, nodes, faces, pairs, *derivatives,
        )  # fmt: skip
        return [self._measurements(values) for values in results]

    @property
    def _n_tasks(self):
        return self._n_fields * self._n_blocks

    def _empty(self, *shape):
        return np.empty((self._n_fields, self._n_blocks, self._lanes, *shape), self._dtype)

    def _measurements(self, values):
        """Values (V, blocks, lanes, ...) of measurements (V, M, ...)."""
        n_padded = self._n_blocks * self._lanes
        return values.reshape(len(values), n_padded, *values.shape[3:])[:, : self._n_measurements]

    def _in_blocks(self, q):
        """Wave vectors (..., m) as blocks (B, ..., lanes) of measurements, padded with zeros."""
        q = q[..., self._columns]
        n_blocks = -(-q.shape[-1] // self._lanes)
        padding = n_blocks * self._lanes - q.shape[-1]
        q = np.pad(q, [(0, 0)] * (q.ndim - 1) + [(0, padding)])
        q = q.reshape(*q.shape[:-1], n_blocks, self._lanes)
        return np.ascontiguousarray(np.moveaxis(q, -2, 0))


def _no_pairs(links):
    return np.empty((0, 2), links.dtype), links[:0]
