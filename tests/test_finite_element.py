"""Finite elements against exact solutions, Monte-Carlo-free limits, and other assemblies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from body_fitted_cases import box, needs_gmsh, sphere_surface
from scipy.sparse import coo_matrix, diags_array
from scipy.sparse.linalg import eigsh

from benchmarks.analytic_signals import (
    long_time_diffusivity,
    permeable_planes_signal,
    restricted_signal,
)
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import simulate
from dipy_spinverse.bloch_torrey.analytic import free_signal
from dipy_spinverse.bloch_torrey.finite_elements.matrix_formalism import (
    laplace_modes,
    length_scale_for,
    simulate_modes,
)
from dipy_spinverse.bloch_torrey.finite_elements.operator import (
    coefficients,
    finite_elements,
    lumped_network,
    simulate_finite_elements,
)
from dipy_spinverse.bloch_torrey.finite_elements.sweep import symmetrised_matrix
from dipy_spinverse.grid import TetrahedralGrid, bcc_grid
from dipy_spinverse.grid.packed_cylinders import packed_cylinders_grid
from dipy_spinverse.grid.regions import membranes_between
from dipy_spinverse.grid.surfaces import mesh_surfaces

D = 2.0  # um^2/ms
DIRECTIONS = np.array([[1, 0, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1], [1, -2, 3]])
DIRECTIONS = DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1)[:, None]


def acquisition(b, directions=DIRECTIONS, small_delta=5.0, big_delta=20.0):
    directions = np.atleast_2d(directions)
    b = np.atleast_1d(b)
    return Acquisition(
        b=np.repeat(b, len(directions)),
        directions=np.tile(directions, (len(b), 1)),
        small_delta=small_delta,
        big_delta=big_delta,
    )


def everywhere_open(grid):
    return np.full(grid.n_faces, np.inf)


# ---------------------------------------------------------------- against exact solutions


def test_free_water_is_free_on_a_periodic_grid():
    several = acquisition([0.5, 1.0])
    errors = []
    for cell_size in (2.0, 1.0):
        grid = bcc_grid(3, cell_size)
        signals = simulate_finite_elements(several, grid, everywhere_open(grid))
        errors.append(np.abs(signals - free_signal(several, D)).max())
    assert errors[1] < 1e-3
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)  # second order


def test_slab_matches_the_exact_solution():
    grid = box((16, 2, 2), (6.0, 2.0, 2.0))
    across = acquisition([0.5, 2.0, 5.0], [1, 0, 0])
    exact = restricted_signal(across, "slab", 3.0, axis=[1, 0, 0])
    signals = simulate_finite_elements(across, grid, everywhere_open(grid))
    # elements of 0.375 um, second order: half of it in um^2 over the width squared
    np.testing.assert_allclose(signals, exact, atol=2e-3)


@pytest.mark.parametrize("kappa", [0.02, 0.2, 1.0])
def test_membranes_of_a_periodic_grid_match_permeable_planes(kappa):
    normal = np.array([1, 1, 0]) / np.sqrt(2)
    grid = bcc_grid([8, 8, 3], 1.0)
    along = grid.face_centroids @ normal * np.sqrt(2)
    on_plane = (np.abs(grid.face_normals @ normal) > 1 - 1e-9) & (
        np.abs((along + 4) % 8 - 4) < 1e-6
    )
    across = acquisition([0.5, 1, 3], normal)
    signals = simulate_finite_elements(across, grid, np.where(on_plane, kappa, np.inf))
    expected = permeable_planes_signal(across, 8 / np.sqrt(2), kappa, normal=normal)
    np.testing.assert_allclose(signals, expected, atol=3e-3)  # edges of 0.87 um


def test_packed_cylinders_without_exchange_keep_the_exact_signal_inside():
    grid, region = packed_cylinders_grid(8.0, [[0, 0]], 3.0, edge_um=0.6)
    closed = membranes_between(grid, region, 0.0)
    across = acquisition([1.0, 5.0], [[1, 0, 0], [1, 2, 0]] / np.sqrt([[1], [5]]))
    total = simulate_finite_elements(across, grid, closed)
    inside = (region == 1) * 1.0
    share = grid.volumes @ inside / grid.volume_um3
    tight = simulate_finite_elements(across, grid, closed, diffusivity=np.where(inside, D, 1e-9))
    # water outside that does not move loses nothing
    np.testing.assert_allclose(
        (tight - (1 - share)) / share, restricted_signal(across, "cylinder", 3.0), atol=4e-3
    )
    assert (total < tight).all()


@pytest.mark.parametrize("radius", [2.0, 5.0, 8.0])
def test_sphere_of_5000_tetrahedra_is_within_half_a_percent(radius):
    needs_gmsh()
    grid, _ = mesh_surfaces([sphere_surface(radius, 0.16 * radius)], 0.16 * radius)
    assert grid.n_tetrahedra <= 5000
    for small, big in ((5.0, 15.0), (10.0, 60.0), (1.0, 40.0)):
        several = acquisition([1.0, 3.0, 5.0], DIRECTIONS[3:], small, big)
        exact = restricted_signal(several, "sphere", radius)
        signals = simulate_finite_elements(several, grid, everywhere_open(grid))
        # the promise; measured 0.4 %
        assert np.abs(signals - exact).max() < 0.005


@pytest.mark.parametrize("kappa", [0.0, 0.05])
def test_packed_cylinders_reach_their_tortuosity_limit(kappa):
    grid, region = packed_cylinders_grid(8.0, [[3.0, 1.0]], 3.0, edge_um=0.4)
    permeability = torch.as_tensor(membranes_between(grid, region, kappa))
    elements = finite_elements(grid, permeability)
    diffusivity = torch.full((grid.n_tetrahedra,), D, dtype=torch.float64)
    points = torch.as_tensor(grid.points_um)
    network = lumped_network(
        elements, *(x.numpy() for x in coefficients(elements, points, permeability, diffusivity))
    )
    # homogenisation: the slowest rate at a small wave vector, of the water that takes part
    q, n_images = np.array([1e-2, 0, 0]), len(network.home)
    turn = diags_array(np.exp(1j * network.positions @ q))
    fold = coo_matrix((np.ones(n_images), (network.home, np.arange(n_images)))).tocsr()
    operator = fold @ turn.conj() @ symmetrised_matrix(network) @ turn @ fold.T
    part, share = np.arange(len(network.masses)), 1.0
    if kappa == 0:
        part, share = np.unique(elements.nodes[region == 0]), 1 - np.pi * 9 / 64
    rate = eigsh(operator.tocsc()[part][:, part], 1, sigma=-1e-3, return_eigenvectors=False)[0]
    limit = long_time_diffusivity("cylinder", np.pi * 9 / 64, 3.0, kappa, D) / share
    assert rate / q[0] ** 2 == pytest.approx(limit, rel=5e-3)  # measured 0.4 %, second order


# ---------------------------------------------------------------- the same equations, otherwise


def test_assembly_matches_scikit_fem():
    skfem = pytest.importorskip("skfem")
    from skfem.models.poisson import laplace

    grid = box(3, 4.0)
    grid = TetrahedralGrid.from_tetrahedra(
        grid.points_um + np.random.default_rng(0).uniform(-0.2, 0.2, grid.points_um.shape),
        grid.tetrahedra,
        "reflecting",
    )
    mesh = skfem.MeshTet(grid.points_um.T.copy(), grid.tetrahedra.T.copy(), sort_t=False)
    basis = skfem.Basis(mesh, skfem.ElementTetP1())
    elements = finite_elements(grid, everywhere_open(grid))
    conductance, masses, _ = coefficients(
        elements,
        torch.as_tensor(grid.points_um),
        torch.as_tensor(everywhere_open(grid)),
        torch.full((grid.n_tetrahedra,), D, dtype=torch.float64),
    )
    found = np.zeros((grid.n_points,) * 2)
    i, j = elements.vertices[elements.ends].T
    np.add.at(found, (i, j), -conductance.numpy())
    np.add.at(found, (j, i), -conductance.numpy())
    found -= np.diag(found.sum(axis=1))
    np.testing.assert_allclose(found, D * laplace.assemble(basis).toarray(), atol=1e-12)
    lumped = np.zeros(grid.n_points)
    lumped[elements.vertices] = masses.numpy()
    unit = skfem.LinearForm(lambda v, w: v).assemble(basis)
    np.testing.assert_allclose(lumped, unit, rtol=1e-12)


@pytest.mark.parametrize("boundary", ["periodic", "reflecting", "absorbing"])
def test_finite_elements_and_volumes_converge_to_each_other(boundary):
    several = acquisition([0.3, 1.0], DIRECTIONS[[0, 4]], 2.0, 6.0)
    differences = []
    for cells in (4, 8):
        grid = bcc_grid(cells, 12.0 / cells, boundary=boundary)
        if boundary == "absorbing":  # of the same domain: elements know no box beyond them
            grid = TetrahedralGrid.from_tetrahedra(grid.points_um, grid.tetrahedra, boundary)
        # a wall across (1, 1, 0) through the middle, on faces of both lattices
        normal = np.array([1, 1, 0]) / np.sqrt(2)
        wall = np.abs(grid.face_normals @ normal) > 1 - 1e-9
        wall &= np.abs(grid.face_centroids @ normal) < 1e-6
        kappa = np.where(wall, 0.1, np.inf)
        elements = simulate_finite_elements(several, grid, kappa)
        differences.append(np.abs(elements - simulate(several, grid, kappa)).max())
    # first order where spins leave, second order elsewhere
    assert differences[1] < 0.012
    assert differences[1] < (0.9 if boundary == "absorbing" else 0.6) * differences[0]


def test_faces_without_resistance_are_no_membranes():
    grid = bcc_grid(3, 1.0)
    several = acquisition(1.0)
    open_signal = simulate_finite_elements(several, grid, everywhere_open(grid))
    # 1e2 um/ms is 0.02 um of water more at every face, of 0.6 um between them
    leaky = simulate_finite_elements(several, grid, np.full(grid.n_faces, 1e2))
    np.testing.assert_allclose(leaky, open_signal, atol=2e-2)


# ---------------------------------------------------------------- derivatives


def derivative_case(name):
    if name == "packed":
        grid, region = packed_cylinders_grid(6.0, [[2.0, 1.0]], 2.0, edge_um=1.4)
        kappa = membranes_between(grid, region, 0.05)
    else:
        grid = bcc_grid(3, 4.0, boundary=name)
        kappa = everywhere_open(grid)
        kappa[np.random.default_rng(0).random(grid.n_faces) < 0.3] = 0.05
    several = Acquisition(
        b=[0, 0.2, 0.5, 1, 2],
        directions=DIRECTIONS,
        small_delta=[2, 2, 2, 4, 4],
        big_delta=[3, 3, 3, 9, 9],
        te=20,
    )
    return grid, kappa, several


@pytest.mark.parametrize("name", ["packed", "reflecting", "absorbing"])
def test_derivatives_match_central_differences(name):
    grid, kappa, several = derivative_case(name)
    rng = np.random.default_rng(1)
    points = torch.tensor(grid.points_um, requires_grad=True)
    permeability = torch.tensor(kappa, requires_grad=True)
    signals = simulate_finite_elements(several, grid, permeability, points_um=points, steps=4)
    weights = torch.as_tensor(rng.normal(size=len(several)))
    (signals @ weights).backward()

    def central(move, change, step):
        sides = []
        for sign in (step, -step):
            moved = torch.tensor(grid.points_um + sign * move)
            changed = np.where(np.isfinite(kappa), kappa + sign * change, np.inf)
            with torch.no_grad():
                sides.append(
                    simulate_finite_elements(
                        several, grid, torch.tensor(changed), points_um=moved, steps=4
                    )
                    @ weights
                )
        return float(sides[0] - sides[1]) / (2 * step)

    still, same = np.zeros_like(grid.points_um), np.zeros_like(kappa)
    strongest = int(np.abs(points.grad.numpy()).max(axis=1).argmax())
    for vertex in (strongest, 0):
        move = still.copy()
        move[vertex] = [0.6, -0.7, 0.4]
        expected = central(move, same, 1e-4)
        found = float((points.grad.numpy() * move).sum())
        # 1e-5 of the largest: the step's own error is 1e-7, the series are cut at 1e-8
        assert found == pytest.approx(expected, abs=1e-5 * float(points.grad.abs().max()))
    change = np.where(np.isfinite(kappa), 0.05 * rng.normal(size=kappa.shape), 0)
    found = float(permeability.grad.numpy() @ change)
    assert found == pytest.approx(central(still, change, 1e-3), rel=1e-5)


def test_waveforms_that_are_not_symmetric_in_time_have_exact_derivatives_too():
    grid, kappa, _ = derivative_case("reflecting")
    shape = np.array([1, 1, 0, -2, 0, 0.5, 0.5, -1, 0.5, -0.5])  # of no symmetry, and refocused
    gradients = 0.4 * shape[:, None] * DIRECTIONS[4]
    several = WaveformAcquisition.from_samples(gradients[None], dt_s=1e-3)
    permeability = torch.tensor(kappa, requires_grad=True)
    signal = simulate_finite_elements(several, grid, permeability)[0]
    signal.backward()
    change = np.where(np.isfinite(kappa), 0.01, 0)

    def moved(step):
        return simulate_finite_elements(
            several, grid, np.where(change > 0, kappa + step * change, np.inf)
        )[0]

    expected = (moved(1e-2) - moved(-1e-2)) / 2e-2
    assert float(permeability.grad.numpy() @ change) == pytest.approx(expected, rel=1e-4)
    # and the signal is that of the finite volumes as far as the coarse grid allows
    assert signal.item() == pytest.approx(simulate(several, grid, kappa)[0], abs=0.1)


# ---------------------------------------------------------------- matrix formalism


@pytest.fixture(scope="module")
def two_halves():
    """A closed box parted by a leaky membrane."""
    grid = box((10, 5, 5), (8.0, 4.0, 4.0))
    return grid, membranes_between(grid, (grid.centroids[:, 0] > 4).astype(int), 0.05)


def test_all_modes_together_are_the_time_stepping(two_halves):
    several = acquisition([0.5, 2.0, 5.0])
    signals, _ = simulate_modes(several, laplace_modes(*two_halves, 0.4))
    stepped = simulate_finite_elements(several, *two_halves, steps=64)
    np.testing.assert_allclose(signals, stepped, atol=2e-6)  # the Magnus steps


def test_truncation_error_is_not_underestimated(two_halves):
    several = acquisition([0.5, 2.0, 5.0])
    exact, _ = simulate_modes(several, laplace_modes(*two_halves, 0.4))
    length = length_scale_for(several)
    errors = []
    for scale in (length, length / 4):  # 32 modes, the fewest, and more
        signals, estimate = simulate_modes(several, laplace_modes(*two_halves, scale))
        errors.append(np.abs(signals - exact).max())
        assert errors[-1] <= estimate.max()
    assert errors[0] < 2e-3
    assert errors[1] < errors[0]


# ---------------------------------------------------------------- what is refused


def test_impossible_arguments_are_refused():
    grid = bcc_grid(3, 2.0)
    one, kappa = acquisition(1.0), everywhere_open(grid)
    with pytest.raises(ValueError, match="^diffusivity has shape .* values -2"):
        simulate_finite_elements(one, grid, kappa, diffusivity=-2.0)
    with pytest.raises(ValueError, match="negative or NaN"):
        simulate_finite_elements(one, grid, -kappa)
    with pytest.raises(ValueError, match="steps is 3"):
        simulate_finite_elements(one, grid, kappa, steps=3)
    moved = torch.tensor(grid.points_um)
    moved[0] += 5
    with pytest.raises(ValueError, match="tetrahedra are inverted"):
        simulate_finite_elements(one, grid, kappa, points_um=moved)
    with pytest.raises(ValueError, match="grid is periodic"):
        laplace_modes(grid, kappa, 1.0)
    with pytest.raises(ValueError, match="region has shape"):
        membranes_between(grid, [0, 1], 0.1)
    with pytest.raises(ValueError, match="permeability is -1"):
        membranes_between(grid, (grid.centroids[:, 0] > 0).astype(int), -1.0)
