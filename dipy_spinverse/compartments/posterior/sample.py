"""Posterior of the parameters of voxels, given their fits.

All values inside the bounds, all fractions and all directions are equally likely a priori.
Scalars are sampled in z with u = Phi(z), where this prior is a standard normal distribution and
bounds are infinitely far; axes in the plane that touches the sphere at the fit; amplitudes are
drawn with each point. The population that `tempering` leads to the posterior starts from the
prior of the scalars, as a fit may have found one of several modes, and from around the fit in the
axes; of several fibre populations, which are too many unknowns to start anywhere, from around the
fit in all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import chi2, qmc
from torch import Tensor

from dipy_spinverse.compartments.fitting.coordinates import Place, moved
from dipy_spinverse.compartments.fitting.variable_projection import (
    Problem,
    combined,
    linearised,
    without_amplitudes,
)
from dipy_spinverse.compartments.posterior.amplitude_draws import draw_amplitudes, normal_data
from dipy_spinverse.compartments.posterior.tempering import N_FIRST, Population, tempered_draws

_DEGREES = 4.0  # of freedom of the Student t distribution of axes
_INFLATION = 1.5
_PRIOR_OF_TURNS = 3.0  # precision
_SAMPLES_PER_BLOCK = 200_000
_INSIDE = 0.02  # of the range of a scalar: where it starts at least from its bounds
_NEVER = -1e30  # logarithm of the chance of what cannot be computed


@dataclass(frozen=True, eq=False)
class Draws:
    """Equally likely places and amplitudes (n V, K), voxels varying fastest.

    `effective` (V,) is their effective number.
    """

    place: Place
    amplitudes: Tensor
    effective: Tensor


def sample_posterior(
    problem: Problem, place: Place, amplitudes: Tensor, sigma: Tensor, n_draws: int, seed: int
) -> Draws:
    """Draw scalars, axes and amplitudes from their posterior.

    Parameters
    ----------
    problem : Problem
    place : Place
        Of the fit.
    amplitudes : Tensor (V, K)
    sigma : Tensor (V,)
        Standard deviation of the noise.
    n_draws : int
    seed : int
    """
    rng = np.random.default_rng(seed)
    columns, slopes = linearised(problem, place, amplitudes)
    normal = normal_data(problem, combined(columns, amplitudes), sigma)
    centre, factor = _around(problem.definition, place, normal, columns, amplitudes, slopes)
    n_pools = columns.shape[1]
    block = max(1, _SAMPLES_PER_BLOCK // problem.data.shape[1])

    def evaluate(points, voxels, generator):
        n, n_voxels, _ = points.shape
        uniform = torch.tensor(generator.random((n, 1, n_pools))).expand(-1, n_voxels, -1)
        flat, uniform, rows = points.flatten(0, 1), uniform.flatten(0, 1), voxels.repeat(n)
        drawn, values = [], []
        for k in range(0, len(flat), block):
            part, here = rows[k : k + block], slice(k, k + block)
            of_part = problem.of_voxels(part)
            columns = of_part.columns(_at(problem.definition, place.of_voxels(part), flat[here]))
            amounts, weights = draw_amplitudes(
                of_part, columns, normal.of_voxels(part), sigma[part], uniform[here]
            )
            drawn.append(amounts)
            values.append(weights.nan_to_num(nan=_NEVER, neginf=_NEVER))
        return Population(
            points,
            torch.cat(drawn).unflatten(0, (n, n_voxels)),
            torch.cat(values).reshape(n, n_voxels) + _log_prior(problem.definition, points),
            _log_start(points, centre[voxels], factor[voxels]),
        )

    first = _first(centre, factor, slopes.shape[1] - factor.shape[1], rng)
    draws, effective = tempered_draws(first, evaluate, n_draws, rng)
    everywhere = Place(place.unit.repeat(n_draws, 1), place.frames.repeat(n_draws, 1, 1, 1))
    return Draws(
        _at(problem.definition, everywhere, draws.points.flatten(0, 1)),
        draws.amplitudes.flatten(0, 1).to(place.unit.dtype),
        effective,
    )


def _at(definition, place, points):
    """Place of points (V, D): normal coordinates of scalars, then turns from the fit's frames."""
    n = place.unit.shape[1]
    unit = torch.special.ndtr(points[:, :n]).to(place.unit.dtype)
    return moved(
        definition, place, torch.cat([unit - place.unit, points[:, n:].to(unit.dtype)], dim=1)
    )


def _log_prior(definition, points):
    """Normal for scalars, uniform on the sphere and around the axis for turns, whose tangents
    points hold."""
    n_scalars, n_axes = len(definition.parameters), len(definition.axes)
    result = -0.5 * (points[..., :n_scalars] ** 2).sum(dim=2)
    tangents = points[..., n_scalars : n_scalars + 2 * n_axes].unflatten(2, (n_axes, 2))
    result = result - 1.5 * torch.log1p((tangents**2).sum(dim=3)).sum(dim=2)
    return result - torch.log1p(points[..., n_scalars + 2 * n_axes :] ** 2).sum(dim=2)


def _around(definition, place, normal, columns, amplitudes, slopes):
    """Centre (V, T) and Cholesky factor (V, T, T) of what starts around the fit."""
    n_scalars = place.unit.shape[1]
    centre = slopes.new_zeros(len(slopes), slopes.shape[1]).double()
    size = torch.ones_like(centre)
    if len(definition.axes) > 1:
        unit = place.unit.double().clamp(_INSIDE, 1 - _INSIDE)
        centre[:, :n_scalars] = torch.special.ndtri(unit)
        # Of a normal coordinate over its value between 0 and 1.
        size[:, :n_scalars] = torch.exp(-0.5 * centre[:, :n_scalars] ** 2) / np.sqrt(2 * np.pi)
    else:
        slopes, centre, size = (each[:, n_scalars:] for each in (slopes, centre, size))
    white = without_amplitudes(
        columns * normal.inverse_sd[:, None], amplitudes, slopes * normal.inverse_sd[:, None]
    ).double()
    white = white * size[..., None]
    precision = white @ white.mT + _PRIOR_OF_TURNS * torch.eye(slopes.shape[1])
    return centre, _INFLATION * torch.linalg.cholesky_ex(torch.linalg.inv(precision))[0]


def _first(centre, factor, n_scalars, rng):
    """Quasi-random draws (N, V, D) of the start: the prior of scalars, Student t of the rest."""
    n_around = factor.shape[1]
    cube = qmc.Sobol(n_scalars + n_around + 1, rng=rng).random(N_FIRST).clip(1e-6, 1 - 1e-6)
    normal = ndtri(cube[:, :-1])
    scale = np.sqrt(_DEGREES / chi2.ppf(cube[:, -1:], _DEGREES))
    scalars = torch.tensor(normal[:, None, :n_scalars]).expand(-1, len(factor), -1)
    turns = torch.einsum("vpq,nq->nvp", factor, torch.tensor(scale * normal[:, n_scalars:]))
    return torch.cat([scalars, centre + turns], dim=2)


def _log_start(points, centre, factor):
    """Logarithm (N, V) of the density of the start, up to a constant."""
    n_around = factor.shape[1]
    n_scalars = points.shape[2] - n_around
    around = (points[..., n_scalars:] - centre).permute(1, 2, 0)
    white = torch.linalg.solve_triangular(factor, around, upper=False)
    square = (white**2).sum(dim=1).T
    scalars = -0.5 * (points[..., :n_scalars] ** 2).sum(dim=2)
    return scalars - 0.5 * (_DEGREES + n_around) * torch.log1p(square / _DEGREES)
