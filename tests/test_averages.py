"""Means of several magnitudes: their likelihood, noise and tests; from a generator of its own."""

import numpy as np
import pytest
import torch
from scipy.special import erf
from scipy.stats import kstest, rice

from dipy_spinverse import CellShapeModel, PackedCellsModel, Status
from dipy_spinverse.acquisition import Acquisition, acquisition_from_arrays
from dipy_spinverse.acquisition.encodings import concatenate, pulsed_gradients
from dipy_spinverse.compartments import Compartment, Parameter, compose
from dipy_spinverse.packed_cells.likelihood import expected_signals, tissue_data, with_model_errors
from dipy_spinverse.voxels.noise import noise_before_fit
from dipy_spinverse.voxels.rician import log_likelihoods, rician_noise_from_residual

N, SIGMA = 32, 0.05
B = np.array([0, 0, 0, 0, 0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6, 6, 6])


def powder(n_averages):
    zeros = np.zeros((len(B), 3))
    return Acquisition(B, zeros, 10, 30, isotropic=True, n_averages=n_averages)


def sticks_and_ball(n_averages=N, **options):
    return compose(
        powder(n_averages),
        [
            Compartment("stick", "neurites", {"diffusivity": 2.0}, dispersion="isotropic"),
            Compartment("ball", "water", {"diffusivity": "outside"}),
        ],
        [Parameter("outside", 0.3, 3.0, "mm^2/s")],
        **options,
    )


def signals(neurites, outside):
    """Powder average of sticks of 2 um^2/ms, and a ball."""
    x = np.sqrt(2.0 * np.maximum(B, 1e-9))
    stick = np.where(B > 0, np.sqrt(np.pi) / 2 * erf(x) / x, 1.0)
    return neurites * stick + (1 - neurites) * np.exp(-B * outside)


def averages(clean, n, rng, sigma=SIGMA):
    noise = sigma * rng.standard_normal((2, n, *clean.shape))
    return np.hypot(clean + noise[0], noise[1]).mean(axis=0)


@pytest.mark.parametrize(("n", "largest"), [(2, 0.03), (16, 0.015)])
def test_means_of_magnitudes_are_nearly_normal(n, largest):
    """Largest difference of the distributions: skewness / (6 (2 pi)^1/2), 0.03 of two Rayleigh."""
    rng = np.random.default_rng(0)
    for amplitude in (0.0, 1.0, 3.0):
        means = averages(np.full(20_000, amplitude), n, rng, sigma=1.0)
        magnitude = rice(amplitude)
        scaled = (means - magnitude.mean()) / (magnitude.std() / np.sqrt(n))
        assert kstest(scaled, "norm").statistic < largest + 1.6 / np.sqrt(20_000)


def test_the_likelihood_of_means_is_the_density_of_a_normal_distribution():
    """Also of mixtures with single magnitudes, whose likelihood is Rice's, and of none."""
    y, s = np.array([[0.3, 0.9, 0.2, 5.0]]), np.array([[0.1, 0.8, 0.3, 0.7]])
    n, sigma = np.array([[1, 4, 1, 0]]), 0.25
    arrays = (y, s + 0.1), (y, s)
    differences = []
    for data, predicted in arrays:
        singles = rice(predicted / sigma, scale=sigma).logpdf(data)
        mean = rice.mean(predicted / sigma, scale=sigma)
        sd = rice.std(predicted / sigma, scale=sigma) / 2
        means = -0.5 * ((data - mean) / sd) ** 2 - np.log(sd)
        tensors = (torch.tensor(x) for x in (data, predicted, [sigma]))
        got = float(log_likelihoods(*tensors, True, torch.tensor(n, dtype=torch.float64))[0])
        differences.append(got - singles[0, [0, 2]].sum() - means[0, 1])
    # Equal up to a constant of the data; the Bessel function is exact to 1e-6, the table to 1e-5.
    assert differences[0] == pytest.approx(differences[1], abs=1e-4)


def test_fits_to_the_means_of_magnitudes_have_no_noise_floor():
    """Signals down to two standard deviations of the noise of a magnitude."""
    clean = signals(0.3, 1.0)
    data = rice.mean(clean / SIGMA, scale=SIGMA)
    assert clean.min() < 2.2 * SIGMA
    fit = sticks_and_ball().fit(data, sigma=SIGMA, n_draws=0)
    np.testing.assert_allclose([fit.neurites, 1e3 * fit.outside], [0.3, 1.0], rtol=2e-3)
    with pytest.warns(UserWarning, match="n_averages"):
        wrong = sticks_and_ball(1).fit(data, sigma=SIGMA / np.sqrt(N), n_draws=0)
    assert wrong.neurites > 0.303  # the floor, taken for sticks


def test_intervals_noise_and_status_of_means():
    rng = np.random.default_rng(1)
    truth = np.column_stack([rng.uniform(0.2, 0.6, 150), rng.uniform(0.6, 1.6, 150)])
    clean = np.stack([signals(*t) for t in truth])
    data = averages(clean, N, rng)
    for given in (SIGMA, None):
        fit = sticks_and_ball().fit(data, sigma=given, n_draws=200)
        low, high = fit.neurites_low, fit.neurites_high
        # 95 % less three binomial standard errors; noise of 20 averages adds to the scatter.
        assert ((low <= truth[:, 0]) & (truth[:, 0] <= high)).mean() > 0.89
        # Intervals as wide as those of Gaussian noise of the average, more by up to 1/3 near it.
        assert 2.9 < np.median((high - low) / fit.neurites_std) < 4.5
        assert np.median(fit.sigma) == pytest.approx(SIGMA, rel=0.15)
        assert (fit.status == Status.CONVERGED).mean() > 0.98
    wrong = averages(np.stack([np.exp(-B * 0.2)] * 20), N, rng)  # slower than any parameters
    rejected = sticks_and_ball().fit(wrong, sigma=SIGMA, n_draws=0)
    assert (rejected.status == Status.MISFIT).all()
    real = (clean + SIGMA / np.sqrt(N) * rng.standard_normal(clean.shape))[:20]
    gaussian = sticks_and_ball(likelihood="gaussian").fit(real, sigma=SIGMA, n_draws=100)
    assert np.abs(gaussian.neurites - truth[:20, 0]).mean() < 0.02
    assert (gaussian.status == Status.CONVERGED).all()


def test_the_noise_of_a_magnitude_from_repeated_means():
    rng = np.random.default_rng(2)
    acquisition = powder(np.where(B == 0, 8, N))
    clean = np.stack([signals(0.4, 1.0)] * 2000)
    data = np.where(B == 0, averages(clean, 8, rng), averages(clean, N, rng))
    level, freedom = noise_before_fit(data, acquisition)
    # 4 degrees of freedom in each of 2000 voxels
    assert (freedom >= 4).all() and np.sqrt((level**2).mean()) == pytest.approx(SIGMA, rel=0.05)
    n = torch.tensor(acquisition.n_averages, dtype=torch.float64).expand(2000, -1)
    start = torch.full((2000,), SIGMA, dtype=torch.float64)
    estimated = rician_noise_from_residual(*map(torch.tensor, (data, clean)), start, 0, n)
    # 20 measurements, half of their distance expected: the median of their chi-square is 2 % low.
    assert float(estimated.median()) == pytest.approx(SIGMA, rel=0.03)


def test_packed_cells_weight_means_by_their_number():
    rng = np.random.default_rng(3)
    clean = np.stack([signals(0.3, 1.0)] * 500)
    labels, used = np.zeros(len(B), dtype=int), np.ones(len(B), dtype=bool)
    measured, sigma = averages(clean, N, rng), np.full(500, SIGMA)
    data = tissue_data(measured, sigma, labels, used, np.full(len(B), N))
    data = with_model_errors(data, clean, np.zeros((500, 1, len(B))))
    residual = (measured - expected_signals(data, clean)) * data.inverse_sd
    # 10 000 values with a relative error of the variance of 1.4 %
    assert (residual**2).mean() == pytest.approx(1, rel=0.05)


def test_acquisitions_keep_the_number_of_averages(tmp_path):
    numbers = np.arange(1, len(B) + 1)
    acquisition = powder(numbers)
    assert "means of up to 20 magnitudes" in repr(acquisition)
    again = acquisition_from_arrays(acquisition.subset([3, 2]).arrays())
    assert again.n_averages.tolist() == [4, 3]
    waveforms = pulsed_gradients([0, 1.0], [1, 0, 0], 8, 20)
    waveforms = type(waveforms)(waveforms.waveforms, n_averages=[1, 7])
    assert acquisition_from_arrays(waveforms.arrays()).n_averages.tolist() == [1, 7]
    assert concatenate(waveforms, waveforms.subset([1])).n_averages.tolist() == [1, 7, 7]
    np.savetxt(tmp_path / "n.txt", numbers)
    timing = {"big_delta": 0.03, "small_delta": 0.01, "isotropic": True}
    read = Acquisition.from_files(1e3 * B, n_averages=tmp_path / "n.txt", **timing)
    assert read.n_averages.tolist() == numbers.tolist()
    for wrong in (0, 1.5, [2, 3]):
        with pytest.raises(ValueError, match="n_averages (is|has shape)"):
            powder(wrong)


def test_models_without_a_likelihood_of_means_refuse_them():
    acquisition = Acquisition([0, 1.0], [[0, 0, 0], [1, 0, 0]], 10, 30, n_averages=4)
    with pytest.raises(ValueError, match="n_averages is up to 4, but CellShapeModel .* 6 times"):
        CellShapeModel(acquisition)
    assert PackedCellsModel(acquisition).acquisition.n_averages.tolist() == [4, 4]


def test_the_floor_that_averages_of_unequal_directions_neglect():
    """Of parallel fibres, over the noise of the mean (doc/which_model.md)."""
    cosine = np.linspace(0.0005, 0.9995, 1000)
    neglected = []
    for b in (1, 3, 6):
        fibres = 0.6 * np.exp(-2 * b * cosine**2) + 0.4 * np.exp(-b * (0.6 + 1.2 * cosine**2))
        floor = rice.mean(fibres / SIGMA, scale=SIGMA).mean()
        floor -= rice.mean(fibres.mean() / SIGMA, scale=SIGMA)
        neglected.append(floor / (SIGMA / np.sqrt(N)))
    np.testing.assert_allclose(neglected, [0.08, 1.66, 2.87], atol=0.01)


def test_an_unknown_noise_level_is_named_and_widens_intervals():
    """Two b0 and few averages do not give it; the residual has four degrees of freedom."""
    b = np.array([0, 0, 0.5, 1.0, 1.5, 2.0, 3.0])
    acquisition = Acquisition(b, np.zeros((7, 3)), 10, 30, isotropic=True, n_averages=30)
    clean = 0.4 * np.exp(-2 * b) + 0.6 * np.exp(-0.4 * b)
    rng = np.random.default_rng(3)
    data = clean + 0.002 * rng.standard_normal((400, 7))
    model = compose(
        acquisition,
        [Compartment("ball", "fast", {"diffusivity": 2.0}),
         Compartment("ball", "slow", {"diffusivity": "D"})],
        [Parameter("D", 0.1, 1.0, "mm^2/s")], likelihood="gaussian",
    )  # fmt: skip
    with pytest.warns(UserWarning, match="The noise level is unknown: .* Give sigma"):
        fit = model.fit(data)
    # Normal intervals would cover P(|t_4| < 1.96) = 88 %; three standard errors are 3 %.
    covered = (fit.fast_low <= 0.4) & (0.4 <= fit.fast_high)
    assert covered.mean() > 0.92
