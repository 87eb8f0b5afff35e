"""What measurements tell about tissue: bounds on the variances of maps.

Tissues are drawn from the prior of the packed cells. At each, with J the derivatives of the
whitened magnitudes by the parameters and P the precision of a Gaussian prior of the same variance
as the true one,

    C = (J^T J + P)^-1,    1/v = 1/(g^T C g) - 1/(g^T P^-1 g) + 1/V

bounds the variance v of a map with gradient g by the parameters and variance V under the prior
(Bayesian Cramer-Rao bound [1]_, linearised at each tissue). Signals at b = 0 are unknown, and
errors of the tables and of the diffusivity between bodies are part of the noise. What else parts
real packings from the tables, which fits add to their intervals, is not in the bounds.

References
----------
.. [1] Gill and Levit, Bernoulli 1 (1995) 59-79, https://doi.org/10.2307/3318681
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logit

from dipy_spinverse.acquisition.kinds import pulsed_only
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import Simulator, relative_transmissibility
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.packed_cells.likelihood import (
    gaussian_likelihood,
    refined_likelihood,
    whiten,
)
from dipy_spinverse.packed_cells.parameter_maps import tissue_maps, tissue_parameters
from dipy_spinverse.packed_cells.posterior import model_errors
from dipy_spinverse.packed_cells.tables.cache import encoding_range
from dipy_spinverse.packed_cells.tables.signal_table import (
    SignalTable,
    TableSetting,
    coordinate_range,
    table_of_simulations,
)
from dipy_spinverse.packed_cells.tissue_classes import (
    TissueClass,
    class_signals,
    shapes_of,
    tissue_class,
)
from dipy_spinverse.packed_cells.tissue_model import TissueModel, tissue_model
from dipy_spinverse.substrates.walls_of_bodies import from_inside
from dipy_spinverse.voxels.rician import rician_excess

LOG_MAPS = ("surface_to_volume", "wall_permeability", "exchange_time", "pore_diameter")
ORIENTATION = "wall_orientation"
MAPS = (
    "surface_to_volume", "restricted_fraction", "wall_permeability", "exchange_time",
    "pore_diameter", ORIENTATION, "orientation_dispersion", "free_water_fraction",
)  # fmt: skip
_PRIOR_PRECISION = 12.0  # of a uniform parameter between 0 and 1
_AXIS_PRECISION = 2.0  # of each coordinate of the map of axes
_LEAST_U = 0.01  # derivatives by u are those by its logit over u (1 - u)
_STEP = 1e-4  # of u, for derivatives of maps
_AMPLITUDE_STEP = 0.01  # of the signal over the noise, for the derivative of the Rician mean
_N_CLOSED_FORM = 64  # packings of a closed-form table
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
    table: Callable[[str, Acquisition, float], SignalTable],
) -> dict[str, MapBounds]:
    """Bounds of the maps for parts of an acquisition.

    Parameters
    ----------
    acquisition : Acquisition
    selections : ndarray (A, M) of bool
        Measurements of each part.
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
    table : callable
        Makes the signal table of a shape, an acquisition and a diffusivity: `closed_form_table`
        or `cached_table`.

    Returns
    -------
    dict of MapBounds
        Of those of `MAPS` that any of the classes has.
    """
    acquisition = pulsed_only(acquisition)
    tables = {shape: table(shape, acquisition, diffusivity) for shape in shapes_of(classes)}
    model = tissue_model(acquisition, tables, diffusivity, free_diffusivity)
    rng = np.random.default_rng(seed)
    parts = []
    for k, name in enumerate(classes):
        tissue = tissue_class(name, free_water)
        n = len(range(k, n_draws, len(classes)))
        if n:
            u = _drawn(tissue, n, rng)
            frames = np.linalg.qr(rng.normal(size=(n, 3, 3)))[0]
            parts.append(class_bounds(model, tissue, u, frames, acquisition, selections, sigma))
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


def closed_form_table(shape: str, acquisition: Acquisition, diffusivity: float) -> SignalTable:
    """Table of the closed form for two exchanging pools: no simulation, a tenth of a second."""
    setting = TableSetting(shape, *encoding_range(acquisition), diffusivity)
    lower, upper = coordinate_range(shape)
    draws = _stratified(_N_CLOSED_FORM, 3, np.random.default_rng(0))
    coordinates = lower + (upper - lower) * draws
    signals = setting.closed_form(coordinates)
    return table_of_simulations(setting, coordinates, np.stack([signals, signals]))


def _drawn(tissue, n, rng):
    """Draws (n, P) of the uniform parameters; the axes are those of the frames."""
    u = np.clip(_stratified(n, tissue.n_parameters, rng), _LEAST_U, 1 - _LEAST_U)
    u[:, ~tissue.bounded] = 0
    return u


def _stratified(n, n_parameters, rng):
    """Draws (n, P) of the unit cube, one in each n-th of each side."""
    order = rng.permuted(np.tile(np.arange(n)[:, None], n_parameters), axis=0)
    return (order + rng.random((n, n_parameters))) / n


def class_bounds(
    model: TissueModel,
    tissue: TissueClass,
    u: np.ndarray,
    frames: np.ndarray,
    acquisition: Acquisition,
    selections: np.ndarray,
    sigma: float,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """How well given tissues of a class are determined.

    Parameters
    ----------
    model : TissueModel
    tissue : TissueClass
    u : ndarray (n, P)
        Parameters, uniform between 0 and 1 under the prior; 0 for those of the axis.
    frames : ndarray (n, 3, 3)
        Rows; the last is the axis.
    acquisition, selections, sigma
        As in :func:`map_bounds`.

    Returns
    -------
    dict of (ndarray (n,), ndarray (A, n))
        Values of each map on its scale, and the precisions that the data add.
    """
    information = np.concatenate(
        [
            _information(model, tissue, u[rows], frames[rows], acquisition, selections, sigma)
            for rows in np.split(np.arange(len(u)), range(_CHUNK, len(u), _CHUNK))
        ],
        axis=1,
    )
    prior = np.where(tissue.bounded, _PRIOR_PRECISION, _AXIS_PRECISION)
    covariance = np.linalg.inv(information + np.diag(prior))
    values, gradients = _map_gradients(tissue, u)
    result = {}
    for name, gradient in gradients.items():
        before = (gradient**2 / prior).sum(axis=1)
        after = np.einsum("np,anpq,nq->an", gradient, covariance, gradient)
        # A map that no parameter moves is known only as well as before.
        precision = 1 / np.maximum(after, 1e-30) - 1 / np.maximum(before, 1e-30)
        result[name] = values[name], np.maximum(precision, 0)
    if not tissue.bounded.all():
        at = np.flatnonzero(~tissue.bounded)
        angle = covariance[:, :, at, at].sum(axis=2)
        result[ORIENTATION] = np.zeros(len(u)), np.maximum(1 / angle - 1, 0)
    return result


def _information(model, tissue, u, frames, acquisition, selections, sigma):
    """Fisher information (A, n, P, P) on the parameters, the amplitudes eliminated."""
    z = _places(tissue, u)
    signals, slopes = class_signals(model, tissue, z, frames, slopes=True)
    signals = np.maximum(signals, 0)
    slopes = slopes / np.where(tissue.bounded, u * (1 - u), 1)[:, None]
    relative = signals / sigma
    gain = 1 + (
        rician_excess(relative + _AMPLITUDE_STEP) - rician_excess(relative)
    ) / _AMPLITUDE_STEP  # fmt: skip
    slopes *= gain[..., None]
    errors = np.stack([model_errors(model, tissue, z[[n]], frames[[n]]) for n in range(len(z))])
    everywhere, noise = np.arange(len(z)), np.full(len(z), sigma)
    result = []
    for chosen in selections:
        te_index = np.unique(acquisition.te_index[chosen], return_inverse=True)[1]
        part = signals[:, chosen]
        likelihood = refined_likelihood(
            gaussian_likelihood(part, noise, te_index), part, errors[..., chosen]
        )
        changes = whiten(likelihood, slopes[:, chosen], everywhere)
        per_echo = te_index[:, None] == np.arange(te_index.max() + 1)
        of_amplitude = (part * gain[:, chosen])[..., None] * per_echo
        basis = np.linalg.qr(whiten(likelihood, of_amplitude, everywhere))[0]
        changes -= basis @ (np.swapaxes(basis, 1, 2) @ changes)
        result.append(np.swapaxes(changes, 1, 2) @ changes)
    return np.stack(result)


def _places(tissue, u):
    return np.where(tissue.bounded, logit(np.where(tissue.bounded, u, 0.5)), u)


def _map_gradients(tissue: TissueClass, u: np.ndarray):
    """Scalar maps (n,) of a class on their scales, and gradients (n, P) by u."""
    values = _scaled_maps(tissue, u)
    gradients = {name: np.zeros(u.shape) for name in values}
    for k in np.flatnonzero(tissue.bounded):
        step = _STEP * (np.arange(u.shape[1]) == k)
        ahead, behind = _scaled_maps(tissue, u + step), _scaled_maps(tissue, u - step)
        for name, gradient in gradients.items():
            gradient[:, k] = (ahead[name] - behind[name]) / (2 * _STEP)
    return values, gradients


def _scaled_maps(tissue, u):
    parameters = tissue_parameters(tissue, _places(tissue, u))
    maps = tissue_maps(parameters, np.zeros((len(u), 3)))
    left_out = {ORIENTATION}
    if tissue.name == "spheres":
        left_out.add("orientation_dispersion")
    if "free_water" not in tissue.parameters:
        left_out.add("free_water_fraction")
    return {
        name: np.log(maps[name]) if name in LOG_MAPS else maps[name]
        for name in MAPS
        if name not in left_out
    }


def determined_directions(
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
