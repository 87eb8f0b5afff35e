"""Compartment signals against closed forms and brute force."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compartment_cases import directions, strong, two_shells
from numpy.polynomial.chebyshev import chebval
from scipy.linalg import expm
from scipy.optimize import nnls
from scipy.special import jnp_zeros, jv, jvp, roots_legendre
from scipy.stats import rice

from dipy_spinverse import Acquisition
from dipy_spinverse.bloch_torrey.analytic import gaussian_phase_attenuation
from dipy_spinverse.compartments import (
    Compartment,
    Definition,
    Parameter,
    exchanging,
    short_pulse_pore,
)
from dipy_spinverse.compartments.arguments import populations
from dipy_spinverse.compartments.fibres import with_fibres
from dipy_spinverse.compartments.fitting.amplitudes import nonnegative_amplitudes
from dipy_spinverse.compartments.signals.chebyshev import evaluate_chebyshev
from dipy_spinverse.compartments.signals.encoding import encoding_of
from dipy_spinverse.compartments.signals.harmonics import evaluate_harmonics
from dipy_spinverse.compartments.signals.kernels import KERNELS
from dipy_spinverse.compartments.signals.pools import pool_signals
from dipy_spinverse.voxels.rician import log_likelihoods, rician_information, rician_target

ARGUMENTS = {
    "stick": {"diffusivity": 1.7},
    "zeppelin": {"parallel": 1.7, "perpendicular": 0.5},
    "cylinder": {"diffusivity": 1.7, "diameter": 6.0},
    "slab": {"diffusivity": 1.7, "diameter": 6.0},
}


def signals_of(compartment, acquisition, **values):
    parameters = tuple(
        Parameter(name, 0.0, 100.0) for name, value in values.items() if np.ndim(value) == 1
    )
    definition = Definition("test", parameters, (compartment,))
    tensors = {name: torch.tensor(np.asarray(value, float)) for name, value in values.items()}
    return pool_signals(definition, encoding_of(acquisition))(tensors)[:, 0].numpy()


def test_gaussian_compartments_are_exponentials_of_their_tensor():
    acquisition = two_shells()
    axis = directions(3, seed=5)
    tensor = 0.5 * np.eye(3) + (1.7 - 0.5) * axis[:, :, None] * axis[:, None, :]
    g = acquisition.directions
    exact = np.exp(-acquisition.b * np.einsum("mi,vij,mj->vm", g, tensor, g))
    found = signals_of(
        Compartment("zeppelin", "all", ARGUMENTS["zeppelin"]), acquisition, axis=axis
    )
    assert np.allclose(found, exact, atol=1e-14)  # rounding
    stick = signals_of(Compartment("stick", "all", ARGUMENTS["stick"]), acquisition, axis=axis)
    assert np.allclose(stick, np.exp(-acquisition.b * 1.7 * (axis @ g.T) ** 2), atol=1e-14)
    ball = signals_of(Compartment("ball", "all", {"diffusivity": 3.0}), acquisition, axis=axis)
    assert np.allclose(ball, np.exp(-3 * acquisition.b), atol=1e-14)
    assert (signals_of(Compartment("dot", "all"), acquisition, axis=axis) == 1).all()


def attenuation_across(kernel, acquisition, diffusivity, diameter):
    arguments = (torch.tensor([x]).double() for x in (diffusivity, diameter))
    exponents = KERNELS[kernel].exponents(encoding_of(acquisition), *arguments)
    square = torch.tensor([1.0 if kernel == "slab" else 0.0]).double()
    return -torch.log(exponents.at(square)).item()


# Robertson 1966, Neuman 1974: pulses that touch, long against R^2/D.
@pytest.mark.parametrize(
    ("kernel", "first", "second"),
    [("slab", 2 / 15, 17 / 14), ("cylinder", 7 / 96, 99 / 112), ("sphere", 8 / 175, 581 / 840)],
)
def test_narrow_pores_follow_the_motional_narrowing_limit(kernel, first, second):
    acquisition = Acquisition(b=[4.0], directions=[[1, 0, 0]], small_delta=20, big_delta=20)
    d, radius = 2.0, 1.5
    gradient = acquisition.q[0] / 20
    exact = first * gradient**2 * radius**4 / d * (2 * 20 - second * radius**2 / d)
    found = attenuation_across(kernel, acquisition, d, 2 * radius)
    assert abs(found / exact - 1) < 1e-4  # terms left out are of order exp(-D delta / R^2)


@pytest.mark.parametrize("kernel", ["slab", "cylinder", "sphere"])
def test_wide_pores_are_free(kernel):
    acquisition = Acquisition(b=[1.0], directions=[[1, 0, 0]], small_delta=1, big_delta=2)
    found = attenuation_across(kernel, acquisition, 2.0, 200.0)
    # Walls take sqrt(D t) / R of the pore, 2 % here, and the sum over roots is cut off.
    assert abs(found / 2.0 - 1) < 0.04


def callaghan_slab(phase, time):
    k = np.arange(1, 200)[:, None]
    series = np.exp(-((k * np.pi / 2) ** 2) * time) * (1 - (-1.0) ** k * np.cos(2 * phase))
    series = (series / ((2 * phase) ** 2 - (k * np.pi) ** 2) ** 2).sum(axis=0)
    return (np.sin(phase) / phase) ** 2 + 4 * (2 * phase) ** 2 * series


def callaghan_cylinder(phase, time):
    result = (2 * jv(1, phase) / phase) ** 2
    for n in range(30):
        for root in jnp_zeros(n, 20):
            weight = (4 if n == 0 else 8) * root**2 / (root**2 - n**2)
            weight = weight * (phase * jvp(n, phase) / (phase**2 - root**2)) ** 2
            result = result + weight * np.exp(-(root**2) * time)
    return result


# Callaghan 1995; phase is q R, time D T / R^2.
@pytest.mark.parametrize(
    ("shape", "series"), [("slab", callaghan_slab), ("cylinder", callaghan_cylinder)]
)
def test_short_pulses_diffract_in_pores(shape, series):
    rng, across = np.random.default_rng(2), np.tile([1.0, 0, 0], (30, 1))
    times = rng.uniform(3, 50, 30).round(3)
    acquisition = Acquisition(rng.uniform(1, 20, 30), across, small_delta=1e-3, big_delta=times)
    axis = [1.0, 0, 0] if shape == "slab" else [0, 0, 1.0]
    arguments = {"diffusivity": 1.7, "diameter": 9.0}

    def signals(long_times=False):
        pore = Compartment(short_pulse_pore(shape, long_times), "all", arguments)
        return signals_of(pore, acquisition, axis=np.array([axis]))[0]

    phase, time = acquisition.q * 4.5, 1.7 * (times - 1e-3 / 3) / 4.5**2
    # 3e-7 by interpolation in q R and D T / R^2; the rest by that in cos^2
    assert np.abs(signals() - series(phase, time)).max() < 3e-5
    assert np.abs(signals(long_times=True) - series(phase, 1e3)).max() < 3e-5


def test_spheres_diffract_under_short_pulses_after_a_long_time():
    acquisition = Acquisition(np.arange(1.0, 9), [1, 0, 0], small_delta=1e-3, big_delta=80)
    sphere = Compartment(short_pulse_pore("sphere"), "all", {"diffusivity": 2.0, "diameter": 8.0})
    phase = 4 * acquisition.q
    exact = (3 * (np.sin(phase) - phase * np.cos(phase)) / phase**3) ** 2
    assert np.abs(signals_of(sphere, acquisition, empty=np.zeros(1))[0] - exact).max() < 1e-5


def test_unknown_pores_and_kernels_are_named():
    with pytest.raises(ValueError, match="shape is 'cube'; use one of slab"):
        short_pulse_pore("cube")
    with pytest.raises(ValueError, match="no kernel 'balls'"):
        exchanging("sphere", "balls")


def test_any_two_kernels_exchange():
    big = np.repeat([10.0, 40.0], 4)
    acquisition = Acquisition(np.tile([0, 1, 3, 6.0], 2), [1, 0, 0], small_delta=4, big_delta=big)
    fraction, time, radius = 0.3, 15.0, 4.0
    arguments = {"first_diffusivity": 2.0, "first_diameter": 2 * radius}
    arguments |= {"second_diffusivity": 1.2, "fraction": fraction, "exchange_time": time}
    both = Compartment(exchanging("sphere", "ball"), "all", arguments)
    found = signals_of(both, acquisition, empty=np.zeros(1))[0]
    across = gaussian_phase_attenuation("sphere", radius, acquisition.q, 4, big, 2.0)
    rates = np.array([[1 - fraction, -fraction], [fraction - 1, fraction]]) / time
    water = np.array([fraction, 1 - fraction])
    for m, b in enumerate(acquisition.b):
        decay = np.diag([across[m], 1.2 * b]) + rates * (big[m] - 4 / 3)
        assert abs(found[m] - (expm(-decay) @ water).sum()) < 1e-6  # of sums over roots


@pytest.mark.parametrize("dispersion", ["watson", "bingham"])
@pytest.mark.parametrize("kernel", list(ARGUMENTS))
def test_dispersed_signals_are_the_average_over_the_sphere(kernel, dispersion):
    acquisition = two_shells(8)
    odi, fanning = np.array([0.05, 0.3, 0.9]), np.array([0.95, 0.5, 0.0])
    axis = directions(3, seed=2)
    fan = np.cross(axis, directions(3, seed=3))
    fan /= np.linalg.norm(fan, axis=1, keepdims=True)
    compartment = Compartment(
        kernel, "all", ARGUMENTS[kernel], dispersion=dispersion, odi="odi", fanning="fanning"
    )
    values = {"odi": odi, "fanning": fanning, "axis": axis, "axis_fan": fan}
    found = signals_of(compartment, acquisition, **values)
    plain = Compartment(kernel, "all", ARGUMENTS[kernel])
    z, weights = roots_legendre(120)
    azimuth = (np.arange(240) + 0.5) * 2 * np.pi / 240
    for v in range(3):
        sine = np.sqrt(1 - z**2)[:, None]
        parts = (sine * np.cos(azimuth), sine * np.sin(azimuth), z[:, None] + 0 * azimuth)
        frame = np.stack([fan[v], np.cross(axis[v], fan[v]), axis[v]])
        normals = np.stack(parts, axis=-1).reshape(-1, 3) @ frame
        kappa = 1 / np.tan(np.pi / 2 * odi[v])
        spread = kappa * fanning[v] * (dispersion == "bingham")
        density = np.exp(kappa * (z[:, None] ** 2 - 1) + spread * parts[0] ** 2)
        density *= weights[:, None]
        average = density.ravel() @ signals_of(plain, acquisition, axis=normals) / density.sum()
        assert np.allclose(found[v], average, atol=2e-6)  # the series is cut off at 2e-6


@pytest.mark.parametrize("dispersion", [None, "watson", "bingham", "isotropic"])
@pytest.mark.parametrize("kernel", list(ARGUMENTS))
def test_averages_over_directions_are_those_of_single_directions(kernel, dispersion):
    z, weights = roots_legendre(24)
    azimuth = np.tile((np.arange(24) + 0.5) * 2 * np.pi / 24, 24)
    z, weights = np.repeat(z, 24), np.repeat(weights, 24) / 48
    sine = np.sqrt(1 - z**2)
    sphere = np.stack([sine * np.cos(azimuth), sine * np.sin(azimuth), z], axis=1)
    timing = {"small_delta": 10, "big_delta": 30}
    single = Acquisition(b=2.5, directions=sphere, **timing)
    # One measurement of them all, between two of single directions.
    mixed = Acquisition(
        b=2.5, directions=[[1, 0, 0], [0, 1, 0], [0, 0, 1]], isotropic=[0, 1, 0], **timing
    )
    odi, fanning = np.array([0.3]), np.array([0.5])
    compartment = Compartment(
        kernel, "all", ARGUMENTS[kernel], dispersion=dispersion, odi="odi", fanning="fanning"
    )
    axis, fan = np.array([[0.6, 0, 0.8]]), np.array([[0.8, 0, -0.6]])
    values = {"odi": odi, "fanning": fanning, "axis": axis, "axis_fan": fan}
    found = signals_of(compartment, mixed, **values)[0]
    assert found[1] == pytest.approx(
        weights @ signals_of(compartment, single, **values)[0], abs=2e-6
    )  # series are cut off at 2e-6
    alone = signals_of(compartment, mixed.subset([0, 2]), **values)[0]
    np.testing.assert_allclose(found[[0, 2]], alone, atol=2e-6)


def test_series_has_derivatives():
    coefficients = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    t = (torch.rand(2, 7, dtype=torch.float64) * 2 - 1).requires_grad_()
    shell = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    assert torch.autograd.gradcheck(
        lambda c, x: evaluate_chebyshev(c, x, shell), (coefficients, t)
    )


def test_harmonics_are_their_sum_and_have_derivatives():
    acquisition = two_shells(4)
    encoding = encoding_of(acquisition, timed=False)
    vectors = torch.tensor(directions(2 * len(acquisition), seed=1)).reshape(2, -1, 3)
    coefficients = torch.randn(2, len(encoding.b), 10, dtype=torch.float64, requires_grad=True)
    x, y, z = (vectors[..., k].clone().requires_grad_() for k in range(3))
    found = evaluate_harmonics(encoding, coefficients, x, y, z)
    powers = [(k, j) for k in range(4) for j in range(4 - k)]
    terms = [(torch.complex(x, y) ** (2 * k)).real * z ** (2 * j) for k, j in powers]
    chosen = coefficients[:, encoding.shell]
    expected = (torch.stack(terms, dim=2) * chosen).sum(dim=2)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda *tensors: evaluate_harmonics(encoding, *tensors), (coefficients, x, y, z)
    )


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7])
def test_series_are_those_of_numpy(length):
    coefficients, t = torch.randn(2, length, 3), 2 * torch.rand(2, 7) - 1
    shell = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    found = evaluate_chebyshev(coefficients.double(), t.double(), shell).numpy()
    for v, m in np.ndindex(2, 7):
        expected = chebval(float(t[v, m]), coefficients[v, :, shell[m]].double().numpy())
        assert abs(found[v, m] - expected) < 1e-12


def test_amplitudes_are_those_of_scipys_nnls():
    rng = np.random.default_rng(0)
    columns = np.abs(rng.standard_normal((40, 4, 30))) + 0.5  # strongly correlated
    data = rng.standard_normal((40, 30)) + np.einsum("vkm,k->vm", columns, [1.0, -1, 0.1, -0.3])
    exact = np.array([nnls(c.T, y)[0] for c, y in zip(columns, data, strict=True)])
    gram = torch.tensor(columns @ columns.transpose(0, 2, 1))
    found = nonnegative_amplitudes(gram, torch.tensor(np.einsum("vkm,vm->vk", columns, data)))
    assert np.allclose(found.numpy(), exact, atol=1e-4)  # ridge of 1e-6 of the diagonal
    assert (exact == 0).any() and (exact > 0).any()


def test_rician_likelihood_is_that_of_scipy():
    rng = np.random.default_rng(0)
    data, signals = np.abs(rng.standard_normal((2, 3, 50))) * 4
    sigma = np.array([0.5, 1.0, 2.0])
    arrays = [torch.tensor(each) for each in (data, signals, sigma)]
    exact = rice.logpdf(data, signals / sigma[:, None], scale=sigma[:, None])
    alone = rice.logpdf(data, 0, scale=sigma[:, None])
    found = log_likelihoods(*arrays, True).numpy()
    assert np.allclose(found, (exact - alone).sum(axis=1), atol=1e-4)  # polynomials to 1e-6 each
    step = 1e-4
    ratio = np.exp(
        rice.logpdf(data, (signals + step) / sigma[:, None], scale=sigma[:, None]) - exact
    )
    score = sigma[:, None] ** 2 * np.log(ratio) / step
    assert np.allclose(rician_target(*arrays).numpy() - signals, score, atol=1e-3)
    assert abs(rician_information(torch.tensor([8.0]).double()).item() - 1) < 0.01


def test_populations_have_their_own_axes_pools_and_marked_parameters():
    stick = Compartment("stick", "fibres", ARGUMENTS["stick"], dispersion="watson", odi="odi")
    ball = Compartment("ball", "water", {"diffusivity": 3.0})
    one = Definition("test", (Parameter("odi", 0, 1, per_fibre=True),), (stick, ball))
    two = with_fibres(one, 2)
    assert two.pools == ("fibres_1", "fibres_2", "water") and two.axes == ("axis_1", "axis_2")
    assert [p.name for p in two.parameters] == ["odi_1", "odi_2"]
    none = with_fibres(one, 0)
    assert none.axes == () and none.parameters == () and none.pools == ("fibres", "water")


def test_definitions_that_cannot_be_say_why():
    with pytest.raises(ValueError, match="use one of stick"):
        Compartment("needle", "all")
    with pytest.raises(ValueError, match="needs the arguments"):
        Compartment("cylinder", "all", {"diffusivity": 1.0})
    with pytest.raises(ValueError, match="has no axis"):
        Compartment("ball", "all", {"diffusivity": 1.0}, dispersion="watson", odi=0.1)
    with pytest.raises(ValueError, match="needs odi and fanning"):
        Compartment("stick", "all", {"diffusivity": 1.0}, dispersion="bingham")
    with pytest.raises(ValueError, match="no parameters"):
        Definition("test", (), (Compartment("ball", "all", {"diffusivity": "D"}),))
    with pytest.raises(ValueError, match="two things"):
        Definition("test", (Parameter("all", 0, 1),), (Compartment("dot", "all"),))
    with pytest.raises(ValueError, match="finite bounds"):
        Parameter("D", 1.0, 1.0)


def test_shells_that_differ_only_in_timing_are_one_for_untimed_models():
    acquisition = strong()
    assert len(encoding_of(acquisition).b) == 5
    assert len(encoding_of(two_shells(), timed=False).b) == 3


def test_populations_are_the_peaks_in_their_order():
    """Peaks of length 0 are absent, wherever they are in the list."""
    peaks = SimpleNamespace(peak_dirs=np.array([
        [[0.0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]],
    ]))  # fmt: skip
    found = populations(peaks, (2,))
    assert found["n_fibres"].tolist() == [2, 1]
    np.testing.assert_array_equal(found["axes"][0, :2], [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(found["axes"][1, 0], [0, 1, 0])
    two = SimpleNamespace(peak_dirs=peaks.peak_dirs[:, :2])
    assert populations(two, (2,))["n_fibres"].tolist() == [1, 1]
    assert populations(None, (2, 3))["n_fibres"].tolist() == [1] * 6


def test_a_model_without_compartments_is_refused():
    with pytest.raises(ValueError, match="'empty' has no compartments"):
        Definition("empty", (), ())
