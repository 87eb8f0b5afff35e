"""Analytic signals against each other, against other packages, tables and the simulation."""

from __future__ import annotations

import numpy as np
import pytest
from dipy.sims.voxel import callaghan_perpendicular
from scipy.linalg import expm
from scipy.special import spherical_jn

from benchmarks import analytic_signals
from benchmarks.analytic_signals import (
    exact_restricted_signal,
    long_time_diffusivity,
    permeable_planes_signal,
    restricted_signal,
)
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import simulate
from dipy_spinverse.bloch_torrey.analytic import (
    DIMENSIONS,
    free_signal,
    gaussian_phase_attenuation,
    karger_closed_form,
)
from dipy_spinverse.grid import bcc_grid

D = 2.0  # um^2/ms


def acquisition(b, directions=(1, 0, 0), small_delta=5.0, big_delta=20.0):
    return Acquisition(b=b, directions=directions, small_delta=small_delta, big_delta=big_delta)


# ---------------------------------------------------------------- impermeable bodies


def test_short_pulses_far_apart_give_the_form_factor_of_each_body():
    x = np.array([0.3, 1.0, 2.0, 5.0])
    cylinder = callaghan_perpendicular(x / (2 * np.pi), 1.0)  # DIPY's, q in 1/um
    form = {"slab": np.sinc(x / np.pi) ** 2, "sphere": (3 * spherical_jn(1, x) / x) ** 2}
    for shape, expected in {"cylinder": cylinder, **form}.items():
        signal = exact_restricted_signal(shape, 1.0, x, 1e-4, 1e3, D)
        # spins move by 0.02 um during a pulse: (q 0.02)^2
        np.testing.assert_allclose(signal, expected, atol=3e-3)


@pytest.mark.parametrize("shape", DIMENSIONS)
def test_no_gradient_gives_all_signal(shape):
    # DIPY's callaghan_perpendicular returns 0 there
    none = acquisition([0.0, 1.0]).subset([0])
    assert restricted_signal(none, shape, 3.0)[0] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("shape", DIMENSIONS)
def test_cut_modes_change_the_signal_by_less_than_promised(shape, monkeypatch):
    cases = (3.0, np.array([0.2, 1.0, 2.0]), 2.0, 20.0, D)
    signal = exact_restricted_signal(shape, *cases)
    monkeypatch.setattr(analytic_signals, "_MAX_ROOT", 20.0)
    coarse = exact_restricted_signal(shape, *cases)
    # a cut at 20 instead of 30: the error falls with its third power
    assert np.abs(signal - coarse).max() < 3e-5


@pytest.mark.parametrize("shape", DIMENSIONS)
def test_gaussian_phase_is_exact_to_second_order(shape):
    pulses = (4.0, 15.0, D)
    q = np.array([0.02, 0.04])
    exact = -np.log(exact_restricted_signal(shape, 3.0, q, *pulses))
    gaussian = gaussian_phase_attenuation(shape, 3.0, q, *pulses)
    error = np.abs(exact - gaussian)
    assert (error < 1e-3 * gaussian).all()
    assert error[1] / error[0] == pytest.approx(16, rel=0.1)  # what is neglected is of order q^4


@pytest.mark.parametrize("shape", DIMENSIONS)
def test_gaussian_phase_is_right_where_phases_average_out(shape):
    # gamma g radius^3 / D is 0.025 although q radius is 20 and 4 to 12 % of the signal are lost
    q, pulses = np.array([20.0]), (400.0, 600.0, D)
    exact = exact_restricted_signal(shape, 1.0, q, *pulses)
    gaussian = np.exp(-gaussian_phase_attenuation(shape, 1.0, q, *pulses))
    assert (exact < 0.96).all()
    np.testing.assert_allclose(gaussian, exact, atol=1e-5)


def test_water_is_free_where_bodies_do_not_end():
    along_y = acquisition([0.5, 1.0], [0, 1, 0])
    free = free_signal(along_y, D)
    np.testing.assert_allclose(restricted_signal(along_y, "slab", 2.0, axis=[1, 0, 0]), free)
    np.testing.assert_allclose(restricted_signal(along_y, "cylinder", 2.0, axis=[0, 5, 0]), free)
    sphere = restricted_signal(along_y, "sphere", 2.0)
    assert (sphere > 0.9).all()


# ---------------------------------------------------------------- membranes


def test_closed_planes_are_slabs_and_open_planes_are_no_planes():
    across = acquisition([0.5, 2.0, 5.0])
    slabs = restricted_signal(across, "slab", 3.0, axis=[1, 0, 0])
    # the Magnus steps' own error
    np.testing.assert_allclose(permeable_planes_signal(across, 6.0, 0.0), slabs, atol=5e-6)
    # a membrane of 1e4 um/ms is as D / kappa = 2e-4 um of water more
    np.testing.assert_allclose(
        permeable_planes_signal(across, 6.0, 1e4), free_signal(across, D), atol=1e-4
    )


@pytest.mark.parametrize("kappa", [0.02, 0.2, 1.0])
def test_permeable_planes_match_the_finite_volumes(kappa):
    grid = bcc_grid([8, 8, 3], 1.0)
    normal = np.array([1, 1, 0]) / np.sqrt(2)
    along = grid.face_centroids @ normal * np.sqrt(2)
    on_plane = (np.abs(grid.face_normals @ normal) > 1 - 1e-9) & (
        np.abs((along + 4) % 8 - 4) < 1e-6
    )
    across = acquisition([0.5, 1, 3], normal)
    simulated = simulate(across, grid, np.where(on_plane, kappa, np.inf))
    expected = permeable_planes_signal(across, 8 / np.sqrt(2), kappa, normal=normal)
    # cells of 1 um; those of 2 um are 0.2 % of S0 off, of second order
    np.testing.assert_allclose(simulated, expected, atol=1e-3)


def test_planes_are_passed_in_the_same_way_under_any_waveform():
    # a pair of pulses as such, and as a waveform that is symmetric only up to a rest at its end
    pulsed = acquisition([0.5, 2.0], small_delta=2.0, big_delta=6.0)
    pulse, rest = np.ones(20), np.zeros(40)
    shape = np.concatenate([pulse, rest, -pulse, rest])
    gradients = pulsed.gradient_t_per_m[:, None, None] * shape[:, None] * [1.0, 0, 0]
    waveforms = WaveformAcquisition.from_samples(gradients, dt_s=1e-4)
    np.testing.assert_allclose(
        permeable_planes_signal(waveforms, 6.0, 0.1),
        permeable_planes_signal(pulsed, 6.0, 0.1),
        atol=2e-4,  # a waveform sampled at 0.1 ms may have ramps between its samples
    )


def test_planes_reach_their_tortuosity_limit():
    spacing, kappa = 4.0, 0.1
    big_delta = 2000.0
    b = np.array([0.2])
    signal = permeable_planes_signal(
        acquisition(b, small_delta=1.0, big_delta=big_delta), spacing, kappa
    )
    limit = long_time_diffusivity("slab", 0.5, spacing / 2, kappa, D)
    assert limit == pytest.approx(D / (1 + D / (kappa * spacing)))
    # the crossing of one period takes 50 ms, a fortieth of the time
    assert -np.log(signal[0]) / b[0] == pytest.approx(limit, rel=0.02)


def test_two_sites_follow_the_exchange_equations():
    several = acquisition([0.5, 2.0, 6.0])
    fraction, diffusivities, residence = 0.3, (0.2, 1.6), 25.0
    rates = np.array([[-1 / residence, fraction / 0.7 / residence]])
    rates = np.concatenate([rates, -rates])
    expected = [
        (expm((rates - q**2 * np.diag(diffusivities)) * time) @ [fraction, 1 - fraction]).sum()
        for q, time in zip(several.q, several.diffusion_time, strict=True)
    ]
    time = several.diffusion_time
    attenuations = (several.q**2 * time * d for d in diffusivities)
    signal = karger_closed_form(*attenuations, time / residence, fraction)
    # the closed form takes the root of a square increased by 1e-12
    np.testing.assert_allclose(signal, expected, atol=1e-9)


def test_two_sites_have_the_limits_of_slow_and_fast_exchange():
    first, second = np.array([0.0, 0.1, 0.4]), np.array([0.0, 0.8, 3.2])
    apart = 0.3 * np.exp(-first) + 0.7 * np.exp(-second)
    np.testing.assert_allclose(karger_closed_form(first, second, 0.0, 0.3), apart, atol=1e-9)
    mixed = np.exp(-0.3 * first - 0.7 * second)
    np.testing.assert_allclose(karger_closed_form(first, second, 2e4, 0.3), mixed, atol=1e-4)


# ---------------------------------------------------------------- long times


def test_square_lattices_of_cylinders_match_the_published_table():
    # of perfect conductors, Perrins et al. 1979; that of insulators is the inverse (Keller)
    for fraction, conductivity in ((0.1, 1.222), (0.2, 1.500), (0.4, 2.351), (0.5, 3.080)):
        closed = long_time_diffusivity("cylinder", fraction, 2.0, 0.0, 1.0)
        assert 1 / closed == pytest.approx(conductivity, abs=1e-3)  # printed to three digits


def test_membranes_of_no_resistance_do_not_hinder():
    for shape in DIMENSIONS:
        assert long_time_diffusivity(shape, 0.4, 3.0, np.inf, D) == D
        # D / (kappa R) = 1e-5
        assert long_time_diffusivity(shape, 0.4, 3.0, 1e5, D) == pytest.approx(D, rel=1e-4)
    assert long_time_diffusivity("slab", 0.4, 3.0, 0.0, D) == 0


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: restricted_signal(a, "cube", 3.0), "shape is 'cube'"),
        (lambda a: restricted_signal(a, "sphere", -1.0), "radius is -1"),
        (lambda a: restricted_signal(a, "sphere", 1.0, diffusivity=-2.0), "diffusivity is -2"),
        (lambda a: restricted_signal(a, "cylinder", 1.0, axis=[0, 0, 0]), "axis is 0"),
        (lambda a: free_signal(a, np.nan), "diffusivity is nan"),
        (lambda a: permeable_planes_signal(a, 5.0, -0.1), "permeability is -0.1"),
        (lambda a: permeable_planes_signal(a, 0.0, 0.1), "spacing is 0"),
        (lambda a: long_time_diffusivity("slab", 0.0, 1.0, 0.1, D), "fraction is 0"),
        (lambda a: long_time_diffusivity("slab", 0.5, 1.0, -0.1, D), "permeability is -0.1"),
    ],
)
def test_impossible_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(acquisition(1.0))
