"""Noise and size of the misfit of packed cells: what a model-free description of signals says."""

from __future__ import annotations

import numpy as np
import pytest
from packed_cell_cases import SIGMA, magnitudes, protocol
from scipy.optimize import minimize_scalar
from scipy.spatial.transform import Rotation
from scipy.stats import halfcauchy, norm

from dipy_spinverse import Acquisition, PackedCellsModel, Status
from dipy_spinverse.packed_cells.gaussian_process import Smoothing, gaussian_process, smooth
from dipy_spinverse.packed_cells.likelihood import residuals, systematic_error, tissue_data
from dipy_spinverse.packed_cells.residual_tests import leverages
from dipy_spinverse.report.page import shared_residual


def dispersed_tensors(acquisition, n, seed):
    """Signals (n, M), by closed forms, of two Gaussian pools with kurtosis about random axes."""
    rng = np.random.default_rng(seed)
    axes = Rotation.random(n, random_state=seed).as_matrix()[:, 0]
    cosine = axes @ acquisition.directions.T
    along, across = rng.uniform(1.2, 2.0, (n, 1)), rng.uniform(0.2, 0.6, (n, 1))
    slow = np.exp(-acquisition.b * (0.1 + 0.3 * cosine**2))
    return 0.6 * np.exp(-acquisition.b * (across + (along - across) * cosine**2)) + 0.4 * slow


def process_of(acquisition):
    return gaussian_process(acquisition, acquisition.te_index, np.ones(len(acquisition), bool))


@pytest.mark.parametrize("true_error", [0.0, 0.03])
def test_systematic_errors_are_those_of_signals_that_no_model_of_cells_made(true_error):
    acquisition = protocol()
    rng, clean = np.random.default_rng(0), dispersed_tensors(acquisition, 20, 1)
    measured = clean * (1 + true_error * rng.standard_normal(clean.shape))
    measured += 0.005 * rng.standard_normal(clean.shape)
    data = tissue_data(
        measured, np.full(20, 0.005), acquisition.te_index, np.ones(len(acquisition), bool)
    )
    found = systematic_error(data, smooth(process_of(acquisition), measured))
    # Smoothing 16 directions mixes strong and weak signals, so that errors of the strong ones are
    # seen in the weak ones, too: larger by up to a half. 0.005 is the noise.
    assert 0.9 * true_error <= np.median(found) < 1.5 * true_error + 0.005
    assert (found < 2 * true_error + 0.025).all()


def test_smoothed_measurements_are_predicted_from_the_others():
    acquisition = protocol()
    values = dispersed_tensors(acquisition, 1, 2)
    values += 0.02 * np.random.default_rng(0).standard_normal(values.shape)
    process = process_of(acquisition)
    smoothing = smooth(process, values)
    # Leaving out by changing: the prediction from the others does not depend on the measurement.
    m, changed = 40, values.copy()
    changed[0, m] += 1e-4
    errors = smoothing.left_out_error[0, m], smooth(process, changed).left_out_error[0, m]
    assert errors[1] - errors[0] == pytest.approx(1e-4, rel=1e-6)


def test_leverages_are_derivatives_of_fitted_signals():
    """Of a fit that is linear, so that the formula is exact."""
    rng, n = np.random.default_rng(0), 30
    data = tissue_data(
        1 + 0.1 * rng.standard_normal((1, n)), np.array([0.1]), np.zeros(n, int), np.ones(n, bool)
    )
    signals, slopes = np.ones((1, n)), rng.standard_normal((1, 3, n))
    amplitudes = residuals(data, signals, np.zeros(1, int))[1]
    leverage = leverages(data, signals, amplitudes, slopes, np.zeros(1, int))[0]
    columns = np.vstack([amplitudes[0, 0] * slopes[0], signals]).T
    # Ridge regression by augmented data: the prior is three more measurements.
    augmented = np.vstack([columns / 0.1, np.eye(4)[:3]])
    projector = augmented @ np.linalg.pinv(augmented)
    np.testing.assert_allclose(leverage, np.diag(projector)[:n], rtol=1e-9)


def test_misfits_have_a_size_and_a_cause():
    acquisition = protocol()
    clean = dispersed_tensors(acquisition, 3, 3)
    # Signals that the model describes but for one shell, whose scatter no smooth curve follows,
    # and signals that rise with b at one diffusion time, as no water does.
    shell = np.isclose(acquisition.b, acquisition.b.max())
    alternating = np.where(np.arange(len(acquisition)) % 2, 1, -1) * shell
    at_one = acquisition.big_delta == acquisition.big_delta.max()
    rising = 0.3 * at_one * acquisition.b / acquisition.b.max()
    rng = np.random.default_rng(1)
    data = magnitudes(clean + np.stack([0 * rising, 0.06 * alternating, rising]), rng)
    fit = PackedCellsModel(acquisition).fit(data, sigma=SIGMA, n_draws=0)
    assert fit.status.tolist() == [Status.CONVERGED, Status.MISFIT, Status.MISFIT]
    assert fit.misfit_level.tolist() == [0, 1, 2]
    assert fit.usable.tolist() == [True, True, False]
    assert fit.left_out_ratio[2] > 1.1 >= fit.left_out_ratio[1]
    # Root mean squares over all measurements; the fit removes a part of what is smooth.
    assert fit.misfit_percent[1] == pytest.approx(6 * np.sqrt(shell.mean()), rel=0.2)
    assert 0.1 < fit.misfit_percent[2] / (100 * np.sqrt((rising**2).mean())) < 1.0


def test_a_group_of_negligible_misfit_does_not_reject():
    acquisition = protocol()
    clean = dispersed_tensors(acquisition, 1, 3)
    low = (acquisition.b > 0) & (acquisition.b == acquisition.b[acquisition.b > 0].min())
    posteriors = []
    for size in (0.004, 0.03):
        alternating = size * np.where(np.arange(len(acquisition)) % 2, 1, -1) * low
        data = np.abs(clean + alternating)
        posteriors.append(PackedCellsModel(acquisition).posterior(data, 0.001, 0))
    small, large = (posterior.worst_reduced_chi_square[0] for posterior in posteriors)
    assert small == 0 and large > 2


def test_few_powder_averages_leave_degrees_of_freedom():
    b = np.tile([0.0, 0.5, 1, 2, 3, 4.5, 6], 3)
    acquisition = Acquisition(
        b, np.zeros((21, 3)), 5.0, np.repeat([12.0, 20, 30], 7), isotropic=np.ones(21, bool)
    )
    signals = 0.6 * np.exp(-b * 0.3) + 0.4 * np.exp(-b * 1.2)
    signals = signals + 0.005 * np.random.default_rng(0).standard_normal((1, 21))
    found = PackedCellsModel(acquisition, amplitudes="timing").posterior(signals, 0.005, 0)
    # More unknowns than measurements, most of which the prior determines.
    assert 5 < found.degrees_of_freedom[0] < 18
    assert found.chi_square[0] / found.degrees_of_freedom[0] < 3


def test_residuals_that_voxels_share_are_found():
    acquisition, rng = protocol(), np.random.default_rng(0)
    noise = 0.01 * rng.standard_normal((50, len(acquisition)))
    assert shared_residual(acquisition, noise)[1] == []
    shell = np.isclose(acquisition.b, acquisition.b.max())
    share, shells = shared_residual(acquisition, noise + 0.01 * shell)
    # 1e-4 of shared square in the shell, beside 1e-4 of noise everywhere.
    assert share == pytest.approx(shell.mean() / (1 + shell.mean()), abs=0.03)
    assert all(abs(mean - 0.01) < 0.002 for *_, mean in shells)
    assert {b for b, *_ in shells} == {f"{1e3 * acquisition.b.max():.0f}"}


@pytest.mark.parametrize("scatter", [0.011, 0.014, 0.03])
def test_systematic_errors_are_most_probable_with_a_half_cauchy_prior(scatter):
    """Of few real parts about 1, whose noise explains a scatter of 0.01, by another optimiser."""
    n, sigma = 6, 0.01
    residual = scatter * np.array([[1.0, -1, 1, -1, 1, -1]])
    measured = 1 + residual
    measured = np.append(measured, [[-1e-9]], axis=1)  # a negative value: real parts
    residual = np.append(residual, [[-1e-9]], axis=1)
    freedom = np.append(np.ones((1, n)), [[0.0]], axis=1)
    data = tissue_data(measured, np.full(1, sigma), np.zeros(n + 1, int), np.ones(n + 1, bool))
    found = systematic_error(data, Smoothing(residual, freedom))[0]

    def cost(error):
        likelihood = norm.logpdf(residual[0, :n], scale=np.hypot(sigma, error)).sum()
        return -likelihood - halfcauchy.logpdf(error, scale=0.004)

    expected = minimize_scalar(cost, (0, 0.1), bounds=(0, 0.1)).x
    # Values that are tried are 1.22 times as large as the one before, the first two 0 and 0.001.
    assert abs(found - expected) <= max(0.12 * expected, 0.0006)
