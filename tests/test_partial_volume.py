"""Cells that fill tetrahedra partly."""

from __future__ import annotations

import numpy as np
import pytest

from dipy_spinverse import Acquisition, bcc_grid, simulate
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.bloch_torrey import relative_transmissibility
from dipy_spinverse.bloch_torrey.finite_volumes.partial_volume import PartialVolumeSimulator
from dipy_spinverse.bloch_torrey.finite_volumes.vector_operations import REGISTER_BYTES

GRID = bcc_grid(3, 4.0, boundary="absorbing")
WALL, OPEN = 0.02, 40.0
pytestmark = pytest.mark.filterwarnings("ignore:The grid is too coarse")


def pulses():
    return Acquisition(
        b=np.array([0.0, 1.0, 2.0, 1.0]), directions=np.array([[0, 0, 0], *np.eye(3)]),
        small_delta=np.array([5.0, 5.0, 5.0, 3.0]), big_delta=np.array([20.0, 20.0, 20.0, 12.0]),
        te=np.array([25.0, 25.0, 25.0, 15.0]),
    )  # fmt: skip


def asymmetric():
    """Gradients (T/m) that turn, and do not repeat backwards, in steps of 1 ms."""
    lobes = np.zeros((1, 14, 3))
    lobes[0, :5, 0], lobes[0, 5:8, 1] = 0.08, 0.06
    lobes[0, 8:, 0] = -0.08 * 5 / 6
    lobes[0, 8:, 1] = -0.06 * 3 / 6
    return WaveformAcquisition.from_samples(lobes, 1e-3)


def leaks():
    tau = relative_transmissibility(GRID, np.array([[WALL], [OPEN]]) + np.zeros(GRID.n_faces))
    # One lattice, so all faces have the same resistance.
    return tau[:, 0]


def ball():
    return np.linalg.norm(GRID.centroids - [0.5, 0.2, 0], axis=1) < 4


@pytest.mark.parametrize("odds_ratio", [1, 30])
@pytest.mark.parametrize("boundary", ["absorbing", "periodic"])
def test_whole_tetrahedra_have_the_signals_of_walls_between_them(boundary, odds_ratio):
    grid = bcc_grid(3, 4.0, boundary=boundary)
    inside = np.linalg.norm(grid.centroids - [0.5, 0.2, 0], axis=1) < 4
    first, second = grid.face_tetrahedra.T
    walls = np.where(inside[first] != inside[second], WALL, OPEN)
    expected = simulate(pulses(), grid, walls)
    tau = relative_transmissibility(grid, np.array([[WALL], [OPEN]]) + np.zeros(grid.n_faces))
    assert np.ptp(tau, axis=1).max() < 1e-12
    simulator = PartialVolumeSimulator(pulses(), grid, odds_ratio=odds_ratio)
    signals = simulator.partial_signals(inside[None].astype(float), tau[:, 0])
    np.testing.assert_allclose(signals[0], expected, atol=1e-7)  # of the series in time
    # Which side is called the inside makes no difference.
    inside_out = simulator.partial_signals(1.0 - inside[None], tau[:, 0])
    np.testing.assert_allclose(inside_out, signals, atol=1e-12)


def test_walls_through_a_layer_do_not_hold_up_water_along_them():
    half, tight = np.full((1, GRID.n_tetrahedra), 0.5), np.array([0.0, 1.0])
    free = simulate(pulses(), GRID, np.full(GRID.n_faces, np.inf))
    aligned = PartialVolumeSimulator(pulses(), GRID, odds_ratio=1e12).partial_signals(half, tight)[
        0
    ]
    np.testing.assert_allclose(aligned, free, atol=1e-6)  # at large odds
    # By chance half of each face is a wall, and water diffuses half as fast: exp(-b D / 2).
    by_chance = PartialVolumeSimulator(pulses(), GRID).partial_signals(half, tight)[0]
    assert (by_chance > 5 * free)[pulses().b > 0].all()


@pytest.mark.parametrize("odds_ratio", [1, 30])
@pytest.mark.parametrize("n_sides", [0, len(GRID.outer_faces)], ids=["open sides", "sides"])
@pytest.mark.parametrize("acquisition", [pulses(), asymmetric()], ids=["pulses", "asymmetric"])
def test_derivatives_agree_with_differences(acquisition, n_sides, odds_ratio):
    rng = np.random.default_rng(0)
    share = rng.uniform(0.1, 0.9, GRID.n_tetrahedra + n_sides)
    simulator = PartialVolumeSimulator(acquisition, GRID, steps=32, odds_ratio=odds_ratio)
    signals, by_share, by_leak = simulator.partial_sensitivities(share, leaks())
    step, way = 1e-5, rng.standard_normal(len(share))
    moved = np.stack([share + step * way, share - step * way, share])
    ahead, behind, here = simulator.partial_signals(moved, leaks())
    np.testing.assert_allclose(signals, here, atol=1e-8)  # of the series in time
    differences = (ahead - behind) / (2 * step)
    # 32 steps: the quadrature in time errs by 1e-5 of the largest.
    np.testing.assert_allclose(by_share @ way, differences, atol=1e-4 * abs(differences).max())
    for k in range(2):
        moved = leaks() + step * np.outer([1, -1], np.eye(2)[k])
        ahead, behind = simulator.partial_signals(np.repeat(share[None], 2, axis=0), moved)
        differences = (ahead - behind) / (2 * step)
        np.testing.assert_allclose(by_leak[:, k], differences, atol=1e-4 * abs(differences).max())


def test_water_inside_is_lost_to_the_side_of_the_box_through_its_wall():
    simulator = PartialVolumeSimulator(pulses(), GRID)
    full, tight = np.ones(GRID.n_tetrahedra), np.array([0.0, 1.0])
    sides = np.ones(len(GRID.outer_faces))
    shares = np.stack([np.r_[full, sides], np.r_[full, 0 * sides]])
    touching, apart = simulator.partial_signals(shares, tight)[:, 0]
    # A cell that fills the box and its sides loses water as if there were no wall; one that ends
    # before the sides, and whose wall is tight, keeps all but the water beside the lattice.
    np.testing.assert_allclose(touching, simulator.partial_signals(full[None], tight)[0, 0])
    np.testing.assert_allclose(apart, GRID.volume_um3 / GRID.box_volume_um3, rtol=1e-6)
    leak = relative_transmissibility(GRID, np.full(GRID.n_faces, WALL))[0]
    lost = simulator.partial_signals(shares[1:], np.array([leak, 1.0]))[0, 0]
    # The wall is as far behind the outer faces as the centroids are in front of them.
    resistance = 1 / WALL + GRID.outer_distances[0] / 2.0
    everywhere = np.full(GRID.n_faces, np.inf)
    walled = simulate(pulses(), GRID, everywhere, outer_permeability=1 / resistance)[0]
    assert 0.1 < walled < 0.9
    np.testing.assert_allclose(lost, walled * apart, rtol=1e-6)


@pytest.mark.parametrize("odds_ratio", [1, 30])
def test_a_share_changes_the_signals_as_much_as_a_whole_tetrahedron(odds_ratio):
    inside = ball()
    first, second = GRID.face_tetrahedra.T
    at_walls = np.unique(GRID.face_tetrahedra[inside[first] != inside[second]])
    simulator = PartialVolumeSimulator(pulses(), GRID, odds_ratio=odds_ratio)
    by_share = simulator.partial_sensitivities(inside.astype(float), leaks())[1]
    flipped = np.repeat(inside[None].astype(float), len(at_walls) + 1, axis=0)
    flipped[np.arange(len(at_walls)), at_walls] = ~inside[at_walls]
    *changed, here = simulator.partial_signals(flipped, leaks())
    exact = np.array(changed) - here
    nearly = (by_share[:, at_walls] * (1 - 2 * inside[at_walls])).T
    cosine = (exact * nearly).sum(axis=1) / np.linalg.norm(exact, axis=1)
    cosine /= np.linalg.norm(nearly, axis=1)
    # Measured on the published lattice: 0.97; derivatives by the permeability of faces have 0.2.
    assert np.median(cosine) > 0.9


def test_chosen_measurements_fill_registers():
    b = np.r_[0.0, np.linspace(0.5, 5, 29)]
    directions = np.random.default_rng(0).standard_normal((30, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    acquisition = Acquisition(
        b=np.tile(b, 2), directions=np.tile(directions, (2, 1)),
        small_delta=np.repeat([5.0, 8.0], 30), big_delta=np.repeat([20.0, 40.0], 30),
    )  # fmt: skip
    simulator = PartialVolumeSimulator(acquisition, GRID, dtype="float32")
    order = np.random.default_rng(1).permutation(60)
    lanes = REGISTER_BYTES // 4
    rows = simulator.fill_registers(order, 2 * lanes)
    assert len(rows) == 2 * lanes
    assert np.bincount(rows // 30).tolist() in ([lanes, lanes], [2 * lanes, 0], [0, 2 * lanes])
    wanted = [set(order[order // 30 == k][:lanes]) for k in (0, 1)]
    assert set(rows) == wanted[0] | wanted[1]
    np.testing.assert_array_equal(simulator.fill_registers(order, 60), np.arange(60))
    assert len(simulator.fill_registers(order, 3)) == lanes


def test_each_cell_has_walls_of_its_own():
    cells = (GRID.centroids[:, 0] > 0).astype(int)
    inside = (
        np.linalg.norm(GRID.centroids - np.where(cells, 3, -3)[:, None] * [1, 0, 0], axis=1) < 2.6
    )
    permeability, leaky = np.array([0.02, 0.1]), np.array([0.02, 0.1, OPEN])
    first, second = GRID.face_tetrahedra.T
    of_face = permeability[np.where(inside[first], cells[first], cells[second])]
    walls = np.where(inside[first] != inside[second], of_face, OPEN)
    expected = simulate(pulses(), GRID, walls, steps=32)
    tau = relative_transmissibility(GRID, leaky[:, None] + np.zeros(GRID.n_faces))[:, 0]
    simulator = PartialVolumeSimulator(pulses(), GRID, steps=32)
    share = inside.astype(float)
    signals = simulator.partial_signals(share[None], tau, cells)[0]
    np.testing.assert_allclose(signals, expected, atol=1e-7)  # of the series in time
    share = np.random.default_rng(0).uniform(0.1, 0.9, GRID.n_tetrahedra)
    by_leak = simulator.partial_sensitivities(share, tau, cells)[2]
    moved = tau + 1e-5 * np.eye(3)[:, None] * np.array([1, -1])[:, None]
    ahead, behind = simulator.partial_signals(
        np.repeat(share[None], 6, axis=0), moved.transpose(1, 0, 2).reshape(6, 3), cells
    ).reshape(2, 3, -1)
    differences = (ahead - behind).T / 2e-5
    np.testing.assert_allclose(by_leak, differences, atol=1e-4 * abs(differences).max())
