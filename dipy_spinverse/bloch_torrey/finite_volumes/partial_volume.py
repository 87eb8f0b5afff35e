"""Cells that fill tetrahedra partly: a simulation that is smooth in the shape of cells.

A tetrahedron i holds two pools of water, inside of cells (share p_i of its volume) and around
them (1 - p_i). Pools of neighbours i, j exchange through

    t_f p_i p_j (inside), t_f (1 - p_i) (1 - p_j) (around),
    leak t_f p_i (1 - p_j) and leak t_f (1 - p_i) p_j (across the walls of the cell inside),

t_f being the conductance of the open face, if pools meet by chance. Where a smooth wall passes
through both tetrahedra, pools of the same side face each other more often, by an odds ratio: p_i
p_j is the number that Plackett's distribution [1]_ has instead, and the others follow, as each
pool has all of its share of a face. By chance, a wall within a layer of tetrahedra lets only half
of the water along it move; with a large odds ratio all of it.

At an absorbing side of the box, p_j is the share of the side that is inside: the rest of the water
inside is lost through a wall only. Where all shares are 0 or 1 these are the finite volumes of
`finite_volume`, with walls between the tetrahedra inside and those around. In between, the signals
change with the shares nearly as much per share as when whole tetrahedra change sides, which the
permeabilities of faces do not do: one cannot close a face a little.

References
----------
.. [1] Plackett, "A class of bivariate distributions", J. Am. Stat. Assoc. 60 (1965),
   https://doi.org/10.1080/01621459.1965.10480807
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from dipy_spinverse.bloch_torrey.finite_volumes import partial_volume_kernels, sweep_kernels
from dipy_spinverse.bloch_torrey.finite_volumes.operator import links_of, open_conductance
from dipy_spinverse.bloch_torrey.finite_volumes.simulator import (
    Simulator,
    compiled_nodes,
    compiled_plan,
)
from dipy_spinverse.threads import in_equal_parts, n_threads

_LEFT_OUT = 1e-3  # share of a pool below which it is left out
_LEAST = 1e-6  # share of pools without water that may get some


class PartialVolumeSimulator(Simulator):
    """As :class:`Simulator`, on the CPU, for cells that fill tetrahedra partly.

    Leaks are the relative transmissibilities of the walls of each of C cells, or of all of them
    (C = 1), and, the last one, of the faces between tetrahedra on the same side.

    Parameters
    ----------
    odds_ratio : float
        Odds ratio of pools of the same side to face each other: 1 by chance.
    """

    def __init__(self, *args: Any, odds_ratio: float = 1.0, **options: Any):
        super().__init__(*args, **options)
        self._odds = odds_ratio

    def partial_signals(
        self, shares: np.ndarray, leaks: np.ndarray, cells: np.ndarray | int = 0
    ) -> np.ndarray:
        """Signals (V, M) of cells.

        Parameters
        ----------
        shares : ndarray (V, T) or (V, T + B)
            Share of each tetrahedron inside of cells, 0 to 1, and of the side of the box behind
            each outer face; without these, no wall is between a tetrahedron and the side.
        leaks : ndarray (C + 1,) or (V, C + 1)
        cells : ndarray (T,) of int, optional
            To which of the cells the water inside of each tetrahedron belongs.
        """
        leaks = np.broadcast_to(leaks, (len(shares), np.shape(leaks)[-1]))
        signals = np.empty((self.n_encodings, len(shares)))

        def simulate(v):
            pools = self._pools(shares[v], leaks[v], cells, halo=False)
            for timing in self.timings:
                args, n_blocks = self._arguments(timing, timing.signals, pools)
                part = np.empty((n_blocks, self._lanes), pools.start.dtype)
                partial_volume_kernels.sweep_signals(0, n_blocks, *args, part)
                signals[timing.columns, v] = part.ravel()[: len(timing.columns)]

        with ThreadPoolExecutor(n_threads()) as threads:
            list(threads.map(simulate, range(len(shares))))
        return self._measured(signals).T

    def partial_sensitivities(
        self, share: np.ndarray, leaks: np.ndarray, cells: np.ndarray | int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Signals (M,), and their derivatives by the shares (M, T) and by the leaks (M, C + 1).

        Shares are (T,) or (T + B,), and so are derivatives by them. Derivatives by shares that
        are 0 or 1, as those of all neighbours, are not computed: 0.
        """
        pools = self._pools(share, leaks, cells, halo=True)
        signals = np.empty(self.n_encodings)
        jacobian = np.empty((self.n_encodings, len(share) + len(leaks)))
        for timing in self.timings:
            schedule = timing.sensitivities[0]
            args, n_blocks = self._arguments(timing, timing.sensitivities, pools)
            nodes = compiled_nodes(schedule, self._lanes)
            shape, real = (n_blocks, self._lanes), pools.start.dtype
            part = np.empty(shape, real)
            by_coupling = np.empty((*shape, len(pools.pairs)), real)
            by_diagonal, by_start = (np.empty((*shape, len(pools.start)), real) for _ in range(2))
            in_equal_parts(
                partial_volume_kernels.sweep_sensitivities, n_blocks, *args,
                (pools.pairs, pools.pair_links), nodes, part, by_coupling, by_diagonal, by_start,
            )  # fmt: skip
            m = len(timing.columns)
            signals[timing.columns] = part.ravel()[:m]
            jacobian[timing.columns] = sum(
                (derivative.reshape(n_blocks * self._lanes, -1)[:m] @ slopes)
                for derivative, slopes in zip(
                    (by_coupling, by_diagonal, by_start), pools.slopes, strict=True
                )
            )
        jacobian = self._measured(jacobian)
        return self._measured(signals), *np.split(jacobian, [len(share)], axis=1)

    def fill_registers(self, order: np.ndarray, number: int) -> np.ndarray:
        """Of measurements in some order, about the first ones, which fill registers.

        A compiled sweep takes measurements of the same timing together, as many as a register
        holds; a register that is not full costs as much.

        Parameters
        ----------
        order : ndarray (M,)
            All measurements, as indices, the most wanted first.
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
        timing = np.empty(self.n_encodings, dtype=int)
        for k, same in enumerate(self.timings):
            timing[same.columns] = k
        timing = timing[self._encoding][order]
        registers = np.bincount(timing[:number], minlength=len(self.timings)) / self._lanes
        filled = np.floor(registers).astype(int)
        most_wanted = np.argsort(filled - registers)
        filled[most_wanted[: max(number // self._lanes, 1) - filled.sum()]] += 1
        rows = [order[timing == k][: n * self._lanes] for k, n in enumerate(filled)]
        return np.sort(np.concatenate(rows))

    @cached_property
    def _conductance(self):
        return open_conductance(self.grid, self.medium)

    @property
    def _lanes(self):
        return sweep_kernels.REGISTER_BYTES // torch.empty(0, dtype=self.dtype).element_size()

    def _measured(self, values):
        """Rows of all measurements, from those of the different encodings."""
        return (values.T[..., self._encoding] * self._attenuation).T

    def _arguments(self, timing, plan_of_timing, pools):
        schedule, series = plan_of_timing
        q, plan = compiled_plan(schedule, series, self._lanes)
        vectors = links_of(self.grid).link_vectors
        return (pools.entries, pools.start, vectors, q, plan, schedule.symmetric), len(q)

    def _pools(self, share, leaks, cells, halo):
        """The pools of some shares; with those that may get water from neighbours (`halo`)."""
        links, n = links_of(self.grid), len(share)
        cells = np.broadcast_to(np.asarray(cells, dtype=int), self.grid.n_tetrahedra)
        share, side = np.split(share, [self.grid.n_tetrahedra])
        water = np.stack([share, 1 - share])
        water[water < _LEFT_OUT] = 0
        used = water > 0
        if halo:
            used |= used[:, links.neighbours].any(axis=2)
            water[used] = water[used].clip(_LEAST)
        layer, tetrahedron = np.nonzero(used)
        place = np.zeros(used.shape, dtype=np.int32)
        place[used] = np.arange(len(layer))
        here, weights = water[layer, tetrahedron], self._weights[tetrahedron]
        start = np.sqrt(here) * self.medium.start(self.grid)[tetrahedron]

        # Slots: the exchange of each pool with those of its own layer, and of the other.
        neighbours = links.neighbours[tetrahedron]
        conductance = np.append(self._conductance, 0.0)
        per_slot = conductance[links.slot_faces[tetrahedron]]
        mean_weight = np.sqrt(weights[:, None] * self._weights[neighbours])
        cell = cells[np.where(layer[:, None] == 0, tetrahedron[:, None], neighbours)]
        own, sign = here[:, None], np.where(layer == 0, 1.0, -1.0)[:, None]
        slots, exchange, by_own, by_other = [], [], 0.0, 0.0
        for same_side, leak in ((True, leaks[-1]), (False, leaks[cell])):
            other = (layer if same_side else 1 - layer)[:, None]
            there = water[other, neighbours]
            met = contact_fraction(own, there, self._odds if same_side else 1 / self._odds)
            root = np.sqrt(own * there).clip(_LEAST**2)
            slots.append(leak * per_slot / mean_weight * met.share / root)
            slots.append(place[other, neighbours])
            per_water = per_slot / (own * weights[:, None])
            exchange.append(per_water * met.share)
            # Of rates, by the shares inside of the tetrahedron and of its neighbours.
            by_own += leak * per_water * sign * (met.by_here - met.share / own)
            by_other += leak * per_water * (sign if same_side else -sign) * met.by_there
        rate = (leaks[-1] * exchange[0] + leaks[cell] * exchange[1]).sum(axis=1)
        at_side, closed, side_slopes = self._sides(side, place, used, leaks, cells)
        rate -= np.bincount(at_side, closed, len(rate))
        coupling, own_places, crossing, other_places = slots
        real = torch.empty(0, dtype=self.dtype).numpy().dtype
        entries = (
            coupling.astype(real), own_places, crossing.astype(real), other_places,
            crossing.any(axis=1), links.slot_links[tetrahedron],
            (-rate - self.medium.loss[:, tetrahedron]).astype(real),
        )  # fmt: skip
        if not halo:
            return _Pools(entries, start.astype(real))

        pairs, pair_links, coupling_slopes = self._pairs(water, place, used, leaks, cells, n)
        n_pools = len(start)
        shape, pool = (n_pools, n + len(leaks)), np.repeat(np.arange(n_pools), 4)
        diagonal_slopes = _sparse(
            (np.arange(n_pools), tetrahedron, -by_own.sum(axis=1)),
            (pool, neighbours.ravel(), -by_other.ravel()),
            (pool, n + cell.ravel(), -exchange[1].ravel()),
            (pool, np.full(len(pool), shape[1] - 1), -exchange[0].ravel()),
            *side_slopes,
            shape=shape,
        )
        start_slopes = _sparse(
            (np.arange(n_pools), tetrahedron, sign[:, 0] * start / (2 * here)), shape=shape
        )
        slopes = coupling_slopes, diagonal_slopes, start_slopes
        return _Pools(entries, start.astype(real), pairs, pair_links, slopes)

    def _sides(self, side, place, used, leaks, cells):
        """What walls at the sides of the box take from the loss of pools (S,), and derivatives.

        `side` are the shares (B,) behind outer faces, or none.
        """
        layer, face = np.nonzero(used[:, self.grid.outer_tetrahedra[: len(side)]])
        tetrahedron = self.grid.outer_tetrahedra[face]
        pool, cell = place[layer, tetrahedron], cells[tetrahedron]
        lost = self.medium.outer_conductance[face] / self.grid.volumes[tetrahedron]
        across = np.where(layer == 0, 1 - side[face], side[face])
        closed = lost * (1 - leaks[cell])
        n = self.grid.n_tetrahedra
        by_side = (pool, n + face, np.where(layer == 0, -closed, closed))
        by_leak = (pool, n + len(side) + cell, -lost * across)
        return pool, closed * across, (by_side, by_leak)

    def _pairs(self, water, place, used, leaks, cells, n):
        """Pairs of exchanging pools (P, 2), their links, and derivatives of the exchange.

        The derivatives by leaks stand in columns after the first `n`.
        """
        pairs, pair_links, slopes, n_pairs = [], [], [], 0
        is_open = len(leaks) - 1
        face_links = links_of(self.grid).face_links
        for a, b in ((0, 0), (1, 1), (0, 1), (1, 0)):
            first, second = self.grid.face_tetrahedra.T
            chosen = used[a, first] & used[b, second]
            first, second = first[chosen], second[chosen]
            here, there = water[a, first], water[b, second]
            met = contact_fraction(here, there, self._odds if a == b else 1 / self._odds)
            mean_weight = np.sqrt(self._weights[first] * self._weights[second])
            per_root = self._conductance[chosen] / (mean_weight * np.sqrt(here * there))
            index = n_pairs + np.arange(len(first))
            leak = is_open if a == b else cells[first if a == 0 else second]
            by_here, by_there = (
                leaks[leak] * per_root * (slope - met.share / (2 * x))
                for slope, x in ((met.by_here, here), (met.by_there, there))
            )
            slopes += [
                (index, first, (1 - 2 * a) * by_here),
                (index, second, (1 - 2 * b) * by_there),
                (index, n + np.broadcast_to(leak, len(index)), per_root * met.share),
            ]
            pairs.append(np.stack([place[a, first], place[b, second]], axis=1))
            pair_links.append(face_links[chosen])
            n_pairs += len(index)
        slopes = _sparse(*slopes, shape=(n_pairs, n + len(leaks)))
        return np.concatenate(pairs), np.concatenate(pair_links), slopes


@dataclass(frozen=True, eq=False)
class ContactFraction:
    """Share of a face at which two pools meet, and its derivatives by their own shares."""

    share: np.ndarray
    by_here: np.ndarray
    by_there: np.ndarray


def contact_fraction(here: np.ndarray, there: np.ndarray, odds_ratio: float) -> ContactFraction:
    """How two pools meet at a face, of which they have shares on its two sides."""
    total = 1 + (here + there) * (odds_ratio - 1)
    root = np.sqrt(total**2 - 4 * odds_ratio * (odds_ratio - 1) * here * there)
    return ContactFraction(
        share=2 * odds_ratio * here * there / (total + root),
        by_here=(1 - (total - 2 * odds_ratio * there) / root) / 2,
        by_there=(1 - (total - 2 * odds_ratio * here) / root) / 2,
    )


@dataclass(frozen=True, eq=False)
class _Pools:
    """The operator of n pools of water, and what changes it.

    Attributes
    ----------
    entries : tuple
        As the compiled sweeps take them: the exchange with four pools of the same layer and who
        they are, the same for the other layer and whether there is any, links, and diagonals.
    start : ndarray (n,)
    pairs, pair_links : ndarray (P, 2), (P,)
        Pools that exchange, and the link from one to the other.
    slopes : tuple of sparse (P, T + C + 1), (n, T + C + 1), (n, T + C + 1)
        Derivatives by shares and leaks of the exchange, of the diagonals and of the start.
    """

    entries: tuple
    start: np.ndarray
    pairs: np.ndarray | None = None
    pair_links: np.ndarray | None = None
    slopes: tuple | None = None


def _sparse(*entries, shape):
    """Sparse matrix with the sums of entries (row, column, value)."""
    row, column, value = (np.concatenate(part) for part in zip(*entries, strict=True))
    return csr_matrix((value, (row, column)), shape)
