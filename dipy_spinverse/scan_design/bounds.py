"""What measurements tell about tissue: bounds on the variances of maps.

Tissues are drawn from the prior of the packed cells. At each, with J the derivatives of the
whitened magnitudes by the parameters and P the precision of a Gaussian prior of the same variance
as the true one,

    C = (J^T J + P)^-1,    1/v = 1/(g^T C g) - 1/(g^T P^-1 g) + 1/V

bounds the variance v of a map with gradient g by the parameters and variance V under the prior
(Bayesian Cramer-Rao bound [1]_, linearised at each tissue). Signals at b = 0 are unknown, and
errors of the emulator and differences between packings are part of the noise. Diffusivities, and
that there is no water beside the cells but free water, are taken as known.

References
----------
.. [1] Gill and Levit, Bernoulli 1 (1995) 59-79, https://doi.org/10.2307/3318681
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri

from dipy_spinverse.acquisition.conversion import require_pulsed
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import Simulator, relative_transmissibility
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.packed_cells.emulator_errors import error_patterns, model_errors
from dipy_spinverse.packed_cells.likelihood import normal_equations, voxel_data, with_model_errors
from dipy_spinverse.packed_cells.maps import tissue_maps, tissue_parameters
from dipy_spinverse.packed_cells.tissue_classes import (
    LARGEST_Z,
    ROTATION,
    TissueClass,
    tissue_class,
)
from dipy_spinverse.packed_cells.tissue_signals import TissueSignals, tissue_signals
from dipy_spinverse.substrates.membranes import from_inside

LOG_MAPS = ("surface_to_volume", "wall_permeability", "exchange_time", "pore_diameter")
ORIENTATION = "wall_orientation"
MAPS = (
    "surface_to_volume", "restricted_fraction", "wall_permeability", "exchange_time",
    "pore_diameter", ORIENTATION, "orientation_dispersion", "free_water_fraction",
)  # fmt: skip
CLASSES = ("cylinders", "spheres", "mixture")
_ROTATION_PRECISION = 2.0  # of each component
_LEAST_U = 0.01  # of the probability of a parameter under the prior
_STEP = 1e-4  # of z, for derivatives of maps
_CHUNK = 64  # tissues at once
_TRANSMISSIBILITY_SD = 12**-0.5  # of what is uniform between 0 and 1
_TYPICAL_PERMEABILITY = 0.02  # um/ms
_N_BODIES = 4  # spheres in the grid whose determined numbers are counted
_BODY_SHARE = 0.22  # their radius over the grid's cube root of volume


@dataclass(frozen=True, eq=False)
class MapBounds:
    """A map at N tissues from the prior, and how well A acquisitions determine it.

    Attributes
    ----------
    values : ndarray (N,)
        Logarithms of `LOG_MAPS`; zeros for orientations.
    prior_sd : float
        Of `values`; of orientations the root mean square angle, rad.
    posterior_sd : ndarray (A, N)
    """

    values: np.ndarray
    prior_sd: float
    posterior_sd: np.ndarray


def map_bounds(
    acquisition: Acquisition,
    selections: np.ndarray,
    sigma: float,
    diffusivity: float,
    *,
    free_diffusivity: float,
    free_water: bool,
    classes: tuple[str, ...],
    n_draws: int,
    seed: int,
) -> dict[str, MapBounds]:
    """Bounds of the maps for parts of an acquisition.

    Parameters
    ----------
    acquisition : Acquisition
    selections : ndarray (A, M) of bool
        BaseAcquisition of each part.
    sigma : float
        Noise over the signal at b = 0.
    diffusivity, free_diffusivity : float
        Of tissue and free water, um^2/ms.
    free_water : bool
        Whether a share of free water is unknown.
    classes : tuple of str
        Classes of tissue, equally likely and taken as known.
    n_draws : int
        N over all classes.
    seed : int

    Returns
    -------
    dict of MapBounds
        Of those of `MAPS` that any of the classes has.
    """
    acquisition = require_pulsed(acquisition)
    model = tissue_signals(
        acquisition, (diffusivity, diffusivity), free_diffusivity, compiled=False
    )
    rng = np.random.default_rng(seed)
    parts = []
    for k, name in enumerate(classes):
        tissue = tissue_class(name, True)
        n = len(range(k, n_draws, len(classes)))
        if n:
            z = _drawn(tissue, n, rng, free_water)
            frames = np.linalg.qr(rng.normal(size=(n, 3, 3)))[0]
            parts.append(
                class_bounds(model, tissue, z, frames, acquisition, selections, sigma, free_water)
            )
    result = {}
    for name in MAPS:
        known = [part[name] for part in parts if name in part]
        if known:
            values = np.concatenate([each[0] for each in known])
            data_precision = np.concatenate([each[1] for each in known], axis=1)
            prior_sd = 1.0 if name == ORIENTATION else values.std()
            result[name] = MapBounds(
                values, float(prior_sd), 1 / np.sqrt(data_precision + 1 / prior_sd**2)
            )
    return result


def _drawn(tissue, n, rng, free_water):
    """Places (n, P), without water beside the cells that is taken as known to be absent."""
    u = np.clip(_stratified(n, tissue.n_parameters, rng), _LEAST_U, 1 - _LEAST_U)
    z = ndtri(u)
    z[:, ~_unknown(tissue, free_water)] = -LARGEST_Z
    z[:, -3:] = 0
    return z


def _unknown(tissue, free_water):
    """(P,) bool: what the bounds are about."""
    absent = ("dot", "hindered", "hindered_1", "hindered_2", "hindered_along")
    absent += () if free_water else ("free_water",)
    # The rotation about the axis of spheres, or of cylinders that disperse equally, is nothing.
    absent += ROTATION if tissue.name == "spheres" else ROTATION[2:]
    return ~np.isin(tissue.parameters, absent)


def _stratified(n, n_parameters, rng):
    """Draws (n, P) of the unit cube, one in each n-th of each side."""
    order = rng.permuted(np.tile(np.arange(n)[:, None], n_parameters), axis=0)
    return (order + rng.random((n, n_parameters))) / n


def class_bounds(
    model: TissueSignals,
    tissue: TissueClass,
    z: np.ndarray,
    frames: np.ndarray,
    acquisition: Acquisition,
    selections: np.ndarray,
    sigma: float,
    free_water: bool,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """How well given tissues of a class are determined.

    Parameters
    ----------
    model : TissueSignals
    tissue : TissueClass
    z : ndarray (n, P)
        Parameters, standard normal under the prior; 0 for the rotation.
    frames : ndarray (n, 3, 3)
        Rows; the last is the axis.
    acquisition, selections, sigma, free_water
        As in :func:`map_bounds`.

    Returns
    -------
    dict of (ndarray (n,), ndarray (A, n))
        Values of each map on its scale, and the precisions that the data add.
    """
    unknown = _unknown(tissue, free_water)
    information = np.concatenate(
        [
            _information(model, tissue, z[rows], frames[rows], acquisition, selections, sigma)
            for rows in np.split(np.arange(len(z)), range(_CHUNK, len(z), _CHUNK))
        ],
        axis=1,
    )[:, :, unknown][..., unknown]
    turns = np.isin(tissue.parameters, ROTATION)[unknown]
    prior = np.where(turns, _ROTATION_PRECISION, 1.0)
    covariance = np.linalg.inv(information + np.diag(prior))
    values, gradients = _map_gradients(model, tissue, z, frames, free_water)
    result = {}
    for name, gradient in gradients.items():
        gradient = gradient[:, unknown]
        before = (gradient**2 / prior).sum(axis=1)
        after = np.einsum("np,anpq,nq->an", gradient, covariance, gradient)
        # A map that no parameter moves is known only as well as before.
        precision = 1 / np.maximum(after, 1e-30) - 1 / np.maximum(before, 1e-30)
        result[name] = values[name], np.maximum(precision, 0)
    if turns.any():
        at = np.flatnonzero(turns)
        angle = covariance[:, :, at, at].sum(axis=2)
        result[ORIENTATION] = np.zeros(len(z)), np.maximum(1 / angle - 1, 0)
    return result


def _information(model, tissue, z, frames, acquisition, selections, sigma):
    """Fisher information (A, n, P, P) on the parameters, the amplitudes eliminated."""
    signals, slopes = model(tissue, z, frames, slopes=True)
    signals = np.maximum(signals, 0)
    errors = model_errors(model, tissue, z, frames, error_patterns(model.shells))
    order = model.shells.order
    everywhere, noise = np.arange(len(z)), np.full(len(z), sigma)
    result = []
    for selected in selections:
        chosen = selected[order]
        labels = np.unique(acquisition.te_index[order][chosen], return_inverse=True)[1]
        part = np.ascontiguousarray(signals[:, chosen])
        known = voxel_data(part, noise, labels, np.ones(chosen.sum(), dtype=bool))
        known = with_model_errors(known, part, errors[..., chosen], np.zeros(len(z)))
        ones = np.ones((len(z), known.n_labels))
        result.append(
            normal_equations(known, part, ones, slopes[..., chosen], 0 * part, everywhere)[1]
        )
    return np.stack(result)


def _map_gradients(model, tissue, z, frames, free_water):
    """Scalar maps (n,) of a class on their scales, and gradients (n, P) by z."""
    values = _scaled_maps(model, tissue, z, frames, free_water)
    gradients = {name: np.zeros(z.shape) for name in values}
    for k in range(tissue.n_parameters - 3):
        step = _STEP * (np.arange(z.shape[1]) == k)
        ends = [_scaled_maps(model, tissue, z + s * step, frames, free_water) for s in (1, -1)]
        for name, gradient in gradients.items():
            gradient[:, k] = (ends[0][name] - ends[1][name]) / (2 * _STEP)
    return values, gradients


def _scaled_maps(model, tissue, z, frames, free_water):
    maps = tissue_maps(tissue_parameters(tissue, z, model.diffusivity), frames)
    left_out = {ORIENTATION}
    if tissue.name == "spheres":
        left_out.add("orientation_dispersion")
    if not free_water:
        left_out.add("free_water_fraction")
    return {
        name: np.log(maps[name]) if name in LOG_MAPS else maps[name]
        for name in MAPS
        if name not in left_out
    }


def n_identifiable_directions(
    acquisition: Acquisition, grid: TetrahedralGrid, sigma: float, diffusivity: float, seed: int
) -> int:
    """Independent numbers about the faces of a grid that measurements determine.

    Singular values above the noise, of the Jacobian by relative transmissibilities with the spread
    of a uniform prior, amplitudes unknown; at four spheres in random places with membranes of
    0.02 um/ms.

    Parameters
    ----------
    acquisition, sigma, diffusivity, seed
        As in :func:`map_bounds`.
    grid : TetrahedralGrid
    """
    rng = np.random.default_rng(seed)
    centers = grid.centroids[rng.integers(grid.n_tetrahedra, size=_N_BODIES)]
    radius = _BODY_SHARE * np.cbrt(grid.volumes.sum())
    gaps = grid.minimum_image(grid.centroids[:, None] - centers)
    inside = (np.linalg.norm(gaps, axis=2) < radius).any(axis=1)
    permeability = from_inside(grid, inside, permeability=_TYPICAL_PERMEABILITY)
    tau = relative_transmissibility(grid, permeability[None], diffusivity)
    simulator = Simulator(acquisition, grid, diffusivity=diffusivity)
    signals, jacobian = (part[0].numpy() for part in simulator.sensitivities(torch.as_tensor(tau)))
    per_echo = acquisition.te_index[:, None] == np.arange(acquisition.echo_times.size)
    basis = np.linalg.qr(signals[:, None] * per_echo)[0]
    jacobian = jacobian - basis @ (basis.T @ jacobian)
    power = np.linalg.eigvalsh(jacobian @ jacobian.T)
    return int((power * (_TRANSMISSIBILITY_SD / sigma) ** 2 > 1).sum())
