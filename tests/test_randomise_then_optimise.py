"""Weights of randomise-then-optimise against quadrature, and their resampling."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import kstest, norm
from scipy.stats import t as student

from dipy_spinverse.packed_cells.likelihood import tissue_data
from dipy_spinverse.packed_cells.randomise_then_optimise import (
    _log_weights,
    _noise_scale,
    _randomised,
    _resampled,
)

SIGMA, MEASURED, N = 0.5, 0.3, 4000


def _estimates(signal, slope):
    """Minima (N, 1), by Newton's method, for randomised data of one parameter."""
    noise, prior_mean = np.random.default_rng(0).standard_normal((2, N))
    z = prior_mean.copy()
    for _ in range(200):
        residual = (signal(z) - MEASURED - SIGMA * noise) / SIGMA
        gradient = residual * slope(z) / SIGMA + z - prior_mean
        z -= 0.5 * gradient / (1 + (slope(z) / SIGMA) ** 2)
    return z[:, None]


def _means(signal, slope):
    """Mean of the estimates, that with their weights, and the posterior's by quadrature."""

    def expansion(z, frames, voxel):
        residual, j = (signal(z[:, 0]) - MEASURED) / SIGMA, slope(z[:, 0]) / SIGMA
        cost = 0.5 * (residual**2 + z[:, 0] ** 2)
        return cost, (residual * j + z[:, 0])[:, None], (1 + j**2)[:, None, None]

    z = _estimates(signal, slope)
    weight, _ = _log_weights(SimpleNamespace(expansion=expansion), z, None, np.zeros(N, int))
    weight = np.exp(weight - weight.max())
    grid = np.linspace(-6, 6, 4001)
    density = np.exp(-expansion(grid[:, None], None, None)[0])
    return z.mean(), (weight @ z[:, 0]) / weight.sum(), density @ grid / density.sum()


def test_weights_remove_most_of_the_bias_of_convex_signals():
    unweighted, weighted, true = _means(np.exp, np.exp)
    # The formula neglects the second derivatives of the signal.
    assert abs(weighted - true) < 0.3 * abs(unweighted - true)
    assert abs(unweighted - true) > 0.1


def test_searches_of_linear_signals_have_equal_weights():
    unweighted, weighted, true = _means(lambda z: 0.7 * z, lambda z: np.full_like(z, 0.7))
    assert weighted == pytest.approx(unweighted, abs=1e-12)
    # Standard error of a mean of 4000 samples with a standard deviation of 0.58.
    assert unweighted == pytest.approx(true, abs=0.03)


def test_searches_are_resampled_by_their_weights_within_each_voxel():
    voxel = np.array([1, 0, 1, 0, 1])
    weight = np.array([0.25, 0.5, 0.25, 0.5, 0.5])
    samples = np.repeat([0, 1], [10, 20])[np.random.default_rng(1).permutation(30)]
    search = _resampled(np.log(weight), voxel, samples)
    assert (voxel[search] == samples).all()
    assert np.bincount(search).tolist() == [5, 5, 5, 5, 10]


def test_a_search_without_any_weight_of_a_voxel_gives_no_sample():
    search = _resampled(np.array([0.0, -800.0, -1000.0]), np.array([0, 0, 1]), np.array([0, 0, 1]))
    assert search.tolist() == [0, 0, 2]


def test_randomised_noise_of_an_estimated_level_has_students_distribution():
    rng, n, freedom, sigma = np.random.default_rng(0), 8000, 4, 0.1
    data = tissue_data(np.ones((1, 10)), np.full(1, sigma), np.zeros(10, int), np.ones(10, bool))
    for known, right, wrong in ((False, student(freedom), norm), (True, norm, student(freedom))):
        scale = _noise_scale(known, freedom, n, rng)
        noise = rng.standard_normal((n, 10))
        found = _randomised(data, np.zeros(n, int), noise, np.zeros((n, 1)), scale).measured
        # One measurement, since all of a sample share its factor.
        change = (found[:, 3] - 1) / sigma
        assert kstest(change, right.cdf).pvalue > 0.01 > 100 * kstest(change, wrong.cdf).pvalue
