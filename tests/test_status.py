"""Status of voxels: rates of false rejection of noise, and which voxels can be fitted at all."""

from __future__ import annotations

import numpy as np
import pytest

from dipy_spinverse.voxels import Status
from dipy_spinverse.voxels.noise import KNOWN
from dipy_spinverse.voxels.status import (
    FALSE_REJECTION_RATE,
    birge_variance,
    explains_nothing,
    is_noise_only,
    outcome,
    rejected_by_worst_group,
    status_before_fit,
    unknown_noise_variance,
)

N = 200_000


def mean_squares(freedom, n=N, n_groups=1, seed=0):
    """Mean squares (n, n_groups) of standard normal residuals."""
    return np.random.default_rng(seed).chisquare(freedom, (n, n_groups)) / freedom


def test_a_zero_is_a_signal_and_zeros_are_none():
    signals = np.array([[1, 0.0, 0.5], [0, 0, 0], [1, np.nan, 0], [1, np.inf, 0], [0, 1, 1]])
    with pytest.warns(UserWarning, match="4 of 5 voxels cannot be fitted"):
        status = status_before_fit(signals, signals[:, 0])
    assert status.tolist() == [
        Status.CONVERGED, Status.NO_SIGNAL, Status.BAD_SAMPLES, Status.BAD_SAMPLES, Status.NO_B0,
    ]  # fmt: skip


def test_noise_is_rejected_at_half_the_rate_by_the_sum_of_squares():
    residual = mean_squares(20)[:, 0]
    status = outcome(np.ones(N, dtype=bool), residual, 5, KNOWN, 25)
    # Four standard errors of a count: 4 sqrt(100) of 100.
    assert abs(np.mean(status == Status.MISFIT) * N - FALSE_REJECTION_RATE / 2 * N) < 40
    # The noise level from 15 other measurements: the ratio has an F distribution.
    noise = mean_squares(15, seed=1)[:, 0]
    status = outcome(np.ones(N, dtype=bool), residual / noise, 5, 15, 25)
    assert abs(np.mean(status == Status.MISFIT) * N - FALSE_REJECTION_RATE / 2 * N) < 40


def test_a_fit_that_stopped_early_has_converged_if_the_residual_is_that_of_noise():
    status = outcome(np.zeros(3, dtype=bool), np.array([0.9, 1.7, 9.0]), 5, KNOWN, 25)
    assert status.tolist() == [Status.CONVERGED, Status.NOT_CONVERGED, Status.MISFIT]


@pytest.mark.parametrize("n_groups", [1, 10])
def test_the_worst_of_several_groups_rejects_noise_as_rarely_as_one(n_groups):
    worst = mean_squares(12, n_groups=n_groups).max(axis=1)
    rejected = rejected_by_worst_group(worst, 12, np.full(N, n_groups), KNOWN)
    assert abs(rejected.sum() - FALSE_REJECTION_RATE / 2 * N) < 40
    assert not rejected_by_worst_group(np.full(2, 99.0), 12, np.zeros(2), KNOWN).any()


def test_a_voxel_of_noise_is_dark_and_does_not_decay():
    rng = np.random.default_rng(0)
    b0 = np.arange(66) % 2 == 0
    true = np.zeros((4, 66))
    true[1] = np.where(b0, 10.0, 0.0)  # tissue that has decayed
    true[2] = 10.0  # bright, but water that hardly moves
    true[3] = np.where(b0, 2.4, 0.0)  # dark, but decaying
    true = np.repeat(true, 500, axis=0)
    signals = np.hypot(true + rng.normal(size=true.shape), rng.normal(size=true.shape))
    noise = is_noise_only(signals, b0, np.ones(len(true)), KNOWN, np.ones(66))
    shares = noise.reshape(4, 500).mean(axis=1)
    assert shares[0] > 0.99 and (shares[1:3] == 0).all() and shares[3] < 0.05
    assert not is_noise_only(signals, b0, np.ones(len(true)), 0, np.ones(66)).any()


def test_intervals_grow_where_the_residual_does_and_noise_alone_leaves_them():
    residual = mean_squares(30)[:, 0]
    grown = birge_variance(residual, 30)
    assert abs((grown > 1).sum() - FALSE_REJECTION_RATE / 2 * N) < 40
    assert birge_variance(np.array([4.0]), 30) == 4
    # A shell of 10 measurements that is far off, in a sum of squares that is not.
    assert birge_variance(np.array([1.5]), 60, 6.0, 10, 3) == 1.5
    assert birge_variance(np.array([1.5]), 60, 6.0, 10, 0) == 1


@pytest.mark.parametrize("freedom", [3, 10])
def test_intervals_of_an_unknown_noise_level_cover_95_percent(freedom):
    error = np.random.default_rng(2).normal(size=N)
    half_width = 1.96 * np.sqrt(unknown_noise_variance(freedom) * mean_squares(freedom)[:, 0])
    assert np.mean(abs(error) < half_width) == pytest.approx(0.95, abs=0.002)  # 4 standard errors


def test_a_model_explains_nothing_that_is_no_better_than_a_constant():
    scatter, S0 = np.array([1.0, 1.0, 1e-5]), 1.0
    assert explains_nothing(np.array([0.95, 0.5, 1e-5]), scatter, S0).tolist() == [
        True,
        False,
        False,
    ]
