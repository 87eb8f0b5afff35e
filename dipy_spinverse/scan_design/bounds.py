"""Lower bounds on the posterior variances of maps.

Tissues are drawn from the prior of the packed cells. At each, with J the derivatives of the
whitened magnitudes by the parameters and P the precision of a Gaussian prior of the same variance
as the true one,

    C = (J^T J + P)^-1,    1/v = 1/(g^T C g) - 1/(g^T P^-1 g) + 1/V

bounds the variance v of a map with gradient g by the parameters and variance V under the prior
(Bayesian Cramer-Rao bound [1]_, linearised at each tissue). Signals at b = 0 are unknown, and
errors of the emulator and differences between packings are part of the noise. All that fits of
packed cells leave unknown is unknown, but the class of the tissue.

References
----------
.. [1] Gill and Levit, Bernoulli 1 (1995) 59-79, https://doi.org/10.2307/3318681
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from dipy_spinverse.acquisition.conversion import require_pulsed
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.packed_cells.emulator_errors import error_patterns, model_errors
from dipy_spinverse.packed_cells.likelihood import normal_equations, tissue_data, with_model_errors
from dipy_spinverse.packed_cells.maps import tissue_maps, tissue_parameters
from dipy_spinverse.packed_cells.tissue_classes import (
    ROTATION,
    TissueClass,
    tissue_class,
)
from dipy_spinverse.packed_cells.tissue_signals import TissueSignals, tissue_signals

LOG_MAPS = ("surface_to_volume", "wall_permeability", "exchange_time", "pore_diameter")
ORIENTATION = "wall_orientation"
MAPS = (
    "surface_to_volume", "restricted_fraction", "wall_permeability", "exchange_time",
    "pore_diameter", ORIENTATION, "orientation_dispersion", "free_water_fraction",
)  # fmt: skip
_CLASSES = ("cylinders", "spheres", "mixture")
# Of each of two components of rotation: a mean squared angle of 1 rad^2 (of random axes: pi - 2).
_ROTATION_PRECISION = 2.0
_TAIL = 0.01  # of the prior of each parameter, left out at either end; linearisation fails there
_STEP = 1e-4  # of z, for central differences of maps
_CHUNK = 64  # tissues at once; limits memory


@dataclass(frozen=True, eq=False)
class MapBounds:
    """A map at N tissues from the prior, and its uncertainty with A acquisitions."""

    values: np.ndarray  # (N,), logarithms of `LOG_MAPS`; zeros for orientations
    prior_sd: float  # of `values`; of orientations the root mean square angle, rad
    posterior_sd: np.ndarray  # (A, N)


def map_bounds(
    acquisition: Acquisition,
    selections: np.ndarray,
    sigma: float,
    diffusivity: float | None,
    *,
    free_diffusivity: float,
    n_draws: int,
    seed: int,
) -> dict[str, MapBounds]:
    """Bounds of those `MAPS` that tissues have, for A subsets of an acquisition.

    `selections` (A, M) are the measurements of each subset, `sigma` is the noise over the signal
    at b = 0, and diffusivities are in um^2/ms, that of tissue unknown where None. The N =
    `n_draws` tissues are of three classes, equally likely and taken as known.
    """
    acquisition = require_pulsed(acquisition)
    known = None if diffusivity is None else (diffusivity, diffusivity)
    model = tissue_signals(acquisition, known, free_diffusivity, interpolated=False)
    rng = np.random.default_rng(seed)
    of_classes = []
    for k, name in enumerate(_CLASSES):
        tissue = tissue_class(name, diffusivity_known=known is not None)
        n = len(range(k, n_draws, len(_CLASSES)))
        if n:
            z = _prior_draws(tissue, n, rng)
            frames = np.linalg.qr(rng.normal(size=(n, 3, 3)))[0]
            of_classes.append(
                class_bounds(model, tissue, z, frames, acquisition, selections, sigma)
            )
    result = {}
    for name in MAPS:
        bounds = [bound[name] for bound in of_classes if name in bound]
        if bounds:
            values = np.concatenate([values for values, _ in bounds])
            data_precision = np.concatenate([precision for _, precision in bounds], axis=1)
            prior_sd = 1.0 if name == ORIENTATION else values.std()
            result[name] = MapBounds(
                values, float(prior_sd), 1 / np.sqrt(data_precision + 1 / prior_sd**2)
            )
    return result


def _prior_draws(tissue, n, rng):
    """Parameters (n, P), a Latin hypercube of the prior."""
    strata = rng.permuted(np.tile(np.arange(n)[:, None], tissue.n_parameters), axis=0)
    u = (strata + rng.random((n, tissue.n_parameters))) / n
    z = ndtri(np.clip(u, _TAIL, 1 - _TAIL))
    z[:, -3:] = 0
    return z


def _unknown(tissue):
    """Which parameters (P,) are unknown."""
    # Rotations of spheres, and of cylinders about their axis, have no effect.
    absent = ROTATION if tissue.name == "spheres" else ROTATION[2:]
    return ~np.isin(tissue.parameters, absent)


def class_bounds(
    model: TissueSignals,
    tissue: TissueClass,
    z: np.ndarray,
    frames: np.ndarray,
    acquisition: Acquisition,
    selections: np.ndarray,
    sigma: float,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Values (n,) of each map on its scale, and the precisions (A, n) that the data add.

    Of tissues with parameters z (n, P), standard normal under the prior and 0 for the rotation,
    in frames (n, 3, 3) whose last row is the axis.
    """
    unknown = _unknown(tissue)
    information = np.concatenate(
        [
            _information(model, tissue, z[rows], frames[rows], acquisition, selections, sigma)
            for rows in np.split(np.arange(len(z)), range(_CHUNK, len(z), _CHUNK))
        ],
        axis=1,
    )[:, :, unknown][..., unknown]
    is_rotation = np.isin(tissue.parameters, ROTATION)[unknown]
    prior_precision = np.where(is_rotation, _ROTATION_PRECISION, 1.0)
    covariance = np.linalg.inv(information + np.diag(prior_precision))
    values, gradients = _map_gradients(model, tissue, z, frames)
    result = {}
    for name, gradient in gradients.items():
        gradient = gradient[:, unknown]
        prior_variance = (gradient**2 / prior_precision).sum(axis=1)
        variance = np.einsum("np,anpq,nq->an", gradient, covariance, gradient)
        # The data add no precision to a map that does not depend on any parameter.
        precision = 1 / np.maximum(variance, 1e-30) - 1 / np.maximum(prior_variance, 1e-30)
        result[name] = values[name], np.maximum(precision, 0)
    if is_rotation.any():
        k = np.flatnonzero(is_rotation)
        squared_angle = covariance[:, :, k, k].sum(axis=2)
        result[ORIENTATION] = np.zeros(len(z)), np.maximum(1 / squared_angle - 1, 0)
    return result


def _information(model, tissue, z, frames, acquisition, selections, sigma):
    """Fisher information (A, n, P, P) on the parameters, the amplitudes eliminated."""
    signals, jacobian = model(tissue, z, frames, slopes=True)
    signals = np.maximum(signals, 0)
    errors = model_errors(model, tissue, z, frames, error_patterns(model.shells))
    order = model.shells.order
    voxels, noise = np.arange(len(z)), np.full(len(z), sigma)
    information = []
    for selection in selections:
        rows = selection[order]
        labels = np.unique(acquisition.te_index[order][rows], return_inverse=True)[1]
        predicted = np.ascontiguousarray(signals[:, rows])
        used, n_averages = np.ones(rows.sum(), dtype=bool), acquisition.n_averages[order][rows]
        data = tissue_data(predicted, noise, labels, used, n_averages)
        data = with_model_errors(data, predicted, errors[..., rows])
        amplitudes, residual = np.ones((len(z), data.n_labels)), np.zeros_like(predicted)
        equations = normal_equations(
            data, predicted, amplitudes, jacobian[..., rows], residual, voxels
        )
        information.append(equations[1])
    return np.stack(information)


def _map_gradients(model, tissue, z, frames):
    """Scalar maps (n,) of a class on their scales, and gradients (n, P) by z."""
    values = _scaled_maps(model, tissue, z, frames)
    gradients = {name: np.zeros(z.shape) for name in values}
    for k in range(tissue.n_parameters - 3):
        step = _STEP * (np.arange(z.shape[1]) == k)
        shifted_maps = [_scaled_maps(model, tissue, z + s * step, frames) for s in (1, -1)]
        for name, gradient in gradients.items():
            gradient[:, k] = (shifted_maps[0][name] - shifted_maps[1][name]) / (2 * _STEP)
    return values, gradients


def _scaled_maps(model, tissue, z, frames):
    maps = tissue_maps(tissue_parameters(tissue, z, model.diffusivity), frames)
    excluded = {ORIENTATION}
    if tissue.name == "spheres":
        excluded.add("orientation_dispersion")
    return {
        name: np.log(maps[name]) if name in LOG_MAPS else maps[name]
        for name in MAPS
        if name not in excluded
    }
