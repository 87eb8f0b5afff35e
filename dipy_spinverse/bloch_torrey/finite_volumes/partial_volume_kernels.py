"""Compiled sweeps over time for two pools of water in each tetrahedron, see `partial_volume`.

A pool has up to four neighbours in its own layer, and four in the other across the walls between
cells and what is around them.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from dipy_spinverse.bloch_torrey.finite_volumes.sweep_kernels import (
    Lanes,
    clenshaw_row,
    compiled,
    fill_phases,
    project,
)


@intrinsic
def _add_crossing(typing, now, before, phases, coupling, neighbours, links, i, scale):
    """before[i] += scale (K now)[i], K the exchange of a pool with the other layer."""
    signature = types.void(now, before, phases, coupling, neighbours, links, i, scale)

    def generate(context, builder, signature, args):
        v = Lanes(context, builder, signature, args)
        now, before, phases, coupling, neighbours, links = map(v.data, range(6))
        i, scale = args[6:]
        row = v.row(i)
        total = v.load_complex(before, row)
        for k in range(4):
            slot = builder.add(builder.mul(i, v.constant(4)), v.constant(k))
            weight = builder.fmul(scale, v.scalar(coupling, slot), flags=("fast",))
            weight = v.broadcast(weight)
            u = v.load_complex(now, v.row(v.integer(neighbours, slot)))
            phase = v.load_complex(phases, v.row(v.integer(links, slot)))
            product = v.complex_product(phase, [v.mul(weight, part) for part in u])
            total = [v.add(t, p) for t, p in zip(total, product, strict=True)]
        v.store(total[0], before, row)
        v.store(total[1], before, v.imaginary(row))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _add_products(typing, u, y, phases, total, pair, i, j, link, weight):
    """total[pair] += weight Re(conj(y_i) e^{i phase} u_j + conj(u_i) e^{i phase} y_j)."""
    signature = types.void(u, y, phases, total, pair, i, j, link, weight)

    def generate(context, builder, signature, args):
        v = Lanes(context, builder, signature, args)
        u, y, phases, total = map(v.data, range(4))
        pair, i, j, link, weight = args[4:]
        phase = v.load_complex(phases, v.row(link))

        def product(a, b):
            moved = v.complex_product(phase, v.load_complex(b, v.row(j)))
            here = v.load_complex(a, v.row(i))
            return v.add(v.mul(moved[0], here[0]), v.mul(moved[1], here[1]))

        _add(v, total, pair, weight, v.add(product(y, u), product(u, y)))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _add_own_product(typing, u, y, total, i, weight):
    """total[i] += weight Re(conj(y_i) u_i)."""
    signature = types.void(u, y, total, i, weight)

    def generate(context, builder, signature, args):
        v = Lanes(context, builder, signature, args)
        u, y, total = map(v.data, range(3))
        i, weight = args[3:]
        a, b = v.load_complex(u, v.row(i)), v.load_complex(y, v.row(i))
        _add(v, total, i, weight, v.add(v.mul(a[0], b[0]), v.mul(a[1], b[1])))
        return context.get_dummy_value()

    return signature, generate


def _add(v, total, index, weight, product):
    offset = v.builder.mul(index, v.constant(v.count))
    old = v.load(total, offset)
    v.store(v.add(old, v.mul(v.broadcast(weight), product)), total, offset)


@compiled
def _exponential(state, now, before, phases, q, pools, link_vectors, e, plan):
    """Apply exponential e of the plan to the state; returns where the result is and a spare."""
    amplitude, stored, centre, radius, degree, coefficients = plan
    coupling, neighbours, crossing, crossing_neighbours, crosses, links, diagonals = pools
    fill_phases(phases, link_vectors, q[e], amplitude[e])
    real, diagonal = state.dtype.type, diagonals[stored[e]]
    scale, shift, span = 2 / radius[e], centre[e], amplitude[e, 0] + amplitude[e, 1]
    before[:] = 0
    now[:] = real(coefficients[e, degree[e]]) * state
    for k in range(degree[e] - 1, -1, -1):
        # The last step of Clenshaw's recurrence has half the operator.
        step = scale if k > 0 else scale / 2
        for i in range(len(state)):
            clenshaw_row(
                now, before, state, phases, coupling, neighbours, links, i,
                real(step * (span * diagonal[i] - shift)), real(coefficients[e, k]), real(step),
            )  # fmt: skip
            if crosses[i]:
                _add_crossing(
                    now, before, phases, crossing, crossing_neighbours, links, i, real(step)
                )
        now, before = before, now
    return now, state, before


@compiled
def _started(state, start):
    state[:, 1] = 0
    for i in range(len(start)):
        state[i, 0] = start[i]


@compiled
def sweep_signals(first, last, pools, start, link_vectors, q, plan, symmetric, signals):
    """Signals (blocks, lanes) of blocks first..last-1; q (blocks, E, 2, 3, lanes), start (n,)."""
    n, n_links, lanes = len(start), len(link_vectors), q.shape[4]
    state = np.empty((n, 2, lanes), start.dtype)
    now, before = np.empty_like(state), np.empty_like(state)
    phases = np.empty((2 * n_links, 2, lanes), start.dtype)
    for block in range(first, last):
        _started(state, start)
        for e in range(q.shape[1]):
            state, now, before = _exponential(
                state, now, before, phases, q[block], pools, link_vectors, e, plan
            )
        project(start, state, symmetric, signals[block])


@compiled
def sweep_sensitivities(
    first, last, pools, start, link_vectors, q, plan, symmetric, pairs, nodes, signals,
    by_coupling, by_diagonal, by_start,
):  # fmt: skip
    """Signals, and their derivatives by the entries of the operator and by the start.

    As `sweep_signals`; pairs = (pools (P, 2), links (P,)), nodes = (q (blocks, N, 3, lanes),
    weight (N,), node_after (E,)); derivatives (blocks, lanes, P or n).
    """
    pair_pools, pair_links = pairs
    node_q, node_weight, node_after = nodes
    n, n_links, lanes, n_exponentials = len(start), len(link_vectors), q.shape[4], q.shape[1]
    stored = np.empty((len(node_weight), n, 2, lanes), start.dtype)
    state = np.empty((n, 2, lanes), start.dtype)
    now, before = np.empty_like(state), np.empty_like(state)
    phases = np.empty((2 * n_links, 2, lanes), start.dtype)
    total = np.empty((len(pair_pools), lanes), start.dtype)
    own = np.empty((n, lanes), start.dtype)
    unit = np.ones(1)
    for block in range(first, last):
        _started(state, start)
        stored[0] = state
        for e in range(n_exponentials):
            state, now, before = _exponential(
                state, now, before, phases, q[block], pools, link_vectors, e, plan
            )
            if node_after[e] >= 0:
                stored[node_after[e]] = state
        project(start, state, symmetric, signals[block])
        by_start[block] = 0
        if not symmetric:
            for i in range(n):
                by_start[block, :, i] = state[i, 0]
            _started(state, start)
        total[:] = 0
        own[:] = 0
        node = len(node_weight) - 1
        # Backwards in time the adjoint state; see `sweep_kernels.sweep_sensitivities`.
        for e in range(n_exponentials - 1, -2, -1):
            if e < 0 or node_after[e] >= 0:
                weight = start.dtype.type(node_weight[node])
                fill_phases(phases, link_vectors, node_q[block, node : node + 1], unit)
                for pair in range(len(pair_pools)):
                    i, j = pair_pools[pair]
                    _add_products(
                        stored[node], state, phases, total, pair, np.int64(i), np.int64(j),
                        np.int64(pair_links[pair]), weight,
                    )  # fmt: skip
                for i in range(n):
                    _add_own_product(stored[node], state, own, i, weight)
                node -= 1
            if e >= 0:
                state, now, before = _exponential(
                    state, now, before, phases, q[block], pools, link_vectors, e, plan
                )
        for m in range(lanes):
            for pair in range(len(pair_pools)):
                by_coupling[block, m, pair] = total[pair, m]
            for i in range(n):
                by_diagonal[block, m, i] = own[i, m]
                by_start[block, m, i] += state[i, 0, m] * (2 if symmetric else 1)
