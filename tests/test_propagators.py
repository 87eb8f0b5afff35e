"""Every propagator obeys one protocol: its derivatives are those of its signals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bloch_torrey_cases import DIRECTIONS, encodings

from dipy_spinverse.bloch_torrey import Simulator
from dipy_spinverse.bloch_torrey.finite_elements.modal_sensitivity import ModalSensitivities
from dipy_spinverse.bloch_torrey.finite_elements.operator import (
    NetworkPropagator,
    coefficients,
    finite_elements,
)
from dipy_spinverse.bloch_torrey.propagators import differentiable_signals
from dipy_spinverse.grid import bcc_grid

GRID = bcc_grid(3, 2.0, boundary="reflecting")
ACQUISITION = encodings([0.0, 2.0], DIRECTIONS[[0, 5]])


def finite_volumes():
    tau = np.random.default_rng(1).uniform(0.2, 0.8, (2, GRID.n_faces))
    return Simulator(ACQUISITION, GRID, steps=32), [tau]


def network():
    kappa = torch.full((GRID.n_faces,), torch.inf, dtype=torch.float64)
    kappa[::7] = 0.05
    elements = finite_elements(GRID, kappa.numpy())
    points, diffusivity = torch.as_tensor(GRID.points_um), torch.full((GRID.n_tetrahedra,), 2.0)
    parameters = coefficients(elements, points, kappa, diffusivity.double())
    return NetworkPropagator(elements, ACQUISITION, 4), [x.numpy() for x in parameters]


def modes():
    return ModalSensitivities(ACQUISITION, GRID, length_scale_um=0, steps=16), [GRID.points_um]


@pytest.mark.parametrize("case", [finite_volumes, network, modes])
def test_derivatives_are_those_of_the_signals(case):
    propagator, parameters = case()
    rng = np.random.default_rng(0)
    parameters = [torch.tensor(x, requires_grad=True) for x in parameters]
    changes = [torch.as_tensor(1e-2 * x.detach().abs().mean() * torch.as_tensor(
        rng.standard_normal(x.shape))) for x in parameters]  # fmt: skip
    signals = differentiable_signals(propagator, *parameters)
    cotangent = torch.as_tensor(rng.standard_normal(signals.shape))
    gradients = torch.autograd.grad(signals, parameters, cotangent)
    predicted = sum((g * change).sum() for g, change in zip(gradients, changes, strict=True))
    with torch.no_grad():
        forward, backward = (
            propagator.signals(*(x + sign * c for x, c in zip(parameters, changes, strict=True)))
            for sign in (1, -1)
        )
    expected = (cotangent * (forward - backward)).sum() / 2
    # of the sum of absolute values: adjoint quadratures in time are exact to some 1e-4 at these
    # steps, and series are cut at 1e-8 of S0
    size = sum((g * change).abs().sum() for g, change in zip(gradients, changes, strict=True))
    assert float(predicted) == pytest.approx(float(expected), abs=1e-3 * float(size))


@pytest.mark.parametrize("case", [finite_volumes, network, modes])
def test_without_gradients_closed_grids_keep_their_signal(case):
    propagator, parameters = case()
    signals = propagator.signals(*map(torch.as_tensor, parameters))
    np.testing.assert_allclose(signals[..., :2], 1, atol=1e-12)


def test_second_derivatives_are_refused():
    propagator, (tau,) = finite_volumes()
    tau = torch.tensor(tau, requires_grad=True)
    loss = (differentiable_signals(propagator, tau) ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, tau, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(gradient.sum(), tau)
