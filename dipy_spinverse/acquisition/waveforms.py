"""Wave vectors q(t) of any encoding: gradients that are linear in time between knots.

All in ms and rad/um. Gradients are effective ones: a refocusing pulse has turned their sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

# rad/(s T), proton in water as Camino has it; CODATA 2018 (doi:10.1103/RevModPhys.93.025010)
# gives 2.675153151e8 for the shielded proton, 2.4e-7 more
GYROMAGNETIC_RATIO = 2.6751525e8
_REFOCUSED = 1e-3  # of the largest q, left at the echo; text files have four digits or more
_SYMMETRIC = 1e-6  # of the largest q, between q(t) and q(TE - t)
_SHORTEST_MS = 1e-9  # pieces that are shorter come from rounding
# of three points, exact for polynomials up to t^5; q q^T is of fourth degree
_GAUSS_POINTS = 0.5 + np.array([-1, 0, 1]) * np.sqrt(0.15)
_GAUSS_WEIGHTS = np.array([5, 8, 5]) / 18


@dataclass(frozen=True, eq=False)
class Waveforms:
    """Wave vectors q(t) of measurements that take the same time, side by side.

    Attributes
    ----------
    rows : ndarray (m,)
        Which measurements of the acquisition these are.
    times : ndarray (K + 1,)
        Knots, ms, from the excitation (0) to the echo.
    rates : ndarray (K, 2, m, 3)
        dq/dt = gamma g at the start and at the end of each piece, linear in between, rad/um/ms.
    stored : ndarray (K,)
        Pieces in which the magnetisation is longitudinal (mixing time of a stimulated echo).
    """

    rows: np.ndarray
    times: np.ndarray
    rates: np.ndarray
    stored: np.ndarray

    @cached_property
    def q_at_knots(self) -> np.ndarray:
        """(K + 1, m, 3) rad/um."""
        steps = np.diff(self.times)[:, None, None] * self.rates.mean(axis=1)
        return np.concatenate([np.zeros_like(steps[:1]), np.cumsum(steps, axis=0)])

    @cached_property
    def largest_q(self) -> np.ndarray:
        """(m,) rad/um, at the knots and halfway between them."""
        spans = np.diff(self.times)[:, None, None]
        halfway = self.q_at_knots[:-1] + spans * (3 * self.rates[:, 0] + self.rates[:, 1]) / 8
        norms = [np.linalg.norm(q, axis=2).max(axis=0) for q in (self.q_at_knots, halfway)]
        return np.maximum(*norms)

    @property
    def echo_time(self) -> float:
        """Time during which the magnetisation is transverse, ms."""
        return float(np.diff(self.times)[~self.stored].sum())

    @property
    def mixing_time(self) -> float:
        """Time during which the magnetisation is stored, ms."""
        return float(np.diff(self.times)[self.stored].sum())

    def q(self, t: np.ndarray) -> np.ndarray:
        """(n, m, 3) at times t (n,), rad/um."""
        start, s, slope, bend = self._within(self._index(t), t)
        return start + s * (slope + s * bend / 2)

    def linear_approximation(self, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Best linear approximation of q(t) between neighbouring edges.

        It has the same integral and first moment as q(t).

        Returns
        -------
        mean, slope : ndarray (n, m, 3)
            rad/um, rad/um/ms; of n + 1 edges.
        """
        whole, moment = (np.diff(integral, axis=0) for integral in self._integrals(edges))
        span = np.diff(edges)[:, None, None]
        centre = (edges[1:] + edges[:-1])[:, None, None] / 2
        return whole / span, 12 * (moment - centre * whole) / span**3

    def b_tensors(self) -> np.ndarray:
        """(m, 3, 3) integral of q q^T, ms/um^2; the quadrature is exact."""
        spans = np.diff(self.times)
        total = np.zeros((len(self.rows), 3, 3))
        for point, weight in zip(_GAUSS_POINTS, _GAUSS_WEIGHTS, strict=True):
            q = self.q(self.times[:-1] + point * spans)
            total += np.einsum("k,kmi,kmj->mij", weight * spans, q, q)
        return total

    def select(self, chosen: np.ndarray) -> Waveforms:
        """Some of the measurements."""
        return Waveforms(self.rows[chosen], self.times, self.rates[:, :, chosen], self.stored)

    def until(self, t: float) -> Waveforms:
        """The encoding up to a time."""
        last = int(np.searchsorted(self.times, t - _SHORTEST_MS)) - 1
        share = (t - self.times[last]) / (self.times[last + 1] - self.times[last])
        rates = self.rates[: last + 1].copy()
        rates[-1, 1] = (1 - share) * rates[-1, 0] + share * rates[-1, 1]
        times = np.append(self.times[: last + 1], t)
        return Waveforms(self.rows, times, rates, self.stored[: last + 1])

    def refocused(self) -> np.ndarray:
        """(m,) whether q returns to zero at the echo."""
        return np.linalg.norm(self.q_at_knots[-1], axis=1) <= _REFOCUSED * self.largest_q

    def symmetric(self) -> np.ndarray:
        """(m,) whether q(TE - t) = q(t)."""
        duration = self.times[-1]
        knots = np.union1d(self.times, duration - self.times)
        middles = ((knots[1:] + knots[:-1]) / 2)[np.diff(knots) > _SHORTEST_MS]
        stored = self.stored_at(middles), self.stored_at(duration - middles)
        rows = np.arange(len(self.rows) * np.array_equal(*stored))
        # Few times rule out most.
        for t in (np.linspace(0, duration, 64), np.concatenate([knots, middles])):
            part = self.select(rows)
            apart = np.linalg.norm(part.q(t) - part.q(duration - t), axis=2).max(axis=0)
            rows = rows[apart <= _SYMMETRIC * self.largest_q[rows]]
        return np.isin(np.arange(len(self.rows)), rows)

    def stored_at(self, t: np.ndarray) -> np.ndarray:
        """(n,) whether the magnetisation is longitudinal."""
        return self.stored[self._index(t)]

    def _index(self, t):
        return np.clip(np.searchsorted(self.times, t, side="right") - 1, 0, len(self.stored) - 1)

    def _within(self, piece, t):
        """q at the start of a piece, time from there to t, and dq/dt and d2q/dt2 at the start."""
        spans, since = (
            x[:, None, None] for x in (np.diff(self.times)[piece], t - self.times[piece])
        )
        slope = self.rates[piece, 0]
        return self.q_at_knots[piece], since, slope, (self.rates[piece, 1] - slope) / spans

    def _integrals(self, t):
        """Integrals of q and of t q from 0 to each of the times (n,)."""
        pieces = self._piece_integrals(np.arange(len(self.stored)), self.times[1:])
        before = (np.cumsum(np.pad(x, [(1, 0), (0, 0), (0, 0)]), axis=0) for x in pieces)
        piece = self._index(t)
        parts = self._piece_integrals(piece, t)
        return [whole[piece] + part for whole, part in zip(before, parts, strict=True)]

    def _piece_integrals(self, piece, t):
        """Integrals of q and of t q from the start of a piece to t."""
        q, s, slope, bend = self._within(piece, t)
        whole = s * (q + s * (slope / 2 + s * bend / 6))
        moment = s**2 * (q / 2 + s * (slope / 3 + s * bend / 8))
        return whole, self.times[piece][:, None, None] * whole + moment


def concatenate_pieces(pieces) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Knots, rates and storage of pieces (duration in ms, rates (2, m, 3), stored) in a row.

    Pieces without a duration are left out.
    """
    pieces = [piece for piece in pieces if piece[0] > _SHORTEST_MS]
    durations, rates, stored = zip(*pieces, strict=True)
    times = np.concatenate([[0.0], np.cumsum(durations)])
    return times, np.stack(rates), np.array(stored, dtype=bool)


def pulsed_waveforms(rows, q_vectors, small_delta, big_delta, te, mixing_time=0.0) -> Waveforms:
    """Two equal rectangular pulses in the middle of TE, storage in the middle between them.

    Parameters
    ----------
    rows : ndarray (m,)
    q_vectors : ndarray (m, 3)
        Between the pulses, rad/um.
    small_delta, big_delta, te, mixing_time : float
        ms.
    """
    on = np.broadcast_to(q_vectors / small_delta, (2, *q_vectors.shape))
    off, dead = np.zeros_like(on), (te + mixing_time - big_delta - small_delta) / 2
    between = [(big_delta - small_delta, off, False)]
    if mixing_time:
        wait = ((big_delta - small_delta - mixing_time) / 2, off, False)
        between = [wait, (mixing_time, off, True), wait]
    first, second = [(dead, off, False), (small_delta, on, False)], (small_delta, -on, False)
    return Waveforms(rows, *concatenate_pieces([*first, *between, second, first[0]]))
