"""Maps of walls: areas of membranes and not of staircases, and what they enclose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dipy_spinverse.bloch_torrey import relative_transmissibility
from dipy_spinverse.bloch_torrey.finite_volumes.displacement import displacement_moments
from dipy_spinverse.grid import bcc_grid
from dipy_spinverse.substrates.membranes import cylinders, from_inside, spheres
from dipy_spinverse.walls.maps import LONGEST_EXCHANGE_TIME_MS, wall_maps

DIFFUSIVITY = 2.0
CENTER = [0.3, -0.2, 0.1]


def maps_of(grid, permeability, diffusion_time=30.0):
    """Maps of one permeability field, without the leading axis."""
    tau = relative_transmissibility(grid, np.atleast_2d(permeability), DIFFUSIVITY)
    maps = wall_maps(grid, tau, diffusivity=DIFFUSIVITY, diffusion_time=diffusion_time)
    return {name: values[0] for name, values in maps.items()}


# Measured errors are 0 to 3 % from two cells per radius on, 1 to 7 % at one cell per radius; the
# plain sums of face areas are 40 to 100 % too large.
@pytest.mark.parametrize(
    ("cells", "cell_size", "radius", "tolerance"),
    [(8, 1.0, 3.0, 0.02), (8, 1.0, 2.0, 0.04), (4, 5.0, 6.0, 0.09), (4, 5.0, 8.0, 0.05)],
)
def test_surface_is_that_of_the_sphere(cells, cell_size, radius, tolerance):
    grid = bcc_grid(cells, cell_size)
    found = maps_of(grid, spheres(grid, CENTER, radius))["surface_to_volume"]
    true = 4 * np.pi * radius**2 / grid.volume_um3
    assert found == pytest.approx(true, rel=tolerance)


@pytest.mark.parametrize(
    ("cells", "cell_size", "radius", "tolerance"),
    [(12, 1.0, 3.0, 0.02), (8, 1.0, 2.0, 0.03), (4, 5.0, 5.0, 0.07)],
)
@pytest.mark.parametrize("axis", [(0, 0, 1), (1, 0, 1), (1, 1, 1)])
def test_surface_is_that_of_the_cylinder(cells, cell_size, radius, axis, tolerance):
    grid = bcc_grid(cells, cell_size)
    # Tilted cylinders are closer to their periodic images.
    radius = min(radius, 0.25 * cells * cell_size)
    found = maps_of(grid, cylinders(grid, CENTER, radius, axis))["surface_to_volume"]
    length = np.linalg.norm(axis) * cells * cell_size
    true = 2 * np.pi * radius * length / grid.volume_um3
    assert found == pytest.approx(true, rel=tolerance)


@pytest.mark.parametrize("wave", [(1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 1, 0), (2, 1, 1)])
def test_surface_of_planes_does_not_depend_on_their_orientation(wave):
    grid = bcc_grid(8, 1.0)
    phase = 2 * np.pi * np.array(wave) / 8.0
    slabs = from_inside(grid, lambda points: np.cos(points @ phase + 0.4) > 0)
    # Two planes per period along the wave; flat walls have no curvature to blur: 0.5 % at most.
    true = 2 * np.linalg.norm(wave) / 8.0
    assert maps_of(grid, slabs)["surface_to_volume"] == pytest.approx(true, rel=0.01)


@pytest.mark.parametrize("permeability", [0.01, 0.1])
def test_permeability_and_exchange_time_are_those_of_the_membrane(permeability):
    grid = bcc_grid(8, 1.5)
    maps = maps_of(grid, cylinders(grid, CENTER, 4.0, permeability=permeability))
    # The area's error, 1 to 2 %; the exchange has the projected area without it.
    assert maps["wall_permeability"] == pytest.approx(permeability, rel=0.03)
    assert maps["exchange_time"] == pytest.approx(4.0 / (2 * permeability), rel=0.03)


def test_impermeable_walls_have_the_longest_exchange_time():
    grid = bcc_grid(4, 5.0)
    maps = maps_of(grid, cylinders(grid, CENTER, 5.0))
    assert maps["wall_permeability"] == pytest.approx(0, abs=1e-6)
    assert maps["exchange_time"] == pytest.approx(LONGEST_EXCHANGE_TIME_MS, rel=1e-3)


@pytest.mark.parametrize("radius", [2.0, 4.0])
def test_restricted_fraction_of_impermeable_cylinders_is_their_volume_fraction(radius):
    grid = bcc_grid(8, 1.5)
    maps = maps_of(grid, cylinders(grid, CENTER, radius))
    true = np.pi * radius**2 / 12**2
    # Soft step 1 %, volume on the grid 1 %; the diameter has the area's error too.
    assert maps["restricted_fraction"] == pytest.approx(true, rel=0.02)
    assert maps["pore_diameter"] == pytest.approx(2 * radius, rel=0.04)


def test_pore_diameter_of_a_sphere_is_its_mean_chord():
    grid = bcc_grid(8, 1.5)
    maps = maps_of(grid, spheres(grid, CENTER, 4.0))
    assert maps["pore_diameter"] == pytest.approx(4 / 3 * 4.0, rel=0.04)


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 1), (-1, 1, 1)])
def test_orientation_is_the_axis_of_cylinders(axis):
    grid = bcc_grid(6, 2.0)
    maps = maps_of(grid, cylinders(grid, CENTER, 3.0, axis))
    # Half a degree is 0.00004; the voxelised cylinder is not exactly symmetric.
    cosine = maps["wall_orientation"] @ axis / np.linalg.norm(axis)
    assert cosine == pytest.approx(1.0, abs=0.002)
    # 1 but for steps that the smoothing leaves at three tetrahedra per radius.
    assert maps["wall_anisotropy"] > 0.85


def test_spheres_and_planes_determine_no_axis():
    grid = bcc_grid(6, 2.0)
    plane = from_inside(grid, lambda points: np.abs(points[:, 2]) < 3)
    for walls in (spheres(grid, CENTER, 4.0), plane):
        assert maps_of(grid, walls)["wall_anisotropy"] < 0.1


@pytest.mark.parametrize("boundary", ["periodic", "absorbing", "reflecting"])
def test_free_water_is_zero_in_all_maps(boundary):
    grid = bcc_grid(4, 5.0, boundary)
    for values in maps_of(grid, np.full(grid.n_faces, np.inf)).values():
        np.testing.assert_allclose(values, 0, atol=1e-6)


def test_the_box_is_no_pore():
    grid = bcc_grid(8, 2.5, "absorbing")
    maps = maps_of(grid, cylinders(grid, [0.0, 0, 0], 3.0))
    # The grid lacks the tetrahedra that stick out of its box, and so ends of the cylinder.
    true = np.pi * 3.0**2 * 20 / grid.volume_um3
    assert maps["restricted_fraction"] == pytest.approx(true, rel=0.1)


def test_any_transmissibilities_have_finite_maps_and_a_batch_equals_its_fields():
    grid = bcc_grid(3, 5.0)
    rng = np.random.default_rng(3)
    tau = rng.uniform(size=(40, grid.n_faces))
    tau[0], tau[1] = 0, 1
    tau[2:6] = rng.integers(0, 2, size=(4, grid.n_faces))
    settings = {"diffusivity": DIFFUSIVITY, "diffusion_time": 20.0}
    batch = wall_maps(grid, torch.from_numpy(tau), **settings)
    assert batch["wall_orientation"].shape == (40, 3)
    for name, values in batch.items():
        assert np.isfinite(values).all(), name
        assert name == "wall_orientation" or values.min() >= 0, name
    for index in (0, 1, 2, 33, 39):
        single = wall_maps(grid, tau[index : index + 1], **settings)
        for name, values in single.items():
            # Sums of a batch may be in another order.
            np.testing.assert_allclose(values[0], batch[name][index], rtol=1e-8, atol=1e-10)


def test_maps_are_smooth_in_the_transmissibilities():
    grid = bcc_grid(4, 5.0)
    rng = np.random.default_rng(0)
    walls = cylinders(grid, CENTER, 6.0, permeability=0.05)
    tau = relative_transmissibility(grid, walls, DIFFUSIVITY)
    tau = 0.05 + 0.9 * tau
    direction = rng.normal(size=tau.shape)
    steps = np.array([-2, -1, 1, 2]) * 1e-3
    fields = tau + steps[:, None] * direction
    maps = wall_maps(grid, fields, diffusivity=DIFFUSIVITY, diffusion_time=30.0)
    for name in ("surface_to_volume", "restricted_fraction", "pore_diameter", "exchange_time"):
        two_below, below, above, two_above = maps[name]
        # Central differences of two widths agree to the order of the step squared.
        assert two_above - two_below == pytest.approx(2 * (above - below), rel=0.01), name


def test_spins_in_a_closed_slab_spread_over_it_evenly():
    grid = bcc_grid(8, 1.0)
    inside = np.abs(grid.centroids[:, 0]) < 2
    tau = relative_transmissibility(grid, from_inside(grid, inside)[None], DIFFUSIVITY)
    mean, second = displacement_moments(grid, torch.from_numpy(tau), 50.0, DIFFUSIVITY)
    x = grid.centroids[inside, 0]
    # Equilibrium, whose slowest mode has died out by exp(-60); the moments are those of a finite
    # phase, 0.05 rad for free spins.
    np.testing.assert_allclose(mean[0, inside, 0], x.mean() - x, atol=1e-3)
    np.testing.assert_allclose(second[0, inside, 0, 0], x.var() + (x - x.mean()) ** 2, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transmissibility": np.ones(10)}, r"transmissibility has shape \(10,\)"),
        ({"transmissibility": np.ones((1, 10))}, r"give \(V, 648\)"),
        ({"transmissibility": np.full((1, 648), 1.5)}, r"values in \[0, 1\]"),
        ({"transmissibility": np.linspace(0, 1.1, 648)[None]}, r"values in \[0, 1\]"),
        ({"transmissibility": np.full((1, 648), np.nan)}, r"values in \[0, 1\]"),
        ({"diffusivity": 0.0}, "diffusivity is 0.0; give a positive number"),
        ({"diffusion_time": np.inf}, "diffusion_time is inf; give a positive number"),
    ],
)
def test_bad_arguments_say_what_is_needed(change, message):
    arguments = {
        "transmissibility": np.ones((1, 648)), "diffusivity": 2.0, "diffusion_time": 30.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        wall_maps(bcc_grid(3, 5.0), **(arguments | change))


def test_maps_do_not_depend_on_the_unit_of_length():
    """Lengths and permeability times s, diffusivity times s^2: the same world."""
    s, found = 3.0, []
    for length in (1.0, s):
        grid = bcc_grid(6, length)
        walls = cylinders(
            grid, length * np.array(CENTER), 2.0 * length, permeability=0.02 * length
        )
        diffusivity = DIFFUSIVITY * length**2
        tau = relative_transmissibility(grid, walls[None], diffusivity)
        found.append(wall_maps(grid, tau, diffusivity=diffusivity, diffusion_time=20.0))
    powers = {"surface_to_volume": -1, "pore_diameter": 1, "wall_permeability": 1}
    for name, values in found[0].items():
        # Maps decrease to zero below a surface of 0.001/um, which is not scaled.
        np.testing.assert_allclose(
            found[1][name], s ** powers.get(name, 0) * values, rtol=1e-3, atol=1e-6, err_msg=name
        )
