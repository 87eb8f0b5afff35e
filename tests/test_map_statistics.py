"""Means and intervals of maps."""

from __future__ import annotations

import numpy as np
import pytest

from dipy_spinverse.voxels.statistics import dominant_axis, field_statistics, sample_statistics


def test_interval_of_few_fields_holds_the_next_one():
    # Fields and truth from one distribution: the truth is as likely as any field.
    rng = np.random.default_rng(0)
    fields = 10 + rng.standard_normal((6, 20_000))
    found = field_statistics(fields[:5], error=0.0, largest=np.inf)
    covered = ((found["_low"] < fields[5]) & (fields[5] < found["_high"])).mean()
    assert covered == pytest.approx(0.95, abs=0.005)  # three standard errors


@pytest.mark.parametrize(("n", "scatter"), [(1, 0.0), (5, 0.5)])
def test_errors_that_all_fields_share_are_in_the_interval(n, scatter):
    rng = np.random.default_rng(1)
    shared = 10 + rng.standard_normal(20_000)
    truth = shared * (1 + 0.2 * rng.standard_normal(20_000))
    fields = shared + scatter * rng.standard_normal((n, 20_000))
    found = field_statistics(fields, error=0.2, largest=np.inf)
    covered = ((found["_low"] < truth) & (truth < found["_high"])).mean()
    assert covered == pytest.approx(0.95, abs=0.01)  # the weights of the variances are estimates


def test_intervals_stay_within_the_range_of_a_map():
    found = field_statistics(np.array([[0.1, 0.9], [0.5, 0.95], [0.0, 1.0]]), 0.5, largest=1.0)
    assert (found["_low"] >= 0).all() and (found["_high"] <= 1).all()


def test_statistics_of_draws_are_those_of_the_sample():
    draws = np.random.default_rng(2).standard_normal((40_000, 2)) + [3, 5]
    found = sample_statistics(draws)
    np.testing.assert_allclose(found[""], [3, 5], atol=0.02)  # four standard errors
    np.testing.assert_allclose(found["_std"], 1, atol=0.02)
    np.testing.assert_allclose(found["_high"] - found[""], 1.96, atol=0.06)


def test_axes_have_no_sign_and_their_cone_holds_most():
    rng = np.random.default_rng(3)
    axes = np.array([0, 0, 1.0]) + 0.1 * rng.standard_normal((2000, 1, 3))
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    axes *= rng.choice([-1, 1], (2000, 1, 1))
    axis, angle = dominant_axis(np.concatenate([axes, np.zeros((2000, 1, 3))], axis=1))
    np.testing.assert_allclose(axis[0], [0, 0, 1], atol=0.02)  # eight standard errors
    # Rayleigh: 95 % within 0.1 sqrt(2 log 20) = 0.245.
    assert angle[0] == pytest.approx(np.degrees(0.245), rel=0.06)
    assert (axis[1] == 0).all() and angle[1] == 90
