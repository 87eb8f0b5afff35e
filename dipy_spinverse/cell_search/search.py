"""The search for the cells that explain a voxel: bodies first, then tetrahedra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import qr

from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.bloch_torrey import Simulator, relative_transmissibility
from dipy_spinverse.cell_search.bodies import Bodies, random_bodies
from dipy_spinverse.cell_search.body_fit import FittedBodies, step_bodies
from dipy_spinverse.cell_search.deformations import Deformations
from dipy_spinverse.cell_search.ensemble import ensemble
from dipy_spinverse.cell_search.labelled import (
    Cells,
    Misfit,
    Target,
    face_transmissibility,
    flips_of,
    stepped_leaks,
)
from dipy_spinverse.grid import TetrahedralGrid

# Permeabilities (um/ms) of walls and of other faces from which the search starts; both are fitted.
_START_PERMEABILITIES = (0.01, 100.0)
# Measurements that the search looks at, multiples of a register of the compiled sweep; bodies
# whose sensitivities choose them.
_N_SEARCHED, _N_SEARCHED_NOISY, _N_BODIES_TO_CHOOSE = 64, 160, 8
_SEARCH_STEPS = 2
_N_LIBRARY, _N_BODIES_FLIPPED = 1500, 5


class _Round(NamedTuple):
    """Steps of the best fits of bodies, which err by this much as a description of cells.

    The error is relative to the initial magnetisation.
    """

    number: int
    steps: int
    error: float


_BODY_ROUNDS = (
    _Round(40, 1, 3e-3), _Round(30, 2, 3e-3), _Round(15, 3, 3e-3), _Round(8, 3, 3e-3),
)  # fmt: skip
# Noise relative to the largest signal from which single tetrahedra are left to chance; then more
# rounds, of the same measurements and of all.
_NOISY = 1 / 300
_NOISY_ROUNDS = (_Round(8, 4, 1.5e-3), _Round(6, 4, 7e-4), _Round(4, 4, 3e-4))
_COMPLETE_ROUNDS = (_Round(4, 1, 7e-4), _Round(2, 3, 3e-4))
_LEAST_DIFFERENCE = 4
_MOST_STEPS, _STALLED, _THINNED_EVERY, _KEPT_SHARE = 60, 6, 3, 0.75
_IMPROVEMENT = 0.99
# Error of linear extrapolation relative to the residual.
_EXTRAPOLATION_ERRORS = (0.1, 0.3, 1.0)
_MAX_SIMULATIONS = 24_000
_N_FINALISTS = 3


@dataclass(frozen=True, eq=False)
class _Library:
    bodies: list[Bodies]
    labels: np.ndarray
    signals: np.ndarray


@dataclass(frozen=True, eq=False)
class Found:
    """The cells found in a voxel, others that explain it, and whether they reach its errors.

    The number of simulations is that of the search, without the ensemble's.
    """

    best: Cells
    samples: list[Cells]
    solved: bool
    n_simulated: int


class CellSearch:
    """A search for cells, prepared for many voxels of one acquisition on one grid.

    Parameters
    ----------
    acquisition : Acquisition
        Without repeats.
    grid : TetrahedralGrid
    diffusivity : float
        um^2/ms.
    seed : int
    """

    def __init__(
        self, acquisition: Acquisition, grid: TetrahedralGrid, *, diffusivity: float, seed: int
    ):
        self.grid = grid
        tau = relative_transmissibility(
            grid, np.array(_START_PERMEABILITIES)[:, None], diffusivity
        )
        self._leaks = np.median(tau, axis=1)
        settings = {"diffusivity": diffusivity, "dtype": "float32"}
        self._full = Simulator(acquisition, grid, steps=_SEARCH_STEPS, **settings)
        self._seed = np.random.SeedSequence(seed)
        rng = np.random.default_rng(self._seed)
        some = [random_bodies(rng, grid) for _ in range(_N_BODIES_TO_CHOOSE)]
        self._overlaps = self._overlaps_of_sensitivities(some)
        self._acquisition, self._settings = acquisition, settings
        self._searched, self._simulator = self._most_telling(
            np.ones(len(acquisition)), _N_SEARCHED
        )
        self._deformations = Deformations(grid, seed)
        self._libraries = [self._library(self._simulator, rng)]

    def _overlaps_of_sensitivities(self, bodies):
        labels = np.array([body.inside(self.grid.centroids) for body in bodies])
        tau = torch.as_tensor(face_transmissibility(self.grid, labels, self._leaks[None]))
        rows = [self._full.sensitivities(field[None])[1][0] for field in tau]
        rows = torch.cat(rows, dim=1).numpy()
        return rows @ rows.T

    def _most_telling(self, sigma, number):
        """The measurements that tell most about walls, and a simulator of them."""
        order = qr(self._overlaps / np.outer(sigma, sigma), mode="r", pivoting=True)[1]
        rows = np.sort(order[:number])
        part = self._acquisition.subset(rows)
        return rows, Simulator(part, self.grid, steps=_SEARCH_STEPS, **self._settings)

    def _library(self, simulator, rng):
        bodies = [random_bodies(rng, self.grid) for _ in range(_N_LIBRARY)]
        labels = np.array([body.inside(self.grid.centroids) for body in bodies])
        tau = face_transmissibility(self.grid, labels, self._leaks[None])
        signals = simulator.signals(torch.as_tensor(tau)).numpy().astype(float)
        return _Library(bodies, labels, signals)

    def run(
        self, data: np.ndarray, sigma: np.ndarray, rician: np.ndarray, n_samples: int
    ) -> Found:
        """Find the cells of a voxel.

        Parameters
        ----------
        data : ndarray (M,)
            Relative to the initial magnetisation.
        sigma : ndarray (M,)
            Standard deviation of the error of each.
        rician : ndarray (M,)
            Noise that lifts the mean of each; 0 for none.
        n_samples : int
            Number of further states that explain the data.
        """
        rng = np.random.default_rng(self._seed)
        complete = Target(self._full, data, sigma, rician)
        if np.median(rician) > _NOISY * data.max():
            return self._run_noisy(complete, n_samples, rng)
        target = complete.of_measurements(self._searched, self._simulator)
        finalists = []
        for library in self._library_after_library(rng):
            fits = self._fit_bodies(target, library, rng)
            finalists += self._improved(target, [fit.cells for fit in fits], rng)[:_N_FINALISTS]
            if target.n_simulated > _MAX_SIMULATIONS or _solved(target, finalists):
                break
        misfit = Misfit(flips_of(target, finalists), _scale(target, finalists))
        values = misfit(np.array([target.residual(state) for state in finalists]))
        finalists = [finalists[k] for k in np.argsort(values)]
        samples = ensemble(target, finalists, n_samples, rng)[1] if n_samples else []
        best = complete.cells(finalists[0].labels[None], finalists[0].leaks)[0]
        return Found(best, samples, _solved(complete, [best]), target.n_simulated)

    def _run_noisy(self, complete, n_samples, rng):
        """Cells of data whose noise hides what bodies lack: single tetrahedra are left to chance.

        Bodies are smooth, as cells are, and cannot follow the noise; all measurements count.
        """
        rows, simulator = self._most_telling(complete.sigma, _N_SEARCHED_NOISY)
        target = complete.of_measurements(rows, simulator)
        fits = self._fit_bodies(target, self._library(simulator, rng), rng)
        fits = _stepped(target, fits, _NOISY_ROUNDS, rng)
        fits = _stepped(complete, fits, _COMPLETE_ROUNDS, rng)
        finalists = sorted([fit.cells for fit in fits], key=complete.chi_square)
        best, samples = ensemble(complete, finalists[:_N_FINALISTS], n_samples, rng)
        return Found(best, samples, _solved(complete, [best]), target.n_simulated)

    def _library_after_library(self, rng):
        yield from self._libraries
        while True:
            yield self._library(self._simulator, rng)

    def _fit_bodies(self, target, library, rng):
        expected = target.expected(library.signals)
        cells = [
            Cells(labels, self._leaks, signals)
            for labels, signals in zip(library.labels, expected, strict=True)
        ]
        # The library is ranked by the flips of its first bodies, which are random.
        some = flips_of(target, cells[:_N_BODIES_FLIPPED])
        values = _body_misfit(target, some, _BODY_ROUNDS[0].error)(
            np.array([target.residual(state) for state in cells])
        )
        fits = [FittedBodies(*fit) for fit in zip(library.bodies, cells, values, strict=True)]
        fits.sort(key=lambda fit: fit.misfit)
        fits = _different(fits, lambda fit: fit.cells.labels, _BODY_ROUNDS[0].number)
        return _stepped(target, fits, _BODY_ROUNDS, rng)

    def _improved(self, target, states, rng):
        """States after steps of deformation, the best first.

        Each line of states goes on to its best child that was not seen before, even to a worse
        one, until it has not improved for some steps.
        """
        lines = [_Line(state) for state in states]
        seen = {state.labels.tobytes() for state in states}
        best = states
        for step in range(_MOST_STEPS):
            if _solved(target, best) or not lines:
                break
            states = [line.state for line in lines]
            flips = flips_of(target, states)
            states = _with_better_leaks(target, states, flips)
            misfit = Misfit(flips, _scale(target, states))
            moved = []
            for line, state, flip in zip(lines, states, flips, strict=True):
                children = self._children(target, state, flip, seen, rng)
                if not children:
                    continue
                values = misfit(np.array([target.residual(child) for child in children]))
                value = misfit(target.residual(state)[None])[0]
                child = children[values.argmin()]
                seen.add(child.labels.tobytes())
                gained = values.min() < _IMPROVEMENT * value
                moved.append(_Line(child, 0 if gained else line.stalled + 1, values.min()))
            best = _different(
                sorted([*best, *states, *(line.state for line in moved)], key=target.chi_square),
                lambda state: state.labels, _N_FINALISTS,
            )  # fmt: skip
            number = len(moved)
            if step % _THINNED_EVERY == _THINNED_EVERY - 1:
                number = max(2, int(_KEPT_SHARE * number))
            moved.sort(key=lambda line: line.misfit)
            moved = _different(moved, lambda line: line.state.labels, number)
            lines = [line for line in moved if line.stalled < _STALLED]
        return best

    def _children(self, target, state, flips, seen, rng):
        error = rng.choice(_EXTRAPOLATION_ERRORS) * np.sqrt(target.chi_square(state))
        labels, leaks = self._deformations.candidates(target, state, flips, max(error, 1.0), rng)
        new = [
            labels_.tobytes() not in seen and labels_.any() and not labels_.all()
            for labels_ in labels
        ]
        return target.cells(labels[new], leaks[new])


@dataclass(frozen=True, eq=False)
class _Line:
    """A state, for how many steps its line has not improved, and its misfit."""

    state: Cells
    stalled: int = 0
    misfit: float = np.inf


def _stepped(target, fits, rounds, rng):
    """Fits of bodies after rounds of steps, the best first."""
    for number, n_steps, error in rounds:
        fits = fits[:number]
        labels = np.array([fit.cells.labels for fit in fits])
        states = target.cells(labels, fits[0].cells.leaks)
        flips = flips_of(target, states[:_N_BODIES_FLIPPED])
        misfit = _body_misfit(target, flips, error)
        if error < _BODY_ROUNDS[0].error:
            leaks = _with_better_leaks(target, states[:1], flips[:1])[0].leaks
            states = target.cells(labels, leaks)
        values = misfit(np.array([target.residual(state) for state in states]))
        bodies = [fit.bodies for fit in fits]
        fits = [FittedBodies(*fit) for fit in zip(bodies, states, values, strict=True)]
        for _ in range(n_steps):
            fits = step_bodies(target, fits, misfit, rng)
        fits.sort(key=lambda fit: fit.misfit)
        fits = _different(fits, lambda fit: fit.cells.labels, number)
    return fits


def _body_misfit(target, flips, error):
    return Misfit(flips, np.hypot(1, error / target.sigma))


def _with_better_leaks(target, states, flips):
    """The states with the leaks that explain their residuals, where that is better."""
    leaks = []
    for state, flip in zip(states, flips, strict=True):
        step = np.linalg.lstsq(flip.leak_changes.T, target.residual(state), rcond=None)[0]
        leaks.append(stepped_leaks(state.leaks, step))
    changed = target.cells(np.array([state.labels for state in states]), np.array(leaks))
    pairs = zip(states, changed, strict=True)
    return [min(pair, key=target.chi_square) for pair in pairs]


def _solved(target, states):
    """Whether the best residual is no more than errors of the data."""
    by_chance = 1 + 2 * np.sqrt(2 / len(target.data))
    return min(target.chi_square(state) for state in states) < by_chance


def _scale(target, states):
    """Error of what single flips of typical states cannot explain."""
    typical = np.median([np.sqrt(target.chi_square(state)) for state in states])
    return max(_EXTRAPOLATION_ERRORS[1] * typical, 1.0)


def _different(sorted_entries, labels_of, number):
    """The first entries whose labels differ from those before."""
    kept = []
    for entry in sorted_entries:
        labels = labels_of(entry)
        if all((labels != labels_of(other)).sum() >= _LEAST_DIFFERENCE for other in kept):
            kept.append(entry)
        if len(kept) == number:
            break
    return kept
