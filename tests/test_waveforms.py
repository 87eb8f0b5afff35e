"""Simulation of any gradient waveform, against solutions found in other ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bloch_torrey_cases import DIRECTIONS, distorted_grid, encodings, random_permeability

from dipy_spinverse import FaceInversion, SpinverseModel, identifiability, suggest
from dipy_spinverse.acquisition.encodings import (
    b_tensor_encoding,
    concatenate,
    double_diffusion,
    oscillating_gradients,
    pulsed_gradients,
)
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.acquisition.waveforms import GYROMAGNETIC_RATIO
from dipy_spinverse.bloch_torrey import Simulator, simulate, simulate_with_jacobian
from dipy_spinverse.bloch_torrey.finite_volumes.operator import links_of
from dipy_spinverse.grid import bcc_grid

D = 2.0  # um^2/ms, the default


def random_b_tensors(n=3):
    a = np.random.default_rng(3).normal(size=(n, 3, 3))
    tensors = a @ np.swapaxes(a, 1, 2)
    return tensors / np.trace(tensors, axis1=1, axis2=2)[:, None, None]


def free_waveforms(n=3, samples=60, seed=4):
    """Smooth random gradients (n, samples, 3) that refocus, T/m, for a raster of 0.5 ms."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, np.pi, samples)
    waves = np.sin(t[:, None] * np.arange(1, 6))
    gradients = np.einsum("tk,mki->mti", waves, rng.normal(size=(n, 5, 3)))
    gradients -= gradients.mean(axis=1, keepdims=True)
    return 0.05 * gradients / np.abs(gradients).max(axis=(1, 2), keepdims=True)


KINDS = {
    "ramps": lambda: pulsed_gradients([1.0, 2.0], DIRECTIONS[[0, 5]], 8, 20, ramp=2.0),
    "double": lambda: double_diffusion([0.5, 1.0], DIRECTIONS[:2], DIRECTIONS[5:], 5, 15, 20),
    "cosine": lambda: oscillating_gradients([0.5, 1.0], DIRECTIONS[[2, 6]], 10, 2, 25),
    "sine": lambda: oscillating_gradients([0.5, 1.0], DIRECTIONS[[2, 6]], 10, 2, 25, shape="sine"),
    "b-tensors": lambda: b_tensor_encoding(random_b_tensors(), 40),
    "spherical": lambda: b_tensor_encoding([np.eye(3) / 3], 40),
    "free": lambda: WaveformAcquisition.from_samples(free_waveforms(), 5e-4),
    "stimulated": lambda: pulsed_gradients([1.0], DIRECTIONS[5:6], 8, 100, mixing_time=80),
}
SYMMETRIC = {"ramps", "cosine", "stimulated"}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


# ---------------------------------------------------------------- simulated


def test_free_diffusion_decays_with_the_b_value_of_every_waveform(kind):
    acquisition = KINDS[kind]()
    errors = []
    for cell_size in (2.0, 1.0):
        grid = bcc_grid(3, cell_size)
        signals = simulate(acquisition, grid, np.full(grid.n_faces, np.inf))
        errors.append(signals / np.exp(-acquisition.b * D) - 1)
    # the lattice's error is of second order; what is left after extrapolation is of fourth
    assert np.abs(errors[0]).max() < 0.02
    np.testing.assert_allclose((4 * errors[1] - errors[0]) / 3, 0, atol=5e-4)


def matrix_exponentials(gradients, dt, grid, permeability, loss=0.0, substeps=4):
    """Signals of sampled gradients (M, T, 3), T/m, by dense exponentials of short steps.

    q is built up from the samples here, and the operator from the equations as they stand.
    """
    conductance = np.zeros(grid.n_faces)
    moving = permeability > 0
    conductance[moving] = grid.face_areas[moving] / (
        grid.face_distances[moving].sum(axis=1) / D + 1 / permeability[moving]
    )
    i, j = grid.face_tetrahedra.T
    root = np.sqrt(grid.volumes)
    diagonal = np.zeros(grid.n_tetrahedra)
    np.subtract.at(diagonal, i, conductance / grid.volumes[i])
    np.subtract.at(diagonal, j, conductance / grid.volumes[j])
    start = root / np.linalg.norm(root)
    signals = []
    for gradient in gradients:
        fine = np.repeat(gradient, substeps, axis=0) * GYROMAGNETIC_RATIO * 1e-9
        step = dt / substeps
        q = (np.cumsum(fine, axis=0) - fine / 2) * step
        operator = np.zeros((len(q), grid.n_tetrahedra, grid.n_tetrahedra), complex)
        operator[:, i, j] = (
            np.exp(1j * q @ grid.displacements.T) * conductance / (root[i] * root[j])
        )
        operator += operator.conj().swapaxes(1, 2)
        operator[:, np.arange(len(root)), np.arange(len(root))] += diagonal - loss
        rates, modes = np.linalg.eigh(operator)
        state = start.astype(complex)
        for rate, mode in zip(rates, modes, strict=True):
            state = mode @ (np.exp(rate * step) * (mode.conj().T @ state))
        signals.append((start @ state).real)
    return np.array(signals)


def test_free_waveforms_match_dense_matrix_exponentials():
    grid = distorted_grid("reflecting")
    permeability = random_permeability(grid, seed=1)
    gradients = free_waveforms(4)
    expected = matrix_exponentials(gradients, 0.5, grid, permeability)
    signals = simulate(WaveformAcquisition.from_samples(gradients, 5e-4), grid, permeability)
    # midpoint steps of 0.125 ms are exact to 1e-5 (twice as many change it by 3e-6)
    np.testing.assert_allclose(signals, expected, atol=5e-5)


def test_sampled_pulses_give_the_signals_of_the_pulsed_acquisition():
    grid = distorted_grid("absorbing")
    permeability = random_permeability(grid, seed=1)
    pulsed = encodings([0.5, 3.0], DIRECTIONS, small_delta=8, big_delta=20, te=40)
    gradients = np.zeros((len(pulsed), 280, 3))
    strength = pulsed.gradient_t_per_m[:, None, None] * pulsed.directions[:, None]
    gradients[:, :80] = gradients[:, 200:] = strength
    sampled = WaveformAcquisition.from_samples(gradients, 1e-4, te=0.04, refocusing_s=0.014)
    np.testing.assert_allclose(sampled.b, pulsed.b, rtol=1e-9)
    np.testing.assert_allclose(sampled.b_tensors, pulsed.b_tensors, atol=1e-9)
    # the same schedule, but for rounding; the series of exponentials are cut at 1e-8
    np.testing.assert_allclose(
        simulate(sampled, grid, permeability), simulate(pulsed, grid, permeability), atol=1e-7
    )


def test_the_kind_of_sweep_is_chosen_by_symmetry(kind):
    simulator = Simulator(KINDS[kind](), bcc_grid(3, 5.0))
    symmetric = {timing.signals[0].symmetric for timing in simulator.timings}
    assert symmetric == {kind in SYMMETRIC}


# ---------------------------------------------------------------- differentiated


def test_jacobian_matches_central_differences_for_every_waveform(kind):
    grid, acquisition = distorted_grid("reflecting"), KINDS[kind]()
    permeability = np.random.default_rng(6).uniform(0.02, 1, grid.n_faces)
    faces = np.arange(0, grid.n_faces, 4)
    t2 = np.random.default_rng(2).uniform(20, 80, grid.n_tetrahedra)
    change = 1e-3  # truncation ~ change^2 / 6 = 2e-7
    fields = np.repeat(permeability[None], 2 * len(faces), axis=0)
    fields[np.arange(len(faces)), faces] *= np.exp(change)
    fields[np.arange(len(faces)) + len(faces), faces] *= np.exp(-change)
    # with many steps, what is left are the kinks of q(t) of the coarsely sampled waveform
    for steps, tolerance in ((8, 1e-3), (32, 2e-4 if kind == "free" else 1e-5)):
        settings = {"t2_ms": t2, "steps": steps}
        signals = simulate(acquisition, grid, fields, **settings)
        expected = (signals[: len(faces)] - signals[len(faces) :]).T / (2 * change)
        found = simulate_with_jacobian(acquisition, grid, permeability, **settings)[1][:, faces]
        assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)


def test_separate_adjoint_gives_the_sensitivities_of_the_one_sweep():
    # a waveform that is symmetric but for one part in 10,000 takes the separate adjoint sweep
    grid = distorted_grid("absorbing")
    permeability = random_permeability(grid, seed=2)
    gradients = np.zeros((2, 300, 3))
    gradients[:, :80], gradients[:, 220:] = 0.08, -0.08
    gradients[1, 10], gradients[1, 11] = 0.088, 0.072
    acquisition = WaveformAcquisition.from_samples(gradients, 1e-4)
    simulator = Simulator(acquisition, grid)
    assert sorted(timing.signals[0].symmetric for timing in simulator.timings) == [False, True]
    signals, jacobian = simulate_with_jacobian(acquisition, grid, permeability, steps=16)
    np.testing.assert_allclose(signals[1], signals[0], atol=1e-4)
    np.testing.assert_allclose(jacobian[1], jacobian[0], atol=1e-3 * np.abs(jacobian).max())


def test_autograd_gives_the_numbers_of_the_jacobian_for_every_waveform():
    grid = bcc_grid(3, 5.0)
    acquisition = concatenate(*(make() for make in KINDS.values()))
    field = np.random.default_rng(6).uniform(0.02, 1, grid.n_faces)
    weights = np.random.default_rng(8).normal(size=len(acquisition))
    _, jacobian = simulate_with_jacobian(acquisition, grid, field)
    kappa = torch.tensor(field, requires_grad=True)
    (simulate(acquisition, grid, kappa) @ torch.as_tensor(weights)).backward()
    np.testing.assert_allclose(kappa.grad.numpy() * field, weights @ jacobian, atol=1e-12)


def test_the_compiled_sweep_and_the_torch_sweep_agree_on_waveforms():
    grid = distorted_grid("absorbing")
    acquisition = concatenate(KINDS["free"](), KINDS["stimulated"](), KINDS["ramps"]())
    tau = torch.as_tensor(np.random.default_rng(1).uniform(size=(2, grid.n_faces)))
    simulator = Simulator(acquisition, grid)
    operator = simulator._operator(tau)
    faces = grid.face_tetrahedra, links_of(grid).face_links, simulator._weights**-0.5
    for timing in simulator.timings:
        results = [
            sweep(operator, timing.sensitivities, slice(None)).by_conductances(*faces)
            for sweep in (simulator._compiled_sweep, simulator._torch_sweep)
        ]
        for compiled, plain in zip(*results, strict=True):
            np.testing.assert_allclose(plain, compiled, atol=1e-12)


# ---------------------------------------------------------------- the acquisition


def test_b_tensors_are_those_that_were_asked_for():
    tensors = random_b_tensors()
    acquisition = b_tensor_encoding(tensors, 40)
    np.testing.assert_allclose(acquisition.b_tensors, tensors, atol=1e-12)
    axial = b_tensor_encoding([np.diag([0, 0, 1.0]), np.diag([0.5, 0.5, 0]), np.eye(3) / 3], 40)
    np.testing.assert_allclose(axial.b_anisotropy, [1, -0.5, 0], atol=1e-9)


def test_b_of_trapezoids_is_that_of_the_textbook():
    delta, separation, ramp = 8.0, 20.0, 2.0
    acquisition = pulsed_gradients([1.0], [[1, 0, 0]], delta, separation, ramp=ramp)
    rate = acquisition.waveforms[0].rates.max()
    # Price and Kuchel, J. Magn. Reson. 94 (1991), doi:10.1016/0022-2364(91)90300-H
    expected = delta**2 * (separation - delta / 3) + ramp**3 / 30 - delta * ramp**2 / 6
    np.testing.assert_allclose(rate**2 * expected, 1.0, rtol=1e-12)


def test_subset_and_combination_keep_the_measurements():
    free, double = KINDS["free"](), KINDS["double"]()
    both = concatenate(free, double)
    np.testing.assert_array_equal(both.b, np.concatenate([free.b, double.b]))
    part = both.subset([4, 0])
    np.testing.assert_array_equal(part.b, both.b[[4, 0]])
    np.testing.assert_array_equal(part.b_tensors, both.b_tensors[[4, 0]])
    grid = bcc_grid(3, 5.0)
    walls = random_permeability(grid)
    np.testing.assert_allclose(
        simulate(part, grid, walls), simulate(both, grid, walls)[[4, 0]], atol=1e-6
    )


def test_joined_measurements_are_b0_by_the_larger_threshold():
    low, high = (
        WaveformAcquisition(KINDS[kind]().waveforms, b0_threshold=b)
        for kind, b in (("free", 0.02), ("double", 0.9))
    )
    for both in (concatenate(low, high), concatenate(high, low)):
        assert both.b0_threshold == 0.9
        np.testing.assert_array_equal(both.b0_mask, both.b <= 0.9)


@pytest.mark.parametrize("te", [28.0, 50.0])
def test_an_encoding_is_in_the_middle_of_its_echo_time(te):
    acquisition = pulsed_gradients([1.0], [[1, 0, 0]], 8, 20, te=te)
    (waveform,) = acquisition.waveforms
    assert acquisition.te[0] == waveform.times[-1] == te
    moving = waveform.q_at_knots[:, 0, 0] != 0
    on = (
        waveform.times[np.flatnonzero(moving)[0] - 1],
        waveform.times[np.flatnonzero(moving)[-1] + 1],
    )
    np.testing.assert_allclose(on, (te / 2 - 14, te / 2 + 14))  # delta 8, Delta 20 ms


def test_gradient_table_of_waveforms_has_their_b_tensors():
    acquisition = concatenate(KINDS["free"](), pulsed_gradients([0.0], [[0, 0, 0]], 8, 20))
    gtab = acquisition.to_gtab()
    np.testing.assert_allclose(gtab.btens, 1000 * acquisition.b_tensors, atol=1e-6)
    again = WaveformAcquisition.from_samples(
        [*free_waveforms(), np.zeros((60, 3))], 5e-4, gtab=gtab
    )
    np.testing.assert_allclose(again.b, acquisition.b)


# ---------------------------------------------------------------- the models


def test_models_say_that_they_need_pulses():
    axes = np.concatenate([np.zeros((1, 3)), np.eye(3), np.eye(3)])
    acquisition = pulsed_gradients([0, 1, 1, 1, 2, 2, 2], axes, 8, 20, ramp=1)
    for use in (
        lambda: SpinverseModel(acquisition),
        lambda: identifiability(acquisition),
        lambda: suggest(acquisition),
    ):
        with pytest.raises(ValueError, match="acquisition has free gradient waveforms, and no"):
            use()


def test_a_fit_of_pulses_predicts_waveforms():
    pulsed = encodings([0.0, 1.0], DIRECTIONS)
    model = SpinverseModel(pulsed, grid=bcc_grid(3, 5.0), inversion=FaceInversion())
    fit = model.fit(np.exp(-2 * pulsed.b), sigma=0.02)
    acquisition = KINDS["double"]()
    expected = simulate(acquisition, fit.model.grid, fit.permeability, diffusivity=2.0)
    # predictions are made in single precision
    np.testing.assert_allclose(fit.predict(acquisition, S0=1.0), expected, atol=1e-5)


def test_an_acquisition_needs_a_waveform():
    with pytest.raises(ValueError, match="^waveforms is empty"):
        WaveformAcquisition([])
