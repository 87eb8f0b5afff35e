"""Flips of whole tetrahedra that bring cells closer to data."""

from __future__ import annotations

import numpy as np
from scipy.optimize import lsq_linear

from dipy_spinverse.cell_search.effort import FlipEffort
from dipy_spinverse.cell_search.labelled import (
    TRANSMISSIBILITY_SD,
    LabelledCells,
    Misfit,
    Target,
    label_changes,
)

# Chosen on the shapes of benchmarks/shapes.py.
_FLIP_COST = 0.3  # root of what a flip costs, in units of the misfit
_LEAK_COST = 0.1  # the same of a change of a leak by its prior standard deviation
_MOST_LEAK = 20.0  # change of a leak, in prior standard deviations
_LEAST_GAIN = 0.95  # misfit after a round, relative to that before
_NO_WORSE = 1.01  # the same where the residual gains instead


def locally_improved(
    target: Target, cells: LabelledCells, misfit: Misfit, effort: FlipEffort
) -> LabelledCells:
    """Cells after flips of tetrahedra at their walls, and with the leaks that go with them."""
    value = misfit(target.residual(cells)[None])[0]
    for _ in range(effort.most_rounds):
        if value == 0:
            break
        states = target.cells(*_flipped(target, cells, misfit, effort.numbers))
        values = misfit(np.array([target.residual(state) for state in states]))
        best = states[values.argmin()]
        # The misfit does not see the leaks, the residual does.
        gain = min(values.min() / value, target.chi_square(best) / target.chi_square(cells))
        if not (gain < _LEAST_GAIN and values.min() <= _NO_WORSE * value):
            break
        cells, value = best, values.min()
    return cells


def _flipped(target, cells, misfit, numbers):
    """Labels and leaks with the flips that explain the residual best, from none to many."""
    flips, residual = label_changes(target, cells.labels, cells.leaks), target.residual(cells)
    by_flip, by_leak = flips.changes.T, flips.leak_slopes.T * TRANSMISSIBILITY_SD
    n = len(flips.tetrahedra)
    costs = np.append(np.full(n, _FLIP_COST), [_LEAK_COST] * 2)
    system = np.vstack([misfit.root.T @ np.hstack([by_flip, by_leak]), np.diag(costs)])
    right = np.append(misfit.root.T @ residual, np.zeros(n + 2))
    upper = np.append(np.ones(n), [_MOST_LEAK] * 2)
    lower = np.append(np.zeros(n), [-_MOST_LEAK] * 2)
    order = np.argsort(-lsq_linear(system, right, (lower, upper)).x[:n])
    labels = np.repeat(cells.labels[None], len(numbers), axis=0)
    leaks = np.empty((len(labels), 2))
    for k, number in enumerate(numbers):
        labels[k, flips.tetrahedra[order[:number]]] ^= True
        rest = residual - by_flip[:, order[:number]].sum(axis=1)
        leaks[k] = (
            cells.leaks + TRANSMISSIBILITY_SD * np.linalg.lstsq(by_leak, rest, rcond=None)[0]
        )
    return labels, leaks.clip(0, 1)
