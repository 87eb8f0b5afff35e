"""The search for separate cells in a box with an absorbing outside."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from dipy_spinverse import Acquisition, SpinverseModel, bcc_grid, compare_walls, simulate
from dipy_spinverse.bloch_torrey.finite_volumes.partial_volume import PartialVolumeSimulator
from dipy_spinverse.cell_search import CellInversion, CellSearchBudget
from dipy_spinverse.cell_search.bodies import Tube, random_bodies, random_cell
from dipy_spinverse.cell_search.cell_operations import CellOperations
from dipy_spinverse.cell_search.condensed import CondensedTarget
from dipy_spinverse.cell_search.descent import Descent
from dipy_spinverse.cell_search.evolution import Evolution
from dipy_spinverse.cell_search.exact_data import ExactData
from dipy_spinverse.cell_search.joint_changes import jointly_improved
from dipy_spinverse.cell_search.labelled import (
    LabelledCells,
    SimulatedCells,
    Target,
    at_walls,
    label_changes,
)
from dipy_spinverse.cell_search.local_search import LabelErrorMisfit
from dipy_spinverse.cell_search.member import Member, SearchTools
from dipy_spinverse.cell_search.noisy_data import medoid, posterior_ensemble
from dipy_spinverse.cell_search.probability import (
    BY_EDGE,
    BY_FACE,
    NegativeLogPosterior,
    Smoothness,
    shared_points,
)
from dipy_spinverse.cell_search.search import CellSearch, SearchResult
from dipy_spinverse.cell_search.separate_cells import SeparateCells
from dipy_spinverse.spinverse import ClosedCellInversion
from dipy_spinverse.voxels.rician import rician_mean
from dipy_spinverse.voxels.status import Status

GRID = bcc_grid(3, 6.0, boundary="absorbing")
TRANSMISSIBILITY = np.array([0.01, 0.99])
pytestmark = pytest.mark.filterwarnings("ignore:The grid is too coarse")

# All steps of a search within seconds; it rarely recovers the cells.
QUICK = CellSearchBudget(
    n_searched=32,
    n_condensed=32,
    n_bodies=40,
    n_examples=40,
    n_single_cells=60,
    n_initial=2,
    n_disturbed=2,
    n_first_steps=4,
    n_rounds=1,
    n_cycles=1,
    n_combinations=20,
    n_descents=2,
    n_translated=1,
    n_best=2,
)


def acquisition_of(n_directions, n_b0=1):
    rng = np.random.default_rng(3)
    directions = rng.standard_normal((n_directions, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    b = np.concatenate([np.zeros(n_b0), np.repeat([1.0, 3.0, 5.0], n_directions)])
    directions = np.concatenate([np.zeros((n_b0, 3)), np.tile(directions, (3, 1))])
    return Acquisition(
        b=np.tile(b, 3), directions=np.tile(directions, (3, 1)),
        small_delta=np.repeat([5.0, 10.0, 10.0], len(b)),
        big_delta=np.repeat([6.0, 20.0, 60.0], len(b)), te=np.repeat([11.0, 30.0, 70.0], len(b)),
    )  # fmt: skip


def letter_l(grid):
    """An L in the middle of the box."""
    x, y, z = grid.centroids.T
    upright = (abs(x + 2.5) < 2.6) & (abs(y) < 6)
    foot = (abs(y + 3.5) < 2.6) & (abs(x - 0.5) < 6)
    return (upright | foot) & (abs(z - 1) < 3)


def walls_of(labels, grid=GRID):
    first, second = grid.face_tetrahedra.T
    return labels[first] != labels[second]


def target_of(acquisition, labels, sigma, rician=0.0, noise=None):
    simulator = PartialVolumeSimulator(acquisition, GRID, steps=4)
    size = np.full(len(acquisition), sigma)
    target = Target(simulator, np.zeros(len(size)), size, np.full(len(size), rician))
    target.data = target.simulate(labels[None], TRANSMISSIBILITY[None])[0]
    if noise is not None:
        target.data = target.data + sigma * noise
    return target


def objective_of(target, cells):
    return NegativeLogPosterior(Smoothness(GRID), target, [cells])


def inversion_of(acquisition, n=0):
    return CellInversion(acquisition, GRID, diffusivity=2.0, n_fields=n, seed=0, budget=QUICK)


def signals_of_l(acquisition):
    return simulate(acquisition, GRID, np.where(walls_of(letter_l(GRID)), 0.01, 100.0))


@pytest.mark.parametrize("ring", [False, True])
def test_bodies_are_tubes_around_their_points(ring):
    if ring:
        angle = 2 * np.pi * np.arange(8) / 8
        line = np.stack([6 * np.cos(angle), 6 * np.sin(angle), 0 * angle], axis=1)
    else:
        line = np.array([[-5.0, 0, 0], [5.0, 0, 0]])
    control = np.hstack([line, np.full((len(line), 1), np.log(3.0))])
    points = np.random.default_rng(0).uniform(-12, 12, (2000, 3))
    if ring:
        away = np.hypot(np.hypot(points[:, 0], points[:, 1]) - 6, points[:, 2])
    else:
        away = np.linalg.norm(points - points[:, :1].clip(-5, 5) * [1, 0, 0], axis=1)
    # The line is cut into points 0.6 um apart, which makes dents of 0.02 um.
    clear = abs(away - 3.0) > 0.03
    np.testing.assert_array_equal(
        Tube(control, ring).depth(points)[clear] > 0, (away < 3.0)[clear]
    )


def test_random_bodies_fit_into_the_box_and_repeat_by_seed():
    drawn = [random_bodies(np.random.default_rng(k), GRID) for k in (0, 1, 1)]
    assert all(0.04 < labels.mean() < 0.4 for labels in drawn)
    np.testing.assert_array_equal(drawn[1], drawn[2])
    assert (drawn[0] != drawn[1]).any()


def test_label_changes_are_nearly_the_effects_of_single_labels():
    labels = letter_l(GRID)
    target = target_of(acquisition_of(4), labels, sigma=0.01)
    changes = label_changes(target, labels, TRANSMISSIBILITY)
    assert set(changes.tetrahedra) == set(at_walls(GRID, labels))
    changed = np.repeat(labels[None], len(changes.tetrahedra), axis=0)
    changed[np.arange(len(changed)), changes.tetrahedra] ^= True
    here = target.expected(target.data)
    exact = np.array([state.expected for state in target.cells(changed, TRANSMISSIBILITY)]) - here
    cosine = (exact * changes.effects).sum(axis=1) / np.linalg.norm(exact, axis=1)
    cosine /= np.linalg.norm(changes.effects, axis=1)
    assert np.median(cosine) > 0.9  # 0.97 on the published lattice
    leakier = target.cells(labels[None], TRANSMISSIBILITY + [1e-4, 0])[0]
    difference = (leakier.expected - here) / 1e-4
    # Second order in the step, and the quadrature in time.
    np.testing.assert_allclose(changes.slopes[0], difference, rtol=0.02, atol=0.5)


def test_misfit_grows_with_the_number_of_wrong_tetrahedra():
    labels = letter_l(GRID)
    target = target_of(acquisition_of(10), labels, sigma=1e-4)
    state = target.cells(labels[None], TRANSMISSIBILITY)[0]
    changes = label_changes(target, labels, TRANSMISSIBILITY)
    misfit = LabelErrorMisfit([changes], 10.0)
    rng = np.random.default_rng(0)
    medians = []
    for number in (1, 4, 16):
        changed = np.repeat(labels[None], 20, axis=0)
        for row in changed:
            row[rng.choice(changes.tetrahedra, number, replace=False)] ^= True
        residuals = np.array([target.residual(s) for s in target.cells(changed, TRANSMISSIBILITY)])
        medians.append(np.median(misfit.of_residuals(residuals)))
    assert misfit(target, state) == 0
    # 4 if they add up; single label changes are nearly in the span of those of the metric.
    assert medians[1] > 2 * medians[0] and medians[2] > 2 * medians[1]


def test_steps_in_shares_bring_a_deformed_cell_back():
    labels = letter_l(GRID)
    target = target_of(acquisition_of(20), labels, sigma=2e-5)
    moved = GRID.centroids[:, None] - (GRID.centroids[labels] + [2.0, -1.0, 0.5])
    deformed = np.linalg.norm(moved, axis=2).min(axis=1) < 1.5
    assert (deformed != labels).sum() > 15
    descend = Descent(GRID)
    found = descend(
        target, descend.blurred(deformed, TRANSMISSIBILITY), np.random.default_rng(0), n_steps=12
    )
    assert (found.labels != labels).sum() < 6


def test_label_changes_decrease_the_misfit_and_correct_single_tetrahedra():
    labels = letter_l(GRID)
    target = target_of(acquisition_of(20), labels, sigma=2e-5)
    exact = 0
    for seed in range(6):
        wrong, rng = labels.copy(), np.random.default_rng(seed)
        wrong[rng.choice(at_walls(GRID, labels), 2, replace=False)] ^= True
        start = target.cells(wrong[None], TRANSMISSIBILITY + [0.001, 0.0])[0]
        changes = label_changes(target, wrong, TRANSMISSIBILITY)
        misfit = LabelErrorMisfit([changes], 30.0)
        found = misfit.improved(target, start)
        before, after = (misfit(target, state) for state in (start, found))
        assert after <= before
        if (found.labels == labels).all():
            exact += 1
            # Transmissibilities, fitted in the linear model, are exact only after another round.
            np.testing.assert_allclose(found.transmissibility, TRANSMISSIBILITY, atol=1e-3)
    # Effects do not quite add up: some end in cells that explain the data nearly as well.
    assert exact >= 3


def test_wrong_labels_of_two_neighbours_are_corrected_jointly():
    labels, rng = letter_l(GRID), np.random.default_rng(0)
    target = target_of(acquisition_of(20), labels, sigma=2e-5)
    first, second = GRID.face_tetrahedra.T
    at = np.isin(np.arange(len(labels)), at_walls(GRID, labels))
    hidden = np.flatnonzero(~labels[first] & ~labels[second] & (at[first] ^ at[second]))
    for face in hidden[::40]:
        # One of them touches the cell, the other only the first.
        wrong = labels.copy()
        wrong[[first[face], second[face]]] = True
        assert (improved_from(target, wrong, rng).labels == labels).all()


def test_a_tetrahedron_that_the_box_cuts_off_a_cell_is_found_apart_from_all_walls():
    labels, rng = letter_l(GRID), np.random.default_rng(0)
    true = labels.copy()
    true[np.setdiff1d(GRID.outer_tetrahedra, at_walls(GRID, labels))[0]] = True
    target = target_of(acquisition_of(20), true, sigma=2e-5)
    assert (improved_from(target, labels, rng).labels == true).all()


@pytest.mark.parametrize(
    ("face", "least"),
    [pytest.param(len(GRID.faces) // 2, 0.01, marks=pytest.mark.slow), (220, 1e-6)],
)
def test_a_cell_is_found_where_there_is_none(face, least):
    # Downhill alone: one pair of tetrahedra exactly, of the other a neighbour.
    rng, true = np.random.default_rng(0), np.zeros(GRID.n_tetrahedra, dtype=bool)
    true[GRID.face_tetrahedra[face]] = True
    target = target_of(acquisition_of(20), true, sigma=2e-5)
    nothing = target.cells(np.zeros_like(true)[None], TRANSMISSIBILITY)[0]
    found = improved_from(target, nothing.labels, rng)
    assert found.labels.sum() == 2
    # Of signals, as a mirror image has the same.
    assert target.reduced_chi_square(found) < least * target.reduced_chi_square(nothing)


def improved_from(target, labels, rng):
    """Jointly improved cells, in the metric and with the error that the search sets."""
    start = target.cells(labels[None], TRANSMISSIBILITY)[0]

    def misfit_at(cells):
        scale = max(0.3 * np.sqrt(target.reduced_chi_square(cells)), 1.0)
        changes = label_changes(target, cells.labels, cells.transmissibility)
        return LabelErrorMisfit([changes], scale)

    return jointly_improved(target, start, misfit_at, rng)


def test_connected_cells_and_their_reflections():
    grid = bcc_grid(5, 4.0, boundary="absorbing")
    x, y, z = grid.centroids.T
    one, two = ((np.hypot(x - c, y) < 2.5) & (abs(z) < 2.5) for c in (-5, 5))
    operations = CellOperations(grid)
    cells = operations.connected_cells(one | two)
    assert [cell.sum() for cell in cells] == [one.sum(), two.sum()]
    twice_reflected = operations.reflected[operations.reflected]
    np.testing.assert_array_equal(twice_reflected, np.arange(len(x)))


def test_a_cell_keeps_its_shape_where_it_is_moved_on_the_lattice():
    cell, operations = (
        np.linalg.norm(GRID.centroids - [1.0, 2, -1], axis=1) < 4,
        CellOperations(GRID),
    )
    inside = np.abs(GRID.points_um).max(axis=1) < 4
    moved = operations.translated(GRID.points_um[inside], cell)
    assert (moved.sum(axis=1) == cell.sum()).all()
    assert moved.any(axis=0).sum() > 3 * cell.sum()
    middles = np.array([GRID.centroids[labels].mean(axis=0) for labels in moved])
    shifts = middles - GRID.points_um[inside]
    np.testing.assert_allclose(shifts, shifts[:1].repeat(len(shifts), axis=0), atol=1e-9)


@pytest.mark.parametrize("number", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_separate_cells_are_combined_from_single_ones(number):
    centres = np.array([[-5.0, -4, -3], [5, 4, -4], [-3, 4, 5]])[:number]
    balls = np.array([np.linalg.norm(GRID.centroids - c, axis=1) < 4.5 for c in centres])
    truth = balls.any(axis=0)
    assert balls.sum(axis=0).max() == 1 and balls.sum(axis=1).min() > 8
    target = target_of(acquisition_of(6), truth, sigma=1e-5)
    nothing = np.zeros((1, len(truth)), dtype=bool)
    alone, outside = (
        target.simulate(balls, TRANSMISSIBILITY),
        target.simulate(nothing, TRANSMISSIBILITY),
    )
    effect = target.data - outside[0]
    added_up = (alone - outside).sum(axis=0)
    # Of second order in the effect: 1.1 and 1.4 times its mean square here.
    assert np.sqrt(((added_up - effect) ** 2).mean()) < 2 * (effect**2).mean()
    rng = np.random.default_rng(0)
    cells, random = (
        np.array([draw(rng, GRID) for _ in range(300)]) for draw in (random_cell, random_bodies)
    )
    single, operations = (
        SimulatedCells(cells, target.simulate(cells, TRANSMISSIBILITY)),
        CellOperations(GRID),
    )
    budget = CellSearchBudget(n_combinations=300)
    tools = SearchTools(Descent(GRID), operations, TRANSMISSIBILITY, budget)
    task = ExactData(target, target, single, tools)
    likeliest, found = next(SeparateCells(task, single).by_likely_number(rng))
    assert likeliest == number
    assert all(
        operations.n_different(one, two) >= 8 for one, two in itertools.combinations(found, 2)
    )
    found, random = (
        target.cells(np.array(labels), TRANSMISSIBILITY) for labels in (found, random)
    )
    objective = task.objective(found)
    found, random = (
        min(objective(target, state) for state in states) for states in (found, random)
    )
    # About half of it: they have the right number of cells, and evolved.
    assert found < random / 1.5


def test_the_medoid_overlaps_most_with_the_other_cells():
    labels = np.zeros((4, 10), dtype=bool)
    mirrored = np.arange(10)[::-1]
    labels[0, :4] = labels[1, 1:5] = labels[2, 2:6] = True
    labels[3, 5:9] = True  # the reflection of the second
    cells = [LabelledCells(row, TRANSMISSIBILITY, np.zeros(3)) for row in labels]
    assert medoid(cells, mirrored) in (cells[1], cells[3])
    assert medoid(cells[:3], np.arange(10)) is cells[1]


def test_rician_mean_agrees_with_draws():
    rng = np.random.default_rng(0)
    signals, sigma = np.array([0.0, 0.02, 0.1, 1.0]), 0.02
    noise = sigma * rng.standard_normal((2, 200_000, 1))
    drawn = np.hypot(signals + noise[0], noise[1]).mean(axis=0)
    # Three standard errors of 200,000 draws.
    np.testing.assert_allclose(rician_mean(signals, sigma), drawn, atol=3 * sigma / 450)
    np.testing.assert_allclose(rician_mean(signals, 0.0), signals, atol=1e-12)


def test_smoothness_is_half_of_a_logistic_regression_over_random_bodies():
    grid = bcc_grid(4, 5.0, boundary="absorbing")
    rng = np.random.default_rng(0)
    labels = np.array([random_bodies(rng, grid) for _ in range(300)])
    common = shared_points(grid).toarray()
    side = 2.0 * labels - 1
    given = np.stack([side @ (common == 3), side @ (common == 2), np.ones(side.shape)], axis=-1)
    given, inside = given.reshape(-1, 3), labels.ravel()

    def cost(coefficients):
        log_odds = given @ coefficients
        slope = given.T @ (expit(log_odds) - inside)
        return (np.logaddexp(0, log_odds) - inside * log_odds).sum(), slope

    found = minimize(cost, np.zeros(3), jac=True).x
    # Other bodies, on another lattice, than those of which the constants were found.
    np.testing.assert_allclose(2 * np.array([BY_FACE, BY_EDGE]), found[:2], rtol=0.25)


def test_smoothness_changes_by_the_log_odds_of_a_label():
    smoothness = Smoothness(GRID)
    first, neighbours, weights, even = smoothness.log_odds
    labels = letter_l(GRID)
    for k in at_walls(GRID, labels)[::5]:
        other = labels.copy()
        other[k] = True
        inside = smoothness(other)
        other[k] = False
        around = slice(first[k], first[k + 1])
        odds = even + weights[around] @ (2.0 * labels[neighbours[around]] - 1)
        np.testing.assert_allclose(inside - smoothness(other), odds, atol=1e-9)
    assert smoothness(np.zeros_like(labels)) == 0 > smoothness(labels)


@pytest.fixture(scope="module")
def condensed():
    """Noisy data of an L, the same condensed to two thirds as many numbers, and cells like it."""
    acquisition = acquisition_of(10)
    labels, rng = letter_l(GRID), np.random.default_rng(0)
    noise = rng.standard_normal(len(acquisition))
    complete = target_of(acquisition, labels, sigma=0.01, noise=noise)
    library = np.array([random_bodies(rng, GRID) for _ in range(150)])

    def simulator_of(rows):
        return PartialVolumeSimulator(acquisition.subset(rows), GRID, steps=4)

    examples = complete.simulate(library, TRANSMISSIBILITY[None])
    target = CondensedTarget(complete, simulator_of, examples, 2 * len(acquisition) // 3)
    similar = np.repeat(labels[None], 12, axis=0)
    for row in similar[1:]:
        row[rng.choice(at_walls(GRID, labels), 6, replace=False)] ^= True
    return complete, target, similar


def squares(target, labels):
    states = target.cells(labels, TRANSMISSIBILITY)
    return np.array([(target.residual(state) ** 2).sum() for state in states])


def test_condensed_data_have_the_likelihood_of_all(condensed):
    complete, target, similar = condensed
    truth = complete.cells(similar[:1], TRANSMISSIBILITY)[0]
    exact = squares(complete, similar)
    exact -= exact[0]
    assert np.ptp(exact) > 10
    near = squares(target.exact_at(truth), similar)
    # Log likelihoods, up to a constant, to a tenth of their spread.
    np.testing.assert_allclose(near - near[0], exact, atol=0.1 * np.ptp(exact))


def test_condensed_data_are_exact_where_they_should(condensed):
    complete, target, similar = condensed
    for cells in complete.cells(similar[1:4], TRANSMISSIBILITY):
        here = target.exact_at(cells)
        own = here.cells(cells.labels[None], TRANSMISSIBILITY)[0]
        slopes = here.linear(cells.labels.astype(float), TRANSMISSIBILITY)[1]
        # What noise there is in the space of the slopes: the projection of the full residual.
        full_slopes = complete.linear(cells.labels.astype(float), TRANSMISSIBILITY)[1]
        found = slopes.T @ here.residual(own)
        expected = full_slopes.T @ complete.residual(cells)
        assert np.corrcoef(found, expected)[0, 1] > 0.99


def test_draws_differ_as_far_as_the_noise_allows():
    labels, acquisition = letter_l(GRID), acquisition_of(10)
    scattered = labels[np.random.default_rng(3).permutation(len(labels))]
    overlap = []
    for sigma in (0.0005, 0.02):
        noise = np.random.default_rng(1).standard_normal(len(acquisition))
        target = target_of(acquisition, labels, sigma=sigma, noise=noise)
        truth, other = target.cells(np.array([labels, scattered]), TRANSMISSIBILITY)
        finalists, rng = [(target, truth), (target, other)], np.random.default_rng(0)
        objective, descend = objective_of(target, truth), Descent(GRID)
        draws = posterior_ensemble(objective, descend, finalists, 20, rng)
        inside = np.array([cells.labels for cells in draws])
        overlap.append(2 * (inside & labels).sum(axis=1) / (inside.sum(axis=1) + labels.sum()))
    # All others are less probable by 300 or more in the logarithm: a weight of e^-10.
    assert overlap[0].min() == 1
    # Half of the draws have about 0.6: at this noise the letter is hardly determined.
    assert np.median(overlap[1]) < 0.8


def test_annealing_makes_cells_more_probable():
    labels, rng = letter_l(GRID), np.random.default_rng(0)
    acquisition = acquisition_of(10)
    noise = rng.standard_normal(len(acquisition))
    target = target_of(acquisition, labels, sigma=0.003, noise=noise)
    truth = target.cells(labels[None], TRANSMISSIBILITY)[0]
    objective = objective_of(target, truth)
    wanted, closed = -objective(target, truth), []
    for _ in range(5):
        wrong = labels.copy()
        wrong[rng.choice(at_walls(GRID, labels), 8, replace=False)] ^= True
        start = target.cells(wrong[None], TRANSMISSIBILITY)[0]
        before = -objective(target, start)
        assert before < wanted - 20
        found = -objective(target, objective.improved(target, start, rng))
        closed.append((found - before) / (wanted - before))
    # Single label changes end close to the most probable cells.
    assert min(closed) > 0.3 and np.median(closed) > 0.7


@pytest.fixture(scope="module")
def ball_in_a_box():
    """The published lattice, acquisition with few directions, and the walls of a ball."""
    grid = bcc_grid(4, 20 / 3, boundary="absorbing")
    walls = walls_of(np.linalg.norm(grid.centroids, axis=1) < 10, grid)
    acquisition = acquisition_of(10, n_b0=6)
    return grid, walls, acquisition, simulate(acquisition, grid, np.where(walls, 0.01, 100.0))


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_search_ends_with_further_fields_and_repeats_by_seed(noise):
    acquisition = acquisition_of(6, n_b0=6)
    signals = signals_of_l(acquisition)
    errors = noise * np.random.default_rng(0).standard_normal((2, len(signals)))
    data = np.hypot(signals + errors[0], errors[1])
    found = inversion_of(acquisition, 3).run(data[None], None)
    assert found.scaled_transmissibility_fields.shape == (3, 1, GRID.n_faces)
    if noise:
        again = inversion_of(acquisition, 3).run(data[None], None)
        np.testing.assert_array_equal(found.wall_probability, again.wall_probability)
    # Repeats that differ by rounding only are not noise of that size.
    assert found.sigma > 1e-5
    # Not the cells, but something that explains more than a box without walls (a search as
    # short as this leaves .11 to .31 of its misfit over six seeds of the noise).
    nothing = simulate(acquisition, GRID, np.full(GRID.n_faces, 100.0))
    assert ((found.predicted - data) ** 2).sum() < ((nothing - data) ** 2).sum() / 2


def test_a_voxel_does_not_depend_on_those_before_it():
    acquisition = acquisition_of(6)
    found = inversion_of(acquisition).run(np.stack([signals_of_l(acquisition)] * 2), None)
    np.testing.assert_array_equal(
        found.scaled_transmissibility[0], found.scaled_transmissibility[1]
    )


def test_unknown_noise_is_estimated_for_each_echo_time(monkeypatch):
    acquisition = acquisition_of(6, n_b0=6)
    assert len(acquisition.echo_times) == 3
    signals = signals_of_l(acquisition)
    sigma = np.array([0.001, 0.01, 0.02])[acquisition.te_index]
    data = np.abs(signals + sigma * np.random.default_rng(0).standard_normal(len(sigma)))
    seen = []

    def run(self, data, sigma, rician, *args):
        seen.append(np.unique(rician))
        nothing = np.zeros(GRID.n_tetrahedra, dtype=bool)
        cells = LabelledCells(nothing, TRANSMISSIBILITY, 0 * data)
        return SearchResult(cells, [], solved=True)

    monkeypatch.setattr(CellSearch, "run", run)
    inversion_of(acquisition).run(data[None], None)
    # Six repeats of each b0 tell the noise to 30 %.
    np.testing.assert_allclose(seen[0], [0.001, 0.01, 0.02], rtol=0.7)


def test_reflected_fields_count_for_the_same_walls(monkeypatch):
    labels, acquisition = letter_l(GRID), acquisition_of(6)
    turned = labels[CellOperations(GRID).reflected]
    assert (labels != turned).any()
    target = target_of(acquisition, labels, sigma=0.001)
    best, other = target.cells(np.array([labels, turned]), TRANSMISSIBILITY)
    known = SearchResult(best, [other] * 3, solved=True)
    monkeypatch.setattr(CellSearch, "run", lambda *voxel: known)
    found = inversion_of(acquisition, 3).run(target.data[None], np.array([0.001]))
    np.testing.assert_array_equal(found.wall_probability[0], walls_of(labels))


@pytest.mark.parametrize(("of_open_faces", "is_open"), [(1 - 1e-5, True), (0.98, False)])
def test_faces_that_are_nearly_open_are_no_walls(of_open_faces, is_open, monkeypatch):
    labels, acquisition = letter_l(GRID), acquisition_of(6)
    target = target_of(acquisition, labels, sigma=0.001)
    best = target.cells(labels[None], np.array([TRANSMISSIBILITY[0], of_open_faces]))[0]
    known = SearchResult(best, [best], solved=True)
    monkeypatch.setattr(CellSearch, "run", lambda *voxel: known)
    found = inversion_of(acquisition, 1).run(target.data[None], np.array([0.001]))
    others = found.scaled_transmissibility[0, ~walls_of(labels)]
    assert (others == 1).all() == is_open


@pytest.mark.filterwarnings("ignore:In . of 2 voxels the search ended early")
def test_search_survives_data_that_no_cells_explain():
    acquisition, rng = acquisition_of(6, n_b0=6), np.random.default_rng(0)
    noise_only = np.hypot(*(0.02 * rng.standard_normal((2, len(acquisition)))))
    data = [noise_only, 1 + rng.random(len(acquisition))]
    found = inversion_of(acquisition, 2).run(np.array(data), None)
    assert not found.converged.any() and np.isfinite(found.scaled_transmissibility).all()


def test_search_ends_early_and_says_so_where_no_cells_come_near_the_data(monkeypatch):
    twice = replace(QUICK, n_cycles=2)
    acquisition, joined = acquisition_of(6), []
    inversion = CellInversion(
        acquisition, GRID, diffusivity=2.0, n_fields=0, seed=0, budget=twice
    )  # fmt: skip
    before = Evolution.merged
    monkeypatch.setattr(Evolution, "merged", lambda *x: joined.append(1) or before(*x))
    with pytest.warns(UserWarning, match="In 1 of 1 voxels the search ended early"):
        found = inversion.run(np.ones((1, len(acquisition))), None)
    assert len(joined) == 1 and not found.converged[0]


def test_a_search_is_hopeless_for_large_residuals_not_for_some_wrong_tetrahedra():
    labels, acquisition, rng = letter_l(GRID), acquisition_of(6), np.random.default_rng(0)
    target = target_of(acquisition, labels, sigma=1.5e-5)
    task = ExactData(target, target, None, SearchTools(None, None, TRANSMISSIBILITY, QUICK))
    some = np.repeat(labels[None], 4, axis=0)
    for row in some:
        row[rng.choice(at_walls(GRID, labels), 3, replace=False)] ^= True
    apart = rng.permutation(labels)[None]
    near, far = (
        [Member(target, None, state, 0.0) for state in target.cells(x, TRANSMISSIBILITY)]
        for x in (some, apart)
    )
    # Residuals of 0.3 to 1 of a tetrahedron's magnetisation, and of 6; 3 is the bound.
    assert task.hopeless(far) and not task.hopeless([*far, *near])


def test_equivalent_cells_on_another_side_of_the_box_are_drawn_too():
    centres = np.array([[-5.5, -5, -4], [5.5, 5, -4]])
    balls = np.linalg.norm(GRID.centroids - centres[:, None], axis=2) < 4.2
    operations = CellOperations(GRID)
    truth, wrong = balls.any(axis=0), balls[0] | balls[1][operations.reflected]
    assert len(operations.connected_cells(truth)) == len(operations.connected_cells(wrong)) == 2
    # Their signals differ by 0.001 of S0 (rms).
    target = target_of(acquisition_of(6), truth, sigma=0.002)
    tools = SearchTools(None, operations, TRANSMISSIBILITY, QUICK)
    task = ExactData(target, target, None, tools)
    found = Member(target, None, target.cells(wrong[None], TRANSMISSIBILITY)[0], 0.0)
    best, draws = task.conclusion([[found]], 16, np.random.default_rng(0))
    # Single tetrahedra are not told by data with such errors.
    assert operations.n_different(best.labels, truth) <= 1
    assert {operations.n_different(x.labels, wrong) <= 1 for x in draws} == {True, False}


@pytest.mark.slow
def test_a_ball_is_found_exactly_and_the_same_again(ball_in_a_box):
    grid, walls, acquisition, signals = ball_in_a_box
    model = SpinverseModel(acquisition, grid=grid)
    fit = model.fit(signals, S0=1.0, n_fields=2)
    found = compare_walls(fit.wall_probability > 0.5, walls, grid, point_reflection=True)
    assert found.f1 == 1
    assert fit.status == Status.CONVERGED
    # All walls of a fit have one permeability; 0.01 um/ms is where the search starts.
    permeability = np.median(fit.permeability[fit.wall_probability > 0.5])
    np.testing.assert_allclose(permeability, 0.01, rtol=0.02)
    again = model.fit(signals, S0=1.0, n_fields=2)
    np.testing.assert_array_equal(fit.permeability, again.permeability)


@pytest.mark.slow
def test_the_permeability_of_the_walls_is_found_too(ball_in_a_box):
    grid, walls, acquisition, _ = ball_in_a_box
    signals = simulate(acquisition, grid, np.where(walls, 0.016, np.inf))
    fit = SpinverseModel(acquisition, grid=grid).fit(signals, S0=1.0, n_fields=0)
    found = compare_walls(fit.wall_probability > 0.5, walls, grid, point_reflection=True)
    assert found.f1 == 1
    permeability = np.median(fit.permeability[fit.wall_probability > 0.5])
    np.testing.assert_allclose(permeability, 0.016, rtol=0.02)


def test_cell_search_states_its_requirements():
    acquisition = acquisition_of(2)
    data = np.ones(len(acquisition))
    cells = ClosedCellInversion()
    model = SpinverseModel(acquisition, grid=GRID, inversion=cells)
    with pytest.raises(ValueError, match="S0 given"):
        model.fit(data)
    other_device = SpinverseModel(acquisition, grid=GRID, inversion=cells, device="meta")
    with pytest.raises(ValueError, match='device="cpu"'):
        other_device.fit(data, S0=1.0)
    with pytest.raises(ValueError, match="absorbing"):
        SpinverseModel(acquisition, inversion=cells).fit(data, S0=1.0)


def test_noisier_data_have_a_second_realisation_of_their_noise():
    sigma = np.repeat([0.01, 0.2], 4000)
    data = SimpleNamespace(data=np.ones(8000), sigma=sigma)
    change = Target.noisier(data, np.random.default_rng(0)).data - 1
    for part in np.split(change / sigma, 2):
        assert part.std() == pytest.approx(1, abs=0.04)  # four standard errors
    assert (data.data == 1).all()
