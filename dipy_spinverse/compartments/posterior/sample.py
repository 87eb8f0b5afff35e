"""Posterior of the parameters of voxels, given their fits.

All values inside the bounds, all fractions and all directions are equally likely a priori.
Scalars are sampled in z with u = Phi(z), where this prior is a standard normal distribution and
bounds are infinitely far; axes in the plane that touches the sphere at the fit; amplitudes are
drawn with each point. Samples around the ends of searches, some of them with the prior of one
scalar or of all, are weighted (`importance`). Where few carry the weight, or the definition says
that likely values lie on bent ridges, a population is led to the posterior (`tempering`) from the
prior of the scalars and around the fit in the axes; of several fibre populations, which are too
many unknowns to start anywhere, from around the fit in all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.compartments.fitting.parameters import (
    NonlinearParameters,
    apply_step,
    rotations_between,
)
from dipy_spinverse.compartments.fitting.variable_projection import (
    SeparableProblem,
    optimal_amplitudes,
    predicted_signals,
    project_out_amplitudes,
    signal_jacobian,
)
from dipy_spinverse.compartments.posterior.amplitude_draws import (
    GaussianApproximation,
    draw_amplitudes,
    gaussian_approximation,
)
from dipy_spinverse.compartments.posterior.importance import weighted_draws
from dipy_spinverse.compartments.posterior.population import Particles
from dipy_spinverse.compartments.posterior.proposal import StudentMixture
from dipy_spinverse.compartments.posterior.tempering import tempered_draws
from dipy_spinverse.voxels.progress import part

_NEAR, _BROAD = 1.1, 1.4  # times the spread around the fit
_WIDE = 2.0
# Of the samples: near the fit, in its wider surroundings, with the prior of one scalar, of all;
# where searches end in one place, in several, and of several fibre populations.
_ONE, _SEVERAL = (0.65, 0.15, 0.1, 0.1), (0.4, 0.15, 0.25, 0.2)
_FIBRES = (0.7, 0.3, 0.0, 0.0)
_LEAST_EFFECTIVE = 0.2  # of the draws
_PRIOR_OF_TURNS = 3.0  # precision
_SAMPLES_PER_BLOCK = 200_000
_INSIDE = 0.02  # of the range of a scalar: where it starts at least from its bounds
_WEIGHED = 0.8  # of the time that all take
_NEVER = -1e30  # logarithm of the chance of what cannot be computed


@dataclass(frozen=True, eq=False)
class PosteriorSamples:
    """Equally likely places and amplitudes (n V, K), voxels varying fastest.

    `effective` (V,) is their effective number.
    """

    place: NonlinearParameters
    amplitudes: Tensor
    effective: Tensor


def sample_posterior(
    problem: SeparableProblem,
    ends: list[NonlinearParameters],
    amplitudes: Tensor,
    sigma: Tensor,
    n_draws: int,
    seed: int,
) -> PosteriorSamples:
    """Draw scalars, axes and amplitudes from their posterior.

    Parameters
    ----------
    problem : Problem
    ends : list of Place
        Of the fit, and of searches from elsewhere.
    amplitudes : Tensor (V, K)
        Of the fit.
    sigma : Tensor (V,)
        Standard deviation of the noise.
    n_draws : int
    seed : int
    """
    weighing, tempering = np.random.default_rng(seed).spawn(2)
    place = ends[0]
    normal = gaussian_approximation(
        problem, predicted_signals(problem.columns(place), amplitudes), sigma
    )
    target = _Target(problem, place, normal, sigma)
    first, broad = _proposals(problem, ends, normal)
    if problem.definition.curved and problem.definition.n_fibres < 2:
        draws, effective = tempered_draws(broad, target, n_draws, tempering)
    else:
        draws, effective = _weighted(first, broad, target, n_draws, weighing, tempering)
    everywhere = NonlinearParameters(
        place.unit.repeat(n_draws, 1), place.frames.repeat(n_draws, 1, 1, 1)
    )
    return PosteriorSamples(
        _at(problem.definition, everywhere, draws.points.flatten(0, 1)),
        draws.amplitudes.flatten(0, 1).to(place.unit.dtype),
        effective.clamp(max=n_draws),
    )


def _weighted(first, broad, target, n_draws, weighing, tempering):
    """Draws by weights, of a population where these are poor; their effective number (V,)."""
    with part(0.0, _WEIGHED):
        draws, effective = weighted_draws(first, target, n_draws, weighing)
    poor = torch.nonzero(effective < _LEAST_EFFECTIVE * n_draws)[:, 0]
    if len(poor):

        def of_poor(points, voxels, generator):
            return target(points, poor[voxels], generator)

        with part(_WEIGHED, 1.0):
            led, count = tempered_draws(broad.of_voxels(poor), of_poor, n_draws, tempering)
        draws.put((slice(None), poor), led)
        effective[poor] = count.double()
    return draws, effective


@dataclass(frozen=True, eq=False)
class _Target:
    """The posterior, as proposals are weighted with it."""

    problem: SeparableProblem
    place: NonlinearParameters
    normal: GaussianApproximation
    sigma: Tensor

    def __call__(self, points: Tensor, voxels: Tensor, rng: np.random.Generator) -> Particles:
        problem, definition = self.problem, self.problem.definition
        n, n_voxels, _ = points.shape
        uniform = torch.tensor(rng.random((n, 1, len(definition.pools))))
        uniform = uniform.expand(-1, n_voxels, -1).flatten(0, 1)
        flat, rows = points.flatten(0, 1), voxels.repeat(n)
        drawn, values = [], []
        for some in torch.arange(len(flat)).split(
            max(1, _SAMPLES_PER_BLOCK // problem.data.shape[1])
        ):
            own = rows[some]
            columns = problem.columns(_at(definition, self.place.of_voxels(own), flat[some]), own)
            amounts, weights = draw_amplitudes(
                problem, columns, self.normal, self.sigma, uniform[some], own
            )
            drawn.append(amounts)
            values.append(weights.nan_to_num(nan=_NEVER, neginf=_NEVER))
        density = torch.cat(values).reshape(n, n_voxels) + _log_prior(definition, points)
        amplitudes = torch.cat(drawn).unflatten(0, (n, n_voxels))
        return Particles(points, amplitudes, density, torch.zeros_like(density))


def _proposals(problem, ends, normal):
    """Proposals with their shares of the samples, and the broadest one."""
    near = [_around(problem, end, ends[0], normal) for end in ends]
    wide = [StudentMixture(each.centres, _WIDE * each.factor) for each in near]
    one_axis = len(problem.definition.axes) < 2
    scalars = range(ends[0].unit.shape[1] - problem.definition.n_S0_corrections)
    broad = _with_prior(near[0], scalars if one_axis else ())
    shelves = [_with_prior(near[0], (k,)) for k in scalars]
    shares = (_ONE if len(ends) == 1 else _SEVERAL) if one_axis else _FIBRES
    first = [
        (proposal, share / len(proposals))
        for share, proposals in zip(shares, (near, wide, shelves, [broad]), strict=True)
        for proposal in proposals
        if share
    ]
    return first, broad


def _at(definition, place, points):
    """Place of points (V, D): normal coordinates of scalars, then turns from the fit's frames."""
    n = place.unit.shape[1]
    unit = torch.special.ndtr(points[:, :n]).to(place.unit.dtype)
    return apply_step(
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


def _around(problem, end, place, normal):
    """Around an end of a search, in turns from the fit's place."""
    n_scalars = end.unit.shape[1]
    target = normal.values
    columns = problem.columns(end)
    amplitudes, _ = optimal_amplitudes(columns, target)
    slopes = signal_jacobian(problem, end, columns, amplitudes)
    white = project_out_amplitudes(
        columns * normal.inverse_sd[:, None], amplitudes, slopes * normal.inverse_sd[:, None]
    ).double()
    scalars = torch.special.ndtri(end.unit.double().clamp(_INSIDE, 1 - _INSIDE))
    turns = rotations_between(problem.definition, place, end).double()
    size, prior = torch.ones_like(white[..., 0]), torch.ones_like(white[0, :, 0])
    # Of a normal coordinate over its value between 0 and 1.
    size[:, :n_scalars] = torch.exp(-0.5 * scalars**2) / np.sqrt(2 * np.pi)
    prior[n_scalars:] = _PRIOR_OF_TURNS
    white = white * size[..., None]
    covariance = torch.linalg.inv(white @ white.mT + torch.diag(prior))
    factor, _ = torch.linalg.cholesky_ex(covariance)
    return StudentMixture(torch.cat([scalars, turns], dim=1)[None], _NEAR * factor)


def _with_prior(near, free):
    """With the prior of some of the scalars, broader in the others."""
    free = torch.tensor(list(free), dtype=torch.long)
    every = torch.arange(near.factor.shape[1])
    rest = every[~torch.isin(every, free)]
    centres, factor = near.centres.clone(), torch.zeros_like(near.factor)
    centres[..., free], factor[:, free, free] = 0, 1
    part = near.factor[:, rest]
    factor[:, rest[:, None], rest] = _BROAD * torch.linalg.cholesky_ex(part @ part.mT)[0]
    return StudentMixture(centres, factor)
