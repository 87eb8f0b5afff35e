"""How well signals can be described at all: MAP-MRI, mixtures of Gaussians, smooth curves.

None of these knows of tissue. Each is fitted to the measurements `fitted` (M,) of one voxel and
predicts all.
"""

from __future__ import annotations

import numpy as np
from dipy.core.gradients import gradient_table
from dipy.reconst.mapmri import MapmriModel
from dipy.reconst.shm import real_sh_descoteaux
from scipy.interpolate import make_smoothing_spline
from scipy.optimize import nnls

from benchmarks.datasets import TENSOR_B, shells
from dipy_spinverse import Acquisition
from dipy_spinverse.packed_cells.nuisance import FAST_DIFFUSIVITY

# um^2/ms; along and across the axis of a tensor, 0 for immobile water.
_ALONG = np.concatenate([[0.0], np.geomspace(0.02, 4, 8)])
_ACROSS = np.concatenate([[0.0], np.geomspace(0.002, 4, 30)])
_AMPLITUDE_ROUNDS = 10
_MOST_LINES = 3
_HARMONIC_ORDER = 8
_SMOOTHING = np.geomspace(1e-5, 1, 21)


def map_mri(acquisition: Acquisition, signals: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """MAP-MRI (`dipy.reconst.mapmri`, Laplacian regularisation by GCV), one for each timing."""
    predicted = np.empty(len(acquisition))
    for timing, b0 in enumerate(acquisition.b0_per_timing):
        own = acquisition.timing_index == timing
        model = MapmriModel(
            _one_timing(acquisition, own & fitted),
            radial_order=6,
            laplacian_weighting="GCV",
            bval_threshold=1e3 * TENSOR_B,
        )
        s0 = signals[b0 & fitted].mean()
        fit = model.fit(signals[own & fitted] / s0)
        predicted[own] = s0 * fit.predict(_one_timing(acquisition, own), S0=1.0)
    return predicted


def _one_timing(acquisition, rows):
    """Its gradient table, with the numbers for delta and Delta that MAP-MRI needs."""
    gtab = acquisition.subset(rows).to_gtab()
    return gradient_table(
        gtab.bvals, bvecs=gtab.bvecs, big_delta=gtab.big_delta[0],
        small_delta=gtab.small_delta[0], b0_threshold=gtab.b0_threshold,
    )  # fmt: skip


def lines(acquisition: Acquisition) -> np.ndarray:
    """Which line each measurement (M,) is along, where few are measured; else all are one.

    Opposite directions are the same line, b0 belong to all (-1).
    """
    found = np.empty((0, 3))
    label = np.full(len(acquisition), -1)
    for row in np.flatnonzero(~acquisition.b0_mask):
        same = np.abs(found @ acquisition.directions[row]) > np.cos(np.radians(5))
        if not same.any():
            found = np.vstack([found, acquisition.directions[row]])
            same = np.append(same, True)
        label[row] = np.flatnonzero(same)[0]
    return label if len(found) <= _MOST_LINES else np.where(label < 0, -1, 0)


def gaussians(acquisition, signals, fitted, orientation, fleeting=False) -> np.ndarray:
    """Non-negative mixture of Gaussians, one for each timing and line.

    With `fleeting` also what is gone at a b of 0.1 ms/um^2, of either sign.
    """
    predicted = np.empty(len(acquisition))
    line, atoms = lines(acquisition), _tensors(acquisition, orientation)
    if fleeting:
        gone = np.exp(-FAST_DIFFUSIVITY * acquisition.b)[:, None]
        atoms = np.concatenate([atoms, gone, -gone], axis=1)
    for timing in range(len(acquisition.timings)):
        for number in range(line.max() + 1):
            own = (acquisition.timing_index == timing) & np.isin(line, (-1, number))
            weights = nnls(atoms[own & fitted], signals[own & fitted])[0]
            predicted[own] = atoms[own] @ weights
    return predicted


def static_gaussians(acquisition, signals, fitted, orientation) -> np.ndarray:
    """The same with one mixture for all timings, and an amplitude for each timing."""
    predicted = np.empty(len(acquisition))
    line, atoms = lines(acquisition), _tensors(acquisition, orientation)
    n = len(acquisition.timings)
    for number in range(line.max() + 1):
        own = np.isin(line, (-1, number))
        used = own & fitted
        index, measured = acquisition.timing_index[used], signals[used]
        amplitudes = np.ones(n)
        for _ in range(_AMPLITUDE_ROUNDS):
            weights = nnls(amplitudes[index, None] * atoms[used], measured)[0]
            shape = atoms[used] @ weights
            amplitudes = np.bincount(index, shape * measured, n) / np.bincount(index, shape**2, n)
        predicted[own] = amplitudes[acquisition.timing_index[own]] * (atoms[own] @ weights)
    return predicted


def _tensors(acquisition, orientation):
    """Signals (M, A) of Gaussians that are symmetric about `orientation` (3,)."""
    b = np.where(acquisition.b0_mask, 0, acquisition.b)[:, None]
    along = (acquisition.directions @ orientation)[:, None] ** 2
    parallel, across = (grid.ravel() for grid in np.meshgrid(_ALONG, _ACROSS))
    return np.exp(-b * (parallel * along + across * (1 - along)))


def floor(acquisition: Acquisition, signals: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Smooth curves that know of no physics but that opposite directions are equal.

    Where few lines are measured: a smoothing spline over q for each timing and line. Else even
    spherical harmonics of order 8 for each shell. Smoothness by generalised cross-validation of
    what is fitted.
    """
    line = lines(acquisition)
    curve = _harmonics if line.max() == 0 else _splines
    predicted = np.empty(len(acquisition))
    for timing in range(len(acquisition.timings)):
        own = np.flatnonzero(acquisition.timing_index == timing)
        curve(acquisition, signals, fitted, own, line, predicted)
    return predicted


def _splines(acquisition, signals, fitted, own, line, predicted):
    for number in range(line.max() + 1):
        rows = own[np.isin(line[own], (-1, number))]
        q = np.where(acquisition.b0_mask, 0, acquisition.q)[rows].round(6)
        use = fitted[rows]
        nodes, place, counts = np.unique(q[use], return_inverse=True, return_counts=True)
        means = np.bincount(place, signals[rows][use]) / counts
        predicted[rows] = make_smoothing_spline(nodes, means, counts.astype(float))(q)


def _harmonics(acquisition, signals, fitted, own, line, predicted):
    for shell in shells(acquisition, own):
        use = fitted[shell]
        x, y, z = acquisition.directions[shell].T
        if not use.any() or acquisition.b0_mask[shell[0]]:
            predicted[shell] = signals[shell][use].mean() if use.any() else 0.0
            continue
        basis, _, order = real_sh_descoteaux(
            _HARMONIC_ORDER, np.arccos(np.clip(z, -1, 1)), np.arctan2(y, x), legacy=False
        )
        roughness = (order * (order + 1.0)) ** 2
        known, measured = basis[use], signals[shell][use]
        scores, solutions = [], []
        for smoothing in _SMOOTHING:
            normal = known.T @ known + smoothing * np.diag(roughness)
            solve = np.linalg.solve(normal, known.T)
            freedom = 1 - np.trace(known @ solve) / len(measured)
            rest = measured - known @ (solve @ measured)
            scores.append((rest**2).mean() / max(freedom, 1e-3) ** 2)
            solutions.append(solve @ measured)
        predicted[shell] = basis @ solutions[int(np.argmin(scores))]
