"""Dropouts are left out, misfits of models are not; sticks and balls from NumPy formulas."""

import warnings

import numpy as np
import pytest
from dipy.core.gradients import gradient_table
from dipy.core.sphere import HemiSphere, disperse_charges

from dipy_spinverse import Status
from dipy_spinverse.compartments import Compartment, Parameter, compose
from dipy_spinverse.compartments.posterior_draws import posterior_draws
from dipy_spinverse.report.page import save_page
from dipy_spinverse.voxels.noise import noise_before_fit
from dipy_spinverse.voxels.outliers import volumes_with_outliers

SNR, REMAINING = 30, 0.3


def axes_of(n, rng):
    vectors = rng.standard_normal((n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def scan():
    """8 b0, 30 directions of 700 and 60 of 2000 s/mm^2."""
    rng, b = np.random.default_rng(0), np.repeat([0.0, 700, 2000], [8, 30, 60])
    shells = [disperse_charges(HemiSphere(xyz=axes_of(n, rng)), 200)[0].vertices for n in (30, 60)]
    return b, np.concatenate([np.zeros((8, 3)), *shells])


B, DIRECTIONS = scan()


def model(**options):
    return compose(
        gradient_table(B, bvecs=DIRECTIONS),
        [
            Compartment("stick", "stick", {"diffusivity": "along"}),
            Compartment("ball", "ball", {"diffusivity": 1.0}),
        ],
        [Parameter("along", 1.0, 3.0, "mm^2/s")],
        **options,
    )


def stick_and_ball(axes, fraction, along=2.0):
    b = 1e-3 * B
    stick = np.exp(-b * along * (axes @ DIRECTIONS.T) ** 2)
    return fraction[:, None] * stick + (1 - fraction[:, None]) * np.exp(-b)


def magnitudes(clean, rng):
    noise = rng.standard_normal((2, *clean.shape)) / SNR
    return np.hypot(clean + noise[0], noise[1])


def voxels(n, seed=1):
    rng = np.random.default_rng(seed)
    fraction = rng.uniform(0.3, 0.7, n)
    return rng, fraction, stick_and_ball(axes_of(n, rng), fraction)


def test_dropouts_are_left_out():
    """Four volumes, others in each voxel: errors and coverage almost as without dropouts."""
    rng, fraction, clean = voxels(100)
    dropped = np.pad(rng.random((100, 90)).argsort(axis=1) < 4, ((0, 0), (8, 0)))
    noisy = magnitudes(clean, rng)
    spoilt = magnitudes(np.where(dropped, REMAINING, 1) * clean, np.random.default_rng(2))
    good, fit = model().fit(noisy, n_draws=0), model().fit(spoilt, n_draws=100)
    errors = [np.abs(f.stick_likeliest - fraction).mean() for f in (good, fit)]
    assert errors[1] < 1.35 * errors[0]  # twice as large or more with all measurements
    lost = (1 - REMAINING) * clean * SNR
    assert fit.outliers[dropped & (lost > 7)].mean() > 0.9
    # 1 % false per voxel; noise that dropouts make uncertain adds as many.
    assert (fit.outliers & ~dropped).sum() < 8
    np.testing.assert_array_equal(fit.outlier_fraction, fit.outliers.mean(axis=1))
    assert ((fit.stick_low <= fraction) & (fraction <= fit.stick_high)).mean() > 0.88
    # Undetected losses of 4 to 5 standard deviations are a misfit in a few.
    assert (fit.status == Status.CONVERGED).mean() > 0.9
    k = int(fit.outliers.sum(axis=1).argmax())
    draws = posterior_draws(fit[k], spoilt[k], 400)
    width = fit.stick_high[k] - fit.stick_low[k]
    assert abs(np.median(draws["stick"]) - fit.stick[k]) < 0.25 * width


def test_results_do_not_depend_on_outliers_of_other_voxels():
    _, _, clean = voxels(6)
    data = magnitudes(clean, np.random.default_rng(3))
    spoilt = data.copy()
    spoilt[3, 20] = 0.02
    together = model().fit(spoilt, sigma=1 / SNR, n_draws=50)
    alone = model().fit(data, sigma=1 / SNR, n_draws=50)
    assert together.outliers.sum() == together.outliers[3, 20] == 1
    others = np.arange(6) != 3
    for name in ("stick", "stick_low", "along_high"):
        expected = getattr(alone, name)[others]
        # Batches of another size are rounded differently.
        np.testing.assert_allclose(getattr(together, name)[others], expected, rtol=1e-6)


def test_dropouts_are_no_further_fibre_populations():
    rng, _, clean = voxels(25, seed=4)
    dropped = np.pad(rng.random((25, 90)).argsort(axis=1) < 4, ((0, 0), (8, 0)))
    data = magnitudes(np.where(dropped, REMAINING, 1) * clean, rng)
    fit = model().fit(data, n_draws=0, crossings=True)
    # Half of the voxels have two or three if outliers are not left out.
    assert (fit.n_fibres == 1).mean() > 0.8


def test_misfits_of_a_model_are_no_outliers():
    """Two fibres, and a shell or a third of its volumes that the model cannot explain."""
    rng, fraction, clean = voxels(60)
    crossing = 0.5 * (clean + stick_and_ball(axes_of(60, rng), fraction))
    weak = clean * np.where(B == 2000, 0.6, 1)
    many = clean * np.where((B == 2000) & (np.arange(98) % 3 == 0), REMAINING, 1)
    for wrong in (crossing, weak, many):
        data = magnitudes(wrong, rng)
        fit = model().fit(data, sigma=1 / SNR, n_draws=0)
        assert (fit.status == Status.MISFIT).mean() > 0.7
        # One of 98 measurements in some voxels changes no map; a third of a shell are real losses.
        assert wrong is many or fit.outliers.any(axis=1).mean() <= 0.2


def test_volumes_of_the_scan_are_reported(tmp_path):
    rng, _, clean = voxels(60)
    clean[:30, 50] *= REMAINING
    clean[:, 12] *= REMAINING
    data = magnitudes(clean, rng)
    with pytest.warns(UserWarning, match=r"Volumes 12 \(\d+ %\), 50 \(\d+ %\) are outliers"):
        fit = model().fit(data.reshape(10, 6, 1, 98), n_draws=0)
    save_page(fit, tmp_path / "page.html", data.reshape(10, 6, 1, 98))
    page = (tmp_path / "page.html").read_text()
    assert "Volumes with outliers" in page and "<td>12</td>" in page
    spread = np.eye(98, dtype=bool)[rng.integers(98, size=200)]
    assert volumes_with_outliers(spread) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model().fit(magnitudes(voxels(20)[2], rng), n_draws=0)


def test_noise_before_the_fit_ignores_outliers():
    rng, _, clean = voxels(400)
    acquisition = model().acquisition
    clean_noise, _ = noise_before_fit(magnitudes(clean, rng), acquisition)
    volumes = np.array([3, 15, 25])
    clean[:, volumes] *= REMAINING
    noise, freedom = noise_before_fit(magnitudes(clean, rng), acquisition)
    assert np.median(clean_noise) == pytest.approx(1 / SNR, rel=0.05)
    # Losses that are not significant are left; with all of them it is twice as large.
    assert np.median(noise) == pytest.approx(1 / SNR, rel=0.12)
    assert (freedom > 4).all()


def test_volumes_that_are_more_often_outliers_than_others_are_named():
    """By chance alone one of 1000 images has such a volume."""
    rng = np.random.default_rng(0)
    outliers = rng.random((300, 60)) < 0.01
    assert volumes_with_outliers(outliers) == {}
    outliers[:, 7] |= rng.random(300) < 0.3
    assert volumes_with_outliers(outliers) == {7: pytest.approx(outliers[:, 7].mean())}
    assert volumes_with_outliers(np.zeros((3, 4), bool)) == {}
