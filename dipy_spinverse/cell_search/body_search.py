"""The search for smooth bodies, whose few parameters cannot follow the noise of data."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dipy_spinverse.cell_search.bodies import Bodies
from dipy_spinverse.cell_search.body_fit import FittedBodies, step_bodies
from dipy_spinverse.cell_search.labelled import LEAK_SD, Cells, Misfit, Target, flips_of

_N_TYPICAL, _LEAST_DIFFERENCE = 5, 4


class _Round(NamedTuple):
    """Steps of the best fits, which err by this much as a description of cells.

    The error is relative to the initial magnetisation.
    """

    number: int
    steps: int
    error: float


_ROUNDS = (
    _Round(40, 1, 3e-3), _Round(30, 2, 3e-3), _Round(15, 3, 3e-3), _Round(8, 3, 3e-3),
    _Round(8, 4, 1.5e-3), _Round(6, 4, 7e-4), _Round(4, 4, 3e-4),
)  # fmt: skip
# Then rounds with all measurements.
_COMPLETE_ROUNDS = (_Round(4, 1, 7e-4), _Round(2, 3, 3e-4))
N_BODY_ROUNDS = len(_ROUNDS + _COMPLETE_ROUNDS)


def fitted_bodies(
    target: Target,
    complete: Target,
    bodies: list[Bodies],
    library: list[Cells],
    rng: np.random.Generator,
) -> list[FittedBodies]:
    """Bodies that explain noisy data, the best first.

    Parameters
    ----------
    target, complete : Target
        Some of the measurements, with which the search begins, and all.
    bodies : list of Bodies
        Random ones.
    library : list of Cells
        What each of them predicts of `target`.
    rng : Generator
    """
    # The library is ranked by the flips of its first bodies, which are random.
    fits = _judged(target, bodies, library, _misfit(target, library, _ROUNDS[0].error))
    fits = _different(fits, _ROUNDS[0].number)
    return _stepped(complete, _stepped(target, fits, _ROUNDS, rng), _COMPLETE_ROUNDS, rng)


def _stepped(target, fits, rounds, rng):
    """Fits of bodies after rounds of steps, the best first."""
    for number, n_steps, error in rounds:
        fits = fits[:number]
        labels = np.array([fit.cells.labels for fit in fits])
        states = target.cells(labels, fits[0].cells.leaks)
        if error < _ROUNDS[0].error:
            states = target.cells(labels, _better_leaks(target, states[0]))
        misfit = _misfit(target, states, error)
        fits = _judged(target, [fit.bodies for fit in fits], states, misfit)
        for _ in range(n_steps):
            fits = step_bodies(target, fits, misfit, rng)
        fits = _different(sorted(fits, key=lambda fit: fit.misfit), number)
    return fits


def _misfit(target, states, error):
    flips = [flips_of(target, state.labels, state.leaks) for state in states[:_N_TYPICAL]]
    return Misfit(flips, np.hypot(1, error / target.sigma))


def _judged(target, bodies, states, misfit):
    values = misfit(np.array([target.residual(state) for state in states]))
    fits = [FittedBodies(*fit) for fit in zip(bodies, states, values, strict=True)]
    return sorted(fits, key=lambda fit: fit.misfit)


def _better_leaks(target, state):
    """Leaks (2,) that explain the residual of a state, where that is better."""
    by_leak = flips_of(target, state.labels, state.leaks).leak_slopes.T * LEAK_SD
    step = LEAK_SD * np.linalg.lstsq(by_leak, target.residual(state), rcond=None)[0]
    leaks = (state.leaks + step).clip(0, 1)
    changed = target.cells(state.labels[None], leaks)[0]
    return min((state, changed), key=target.chi_square).leaks


def _different(fits, number):
    """The first fits whose labels differ from those before."""
    kept = []
    for fit in fits:
        labels = fit.cells.labels
        if all((labels != other.cells.labels).sum() >= _LEAST_DIFFERENCE for other in kept):
            kept.append(fit)
        if len(kept) == number:
            break
    return kept
