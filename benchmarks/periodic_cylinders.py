"""Signals of parallel permeable cylinders in a periodic box, by body-fitted finite elements.

Quadratic triangles that follow the circles, with separate nodes on either side of a membrane;
the space of states that pulses of one direction pass; and exponentials of small matrices for q(t).
Nothing is shared with the lattice of the package. Lengths are in radii, diffusivities in that
between the cylinders: everything is a number.

The magnetisation u, in the frame that turns with the local phase, obeys

    du/dt = (grad + i q) D (grad + i q) u,    D grad u . n = kappa [u] across membranes,

and a pair of pulses is symmetric in time: the signal is the norm of u in its middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import splu
from scipy.spatial import Delaunay

from benchmarks.packing import random_packing

_CIRCLE_EDGE = 0.26  # between nodes on a circle, and
_EDGE = 0.34  # between nodes elsewhere, far from circles
_EDGE_OVER_GAP = 0.8  # on circles that almost touch: no node of one on another's edge
_LEAST_EDGE = 0.003
_LEAST_RADIUS_APART = 0.1  # a node of the same circle in another image is farther
# Between circles. The narrowest gaps retain water longest: 0.03 would change S0 by 3 % where
# they are dense and nearly impermeable.
_LEAST_GAP = 0.004
_SWEEPS = 150  # of moves of all circles
# Cells of two circles in the densest order.
_HEXAGONAL_CELLS = {2: np.array([1, 1]), 4: np.array([2, 1])}
_FEWEST_WITHOUT_ORDER, _DENSEST = 5, 0.8
_TRIES = 200
# Of the space that states are sought in: levels of q, powers at each, their shift of rates, and
# how little of a vector may be new.
_KRYLOV_LEVELS, _KRYLOV_POWERS, _SHIFT_TIMES_TIME, _DEPENDENT = 3, 12, 5.0, 1e-10
_LEVELS = 16  # of q, from 0 to the largest
_FIRST_LEVEL = 5  # signals of smaller q than this level would be integrated too coarsely
# Of a quadrature that is exact for quadratic q(t), at the ends of a ramp.
_END_WEIGHTS = np.array([5 / 12, 13 / 12])
# Seven points, exact to degree 5 on a triangle.
_A, _B = (6 - np.sqrt(15)) / 21, (6 + np.sqrt(15)) / 21
_BARYCENTRIC = np.array([
    [1 / 3, 1 / 3, 1 / 3],
    *([1 - 2 * _A, _A, _A], [_A, 1 - 2 * _A, _A], [_A, _A, 1 - 2 * _A]),
    *([1 - 2 * _B, _B, _B], [_B, 1 - 2 * _B, _B], [_B, _B, 1 - 2 * _B]),
])  # fmt: skip
_QUADRATURE = np.array([9 / 40, *[(155 - np.sqrt(15)) / 1200] * 3,
                        *[(155 + np.sqrt(15)) / 1200] * 3])  # fmt: skip


def random_centres(n: int, fraction: float, rng: np.random.Generator):
    """Centres (n, 2) of circles of radius 1 in a random packing, and the box (2,).

    Five or more are placed without order; 1 (below 0.7), 2 or 4 move freely from the densest
    order. All keep a minimum gap.
    """
    if n >= _FEWEST_WITHOUT_ORDER:
        gap = min(_LEAST_GAP, 2 * (np.sqrt(_DENSEST / fraction) - 1))
        apart = random_packing(
            2, 1 + gap / 2, fraction * (1 + gap / 2) ** 2, n, int(rng.integers(2**31))
        )
        return apart.centers, np.array([apart.side, apart.side])
    cells, body = (np.array([1, 1]), 1) if n == 1 else (_HEXAGONAL_CELLS[n], 2)
    aspect = cells * (np.array([1, np.sqrt(3)]) if body == 2 else 1)
    box = aspect * np.sqrt(n * np.pi / fraction / aspect.prod())
    corners = np.stack(np.meshgrid(*map(np.arange, cells), indexing="ij"), axis=-1).reshape(
        -1, 1, 2
    )
    within = np.array([[0, 0], [0.5, 0.5]])[:body]
    centres = ((corners + within) / cells * box).reshape(-1, 2)
    shifts = box * np.array([[i, j] for i in (0, -1, 1) for j in (0, -1, 1)])

    def nearest(centre, others):
        images = (others + shifts[:, None]).reshape(-1, 2)
        return np.linalg.norm(images - centre, axis=1).min(initial=np.inf)

    ordered = min(nearest(centres[0], centres[1:]), box.min())
    least = min(2 + _LEAST_GAP, 0.5 * (ordered + 2))
    for _ in range(_SWEEPS if n > 1 else 0):
        for k in range(n):
            moved = centres[k] + rng.normal(size=2) * 0.5 ** rng.integers(0, 6)
            if nearest(moved, np.delete(centres, k, axis=0)) > least:
                centres[k] = moved
    return centres % box, box


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles of a periodic box.

    Attributes
    ----------
    corners : ndarray (T, 3, 2)
        In radii; triangles at the border reach beyond it.
    unknowns : ndarray (T, 6) of int
        Of the corners, and of the middles of the edges opposite to them.
    inside : ndarray (T,) of bool
    walls : ndarray (W, 2, 3) of int
        Unknowns inside and outside at both ends and in the middle of the edges of circles, and
    lengths : ndarray (W,)
        of these, scaled so that each circle has its true length.
    """

    corners: np.ndarray
    unknowns: np.ndarray
    inside: np.ndarray
    walls: np.ndarray
    lengths: np.ndarray

    @property
    def areas(self) -> np.ndarray:
        """(T,)."""
        first, second = (
            self.corners[:, 1] - self.corners[:, 0],
            self.corners[:, 2] - self.corners[:, 0],
        )
        return 0.5 * np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])


def mesh_of(
    centres: np.ndarray, box: np.ndarray, rng: np.random.Generator, finer: float = 1
) -> Mesh:
    """Mesh of circles of radius 1 in a periodic box.

    Parameters
    ----------
    centres : ndarray (N, 2)
    box : ndarray (2,)
        Edges.
    rng : numpy Generator
        Of the positions of nodes between the circles.
    finer : float, optional
        By which edges are shorter.
    """
    points, circle = _nodes(centres, box, rng, finer)
    n = len(points)
    shifts = box * np.array([[i, j] for i in (0, -1, 1) for j in (0, -1, 1)])
    copies = (points + shifts[:, None]).reshape(-1, 2)
    triangles = Delaunay(copies).simplices
    middle = copies[triangles].mean(axis=1)
    # Each triangle once: that whose lowest corner (by number) lies in the box itself.
    home = triangles[np.arange(len(triangles)), (triangles % n).argmin(axis=1)] < n
    triangles, middle = triangles[home], middle[home]
    apart = middle[:, None] - centres
    apart -= box * np.round(apart / box)
    nearest = np.linalg.norm(apart, axis=2).argmin(axis=1)
    centre = middle - apart[np.arange(len(middle)), nearest]
    reach = np.linalg.norm(copies[triangles] - centre[:, None], axis=2)
    owner = circle[triangles % n]
    on_it = (owner == nearest[:, None]) & (reach < 1 + _LEAST_RADIUS_APART)
    inside = (on_it | ((owner < 0) & (reach < 1))).all(axis=1)
    return _with_unknowns(copies, triangles, inside, n, circle)


def random_mesh(n: int, fraction: float, rng: np.random.Generator, finer: float = 1) -> Mesh:
    """Mesh of a random packing; packings obstructed by a node are sampled again."""
    for _ in range(_TRIES):
        try:
            return mesh_of(*random_centres(n, fraction, rng), rng, finer)
        except RuntimeError:
            continue
        except ValueError:  # so dense, only an order is left
            n = _FEWEST_WITHOUT_ORDER - 1
    raise RuntimeError(f"no mesh of {n} circles at a fraction of {fraction:g} in {_TRIES} tries")


def _nodes(centres, box, rng, finer):
    """Nodes (n, 2), and the circle (n,) that each lies on, or -1."""
    parts, owner = [], []
    # The first is no shift.
    shifts = box * np.array([[i, j] for i in (0, -1, 1) for j in (0, -1, 1)])
    for k, centre in enumerate(centres):
        images = (centres + shifts[:, None]).reshape(-1, 2)
        images = np.delete(images, k, axis=0)
        angle = np.linspace(0, 2 * np.pi, 721)
        rim = centre + np.stack([np.cos(angle), np.sin(angle)], axis=1)
        gap = np.linalg.norm(rim[:, None] - images, axis=2).min(axis=1) - 1
        edge = np.clip(_EDGE_OVER_GAP * gap, _LEAST_EDGE, _CIRCLE_EDGE) / finer
        count = np.concatenate([[0], np.cumsum(np.diff(angle) / (0.5 * (edge[1:] + edge[:-1])))])
        total = int(np.ceil(count[-1]))
        at = np.interp((np.arange(total) + rng.random()) / total % 1 * count[-1], count, angle)
        at = np.sort(at)
        step = np.diff(at, append=at[0] + 2 * np.pi)
        # The polygon has the area of the circle, and almost touches no other where it is fine.
        radius = 1 + 0.5 * (step**2 + np.roll(step, 1) ** 2) / 12
        parts.append(centre + (radius * np.stack([np.cos(at), np.sin(at)])).T)
        owner.append(np.full(total, k))
    rims = np.concatenate(parts)
    spacing = _EDGE / finer
    counts = np.maximum(np.round(box / spacing * np.array([1, 2 / np.sqrt(3)])).astype(int), 2)
    counts[1] += counts[1] % 2
    i, j = np.meshgrid(*map(np.arange, counts), indexing="ij")
    lattice = np.stack([(i + 0.5 * (j % 2)) / counts[0], j / counts[1]], axis=-1).reshape(-1, 2)
    lattice = box * ((lattice + rng.random(2)) % 1)
    lattice += 0.05 * spacing * rng.standard_normal(lattice.shape)
    gap = lattice[:, None] - rims
    gap -= box * np.round(gap / box)
    free = np.linalg.norm(gap, axis=2).min(axis=1) > 0.62 * spacing
    points = np.concatenate([rims, lattice[free]])
    owner = np.concatenate([*owner, np.full(free.sum(), -1)])
    return points % box, owner


def _with_unknowns(copies, triangles, inside, n, circle):
    # Nodes have an unknown on each side of a membrane; so have middles of edges.
    node = triangles % n
    ends = np.stack([node[:, [1, 2]], node[:, [2, 0]], node[:, [0, 1]]], axis=1)
    ends_key = np.sort(ends, axis=2)
    edge = n + ends_key[..., 0] * n + ends_key[..., 1]
    # Edges between the same nodes over different borders of the box: parted by their direction.
    place = copies[triangles]
    middle = 0.5 * (place[:, [1, 2, 0]] + place[:, [2, 0, 1]])
    side = np.concatenate([node, edge], axis=1) * 2 + inside[:, None]
    _, unknowns = np.unique(side, return_inverse=True)
    unknowns = unknowns.reshape(side.shape)
    on_wall = (circle[ends_key] >= 0).all(axis=2) & (
        circle[ends_key[..., 0]] == circle[ends_key[..., 1]]
    )
    keys = edge[on_wall]
    rows, sides = np.nonzero(on_wall)
    order = np.argsort(keys * 2 + inside[rows], kind="stable")
    keys, rows, sides = keys[order], rows[order], sides[order]
    pair = np.flatnonzero((keys[1:] == keys[:-1]) & (inside[rows[1:]] != inside[rows[:-1]]))
    three = np.stack([(sides + 1) % 3, (sides + 2) % 3, sides + 3], axis=1)
    of = np.take_along_axis(unknowns[rows], three, axis=1)
    ordered = np.take_along_axis(node[rows], three[:, :2], axis=1)
    swap = ordered[:, 0] > ordered[:, 1]
    of[swap] = of[swap][:, [1, 0, 2]]
    walls = np.stack([of[pair + 1], of[pair]], axis=1)
    span = place[rows[pair], (sides[pair] + 1) % 3] - place[rows[pair], (sides[pair] + 2) % 3]
    lengths = np.linalg.norm(span, axis=1)
    body = circle[node[rows[pair], (sides[pair] + 1) % 3]]
    total = np.bincount(body, weights=lengths)
    n_edges = np.bincount(circle[circle >= 0])
    if len(pair) != n_edges.sum() or len(middle) == 0:
        raise RuntimeError("some edges of circles are not edges of triangles")
    return Mesh(place, unknowns, inside, walls, lengths * (2 * np.pi / total)[body])


def _shape_functions():
    """Values (Q, 6) and derivatives (Q, 6, 3) of quadratic triangles, barycentric."""
    x = _BARYCENTRIC
    opposite = [(1, 2), (2, 0), (0, 1)]
    values = np.concatenate(
        [x * (2 * x - 1), np.stack([4 * x[:, i] * x[:, j] for i, j in opposite], axis=1)], axis=1
    )
    slopes = np.zeros((len(x), 6, 3))
    for k in range(3):
        slopes[:, k, k] = 4 * x[:, k] - 1
        i, j = opposite[k]
        slopes[:, 3 + k, i], slopes[:, 3 + k, j] = 4 * x[:, j], 4 * x[:, i]
    return values, slopes


@dataclass(frozen=True, eq=False)
class Matrices:
    """Finite elements of a mesh, before permeability and diffusivities are chosen (sparse)."""

    mass: tuple  # outside, inside
    stiffness: tuple
    drift: tuple  # of two axes each
    membrane: object


def matrices_of(mesh: Mesh) -> Matrices:
    """Mass, stiffness and drift of the water outside and inside, and jumps across membranes."""
    values, slopes = _shape_functions()
    size = mesh.unknowns.max() + 1
    a, b, c = np.moveaxis(mesh.corners, 1, 0)
    twice = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    # Gradients (T, 3, 2) of the barycentric coordinates.
    turn = np.array([[0, 1], [-1, 0]])
    gradient = np.stack([(c - b) @ turn.T, (a - c) @ turn.T, (b - a) @ turn.T], axis=1)
    gradient = -gradient / twice[:, None, None]
    area = np.abs(twice) / 2
    by_place = np.einsum("qnb,tbk->tqnk", slopes, gradient)
    weight = area[:, None] * _QUADRATURE
    mass = np.einsum("tq,qn,qm->tnm", weight, values, values)
    stiffness = np.einsum("tq,tqnk,tqmk->tnm", weight, by_place, by_place, optimize=True)
    drift = np.einsum("tq,tqnk,qm->ktnm", weight, by_place, values, optimize=True)

    def assembled(local, chosen):
        at = mesh.unknowns[chosen]
        rows, columns = np.repeat(at, 6, axis=1), np.tile(at, (1, 6))
        return coo_matrix(
            (local[chosen].ravel(), (rows.ravel(), columns.ravel())), (size, size)
        ).tocsr()

    sides = [~mesh.inside, mesh.inside]
    line = np.array([[4, -1, 2], [-1, 4, 2], [2, 2, 16]]) / 30
    signs = np.array([[1, -1], [-1, 1]])
    local = mesh.lengths[:, None, None, None, None] * np.einsum("ab,ij->aibj", signs, line)[None]
    at = mesh.walls.reshape(-1, 6)
    rows, columns = np.repeat(at, 6, axis=1), np.tile(at, (1, 6))
    membrane = coo_matrix((local.ravel(), (rows.ravel(), columns.ravel())), (size, size)).tocsr()
    return Matrices(
        tuple(assembled(mass, side) for side in sides),
        tuple(assembled(stiffness, side) for side in sides),
        tuple(tuple(assembled(part, side) for part in drift) for side in sides),
        membrane,
    )


@dataclass(frozen=True, eq=False)
class Reduced:
    """Reduced matrices of the decay at q = 0, the terms in q and q^2, and the uniform state."""

    decay: np.ndarray
    linear: np.ndarray
    quadratic: np.ndarray
    start: np.ndarray


def reduced(
    matrices: Matrices,
    permeability: float,
    inside: float,
    direction: np.ndarray,
    q_max: float,
    time: float,
    finer: int = 1,
) -> Reduced:
    """Small matrices for gradients along a direction, kappa R / D_out and D_in / D_out.

    A pair of pulses passes few of the states that the elements can have: those that the generator
    A(q), at some q of the pulse, reaches from uniform magnetisation within about the diffusion
    time. These lie in the span of (A(q) + s)^-k 1, a rational Krylov space [1]_.

    Parameters
    ----------
    matrices : Matrices
    permeability, inside : float
    direction : ndarray (3,)
        Unit vector; the third component is along the cylinders.
    q_max, time : float
        Largest q R, typical D Delta / R^2.
    finer : int, optional
        So many times as many q and powers k, to see what is missing.

    References
    ----------
    .. [1] Guettel, GAMM-Mitteilungen 36 (2013), https://doi.org/10.1002/gamm.201310002
    """
    decay = matrices.stiffness[0] + inside * matrices.stiffness[1]
    decay = decay + permeability * matrices.membrane
    mass = (matrices.mass[0] + matrices.mass[1]).tocsr()
    drift = sum(
        direction[k] * (matrices.drift[0][k] + inside * matrices.drift[1][k]) for k in range(2)
    )
    linear = 1j * (drift - drift.T)
    quadratic = matrices.mass[0] + inside * matrices.mass[1]
    uniform = np.ones(mass.shape[0], dtype=complex)
    uniform /= np.sqrt((uniform @ (mass @ uniform)).real)
    parts = [uniform[None]]
    for q in q_max * np.arange(1, finer * _KRYLOV_LEVELS + 1) / (finer * _KRYLOV_LEVELS):
        shifted = decay + q * linear + q**2 * quadratic + _SHIFT_TIMES_TIME / time * mass
        solve = splu(
            shifted.tocsc(), "MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True}
        ).solve
        parts.append(_krylov(solve, mass, uniform, finer * _KRYLOV_POWERS))
    basis = np.concatenate(parts).T
    strength, mixing = np.linalg.eigh(basis.conj().T @ (mass @ basis))
    kept = strength > _DEPENDENT * strength[-1]
    basis = basis @ (mixing[:, kept] / np.sqrt(strength[kept]))
    left = basis.conj().T
    return Reduced(
        left @ (decay @ basis), left @ (linear @ basis), left @ (quadratic @ basis),
        left @ (mass @ uniform),
    )  # fmt: skip


def _krylov(solve, mass, start, n):
    """Orthonormal vectors (n, size) of the span of powers 1 to n of (solve mass) on the start."""
    vectors = np.empty((n + 1, len(start)), dtype=complex)
    weighted = np.empty_like(vectors)
    vectors[0], weighted[0] = start, mass @ start
    for k in range(1, n + 1):
        vector = solve(weighted[k - 1])
        for _ in range(2):  # once leaves rounding
            vector -= (weighted[:k].conj() @ vector) @ vectors[:k]
        product = mass @ vector
        length = np.sqrt(np.vdot(vector, product).real)
        vectors[k], weighted[k] = vector / length, product / length
    return vectors[1:]


def pulse_signals(
    reduced: Reduced,
    q_max: float,
    small_delta: np.ndarray,
    big_delta: np.ndarray,
    levels: int = _LEVELS,
) -> tuple[np.ndarray, np.ndarray]:
    """Signals (n_q, T) at the upper levels of q, up to q_max, of pairs of pulses.

    Parameters
    ----------
    reduced : Reduced
    q_max : float
        Times the radius, as in `reduced`.
    small_delta, big_delta : ndarray (T,)
        Times D_out / radius^2.
    levels : int, optional
        Of q on the way to q_max.

    Returns
    -------
    q : ndarray (n_q,)
    signals : ndarray (n_q, T)
    """
    q = q_max * np.arange(levels + 1) / levels
    level = q[:, None, None]
    generators = reduced.decay + level * reduced.linear + level**2 * reduced.quadratic
    rates, vectors = np.linalg.eigh(generators)
    first = max(_FIRST_LEVEL * levels // _LEVELS, 4)
    chosen = np.arange(first, levels + 1)
    n, n_q, n_t = len(reduced.start), len(chosen), len(small_delta)
    weights = np.ones((n_q, levels + 1)) * (np.arange(levels + 1) <= chosen[:, None])
    weights[:, :2] = _END_WEIGHTS
    for row, top in enumerate(chosen):
        weights[row, [top, top - 1]] = _END_WEIGHTS
    times = (
        weights[:, None, :] * (small_delta / chosen[:, None])[..., None]
    )  # (n_q, T, levels + 1)
    state = np.broadcast_to(reduced.start[:, None, None], (n, n_q, n_t)).astype(complex)
    signals = np.empty((n_q, n_t))
    for level in range(levels + 1):
        active = np.flatnonzero(chosen >= level)
        within = vectors[level].conj().T @ state[:, active].reshape(n, -1)
        within *= np.exp(-rates[level][:, None] * times[active, :, level].ravel())
        if level in chosen:
            row = level - first
            # The remaining time of this q: a plateau, to the middle between the pulses.
            mine = within.reshape(n, len(active), n_t)[:, 0]
            mine = mine * np.exp(-rates[level][:, None] * 0.5 * (big_delta - small_delta))
            signals[row] = (np.abs(mine) ** 2).sum(axis=0)
        state[:, active] = (vectors[level] @ within).reshape(n, len(active), n_t)
    return q[chosen], signals
