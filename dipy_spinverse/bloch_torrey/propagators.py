"""Time stepping: how an encoding is cut into exponentials, and each exponential into products.

While q changes, steps are commutator-free Magnus exponentials of fourth order [1]_; while q
rests, the exponential is exact. Each is a Chebyshev series in the sparse operator [2]_, whose
length grows with the square root of the step only. Nothing is stiff.

References
----------
.. [1] Blanes and Moan, Appl. Numer. Math. 56 (2006), https://doi.org/10.1016/j.apnum.2005.11.004
.. [2] Tal-Ezer and Kosloff, J. Chem. Phys. 81 (1984), https://doi.org/10.1063/1.448136
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import eval_chebyt, ive

# Weights of the operators at the two Gauss points of a Magnus step; they sum to 1/2.
_HEAVY, _LIGHT = 0.25 + np.sqrt(3) / 6, 0.25 - np.sqrt(3) / 6
_GAUSS = 0.5 + np.array([-1, 1]) * np.sqrt(3) / 6

CHEBYSHEV_TOLERANCE = 1e-8


@dataclass(frozen=True, eq=False)
class Schedule:
    """The first half of an encoding that is symmetric in time, as a row of exponentials.

    Exponential e is exp(amplitude[e, 0] K(level[e, 0] q) + amplitude[e, 1] K(level[e, 1] q)), with
    q the largest wave vector of a measurement; the second half is the same in reverse.

    Attributes
    ----------
    level, amplitude : ndarray (E, 2)
        Relative wave vector, and time in ms.
    node_level : ndarray (N,)
        Relative wave vector at the nodes of the time quadrature.
    node_weight : ndarray (N,)
        Quadrature weights, ms, of an integrand that is the same in both halves.
    node_after : ndarray (E,)
        The node that is reached with an exponential, or -1. Node 0 is the start.
    """

    level: np.ndarray
    amplitude: np.ndarray
    node_level: np.ndarray
    node_weight: np.ndarray
    node_after: np.ndarray


def clenshaw_curtis(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in [0, 1] and weights of the quadrature with n intervals (n even)."""
    theta = np.pi * np.arange(n + 1) / n
    k = np.arange(1, n // 2 + 1)
    b = np.where(k == n // 2, 1.0, 2.0)
    weights = 1 - (b / (4 * k**2 - 1) * np.cos(2 * np.outer(theta, k))).sum(axis=1)
    weights *= np.where((np.arange(n + 1) % n) == 0, 1, 2) / (2 * n)
    return (1 - np.cos(theta)) / 2, weights


def pulsed_gradient_schedule(
    small_delta: float, big_delta: float, dead_time: float, steps: int, nodes: bool
) -> Schedule:
    """Schedule of a pair of rectangular gradient pulses.

    Parameters
    ----------
    small_delta, big_delta : float
        ms.
    dead_time : float
        Time without gradients before the first pulse that changes the magnetisation, ms.
    steps : int
        Intervals per pulse and per rest; even.
    nodes : bool
        Whether states between the pulses are wanted for a quadrature in time.
    """
    grid, weights = clenshaw_curtis(steps)
    half = slice(steps // 2 + 1)
    one_step = np.array([0, 0.5]), np.zeros(2)
    rest, rest_weights = (grid[half], weights[half]) if nodes else one_step
    # (times, level at the start, level at the end, weights) of each part of the first half.
    parts = [(grid * small_delta, 0.0, 1.0, 2 * small_delta * weights)]
    if big_delta > small_delta:
        span = big_delta - small_delta
        middle_once = np.where(np.arange(len(rest)) == len(rest) - 1, 1, 2)
        parts.append((rest * span, 1.0, 1.0, rest_weights * middle_once * span))
    if dead_time > 0:
        times, dead_weights = (grid, weights) if nodes else (np.array([0, 1.0]), np.zeros(2))
        parts.insert(0, (times * dead_time, 0.0, 0.0, 2 * dead_weights * dead_time))

    level, amplitude, node_after = [], [], []
    node_level, node_weight = [], []
    for times, first, last, part_weights in parts:
        slope = (last - first) / times[-1]
        node_level.append(first + slope * times)
        node_weight.append(part_weights)
        start = sum(map(len, node_level[:-1]))
        for k, step in enumerate(np.diff(times)):
            gauss = first + slope * (times[k] + step * _GAUSS)
            if first == last:
                level += [[first, first]]
                amplitude += [[step, 0.0]]
                node_after += [start + k + 1]
            else:
                level += [gauss, gauss]
                amplitude += [[_HEAVY * step, _LIGHT * step], [_LIGHT * step, _HEAVY * step]]
                node_after += [-1, start + k + 1]
    return _merge_joints(level, amplitude, node_level, node_weight, node_after)


def _merge_joints(level, amplitude, node_level, node_weight, node_after):
    """Make the last node of a part and the first of the next, the same instant, one node."""
    sizes = [len(part) for part in node_level]
    joints = np.cumsum(sizes)[:-1]
    weights = np.concatenate(node_weight)
    weights[joints - 1] += weights[joints]
    after = np.asarray(node_after)
    after = after - np.searchsorted(joints, after, side="right") * (after >= 0)
    return Schedule(
        level=np.asarray(level, dtype=float),
        amplitude=np.asarray(amplitude, dtype=float),
        node_level=np.delete(np.concatenate(node_level), joints),
        node_weight=np.delete(weights, joints),
        node_after=after,
    )


@dataclass(frozen=True, eq=False)
class ChebyshevSeries:
    """Series exp(A) = sum_k coefficients[k] T_k((A - centre) / radius), one per exponential."""

    centre: np.ndarray
    radius: np.ndarray
    degree: np.ndarray
    coefficients: np.ndarray


def chebyshev_series(schedule: Schedule, norm: float, largest_phase: float) -> ChebyshevSeries:
    """Chebyshev series of the exponentials.

    Parameters
    ----------
    schedule : Schedule
    norm : float
        Bound on the operator's norm, 1/ms: at any q its eigenvalues are in [-norm, 0].
    largest_phase : float
        Largest phase that a link gains at the largest q, rad.
    """
    # A Magnus step takes an operator with a negative weight. Its positive eigenvalues are nearly
    # those of the other operator, because the phases are: bounding each operator alone would
    # let the series, on fine grids, grow with exp(norm).
    turn = np.minimum(np.abs(np.diff(schedule.level, axis=1)[:, 0]) * largest_phase, np.pi)
    reach = np.abs(schedule.amplitude[:, 0] + schedule.amplitude[:, 1] * np.exp(1j * turn))
    span = schedule.amplitude.sum(axis=1)
    lowest, highest = -norm * (reach + span) / 2, norm * (reach - span) / 2
    centre, radius = (highest + lowest) / 2, (highest - lowest) / 2
    # exp decays in I_k(radius) beyond k ~ sqrt(2 radius log(1/tolerance)).
    k = np.arange(int(8 * np.sqrt(radius.max())) + 40)
    coefficients = np.where(k == 0, 1, 2) * ive(k, radius[:, None]) * np.exp(highest)[:, None]
    tail = np.cumsum(coefficients[:, ::-1], axis=1)[:, ::-1]
    degree = np.maximum((tail > CHEBYSHEV_TOLERANCE).sum(axis=1) - 1, 1)
    coefficients[k > degree[:, None]] = 0
    # The equilibrium (eigenvalue 0) is kept exactly, so that b = 0 conserves the signal.
    at_equilibrium = eval_chebyt(k, (-centre / radius)[:, None])
    coefficients /= (coefficients * at_equilibrium).sum(axis=1, keepdims=True)
    return ChebyshevSeries(centre, radius, degree, coefficients[:, : degree.max() + 1])
