"""Wave vectors q(t) of any encoding: gradients that are linear in time between knots.

In ms and rad/um, of effective gradients, whose sign refocusing pulses have inverted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

# rad/(s T), of the proton in water as in Camino; CODATA 2018 for the shielded proton is 2.4e-7
# larger (2.675153151e8, doi:10.1103/RevModPhys.93.025010)
GYROMAGNETIC_RATIO = 2.6751525e8
_REFOCUSED = 1e-3  # largest |q(TE)| relative to max |q|; text files have four digits or more
_SYMMETRIC = 1e-6  # largest |q(t) - q(TE - t)| relative to max |q|; allows for rounding of knots
_SHORTEST_MS = 1e-9  # shorter pieces are rounding errors
# Three-point Gauss-Legendre rule on [0, 1]: exact for t^5, and q q^T is of degree 4.
_GAUSS_POINTS = 0.5 + np.array([-1, 0, 1]) * np.sqrt(0.15)
_GAUSS_WEIGHTS = np.array([5, 8, 5]) / 18


@dataclass(frozen=True, eq=False)
class Waveforms:
    """Wave vectors q(t) of m measurements of the same duration.

    `rows` (m,) are their indices among the measurements of the acquisition, `times` (K + 1,) the
    knots, ms, from the excitation (0) to the echo. `rates` (K, 2, m, 3) are dq/dt = gamma g at the
    start and end of each piece, linear in between, rad/um/ms; `stored` (K,) whether the
    magnetisation is longitudinal in it (mixing time of a stimulated echo).
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
        q, s, rate, rate_slope = self._expansion(self._index(t), t)
        return q + s * (rate + s * rate_slope / 2)

    def linear_approximation(self, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and slope (n, m, 3), rad/um and rad/um/ms, of q(t) between n + 1 successive edges.

        The least-squares approximation; it has the integral and first moment of q(t).
        """
        integral, moment = (np.diff(values, axis=0) for values in self._integrals(edges))
        span = np.diff(edges)[:, None, None]
        centre = (edges[1:] + edges[:-1])[:, None, None] / 2
        return integral / span, 12 * (moment - centre * integral) / span**3

    def b_tensors(self) -> np.ndarray:
        """(m, 3, 3) integral of q q^T, ms/um^2, by exact quadrature."""
        spans = np.diff(self.times)
        total = np.zeros((len(self.rows), 3, 3))
        for point, weight in zip(_GAUSS_POINTS, _GAUSS_WEIGHTS, strict=True):
            q = self.q(self.times[:-1] + point * spans)
            total += np.einsum("k,kmi,kmj->mij", weight * spans, q, q)
        return total

    def select(self, chosen: np.ndarray) -> Waveforms:
        """Select measurements."""
        return Waveforms(self.rows[chosen], self.times, self.rates[:, :, chosen], self.stored)

    def until(self, t: float) -> Waveforms:
        """The encoding up to time t, ms."""
        n = int(np.searchsorted(self.times, t - _SHORTEST_MS))
        fraction = (t - self.times[n - 1]) / (self.times[n] - self.times[n - 1])
        rates = self.rates[:n].copy()
        rates[-1, 1] = (1 - fraction) * rates[-1, 0] + fraction * rates[-1, 1]
        return Waveforms(self.rows, np.append(self.times[:n], t), rates, self.stored[:n])

    def refocused(self) -> np.ndarray:
        """(m,) whether q returns to zero at the echo."""
        return np.linalg.norm(self.q_at_knots[-1], axis=1) <= _REFOCUSED * self.largest_q

    def symmetric(self) -> np.ndarray:
        """(m,) whether q(TE - t) = q(t)."""
        duration = self.times[-1]
        knots = np.union1d(self.times, duration - self.times)
        midpoints = ((knots[1:] + knots[:-1]) / 2)[np.diff(knots) > _SHORTEST_MS]
        stored = self.stored_at(midpoints), self.stored_at(duration - midpoints)
        rows = np.arange(len(self.rows) * np.array_equal(*stored))
        # A coarse grid of times excludes most waveforms at low cost.
        for t in (np.linspace(0, duration, 64), np.concatenate([knots, midpoints])):
            candidates = self.select(rows)
            asymmetry = np.linalg.norm(candidates.q(t) - candidates.q(duration - t), axis=2)
            rows = rows[asymmetry.max(axis=0) <= _SYMMETRIC * self.largest_q[rows]]
        return np.isin(np.arange(len(self.rows)), rows)

    def stored_at(self, t: np.ndarray) -> np.ndarray:
        """(n,) whether the magnetisation is longitudinal."""
        return self.stored[self._index(t)]

    def _index(self, t):
        return np.clip(np.searchsorted(self.times, t, side="right") - 1, 0, len(self.stored) - 1)

    def _expansion(self, piece, t):
        """q at the start of a piece, time from there to t, and dq/dt and d2q/dt2 at the start."""
        durations, elapsed = (
            x[:, None, None] for x in (np.diff(self.times)[piece], t - self.times[piece])
        )
        rate = self.rates[piece, 0]
        return self.q_at_knots[piece], elapsed, rate, (self.rates[piece, 1] - rate) / durations

    def _integrals(self, t):
        """Integrals of q and of t q from 0 to each of the times (n,)."""
        piece = self._index(t)
        complete = self._piece_integrals(np.arange(len(self.stored)), self.times[1:])
        partial = self._piece_integrals(piece, t)
        return [
            np.cumsum(np.pad(x, [(1, 0), (0, 0), (0, 0)]), axis=0)[piece] + y
            for x, y in zip(complete, partial, strict=True)
        ]

    def _piece_integrals(self, piece, t):
        """Integrals of q and of t q from the start of a piece to t."""
        q, s, rate, rate_slope = self._expansion(piece, t)
        integral = s * (q + s * (rate / 2 + s * rate_slope / 6))
        moment = s**2 * (q / 2 + s * (rate / 3 + s * rate_slope / 8))
        return integral, self.times[piece][:, None, None] * integral + moment


def concatenate_pieces(pieces) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Knots, rates and storage of successive pieces (duration in ms, rates (2, m, 3), stored).

    Pieces of no duration are dropped.
    """
    pieces = [piece for piece in pieces if piece[0] > _SHORTEST_MS]
    durations, rates, stored = zip(*pieces, strict=True)
    times = np.concatenate([[0.0], np.cumsum(durations)])
    return times, np.stack(rates), np.array(stored, dtype=bool)


def pulsed_waveforms(rows, q_vectors, small_delta, big_delta, te, mixing_time=0.0) -> Waveforms:
    """Two equal rectangular pulses centred in TE, with storage centred between them.

    `q_vectors` (m, 3) are the plateaus between the pulses, rad/um; times are in ms.
    """
    rate = np.broadcast_to(q_vectors / small_delta, (2, *q_vectors.shape))
    zero = np.zeros_like(rate)
    dead_time = ((te + mixing_time - big_delta - small_delta) / 2, zero, False)
    gap = [(big_delta - small_delta, zero, False)]
    if mixing_time:
        delay = ((big_delta - small_delta - mixing_time) / 2, zero, False)
        gap = [delay, (mixing_time, zero, True), delay]
    dephasing, rephasing = (small_delta, rate, False), (small_delta, -rate, False)
    pieces = [dead_time, dephasing, *gap, rephasing, dead_time]
    return Waveforms(rows, *concatenate_pieces(pieces))
