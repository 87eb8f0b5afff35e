"""Cells that fill tetrahedra partly: a simulation that is smooth in the shape of cells.

A tetrahedron i contains two pools of water, inside of cells (fraction p_i of its volume) and
around them (1 - p_i). Pools of neighbours i, j meet at a fraction c of the face between them,

    p_i p_j (inside), (1 - p_i) (1 - p_j) (around), p_i (1 - p_j) and (1 - p_i) p_j (across walls),

if they meet by chance. Where a smooth wall passes through both tetrahedra, pools of the same side
face each other more often, by an odds ratio: p_i p_j is replaced by its value in Plackett's
distribution [1]_, and the others follow, as each pool has all of its fraction of a face. By
chance, a wall within a layer of tetrahedra lets only half of the water along it move; with a
large odds ratio all of it. Pools exchange through c t_f tau, with t_f the conductance of the open
face and tau the relative transmissibility, of walls where they meet across one.

The sides of an absorbing box may have fractions, too: water of a pool is lost through the fraction
of its outer face at which it meets the same side of the walls, and through walls elsewhere. Where
all fractions are 0 or 1 these are the finite volumes of `operator`, with walls between the
tetrahedra inside and those around. In between, signals change with fractions nearly as much per
volume as when whole tetrahedra change sides, which the permeabilities of faces do not do: one
cannot close a face a little.

References
----------
.. [1] Plackett, "A class of bivariate distributions", J. Am. Stat. Assoc. 60 (1965),
   https://doi.org/10.1080/01621459.1965.10480807
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags, vstack

from dipy_spinverse.bloch_torrey.finite_volumes.compiled_sweep import CompiledSweep, lanes_of
from dipy_spinverse.bloch_torrey.finite_volumes.operator import links_of, open_conductance
from dipy_spinverse.bloch_torrey.finite_volumes.simulator import Simulator

# Fraction of pools without water that may get some: derivatives there divide by it.
_MIN_FRACTION = 1e-6
# Layers (0 inside, 1 around) of the two pools of each kind of contact.
_LAYERS = np.array([[0, 0], [1, 1], [0, 1], [1, 0]])


class PartialVolumeSimulator(Simulator):
    """As :class:`Simulator`, on the CPU, for cells that fill tetrahedra partly.

    `odds_ratio` is that of pools of the same side to face each other: 1 by chance.
    """

    # Whether pools without water next to others may get some.
    _pools_grow = True
    # Pools of a smaller fraction of their tetrahedron are omitted: signals jump by less than that.
    _omitted_fraction = 1e-3

    def __init__(self, *args: Any, odds_ratio: float = 1.0, **options: Any):
        super().__init__(*args, **options)
        self._odds_ratio = odds_ratio

    def partial_signals(self, fractions: np.ndarray, walls: np.ndarray) -> np.ndarray:
        """Signals (M,) of cells.

        Fractions inside of cells are those of the tetrahedra (T,), or also of the side of the box
        behind each outer face (T + B,); without these, no wall is between a tetrahedron and the
        side. `walls` are the relative transmissibilities (2,) of walls and of the faces between
        tetrahedra on the same side.
        """
        pools = self._pools(fractions, walls, sensitivities=False)
        signals = np.empty(self.n_encodings)
        for timing in self.timings:
            sweep = CompiledSweep(pools.operator, pools.start, *timing.signals)
            signals[timing.columns] = sweep.signals()[0]
        return self._measured(signals)

    def partial_sensitivities(
        self, fractions: np.ndarray, walls: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Signals (M,), and derivatives by fractions (M, T) or (M, T + B), and by `walls`.

        Derivatives by fractions that are 0 or 1, as those of all neighbours, are not computed: 0.
        """
        pools = self._pools(fractions, walls, sensitivities=True)
        signals = np.empty(self.n_encodings)
        jacobian = np.empty((self.n_encodings, len(fractions) + len(walls)))
        for timing in self.timings:
            sweep = CompiledSweep(pools.operator, pools.start, *timing.sensitivities)
            (signals[timing.columns],), *derivatives = sweep.by_entries(
                pools.pairs, pools.pair_links
            )
            jacobian[timing.columns] = sum(
                derivative[0] @ slopes
                for derivative, slopes in zip(derivatives, pools.slopes, strict=True)
            )
        jacobian = self._measured(jacobian)
        return self._measured(signals), *np.split(jacobian, [len(fractions)], axis=1)

    def fill_registers(self, order: np.ndarray, number: int) -> np.ndarray:
        """Sorted rows (n,), about the first `number` measurements of an order (M,) of preference.

        A compiled sweep carries measurements of the same timing together, as many as a register
        has lanes; a register that is not full costs as much. Of each timing about as many are
        taken as among the first, in full registers, no more than `number` but for a single one.
        """
        if number >= len(order):
            return np.sort(order)
        timing_index = np.empty(self.n_encodings, dtype=int)
        for k, timing in enumerate(self.timings):
            timing_index[timing.columns] = k
        timing_index = timing_index[self.encoding][order]
        lanes = lanes_of(self._real)
        registers = np.bincount(timing_index[:number], minlength=len(self.timings)) / lanes
        filled = np.floor(registers).astype(int)
        by_remainder = np.argsort(filled - registers)
        filled[by_remainder[: max(number // lanes, 1) - filled.sum()]] += 1
        rows = [order[timing_index == k][: n * lanes] for k, n in enumerate(filled)]
        return np.sort(np.concatenate(rows))

    @property
    def _real(self):
        return torch.empty(0, dtype=self.dtype).numpy().dtype

    def _measured(self, values):
        """Rows of all measurements, from those of the different encodings."""
        return (values.T[..., self.encoding] * self._attenuation).T

    def _pools(self, fractions, walls, sensitivities):
        """The pools of water of some fractions, and those next to them, which may get water."""
        grid, links, n = self.grid, links_of(self.grid), len(fractions)
        fractions, exists = self._filled(fractions, sensitivities)
        water, (layer, tetrahedron) = np.stack([fractions, 1 - fractions]), np.nonzero(exists)
        n_pools, pool_index = len(layer), np.zeros(exists.shape, dtype=np.int32)
        pool_index[exists] = np.arange(n_pools)
        start = np.sqrt(water[layer, tetrahedron]) * self.medium.equilibrium(grid)[tetrahedron]
        contacts = self._contacts(fractions, exists, len(walls))
        conductance, by_conductance = self._conductance(contacts, walls, sensitivities)

        # Both ends of each contact; beyond the sides of the box there is no pool.
        kind, face = np.nonzero(contacts.fraction)
        layers, ends, inner = _LAYERS[kind].T, contacts.ends[:, face], face < grid.n_faces
        pools = pool_index[layers, ends % grid.n_tetrahedra]
        pools[1, ~inner] = n_pools
        mass = water[layers, ends] * np.append(self._weights, np.ones(n))[ends]
        rates = conductance[kind, face] / mass
        coupling = conductance[kind, face] / np.sqrt(mass.prod(axis=0))
        diagonal = -np.bincount(pools.ravel(), rates.ravel(), n_pools + 1)[:-1]

        slots = np.zeros((4, grid.n_faces + 1))
        slots[kind[inner], face[inner]] = coupling[inner]
        slot_faces, own = links.slot_faces[tetrahedron], layer[:, None]
        is_first = np.append(grid.face_tetrahedra[:, 0], -1)[slot_faces] == tetrahedron[:, None]
        crossing = slots[np.where(is_first == (own == 0), 2, 3), slot_faces]
        neighbours = links.neighbours[tetrahedron]
        operator = (
            slots[own, slot_faces][None].astype(self._real), pool_index[own, neighbours],
            crossing[None].astype(self._real), pool_index[1 - own, neighbours],
            crossing.any(axis=1), links.slot_links[tetrahedron],
            (diagonal - self._loss_rate(n)[:, tetrahedron])[None].astype(self._real),
            links.link_vectors,
        )  # fmt: skip
        if not sensitivities:
            return _Pools(operator, start.astype(self._real))
        columns = n + len(walls)
        by_conductance = by_conductance[kind * contacts.fraction.shape[1] + face]
        relative = [  # derivatives of the water at both ends, over that water
            _entries(end, (1 - 2 * layer) / water[layer, end], columns)
            for layer, end in zip(layers, ends, strict=True)
        ]
        by_diagonal = -sum(
            _entries(pool, 1.0, n_pools + 1).T
            @ (diags(1 / m) @ by_conductance - diags(rate) @ slope)
            for pool, m, rate, slope in zip(pools, mass, rates, relative, strict=True)
        )
        by_coupling = diags(1 / np.sqrt(mass.prod(axis=0))) @ by_conductance
        by_coupling -= diags(coupling / 2) @ (relative[0] + relative[1])
        by_start = _entries(
            tetrahedron, (1 - 2 * layer) * start / (2 * water[layer, tetrahedron]), columns
        )
        changing = np.flatnonzero(inner & (np.diff(by_coupling.indptr) > 0))
        return _Pools(
            operator, start.astype(self._real),
            pairs=pools[:, changing].T.astype(np.int32, order="C"),
            pair_links=links.face_links[face[changing]],
            slopes=[by_coupling[changing], by_diagonal[:-1], by_start],
        )  # fmt: skip

    def _filled(self, fractions, sensitivities):
        """Fractions without those omitted, and which pools (2, T) exist."""
        fractions = np.where(fractions < self._omitted_fraction, 0.0, fractions)
        fractions[fractions > 1 - self._omitted_fraction] = 1
        inside = fractions[: self.grid.n_tetrahedra]
        exists = np.stack([inside > 0, inside < 1])
        if sensitivities and self._pools_grow:
            exists |= exists[:, links_of(self.grid).neighbours].any(axis=2)
            both = exists.all(axis=0)
            inside[both] = inside[both].clip(_MIN_FRACTION, 1 - _MIN_FRACTION)
        return fractions, exists

    def _loss_rate(self, n):
        """Of the tetrahedra (2, T), 1/ms, but for what contacts with the sides of the box lose."""
        if n == self.grid.n_tetrahedra:
            return self.medium.loss_rate
        at_sides = self.medium.outer_conductance / self.grid.volumes[self.grid.outer_tetrahedra]
        return self.medium.loss_rate - np.bincount(
            self.grid.outer_tetrahedra, at_sides, self.grid.n_tetrahedra
        )

    def _contacts(self, fractions, exists, n_walls):
        """Contacts of pools at faces, and at sides of the box if their fractions are given."""
        grid = self.grid
        sides = np.arange(grid.n_tetrahedra, len(fractions))
        outer = grid.outer_tetrahedra[: len(sides)]
        open_sides = self.medium.outer_conductance * self.medium.density[grid.outer_tetrahedra]
        ends = np.hstack([grid.face_tetrahedra.T, [outer, sides]])
        x, y = fractions[ends]
        inner, by_x, by_y = _contact_fraction(x, y, self._odds_ratio)
        at_sides = fractions[sides]
        exists = np.hstack([exists, [at_sides > 0, at_sides < 1]])
        meet = (
            exists[layers, end] for layers, end in zip(_LAYERS.T[..., None], ends, strict=True)
        )
        meet = np.logical_and(*meet)
        return _Contacts(
            ends,
            areas=np.append(grid.face_areas, grid.outer_areas[: len(sides)]),
            conductance=np.append(open_conductance(grid, self.medium), open_sides[: len(sides)]),
            fraction=meet * np.array([inner, 1 - x - y + inner, x - inner, y - inner]).clip(0),
            by_first=meet * np.array([by_x, by_x - 1, 1 - by_x, -by_x]),
            by_second=meet * np.array([by_y, by_y - 1, -by_y, 1 - by_y]),
            n_columns=len(fractions) + n_walls,
        )

    def _conductance(self, contacts, walls, sensitivities):
        """Conductance (4, K) of contacts, um^3/ms, and its sparse derivatives (4 K, n)."""
        tau, by_tau = self._transmissibility(contacts, walls, sensitivities)
        per_tau = contacts.conductance * contacts.fraction
        if not sensitivities:
            return per_tau * tau, None
        slopes = [
            diags(contacts.conductance * tau[k]) @ contacts.slope(k)
            + diags(per_tau[k]) @ by_tau[k]
            for k in range(4)
        ]
        return per_tau * tau, vstack(slopes, format="csr")

    def _transmissibility(self, contacts, walls, sensitivities):
        """Relative transmissibility (4, K) of contacts, and its derivatives for each kind."""
        kinds = (1, 1, 0, 0)
        tau = np.broadcast_to(walls[list(kinds), None], contacts.fraction.shape)
        column = contacts.n_columns - len(walls)
        return tau, [
            _entries(column + k + 0 * contacts.ends[0], 1.0, contacts.n_columns) for k in kinds
        ]


class WallAreaSimulator(PartialVolumeSimulator):
    """As :class:`PartialVolumeSimulator`, for walls of known area in each tetrahedron.

    `walls` are the conductances (T,), um^3/ms, of the walls in each tetrahedron: permeability
    times area. Contacts across the walls of a tetrahedron share its conductance in proportion to
    their area, so that permeability times area is that of the walls, wherever they stand in the
    lattice. Fractions include those of the sides (T + B,).
    """

    _pools_grow = False
    _omitted_fraction = 1e-5  # the derivative by translation is small

    def _transmissibility(self, contacts, walls, sensitivities):
        n, n_contacts = len(walls), contacts.fraction.shape[1]
        ends = np.where(contacts.ends < n, contacts.ends, n)
        of_tetrahedra = sum(_entries(end, 1.0, n + 1) for end in ends)[:, :n]
        lattice_area = of_tetrahedra.T @ (contacts.areas * contacts.fraction[2:].sum(axis=0))
        per_area = np.divide(1, lattice_area, out=0 * lattice_area, where=lattice_area > 0)
        # In series with the water on both sides, as the faces of the lattice.
        resistance = contacts.areas / contacts.conductance
        ratio = resistance * (of_tetrahedra @ (walls * per_area))
        tau = np.ones((4, n_contacts))
        tau[2:] = ratio / (1 + ratio)
        if not sensitivities:
            return tau, None
        by_area = of_tetrahedra.T @ diags(contacts.areas) @ (contacts.slope(2) + contacts.slope(3))
        by_walls = _entries(contacts.n_columns - n + np.arange(n), per_area, contacts.n_columns)
        by_walls -= diags(walls * per_area**2) @ by_area
        slope = diags(resistance / (1 + ratio) ** 2) @ of_tetrahedra @ by_walls
        nothing = csr_matrix(slope.shape)
        return tau, [nothing, nothing, slope, slope]


@dataclass(frozen=True, eq=False)
class _Contacts:
    """Contacts of pools at K faces, of the four kinds of `_LAYERS`."""

    ends: np.ndarray  # (2, K) tetrahedra on both sides, or T + the index of a side of the box
    areas: np.ndarray  # (K,) of the faces, um^2
    conductance: np.ndarray  # (K,) of the faces without walls, um^3/ms
    fraction: np.ndarray  # (4, K) of the faces
    by_first: np.ndarray  # (4, K) derivatives by the fraction inside of the first tetrahedron
    by_second: np.ndarray
    n_columns: int

    def slope(self, kind: int) -> csr_matrix:
        """Derivatives (K, n) of the fractions of a kind."""
        by_ends = self.by_first[kind], self.by_second[kind]
        return sum(_entries(*x, self.n_columns) for x in zip(self.ends, by_ends, strict=True))


def _contact_fraction(
    x_i: np.ndarray, x_j: np.ndarray, odds_ratio: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fraction of a face at which pools of fractions x_i, x_j on its sides meet, and derivatives.

    Plackett's joint distribution.
    """
    total = 1 + (x_i + x_j) * (odds_ratio - 1)
    root = np.sqrt(total**2 - 4 * odds_ratio * (odds_ratio - 1) * x_i * x_j)
    contact = 2 * odds_ratio * x_i * x_j / (total + root)
    by_i, by_j = ((1 - (total - 2 * odds_ratio * x) / root) / 2 for x in (x_j, x_i))
    return contact, by_i, by_j


@dataclass(frozen=True, eq=False)
class _Pools:
    """The operator of n pools of water, and what changes it."""

    operator: tuple  # as the compiled sweeps take it
    start: np.ndarray  # (n,)
    pairs: np.ndarray | None = None  # (P, 2), pools that exchange
    pair_links: np.ndarray | None = None  # (P,), from the first to the second
    slopes: list | None = None  # (P or n, columns), sparse, of exchange, diagonals and start


def _entries(columns, values, n_columns):
    """Sparse matrix with one value in each row."""
    values = np.broadcast_to(values, len(columns))
    return csr_matrix((values, (np.arange(len(columns)), columns)), (len(columns), n_columns))
