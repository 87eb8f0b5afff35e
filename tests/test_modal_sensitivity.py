"""Derivatives in the span of Laplace modes against the exact adjoint of time steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from body_fitted_cases import box

from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.bloch_torrey.finite_elements import eigenmodes
from dipy_spinverse.bloch_torrey.finite_elements.modal_sensitivity import ModalSensitivities
from dipy_spinverse.bloch_torrey.finite_elements.operator import simulate_finite_elements
from dipy_spinverse.grid import TetrahedralGrid, bcc_grid
from dipy_spinverse.grid.regions import membranes_between

RNG = np.random.default_rng(0)
DIRECTIONS = RNG.normal(size=(3, 3))
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1)[:, None]


def acquisition(b_values=(0.5, 6.0), timings=((5.0, 12.0), (5.0, 30.0), (3.0, 12.0))):
    """A b0, and all directions at all b and timings."""
    rows = [(b, *d, *t) for b in b_values for t in timings for d in DIRECTIONS]
    b, x, y, z, small, big = np.array([(0, 0, 0, 0, 5.0, 12.0), *rows]).T
    return Acquisition(b, np.column_stack([x, y, z]), small, big)


def bent_grid(cells=(3, 3, 4), size=(5.0, 5.0, 9.0)):
    """A box, beaded and bent."""
    grid = box(cells, size)
    points = grid.points_um - grid.points_um.mean(axis=0)
    z = points[:, 2:]
    points = points * (1 + 0.15 * np.sin(z) * [1, 1, 0]) + 0.03 * z**2 * [1, 0, 0]
    return TetrahedralGrid.from_tetrahedra(points, grid.tetrahedra, "reflecting")


GRID = bent_grid()
OPEN = np.full(GRID.n_faces, np.inf)
PARTED = membranes_between(GRID, (GRID.centroids[:, 2] > 0.9).astype(int), 0.05)
WEIGHTS = RNG.normal(size=len(acquisition()))


def exact(permeability):
    """Signals, and derivatives by points of their weighted sum."""
    points = torch.tensor(GRID.points_um, requires_grad=True)
    signals = simulate_finite_elements(acquisition(), GRID, permeability, points_um=points)
    (signals * torch.as_tensor(WEIGHTS)).sum().backward()
    return signals.detach().numpy(), points.grad.numpy()


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("permeability", [OPEN, PARTED], ids=["open", "membrane"])
def test_all_modes_give_the_exact_adjoint_and_few_of_them_nearly(permeability):
    signals, gradient = exact(permeability)
    solver = ModalSensitivities(acquisition(), GRID, permeability)
    # what the issue asks for, of all vertices
    for body, tolerance in (
        (solver.at(GRID.points_um), 5e-3),
        (ModalSensitivities(acquisition(), GRID, permeability, length_scale_um=0, steps=48)
         .at(GRID.points_um), 1e-4),
    ):  # fmt: skip
        assert relative(body.gradient(WEIGHTS), gradient) < tolerance
        # signals see the modes that are left out in second order
        assert np.abs(body.signals - signals).max() < tolerance / 5


def test_without_the_response_of_the_modes_a_gradient_is_wrong(monkeypatch):
    _, gradient = exact(OPEN)
    body = ModalSensitivities(acquisition(), GRID).at(GRID.points_um)
    with_response = relative(body.gradient(WEIGHTS), gradient)
    monkeypatch.setattr(eigenmodes.Eigenmodes, "response", lambda _, forcing: 0 * forcing)
    # some percent: the modes of a shape that changes are not those of the shape before
    assert relative(body.gradient(WEIGHTS), gradient) > 5 * with_response


def test_the_jacobian_is_the_transpose_of_the_gradient():
    body = ModalSensitivities(acquisition(), GRID, PARTED).at(GRID.points_um)
    fields = RNG.normal(size=(5, *GRID.points_um.shape))
    by_gradient = (fields * body.gradient(WEIGHTS)).sum(axis=(1, 2))
    # the same sums in another order
    np.testing.assert_allclose(WEIGHTS @ body.jacobian(fields), by_gradient, rtol=1e-9)


def test_signals_do_not_change_when_a_body_is_moved_or_mirrored_at_a_point():
    solver = ModalSensitivities(acquisition(), GRID)
    body = solver.at(GRID.points_um)
    moved = solver.at(GRID.points_um + [5.0, -3.0, 1.0])
    np.testing.assert_allclose(moved.signals, body.signals, atol=1e-9)
    along = np.tile([1.0, 2.0, 3.0], (1, len(GRID.points_um), 1))
    assert np.abs(body.jacobian(along)).max() < 1e-9
    mirrored = TetrahedralGrid.from_tetrahedra(-GRID.points_um, GRID.tetrahedra, "reflecting")
    other = ModalSensitivities(acquisition(), mirrored).at(mirrored.points_um)
    np.testing.assert_allclose(other.signals, body.signals, atol=1e-9)


def test_many_wave_numbers_are_told_from_a_few():
    many = np.linspace(0.1, 10.0, 40)
    dense = ModalSensitivities(acquisition(many, ((5.0, 12.0),)), GRID).at(GRID.points_um)
    few = ModalSensitivities(acquisition(many[7::8], ((5.0, 12.0),)), GRID).at(GRID.points_um)
    (part,) = dense._pulse_states
    assert part.group.q.shape[1] < 20
    at_few = dense.signals[1:].reshape(40, -1)[7::8].ravel()
    # of a series that is cut where its terms are below 1e-4 at the very most
    np.testing.assert_allclose(at_few, few.signals[1:], atol=1e-5)
    weights = np.zeros((40, 3))
    weights[7::8] = WEIGHTS[:15].reshape(5, 3)
    apart = relative(
        dense.gradient(np.append(0, weights)), few.gradient(np.append(0, WEIGHTS[:15]))
    )
    assert apart < 1e-4


def test_shift_and_invert_gives_what_all_modes_give(monkeypatch):
    solver = ModalSensitivities(acquisition(), GRID, PARTED)
    dense = solver.at(GRID.points_um)
    fields = RNG.normal(size=(2, *GRID.points_um.shape))
    monkeypatch.setattr(eigenmodes, "_DENSE_NODES", 10)
    sparse = solver.at(GRID.points_um)
    assert sparse.modes.factors is not None
    assert len(sparse.modes.rates) == len(dense.modes.rates)
    np.testing.assert_allclose(sparse.signals, dense.signals, atol=1e-8)
    # conjugate gradients stop at 1e-4 of the response
    assert relative(sparse.gradient(WEIGHTS), dense.gradient(WEIGHTS)) < 1e-4
    assert relative(sparse.jacobian(fields), dense.jacobian(fields)) < 1e-4


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="^grid is periodic"):
        ModalSensitivities(acquisition(), bcc_grid(3, 1.0))
    with pytest.raises(ValueError, match="^steps is 6"):
        ModalSensitivities(acquisition(), GRID, steps=6)
    with pytest.raises(ValueError, match="^length_scale_um is -1"):
        ModalSensitivities(acquisition(), GRID, length_scale_um=-1)
    with pytest.raises(ValueError, match="inverted"):
        ModalSensitivities(acquisition(), GRID).at(-GRID.points_um)


def test_modes_without_forcing_have_no_response_and_stop_no_others(monkeypatch):
    monkeypatch.setattr(eigenmodes, "_DENSE_NODES", 10)
    grid = bent_grid((4, 4, 6))
    modes = ModalSensitivities(acquisition(), grid).at(grid.points_um).modes
    assert modes.factors is not None
    forcing = np.random.default_rng(0).normal(size=modes.shapes.shape)
    alone = modes._far_response(forcing)
    forcing[:, 0] = 0
    forcing[:, 1] = modes.shapes[:, 2]  # nothing but rounding is left outside of the modes
    response = modes._far_response(forcing)
    np.testing.assert_allclose(response[:, :2], 0, atol=1e-9)
    np.testing.assert_allclose(response[:, 2:], alone[:, 2:], atol=1e-3 * np.abs(alone).max())
