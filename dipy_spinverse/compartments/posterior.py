"""Posterior of the parameters of voxels around their fits.

All values inside the bounds, and all fractions, are equally likely a priori. Scalars are sampled
in z with u = Phi(z), where this prior is a standard normal distribution and bounds are infinitely
far: quasi-random draws of a Student t distribution around the fit, then of one that has the mean
and covariance of these, all weighted by how likely they are; axes likewise, in the plane that
touches the sphere at the fit. For each draw, amplitudes are drawn from a normal distribution
restricted to positive values [1]_: theirs if magnitudes were normal, with the score and the
information that Rician ones have at the fit. The weights are those of the exact likelihood.

References
----------
.. [1] Geweke, Econometrica 57 (1989) 1317, https://doi.org/10.2307/1913710
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import chi2, qmc
from torch import Tensor

from dipy_spinverse.compartments.coordinates import Place, moved
from dipy_spinverse.compartments.rician import (
    log_likelihoods,
    rician_information,
    rician_target,
)
from dipy_spinverse.compartments.variable_projection import (
    Problem,
    combined,
    linearised,
    without_amplitudes,
)

_DEGREES = 5.0
_INFLATION = 1.3
_ROUNDS = (128, 128, 256)
_FARTHEST = 2.4  # z of a fit at its bound


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
    """Draw scalars and amplitudes from their posterior.

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
    generator = np.random.default_rng(seed)
    n_scalars = place.unit.shape[1]
    z = torch.special.ndtri(place.unit).clamp(-_FARTHEST, _FARTHEST)
    inside = Place(torch.special.ndtr(z), place.frames)
    columns, slopes = linearised(problem, inside, amplitudes)
    target = _normal_target(problem, combined(columns, amplitudes), sigma)
    n = slopes.shape[1]
    density = torch.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    slopes[:, :n_scalars] *= density[..., None]
    white = without_amplitudes(target.whiten(columns), amplitudes, target.whiten(slopes))
    prior = torch.ones(n, dtype=z.dtype)
    prior[n_scalars:] = 3.0
    covariance = torch.linalg.inv(white @ white.mT + torch.diag(prior))
    centre = torch.cat([z, z.new_zeros(len(z), n - n_scalars)], dim=1)
    spread = covariance * _INFLATION**2
    mixtures, points, weights, drawn = [], [], [], []
    for size in _ROUNDS if n else (n_draws,):
        mixtures.append((centre, torch.linalg.cholesky_ex(spread)[0]))
        new = _student(mixtures[-1], size, generator)
        evidence, amounts = _evidence(problem, target, sigma, new, place, generator)
        points.append(new)
        weights.append(evidence + _log_prior(problem.definition, new))
        drawn.append(amounts)
        everything, log_weights = torch.cat(points), torch.cat(weights)
        if n:
            log_weights = log_weights - _mixture_density(mixtures, points, everything)
            centre, spread = _moments(everything, log_weights)
    share = torch.softmax(log_weights, dim=0)
    return _resampled(problem.definition, place, everything, torch.cat(drawn), share, n_draws)


def _log_prior(definition, points):
    """Normal for scalars, uniform on the sphere and around the axis for turns, whose tangents
    points hold."""
    n_scalars, n_axes = len(definition.parameters), len(definition.axes)
    result = -0.5 * (points[..., :n_scalars] ** 2).sum(dim=2)
    tangents = points[..., n_scalars : n_scalars + 2 * n_axes].unflatten(2, (n_axes, 2))
    result = result - 1.5 * torch.log1p((tangents**2).sum(dim=3)).sum(dim=2)
    return result - torch.log1p(points[..., n_scalars + 2 * n_axes :] ** 2).sum(dim=2)


@dataclass(frozen=True, eq=False)
class _Target:
    """Normal approximation of the likelihood, data (V, M) and inverse sd (V, M)."""

    data: Tensor
    inverse_sd: Tensor

    def whiten(self, signals):
        return signals * self.inverse_sd[:, None]


def _normal_target(problem, predicted, sigma):
    if problem.sigma is None:
        return _Target(problem.data, (1 / sigma[:, None]).expand_as(problem.data))
    score = rician_target(problem.data, predicted, sigma) - predicted
    information = rician_information(predicted / sigma[:, None])
    return _Target(predicted + score / information, torch.sqrt(information) / sigma[:, None])


def _student(mixture, size, generator):
    centre, factor = mixture
    n = centre.shape[1]
    cube = torch.tensor(qmc.Sobol(n + 1, rng=generator).random(size))
    normal = torch.special.ndtri(cube[:, :n].clamp(1e-6, 1 - 1e-6))
    scale = np.sqrt(_DEGREES / chi2.ppf(cube[:, n].clamp(1e-6, 1 - 1e-6), _DEGREES))
    step = (normal * torch.tensor(scale)[:, None]).to(centre.dtype)
    return centre + torch.einsum("vpq,nq->nvp", factor, step)


def _mixture_density(mixtures, points, everything):
    """Logarithm of the average density (N, V) that the draws come from."""
    total = sum(len(p) for p in points)
    parts = []
    for (centre, factor), own in zip(mixtures, points, strict=True):
        white = torch.linalg.solve_triangular(
            factor, (everything - centre).movedim(0, 2), upper=False
        )
        p = centre.shape[1]
        log_det = torch.log(torch.diagonal(factor, dim1=1, dim2=2)).sum(dim=1)
        square = (white**2).sum(dim=1).T
        parts.append(
            np.log(len(own) / total)
            - log_det
            - 0.5 * (_DEGREES + p) * torch.log1p(square / _DEGREES)
        )
    return torch.logsumexp(torch.stack(parts), dim=0)


def _moments(points, log_weights):
    """Mean and covariance of weighted draws, the weights flattened where few carry them."""
    n = points.shape[2]
    power = torch.ones_like(log_weights[0])
    for _ in range(6):
        share = torch.softmax(power * log_weights, dim=0)
        few = 1 / (share**2).sum(dim=0) < 6 * n
        power = torch.where(few, 0.6 * power, power)
    share = torch.softmax(power * log_weights, dim=0)
    mean = torch.einsum("nv,nvp->vp", share, points)
    apart = points - mean
    covariance = torch.einsum("nv,nvp,nvq->vpq", share, apart, apart)
    return mean, covariance * 1.1 + 1e-6 * torch.eye(n, dtype=mean.dtype)


def _evidence(problem, target, sigma, points, place, generator):
    """One draw of amplitudes (N, V, K) for each point, and logarithms (N, V) of its weight.

    Amplitudes come from the normal approximation; the weight is the likelihood over their density.
    """
    weights, draws = [], []
    n_pools = len(problem.definition.pools)
    cube = qmc.Sobol(n_pools, rng=generator).random(len(points))
    whitened_data = (target.data * target.inverse_sd)[..., None]
    rician = problem.sigma is not None
    for point, uniform in zip(points, torch.tensor(cube, dtype=points.dtype), strict=True):
        columns = problem.columns(_at(problem.definition, place, point))
        white = target.whiten(columns)
        gram = white @ white.mT
        diagonal = torch.diagonal(gram, dim1=1, dim2=2)
        gram = gram + torch.diag_embed(1e-7 * diagonal + 1e-12)
        factor, _ = torch.linalg.cholesky_ex(gram)
        best = torch.cholesky_solve(white @ whitened_data, factor)[..., 0]
        amplitudes, log_chance = _positive(best, factor, uniform)
        apart = ((amplitudes - best)[:, None] @ factor)[:, 0]
        log_det = torch.log(torch.diagonal(factor, dim1=1, dim2=2)).sum(dim=1)
        log_density = log_det - 0.5 * (apart**2).sum(dim=1) - log_chance
        likelihood = log_likelihoods(problem.data, combined(columns, amplitudes), sigma, rician)
        # Alike are S0 and fractions, not amplitudes: they have the density S0^(1 - K).
        prior = (1 - n_pools) * torch.log(amplitudes.sum(dim=1).clamp_min(1e-12))
        weights.append(likelihood - log_density + prior)
        draws.append(amplitudes)
    return torch.stack(weights), torch.stack(draws)


def _at(definition, place, point):
    """Place of a point (V, N): normal coordinates of scalars, then turns from the fit's frames."""
    n = place.unit.shape[1]
    unit = torch.special.ndtr(point[:, :n])
    return moved(definition, place, torch.cat([unit - place.unit, point[:, n:]], dim=1))


def _positive(mean, factor, uniform):
    """Normal draws of precision L L^T restricted to positive values, one after the other.

    The last is conditioned on nothing, each before on those after it: L^T (w - mean) is standard
    normal. The logarithm of the product of their chances to be positive weights the draw.
    """
    k = mean.shape[1]
    offset = torch.zeros_like(mean)
    log_chance = torch.zeros_like(mean[:, 0])
    amplitudes = torch.zeros_like(mean)
    for j in range(k - 1, -1, -1):
        precision = factor[:, j, j]
        later = (factor[:, j + 1 :, j] * offset[:, j + 1 :]).sum(dim=1)
        conditional = mean[:, j] - later / precision
        bound = (conditional * precision).clamp(-30, 30)
        log_chance = log_chance + torch.special.log_ndtr(bound)
        # Upper tail: draws stay accurate where the chance is small.
        tail = torch.special.ndtr(bound) * (1 - uniform[j])
        step = -torch.special.ndtri(tail.clamp_min(1e-30))
        step = torch.where(bound < -5, -bound - torch.log1p(-uniform[j]) / bound.abs(), step)
        amplitudes[:, j] = (conditional + step / precision).clamp_min(0)
        offset[:, j] = amplitudes[:, j] - mean[:, j]
    return amplitudes, log_chance


def _resampled(definition, place, points, amplitudes, share, n_draws):
    """Equally likely draws."""
    n_points, n_voxels, n = points.shape
    position = (torch.arange(n_draws, dtype=share.dtype) + 0.5) / n_draws
    total = torch.cumsum(share, dim=0).T.contiguous()
    index = torch.searchsorted(total, position.expand(n_voxels, -1).contiguous())
    index = index.clamp(max=n_points - 1).T
    column = torch.arange(n_voxels)
    chosen = points[index, column].reshape(n_draws * n_voxels, n)
    everywhere = Place(place.unit.repeat(n_draws, 1), place.frames.repeat(n_draws, 1, 1, 1))
    return Draws(
        _at(definition, everywhere, chosen),
        amplitudes[index, column].flatten(0, 1),
        1 / (share**2).sum(dim=0),
    )
