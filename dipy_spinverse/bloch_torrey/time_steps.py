"""Time stepping: an encoding as a product of exponentials, and each of them as a series.

While q changes, steps are commutator-free Magnus exponentials of fourth order [1]_; while q is
constant, the exponential is exact. Each is a Chebyshev series in the sparse operator [2]_, whose
length grows only with the square root of the step, however stiff the operator is.

References
----------
.. [1] Blanes and Moan, Appl. Numer. Math. 56 (2006), https://doi.org/10.1016/j.apnum.2005.11.004
.. [2] Tal-Ezer and Kosloff, J. Chem. Phys. 81 (1984), https://doi.org/10.1063/1.448136
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import eval_chebyt, ive

from dipy_spinverse.acquisition.waveforms import Waveforms
from dipy_spinverse.bloch_torrey.encoding_groups import smooth_segments

# Weights of the operators at the two Gauss points of a Magnus step of fourth order [1]; they sum
# to 1/2.
_HEAVY, _LIGHT = 0.25 + np.sqrt(3) / 6, 0.25 - np.sqrt(3) / 6
_GAUSS = 0.5 + np.array([-1, 1]) * np.sqrt(3) / 6

# Sum of the omitted coefficients: far below the discretisation error of any grid.
CHEBYSHEV_TOLERANCE = 1e-8
# Change of q, relative to the largest, that counts as none: above rounding (1e-16 per operation),
# below anything that changes a signal.
_CONSTANT_Q = 1e-9


@dataclass(frozen=True, eq=False)
class Schedule:
    """An encoding as a product of exponentials; of one symmetric in time, the first half.

    Exponential e is exp(amplitude[e, 0] K(q[e, 0]) + amplitude[e, 1] K(q[e, 1])).
    """

    q: np.ndarray  # (E, 2, 3, M), wave vectors, rad/um
    amplitude: np.ndarray  # (E, 2), ms
    stored: np.ndarray  # (E,), 1 where the magnetisation is longitudinal, else 0
    node_q: np.ndarray  # (N, 3, M), wave vectors at the nodes of the time quadrature
    node_weight: np.ndarray  # (N,), ms; those of a symmetric encoding count both halves
    node_after: np.ndarray  # (E,), node that an exponential reaches, or -1; node 0 is the start
    symmetric: bool


def check_steps(steps: int) -> None:
    """Refuse numbers of time intervals that are not even."""
    if int(steps) != steps or steps < 2 or steps % 2:
        raise ValueError(f"steps is {steps!r}; give an even number of at least 2.")


def clenshaw_curtis(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in [0, 1] and weights of the quadrature with n intervals (n even)."""
    theta = np.pi * np.arange(n + 1) / n
    k = np.arange(1, n // 2 + 1)
    b = np.where(k == n // 2, 1.0, 2.0)
    weights = 1 - (b / (4 * k**2 - 1) * np.cos(2 * np.outer(theta, k))).sum(axis=1)
    weights *= np.where((np.arange(n + 1) % n) == 0, 1, 2) / (2 * n)
    return (1 - np.cos(theta)) / 2, weights


def schedule_of(
    waveforms: Waveforms, symmetric: bool, steps: int, nodes: bool, *, lossless: bool
) -> Schedule:
    """Schedule of waveforms of the same timing, with at most `steps` (even) intervals per segment.

    `nodes`: with states while q is constant, for a quadrature in time; `lossless`: the equilibrium
    does not change while there is no gradient.
    """
    if symmetric:
        waveforms = waveforms.until(waveforms.times[-1] / 2)
    edges = smooth_segments(waveforms)
    largest = np.where(waveforms.largest_q > 0, waveforms.largest_q, 1)
    change = np.array(
        [(_change(waveforms, *edges[k : k + 2]) / largest).max() for k in range(len(edges) - 1)]
    )
    q_before = np.linalg.norm(waveforms.q(edges[:-1]), axis=2) / largest
    idle = (change < _CONSTANT_Q) & (q_before.max(axis=1) < _CONSTANT_Q) & lossless
    active = np.flatnonzero(~idle)
    start, stop = (active[0], active[-1] + 1) if len(active) else (0, 0)
    if symmetric and len(active):
        stop = len(change)

    times, weights, constant = [edges[start : start + 1]], [np.zeros(1)], []
    for k in range(start, stop):
        is_constant, span = change[k] < _CONSTANT_Q, edges[k + 1] - edges[k]
        grid, segment_weights = _intervals(change[k], steps, nodes)
        if symmetric:
            segment_weights = 2 * segment_weights
            if is_constant and nodes and k == len(change) - 1:
                # This segment continues in the second half; its middle belongs to both.
                middle = len(grid) // 2
                grid, segment_weights = 2 * grid[: middle + 1], 2 * segment_weights[: middle + 1]
                segment_weights[middle] /= 2
        times.append(edges[k] + span * grid[1:])
        weights[-1][-1] += span * segment_weights[0]
        weights.append(span * segment_weights[1:])
        constant += [is_constant] * (len(grid) - 1)
    return _exponentials(
        waveforms, symmetric, np.concatenate(times), np.concatenate(weights),
        np.array(constant, bool),
    )  # fmt: skip


def _change(waveforms, start, stop):
    """Largest distance (m,) of q(t) from its value at the start of a segment, rad/um."""
    t = np.append(waveforms.times[(waveforms.times > start) & (waveforms.times < stop)], stop)
    t = np.concatenate([[start], t, (t + np.append(start, t[:-1])) / 2])
    q = waveforms.q(t)
    return np.linalg.norm(q - q[:1], axis=2).max(axis=0)


def _intervals(change, steps, nodes):
    """Edges of the intervals of a segment, from 0 to 1, and quadrature weights."""
    if change < _CONSTANT_Q:
        return clenshaw_curtis(steps) if nodes else (np.array([0.0, 1.0]), np.zeros(2))
    # A step's error grows with the change of q at least in third order.
    return clenshaw_curtis(2 * int(np.ceil(steps / 2 * min(1, np.cbrt(change)))))


def _exponentials(waveforms, symmetric, times, weights, constant):
    """Two exponentials for each interval between times, one where q is constant."""
    spans = np.diff(times)
    mean, slope = waveforms.linear_approximation(times)
    deviation = slope * (spans * np.sqrt(3) / 6 * ~constant)[:, None, None]
    gauss = np.moveaxis(np.stack([mean - deviation, mean + deviation], axis=1), -1, -2)
    of_interval = np.repeat(np.arange(len(spans)), np.where(constant, 1, 2))
    is_last = np.diff(of_interval, append=len(spans)) > 0
    share = np.where(is_last[:, None], [_LIGHT, _HEAVY], [_HEAVY, _LIGHT])
    share = np.where(constant[of_interval, None], [1.0, 0.0], share)
    middles = (times[1:] + times[:-1]) / 2
    return Schedule(
        q=gauss[of_interval],
        amplitude=share * spans[of_interval, None],
        stored=waveforms.stored_at(middles)[of_interval].astype(np.int64),
        node_q=np.moveaxis(waveforms.q(times), -1, -2),
        node_weight=weights,
        node_after=np.where(is_last, of_interval + 1, -1),
        symmetric=symmetric,
    )


@dataclass(frozen=True, eq=False)
class ExponentialSeries:
    """Series exp(A) = sum_k coefficients[k] T_k((A - centre) / radius), one per exponential."""

    centre: np.ndarray
    radius: np.ndarray
    degree: np.ndarray
    coefficients: np.ndarray


def exponential_series(
    schedule: Schedule,
    norm: float,
    longest_link: float,
    tolerance: float = CHEBYSHEV_TOLERANCE,
) -> ExponentialSeries:
    """Chebyshev series of the exponentials of a Hermitian operator.

    At any q its eigenvalues are in [-norm, 0], 1/ms. No neighbours are more than `longest_link` um
    apart.
    """
    # A Magnus step takes an operator with a negative weight. Its positive eigenvalues are nearly
    # those of the other operator, because the phases are: bounding each operator alone would
    # let the series, on fine grids, grow with exp(norm).
    phase = np.minimum(phase_difference(schedule, longest_link), np.pi)
    reach = np.abs(schedule.amplitude[:, 0] + schedule.amplitude[:, 1] * np.exp(1j * phase))
    span = schedule.amplitude.sum(axis=1)
    return series_between(-norm * (reach + span) / 2, norm * (reach - span) / 2, tolerance)


def phase_difference(schedule: Schedule, longest_link: float) -> np.ndarray:
    """Largest difference (E,), rad, of link phases between the operators of an exponential."""
    difference = np.linalg.norm(schedule.q[:, 1] - schedule.q[:, 0], axis=1)
    return difference.max(axis=1, initial=0) * longest_link


def series_between(
    lowest: np.ndarray, highest: np.ndarray, tolerance: float = CHEBYSHEV_TOLERANCE
) -> ExponentialSeries:
    """Chebyshev series of exponentials of exponents with eigenvalues in [lowest, highest] (E,)."""
    centre, radius = (highest + lowest) / 2, (highest - lowest) / 2
    # exp decays in I_k(radius) beyond k ~ sqrt(2 radius log(1/tolerance)).
    k = np.arange(int(8 * np.sqrt(radius.max(initial=0))) + 40)
    coefficients = np.where(k == 0, 1, 2) * ive(k, radius[:, None]) * np.exp(highest)[:, None]
    tail = np.cumsum(coefficients[:, ::-1], axis=1)[:, ::-1]
    degree = np.maximum((tail > tolerance).sum(axis=1) - 1, 1)
    coefficients[k > degree[:, None]] = 0
    # The equilibrium (eigenvalue 0) is kept exactly, so that b = 0 conserves the signal.
    at_equilibrium = eval_chebyt(k, (-centre / radius)[:, None])
    coefficients /= (coefficients * at_equilibrium).sum(axis=1, keepdims=True)
    return ExponentialSeries(centre, radius, degree, coefficients[:, : degree.max(initial=0) + 1])
