"""Priors, unknowns, steps, curricula, noise and uncertainty: the parts of an inversion."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from inversion_cases import GRID, multi_shell, shells, spread_directions, tissue_signals

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import Simulator
from dipy_spinverse.cell_search.voxel_inversion import CellInversion
from dipy_spinverse.grid import bcc_grid
from dipy_spinverse.inversion import (
    Binarisation,
    Continuity,
    FaceSolver,
    Manifoldness,
    Stage,
    WallArea,
    WallProblem,
    priors,
    scaled_transmissibility,
    transmissibility,
)
from dipy_spinverse.inversion.gauss_newton import data_space_step, gauss_newton
from dipy_spinverse.inversion.priors import evaluate_priors
from dipy_spinverse.inversion.protocols import Prior, WallSolver
from dipy_spinverse.inversion.uncertainty import Laplace, probability_below
from dipy_spinverse.inversion.unknowns import SignalModel, transmissibility_slope
from dipy_spinverse.spinverse import FaceInversion
from dipy_spinverse.substrates.membranes import from_inside
from dipy_spinverse.voxels.gains import warn_of_gains
from dipy_spinverse.voxels.noise import noise_before_fit
from dipy_spinverse.voxels.rician import noise_from_residual
from dipy_spinverse.voxels.shells import shells_of

PRIORS = [WallArea(0.3), Continuity(0.7), Manifoldness(0.4), Binarisation(1.1)]
assert {type(prior).__name__ for prior in PRIORS} == set(priors.__all__) - {"evaluate_priors"}


def random_tensor(*shape, seed=0, low=0.0, high=1.0):
    return torch.as_tensor(np.random.default_rng(seed).uniform(low, high, shape))


def closed_surface():
    """Wall strengths (1, F), 0 or 1, of a closed body within the grid."""
    inside = np.linalg.norm(GRID.centroids, axis=1) < 5.0
    walls = np.isfinite(from_inside(GRID, inside))
    assert walls.any()
    return torch.as_tensor(walls[None].astype(float))


def wall_value(prior, walls):
    return float(evaluate_priors([prior], GRID, 1 - walls)[0])


# ---------------------------------------------------------------- priors


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: type(prior).__name__)
@pytest.mark.parametrize("field", ["in between", "closed and open"])
def test_gradient_of_a_prior_matches_differences(prior, field):
    s = random_tensor(1, GRID.n_faces)
    if field == "closed and open":
        s = 1e-5 + (1 - 2e-5) * s.round()  # room for the differences within [0, 1]
    _, gradient, _ = evaluate_priors([prior], GRID, s)
    faces = np.random.default_rng(1).choice(GRID.n_faces, 30, replace=False)
    change = 1e-5
    shifted = s.repeat(2 * len(faces), 1)
    shifted[np.arange(len(faces)), faces] += change
    shifted[np.arange(len(faces)) + len(faces), faces] -= change
    up, down = evaluate_priors([prior], GRID, shifted)[0].reshape(2, -1)
    expected = (up - down) / (2 * change)
    # Continuity is regularised by 1e-6 per face of an edge, relative.
    torch.testing.assert_close(gradient[0, faces], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: type(prior).__name__)
def test_gauss_newton_weight_is_not_negative_and_one_for_each_face(prior):
    assert isinstance(prior, Prior)
    _, gradient, weight = evaluate_priors([prior], GRID, random_tensor(3, GRID.n_faces))
    assert gradient.shape == weight.shape == (3, GRID.n_faces)
    assert (weight >= 0).all()


def test_priors_add_up_and_no_prior_is_zero():
    s = random_tensor(2, GRID.n_faces)
    together = evaluate_priors(PRIORS, GRID, s)
    single = [evaluate_priors([prior], GRID, s) for prior in PRIORS]
    for part, parts in zip(together, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(part, sum(parts))
    assert all((part == 0).all() for part in evaluate_priors([], GRID, s))


def test_continuity_is_zero_on_closed_surfaces_and_counts_the_ends_of_a_sheet():
    walls = closed_surface()
    # 1e-6 for each of about 150 edges
    assert wall_value(Continuity(1.0), walls) == pytest.approx(0, abs=1e-3)
    sheet = torch.zeros_like(walls)
    sheet[0, 0] = 1  # one triangle: three edges where it ends
    assert wall_value(Continuity(1.0), sheet) == pytest.approx(3, abs=1e-4)
    walls[0, torch.nonzero(walls[0])[0]] = 0  # a hole: three edges again
    assert wall_value(Continuity(1.0), walls) == pytest.approx(3, abs=1e-3)


def test_manifoldness_is_zero_for_edges_of_no_or_two_walls():
    walls = closed_surface()
    counts = GRID.edge_faces @ walls[0].numpy()
    expected = (np.minimum(counts, np.abs(counts - 2)) ** 2).sum()
    value = wall_value(Manifoldness(1.0), walls)
    # The soft minimum is off by less than 2e-4 per edge (T ln(1 + exp(-4 / T))).
    assert value == pytest.approx(expected, abs=2e-4 * len(GRID.edges))
    assert wall_value(Manifoldness(1.0), torch.zeros_like(walls)) == pytest.approx(0, abs=1e-9)


def test_manifoldness_grows_with_walls_that_branch():
    branch = torch.zeros(1, GRID.n_faces, dtype=torch.float64)
    edge = int(np.argmax(np.diff(GRID.edge_faces.indptr)))
    faces = GRID.edge_faces[edge].indices
    values = []
    for n in (2, 3, 4):
        branch[0, faces[:n]] = 1
        values.append(wall_value(Manifoldness(1.0), branch))
    # Each further wall adds its own two open edges (1 each, about) and a worse shared edge.
    assert values[2] - values[1] > values[1] - values[0] > 1


def test_wall_area_is_the_area_in_mean_faces():
    walls = closed_surface()
    areas = GRID.face_areas[walls[0].numpy() > 0]
    expected = 0.3 * areas.sum() / GRID.face_areas.mean()
    assert wall_value(WallArea(0.3), walls) == pytest.approx(expected)


def test_binarisation_vanishes_at_walls_and_open_faces():
    assert wall_value(Binarisation(2.0), closed_surface()) == 0
    half = torch.full((1, GRID.n_faces), 0.5, dtype=torch.float64)
    assert wall_value(Binarisation(2.0), half) == pytest.approx(2.0 * GRID.n_faces / 4)


# ---------------------------------------------------------------- unknowns


def test_scaled_transmissibility_and_transmissibility_are_inverses_with_exact_ends():
    s = torch.linspace(0, 1, 101, dtype=torch.float64)
    tau = transmissibility(s)
    assert tau[0] == 0 and tau[-1] == 1
    assert scaled_transmissibility(tau)[0] == 0 and scaled_transmissibility(tau)[-1] == 1
    assert (tau.diff() > 0).all()
    torch.testing.assert_close(scaled_transmissibility(tau), s)


def signal_model(acquisition, *, amplitudes=True, free_water=True):
    simulator = Simulator(acquisition, GRID, steps=32)
    return SignalModel(simulator, acquisition, amplitudes=amplitudes, free_water=free_water)


@pytest.mark.parametrize("amplitudes", [True, False])
@pytest.mark.parametrize("free_water", [True, False])
def test_sensitivities_of_the_signal_model_match_differences(amplitudes, free_water):
    acquisition = multi_shell(2)
    model = signal_model(acquisition, amplitudes=amplitudes, free_water=free_water)
    n_amplitudes = len(acquisition.echo_times) if amplitudes else 0
    assert model.n_unknowns == GRID.n_faces + n_amplitudes + free_water
    x = random_tensor(2, model.n_unknowns, low=0.1, high=0.9)
    signals, jacobian = model.sensitivities(x)
    torch.testing.assert_close(signals, model.signals(x))
    others = list(range(GRID.n_faces, model.n_unknowns))
    for column in [0, 100, 333, *others]:
        shift = torch.zeros_like(x)
        shift[:, column] = 1e-4
        expected = (model.signals(x + shift) - model.signals(x - shift)) / 2e-4
        # Faces: 32 steps per pulse are within 1e-4 of each derivative's size, 1e-2 or less.
        torch.testing.assert_close(jacobian[..., column], expected, rtol=1e-3, atol=2e-6)


def test_free_water_alone_decays_with_its_own_diffusivity():
    acquisition = multi_shell(2)
    model = signal_model(acquisition)
    x = torch.zeros(1, model.n_unknowns, dtype=torch.float64)
    x[:, -3:-1] = torch.tensor([2.0, 5.0])
    x[:, -1] = 1
    expected = np.where(acquisition.te_index == 0, 2, 5) * np.exp(-3 * acquisition.b)
    np.testing.assert_allclose(model.signals(x)[0], expected, rtol=1e-12)


def test_best_amplitudes_are_the_least_squares_ones():
    acquisition = multi_shell(3)
    model = signal_model(acquisition)
    x = random_tensor(1, model.n_unknowns, low=0.2, high=0.8)
    data, sigma = random_tensor(1, len(acquisition)), random_tensor(1, len(acquisition), low=0.5)
    found = model.with_best_amplitudes(x, model.in_grid(x), data, sigma)
    unit = x.clone()
    unit[:, GRID.n_faces : -1] = 1
    shape = model.signals(unit)[0].numpy()
    for k in range(2):
        row = acquisition.te_index == k
        weight = 1 / sigma[0].numpy()[row]
        expected = np.linalg.lstsq(
            (shape[row] * weight)[:, None], data[0].numpy()[row] * weight, rcond=None
        )[0][0]
        assert float(found[0, GRID.n_faces + k]) == pytest.approx(expected)


def test_amplitude_of_an_echo_time_without_data_is_kept():
    acquisition = multi_shell(2)
    first = acquisition.te_index == 0
    whole = signal_model(acquisition)
    model = whole.restricted_to(Simulator(acquisition.subset(first), GRID), torch.as_tensor(first))
    x = random_tensor(1, model.n_unknowns, low=0.2, high=0.8)
    data = random_tensor(1, first.sum())
    found = model.with_best_amplitudes(x, model.in_grid(x), data, torch.ones_like(data))
    assert found[0, GRID.n_faces] != x[0, GRID.n_faces]
    assert found[0, GRID.n_faces + 1] == x[0, GRID.n_faces + 1]
    torch.testing.assert_close(
        model.signals(x), whole.signals(x)[:, first], rtol=1e-3, atol=1e-4
    )  # by default 8 steps per pulse instead of 32


# ---------------------------------------------------------------- Gauss-Newton


def random_problem(n_voxels=3, n_signals=7, n_unknowns=20, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(n_signals, n_unknowns), (n_signals,), (n_unknowns,)]
    jacobian, residual, gradient = (
        torch.as_tensor(rng.standard_normal((n_voxels, *shape))) for shape in shapes
    )
    return jacobian, residual, gradient, 0.5 + random_tensor(n_voxels, n_unknowns, seed=seed + 1)


def test_data_space_step_solves_the_normal_equations():
    jacobian, residual, gradient, precision = random_problem()
    infinite = torch.full_like(gradient, torch.inf)
    step = data_space_step(jacobian, residual, gradient, precision, -infinite, infinite)
    hessian = jacobian.mT @ jacobian + torch.diag_embed(precision)
    downhill = (jacobian.mT @ residual[..., None])[..., 0] + gradient
    torch.testing.assert_close(step, -torch.linalg.solve(hessian, downhill))


def test_data_space_step_finds_the_minimum_within_bounds():
    jacobian, residual, gradient, precision = random_problem(n_voxels=5)
    lower, upper = torch.full_like(gradient, -0.1), torch.full_like(gradient, 0.2)
    lower[:, 0] = upper[:, 1] = 0

    def objective(step):
        predicted = residual + torch.einsum("vmn,vn->vm", jacobian, step)
        return (predicted**2).sum(1) / 2 + (gradient * step + precision * step**2 / 2).sum(1)

    found = data_space_step(jacobian, residual, gradient, precision, lower, upper)
    assert (found >= lower).all() and (found <= upper).all()
    best = torch.zeros_like(gradient)
    hessian = jacobian.mT @ jacobian + torch.diag_embed(precision)
    length = 1 / torch.linalg.matrix_norm(hessian, 2)[:, None]
    downhill = torch.einsum("vmn,vm->vn", jacobian, residual) + gradient
    for _ in range(2000):  # the slow but certain way
        slope = torch.einsum("vnk,vk->vn", hessian, best) + downhill
        best = (best - length * slope).clamp(lower, upper)
    to_gain = objective(torch.zeros_like(best)) - objective(best)
    assert (objective(found) - objective(best) < 1e-2 * to_gain).all()


def test_step_is_never_uphill_where_bounds_are_tight_and_the_prior_is_strong():
    jacobian, residual, gradient, precision = random_problem(20, 30, 400, seed=2)
    gradient = 10 * gradient.abs()
    lower, upper = -random_tensor(20, 400), random_tensor(20, 400, seed=1)
    step = data_space_step(jacobian, residual, gradient, precision, lower, upper)
    linear = torch.einsum("vmn,vn->vm", jacobian, step)
    change = (residual * linear + linear**2 / 2).sum(1)
    change += (gradient * step + precision * step**2 / 2).sum(1)
    assert (change <= 0).all()
    # Where no length of the first Newton step helps there is no step, and the caller damps more.
    assert (change < 0).float().mean() > 0.3


def tissue_problem(n_voxels=3):
    acquisition = multi_shell(4)
    model = SignalModel(
        Simulator(acquisition, GRID, dtype="float32"),
        acquisition,
        amplitudes=True,
        free_water=False,
    )
    rng = np.random.default_rng(3)
    clean = tissue_signals(acquisition)
    data = torch.as_tensor(clean + 0.02 * rng.standard_normal((n_voxels, len(acquisition))))
    start = random_tensor(n_voxels, model.n_unknowns, low=0.6, high=0.9)
    start[:, GRID.n_faces :] = 1
    return model, data, torch.full_like(data, 0.02), start


def misfit(model, data, sigma, x):
    return ((model.signals(x) - data) / sigma).square().sum(dim=1) / 2


def test_gauss_newton_lowers_the_objective_within_bounds():
    model, data, sigma, start = tissue_problem(2)
    stage = Stage(priors=(WallArea(0.1),), max_iterations=8)
    found, _ = gauss_newton(model, data, sigma, start, stage)

    def objective(x):
        return (
            misfit(model, data, sigma, x)
            + evaluate_priors(stage.priors, GRID, x[:, : GRID.n_faces])[0]
        )

    assert (objective(found) < 0.2 * objective(start)).all()
    lower, upper = model.bounds(found)
    assert (found >= lower).all() and (found <= upper).all()


def test_gauss_newton_stops_by_its_own_rule():
    model, data, sigma, start = tissue_problem()
    _, converged = gauss_newton(model, data, sigma, start, Stage(max_iterations=1, tolerance=0))
    assert not converged.any()
    stage = Stage(max_iterations=9, tolerance=0.5)
    assert gauss_newton(model, data, sigma, start, stage)[1].all()


def test_voxel_inversions_keep_the_same_promise():
    acquisition, grid = multi_shell(2), bcc_grid(2, 5.0, boundary="absorbing")
    problem = WallProblem(acquisition, grid)
    cells = CellInversion(acquisition, grid, diffusivity=2.0, n_fields=0, seed=0)
    for inversion in (FaceSolver(problem), cells):
        assert isinstance(inversion, WallSolver)


def test_each_voxel_is_fitted_as_if_alone_even_beside_nan():
    model, data, sigma, start = tissue_problem()
    stage = Stage(priors=(WallArea(0.1),), max_iterations=4)
    alone = torch.cat(
        [gauss_newton(model, data[[v]], sigma[[v]], start[[v]], stage)[0] for v in range(3)]
    )
    together, _ = gauss_newton(model, data, sigma, start, stage)
    # Sums in another order, and signals in single precision.
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-3)
    data[1, 3] = torch.nan
    beside_nan, _ = gauss_newton(model, data, sigma, start, stage)
    torch.testing.assert_close(beside_nan[[0, 2]], alone[[0, 2]], rtol=0, atol=1e-3)
    torch.testing.assert_close(beside_nan[1], start[1])


class TwoDecays:
    """S(b) = f exp(-b k_1) + (1 - f) exp(-b k_2) of unknowns (f, k_1, k_2): no grid, no walls."""

    n_unknowns = 3

    def __init__(self, b):
        self.b = b

    def bounds(self, like):
        return like.new_tensor([0.0, 0.0, 1.0]), like.new_tensor([1.0, 1.0, 4.0])

    def signals(self, unknowns):
        return self.sensitivities(unknowns)[0]

    def sensitivities(self, unknowns):
        f, k1, k2 = unknowns.T[..., None]
        first, second = torch.exp(-self.b * k1), torch.exp(-self.b * k2)
        by = first - second, -f * self.b * first, -(1 - f) * self.b * second
        return f * first + (1 - f) * second, torch.stack(by, dim=2)

    def penalty(self, unknowns, priors):
        parts = [prior(unknowns) for prior in priors]
        zero = unknowns.new_zeros(len(unknowns)), *[torch.zeros_like(unknowns)] * 2
        return tuple(sum(each) for each in zip(zero, *parts, strict=True))


def test_gauss_newton_finds_fractions_and_decay_rates_within_bounds():
    model = TwoDecays(torch.linspace(0, 5, 40, dtype=torch.float64))
    truth = torch.tensor([[0.3, 0.2, 2.0], [0.7, 0.5, 1.5], [0.4, 0.0, 3.0]]).double()
    data, sigma = model.signals(truth), torch.full((3, 40), 1e-3, dtype=torch.float64)
    start = torch.tensor([[0.5, 0.5, 2.5]]).double().repeat(3, 1)
    stage = Stage(max_iterations=100, tolerance=1e-12)
    found, _ = gauss_newton(model, data, sigma, start, stage)
    # Damped steps converge linearly, and end at a gain of 1e-12.
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-4)
    found, _ = gauss_newton(model, data + 0.02 * model.b, sigma, start, stage)
    lower, upper = model.bounds(found)
    assert (found >= lower).all() and (found <= upper).all()
    # Where nothing decays slowly, a part that grows with b would fit better: it is held at 0.
    assert found[2, 1] == 0


def test_prior_of_another_model_than_walls_decides_what_the_data_leave_open():
    model = TwoDecays(torch.zeros(4, dtype=torch.float64))  # at b = 0 all rates fit
    data, sigma = torch.ones(1, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64)
    expected = torch.tensor([[0.4, 0.3, 2.2]]).double()

    def prior(unknowns):
        away = unknowns - expected
        return (away**2).sum(dim=1) / 2, away, torch.ones_like(away)

    start = torch.tensor([[0.9, 0.9, 1.1]]).double()
    stage = Stage(priors=(prior,), max_iterations=50, tolerance=1e-9)
    found, converged = gauss_newton(model, data, sigma, start, stage)
    assert converged.all()
    # The last step was damped by less than 1e-3, and gained a part of 1e-9.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


# ---------------------------------------------------------------- curriculum


def test_stages_choose_measurements_by_the_rank_of_their_diffusion_time():
    acquisition = shells([(5, 10), (5, 30), (5, 60)], (1.0, 2.0), 3)
    time, b0 = acquisition.diffusion_time, acquisition.b0_mask
    longest = Stage(diffusion_times=(0,)).measurements(acquisition)
    np.testing.assert_array_equal(longest, (time == time.max()) | b0)
    others = Stage(diffusion_times=(1, 2)).measurements(acquisition)
    np.testing.assert_array_equal(others, (time < time.max()) | b0)
    assert Stage().measurements(acquisition).all()


def test_shortest_diffusion_time_stands_in_for_ranks_beyond_it():
    acquisition = shells([(5, 30)], (1.0,), 3)
    assert Stage(diffusion_times=(1,)).measurements(acquisition).all()
    two = shells([(5, 10), (5, 30)], (1.0,), 3)
    time = two.diffusion_time
    np.testing.assert_array_equal(
        Stage(diffusion_times=(4,)).measurements(two), (time == time.min()) | two.b0_mask
    )


@pytest.mark.parametrize("curriculum", [[], [Stage(max_iterations=3)]])
def test_curriculum_without_an_initial_value_is_refused(curriculum):
    with pytest.raises(ValueError, match="curriculum has . stages.*initial_value"):
        FaceInversion(curriculum=curriculum)


# ---------------------------------------------------------------- noise


def b0_repeats(per_te):
    te = np.repeat(60.0 + 20 * np.arange(len(per_te)), per_te)
    return Acquisition(
        b=np.append(np.zeros(len(te)), 1.0),
        directions=np.vstack([np.zeros((len(te), 3)), [1, 0, 0]]),
        small_delta=10,
        big_delta=30,
        te=np.append(te, 60.0),
    )


def test_noise_from_b0_is_pooled_over_echo_times_without_bias():
    acquisition = b0_repeats([4, 3, 1])
    rng = np.random.default_rng(4)
    level = np.where(acquisition.te == 60, 5.0, 2.0)
    data = level + 0.1 * rng.standard_normal((4000, len(level)))
    sigma, freedom = noise_before_fit(data, acquisition, b0_only=True)
    assert np.median(freedom) >= 5
    # The mean variance of 4000 voxels of 5 degrees of freedom is known to 1 %; it is in part the
    # median voxel's, which is known to about 2 %.
    assert np.mean(sigma**2) == pytest.approx(0.01, rel=0.05)


def test_noise_from_b0_of_one_voxel_is_the_sample_standard_deviation():
    acquisition = b0_repeats([6])
    data = np.random.default_rng(0).normal(3, 0.2, (1, 7))
    sigma, freedom = noise_before_fit(data, acquisition, b0_only=True)
    assert freedom == 5
    assert sigma[0] == pytest.approx(data[0, :6].std(ddof=1))


def test_background_does_not_change_the_noise_of_tissue():
    acquisition = b0_repeats([9])
    channels = np.random.default_rng(1).normal(scale=5.0, size=(2, 2000, 10))
    channels[0, :500] += 100
    data, tissue = np.hypot(*channels), np.arange(2000) < 500
    sigma, _ = noise_before_fit(data, acquisition, b0_only=True)
    # Magnitudes of noise alone have a standard deviation of 0.66 of that of a channel.
    np.testing.assert_allclose(np.median(sigma[tissue]), 5.0, rtol=0.03)
    np.testing.assert_allclose(np.median(sigma[~tissue]), 3.3, rtol=0.1)


@pytest.mark.parametrize("per_te", [[4], [2, 2, 2], [1] * 9])
def test_noise_from_too_few_b0_is_not_determined(per_te):
    acquisition = b0_repeats(per_te)
    data = np.random.default_rng(0).normal(3, 0.2, (10, len(acquisition)))
    assert not noise_before_fit(data, acquisition, b0_only=True)[1].any()


@pytest.mark.parametrize("n_voxels", [1, 5])
def test_b0_repeats_without_any_noise_say_nothing(n_voxels):
    acquisition = b0_repeats([9])
    data = np.full((n_voxels, len(acquisition)), 1 / 3) * (1 + 1e-16)
    assert not noise_before_fit(data, acquisition, b0_only=True)[1].any()


def test_noise_from_residual_counts_what_the_fit_took():
    rng = np.random.default_rng(5)
    design = rng.standard_normal((100, 30))
    noise = 0.3 * rng.standard_normal((2000, 100))
    residual = noise - noise @ design @ np.linalg.pinv(design)
    sigma = noise_from_residual(residual, np.full(2000, 30.0))
    assert np.mean(sigma**2) == pytest.approx(0.09, rel=0.02)  # 2000 * 70 degrees of freedom
    # All degrees taken: no division by zero.
    assert np.isfinite(noise_from_residual(residual, np.full(2000, 100.0))).all()


# ---------------------------------------------------------------- uncertainty


def random_laplace(n_signals=6, n_unknowns=9):
    """A Laplace approximation with unknowns on either bound, and its dense covariance."""
    rng = np.random.default_rng(6)
    x = torch.as_tensor(rng.uniform(0.2, 0.8, (2, n_unknowns)))
    x[:, :2], x[:, 2:4] = 0.0, 1.0
    jacobian = torch.as_tensor(2 * rng.standard_normal((2, n_signals, n_unknowns)))
    residual = torch.as_tensor(rng.standard_normal((2, n_signals)))
    bounds = torch.zeros(n_unknowns), torch.ones(n_unknowns)
    gradient = (jacobian.mT @ residual[..., None])[..., 0]
    pushed = ((x == 0) & (gradient > 0)) | ((x == 1) & (gradient < 0))
    precision = 12.0 + pushed * gradient**2  # uniform in [0, 1]; exponential where pushed
    covariance = torch.linalg.inv(jacobian.mT @ jacobian + torch.diag_embed(precision))
    assert pushed.any() and not pushed[:, :4].all()
    return Laplace.at(x, jacobian, residual, bounds), jacobian, covariance


def test_laplace_standard_deviation_is_that_of_the_dense_covariance():
    laplace, _, covariance = random_laplace()
    expected = covariance.diagonal(dim1=1, dim2=2).sqrt()
    torch.testing.assert_close(laplace.standard_deviation(), expected)


def test_number_determined_is_the_trace_of_the_hat_matrix():
    laplace, jacobian, covariance = random_laplace()
    hat = jacobian @ covariance @ jacobian.mT
    torch.testing.assert_close(laplace.n_determined(), hat.diagonal(dim1=1, dim2=2).sum(dim=1))


def test_probability_below_is_that_of_a_truncated_normal():
    mean, sd = torch.tensor([0.0, 0.3, 0.5, 1.0]), torch.tensor([0.3, 0.2, 0.0, 0.3])
    probability = probability_below(0.5, mean.double(), sd.double())
    draws = np.random.default_rng(7).normal(mean, sd, (200000, 4))
    inside = (draws >= 0) & (draws <= 1)
    expected = ((draws < 0.5) & inside).sum(axis=0) / inside.sum(axis=0)
    expected[2] = 0.5
    np.testing.assert_allclose(probability, expected, atol=5e-3)  # 4 standard errors


def test_grids_without_shared_edges_of_walls_have_finite_priors():
    grid = bcc_grid(2, 5.0, boundary="absorbing")
    s = random_tensor(1, grid.n_faces)
    for part in evaluate_priors(PRIORS, grid, s):
        assert torch.isfinite(part).all()


def test_slope_of_transmissibility_is_that_of_differences():
    scaled, step = torch.linspace(0.05, 0.95, 7, dtype=torch.float64), 1e-6
    slope = (transmissibility(scaled + step) - transmissibility(scaled - step)) / (2 * step)
    torch.testing.assert_close(transmissibility_slope(scaled), slope, rtol=1e-7, atol=0)


def test_shells_are_measurements_of_similar_b_and_one_timing():
    b = np.repeat([0.0, 1.0, 1.02, 2.0], [4, 10, 10, 12])
    acquisition = Acquisition(
        np.tile(b, 2), spread_directions(72), 8.0, np.repeat([20.0, 40.0], 36)
    )
    sizes = [len(shell.rows) for shell in shells_of(acquisition)]
    assert sorted(sizes) == [12, 12, 20, 20]


@pytest.mark.parametrize("gain", [0.0, 0.05])
def test_gains_are_those_of_voxels_of_any_brightness(gain):
    acquisition = Acquisition(
        np.tile(np.repeat([0.0, 1.0], 6), 2), spread_directions(24), 8.0,
        np.repeat([20.0, 40.0], 12), te=60,
    )  # fmt: skip
    rng, S0 = np.random.default_rng(0), np.geomspace(1, 1000, 60)[:, None]
    signals = S0 * (1 + 0.01 * rng.standard_normal((60, 24)))
    signals[:, 12:] *= 1 + gain
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_of_gains(signals, acquisition)
    assert len(found) == (gain > 0)
    if gain:  # two values that differ by 5 %: a sample standard deviation of 3.5 %
        stated = re.search("differ by about ([0-9.]+) %", str(found[0].message))[1]
        assert float(stated) == pytest.approx(3.5, rel=0.2)
