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
from functools import cached_property
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
    (C = 1), and, the last one, of the faces between tetrahedra on the same side.

    Parameters
    ----------
    odds_ratio : float
        Odds ratio of pools of the same side to face each other: 1 by chance.
    """

    def __init__(self, *args: Any, odds_ratio: float = 1.0, **options: Any):
        super().__init__(*args, **options)
        self._odds_ratio = odds_ratio

    def partial_signals(
        self, fractions: np.ndarray, transmissibility: np.ndarray, cells: np.ndarray | int = 0
    ) -> np.ndarray:
        """Signals (V, M) of cells.

        Parameters
        ----------
        fractions : ndarray (V, T) or (V, T + B)
            Fraction of each tetrahedron inside of cells, 0 to 1, and of the side of the box
            behind each outer face; without these, no wall is between a tetrahedron and the side.
        transmissibility : ndarray (C + 1,) or (V, C + 1)
        cells : ndarray (T,) of int, optional
            Cell to which the water inside of each tetrahedron belongs.
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
        """About the first measurements of an order, as many as fill registers.

        A compiled sweep carries measurements of the same timing together, as many as a register
        has lanes; a register that is not full costs as much.

        Parameters
        ----------
        order : ndarray (M,)
            All measurements, as indices, in the order of preference.
        number : int
            How many of them.

        Returns
        -------
        rows : ndarray (n,)
            Sorted indices, of each timing about as many as among the first `number`: all of
            full registers, no more than `number` but for a single register.
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

    @cached_property
    def _conductance(self):
        return open_conductance(self.grid, self.medium)

    @property
    def _real(self):
        return torch.empty(0, dtype=self.dtype).numpy().dtype

    def _measured(self, values):
        """Rows of all measurements, from those of the different encodings."""
        return (values.T[..., self._encoding] * self._attenuation).T

    def _pools(self, fractions, transmissibility, cells, neighbours_too):
        """The pools of water of some fractions, and those next to them, which may get water."""
        links, n, tau = links_of(self.grid), len(fractions), transmissibility
        cells = np.broadcast_to(np.asarray(cells, dtype=int), self.grid.n_tetrahedra)
        inside, side = np.split(fractions, [self.grid.n_tetrahedra])
        water = np.stack([inside, 1 - inside])
        water[water < _OMITTED_FRACTION] = 0
        exists = water > 0
        if neighbours_too:
            exists |= exists[:, links.neighbours].any(axis=2)
            water[exists] = water[exists].clip(_MIN_FRACTION)
        layer, tetrahedron = np.nonzero(exists)
        pool_index = np.zeros(exists.shape, dtype=np.int32)
        pool_index[exists] = np.arange(len(layer))
        water_i, weights = water[layer, tetrahedron], self._weights[tetrahedron]
        start = np.sqrt(water_i) * self.medium.equilibrium(self.grid)[tetrahedron]

        # Slots: the exchange of each pool with those of its own layer, and of the other.
        neighbours = links.neighbours[tetrahedron]
        conductance = np.append(self._conductance, 0.0)
        per_slot = conductance[links.slot_faces[tetrahedron]]
        mean_weight = np.sqrt(weights[:, None] * self._weights[neighbours])
        cell = cells[np.where(layer[:, None] == 0, tetrahedron[:, None], neighbours)]
        own_water, sign = water_i[:, None], np.where(layer == 0, 1.0, -1.0)[:, None]
        slots, exchange, by_pool, by_neighbour = [], [], 0.0, 0.0
        for same_side, tau_k in ((True, tau[-1]), (False, tau[cell])):
            layer_j = (layer if same_side else 1 - layer)[:, None]
            water_j = water[layer_j, neighbours]
            contact = contact_fraction(own_water, water_j, self._odds(same_side))
            root = np.sqrt(own_water * water_j).clip(_MIN_FRACTION**2)
            slots.append(tau_k * per_slot / mean_weight * contact.value / root)
            slots.append(pool_index[layer_j, neighbours])
            per_water = per_slot / (own_water * weights[:, None])
            exchange.append(per_water * contact.value)
            # Of rates, by the fractions inside of the tetrahedron and of its neighbours.
            by_pool += tau_k * per_water * sign * (contact.by_i - contact.value / own_water)
            by_neighbour += tau_k * per_water * (sign if same_side else -sign) * contact.by_j
        rate = (tau[-1] * exchange[0] + tau[cell] * exchange[1]).sum(axis=1)
        at_side, closed, side_slopes = self._sides(side, pool_index, exists, tau, cells)
        rate -= np.bincount(at_side, closed, len(rate))
        coupling, own_neighbours, crossing, crossing_neighbours = slots
        operator = (
            coupling[None].astype(self._real), own_neighbours, crossing[None].astype(self._real),
            crossing_neighbours, crossing.any(axis=1), links.slot_links[tetrahedron],
            (-rate - self.medium.loss_rate[:, tetrahedron])[None].astype(self._real),
            links.link_vectors,
        )  # fmt: skip
        if not neighbours_too:
            return _Pools(operator, start.astype(self._real))

        pairs, pair_links, coupling_slopes = self._pairs(water, pool_index, exists, tau, cells, n)
        n_pools = len(start)
        shape, pool = (n_pools, n + len(tau)), np.repeat(np.arange(n_pools), 4)
        diagonal_slopes = _sparse(
            (np.arange(n_pools), tetrahedron, -by_pool.sum(axis=1)),
            (pool, neighbours.ravel(), -by_neighbour.ravel()),
            (pool, n + cell.ravel(), -exchange[1].ravel()),
            (pool, np.full(len(pool), shape[1] - 1), -exchange[0].ravel()),
            *side_slopes,
            shape=shape,
        )
        start_slopes = _sparse(
            (np.arange(n_pools), tetrahedron, sign[:, 0] * start / (2 * water_i)), shape=shape
        )
        slopes = coupling_slopes, diagonal_slopes, start_slopes
        return _Pools(operator, start.astype(self._real), pairs, pair_links, slopes)

    def _odds(self, same_side):
        return self._odds_ratio if same_side else 1 / self._odds_ratio

    def _sides(self, side, pool_index, exists, tau, cells):
        """What walls at the sides of the box take from the loss of pools (S,), and derivatives.

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

    def _pairs(self, water, pool_index, exists, tau, cells, n):
        """Pairs of exchanging pools (P, 2), their links, and derivatives of the exchange.

        The derivatives by transmissibilities are in the columns after the first `n`.
        """
        pairs, pair_links, slopes, n_pairs = [], [], [], 0
        open_face = len(tau) - 1
        face_links = links_of(self.grid).face_links
        for a, b in ((0, 0), (1, 1), (0, 1), (1, 0)):
            i, j = self.grid.face_tetrahedra.T
            exchanging = exists[a, i] & exists[b, j]
            i, j = i[exchanging], j[exchanging]
            water_i, water_j = water[a, i], water[b, j]
            contact = contact_fraction(water_i, water_j, self._odds(a == b))
            mean_weight = np.sqrt(self._weights[i] * self._weights[j])
            per_root = self._conductance[exchanging] / (mean_weight * np.sqrt(water_i * water_j))
            index = n_pairs + np.arange(len(i))
            wall = open_face if a == b else cells[i if a == 0 else j]
            by_i, by_j = (
                tau[wall] * per_root * (slope - contact.value / (2 * x))
                for slope, x in ((contact.by_i, water_i), (contact.by_j, water_j))
            )
            slopes += [
                (index, i, (1 - 2 * a) * by_i),
                (index, j, (1 - 2 * b) * by_j),
                (index, n + np.broadcast_to(wall, len(index)), per_root * contact.value),
            ]
            pairs.append(np.stack([pool_index[a, i], pool_index[b, j]], axis=1))
            pair_links.append(face_links[exchanging])
            n_pairs += len(index)
        slopes = _sparse(*slopes, shape=(n_pairs, n + len(tau)))
        return np.concatenate(pairs), np.concatenate(pair_links), slopes


@dataclass(frozen=True, eq=False)
class ContactFraction:
    """Fraction of a face at which two pools meet, and its derivatives by their own fractions."""

    value: np.ndarray
    by_i: np.ndarray
    by_j: np.ndarray


def contact_fraction(x_i: np.ndarray, x_j: np.ndarray, odds_ratio: float) -> ContactFraction:
    """Plackett's joint distribution of two pools with fractions on the two sides of a face."""
    total = 1 + (x_i + x_j) * (odds_ratio - 1)
    root = np.sqrt(total**2 - 4 * odds_ratio * (odds_ratio - 1) * x_i * x_j)
    return ContactFraction(
        value=2 * odds_ratio * x_i * x_j / (total + root),
        by_i=(1 - (total - 2 * odds_ratio * x_j) / root) / 2,
        by_j=(1 - (total - 2 * odds_ratio * x_i) / root) / 2,
    )


@dataclass(frozen=True, eq=False)
class _Pools:
    """The operator of n pools of water, and what changes it.

    Attributes
    ----------
    operator : tuple
        As the compiled sweeps take it.
    start : ndarray (n,)
    pairs, pair_links : ndarray (P, 2), (P,)
        Pools that exchange, and the link from one to the other.
    slopes : tuple of sparse (P, T + C + 1), (n, T + C + 1), (n, T + C + 1)
        Derivatives of the exchange, of the diagonals and of the start.
    """

    operator: tuple
    start: np.ndarray
    pairs: np.ndarray | None = None
    pair_links: np.ndarray | None = None
    slopes: tuple | None = None


def _sparse(*entries, shape):
    """Sparse matrix with the sums of entries (row, column, value)."""
    row, column, value = (np.concatenate(arrays) for arrays in zip(*entries, strict=True))
    return csr_matrix((value, (row, column)), shape)
