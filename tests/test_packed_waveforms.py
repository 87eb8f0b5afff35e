"""Packed cells under free waveforms: the pulses most like them, what is beyond, and fits."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from bloch_torrey_cases import DIRECTIONS
from packed_cell_cases import (
    KNOWN,
    SIGMA,
    assert_derivatives_are_differences,
    emulated_signals_of,
    magnitudes,
)
from scipy.spatial.transform import Rotation

from dipy_spinverse import (
    Acquisition,
    PackedCellsModel,
    Status,
    bcc_grid,
    load_fit,
    simulate,
)
from dipy_spinverse.acquisition import TensorAcquisition
from dipy_spinverse.acquisition.encodings import (
    b_tensor_encoding,
    concatenate,
    double_diffusion,
    oscillating_gradients,
    pulsed_gradients,
)
from dipy_spinverse.bloch_torrey.analytic import dipole_roots, gaussian_phase_attenuation
from dipy_spinverse.packed_cells.equivalent_pulses import equivalent_pulses, tensor_spectra
from dipy_spinverse.packed_cells.interpolation import emulated_shell_signals
from dipy_spinverse.packed_cells.shells import group_into_shells
from dipy_spinverse.packed_cells.tissue_classes import tissue_class
from dipy_spinverse.packed_cells.tissue_signals import tissue_signals
from dipy_spinverse.packed_cells.waveform_correction import (
    RATES,
    exchange_time,
    waveform_correction,
)
from dipy_spinverse.substrates import spheres

ROUND = np.eye(3) / 3


def tensors_of(b, shape, axes):
    """B-tensors of a shape (1 linear, 0 spherical, -1/2 planar) about axes."""
    axial = np.einsum("mi,mj->mij", axes, axes)
    return b * ((1 - shape) / 3 * np.eye(3) + shape * axial)


@cache
def protocol():
    """Linear, planar and spherical b-tensors and a cosine, of 60 ms."""
    return concatenate(
        b_tensor_encoding(np.zeros((4, 3, 3)), 50, te=60),
        *(
            b_tensor_encoding(tensors_of(b, shape, DIRECTIONS), 50, te=60)
            for b in (0.8, 2.0)
            for shape in (1.0, -0.5)
        ),
        b_tensor_encoding([0.8 * ROUND] * 3 + [2 * ROUND] * 3, 50, te=60),
        oscillating_gradients(np.full(len(DIRECTIONS), 0.8), DIRECTIONS, 12, 2, 30, te=60),
    )


def drawn(acquisition, name, n=4, seed=0):
    """Draws of a class: places, frames and signals in the order of the acquisition."""
    tissue = tissue_class(name, True)
    z = np.random.default_rng(seed).uniform(-1, 1, size=(n, tissue.n_parameters))
    if tissue.turns:
        z[:, -3:] = 0
    frames = Rotation.random(n, random_state=seed).as_matrix()
    return tissue, z, frames, emulated_signals_of(acquisition, tissue, z, frames)


@pytest.mark.parametrize("shape", ["cylinder", "sphere"])
def test_spectrum_and_modes_of_a_body_give_its_attenuation(shape):
    small, big, radius, b = 8.0, 20.0, 3.0, 1.5
    acquisition = pulsed_gradients([b], [[0, 1, 0]], small, big)
    passing, time = tensor_spectra(acquisition.waveforms[0])
    roots = np.array(dipole_roots(shape))
    along = np.interp(
        np.log(2.0 * (roots / radius) ** 2), np.log(RATES / time), passing[0, :, 1, 1]
    )
    found = 2 * 2.0 * b * (along / (roots**2 - {"cylinder": 1, "sphere": 2}[shape])).sum()
    q = np.sqrt(b / (big - small / 3))
    expected = gaussian_phase_attenuation(shape, radius, q, small, big, 2.0)
    # Linear interpolation between the rates.
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_slow_walls_see_the_b_tensor_and_fast_ones_the_gradient():
    waveforms = double_diffusion([1.0], DIRECTIONS[:1], DIRECTIONS[1:2], 5, 20, 25).waveforms[0]
    passing, time = tensor_spectra(waveforms)
    b_tensor = waveforms.b_tensors()[0]
    # Linear in the rate, the least of which is 0.001 / time.
    np.testing.assert_allclose(passing[0, 0], b_tensor / np.trace(b_tensor), atol=0.003)
    # Gradients that jump lose 1 / (rate delta).
    assert np.trace(passing[0, -1]) * RATES[-1] ** 2 == pytest.approx(1, abs=0.02)


def test_exchange_lasts_as_long_as_two_short_pulses_are_apart():
    pulses = pulsed_gradients([1.0], [[1, 0, 0]], 0.01, 30.0)
    assert exchange_time(pulses.waveforms[0]) == pytest.approx(30, rel=2e-3)  # delta / Delta
    # Long oscillations weight the time from end to end evenly, but for their few periods.
    cosine = oscillating_gradients([1.0], [[1, 0, 0]], 5, 10, 50)
    assert exchange_time(cosine.waveforms[0]) == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize("name", ["mixture", "crossing"])
def test_pulses_given_as_waveforms_are_pulses(name):
    b, axes = np.repeat([0.0, 0.02, 1.0, 3.0], len(DIRECTIONS)), np.tile(DIRECTIONS, (4, 1))
    pulses = Acquisition(b=b, directions=axes, small_delta=8, big_delta=20, te=40)
    tissue, z, frames, expected = drawn(pulses, name)
    found = emulated_signals_of(concatenate(pulses), tissue, z, frames)
    # Times are rounded to 1e-3 ms.
    np.testing.assert_allclose(found, expected, atol=1e-4)
    ramped = pulsed_gradients(b, axes, 8, 20, ramp=1.0, te=40)
    # The ramp of 1 ms changes how water meets walls within a pulse.
    np.testing.assert_allclose(emulated_signals_of(ramped, tissue, z, frames), expected, atol=2e-3)


def test_turned_waveforms_give_the_signals_of_tissue_turned_back():
    turn = Rotation.random(random_state=3).as_matrix()
    scans = [
        concatenate(
            b_tensor_encoding(tensors_of(1.5, -0.5, axes), 50),
            double_diffusion(np.full(len(axes), 0.7), axes, axes, 5, 15, 20),
        )
        for axes in (DIRECTIONS, DIRECTIONS @ turn.T)
    ]
    tissue, z, frames, expected = drawn(scans[0], "crossing")
    # Kinds are told apart to 0.002 of b.
    found = emulated_signals_of(scans[1], tissue, z, frames @ turn.T)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_derivatives_under_b_tensors_are_those_of_the_signals():
    model, tissue = tissue_signals(protocol(), KNOWN, 3.0), tissue_class("mixture", True)
    assert_derivatives_are_differences(model, tissue, 4)


def test_a_hindered_pool_decays_by_its_tensor_and_the_b_tensor():
    scan = b_tensor_encoding(tensors_of(1.5, -0.5, DIRECTIONS), 50)
    tissue, z, frames, _ = drawn(scan, "cylinders", n=1)
    z[:, tissue.columns("hindered")] = 5.0
    z[:, tissue.columns("free_water", "dot")] = -5.0
    columns = tissue.columns("hindered_1", "hindered_2", "hindered_along")
    diffusivities = 0.8 * 1.8 ** z[0, columns]
    tensor = frames[0].T @ np.diag(diffusivities) @ frames[0]
    expected = np.exp(-np.einsum("mij,ij->m", scan.b_tensors, tensor))
    # Shares of 1 - 3e-6.
    np.testing.assert_allclose(
        emulated_signals_of(scan, tissue, z, frames)[0], expected, atol=1e-4
    )


def test_oscillations_and_b_tensors_agree_with_simulated_spheres():
    # Four spheres on a face-centred lattice, walls on faces of tetrahedra of about R / 4.
    radius, fraction, permeability = 5.0, 0.5, 0.1
    side = (4 * 4 / 3 * np.pi * radius**3 / fraction) ** (1 / 3)
    grid = bcc_grid(10, side / 10)
    places = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) * side / 2
    scan = concatenate(
        oscillating_gradients([1.0], [[1, 0, 0]], 10, 2, 25),
        double_diffusion([0.75], [[1, 0, 0]], [[0, 1, 0]], 5, 20, 10),
        b_tensor_encoding([1.5 * ROUND], 50),
    )
    walls = spheres(grid, places, radius, permeability=permeability)
    simulated = simulate(scan, grid, walls, dtype="float32")
    shells = group_into_shells(equivalent_pulses(scan))
    coordinates = np.log([[radius, np.exp(fraction), permeability, *KNOWN]])
    found = emulated_shell_signals("sphere", shells, KNOWN)(coordinates)[0, 0, :, 0]
    beyond = [
        waveform_correction(
            "sphere", np.array([[radius, fraction, permeability, *KNOWN]]), spectrum,
            (small, big), np.array([b]), np.zeros(1))[0, 0]
        for spectrum, small, big, b in zip(
            shells.spectra, shells.small_delta, shells.big_delta, shells.b, strict=True)
    ]  # fmt: skip
    # As of pulses: lattice walls are rough, a regular order is not a random one.
    np.testing.assert_allclose(found, simulated[shells.order], atol=0.02)
    # It is what pulses lack that is tested, too.
    assert np.abs(beyond).max() > 0.02


@pytest.fixture(scope="module")
def fitted():
    scan = protocol()
    tissue, z, frames, clean = drawn(scan, "cylinders", n=3, seed=4)
    data = magnitudes(clean, np.random.default_rng(1))
    model = PackedCellsModel(scan, diffusivity=2e-3)
    return tissue, z, frames, clean, model.fit(data, sigma=SIGMA, n_draws=60)


def test_waveforms_are_fitted_with_intervals_and_predicted(fitted):
    tissue, z, frames, clean, fit = fitted
    assert (fit.status == Status.CONVERGED).all()
    for name in fit.MAPS:
        low, high = (getattr(fit, name + end) for end in ("_low", "_high"))
        assert (low <= high).all() and np.isfinite(high).all()
    # Some 80 measurements tell some 10 unknowns: less than half of the noise is left.
    assert np.sqrt(((fit.predict(S0=1.0) - clean) ** 2).mean()) < 0.6 * SIGMA
    # Of timings that were not fitted, by the same tissue.
    other = double_diffusion([0.5], [[1, 0, 0]], [[0, 1, 0]], 5, 15, 20, te=60)
    expected = emulated_signals_of(other, tissue, z, frames)
    # What 80 measurements leave open.
    np.testing.assert_allclose(fit.predict(other, S0=1.0), expected, atol=0.05)


def test_fits_of_waveforms_come_back_from_their_file(fitted, tmp_path):
    fit = fitted[-1]
    fit.save(tmp_path / "fit.npz")
    loaded = load_fit(tmp_path / "fit.npz")
    np.testing.assert_array_equal(loaded.predict(), fit.predict())
    assert loaded.residual_structure(0) == fit.residual_structure(0)


def test_b_tensors_without_waveforms_are_refused_with_a_cure():
    scan = TensorAcquisition.from_acquisition(protocol())
    with pytest.raises(ValueError, match="^acquisition is a TensorAcquisition.*from_samples"):
        PackedCellsModel(scan)


def test_waveforms_without_weighting_are_refused():
    with pytest.raises(ValueError, match="none with diffusion weighting"):
        PackedCellsModel(pulsed_gradients([0, 0.01], [1, 0, 0], 8, 20, te=40))


def test_b_tensors_without_an_axis_are_taken_for_symmetric_with_a_warning():
    scan = b_tensor_encoding([np.diag([0.8, 0.5, 0.2])], 50)  # 0.3 of 1.5
    with pytest.warns(UserWarning, match="^acquisition has 1 .*three different.* by up to 20 %"):
        PackedCellsModel(scan)
