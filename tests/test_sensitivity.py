"""The derivatives of the simulation, the ways to compute it, and its bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bloch_torrey_cases import (
    DIRECTIONS,
    distorted_grid,
    encodings,
    mixed_acquisition,
    random_permeability,
)

from dipy_spinverse.bloch_torrey import (
    Simulator,
    permeability_of,
    relative_transmissibility,
    simulate,
    simulate_with_jacobian,
)
from dipy_spinverse.bloch_torrey.finite_volumes.operator import links_of
from dipy_spinverse.grid import bcc_grid

# ---------------------------------------------------------------- derivatives


def central_differences(acquisition, grid, permeability, faces, **settings):
    """d signal / d ln(kappa) of some faces, (M, len(faces))."""
    change = 1e-3  # truncation ~ change^2 / 6 = 2e-7
    fields = np.repeat(permeability[None], 2 * len(faces), axis=0)
    fields[np.arange(len(faces)), faces] *= np.exp(change)
    fields[np.arange(len(faces)) + len(faces), faces] *= np.exp(-change)
    signals = simulate(acquisition, grid, fields, **settings)
    return (signals[: len(faces)] - signals[len(faces) :]).T / (2 * change)


def jacobian_error(grid, steps):
    permeability = np.random.default_rng(6).uniform(0.02, 1, grid.n_faces)
    acquisition = mixed_acquisition()
    acquisition = acquisition.subset(~acquisition.b0_mask)
    faces = np.random.default_rng(7).choice(grid.n_faces, 40, replace=False)
    t2 = np.random.default_rng(2).uniform(20, 80, grid.n_tetrahedra)
    settings = {"steps": steps, "t2_ms": t2}
    expected = central_differences(acquisition, grid, permeability, faces, **settings)
    jacobian = simulate_with_jacobian(acquisition, grid, permeability, **settings)[1][:, faces]
    return np.linalg.norm(jacobian - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("boundary", ["periodic", "absorbing"])
def test_jacobian_matches_central_differences_at_default_steps(boundary):
    grid = bcc_grid(3, 5.0) if boundary == "periodic" else distorted_grid(boundary)
    assert jacobian_error(grid, steps=8) < 1e-3


@pytest.mark.parametrize("boundary", ["periodic", "absorbing"])
def test_jacobian_converges_to_central_differences_with_more_steps(boundary):
    grid = bcc_grid(3, 5.0) if boundary == "periodic" else distorted_grid(boundary)
    assert jacobian_error(grid, steps=48) < 1e-6


def test_autograd_gives_the_numbers_of_the_jacobian():
    grid, acquisition = bcc_grid(3, 5.0), mixed_acquisition()
    fields = random_permeability(grid, shape=(2,))
    weights = np.random.default_rng(8).normal(size=(2, len(acquisition)))
    _, jacobian = simulate_with_jacobian(acquisition, grid, fields)
    expected = np.einsum("vm,vmf->vf", weights, jacobian)
    kappa = torch.tensor(fields, requires_grad=True)
    signals = simulate(acquisition, grid, kappa)
    (signals * torch.as_tensor(weights)).sum().backward()
    per_log = kappa.grad.numpy() * np.where(np.isfinite(fields), fields, 0)
    np.testing.assert_allclose(per_log, expected, atol=1e-12)


def test_autograd_is_finite_at_closed_and_open_faces():
    grid, acquisition = bcc_grid(3, 5.0), encodings(1.0, DIRECTIONS[:2])
    fields = random_permeability(grid)
    kappa = torch.tensor(fields, requires_grad=True)
    simulate(acquisition, grid, kappa).sum().backward()
    gradient = kappa.grad.numpy()
    assert np.isfinite(gradient).all()
    assert (gradient[np.isinf(fields)] == 0).all()
    # opening a closed face changes the signal
    assert np.abs(gradient[fields == 0]).min() > 0


# ---------------------------------------------------------------- the ways to compute


def test_the_compiled_sweep_and_the_torch_sweep_agree():
    grid, acquisition = distorted_grid("absorbing"), mixed_acquisition()
    tau = relative_transmissibility(grid, random_permeability(grid, shape=(2,)))
    simulator = Simulator(acquisition, grid)
    operator = simulator._operator(torch.as_tensor(tau))
    faces = grid.face_tetrahedra, links_of(grid).face_links, simulator._weights**-0.5
    for timing in simulator.timings:
        compiled, plain = (
            sweep(operator, timing.sensitivities, slice(None))
            for sweep in (simulator._compiled_sweep, simulator._torch_sweep)
        )
        np.testing.assert_allclose(plain.signals(), compiled.signals(), atol=1e-12)
        for x, y in zip(
            plain.by_conductances(*faces), compiled.by_conductances(*faces), strict=True
        ):
            np.testing.assert_allclose(x, y, atol=1e-12)


def test_float32_is_close_to_float64():
    grid, acquisition = bcc_grid(4, 5.0), mixed_acquisition()
    permeability = random_permeability(grid)
    double = simulate_with_jacobian(acquisition, grid, permeability)
    single = simulate_with_jacobian(acquisition, grid, permeability, dtype="float32")
    assert single[0].dtype == single[1].dtype == np.float32
    # some hundred products, each rounded to 6e-8
    np.testing.assert_allclose(single[0], double[0], atol=2e-5)
    np.testing.assert_allclose(single[1], double[1], atol=1e-4 * np.abs(double[1]).max())


def test_what_a_gpu_computes_in_float32_agrees_with_float64(monkeypatch):
    grid, acquisition = bcc_grid(4, 5.0), mixed_acquisition()
    fields = random_permeability(grid, shape=(2,))
    double = simulate_with_jacobian(acquisition, grid, fields)
    # The sweep of other devices, here on the CPU.
    monkeypatch.setattr(Simulator, "_compiled_sweep", Simulator._torch_sweep)
    single = simulate_with_jacobian(acquisition, grid, fields, dtype="float32")
    assert single[0].dtype == single[1].dtype == np.float32
    # What is promised of a GPU.
    np.testing.assert_allclose(single[0], double[0], atol=1e-3)
    np.testing.assert_allclose(single[1], double[1], atol=1e-3 * np.abs(double[1]).max())
    kappa = torch.tensor(fields, dtype=torch.float32, requires_grad=True)
    simulate(acquisition, grid, kappa, dtype="float32").sum().backward()
    assert torch.isfinite(kappa.grad).all()


def test_the_number_of_threads_does_not_change_the_signals():
    grid, acquisition = bcc_grid(3, 5.0), encodings([1.0, 2.0], DIRECTIONS)
    fields = random_permeability(grid, shape=(3,))
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(simulate_with_jacobian(acquisition, grid, fields))
    finally:
        torch.set_num_threads(threads)
    for signals, jacobian in results[1:]:
        np.testing.assert_array_equal(signals, results[0][0])
        np.testing.assert_array_equal(jacobian, results[0][1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_cuda_gives_the_signals_of_the_cpu():
    grid, acquisition = bcc_grid(3, 5.0), mixed_acquisition()
    fields = random_permeability(grid, shape=(2,))
    expected = simulate_with_jacobian(acquisition, grid, fields)
    found = simulate_with_jacobian(acquisition, grid, fields, device="cuda")
    np.testing.assert_allclose(found[0], expected[0], atol=1e-10)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-10)
    kappa = torch.tensor(fields, device="cuda", requires_grad=True)
    signals = simulate(acquisition, grid, kappa, device="cuda")
    assert signals.device.type == "cuda"
    np.testing.assert_allclose(signals.detach().cpu(), expected[0], atol=1e-7)
    signals.sum().backward()
    assert torch.isfinite(kappa.grad).all()


def test_arrays_give_arrays_and_tensors_give_tensors():
    grid, acquisition = bcc_grid(3, 5.0), encodings(1.0, DIRECTIONS[:2])
    ones = np.ones(grid.n_faces, dtype=int)
    from_array = simulate(acquisition, grid, ones)
    assert isinstance(from_array, np.ndarray) and from_array.shape == (2,)
    from_tensor = simulate(acquisition, grid, torch.as_tensor(ones))
    assert isinstance(from_tensor, torch.Tensor)
    np.testing.assert_array_equal(from_tensor, from_array)


def test_permeability_and_transmissibility_are_inverse():
    grid = distorted_grid("reflecting")
    permeability = random_permeability(grid)
    tau = relative_transmissibility(grid, permeability, 1.7)
    assert tau.min() == 0 and tau.max() == 1
    back = permeability_of(grid, tau, 1.7)
    np.testing.assert_allclose(back, permeability, rtol=1e-9)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("permeability", {"permeability": np.ones(7)}),
        ("permeability", {"permeability": np.ones((2, 2, 648))}),
        ("permeability", {"permeability": np.ones((0, 648))}),
        ("permeability", {"permeability": np.float64(1.0)}),
        ("permeability", {"permeability": np.full(648, -0.1)}),
        ("permeability", {"permeability": np.full(648, np.nan)}),
        ("diffusivity", {"diffusivity": 0.0}),
        ("diffusivity", {"diffusivity": -2.0}),
        ("diffusivity", {"diffusivity": np.nan}),
        ("diffusivity", {"diffusivity": [2.0, 1.0]}),
        ("t2_ms", {"t2_ms": 0.0}),
        ("t2_ms", {"t2_ms": np.nan}),
        ("t2_ms", {"t2_ms": np.full(5, 80.0)}),
        ("steps", {"steps": 7}),
        ("steps", {"steps": 0}),
        ("steps", {"steps": 2.5}),
        ("dtype", {"dtype": "float16"}),
        ("device", {"device": "abacus"}),
    ],
)
@pytest.mark.parametrize("solve", [simulate, simulate_with_jacobian])
def test_bad_input_raises_an_error_that_names_the_argument(solve, name, change):
    grid = bcc_grid(3, 5.0)
    assert grid.n_faces == 648
    arguments = {"permeability": np.ones(grid.n_faces)} | change
    with pytest.raises(ValueError, match=f"^{name} is|^{name} has"):
        solve(encodings(1.0, DIRECTIONS[:1]), grid, **arguments)
