"""Cells that fill tetrahedra partly: a simulation that is smooth in the shape of cells.

A tetrahedron i contains two pools of water, inside of cells (fraction p_i of its volume) and
around them (1 - p_i). Pools of neighbours i, j exchange through

    t_f p_i p_j (inside), t_f (1 - p_i) (1 - p_j) (around),
    tau t_f p_i (1 - p_j) and tau t_f (1 - p_i) p_j (across the walls of the cell inside),

with t_f the conductance of the open face and tau the relative transmissibility of walls, if pools
meet by chance. Where a smooth wall passes through both tetrahedra, pools of the same side face
each other more often, by an odds ratio: p_i p_j is replaced by its value in Plackett's
distribution [1]_, and the others follow, as each pool has all of its fraction of a face. By
chance, a wall within a layer of tetrahedra lets only half of the water along it move; with a
large odds ratio all of it.

At an absorbing side of the box, p_j is the fraction of the side that is inside: the rest of the
water inside is lost through a wall only. Where all fractions are 0 or 1 these are the finite
volumes of `operator`, with walls between the tetrahedra inside and those around. In between,
signals change with fractions nearly as much per volume as when whole tetrahedra change sides,
which the permeabilities of faces do not do: one cannot close a face a little.

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
from scipy.sparse import csr_matrix

from dipy_spinverse.bloch_torrey.finite_volumes.compiled_sweep import CompiledSweep, lanes_of
from dipy_spinverse.bloch_torrey.finite_volumes.operator import links_of, open_conductance
from dipy_spinverse.bloch_torrey.finite_volumes.simulator import Simulator
from dipy_spinverse.threads import in_threads

# Pools of a smaller fraction of their tetrahedron are omitted; chosen by hand.
_OMITTED_FRACTION = 1e-3
# Fraction of pools without water that may get some: derivatives there divide by it.
_MIN_FRACTION = 1e-6


class PartialVolumeSimulator(Simulator):
    """As :class:`Simulator`, on the CPU, for cells that fill tetrahedra partly.

    Transmissibilities are relative: those of the walls of each of C cells, or of all of them
    (C = 1), and, the last one, of the faces between tetrahedra on the same side. `odds_ratio` is
    that of pools of the same side to face each other: 1 by chance.
    """

    def __init__(self, *args: Any, odds_ratio: float = 1.0, **options: Any):
        super().__init__(*args, **options)
        self._odds_ratio = odds_ratio
        self._conductance = open_conductance(self.grid, self.medium)

    def partial_signals(
        self, fractions: np.ndarray, transmissibility: np.ndarray, cells: np.ndarray | int = 0
    ) -> np.ndarray:
        """Signals (V, M) of cells with transmissibilities (C + 1,) or (V, C + 1).

        Fractions inside of cells are those of the tetrahedra (V, T), or also of the side of the
        box behind each outer face (V, T + B); without these, no wall is between a tetrahedron and
        the side. The water inside of a tetrahedron belongs to one of the `cells` (T,).
        """
        n_fields = len(fractions)
        transmissibility = np.broadcast_to(
            transmissibility, (n_fields, np.shape(transmissibility)[-1])
        )
        signals = np.empty((self.n_encodings, n_fields))

        def simulate(v):
            pools = self._pools(fractions[v], transmissibility[v], cells, neighbours_too=False)
            for timing in self.timings:
                sweep = CompiledSweep(pools.operator, pools.start, *timing.signals)
                signals[timing.columns, v] = sweep.signals(one_thread=True)[0]

        in_threads(simulate, range(n_fields))
        return self._measured(signals).T

    def partial_sensitivities(
        self, fractions: np.ndarray, transmissibility: np.ndarray, cells: np.ndarray | int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Signals (M,), and derivatives by fractions (M, T) and transmissibilities (M, C + 1).

        Fractions are (T,) or (T + B,), and so are derivatives by them. Derivatives by fractions
        that are 0 or 1, as those of all neighbours, are not computed: 0.
        """
        pools = self._pools(fractions, transmissibility, cells, neighbours_too=True)
        signals = np.empty(self.n_encodings)
        jacobian = np.empty((self.n_encodings, len(fractions) + len(transmissibility)))
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
        timing_index = timing_index[self._encoding][order]
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
        return (values.T[..., self._encoding] * self._attenuation).T

    def _pools(self, fractions, transmissibility, cells, neighbours_too):
        """The pools of water of some fractions, and those next to them, which may get water."""
        links, tau = links_of(self.grid), transmissibility
        cells = np.broadcast_to(np.asarray(cells, dtype=int), self.grid.n_tetrahedra)
        inside, side = np.split(fractions, [self.grid.n_tetrahedra])
        water = np.stack([inside, 1 - inside])
        water[water < _OMITTED_FRACTION] = 0
        exists = water > 0
        if neighbours_too:
            exists |= exists[:, links.neighbours].any(axis=2)
            water[exists] = water[exists].clip(_MIN_FRACTION)
        layer, tetrahedron = np.nonzero(exists)
        start = np.sqrt(water[exists]) * self.medium.equilibrium(self.grid)[tetrahedron]
        pool_index = np.zeros(exists.shape, dtype=np.int32)
        pool_index[exists] = np.arange(len(start))
        slots, rate, slopes, pairs, pair_links = self._exchange(
            water, pool_index, (layer, tetrahedron), tau, cells, len(fractions), neighbours_too
        )
        at_side, closed, side_slopes = self._sides(side, pool_index, exists, tau, cells)
        rate -= np.bincount(at_side, closed, len(start))
        coupling, own_neighbours, crossing, crossing_neighbours = slots
        operator = (
            coupling[None].astype(self._real), own_neighbours, crossing[None].astype(self._real),
            crossing_neighbours, crossing.any(axis=1), links.slot_links[tetrahedron],
            (-rate - self.medium.loss_rate[:, tetrahedron])[None].astype(self._real),
            links.link_vectors,
        )  # fmt: skip
        if not neighbours_too:
            return _Pools(operator, start.astype(self._real))
        by_water = np.where(layer == 0, 1.0, -1.0) * start / (2 * water[exists])
        entries = (
            (len(pair_links), slopes[0]),
            (len(start), [*slopes[1], *side_slopes]),
            (len(start), [(np.arange(len(start)), tetrahedron, by_water)]),
        )
        n_columns = len(fractions) + len(tau)
        slopes = [_sparse(entry, (n_rows, n_columns)) for n_rows, entry in entries]
        return _Pools(operator, start.astype(self._real), pairs, pair_links, slopes)

    def _exchange(self, water, pool_index, pools, tau, cells, n, with_slopes):
        """Slots of each pool: its exchange with those of its own layer, and of the other.

        Coupling and neighbours (n, 4) of both, and the rates (n,) of the exchange; entries of
        their derivatives, those by transmissibilities in the columns after the first `n`; pairs
        of pools (P, 2) and their links.
        """
        links = links_of(self.grid)
        layer, tetrahedron = (x[:, None] for x in pools)
        pool, sign = np.arange(len(layer))[:, None], np.where(layer == 0, 1.0, -1.0)
        neighbours = links.neighbours[pools[1]]
        water_i, weights = water[layer, tetrahedron], self._weights[tetrahedron]
        mean_weight = np.sqrt(weights * self._weights[neighbours])
        per_slot = np.append(self._conductance, 0.0)[links.slot_faces[pools[1]]]
        per_water = per_slot / (water_i * weights)
        cell = cells[np.where(layer == 0, tetrahedron, neighbours)]
        slots, rate, by_coupling, by_diagonal, pairs, pair_links = [], 0.0, [], [], [], []
        for same_side, wall in ((True, np.full_like(cell, len(tau) - 1)), (False, cell)):
            layer_j, sign_j = (layer, sign) if same_side else (1 - layer, -sign)
            water_j, pool_j = water[layer_j, neighbours], pool_index[layer_j, neighbours]
            odds_ratio = self._odds_ratio if same_side else 1 / self._odds_ratio
            contact, by_i, by_j = contact_fraction(water_i, water_j, odds_ratio)
            root = np.sqrt(water_i * water_j).clip(_MIN_FRACTION**2)
            per_root = per_slot / mean_weight / root
            slots += [tau[wall] * per_root * contact, pool_j]
            rate += (tau[wall] * per_water * contact).sum(axis=1)
            if not with_slopes:
                continue
            by_diagonal += [
                (pool, tetrahedron, tau[wall] * per_water * sign * (contact / water_i - by_i)),
                (pool, neighbours, -tau[wall] * per_water * sign_j * by_j),
                (pool, n + wall, -per_water * contact),
            ]
            # Pairs of pools are slots of both.
            row, slot = once = np.nonzero((pool < pool_j) & (per_slot > 0))
            index = sum(map(len, pairs)) + np.arange(len(row))
            by_i, by_j = (
                (tau[wall] * per_root * (slope - contact / (2 * x)))[once]
                for slope, x in ((by_i, water_i), (by_j, water_j.clip(_MIN_FRACTION)))
            )
            by_coupling += [
                (index, pools[1][row], sign[row, 0] * by_i),
                (index, neighbours[once], sign_j[row, 0] * by_j),
                (index, n + wall[once], (per_root * contact)[once]),
            ]
            pairs.append(np.stack([row, pool_j[once]], axis=1).astype(np.int32))
            pair_links.append(links.slot_links[pools[1]][once])
        pairs, pair_links = (np.concatenate(x) if x else None for x in (pairs, pair_links))
        return slots, rate, (by_coupling, by_diagonal), pairs, pair_links

    def _sides(self, side, pool_index, exists, tau, cells):
        """Reduction (S,) of the loss of pools by walls at the sides of the box, and derivatives.

        `side` are the fractions (B,) behind outer faces, or none.
        """
        layer, face = np.nonzero(exists[:, self.grid.outer_tetrahedra[: len(side)]])
        tetrahedron = self.grid.outer_tetrahedra[face]
        pool, cell = pool_index[layer, tetrahedron], cells[tetrahedron]
        lost = self.medium.outer_conductance[face] / self.grid.volumes[tetrahedron]
        walled = np.where(layer == 0, 1 - side[face], side[face])
        closed = lost * (1 - tau[cell])
        n = self.grid.n_tetrahedra
        by_side = (pool, n + face, np.where(layer == 0, -closed, closed))
        by_tau = (pool, n + len(side) + cell, -lost * walled)
        return pool, closed * walled, (by_side, by_tau)


def contact_fraction(
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
    slopes: list | None = None  # (P or n, T + C + 1), sparse, of exchange, diagonals and start


def _sparse(entries, shape):
    """Sparse matrix with the sums of entries (rows, columns, values), which broadcast."""
    flat = [[x.ravel() for x in np.broadcast_arrays(*entry)] for entry in entries]
    row, column, value = (np.concatenate(arrays) for arrays in zip(*flat, strict=True))
    return csr_matrix((value, (row, column)), shape)
