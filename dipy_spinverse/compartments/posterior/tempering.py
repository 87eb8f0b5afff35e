"""Sequential Monte Carlo [1]_, for posteriors with several modes or on long curved ridges.

Particles are drawn from an initial distribution, then weighted and copied by a power of target
over initial density that grows from 0 to 1, in steps that leave most of them effective, so that no
mode is lost before it has been compared with the others. After each step they move: either half is
offered draws from a kernel density of the other half, accepted by the Metropolis-Hastings rule.
Such moves cross between separate modes and follow curved ridges, and need no step length.

The target may be random with the right mean (pseudo-marginal [2]_). All voxels share their random
numbers: the draws of a voxel do not depend on other voxels.

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

from dipy_spinverse.compartments.posterior.particles import (
    LogTarget,
    Particles,
    StudentMixture,
    kernel_factor,
    largest_power,
    resampled,
    uniform_cube,
)
from dipy_spinverse.voxels.progress import part, report_progress, stepwise

# 8192 initial particles cover 95 % of the truths of NEXI, 2048 93 %; population, share, and moves
# were chosen there, too (benchmarks/notes/compartments.md, "NEXI").
_N_INITIAL, _N_PARTICLES = 8192, 128
_EFFECTIVE_SHARE = 0.7  # of the particles, after each rise of the power
# Moves; with a quarter of them NEXI at SNR 300 covers 85 to 91 % instead of 90 to 95 % (rows
# nexi_gains_timing and nexi_echo_times of benchmarks.real_inputs).
_BURN_IN, _THINNING = 64, 8
_MAX_STEPS = 80
_KERNEL_DEGREES = 8.0  # of freedom of Student t kernels
_TIME_OF_START, _TIME_OF_RISE = 0.25, 0.6  # of the time of all, for the progress bar
_DECADES = 4.0  # of the power, in about equal times


def tempered_draws(
    initial: StudentMixture,
    log_target: LogTarget,
    n_draws: int,
    rng: np.random.Generator,
) -> tuple[Particles, Tensor]:
    """Equally likely draws of the target, and their effective sample size (V,)."""
    rise_rng, move_rng = rng.spawn(2)
    voxels = torch.arange(len(initial.factor))

    def evaluate(points, voxels, generator):
        particles = log_target(points, voxels, generator)
        return replace(particles, proposal=initial.of_voxels(voxels).log_density(points))

    points = initial.samples(uniform_cube(_N_INITIAL, initial.factor.shape[1], rng))
    particles = evaluate(points, voxels, rise_rng)
    with part(_TIME_OF_START, _TIME_OF_RISE):
        particles = _tempered(particles, evaluate, rise_rng)
    power, draws = torch.ones(len(voxels), dtype=torch.float64), []
    with part(_TIME_OF_RISE, 1.0):
        for move in stepwise(range(_BURN_IN + _THINNING * -(-n_draws // _N_PARTICLES))):
            _move(particles, power, evaluate, voxels, move_rng)
            if move >= _BURN_IN and (move - _BURN_IN) % _THINNING == _THINNING - 1:
                draws.append(particles.copy())
    samples = Particles.concatenated(draws)[:n_draws]
    return samples, _size_without_copies(samples.target)


def _tempered(particles, evaluate, rng):
    """Particles of the target, from many of the initial distribution."""
    n_voxels = particles.points.shape[1]
    result = particles[:_N_PARTICLES].copy()
    power = torch.zeros(n_voxels, dtype=torch.float64)
    active = torch.arange(n_voxels)
    for step in range(_MAX_STEPS):
        log_ratio = particles.target - particles.proposal
        remaining = rise = 1 - power
        if step < _MAX_STEPS - 1:
            rise = largest_power(log_ratio, _EFFECTIVE_SHARE * _N_PARTICLES, remaining)
        power = power + rise
        rows = resampled(rise * log_ratio, _N_PARTICLES, rng)
        particles = particles[rows, torch.arange(len(active))]
        _move(particles, power, evaluate, active, rng)
        result.put((slice(None), active), particles)
        unfinished = rise < remaining
        # The power grows by factors.
        progress = (1 + torch.log10(power) / _DECADES).clamp(0, 1).sum() + n_voxels - len(active)
        report_progress(float(progress / n_voxels))
        active, power, particles = active[unfinished], power[unfinished], particles[:, unfinished]
        if len(active) == 0:
            break
    return result


def _move(particles, power, evaluate, voxels, rng):
    """Offer each half draws from a kernel density of the other."""
    n, _, n_dimensions = particles.points.shape
    halves = torch.tensor(rng.permutation(n).reshape(2, -1))
    for moving, fixed in (halves, halves.flip(0)):
        current, centres = particles[moving], particles.points[fixed]
        deviations = centres - centres.mean(dim=0)
        covariance = torch.einsum("nvp,nvq->vpq", deviations, deviations) / len(centres)
        factor = kernel_factor(covariance, len(centres))
        kernel = StudentMixture(centres, factor, _KERNEL_DEGREES)
        normal = rng.standard_normal((n // 2, n_dimensions))
        scale = np.sqrt(_KERNEL_DEGREES / rng.chisquare(_KERNEL_DEGREES, (n // 2, 1)))
        step = torch.einsum("vpq,nq->nvp", factor, torch.tensor(normal * scale))
        trial = evaluate(centres[rng.permutation(n // 2)] + step, voxels, rng)
        log_ratio = power * (trial.target - current.target)
        log_ratio = log_ratio + (1 - power) * (trial.proposal - current.proposal)
        log_ratio = log_ratio + kernel.log_density(current.points)
        log_ratio = log_ratio - kernel.log_density(trial.points)
        accepted = torch.tensor(np.log(rng.random((n // 2, 1)))) < log_ratio
        rows, columns = torch.nonzero(accepted, as_tuple=True)
        particles.put((moving[rows], columns), trial[rows, columns])


def _size_without_copies(target):
    """n^2 / sum of squared numbers of copies (V,), draws with equal target (N, V) being copies."""
    ordered = target.T.sort(dim=1).values.contiguous()
    copies = torch.searchsorted(ordered, ordered, right=True) - torch.searchsorted(
        ordered, ordered
    )
    return len(target) ** 2 / copies.sum(dim=1)
