"""Draws from a distribution by weights of samples from proposals that approach it.

Adaptive multiple importance sampling [1]_: samples of the first proposals are weighted with the
target over the mixture of all proposals; where few of them carry the weight, kernels around those
that do, by weights tempered to enough of them, are the next proposal, and all samples are
weighted anew. Samples are quasi-random, and voxels share them: the draws of a voxel do not depend
on those beside it.

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

from dipy_spinverse.compartments.posterior.population import (
    LogTarget,
    Particles,
    chosen,
    kernel_factor,
    largest_power,
)
from dipy_spinverse.compartments.posterior.proposal import StudentMixture, uniform_cube

_N_CENTRES = 32
_LEAST_SAMPLES = 128
_ENOUGH = 0.45  # effective samples per draw
_TEMPERED = 24.0  # effective samples from which kernels are made
_MOST_ROUNDS = 6


def weighted_draws(
    first: Sequence[tuple[StudentMixture, float]],
    evaluate: LogTarget,
    n_draws: int,
    rng: np.random.Generator,
) -> tuple[Particles, Tensor]:
    """Equally likely draws of the target.

    Parameters
    ----------
    first : sequence
        Proposals to begin with, and their shares of the samples.
    evaluate : Evaluate
    n_draws : int
    rng : numpy Generator

    Returns
    -------
    draws : Population of n_draws members
    effective : Tensor (V,)
        Number of samples that carry the weight.
    """
    n, rngs = max(n_draws, _LEAST_SAMPLES), rng.spawn(_MOST_ROUNDS)
    active = torch.arange(len(first[0][0].factor))
    proposals = [(proposal, round(share * n)) for proposal, share in first]
    population = _sampled(proposals, proposals, evaluate, active, rngs[0])
    draws, effective = _drawn(population, n_draws, rngs[0])
    for round_rng in rngs[1:]:
        left = effective[active] < _ENOUGH * n
        if not left.any():
            break
        active, population = active[left], population[:, left]
        proposals = [(proposal.of_voxels(left), m) for proposal, m in proposals]
        new = [(_around(population, round_rng), n // 2)]
        more = _sampled(new, proposals + new, evaluate, active, round_rng)
        mixture = torch.logaddexp(population.start, _mixture(new, population.points))
        population = replace(population, start=mixture).joined(more)
        proposals += new
        drawn, effective[active] = _drawn(population, n_draws, round_rng)
        draws.put((slice(None), active), drawn)
    return draws, effective


def _sampled(new, proposals, evaluate, voxels, rng):
    """Members from new proposals, whose `start` is the mixture of all."""
    n_dimensions, numbers = new[0][0].factor.shape[1], [m for _, m in new]
    parts = np.split(uniform_cube(sum(numbers), n_dimensions, rng), np.cumsum(numbers)[:-1])
    points = torch.cat([p.samples(part) for (p, _), part in zip(new, parts, strict=True)])
    return replace(evaluate(points, voxels, rng), start=_mixture(proposals, points))


def _mixture(proposals, points):
    """Logarithm (N, V) of the sum of the densities times their numbers of samples."""
    return torch.logsumexp(
        torch.stack([log(m) + proposal.log_density(points) for proposal, m in proposals]), dim=0
    )


def _drawn(population, n_draws, rng):
    """Equally likely members, and the effective number (V,) of all."""
    log_weights = population.target - population.start
    rows = chosen(log_weights, n_draws, rng)
    share = torch.softmax(log_weights, dim=0)
    return population[rows, torch.arange(rows.shape[1])], 1 / (share**2).sum(dim=0)


def _around(population, rng):
    """Kernels around members, by weights that leave enough of them."""
    log_weights = population.target - population.start
    power = largest_power(log_weights, _TEMPERED)
    share = torch.softmax(power * log_weights, dim=0)
    mean = (share[..., None] * population.points).sum(dim=0)
    apart = population.points - mean
    covariance = torch.einsum("nv,nvp,nvq->vpq", share, apart, apart)
    n = (1 / (share**2).sum(dim=0)).clamp(max=_N_CENTRES)
    rows = chosen(power * log_weights, _N_CENTRES, rng)
    return StudentMixture(
        population.points[rows, torch.arange(len(n))], kernel_factor(covariance, n)
    )
