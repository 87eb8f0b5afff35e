"""The Rician distribution against scipy's, and noise levels from residuals of magnitudes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import rice

from dipy_spinverse.voxels import rician

SNR = np.array([0.0, 0.5, 1.0, 2.0, 5.0, 11.9, 13.0])
# Linear interpolation in a table of steps of 0.01 sigma; two terms of a series beyond it.
TABLE = 1e-5


def magnitudes(signals, sigma, shape=(), seed=0):
    noise = sigma * np.random.default_rng(seed).standard_normal((2, *shape, len(signals)))
    return np.hypot(signals + noise[0], noise[1])


def test_moments_are_those_of_the_distribution():
    expected = rice(SNR)
    np.testing.assert_allclose(rician.rician_mean(3 * SNR, 3.0), 3 * expected.mean(), rtol=1e-10)
    np.testing.assert_allclose(rician.rician_excess(SNR), expected.mean() - SNR, atol=TABLE)
    np.testing.assert_allclose(rician.rician_variance(SNR), expected.var(), atol=20 * TABLE)


def test_likelihoods_are_those_of_the_distribution():
    rng = np.random.default_rng(0)
    signals, sigma = 10 * rng.random((4, 40)), np.array([0.5, 1, 2, 4.0])
    data = rice(signals / sigma[:, None], scale=sigma[:, None]).rvs(random_state=rng)
    arguments = map(torch.as_tensor, (data, signals, sigma))
    found = rician.log_likelihoods(*arguments, rician=True).numpy()
    expected = rice.logpdf(data, signals / sigma[:, None], scale=sigma[:, None])
    # Up to a constant of the data; Bessel functions to 2e-7.
    constant = np.log(data / sigma[:, None] ** 2) - 0.5 * (data / sigma[:, None]) ** 2
    np.testing.assert_allclose(found, (expected - constant).sum(axis=1), atol=1e-4)


def test_information_is_the_variance_of_the_score():
    snr = np.array([1.0, 2.0, 4.0])
    y, step = np.linspace(1e-3, 14, 20_000), 1e-4
    score = (rice.logpdf(y, snr[:, None] + step) - rice.logpdf(y, snr[:, None] - step)) / step / 2
    expected = np.trapezoid(rice.pdf(y, snr[:, None]) * score**2, y, axis=1)
    found = rician.rician_information(torch.as_tensor(snr)).numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-3)  # the table's quadrature


@pytest.mark.parametrize("snr", [1.0, 3.0, 20.0])
def test_the_noise_level_of_magnitudes_is_estimated_without_bias(snr):
    signals, sigma = np.exp(-np.linspace(0, 3, 60)), 1 / snr
    data, many = magnitudes(signals, sigma, (500,)), torch.as_tensor(np.tile(signals, (500, 1)))
    found = rician.rician_noise_from_residual(
        torch.as_tensor(data), many, torch.full((500,), 1.1 * sigma, dtype=torch.float64), 0
    )
    # Three standard errors of 500 levels of 60 degrees of freedom or more: 1.2 %. Each of five
    # iterations halves the error of the first level; where signals are below the noise, less.
    assert found.mean() / sigma == pytest.approx(1, abs=0.012 if snr > 2 else 0.05)


def test_noise_of_gaussian_residuals_has_the_freedom_that_the_fit_leaves():
    rng = np.random.default_rng(0)
    design = rng.normal(size=(30, 6))
    data = rng.normal(scale=2.0, size=(4000, 30))
    residual = data - data @ np.linalg.pinv(design).T @ design.T
    found = rician.noise_from_residual(residual, np.full(4000, 6))
    # The root mean square of 4000 levels of 24 degrees of freedom: 0.2 %.
    assert np.sqrt(np.mean(found**2)) == pytest.approx(2.0, rel=0.008)
