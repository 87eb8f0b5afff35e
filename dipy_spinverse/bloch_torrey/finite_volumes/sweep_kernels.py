"""Compiled sweeps over time on the CPU.

A block of measurements (one vector register wide) is carried through the whole encoding while
it stays in the cache. A state is an array (T, 2, LANES): real and imaginary parts per lane.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

REGISTER_BYTES = 64


class Lanes:
    """LLVM code on vectors that hold one number for each measurement of a block."""

    # Numba's own loops over lanes stay scalar (it cannot rule out that arrays overlap), 4 to 5
    # times slower than these; hence the few vector instructions by hand.

    def __init__(self, context, builder, signature, args):
        self.context, self.builder, self.signature, self.args = context, builder, signature, args
        element = context.get_value_type(signature.args[0].dtype)
        self.align = 8 if isinstance(element, ir.DoubleType) else 4
        self.count = REGISTER_BYTES // self.align
        self.vector = ir.VectorType(element, self.count)
        self.zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.count), [0] * self.count)

    def data(self, k):
        return self.context.make_array(self.signature.args[k])(
            self.context, self.builder, value=self.args[k]
        ).data

    def constant(self, n):
        return ir.Constant(ir.IntType(64), n)

    def row(self, index):
        """Offset of a row's real part."""
        return self.builder.mul(index, self.constant(2 * self.count))

    def imaginary(self, offset):
        return self.builder.add(offset, self.constant(self.count))

    def integer(self, pointer, offset):
        value = self.builder.load(self.builder.gep(pointer, [offset]))
        return self.builder.sext(value, ir.IntType(64))

    def scalar(self, pointer, offset):
        return self.builder.load(self.builder.gep(pointer, [offset]))

    def _address(self, pointer, offset):
        return self.builder.bitcast(self.builder.gep(pointer, [offset]), self.vector.as_pointer())

    def load(self, pointer, offset):
        value = self.builder.load(self._address(pointer, offset))
        value.align = self.align
        return value

    def load_complex(self, pointer, offset):
        return self.load(pointer, offset), self.load(pointer, self.imaginary(offset))

    def store(self, value, pointer, offset):
        self.builder.store(value, self._address(pointer, offset)).align = self.align

    def broadcast(self, scalar):
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(first, undefined, self.zeros)

    def add(self, x, y):
        return self.builder.fadd(x, y, flags=("fast",))

    def sub(self, x, y):
        return self.builder.fsub(x, y, flags=("fast",))

    def mul(self, x, y):
        return self.builder.fmul(x, y, flags=("fast",))

    def complex_product(self, x, y):
        real = self.sub(self.mul(x[0], y[0]), self.mul(x[1], y[1]))
        return real, self.add(self.mul(x[0], y[1]), self.mul(x[1], y[0]))


@intrinsic
def clenshaw_row(
    typing, now, before, state, phases, coupling, neighbours, links, i, diagonal, coefficient,
    scale,
):  # fmt: skip
    """before[i] = scale (K now)[i] + coefficient state[i] - before[i], of one tetrahedron."""
    signature = types.void(
        now, before, state, phases, coupling, neighbours, links, i, diagonal, coefficient, scale
    )

    def generate(context, builder, signature, args):
        v = Lanes(context, builder, signature, args)
        now, before, state, phases, coupling, neighbours, links = map(v.data, range(7))
        i, diagonal, coefficient, scale = args[7:]
        row = v.row(i)
        diagonal, coefficient = v.broadcast(diagonal), v.broadcast(coefficient)
        total = [
            v.add(v.mul(diagonal, u), v.mul(coefficient, s))
            for u, s in zip(v.load_complex(now, row), v.load_complex(state, row), strict=True)
        ]
        for k in range(4):
            slot = builder.add(builder.mul(i, v.constant(4)), v.constant(k))
            weight = builder.fmul(scale, v.scalar(coupling, slot), flags=("fast",))
            weight = v.broadcast(weight)
            u = v.load_complex(now, v.row(v.integer(neighbours, slot)))
            phase = v.load_complex(phases, v.row(v.integer(links, slot)))
            product = v.complex_product(phase, [v.mul(weight, part) for part in u])
            total = [v.add(t, p) for t, p in zip(total, product, strict=True)]
        old = v.load_complex(before, row)
        v.store(v.sub(total[0], old[0]), before, row)
        v.store(v.sub(total[1], old[1]), before, v.imaginary(row))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _jump_product(typing, u, y, phases, total, face, i, j, link, scale_i, scale_j, weight):
    """total[face] += weight Re(conj(jump of y) (jump of u)), jump = exp(i phase) x_j - x_i."""
    signature = types.void(u, y, phases, total, face, i, j, link, scale_i, scale_j, weight)

    def generate(context, builder, signature, args):
        v = Lanes(context, builder, signature, args)
        u, y, phases, total = map(v.data, range(4))
        face, i, j, link, scale_i, scale_j, weight = args[4:]
        scale_i, scale_j = v.broadcast(scale_i), v.broadcast(scale_j)
        phase = [v.mul(scale_j, part) for part in v.load_complex(phases, v.row(link))]

        def jump(x):
            moved = v.complex_product(phase, v.load_complex(x, v.row(j)))
            here = v.load_complex(x, v.row(i))
            return [v.sub(m, v.mul(scale_i, h)) for m, h in zip(moved, here, strict=True)]

        a, b = jump(u), jump(y)
        product = v.add(v.mul(a[0], b[0]), v.mul(a[1], b[1]))
        offset = builder.mul(face, v.constant(v.count))
        old = v.load(total, offset)
        v.store(v.add(old, v.mul(v.broadcast(weight), product)), total, offset)
        return context.get_dummy_value()

    return signature, generate


compiled = njit(nogil=True, fastmath=True, error_model="numpy", cache=True)


@compiled
def fill_phases(phases, link_vectors, q, amplitude):
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


@compiled
def _exponential(state, now, before, phases, q, coupling, diagonals, topology, e, plan):
    """Apply exponential e of the plan to the state; returns where the result is and a spare."""
    amplitude, stored, centre, radius, degree, coefficients = plan
    neighbours, links, link_vectors = topology
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
        now, before = before, now
    return now, state, before


@compiled
def _accumulate(u, y, phases, total, pairs, face_links, inverse_root_volume, weight):
    for f in range(len(pairs)):
        i, j = pairs[f]
        _jump_product(
            u, y, phases, total, f, np.int64(i), np.int64(j), np.int64(face_links[f]),
            inverse_root_volume[i], inverse_root_volume[j], weight,
        )  # fmt: skip


@compiled
def project(start, state, symmetric, signals):
    """Signals of states in the middle of symmetric encodings, or at the end of others."""
    signals[:] = 0
    for i in range(len(state)):
        for m in range(len(signals)):
            if symmetric:
                signals[m] += state[i, 0, m] ** 2 + state[i, 1, m] ** 2
            else:
                signals[m] += start[i] * state[i, 0, m]


@compiled
def sweep_signals(first, last, coupling, diagonals, start, topology, q, plan, symmetric, signals):
    """Signals of tasks first..last-1; a task is one permeability field and one block.

    Shapes: coupling (V, T, 4), diagonals (V, 2, T) of transverse and of stored magnetisation,
    start (T,), q (blocks, E, 2, 3, lanes), signals (V, blocks, lanes).
    """
    n_blocks, lanes = len(q), q.shape[4]
    n, n_links = len(start), len(topology[2])
    state = np.empty((n, 2, lanes), coupling.dtype)
    now, before = np.empty_like(state), np.empty_like(state)
    phases = np.empty((2 * n_links, 2, lanes), coupling.dtype)
    for task in range(first, last):
        v, block = task // n_blocks, task % n_blocks
        state[:, 1] = 0
        for i in range(n):
            state[i, 0] = start[i]
        for e in range(q.shape[1]):
            state, now, before = _exponential(
                state, now, before, phases, q[block], coupling[v], diagonals[v], topology, e, plan
            )
        project(start, state, symmetric, signals[v, block])


@compiled
def sweep_sensitivities(
    first, last, coupling, diagonals, start, topology, q, plan, symmetric, faces, nodes,
    signals, sensitivities,
):  # fmt: skip
    """Signals and their derivatives with respect to the conductances t_f of all faces.

    As `sweep_signals`; faces = (pairs (F, 2), face_links (F,), 1/sqrt(V) (T,)), nodes =
    (q (blocks, N, 3, lanes), weight (N,), node_after (E,)), sensitivities (V, blocks, lanes, F).
    """
    pairs, face_links, inverse_root_volume = faces
    node_q, node_weight, node_after = nodes
    n_blocks, n_exponentials, lanes = len(q), q.shape[1], q.shape[4]
    n, n_links = len(start), len(topology[2])
    stored = np.empty((len(node_weight), n, 2, lanes), coupling.dtype)
    state = np.empty((n, 2, lanes), coupling.dtype)
    now, before = np.empty_like(state), np.empty_like(state)
    phases = np.empty((2 * n_links, 2, lanes), coupling.dtype)
    total = np.empty((len(pairs), lanes), coupling.dtype)
    unit = np.ones(1)
    for task in range(first, last):
        v, block = task // n_blocks, task % n_blocks
        state[:, 1] = 0
        for i in range(n):
            state[i, 0] = start[i]
        stored[0] = state
        for e in range(n_exponentials):
            state, now, before = _exponential(
                state, now, before, phases, q[block], coupling[v], diagonals[v], topology, e, plan
            )
            if node_after[e] >= 0:
                stored[node_after[e]] = state
        project(start, state, symmetric, signals[v, block])
        # Backwards in time, the adjoint state: of a symmetric encoding, the states of its
        # second half in reverse, which go on from here; else it starts anew.
        if not symmetric:
            state[:, 1] = 0
            for i in range(n):
                state[i, 0] = start[i]
        total[:] = 0
        node = len(node_weight) - 1
        for e in range(n_exponentials - 1, -2, -1):
            if e < 0 or node_after[e] >= 0:
                fill_phases(phases, topology[2], node_q[block, node : node + 1], unit)
                _accumulate(
                    stored[node], state, phases, total, pairs, face_links, inverse_root_volume,
                    coupling.dtype.type(-node_weight[node]),
                )  # fmt: skip
                node -= 1
            if e >= 0:
                state, now, before = _exponential(
                    state, now, before, phases, q[block], coupling[v], diagonals[v], topology, e,
                    plan,
                )  # fmt: skip
        for m in range(lanes):
            for f in range(len(pairs)):
                sensitivities[v, block, m, f] = total[f, m]


@compiled
def sweep_states(first, last, coupling, diagonals, start, topology, q, plan, states):
    """States (V, T, 2, lanes) of fields first..last-1 after the one exponential of the plan.

    As `sweep_signals`, but for one block, q (E, 2, 3, lanes).
    """
    n_links, lanes = len(topology[2]), q.shape[3]
    state = np.empty((len(start), 2, lanes), coupling.dtype)
    now, before = np.empty_like(state), np.empty_like(state)
    phases = np.empty((2 * n_links, 2, lanes), coupling.dtype)
    for v in range(first, last):
        state[:, 1] = 0
        for i in range(len(start)):
            state[i, 0] = start[i]
        state, now, before = _exponential(
            state, now, before, phases, q, coupling[v], diagonals[v], topology, 0, plan
        )
        states[v] = state
