"""Draws from a distribution by a population that is led to it from another one.

Sequential Monte Carlo [1]_: members are drawn from a start distribution, then weighted and copied
by a power of target over start that grows from 0 to 1, in steps after which most of them still
count, so that no part of the start is lost before it has been compared with the others.
After each step they move: either half is offered draws from a kernel density of the other half,
accepted by the Metropolis-Hastings rule. Such moves cross between parts that lie apart and follow
bent ridges, and need no step length.

The target may be a random value whose mean is right (pseudo-marginal [2]_). All voxels share
their random numbers: the draws of a voxel do not depend on those beside it.

References
----------
.. [1] Del Moral, Doucet and Jasra, J. R. Stat. Soc. B 68 (2006) 411,
   https://doi.org/10.1111/j.1467-9868.2006.00553.x
.. [2] Andrieu and Roberts, Ann. Stat. 37 (2009) 697, https://doi.org/10.1214/07-AOS574
"""

from __future__ import annotations

from dataclasses import replace

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
from dipy_spinverse.voxels.progress import part, stepwise, tell

_N_FIRST = 8192
_N_MEMBERS = 128
_EFFECTIVE = 0.7
_MOST_STEPS = 80
_DEGREES = 8.0  # of freedom of the kernels, Student t distributions
_SETTLING = 16  # moves before the first draw that is kept
_APART = 2  # moves between draws that are kept
_BEGUN, _COOLED = 0.25, 0.6  # of the time that all take
_DECADES = 4.0  # of the power, in about equal times


def tempered_draws(
    start: StudentMixture,
    evaluate: LogTarget,
    n_draws: int,
    rng: np.random.Generator,
) -> tuple[Particles, Tensor]:
    """Equally likely draws of the target.

    Parameters
    ----------
    start : Proposal
    evaluate : Evaluate
    n_draws : int
    rng : numpy Generator

    Returns
    -------
    draws : Population of n_draws members
    effective : Tensor (V,)
        Number of draws, less for copies: n^2 / sum of squared numbers of copies.
    """
    cooling, moving = rng.spawn(2)
    voxels = torch.arange(len(start.factor))

    def from_start(points, voxels, generator):
        found = evaluate(points, voxels, generator)
        return replace(found, start=start.of_voxels(voxels).log_density(points))

    first = start.samples(uniform_cube(_N_FIRST, start.factor.shape[1], rng))
    population = from_start(first, voxels, cooling)
    with part(_BEGUN, _COOLED):
        population = _cooled(population, from_start, cooling)
    power, kept = torch.ones(len(voxels), dtype=torch.float64), []
    with part(_COOLED, 1.0):
        for move in stepwise(range(_SETTLING + _APART * -(-n_draws // _N_MEMBERS))):
            _move(population, power, from_start, voxels, moving)
            if move >= _SETTLING and (move - _SETTLING) % _APART == _APART - 1:
                kept.append(population.copy())
    columns = zip(*(vars(each).values() for each in kept), strict=True)
    draws = Particles(*(torch.cat(column)[:n_draws] for column in columns))
    return draws, _effective(draws.target)


def _cooled(population, evaluate, rng):
    """Members of the target, from many of the start."""
    n_voxels = population.points.shape[1]
    result = population[:_N_MEMBERS].copy()
    power = torch.zeros(n_voxels, dtype=torch.float64)
    active = torch.arange(n_voxels)
    for step in range(_MOST_STEPS):
        log_ratio = population.target - population.start
        left = 1 - power
        rise = left
        if step < _MOST_STEPS - 1:
            rise = largest_power(log_ratio, _EFFECTIVE * _N_MEMBERS, left)
        power = power + rise
        rows = chosen(rise * log_ratio, _N_MEMBERS, rng)
        population = population[rows, torch.arange(len(active))]
        _move(population, power, evaluate, active, rng)
        result.put((slice(None), active), population)
        going_on = rise < left
        # The power grows by factors.
        way = (1 + torch.log10(power) / _DECADES).clamp(0, 1).sum() + n_voxels - len(active)
        tell(float(way / n_voxels))
        active, power, population = active[going_on], power[going_on], population[:, going_on]
        if len(active) == 0:
            break
    return result


def _move(population, power, evaluate, voxels, rng):
    """Offer each half draws from a kernel density of the other."""
    n, _, n_dimensions = population.points.shape
    halves = torch.tensor(rng.permutation(n).reshape(2, -1))
    for moving, others in (halves, halves.flip(0)):
        old, centres = population[moving], population.points[others]
        apart = centres - centres.mean(dim=0)
        covariance = torch.einsum("nvp,nvq->vpq", apart, apart) / len(centres)
        factor = kernel_factor(covariance, len(centres))
        normal = rng.standard_normal((n // 2, n_dimensions))
        scale = np.sqrt(_DEGREES / rng.chisquare(_DEGREES, (n // 2, 1)))
        step = torch.einsum("vpq,nq->nvp", factor, torch.tensor(normal * scale))
        new = evaluate(centres[rng.permutation(n // 2)] + step, voxels, rng)
        gain = power * (new.target - old.target) + (1 - power) * (new.start - old.start)
        gain = gain + _log_density(old.points, centres, factor)
        gain = gain - _log_density(new.points, centres, factor)
        accepted = torch.tensor(np.log(rng.random((n // 2, 1)))) < gain
        rows, columns = torch.nonzero(accepted, as_tuple=True)
        population.put((moving[rows], columns), new[rows, columns])


def _log_density(points, centres, factor):
    """Logarithm (N, V) of the kernel density, up to a constant."""
    middle = centres.mean(dim=0)
    white, at = (
        torch.linalg.solve_triangular(factor, (each - middle).permute(1, 2, 0), upper=False)
        for each in (points, centres)
    )
    square = (white**2).sum(dim=1)[:, :, None] + (at**2).sum(dim=1)[:, None] - 2 * white.mT @ at
    exponent = -0.5 * (_DEGREES + points.shape[2])
    return torch.logsumexp(exponent * torch.log1p(square.clamp_min(0) / _DEGREES), dim=2).T


def _effective(values):
    """Effective number (V,) of draws that are copies where their values (N, V) are equal."""
    ordered = values.T.sort(dim=1).values.contiguous()
    copies = torch.searchsorted(ordered, ordered, right=True) - torch.searchsorted(
        ordered, ordered
    )
    return len(values) ** 2 / copies.sum(dim=1)
