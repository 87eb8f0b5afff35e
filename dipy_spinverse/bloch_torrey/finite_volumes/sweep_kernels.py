"""Compiled sweeps over time on the CPU.

A block of measurements (one vector register wide) is carried through the whole encoding while
it stays in the cache. A state is an array (n, 2, lanes): real and imaginary parts per lane, of n
tetrahedra, or of the pools of water in tetrahedra that contain two.

The operator is the tuple

    coupling (V, n, 4), neighbours (n, 4)      exchange with up to four neighbours,
    crossing (V, n, 4), crossing_neighbours,   with up to four more across walls within
    crosses (n,) of bool                       tetrahedra, and which pools have any,
    links (n, 4)                               link of each neighbour, as in `Links.slot_links`,
    diagonals (V, 2, n)                        of transverse and of stored magnetisation,
    link_vectors (L, 3)

of V fields; the plan of exponentials is (amplitude, stored, centre, radius, degree,
coefficients), see `Schedule` and `ExponentialSeries`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dipy_spinverse.bloch_torrey.finite_volumes.vector_operations import (
    add_crossing,
    add_diagonal_product,
    add_jump_product,
    add_pair_product,
    clenshaw_row,
)

_compiled = njit(nogil=True, fastmath=True, error_model="numpy", cache=True)


@_compiled
def _fill_phases(phases, link_vectors, q, amplitude):
    """phases[l] = sum_k amplitude[k] exp(i q[k].link_vectors[l]), and its conjugate for -l."""
    n_links, lanes = len(link_vectors), q.shape[2]
    for link in range(n_links):
        x, y, z = link_vectors[link]
        for m in range(lanes):
            real = imaginary = 0.0
            for k in range(len(amplitude)):
                if amplitude[k] != 0:
                    angle = q[k, 0, m] * x + q[k, 1, m] * y + q[k, 2, m] * z
                    real += amplitude[k] * np.cos(angle)
                    imaginary += amplitude[k] * np.sin(angle)
            phases[link, 0, m] = real
            phases[link, 1, m] = imaginary
            phases[link + n_links, 0, m] = real
            phases[link + n_links, 1, m] = -imaginary


@_compiled
def _exponential(state, current, previous, phases, q, operator, v, e, plan):
    """Apply exponential e to the state of field v; returns the result and two spare arrays."""
    amplitude, stored, centre, radius, degree, coefficients = plan
    coupling, neighbours, crossing, crossing_neighbours, crosses, links, diagonals, _ = operator
    _fill_phases(phases, operator[-1], q[e], amplitude[e])
    real, diagonal = state.dtype.type, diagonals[v, stored[e]]
    exchange, exchange_across = coupling[v], crossing[v]
    scale, shift, span = 2 / radius[e], centre[e], amplitude[e, 0] + amplitude[e, 1]
    previous[:] = 0
    current[:] = real(coefficients[e, degree[e]]) * state
    for k in range(degree[e] - 1, -1, -1):
        # The last step of Clenshaw's recurrence has half the operator.
        step = scale if k > 0 else scale / 2
        for i in range(len(state)):
            clenshaw_row(
                current, previous, state, phases, exchange, neighbours, links, i,
                real(step * (span * diagonal[i] - shift)), real(coefficients[e, k]), real(step),
            )  # fmt: skip
            if crosses[i]:
                add_crossing(
                    current, previous, phases, exchange_across, crossing_neighbours, links, i,
                    real(step),
                )  # fmt: skip
        current, previous = previous, current
    return current, state, previous


@_compiled
def _fill_real(state, start):
    """A state without imaginary part, the same for all measurements."""
    state[:, 1] = 0
    for i in range(len(start)):
        state[i, 0] = start[i]


@_compiled
def _project(start, state, symmetric, signals):
    """Signals of states in the middle of symmetric encodings, or at the end of others."""
    signals[:] = 0
    for i in range(len(state)):
        for m in range(len(signals)):
            if symmetric:
                signals[m] += state[i, 0, m] ** 2 + state[i, 1, m] ** 2
            else:
                signals[m] += start[i] * state[i, 0, m]


@_compiled
def sweep_signals(first_task, end_task, operator, start, q, plan, symmetric, signals):
    """Signals of tasks first_task..end_task-1; a task is one field and one block of measurements.

    Shapes: start (n,), q (blocks, E, 2, 3, lanes), signals (V, blocks, lanes).
    """
    n_blocks, lanes = len(q), q.shape[4]
    state = np.empty((len(start), 2, lanes), start.dtype)
    current, previous = np.empty_like(state), np.empty_like(state)
    phases = np.empty((2 * len(operator[-1]), 2, lanes), start.dtype)
    for task in range(first_task, end_task):
        v, block = task // n_blocks, task % n_blocks
        _fill_real(state, start)
        for e in range(q.shape[1]):
            state, current, previous = _exponential(
                state, current, previous, phases, q[block], operator, v, e, plan
            )
        _project(start, state, symmetric, signals[v, block])


@_compiled
def sweep_sensitivities(
    first_task, end_task, operator, start, q, plan, symmetric, signals, nodes, faces, pairs,
    by_face, by_pair, by_diagonal, by_start,
):  # fmt: skip
    """As `sweep_signals`, and derivatives (V, blocks, lanes, ...) of the signals.

    By the conductances of faces = (tetrahedra (F, 2), links (F,), 1/sqrt(w) (n,)), and by the
    entries of the operator for pairs = (pools (P, 2), links (P,)), by its diagonal and by the
    start. Those of size 0 are left out. nodes = (q (blocks, N, 3, lanes), weight (N,),
    node_after (E,)).
    """
    face_sides, face_links, inverse_root = faces
    pair_pools, pair_links = pairs
    node_q, node_weight, node_after = nodes
    n_blocks, n_exponentials, lanes = len(q), q.shape[1], q.shape[4]
    n, n_diagonal, link_vectors = len(start), by_diagonal.shape[3], operator[-1]
    real, unit = start.dtype.type, np.ones(1)
    states = np.empty((len(node_weight), n, 2, lanes), start.dtype)
    state = np.empty((n, 2, lanes), start.dtype)
    current, previous = np.empty_like(state), np.empty_like(state)
    phases = np.empty((2 * len(link_vectors), 2, lanes), start.dtype)
    face_totals = np.empty((len(face_sides), lanes), start.dtype)
    pair_totals = np.empty((len(pair_pools), lanes), start.dtype)
    diagonal_totals = np.empty((n_diagonal, lanes), start.dtype)
    for task in range(first_task, end_task):
        v, block = task // n_blocks, task % n_blocks
        _fill_real(state, start)
        states[0] = state
        for e in range(n_exponentials):
            state, current, previous = _exponential(
                state, current, previous, phases, q[block], operator, v, e, plan
            )
            if node_after[e] >= 0:
                states[node_after[e]] = state
        _project(start, state, symmetric, signals[v, block])
        # Backwards in time, the adjoint state: of a symmetric encoding, the states of its
        # second half in reverse, which go on from here; else it starts anew.
        by_start[v, block] = 0
        if not symmetric:
            for i in range(n_diagonal):
                by_start[v, block, :, i] = state[i, 0]
            _fill_real(state, start)
        face_totals[:] = 0
        pair_totals[:] = 0
        diagonal_totals[:] = 0
        node = len(node_weight) - 1
        for e in range(n_exponentials - 1, -2, -1):
            if e < 0 or node_after[e] >= 0:
                weight = real(node_weight[node])
                _fill_phases(phases, link_vectors, node_q[block, node : node + 1], unit)
                for f in range(len(face_sides)):
                    i, j = face_sides[f]
                    add_jump_product(
                        states[node], state, phases, face_totals, f, np.int64(i), np.int64(j),
                        np.int64(face_links[f]), inverse_root[i], inverse_root[j], -weight,
                    )  # fmt: skip
                for p in range(len(pair_pools)):
                    i, j = pair_pools[p]
                    add_pair_product(
                        states[node], state, phases, pair_totals, p, np.int64(i), np.int64(j),
                        np.int64(pair_links[p]), weight,
                    )  # fmt: skip
                for i in range(n_diagonal):
                    add_diagonal_product(states[node], state, diagonal_totals, i, weight)
                node -= 1
            if e >= 0:
                state, current, previous = _exponential(
                    state, current, previous, phases, q[block], operator, v, e, plan
                )
        for m in range(lanes):
            for f in range(len(face_sides)):
                by_face[v, block, m, f] = face_totals[f, m]
            for p in range(len(pair_pools)):
                by_pair[v, block, m, p] = pair_totals[p, m]
            for i in range(n_diagonal):
                by_diagonal[v, block, m, i] = diagonal_totals[i, m]
                by_start[v, block, m, i] += state[i, 0, m] * (2 if symmetric else 1)


@_compiled
def sweep_states(first_field, end_field, operator, start, q, plan, states):
    """States (V, n, 2, lanes) of fields first_field..end_field-1 after one exponential."""
    lanes = q.shape[3]
    state = np.empty((len(start), 2, lanes), start.dtype)
    current, previous = np.empty_like(state), np.empty_like(state)
    phases = np.empty((2 * len(operator[-1]), 2, lanes), start.dtype)
    for v in range(first_field, end_field):
        _fill_real(state, start)
        state, current, previous = _exponential(
            state, current, previous, phases, q, operator, v, 0, plan
        )
        states[v] = state
