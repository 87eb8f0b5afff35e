"""Adaptive multiple importance sampling [1]_, for posteriors close to their normal approximation.

Samples of the first proposals are weighted with the target over the mixture of all proposals;
where few of them carry the weight, kernels around those that do, by weights tempered to enough of
them, are the next proposal, and all samples are weighted anew. Samples are quasi-random, and
voxels share them: the draws of a voxel do not depend on other voxels.

References
----------
.. [1] Cornuet, Marin, Mira and Robert, Scand. J. Stat. 39 (2012) 798,
   https://doi.org/10.1111/j.1467-9469.2011.00756.x
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import log

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.compartments.posterior.particles import (
    LogTarget,
    Particles,
    StudentMixture,
    effective_size,
    kernel_factor,
    largest_power,
    resampled,
    uniform_cube,
)

# Chosen by hand; coverage of the intervals is measured (benchmarks/notes/compartments.md,
# "Intervals, later").
_N_CENTRES, _LEAST_SAMPLES = 32, 128
_LEAST_EFFICIENCY = 0.45  # effective samples per draw that end the rounds
_TEMPERED_SIZE = 24.0  # effective samples around which kernels are made
_MAX_ROUNDS = 6


def weighted_draws(
    proposals: Sequence[tuple[StudentMixture, float]],
    log_target: LogTarget,
    n_draws: int,
    rng: np.random.Generator,
) -> tuple[Particles, Tensor]:
    """Equally likely draws of the target, and their effective sample size (V,).

    `proposals` are the first ones, with their shares of the samples.
    """
    n, rngs = max(n_draws, _LEAST_SAMPLES), rng.spawn(_MAX_ROUNDS)
    active = torch.arange(len(proposals[0][0].factor))
    mixture = [(proposal, round(share * n)) for proposal, share in proposals]
    particles = _sampled(mixture, mixture, log_target, active, rngs[0])
    draws, effective = _resampled(particles, n_draws, rngs[0])
    for round_rng in rngs[1:]:
        poor = effective[active] < _LEAST_EFFICIENCY * n
        if not poor.any():
            break
        active, particles = active[poor], particles[:, poor]
        mixture = [(proposal.of_voxels(poor), m) for proposal, m in mixture]
        addition = [(_around(particles, round_rng), n // 2)]
        samples = _sampled(addition, mixture + addition, log_target, active, round_rng)
        density = torch.logaddexp(particles.proposal, _log_mixture(addition, particles.points))
        particles = Particles.concatenated([replace(particles, proposal=density), samples])
        mixture += addition
        drawn, effective[active] = _resampled(particles, n_draws, round_rng)
        draws.put((slice(None), active), drawn)
    return draws, effective


def _sampled(proposals, mixture, log_target, voxels, rng):
    """Particles from some proposals, weighted against the mixture of all."""
    n_dimensions, sizes = proposals[0][0].factor.shape[1], [m for _, m in proposals]
    cubes = np.split(uniform_cube(sum(sizes), n_dimensions, rng), np.cumsum(sizes)[:-1])
    points = torch.cat([p.samples(cube) for (p, _), cube in zip(proposals, cubes, strict=True)])
    return replace(log_target(points, voxels, rng), proposal=_log_mixture(mixture, points))


def _log_mixture(mixture, points):
    """Logarithm (N, V) of the sum of the densities times their numbers of samples."""
    return torch.logsumexp(
        torch.stack([log(m) + proposal.log_density(points) for proposal, m in mixture]), dim=0
    )


def _resampled(particles, n_draws, rng):
    """Equally likely particles, and the effective size (V,) of all."""
    log_weights = particles.target - particles.proposal
    rows = resampled(log_weights, n_draws, rng)
    return particles[rows, torch.arange(rows.shape[1])], effective_size(log_weights)


def _around(particles, rng):
    """Kernels around particles, by weights tempered to an effective size."""
    log_weights = particles.target - particles.proposal
    log_weights = largest_power(log_weights, _TEMPERED_SIZE) * log_weights
    share = torch.softmax(log_weights, dim=0)
    deviations = particles.points - (share[..., None] * particles.points).sum(dim=0)
    covariance = torch.einsum("nv,nvp,nvq->vpq", share, deviations, deviations)
    n = effective_size(log_weights).clamp(max=_N_CENTRES)
    rows = resampled(log_weights, _N_CENTRES, rng)
    centres = particles.points[rows, torch.arange(len(n))]
    return StudentMixture(centres, kernel_factor(covariance, n))
