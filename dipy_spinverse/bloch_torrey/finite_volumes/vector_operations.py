"""Vector operations of the compiled sweeps: one number for each measurement of a block.

Numba caches compiled functions by the file that defines them: after a change here, touch
`sweep_kernels`, too.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

REGISTER_BYTES = 64  # of AVX-512; narrower registers take two or four instructions instead


class Lanes:
    """LLVM code on vectors with one number for each measurement of a block."""

    # Numba's own loops over lanes stay scalar (it cannot exclude that arrays overlap), 4 to 5
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
        vector = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(vector, undefined, self.zeros)

    def add(self, x, y):
        return self.builder.fadd(x, y, flags=("fast",))

    def sub(self, x, y):
        return self.builder.fsub(x, y, flags=("fast",))

    def mul(self, x, y):
        return self.builder.fmul(x, y, flags=("fast",))

    def complex_product(self, x, y):
        real = self.sub(self.mul(x[0], y[0]), self.mul(x[1], y[1]))
        return real, self.add(self.mul(x[0], y[1]), self.mul(x[1], y[0]))

    def add_neighbours(self, total, state, phases, coupling, neighbours, links, i, scale):
        """Total + scale sum_k coupling[i, k] exp(i phase_k) state[neighbours[i, k]]."""
        builder = self.builder
        for k in range(4):
            slot = builder.add(builder.mul(i, self.constant(4)), self.constant(k))
            weight = builder.fmul(scale, self.scalar(coupling, slot), flags=("fast",))
            weight = self.broadcast(weight)
            u = self.load_complex(state, self.row(self.integer(neighbours, slot)))
            phase = self.load_complex(phases, self.row(self.integer(links, slot)))
            flow = self.complex_product(phase, [self.mul(weight, x) for x in u])
            total = [self.add(t, x) for t, x in zip(total, flow, strict=True)]
        return total

    def inner_product(self, x, y):
        """Re(conj(x) y)."""
        return self.add(self.mul(x[0], y[0]), self.mul(x[1], y[1]))

    def accumulate(self, totals, index, weight, value):
        """totals[index] += weight value."""
        offset = self.builder.mul(index, self.constant(self.count))
        total = self.load(totals, offset)
        self.store(self.add(total, self.mul(self.broadcast(weight), value)), totals, offset)


@intrinsic
def clenshaw_row(
    typing, current, previous, state, phases, coupling, neighbours, links, i, diagonal,
    coefficient, scale,
):  # fmt: skip
    """previous[i] = scale (K current)[i] + coefficient state[i] - previous[i]."""
    signature = types.void(
        current, previous, state, phases, coupling, neighbours, links, i, diagonal, coefficient,
        scale,
    )  # fmt: skip

    def generate(context, builder, signature, args):
        v = Lanes(context, builder, signature, args)
        current, previous, state, phases, coupling, neighbours, links = map(v.data, range(7))
        i, diagonal, coefficient, scale = args[7:]
        row = v.row(i)
        diagonal, coefficient = v.broadcast(diagonal), v.broadcast(coefficient)
        total = [
            v.add(v.mul(diagonal, u), v.mul(coefficient, s))
            for u, s in zip(v.load_complex(current, row), v.load_complex(state, row), strict=True)
        ]
        total = v.add_neighbours(total, current, phases, coupling, neighbours, links, i, scale)
        subtrahend = v.load_complex(previous, row)
        v.store(v.sub(total[0], subtrahend[0]), previous, row)
        v.store(v.sub(total[1], subtrahend[1]), previous, v.imaginary(row))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_crossing(typing, current, previous, phases, coupling, neighbours, links, i, scale):
    """previous[i] += scale (K current)[i], K the exchange of a pool across walls."""
    signature = types.void(current, previous, phases, coupling, neighbours, links, i, scale)

    def generate(context, builder, signature, args):
        v = Lanes(context, builder, signature, args)
        current, previous, phases, coupling, neighbours, links = map(v.data, range(6))
        i, scale = args[6:]
        row = v.row(i)
        total = v.load_complex(previous, row)
        total = v.add_neighbours(total, current, phases, coupling, neighbours, links, i, scale)
        v.store(total[0], previous, row)
        v.store(total[1], previous, v.imaginary(row))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_jump_product(typing, u, y, phases, totals, face, i, j, link, scale_i, scale_j, weight):
    """totals[face] += weight Re(conj(jump of y) (jump of u)), jump = exp(i phase) x_j - x_i."""
    signature = types.void(u, y, phases, totals, face, i, j, link, scale_i, scale_j, weight)

    def generate(context, builder, signature, args):
        v = Lanes(context, builder, signature, args)
        u, y, phases, totals = map(v.data, range(4))
        face, i, j, link, scale_i, scale_j, weight = args[4:]
        scale_i, scale_j = v.broadcast(scale_i), v.broadcast(scale_j)
        phase = [v.mul(scale_j, x) for x in v.load_complex(phases, v.row(link))]

        def jump(x):
            x_j = v.complex_product(phase, v.load_complex(x, v.row(j)))
            x_i = v.load_complex(x, v.row(i))
            return [v.sub(a, v.mul(scale_i, b)) for a, b in zip(x_j, x_i, strict=True)]

        v.accumulate(totals, face, weight, v.inner_product(jump(u), jump(y)))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_pair_product(typing, u, y, phases, totals, pair, i, j, link, weight):
    """totals[pair] += weight Re(conj(y_i) e^{i phase} u_j + conj(u_i) e^{i phase} y_j)."""
    signature = types.void(u, y, phases, totals, pair, i, j, link, weight)

    def generate(context, builder, signature, args):
        v = Lanes(context, builder, signature, args)
        u, y, phases, totals = map(v.data, range(4))
        pair, i, j, link, weight = args[4:]
        phase = v.load_complex(phases, v.row(link))

        def product(a, b):
            b_j = v.complex_product(phase, v.load_complex(b, v.row(j)))
            return v.inner_product(b_j, v.load_complex(a, v.row(i)))

        v.accumulate(totals, pair, weight, v.add(product(y, u), product(u, y)))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_diagonal_product(typing, u, y, totals, i, weight):
    """totals[i] += weight Re(conj(y_i) u_i)."""
    signature = types.void(u, y, totals, i, weight)

    def generate(context, builder, signature, args):
        v = Lanes(context, builder, signature, args)
        u, y, totals = map(v.data, range(3))
        i, weight = args[3:]
        u_i, y_i = v.load_complex(u, v.row(i)), v.load_complex(y, v.row(i))
        v.accumulate(totals, i, weight, v.inner_product(u_i, y_i))
        return context.get_dummy_value()

    return signature, generate
