"""Where walls leave a packing: only as far as the data ask for it.

What the packing leaves of the data is noise, of unknown variance but at least the known one, and
what small changes of all faces do to the signals,

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
from dipy_spinverse.bloch_torrey import Simulator, unique_encodings
from dipy_spinverse.inversion import transmissibility
from dipy_spinverse.inversion.gauss_newton import data_space_step
from dipy_spinverse.inversion.unknowns import transmissibility_slope
from dipy_spinverse.spinverse.packings import Packing
from dipy_spinverse.voxels.status import REFUTED

# Phase between neighbouring tetrahedra, rad, above which a lattice does not resolve an encoding.
LARGEST_LINK_PHASE = np.pi / 2
# Twice the gain of the logarithm of the evidence by one more parameter, that chance exceeds so
# seldom.
_LEAST_GAIN = chi2.isf(REFUTED, 1) / 2
# Combinations of signals that faces change, and their least squared singular value, relative.
_MOST_COMBINATIONS, _LEAST_STRENGTH = 100, 1e-6
# Parts of the measurements that are foretold from the others, and the improvement of squared
# errors over its standard error from which they are.
_FOLDS, _LEAST_SURENESS = 4, 2.0
_RATIOS = np.geomspace(1e-6, 1e6, 121)  # of l to t^2, over the largest eigenvalue
_MOST_STEPS, _STEP_LENGTHS = 5, (1.0, 0.5, 0.25, 0.1)
_STEPS = 4  # in time, per pulse: changes of signals are within 0.5 % of those of many


class Patch:
    """Signals of a packing of which the walls may change.

    Parameters
    ----------
    packing : Packing
    acquisition : BaseAcquisition
    device : str
    """

    def __init__(self, packing: Packing, acquisition: BaseAcquisition, device: str = "cpu"):
        self.packing = packing
        self._simulator = Simulator(
            packing.seen(acquisition), packing.grid, diffusivity=packing.diffusivity,
            steps=_STEPS, dtype="float32", device=device,
        )  # fmt: skip
        self._encoding = unique_encodings(acquisition)[1]
        largest_q = np.empty(len(acquisition))
        for part in acquisition.waveforms:
            largest_q[part.rows] = part.largest_q
        longest_link = np.linalg.norm(packing.grid.displacements, axis=1).max()
        self.resolved = largest_q * longest_link <= LARGEST_LINK_PHASE

    def signals(self, scaled: np.ndarray) -> np.ndarray:
        """Signals (M,) of other walls, relative to b = 0."""
        tau = transmissibility(torch.as_tensor(scaled))[None]
        return self._simulator.signals(tau)[0].cpu().numpy().astype(float)

    def change(self, scaled: np.ndarray) -> np.ndarray:
        """Signals (M,) of other walls less those of the packing; 0 where neither is resolved."""
        return (self.signals(scaled) - self._at_start) * self.resolved

    @cached_property
    def _at_start(self):
        return self.signals(self.packing.scaled_transmissibility)

    def folds(self) -> list[np.ndarray]:
        """Masks (M,) that share the measurements out; those of equal signals together."""
        return [self._encoding % _FOLDS == k for k in range(_FOLDS)]

    def slopes(self, scaled: np.ndarray) -> np.ndarray:
        """Derivatives (M, F) of :meth:`change`."""
        at = torch.as_tensor(scaled)
        _, by_tau = self._simulator.sensitivities(transmissibility(at)[None])
        by_tau = by_tau[0].cpu().numpy() * transmissibility_slope(at).numpy()
        return by_tau * self.resolved[:, None]


@dataclass(frozen=True)
class WallCorrection:
    """Walls that left a packing.

    Attributes
    ----------
    scaled_transmissibility : ndarray (F,)
    change : ndarray (M,)
        Of the whitened data.
    n_determined : float
        Degrees of freedom that the change took from the data.
    """

    scaled_transmissibility: np.ndarray
    change: np.ndarray
    n_determined: float


def corrected_walls(
    patch: Patch, weight: np.ndarray, residual: np.ndarray, noise: np.ndarray | None = None
) -> WallCorrection | None:
    """Walls that explain what a packing leaves of the data; None where these do not ask for it.

    Parameters
    ----------
    patch : Patch
    weight : ndarray (M,)
        Change of the whitened data with the signals of the packing.
    residual : ndarray (M,)
        Whitened data less what the packing explains.
    noise : ndarray (M,), optional
        Of standard deviation 1, that is added to the data: for a draw.
    """
    start = here = patch.packing.scaled_transmissibility
    jacobian = weight[:, None] * patch.slopes(start)
    basis, strength = _combinations(jacobian)
    variance, prior = _evidence(strength, basis.T @ residual, len(residual), residual @ residual)
    signals = basis * np.sqrt(strength * prior / variance)
    if not prior or not _predicts_held_out(signals, residual, patch.folds()):
        return None
    n_determined = (prior * strength / (variance + prior * strength)).sum()
    sd = np.sqrt(variance)
    if noise is not None:
        residual = residual + sd * noise
    change, value = np.zeros(len(residual)), residual @ residual / variance
    for _ in range(_MOST_STEPS):
        step = data_space_step(*(torch.as_tensor(part)[None] for part in (
            basis.T @ jacobian / sd, -basis.T @ (residual - change) / sd, (here - start) / prior,
            np.full(len(start), 1 / prior), -here, 1 - here,
        )))[0].numpy()  # fmt: skip
        for length in _STEP_LENGTHS:
            trial = here + length * step
            changed = weight * patch.change(trial)
            reached = ((residual - changed) ** 2).sum() / variance
            reached += ((trial - start) ** 2).sum() / prior
            if reached < value:
                break
        else:
            break
        gain, here, change, value = value - reached, trial, changed, reached
        if gain < 2 * _LEAST_GAIN:
            break
        jacobian = weight[:, None] * patch.slopes(here)
        basis, strength = _combinations(jacobian)
    return WallCorrection(here, change, float(n_determined)) if (here != start).any() else None


def _combinations(jacobian):
    """Orthonormal combinations (M, K) of data that faces change most, and J J^T (K,) of them."""
    n_data, n_faces = jacobian.shape
    few = n_data <= n_faces
    gram = jacobian @ jacobian.T if few else jacobian.T @ jacobian
    n = len(gram)
    strength, vectors = eigh(gram, subset_by_index=[max(n - _MOST_COMBINATIONS, 0), n - 1])
    kept = strength > _LEAST_STRENGTH * max(strength[-1], np.finfo(float).tiny)
    strength, vectors = strength[kept], vectors[:, kept]
    return vectors if few else jacobian @ vectors / np.sqrt(strength), strength


def _predicts_held_out(signals, residual, folds):
    """Whether combinations (M, K) of unit prior foretell a part of the data from the others."""
    better = np.empty(len(residual))
    for part in folds:
        known = signals[~part]
        precision = known.T @ known + np.eye(signals.shape[1])
        foretold = signals[part] @ np.linalg.solve(precision, known.T @ residual[~part])
        better[part] = residual[part] ** 2 - (residual[part] - foretold) ** 2
    return better.mean() > _LEAST_SURENESS * better.std() / np.sqrt(len(better))


def _evidence(strength, along, n_data, total):
    """Variances of the noise and of s, the latter 0 where the evidence gains too little."""
    if not len(strength):
        return 1.0, 0.0
    ratio = np.append(0, _RATIOS / strength[-1])
    growth = 1 + ratio[:, None] * strength
    rest = total - along @ along + (along**2 / growth).sum(axis=1)
    variance = np.maximum(rest / n_data, 1)
    log_evidence = -(n_data * np.log(variance) + np.log(growth).sum(axis=1) + rest / variance) / 2
    best = log_evidence.argmax()
    if log_evidence[best] - log_evidence[0] < _LEAST_GAIN:
        return variance[0], 0.0
    return variance[best], ratio[best] * variance[best]
