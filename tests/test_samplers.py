"""Samplers of posteriors on densities whose moments are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_t

from dipy_spinverse.compartments.posterior.importance import weighted_draws
from dipy_spinverse.compartments.posterior.particles import (
    Particles,
    StudentMixture,
    effective_size,
    largest_power,
    resampled,
)
from dipy_spinverse.compartments.posterior.tempering import tempered_draws

# Of two voxels: means of two equal normal modes, and their standard deviations.
MEANS, SD = np.array([[[-2.0, 0], [2.0, 1]], [[0.5, 0], [0.5, 0]]]), np.array([0.3, 0.8])


def log_target(points, voxels, rng):
    """Two modes in the first voxel, one in the second."""
    means, sd = torch.as_tensor(MEANS)[voxels], torch.as_tensor(SD)[voxels]
    square = ((points[:, :, None] - means) ** 2).sum(dim=-1) / sd[:, None] ** 2
    target = torch.logsumexp(-0.5 * square, dim=2)
    return Particles(points, points.new_zeros(*target.shape, 1), target, torch.zeros_like(target))


def broad():
    factor = 3 * torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
    return StudentMixture(torch.zeros((1, 2, 2), dtype=torch.float64), factor)


@pytest.mark.parametrize("sampler", ["tempered", "weighted"])
def test_draws_have_the_moments_and_the_modes_of_their_density(sampler):
    rng = np.random.default_rng(1)
    if sampler == "tempered":
        draws, size = tempered_draws(broad(), log_target, 1024, rng)
    else:
        draws, size = weighted_draws([(broad(), 1.0)], log_target, 1024, rng)
    points = draws.points.numpy()
    # Few of the first samples are in a mode, which decides how often it is drawn.
    first = points[:, 0, 0] > 0
    assert first.mean() == pytest.approx(0.5, abs=0.2)
    for mode, mean in ((~first, [-2, 0]), (first, [2, 1])):
        np.testing.assert_allclose(points[mode, 0].mean(axis=0), mean, atol=0.15)
        np.testing.assert_allclose(points[mode, 0].std(axis=0), 0.3, rtol=0.2)
    np.testing.assert_allclose(points[:, 1].mean(axis=0), [0.5, 0], atol=0.12)
    np.testing.assert_allclose(points[:, 1].std(axis=0), 0.8, rtol=0.12)
    assert (size > 300).all() and (size <= 1024 + 1e-6).all()


def test_a_mixture_of_kernels_has_the_density_of_its_samples():
    rng = np.random.default_rng(0)
    centres, factor = rng.normal(size=(3, 1, 2)), np.array([[[1.0, 0], [0.5, 0.7]]])
    mixture = StudentMixture(torch.as_tensor(centres), torch.as_tensor(factor))
    points = rng.normal(size=(5, 1, 2))
    scatter = factor[0] @ factor[0].T
    expected = np.mean(
        [multivariate_t.pdf(points[:, 0], c[0], scatter, df=6) for c in centres], axis=0
    )
    found = mixture.log_density(torch.as_tensor(points))[:, 0]
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-10)


def test_weights_and_copies():
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    log_weights = torch.as_tensor(np.log(weights))[:, None]
    assert effective_size(log_weights)[0] == pytest.approx(1 / (weights**2).sum())
    rows = resampled(log_weights, 1000, np.random.default_rng(0))[:, 0]
    np.testing.assert_allclose(np.bincount(rows), 1000 * weights, atol=1)  # systematic
    power = largest_power(log_weights, 3.6)
    assert effective_size(power * log_weights)[0] == pytest.approx(3.6) and power < 1
    assert largest_power(log_weights, 3.0) == 1


def test_tempering_finds_a_mode_of_a_hundred_thousandth_of_the_area():
    sd = 0.01  # of an initial sd of 3 or more in each of two directions

    def narrow(points, voxels, rng):
        target = -0.5 * ((points - 1) ** 2).sum(dim=2) / sd**2
        return Particles(points, points.new_zeros(*target.shape, 1), target, 0 * target)

    draws, size = tempered_draws(broad(), narrow, 512, np.random.default_rng(0))
    points = draws.points.numpy()
    np.testing.assert_allclose(points.mean(axis=0), 1, atol=0.2 * sd)
    np.testing.assert_allclose(points.std(axis=0), sd, rtol=0.15)  # 3 % of independent draws
    assert (size > 200).all()
