"""Corrections of the walls of a packing, where the residual gives enough evidence.

The model of the residual is noise, of unknown variance but at least the known one, plus the effect
of small changes of all faces on the signals,

    r ~ N(0, t^2 I + l J J^T),

where J is the Jacobian with respect to the scaled transmissibilities of the faces. t and l
maximise the evidence [1]_. The walls of the packing are kept unless noise alone would increase the
evidence as much in fewer than one of 1000 voxels, and changes estimated from some of the
measurements predict the others (systematic errors of the measurements do not). Otherwise each face
takes its maximum a posteriori scaled transmissibility, within bounds.

References
----------
.. [1] MacKay, "Bayesian interpolation", Neural Computation 4 (1992),
   https://doi.org/10.1162/neco.1992.4.3.415
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.stats import chi2

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.bloch_torrey import Simulator, permeability_of, unique_encodings
from dipy_spinverse.inversion import transmissibility
from dipy_spinverse.inversion.gauss_newton import data_space_step
from dipy_spinverse.inversion.unknowns import transmissibility_slope
from dipy_spinverse.spinverse.packings import Packing
from dipy_spinverse.voxels.status import FALSE_REJECTION_RATE

# Phase between neighbouring tetrahedra, rad, above which a lattice does not resolve an encoding.
LARGEST_LINK_PHASE = np.pi / 2
# Gain of the log evidence that noise alone exceeds with the probability FALSE_REJECTION_RATE: half
# of a chi-square quantile with one degree of freedom, that of the variance l.
_MIN_LOG_EVIDENCE_GAIN = chi2.isf(FALSE_REJECTION_RATE, 1) / 2
# The numbers below are chosen by hand, unless a source is given.
# Singular vectors of J that are kept, and the smallest relative squared singular value.
_MAX_SINGULAR_VECTORS, _MIN_EIGENVALUE = 100, 1e-6
# Cross-validation: number of folds, and the reduction of squared errors in standard errors above
# which a correction predicts held-out measurements (about 2.5 % by chance).
_FOLDS, _MIN_Z = 4, 2.0
# Grid of l / t^2, relative to the largest eigenvalue of J J^T.
_VARIANCE_RATIOS = np.geomspace(1e-6, 1e6, 121)
_MAX_ITERATIONS, _STEP_LENGTHS = 5, (1.0, 0.5, 0.25, 0.1)
# Time steps per pulse: changes of signals are within 0.5 % of those with many steps
# (test_tissue_walls.py).
_STEPS = 4


class PackingSignals:
    """Signals of a packing as a function of its scaled transmissibilities (F,)."""

    def __init__(self, packing: Packing, acquisition: BaseAcquisition, device: str = "cpu"):
        self.packing = packing
        self._simulator = Simulator(
            packing.rotated(acquisition), packing.grid, diffusivity=packing.diffusivity,
            steps=_STEPS, dtype="float32", device=device
        )  # fmt: skip
        self._encoding = unique_encodings(acquisition)[1]
        largest_q = np.empty(len(acquisition))
        for waveform in acquisition.waveforms:
            largest_q[waveform.rows] = waveform.largest_q
        longest_link = np.linalg.norm(packing.grid.displacements, axis=1).max()
        self.resolved = largest_q * longest_link <= LARGEST_LINK_PHASE

    def signals(self, scaled: np.ndarray) -> np.ndarray:
        """Signals (M,) of scaled transmissibilities (F,), relative to b = 0."""
        tau = torch.as_tensor(transmissibility(scaled))[None]
        return self._simulator.signals(tau)[0].cpu().numpy().astype(float)

    def change(self, scaled: np.ndarray) -> np.ndarray:
        """Signals (M,) minus those of the packing; 0 where the lattice does not resolve them."""
        return (self.signals(scaled) - self._initial) * self.resolved

    @cached_property
    def _initial(self):
        return self.signals(self.packing.scaled_transmissibility)

    def folds(self) -> list[np.ndarray]:
        """Masks (M,) of the folds of cross-validation; repeats are in the same fold."""
        return [self._encoding % _FOLDS == k for k in range(_FOLDS)]

    def jacobian(self, scaled: np.ndarray) -> np.ndarray:
        """Derivatives (M, F) of :meth:`change`."""
        tau = torch.as_tensor(transmissibility(scaled))[None]
        jacobian = self._simulator.sensitivities(tau)[1][0].cpu().numpy()
        return jacobian * transmissibility_slope(scaled) * self.resolved[:, None]


@dataclass(frozen=True, eq=False)
class CorrectedPacking:
    """A packing with walls corrected by the data, which changes the whitened signals (M,).

    `n_determined` is the effective number of parameters of the correction, 0 where there is none.
    """

    packing: Packing
    scaled_transmissibility: np.ndarray
    change: np.ndarray
    n_determined: float

    @property
    def permeability(self) -> np.ndarray:
        """Of each face (F,), um/ms."""
        if not self.n_determined:
            return self.packing.permeability
        tau = transmissibility(self.scaled_transmissibility)
        return permeability_of(self.packing.grid, tau, self.packing.diffusivity)


def corrected_walls(
    packing_signals: PackingSignals,
    weight: np.ndarray,
    residual: np.ndarray,
    noise: np.ndarray | None = None,
) -> CorrectedPacking | None:
    """Walls that explain the residual of a packing; None where the evidence is insufficient.

    `weight` (M,) are derivatives of the whitened data with respect to the signals of the packing,
    `residual` (M,) whitened data minus prediction. For a posterior sample, `noise` (M,) of
    standard deviation 1 is added to the data (randomise then optimise).
    """
    prior_mean = scaled = packing_signals.packing.scaled_transmissibility
    jacobian = weight[:, None] * packing_signals.jacobian(prior_mean)
    basis, eigenvalues = _left_singular_vectors(jacobian)
    variance, prior_variance = _evidence_maximum(
        eigenvalues, basis.T @ residual, len(residual), residual @ residual
    )
    basis_signals = basis * np.sqrt(eigenvalues * prior_variance / variance)
    if not (
        prior_variance and _predicts_held_out(basis_signals, residual, packing_signals.folds())
    ):
        return None
    signal_variances = prior_variance * eigenvalues
    n_determined = (signal_variances / (variance + signal_variances)).sum()
    sd = np.sqrt(variance)
    if noise is not None:
        residual = residual + sd * noise
    change, objective = np.zeros(len(residual)), residual @ residual / variance
    for _ in range(_MAX_ITERATIONS):
        step = data_space_step(*(torch.as_tensor(array)[None] for array in (
            basis.T @ jacobian / sd, -basis.T @ (residual - change) / sd,
            (scaled - prior_mean) / prior_variance,
            np.full(len(prior_mean), 1 / prior_variance), -scaled, 1 - scaled,
        )))[0].numpy()  # fmt: skip
        for length in _STEP_LENGTHS:
            trial = scaled + length * step
            trial_change = weight * packing_signals.change(trial)
            trial_objective = ((residual - trial_change) ** 2).sum() / variance
            trial_objective += ((trial - prior_mean) ** 2).sum() / prior_variance
            if trial_objective < objective:
                break
        else:
            break
        decrease = objective - trial_objective
        scaled, change, objective = trial, trial_change, trial_objective
        if decrease < 2 * _MIN_LOG_EVIDENCE_GAIN:
            break
        jacobian = weight[:, None] * packing_signals.jacobian(scaled)
        basis, _ = _left_singular_vectors(jacobian)
    if (scaled == prior_mean).all():
        return None
    return CorrectedPacking(packing_signals.packing, scaled, change, float(n_determined))


def _left_singular_vectors(jacobian):
    """Left singular vectors (M, K) of J, and the eigenvalues (K,) of J J^T."""
    n_data, n_faces = jacobian.shape
    in_data_space = n_data <= n_faces
    gram = jacobian @ jacobian.T if in_data_space else jacobian.T @ jacobian
    n = len(gram)
    eigenvalues, vectors = eigh(gram, subset_by_index=[max(n - _MAX_SINGULAR_VECTORS, 0), n - 1])
    nonzero = eigenvalues > _MIN_EIGENVALUE * max(eigenvalues[-1], np.finfo(float).tiny)
    eigenvalues, vectors = eigenvalues[nonzero], vectors[:, nonzero]
    return vectors if in_data_space else jacobian @ vectors / np.sqrt(eigenvalues), eigenvalues


def _predicts_held_out(basis_signals, residual, folds):
    """Whether signals (M, K) with unit prior, fitted to three folds, predict the fourth."""
    reduction = np.empty(len(residual))
    for held_out in folds:
        design_matrix = basis_signals[~held_out]
        precision = design_matrix.T @ design_matrix + np.eye(basis_signals.shape[1])
        coefficients = np.linalg.solve(precision, design_matrix.T @ residual[~held_out])
        error = residual[held_out] - basis_signals[held_out] @ coefficients
        reduction[held_out] = residual[held_out] ** 2 - error**2
    return reduction.mean() > _MIN_Z * reduction.std() / np.sqrt(len(reduction))


def _evidence_maximum(eigenvalues, projections, n_data, sum_of_squares):
    """Variances of the noise and of s, the latter 0 where the evidence gains too little."""
    if not len(eigenvalues):
        return 1.0, 0.0
    ratio = np.append(0, _VARIANCE_RATIOS / eigenvalues[-1])
    growth = 1 + ratio[:, None] * eigenvalues
    chi_square = sum_of_squares - projections @ projections
    chi_square = chi_square + (projections**2 / growth).sum(axis=1)
    variance = np.maximum(chi_square / n_data, 1)
    log_determinant = n_data * np.log(variance) + np.log(growth).sum(axis=1)
    log_evidence = -(log_determinant + chi_square / variance) / 2
    maximum = log_evidence.argmax()
    if log_evidence[maximum] - log_evidence[0] < _MIN_LOG_EVIDENCE_GAIN:
        return variance[0], 0.0
    return variance[maximum], ratio[maximum] * variance[maximum]
