"""Media that differ between tetrahedra: diffusivity, density, relaxation, the outside."""

from __future__ import annotations

import numpy as np
import pytest
from bloch_torrey_cases import DIRECTIONS, distorted_grid, encodings, random_permeability
from scipy.linalg import expm

from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.acquisition.encodings import concatenate, double_diffusion, pulsed_gradients
from dipy_spinverse.bloch_torrey import simulate, simulate_with_jacobian
from dipy_spinverse.grid import bcc_grid

LAYER = 4 * np.sqrt(2)  # um, thickness of either layer
D_TWO, DENSITY_TWO = (2.0, 0.8), (1.0, 0.3)


def two_layers():
    """Layers across (1, 1, 0), whose planes are made of lattice faces; which one is where."""
    grid = bcc_grid([8, 8, 3], 2.0)
    normal = np.array([1, 1, 0]) / np.sqrt(2)
    second = (grid.centroids @ normal) % (2 * LAYER) > LAYER
    walls = second[grid.face_tetrahedra[:, 0]] != second[grid.face_tetrahedra[:, 1]]
    assert (np.abs(grid.face_normals[walls] @ normal) > 1 - 1e-9).all()
    return grid, normal, second, walls


def layers_in_one_dimension(q_steps, kappa, t2=(np.inf, np.inf), n=40):
    """Signal of two alternating layers, each cut into n slices, by dense exponentials.

    The magnetisation m itself is carried, in the frame that does not turn: its flux from slice
    to slice is D (m - m') / h in a layer, and kappa (m / rho - m' / rho') rho_wall through a wall.
    q_steps: rows (q, duration), q rests during each.
    """
    h = LAYER / n
    diffusivity, density = np.repeat(D_TWO, n), np.repeat(DENSITY_TWO, n)
    here, there = np.arange(2 * n), (np.arange(2 * n) + 1) % (2 * n)
    # potential m / rho is continuous within a layer; half slices in series, and the wall
    resistance = h / 2 / (diffusivity * density)
    resistance = resistance[here] + resistance[there]
    shared = 2 * np.prod(DENSITY_TWO) / np.sum(DENSITY_TWO)
    resistance[[n - 1, 2 * n - 1]] += 1 / (kappa * shared)
    m = density.astype(complex)
    for q, duration in q_steps:
        rate = np.zeros((2 * n, 2 * n), complex)
        for i, j, r in zip(here, there, resistance, strict=True):
            rate[i, j] += np.exp(1j * q * h) / (r * density[j] * h)
            rate[j, i] += np.exp(-1j * q * h) / (r * density[i] * h)
            rate[i, i] -= 1 / (r * density[i] * h)
            rate[j, j] -= 1 / (r * density[j] * h)
        rate -= np.diag(1 / np.repeat(t2, n))
        m = expm(rate * duration) @ m
    return m.sum().real / density.sum()


def pulse_steps(b, small_delta, big_delta, steps=16):
    q = np.sqrt(b / (big_delta - small_delta / 3))
    up = [(q * (k + 0.5) / steps, small_delta / steps) for k in range(steps)]
    return [*up, (q, big_delta - small_delta), *up[::-1]]


@pytest.mark.parametrize("kappa", [0.02, 0.2])
def test_two_layers_match_the_one_dimensional_solution(kappa):
    grid, normal, second, walls = two_layers()
    diffusivity = np.where(second, *D_TWO[::-1])
    density = np.where(second, *DENSITY_TWO[::-1])
    t2 = (30.0, 80.0)
    acquisition = encodings([0.5, 1.0, 3.0], normal)
    signals = simulate(
        acquisition, grid, np.where(walls, kappa, np.inf), diffusivity=diffusivity,
        initial_density=density, t2_ms=np.where(second, *t2[::-1]),
    )  # fmt: skip
    expected = [layers_in_one_dimension(pulse_steps(b, 10, 30), kappa, t2) for b in acquisition.b]
    # the promise for planes in cells of 2 um is 0.3 % of S0; the reference is exact to 0.03 %
    np.testing.assert_allclose(signals, expected, atol=3e-3)


def random_medium(grid, seed=3):
    rng = np.random.default_rng(seed)
    return {
        "diffusivity": rng.uniform(0.5, 3, grid.n_tetrahedra),
        "initial_density": rng.uniform(0.2, 2, grid.n_tetrahedra),
    }


def dense_operator(grid, permeability, diffusivity, initial_density, loss):
    """d/dt of the magnetisation m at q = 0, from the equations as they stand."""
    operator = -np.diag(loss)
    faces = zip(
        grid.face_tetrahedra, grid.face_areas, grid.face_distances, permeability, strict=True
    )
    for (i, j), area, (d_i, d_j), kappa in faces:
        rho_i, rho_j = initial_density[[i, j]]
        # flux = kappa rho_f (m_i/rho_i - m_j/rho_j) at the wall, D rho grad(m/rho) in the water
        resistance = d_i / (diffusivity[i] * rho_i) + d_j / (diffusivity[j] * rho_j)
        resistance += (rho_i + rho_j) / (2 * rho_i * rho_j * kappa)
        inflow = np.zeros(len(loss))  # into i, by m
        inflow[[i, j]] = area / resistance * np.array([-1 / rho_i, 1 / rho_j])
        operator[i] += inflow / grid.volumes[i]
        operator[j] -= inflow / grid.volumes[j]
    return operator


@pytest.mark.parametrize("boundary", ["periodic", "reflecting"])
def test_equilibrium_stays_put_across_walls_between_different_media(boundary):
    grid = bcc_grid(3, 5.0) if boundary == "periodic" else distorted_grid(boundary)
    # pulses too weak to matter, because without any the time before the echo is left out
    acquisition = pulsed_gradients([1e-9], DIRECTIONS[:1], 10, 30)
    field, medium = random_permeability(grid), random_medium(grid)
    signals, jacobian = simulate_with_jacobian(acquisition, grid, field, **medium)
    # The signal is the product of the start with the end, both of norm 1 or less: it is 1 only
    # if nothing moved.
    np.testing.assert_allclose(signals, 1, atol=1e-8)
    assert np.abs(jacobian).max() < 1e-8


def test_signals_depend_on_relative_densities_only():
    grid, acquisition = distorted_grid("absorbing"), encodings([1.0], DIRECTIONS)
    field, medium = random_permeability(grid), random_medium(grid)
    signals = simulate(acquisition, grid, field, **medium)
    medium["initial_density"] = 7 * medium["initial_density"]
    np.testing.assert_allclose(simulate(acquisition, grid, field, **medium), signals, rtol=1e-9)


def test_jacobian_matches_central_differences_in_mixed_media():
    grid = distorted_grid("absorbing")
    acquisition = concatenate(
        encodings([1.0], DIRECTIONS[:3], 5.0, 10.0),
        double_diffusion([0.5], DIRECTIONS[:1], DIRECTIONS[5:6], 4, 8, 8),
        pulsed_gradients([1.0], DIRECTIONS[:1], 5, 20, mixing_time=10),
    )
    rng = np.random.default_rng(6)
    field, faces = rng.uniform(0.02, 1, grid.n_faces), np.arange(0, grid.n_faces, 4)
    medium = random_medium(grid) | {
        "t2_ms": rng.uniform(20, 80, grid.n_tetrahedra),
        "t1_ms": rng.uniform(100, 900, grid.n_tetrahedra),
        "outer_permeability": 0.1, "steps": 32,
    }  # fmt: skip
    change = 1e-3  # truncation ~ change^2 / 6 = 2e-7
    fields = np.repeat(field[None], 2 * len(faces), axis=0)
    fields[np.arange(len(faces)), faces] *= np.exp(change)
    fields[np.arange(len(faces)) + len(faces), faces] *= np.exp(-change)
    signals = simulate(acquisition, grid, fields, **medium)
    expected = (signals[: len(faces)] - signals[len(faces) :]).T / (2 * change)
    found = simulate_with_jacobian(acquisition, grid, field, **medium)[1][:, faces]
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


def test_spins_leave_through_a_permeable_outside_as_the_matrix_exponential_says():
    grid = distorted_grid("absorbing")
    kappa = np.random.default_rng(4).uniform(0.01, 0.5, len(grid.outer_faces))
    field, medium = np.full(grid.n_faces, 0.3), random_medium(grid)
    loss, outside = np.zeros(grid.n_tetrahedra), grid.outer_tetrahedra
    resistance = grid.outer_distances / medium["diffusivity"][outside] + 1 / kappa
    np.add.at(loss, outside, grid.outer_areas / resistance / grid.volumes[outside])
    start = medium["initial_density"]
    end = expm(40 * dense_operator(grid, field, **medium, loss=loss)) @ start
    expected = grid.volumes @ end / (grid.volumes @ start)
    acquisition = encodings([0.0], DIRECTIONS[:1])
    signal = simulate(acquisition, grid, field, outer_permeability=kappa, **medium)
    # the promised accuracy of the Chebyshev series is 1e-8 per exponential
    np.testing.assert_allclose(signal, expected, atol=1e-7)


def test_outer_permeability_goes_from_reflecting_to_absorbing():
    absorbing, reflecting = distorted_grid("absorbing"), distorted_grid("reflecting")
    field = random_permeability(absorbing)
    acquisition = encodings([0.0, 1.0], DIRECTIONS[:3])
    closed = simulate(acquisition, absorbing, field, outer_permeability=0.0)
    np.testing.assert_allclose(closed, simulate(acquisition, reflecting, field), atol=1e-7)
    openly = simulate(acquisition, absorbing, field, outer_permeability=np.inf)
    np.testing.assert_array_equal(openly, simulate(acquisition, absorbing, field))
    between = simulate(acquisition, absorbing, field, outer_permeability=0.1)
    assert (openly < between).all() and (between < closed).all()


# ---------------------------------------------------------------- stimulated echo


def stimulated_by_waveforms(spin):
    return pulsed_gradients(spin.b, spin.directions, 8, 120, mixing_time=100)


def stimulated_by_timing(spin):
    return Acquisition(spin.b, spin.directions, 8, 120, mixing_time=100)


@pytest.mark.parametrize("stimulate", [stimulated_by_waveforms, stimulated_by_timing])
def test_stimulated_echo_is_the_spin_echo_of_the_same_pulses_but_for_relaxation(stimulate):
    grid = bcc_grid(3, 5.0)
    field = random_permeability(grid)
    spin = encodings([1.0, 2.0], DIRECTIONS[:3], 8.0, 120.0)
    stimulated = stimulate(spin)
    expected = simulate(spin, grid, field)
    np.testing.assert_allclose(simulate(stimulated, grid, field), expected, atol=1e-7)
    np.testing.assert_allclose(stimulated.te, 28.0)
    relaxed = simulate(stimulated, grid, field, t2_ms=50.0, t1_ms=800.0)
    decay = np.exp(-28 / 50 - 100 / 800)
    np.testing.assert_allclose(relaxed, expected * decay, atol=1e-7)


def test_one_relaxation_time_is_the_same_given_for_all_or_for_each():
    grid, field = bcc_grid(3, 5.0), random_permeability(bcc_grid(3, 5.0))
    acquisition = pulsed_gradients([1.0, 2.0], DIRECTIONS[:2], 8, 60, mixing_time=40)
    ones = np.ones(grid.n_tetrahedra)
    one = simulate_with_jacobian(acquisition, grid, field, t2_ms=50.0, t1_ms=800.0)
    each = simulate_with_jacobian(acquisition, grid, field, t2_ms=50 * ones, t1_ms=800 * ones)
    np.testing.assert_allclose(each[0], one[0], atol=1e-7)
    # the time quadrature has other nodes where there is loss
    np.testing.assert_allclose(each[1], one[1], atol=1e-4 * np.abs(one[1]).max())


def test_t1_of_each_tetrahedron_acts_while_the_magnetisation_is_stored():
    grid = distorted_grid("reflecting")
    rng = np.random.default_rng(5)
    t2, t1 = rng.uniform(20, 80, (2, grid.n_tetrahedra)) * [[1], [10]]
    field, medium = np.full(grid.n_faces, 0.3), random_medium(grid)
    m = medium["initial_density"]
    for relaxation, duration in ((1 / t2, 12.0), (1 / t1, 100.0), (1 / t2, 12.0)):
        m = expm(duration * dense_operator(grid, field, **medium, loss=relaxation)) @ m
    expected = grid.volumes @ m / (grid.volumes @ medium["initial_density"])
    acquisition = pulsed_gradients([0.0], [[0, 0, 0]], 8, 116, mixing_time=100)
    signal = simulate(acquisition, grid, field, t2_ms=t2, t1_ms=t1, **medium)
    np.testing.assert_allclose(signal, expected, atol=1e-7)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("diffusivity", [2.0, -1.0]),
        ("diffusivity", np.r_[-1.0, np.ones(47)]),
        ("diffusivity", np.r_[np.inf, np.ones(47)]),
        ("initial_density", 0.0),
        ("initial_density", np.r_[np.nan, np.ones(47)]),
        ("t2_ms", np.r_[0.0, np.ones(47)]),
        ("t1_ms", -5.0),
        ("t1_ms", "long"),
        ("outer_permeability", -0.1),
        ("outer_permeability", np.ones(3)),
    ],
)
@pytest.mark.parametrize("solve", [simulate, simulate_with_jacobian])
def test_bad_media_raise_an_error_that_names_the_argument(solve, name, value):
    grid = distorted_grid("absorbing")
    assert grid.n_tetrahedra == 48
    with pytest.raises(ValueError, match=f"^{name} is|^{name} has"):
        solve(encodings([1.0], DIRECTIONS[:1]), grid, np.ones(grid.n_faces), **{name: value})


@pytest.mark.parametrize("boundary", ["periodic", "reflecting"])
def test_a_closed_grid_has_no_permeable_outside(boundary):
    grid = bcc_grid(3, 5.0, boundary=boundary)
    with pytest.raises(ValueError, match="outer_permeability is set, .*absorbing"):
        simulate(
            encodings([1.0], DIRECTIONS[:1]), grid, np.ones(grid.n_faces), outer_permeability=0.1
        )
