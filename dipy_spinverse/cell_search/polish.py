"""Flips of whole tetrahedra that bring cells closer to data."""

from __future__ import annotations

import numpy as np
from scipy.optimize import lsq_linear

from dipy_spinverse.cell_search.labelled import LEAK_SD, Cells, Misfit, Target, flips_of

_NUMBERS_FLIPPED = (0, 1, 2, 4, 8, 16)
# Cost of a flip and of a leak's prior standard deviation, against the misfit.
_FLIP_COST, _LEAK_COST, _MOST_LEAK = 0.3, 0.1, 20.0
_MOST_ROUNDS, _LEAST_GAIN = 3, 0.95


def polished(target: Target, cells: Cells, misfit: Misfit) -> Cells:
    """Cells after flips of tetrahedra at their walls, and with the leaks that go with them."""
    value = misfit(target.residual(cells)[None])[0]
    for _ in range(_MOST_ROUNDS):
        if value == 0:
            break
        states = target.cells(*_flipped(target, cells, misfit))
        values = misfit(np.array([target.residual(state) for state in states]))
        best = states[values.argmin()]
        # The misfit does not see the leaks, the residual does.
        gain = min(values.min() / value, target.chi_square(best) / target.chi_square(cells))
        if not (gain < _LEAST_GAIN and values.min() <= 1.01 * value):
            break
        cells, value = best, values.min()
    return cells


def _flipped(target, cells, misfit):
    """Labels and leaks with the flips that explain the residual best, from none to many."""
    flips, residual = flips_of(target, cells.labels, cells.leaks), target.residual(cells)
    by_flip, by_leak = flips.changes.T, flips.leak_slopes.T * LEAK_SD
    n = len(flips.tetrahedra)
    costs = np.append(np.full(n, _FLIP_COST), [_LEAK_COST] * 2)
    system = np.vstack([misfit.root.T @ np.hstack([by_flip, by_leak]), np.diag(costs)])
    right = np.append(misfit.root.T @ residual, np.zeros(n + 2))
    upper = np.append(np.ones(n), [_MOST_LEAK] * 2)
    lower = np.append(np.zeros(n), [-_MOST_LEAK] * 2)
    order = np.argsort(-lsq_linear(system, right, (lower, upper)).x[:n])
    labels = np.repeat(cells.labels[None], len(_NUMBERS_FLIPPED), axis=0)
    leaks = np.empty((len(labels), 2))
    for k, number in enumerate(_NUMBERS_FLIPPED):
        labels[k, flips.tetrahedra[order[:number]]] ^= True
        rest = residual - by_flip[:, order[:number]].sum(axis=1)
        leaks[k] = cells.leaks + LEAK_SD * np.linalg.lstsq(by_leak, rest, rcond=None)[0]
    return labels, leaks.clip(0, 1)
