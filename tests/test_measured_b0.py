"""b0 volumes have a small b: signals are those of the measured b, whatever the threshold."""

from __future__ import annotations

import numpy as np
import pytest
from compartment_cases import directions
from dipy.core.gradients import gradient_table

from dipy_spinverse import Acquisition, IVIMModel, PackedCellsModel, simulate
from dipy_spinverse.acquisition import TensorAcquisition
from dipy_spinverse.acquisition.encodings import concatenate
from dipy_spinverse.compartments import Compartment, Parameter, compose
from dipy_spinverse.grid import bcc_grid
from dipy_spinverse.voxels.noise import noise_before_fit

TIMES = {"small_delta": 10.0, "big_delta": 30.0}
B_OF_B0 = 0.055  # ms/um^2, as in the 7 T protocol of the Human Connectome Project


def scan(b_of_b0=B_OF_B0, directed=True):
    """Twelve b0 volumes and two shells, with a threshold above the b of the former."""
    b = np.r_[np.full(12, b_of_b0), np.full(30, 1.0), np.full(30, 2.5)]
    vectors = directions(len(b))
    vectors[:12] *= directed
    return Acquisition(b, vectors, **TIMES, b0_threshold=0.06)


def stick_and_ball(acquisition, fraction, axis, along=1.7, free=3.0):
    """Signals in closed form; b0 volumes without a direction have the average over directions."""
    b, cosine = acquisition.b, acquisition.directions @ axis
    stick = np.exp(-b * along * cosine**2)
    nodes, weights = np.polynomial.legendre.leggauss(30)
    average = np.exp(-np.outer(b, along * nodes**2)) @ weights / 2
    stick = np.where(acquisition.directions.any(axis=1), stick, average)
    return fraction * stick + (1 - fraction) * np.exp(-b * free)


@pytest.mark.parametrize("directed", [True, False])
def test_fractions_are_unbiased_whatever_the_b_of_b0_volumes(directed):
    acquisition = scan(directed=directed)
    model = compose(
        acquisition,
        [
            Compartment("stick", "neurites", {"diffusivity": "along"}),
            Compartment("ball", "water", {"diffusivity": 3.0}),
        ],
        [Parameter("along", 0.5, 3.0, "mm^2/s")],
        maps=("water",),
    )
    data = 100 * stick_and_ball(acquisition, 0.7, np.array([0.0, 0.6, 0.8]))
    fit = model.fit(data, sigma=0.1, n_draws=0)
    # With b0 taken for b = 0 it is 0.24.
    assert fit.water == pytest.approx(0.3, abs=1e-3)
    assert fit.S0 == pytest.approx(100, rel=1e-3)


def test_ivim_is_exact_with_the_b0_threshold_of_dipy():
    b = np.r_[np.zeros(4), 10, 20, 30, 40, 60, 80, 100, 150, 200, 400, 600, 800]
    gtab = gradient_table(b, bvecs=directions(len(b)), b0_threshold=50)
    data = 0.14 * np.exp(-b * 0.015) + 0.86 * np.exp(-b * 1e-3)
    fit = IVIMModel(gtab).fit(data, sigma=1e-4, n_draws=0)
    assert fit.perfusion_fraction == pytest.approx(0.14, abs=1e-3)  # else 0.05 too small


@pytest.mark.filterwarnings("ignore:The acquisition hardly determines")
def test_ivim_needs_a_small_b():
    b = np.r_[0, 0, 300, 500, 700, 900]
    gtab = gradient_table(b, bvecs=directions(len(b)), b0_threshold=0)
    with pytest.raises(ValueError, match="no b between 0 and 200"):
        IVIMModel(gtab)


def test_packed_cells_predict_the_decay_of_b0_volumes():
    acquisition = scan()
    fit = PackedCellsModel(acquisition).fit(np.exp(-3 * acquisition.b), sigma=0.02, n_draws=0)
    decay = fit.predict()[:12].mean() / fit.S0_hat
    assert decay == pytest.approx(np.exp(-3 * B_OF_B0), abs=0.01)


def test_simulated_b0_volumes_decay_with_their_b():
    acquisition = scan().subset(slice(12))
    grid = bcc_grid(3, 4.0)
    open_faces = np.full(grid.n_faces, 1e6)
    signals = simulate(acquisition, grid, open_faces, diffusivity=2.0)
    # Exact to 1 % of the decay on cubes of 4 um.
    np.testing.assert_allclose(signals, np.exp(-B_OF_B0 * 2.0), atol=0.002)


def test_only_b0_of_the_same_weighting_count_as_repeats_of_noise():
    b = np.r_[np.repeat([0.0, 0.02, 0.04], 20), np.ones(20)]
    acquisition = Acquisition(
        b, directions(len(b))[:1].repeat(len(b), 0), **TIMES, b0_threshold=0.05
    )
    noise = np.random.default_rng(0).normal(scale=0.005, size=(300, len(b)))
    signals = np.exp(-3 * b) + noise
    sigma, freedom = noise_before_fit(signals, acquisition, b0_only=True)
    assert np.median(freedom) >= 57
    # As one group the decay of 6 and 11 % would be taken for noise of 0.047.
    assert np.median(sigma) == pytest.approx(0.005, rel=0.05)


def test_gradient_tables_keep_the_measured_b_of_b0_volumes():
    acquisition = scan()
    restored = Acquisition.from_gtab(acquisition.to_gtab())
    np.testing.assert_allclose(restored.b_tensors, acquisition.b_tensors, atol=1e-12)
    spherical = np.eye(3)[None] * np.array([0.0, 0.01, 0.5])[:, None, None]
    for other in (concatenate(acquisition), TensorAcquisition(spherical)):
        gtab = other.to_gtab()
        np.testing.assert_allclose(gtab.bvals, 1e3 * other.b, rtol=1e-6)
        np.testing.assert_allclose(gtab.btens, 1e3 * other.b_tensors, rtol=1e-6)


def test_vectors_of_averages_are_ignored_at_b0_too():
    acquisition = Acquisition([0.02, 1.0], [[1, 0, 0], [0, 1, 0]], **TIMES, isotropic=True)
    expected = np.array([0.02, 1.0])[:, None, None] * np.eye(3) / 3
    np.testing.assert_allclose(acquisition.b_tensors, expected)


def test_simulations_warn_of_a_decay_of_b0_that_they_neglect():
    with pytest.warns(UserWarning, match="without a direction"):
        assert (scan(directed=False).q_vectors[:12] == 0).all()
