"""Cells that fill tetrahedra partly."""

from __future__ import annotations

import numpy as np
import pytest

from dipy_spinverse import Acquisition, bcc_grid, simulate
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.bloch_torrey import relative_transmissibility
from dipy_spinverse.bloch_torrey.finite_volumes.partial_volume import (
    PartialVolumeSimulator,
    WallAreaSimulator,
)
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
    signals = simulator.partial_signals(inside.astype(float), tau[:, 0])
    np.testing.assert_allclose(signals, expected, atol=1e-7)  # of the series in time
    # Which side is called the inside makes no difference.
    inside_out = simulator.partial_signals(1.0 - inside, tau[:, 0])
    np.testing.assert_allclose(inside_out, signals, atol=1e-12)


def test_walls_through_a_layer_do_not_hold_up_water_along_them():
    half, tight = np.full(GRID.n_tetrahedra, 0.5), np.array([0.0, 1.0])
    free = simulate(pulses(), GRID, np.full(GRID.n_faces, np.inf))
    aligned = PartialVolumeSimulator(pulses(), GRID, odds_ratio=1e12).partial_signals(half, tight)
    np.testing.assert_allclose(aligned, free, atol=1e-6)  # at large odds
    # By chance half of each face is a wall, and water diffuses half as fast: exp(-b D / 2).
    by_chance = PartialVolumeSimulator(pulses(), GRID).partial_signals(half, tight)
    assert (by_chance > 5 * free)[pulses().b > 0].all()


@pytest.mark.parametrize("odds_ratio", [1, 30])
@pytest.mark.parametrize("of_areas", [False, True], ids=["transmissibility", "areas"])
@pytest.mark.parametrize("acquisition", [pulses(), asymmetric()], ids=["pulses", "asymmetric"])
def test_derivatives_agree_with_differences(acquisition, of_areas, odds_ratio):
    rng = np.random.default_rng(0)
    fractions, walls = rng.uniform(0.1, 0.9, GRID.n_tetrahedra), leaks()
    simulator = PartialVolumeSimulator(acquisition, GRID, steps=32, odds_ratio=odds_ratio)
    if of_areas:
        fractions = np.append(fractions, rng.uniform(0.1, 0.9, len(GRID.outer_faces)))
        walls = rng.uniform(0.05, 0.2, GRID.n_tetrahedra)
        simulator = WallAreaSimulator(acquisition, GRID, steps=32, odds_ratio=odds_ratio)
    signals, *jacobian = simulator.partial_sensitivities(fractions, walls)
    here = simulator.partial_signals(fractions, walls)
    np.testing.assert_allclose(signals, here, atol=1e-8)  # of the series in time
    step = 1e-5
    for ways in ((rng.standard_normal(len(fractions)), 0 * walls),
                 (0 * fractions, rng.standard_normal(len(walls)))):  # fmt: skip
        ahead, behind = (
            simulator.partial_signals(fractions + s * ways[0], walls + s * ways[1])
            for s in (step, -step)
        )
        differences = (ahead - behind) / (2 * step)
        # 32 steps: the quadrature in time errs by 1e-5 of the largest.
        slopes = jacobian[0] @ ways[0] + jacobian[1] @ ways[1]
        np.testing.assert_allclose(slopes, differences, atol=1e-4 * abs(differences).max())


def test_water_inside_is_lost_to_the_side_of_the_box_through_its_wall():
    simulator = WallAreaSimulator(pulses(), GRID)
    full, walls = np.ones(GRID.n_tetrahedra), np.zeros(GRID.n_tetrahedra)
    sides = np.ones(len(GRID.outer_faces))
    touching, apart = (
        simulator.partial_signals(np.append(full, x), walls)[0] for x in (sides, 0 * sides)
    )
    # A cell that fills the box and its sides loses water as if there were no wall; one that ends
    # before the sides, and whose wall is tight, keeps all but the water beside the lattice.
    free = simulate(pulses(), GRID, np.full(GRID.n_faces, np.inf))[0]
    np.testing.assert_allclose(touching, free, rtol=1e-6)
    np.testing.assert_allclose(apart, GRID.volume_um3 / GRID.box_volume_um3, rtol=1e-6)
    areas = np.bincount(GRID.outer_tetrahedra, GRID.outer_areas, GRID.n_tetrahedra)
    lost = simulator.partial_signals(np.append(full, 0 * sides), WALL * areas)[0]
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
    *changed, here = (simulator.partial_signals(x, leaks()) for x in flipped)
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
    permeability = np.array([0.02, 0.1])
    first, second = GRID.face_tetrahedra.T
    of_face = permeability[np.where(inside[first], cells[first], cells[second])]
    walls = inside[first] != inside[second]
    expected = simulate(pulses(), GRID, np.where(walls, of_face, np.inf), steps=32)
    # The area of each wall face belongs to the tetrahedron inside.
    within = np.where(inside[first], first, second)[walls]
    areas = np.bincount(within, GRID.face_areas[walls], GRID.n_tetrahedra)
    sides = np.zeros(len(GRID.outer_faces))
    simulator = WallAreaSimulator(pulses(), GRID, steps=32)
    signals = simulator.partial_signals(
        np.append(inside.astype(float), sides), areas * permeability[cells]
    )
    np.testing.assert_allclose(signals, expected, atol=1e-7)  # of the series in time


def test_the_exchange_of_cells_is_that_of_their_walls_wherever_these_are():
    """Loss of water inside through tight pores: its rate is permeability times area."""
    grid = bcc_grid(4, 4.0, boundary="periodic")
    fractions = np.random.default_rng(0).uniform(0.0, 1.0, grid.n_tetrahedra)
    walls = 1e-6 * np.random.default_rng(1).uniform(0.0, 1.0, grid.n_tetrahedra)
    simulator = WallAreaSimulator(pulses(), grid, odds_ratio=30)
    pools = simulator._pools(fractions, walls, False)
    crossing, crossing_neighbours = pools.operator[2][0], pools.operator[3]
    exchange = (crossing * pools.start[:, None] * pools.start[crossing_neighbours]).sum() / 2
    assert exchange * grid.volume_um3 == pytest.approx(walls.sum(), rel=1e-3)
