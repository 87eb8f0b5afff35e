"""Posterior of the parameters of voxels, from their fits: the common entry of both samplers.

All values inside the bounds (but see `Parameter.prior_power`), all fractions and all directions
are equally likely a priori. Scalars are sampled in z with u = Phi(z), where a uniform prior is a
standard normal distribution and bounds are infinitely far; axes in the plane tangent to the
sphere at the fit; amplitudes are drawn with each point (`amplitude_draws`).

- `importance` weights samples around the local minima, some of them with the prior of one scalar
  or of all. It suffices where the posterior is close to its normal approximation.
- `tempering` moves samples from the prior of the scalars (and around the fit in the axes) to the
  posterior: where few importance samples carry the weight, and always where the definition says
  that the posterior is curved. With several fibre populations, whose unknowns are too many to
  start from the prior, it starts around the fit in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

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
    Solution,
    gaussian_approximation,
    project_out_amplitudes,
    signal_jacobian,
    solution_at,
)
from dipy_spinverse.compartments.posterior.amplitude_draws import draw_amplitudes
from dipy_spinverse.compartments.posterior.importance import weighted_draws
from dipy_spinverse.compartments.posterior.particles import Particles, StudentMixture
from dipy_spinverse.compartments.posterior.tempering import tempered_draws
from dipy_spinverse.voxels.progress import part

# Widths of proposals, over that of the normal approximation: around the fit, in its wider
# surroundings, and of the other scalars where one has its prior. Twice as wide ones need twice the
# samples for NODDI (benchmarks/notes/compartments.md, "Intervals, later").
_WIDTH, _LARGE_WIDTH, _CONDITIONAL_WIDTH = 1.1, 2.0, 1.4
# Shares of the samples: around the minima, wider, with the prior of one scalar, of all; for one
# minimum, several, and several fibre populations. Chosen there, too.
_ONE_MINIMUM, _SEVERAL_MINIMA = (0.65, 0.15, 0.1, 0.1), (0.4, 0.15, 0.25, 0.2)
_SEVERAL_FIBRES = (0.7, 0.3, 0.0, 0.0)
_LEAST_EFFICIENCY = 0.2  # effective samples per draw below which tempering replaces them; by hand
_ROTATION_PRECISION = 3.0  # of a component of a uniformly distributed axis
_SAMPLES_PER_BLOCK = 200_000  # measurements times samples, for the memory
_MARGIN = 0.02  # from the bounds, of the centres of proposals: bounds are infinitely far in z
_TIME_OF_IMPORTANCE = 0.8  # of the time of all, for the progress bar
_IMPOSSIBLE = -1e30  # log-density where it cannot be computed


@dataclass(frozen=True, eq=False)
class PosteriorSamples:
    """Equally likely parameters and amplitudes (n V, K), voxels varying fastest.

    `effective_size` (V,) is their effective number.
    """

    parameters: NonlinearParameters
    amplitudes: Tensor
    effective_size: Tensor


def sample_posterior(
    problem: SeparableProblem,
    solution: Solution,
    minima: list[NonlinearParameters],
    n_draws: int,
    seed: int,
) -> PosteriorSamples:
    """Draw scalars, axes and amplitudes; `minima` are all local minima, the fit first."""
    importance_rng, tempering_rng = np.random.default_rng(seed).spawn(2)
    parameters, definition = solution.parameters, problem.definition
    gaussian = gaussian_approximation(problem, solution.predicted)
    log_posterior = partial(_log_posterior, problem, parameters, gaussian)
    proposals, broad = _proposals(problem, minima, gaussian)
    if definition.curved and definition.n_fibres < 2:
        draws, effective = tempered_draws(broad, log_posterior, n_draws, tempering_rng)
    else:
        with part(0.0, _TIME_OF_IMPORTANCE):
            draws, effective = weighted_draws(proposals, log_posterior, n_draws, importance_rng)
        poor = torch.nonzero(effective < _LEAST_EFFICIENCY * n_draws)[:, 0]
        if len(poor):
            with part(_TIME_OF_IMPORTANCE, 1.0):
                tempered, size = tempered_draws(
                    broad.of_voxels(poor),
                    lambda points, voxels, rng: log_posterior(points, poor[voxels], rng),
                    n_draws,
                    tempering_rng,
                )
            draws.put((slice(None), poor), tempered)
            effective[poor] = size.double()
    return PosteriorSamples(
        _parameters_at(definition, parameters.repeated(n_draws), draws.points.flatten(0, 1)),
        draws.amplitudes.flatten(0, 1).to(parameters.unit.dtype),
        effective.clamp(max=n_draws),
    )


def _log_posterior(problem, origin, gaussian, points, voxels, rng):
    """Particles at points (N, V, D) of some voxels, with amplitudes drawn: a `LogTarget`."""
    definition = problem.definition
    n, n_voxels, _ = points.shape
    uniform = torch.tensor(rng.random((n, 1, len(definition.pools))))
    uniform = uniform.expand(-1, n_voxels, -1).flatten(0, 1)
    flat_points, voxel_of_row = points.flatten(0, 1), voxels.repeat(n)
    amplitudes, log_densities = [], []
    block = max(1, _SAMPLES_PER_BLOCK // problem.data.shape[1])
    for rows in torch.arange(len(flat_points)).split(block):
        index = voxel_of_row[rows]
        parameters = _parameters_at(definition, origin.of_voxels(index), flat_points[rows])
        basis_signals = problem.basis_signals(parameters, index)
        drawn, log_weights = draw_amplitudes(
            problem, basis_signals, gaussian, uniform[rows], index
        )
        amplitudes.append(drawn)
        log_densities.append(log_weights.nan_to_num(nan=_IMPOSSIBLE, neginf=_IMPOSSIBLE))
    density = torch.cat(log_densities).reshape(n, n_voxels) + _log_prior(definition, points)
    drawn = torch.cat(amplitudes).unflatten(0, (n, n_voxels))
    return Particles(points, drawn, density, torch.zeros_like(density))


def _proposals(problem, minima, gaussian):
    """Proposals with their shares of the samples, and the broadest one."""
    local = [_around(problem, minimum, minima[0], gaussian) for minimum in minima]
    wide = [StudentMixture(p.centres, _LARGE_WIDTH * p.factor) for p in local]
    one_axis = len(problem.definition.axes) < 2
    scalars = range(minima[0].unit.shape[1] - problem.definition.n_S0_corrections)
    broad = _with_prior(local[0], scalars if one_axis else ())
    one_prior = [_with_prior(local[0], (k,)) for k in scalars]
    shares = (_ONE_MINIMUM if len(minima) == 1 else _SEVERAL_MINIMA) if one_axis else (
        _SEVERAL_FIBRES
    )  # fmt: skip
    weighted = [
        (proposal, share / len(proposals))
        for share, proposals in zip(shares, (local, wide, one_prior, [broad]), strict=True)
        for proposal in proposals
        if share
    ]
    return weighted, broad


def _parameters_at(definition, origin, points):
    """Parameters at points (V, D): z of the scalars, then rotations from the frames of the fit."""
    n = origin.unit.shape[1]
    unit = torch.special.ndtr(points[:, :n]).to(origin.unit.dtype)
    step = torch.cat([unit - origin.unit, points[:, n:].to(unit.dtype)], dim=1)
    return apply_step(definition, origin, step)


def _log_prior(definition, points):
    """Normal for scalars whose prior is uniform; uniform on the sphere and around the axis for
    rotations, of which points contain the tangents."""
    n_scalars, n_axes = len(definition.parameters), len(definition.axes)
    scalars = points[..., :n_scalars]
    power = torch.tensor([p.prior_power for p in definition.parameters], dtype=points.dtype)
    result = (power * torch.special.log_ndtr(-scalars) - 0.5 * scalars**2).sum(dim=2)
    tangents = points[..., n_scalars : n_scalars + 2 * n_axes].unflatten(2, (n_axes, 2))
    result = result - 1.5 * torch.log1p((tangents**2).sum(dim=3)).sum(dim=2)
    return result - torch.log1p(points[..., n_scalars + 2 * n_axes :] ** 2).sum(dim=2)


def _around(problem, minimum, origin, gaussian):
    """Normal approximation around a local minimum, in rotations from the fit."""
    n_scalars = minimum.unit.shape[1]
    solution, inverse_sd = solution_at(problem, minimum, gaussian.values), gaussian.inverse_sd
    jacobian = signal_jacobian(problem, solution) * inverse_sd[:, None]
    basis_signals = solution.basis_signals * inverse_sd[:, None]
    jacobian = project_out_amplitudes(basis_signals, solution.amplitudes, jacobian).double()
    scalars = torch.special.ndtri(minimum.unit.double().clamp(_MARGIN, 1 - _MARGIN))
    rotations = rotations_between(problem.definition, origin, minimum).double()
    scale, precision = torch.ones_like(jacobian[..., 0]), torch.ones_like(jacobian[0, :, 0])
    # du/dz
    scale[:, :n_scalars] = torch.exp(-0.5 * scalars**2) / np.sqrt(2 * np.pi)
    precision[n_scalars:] = _ROTATION_PRECISION
    jacobian = jacobian * scale[..., None]
    covariance = torch.linalg.inv(jacobian @ jacobian.mT + torch.diag(precision))
    factor, _ = torch.linalg.cholesky_ex(covariance)
    return StudentMixture(torch.cat([scalars, rotations], dim=1)[None], _WIDTH * factor)


def _with_prior(proposal, free):
    """With the prior of some of the scalars, broader in the others."""
    free = torch.tensor(list(free), dtype=torch.long)
    dimensions = torch.arange(proposal.factor.shape[1])
    dependent = dimensions[~torch.isin(dimensions, free)]
    centres, factor = proposal.centres.clone(), torch.zeros_like(proposal.factor)
    centres[..., free], factor[:, free, free] = 0, 1
    rows = proposal.factor[:, dependent]
    block = torch.linalg.cholesky_ex(rows @ rows.mT)[0]
    factor[:, dependent[:, None], dependent] = _CONDITIONAL_WIDTH * block
    return StudentMixture(centres, factor)
