"""Synthetic substrates: areas, volumes, periodic images and bad input."""

import logging

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dipy_spinverse.grid import bcc_grid
from dipy_spinverse.substrates.membranes import (
    bent_tube,
    cylinders,
    from_inside,
    spheres,
    torus,
)

# Projected areas: under 0.5 % on spheres and cylinders (walls lie off the curved membrane by up to
# half a tetrahedron, on both sides), up to 1.2 % where bodies also bend or end.
AREA_TOLERANCE = 0.015
GRID = bcc_grid(cells=8, cell_size_um=1.0)


def membrane_area(grid, permeability):
    """Area that unit permeability stands for."""
    walls = np.isfinite(permeability)
    return (permeability * grid.face_areas)[walls].sum()


def compartments(grid, permeability):
    """Volumes of the parts between walls, ascending, and their labels."""
    pairs = grid.face_tetrahedra[np.isinf(permeability)].T
    links = coo_matrix((np.ones(pairs.shape[1]), pairs), shape=2 * (grid.n_tetrahedra,))
    labels = connected_components(links, directed=False)[1]
    return np.sort(np.bincount(labels, grid.volumes)), labels


@pytest.mark.parametrize("radius", [1.5, 2.5, 3.5])
@pytest.mark.parametrize("cells", [8, 12])
def test_spheres_have_their_area_and_volume(radius, cells):
    grid = bcc_grid(cells, 8.0 / cells)
    permeability = spheres(grid, [0.2, 3.1, -0.4], radius, permeability=1.0)
    area, volume = 4 * np.pi * radius**2, 4 / 3 * np.pi * radius**3
    assert membrane_area(grid, permeability) == pytest.approx(area, rel=AREA_TOLERANCE)
    parts = compartments(grid, permeability)[0]
    assert len(parts) == 2
    # One tetrahedron, and 0.2 % for the sampled volume.
    assert parts[0] == pytest.approx(volume, abs=grid.volumes[0] + 2e-3 * volume)


@pytest.mark.parametrize("axis", [(0, 0, 1), (-1, 0, 0), (1, 1, 0), (1, -1, 1), (1, 2, 0)])
@pytest.mark.parametrize("radius", [1.2, 1.5])
def test_cylinders_have_their_area_and_volume_in_any_orientation(axis, radius):
    permeability = cylinders(GRID, [0.3, 0.1, 0.2], radius, axis=axis, permeability=1.0)
    length = 8.0 * np.linalg.norm(axis)
    assert membrane_area(GRID, permeability) == pytest.approx(
        2 * np.pi * radius * length, rel=AREA_TOLERANCE
    )
    volume = np.pi * radius**2 * length
    parts = compartments(GRID, permeability)[0]
    assert len(parts) == 2
    assert np.abs(parts - volume).min() < GRID.volumes[0] + 4e-3 * volume


def test_the_staircase_is_not_rougher_than_it_must_be():
    walls = np.isfinite(cylinders(GRID, [0.2, 0.1, 0], 3.0))
    area = 2 * np.pi * 3.0 * 8.0
    # Taking tetrahedra by their share alone gives 1.5, and slows diffusion along the cylinder.
    assert 1.1 * area < GRID.face_areas[walls].sum() < 1.4 * area


@pytest.mark.parametrize("axis", [(0, 0, 1), (1, 2, 3)])
def test_a_torus_has_its_area_and_volume(axis):
    grid = bcc_grid(14, 1.0)
    permeability = torus(grid, [0.5, 0.2, 0.1], 4.5, 2.0, axis=axis, permeability=1.0)
    assert membrane_area(grid, permeability) == pytest.approx(
        4 * np.pi**2 * 4.5 * 2.0, rel=AREA_TOLERANCE
    )
    volume = 2 * np.pi**2 * 4.5 * 2.0**2
    parts = compartments(grid, permeability)[0]
    assert parts[0] == pytest.approx(volume, abs=grid.volumes[0] + 2e-3 * volume)


def test_a_bent_tube_closes_through_the_periodic_box():
    grid = bcc_grid(10, 1.0)
    z = np.linspace(-5, 5, 41)
    line = np.stack([1.5 * np.sin(np.pi * z / 5), 0 * z + 4.0, z], axis=1)
    length = np.linalg.norm(np.diff(line, axis=0), axis=1).sum()
    permeability = bent_tube(grid, line, 2.0, permeability=1.0)
    assert membrane_area(grid, permeability) == pytest.approx(
        4 * np.pi * length, rel=AREA_TOLERANCE
    )
    parts = compartments(grid, permeability)[0]
    assert len(parts) == 2
    assert parts[0] == pytest.approx(4 * np.pi * length, rel=5e-3)


def test_a_straight_tube_is_a_cylinder_with_round_ends():
    tube = bent_tube(GRID, [[0.1, 0, -1], [0.1, 0, 1]], 2.0, permeability=1.0)
    assert membrane_area(GRID, tube) == pytest.approx(
        2 * np.pi * 2.0 * 2.0 + 4 * np.pi * 2.0**2, rel=AREA_TOLERANCE
    )


def test_a_tube_leaves_through_the_outside_of_an_absorbing_grid():
    grid = bcc_grid(6, 1.0, "absorbing")
    line = [[0, 0, -9], [0, 0, 9]]
    walls = np.isfinite(bent_tube(grid, line, 1.5))
    assert np.array_equal(walls, np.isfinite(cylinders(grid, [0, 0, 0], 1.5)))


@pytest.mark.parametrize("radius", [2.0, 3.0])
def test_estimated_normals_give_the_area_of_the_membrane(radius):
    def ball(points):
        return np.linalg.norm(points, axis=1) < radius

    # Normals guessed from the staircase keep some of its facets: up to 3 % too much.
    estimated = membrane_area(GRID, from_inside(GRID, ball, permeability=1.0))
    assert estimated == pytest.approx(4 * np.pi * radius**2, rel=0.035)


def test_from_inside_with_a_normal_is_the_analytic_body():
    permeability = from_inside(
        GRID,
        lambda points: np.linalg.norm(points, axis=1) < 3.0,
        normal=lambda points: 7 * points,
        permeability=0.3,
    )
    np.testing.assert_allclose(permeability, spheres(GRID, [0, 0, 0], 3.0, permeability=0.3))


def test_from_inside_takes_labels_of_tetrahedra():
    inside = GRID.centroids[:, 0] > 0
    permeability = from_inside(GRID, inside, permeability=0.5)
    differ = np.diff(inside[GRID.face_tetrahedra].astype(int), axis=1)[:, 0] != 0
    assert np.array_equal(np.isfinite(permeability), differ)
    assert np.array_equal(permeability, from_inside(GRID, 3 * inside, permeability=0.5))


def test_from_inside_separates_regions_of_different_labels():
    def thirds(points):
        x = GRID.minimum_image(points)[:, 0]
        return np.where(x < -1, 0, np.where(x < 2, 5, -2))

    parts, labels = compartments(GRID, from_inside(GRID, thirds))
    assert parts == pytest.approx(64 * np.array([2.0, 3.0, 3.0]), abs=GRID.volumes[0])


def test_without_a_body_there_are_no_walls():
    assert np.isinf(from_inside(GRID, np.zeros(GRID.n_tetrahedra, dtype=bool))).all()


@pytest.mark.parametrize("body", ["sphere", "cylinder"])
def test_a_substrate_moves_with_its_centre_through_the_periodic_box(body):
    def make(center):
        if body == "sphere":
            return spheres(GRID, center, 2.3, permeability=1.0)
        return cylinders(GRID, center, 1.9, axis=(1, 0, 1), permeability=1.0)

    center, step = np.array([0.31, 0.17, 0.23]), np.array([3.0, -4.0, 5.0])
    here, there = make(center), make(center + step)
    distances, partner = GRID.nearest(GRID.face_centroids, GRID.face_centroids + step)
    assert distances.max() < 1e-9
    # Tetrahedra of equal share inside may be chosen differently: a few faces of several hundred.
    changed = np.isfinite(there[partner]) != np.isfinite(here)
    assert changed.sum() < 0.05 * np.isfinite(here).sum()
    assert membrane_area(GRID, there) == pytest.approx(membrane_area(GRID, here), rel=2e-3)
    np.testing.assert_allclose(make(center + GRID.period_um), here, atol=1e-9)


def test_tetrahedra_of_equal_share_are_not_all_taken_from_one_side():
    _, labels = compartments(GRID, cylinders(GRID, [0, 0, 0], 2.2))
    inside = labels == labels[np.linalg.norm(GRID.centroids, axis=1).argmin()]
    waves = np.exp(2j * np.pi * GRID.centroids[inside] / GRID.period_um).mean(axis=0)
    # Centred across the axis and even along it, to a hundredth of the box.
    assert np.abs(np.angle(waves[:2])).max() < 0.01 * 2 * np.pi
    assert np.abs(waves[2]) < 0.01


def test_bodies_that_touch_keep_both_membranes_in_series():
    centers, kappas = [[-(2.0**0.5), -(2.0**0.5), 0], [2.0**0.5, 2.0**0.5, 0]], [0.1, 0.4]
    both = cylinders(GRID, centers, 2.0, permeability=kappas)
    one, other = (
        cylinders(GRID, center, 2.0, permeability=kappa)
        for center, kappa in zip(centers, kappas, strict=True)
    )
    shared = np.isfinite(one) & np.isfinite(other) & (both < 0.9 * np.minimum(one, other))
    assert shared.any()
    np.testing.assert_allclose(1 / both[shared], 1 / one[shared] + 1 / other[shared])
    assert len(compartments(GRID, both)[0]) >= 3


@pytest.mark.parametrize("make", [cylinders, spheres])
def test_a_body_that_touches_its_periodic_image_stays_apart_from_it(make):
    center = [0.3, 0.1, 0.0]
    permeability = make(GRID, center, 4.0, permeability=1.0)
    across = [1, 1, 0] if make is cylinders else [1, 1, 1]
    ends = GRID.minimum_image(GRID.centroids - center)[GRID.face_tetrahedra] * across
    within = (np.linalg.norm(ends, axis=2) < 3.98).all(axis=1)
    to_image = within & (np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1) > 4.0)
    assert to_image.any()
    # Two membranes in series.
    assert (permeability[to_image] <= 0.5).all()
    assert np.isinf(permeability[within & ~to_image]).mean() > 0.98


def test_impermeable_walls_are_zero_and_open_faces_infinite():
    permeability = cylinders(GRID, [[-2, 0, 0], [2, 0, 0]], [1.0, 1.5])
    assert set(np.unique(permeability)) == {0.0, np.inf}


def test_bodies_too_small_for_the_grid_are_reported(caplog):
    grid = bcc_grid(4, 5.0)
    with caplog.at_level(logging.WARNING, logger="dipy_spinverse"):
        cylinders(grid, [0, 0, 0], 2.0)
    assert "less than two tetrahedra wide" in caplog.text
    with pytest.raises(ValueError, match=r"body 0 \(radius 0.5 um\) covers no tetrahedron"):
        spheres(grid, [0, 0, 0], 0.5)
    with pytest.raises(ValueError, match="outside the grid"):
        spheres(bcc_grid(4, 1.0, "absorbing"), [9, 9, 9], 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"centers_um": [0, 0]}, r"centers_um has shape \(2,\); give finite positions"),
        ({"centers_um": np.zeros((0, 3))}, "centers_um has shape"),
        ({"centers_um": [0, 0, np.nan]}, "finite positions"),
        ({"radii_um": 0.0}, "radii_um is 0.0; give a positive length"),
        ({"radii_um": np.nan}, "radii_um is nan"),
        ({"radii_um": [1.0, 2.0]}, r"radii_um has shape \(2,\) for 1 centres"),
        ({"radii_um": 4.1}, "overlaps its own periodic image, 8 um away. Use at most 4 um"),
        ({"permeability": -0.1}, "permeability is -0.1; give finite values of at least 0"),
        ({"permeability": np.nan}, "permeability is nan"),
        ({"permeability": np.inf}, "permeability is inf"),
        ({"permeability": [0.1, 0.2]}, r"permeability has shape \(2,\); give one value"),
        ({"centers_um": [[-3.5, 0, 0], [3.5, 0, 0]]}, "bodies 0 and 1 overlap by 1 um"),
    ],
)
@pytest.mark.parametrize("make", [cylinders, spheres])
def test_impossible_bodies_are_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(GRID, **({"centers_um": [0, 0, 0], "radii_um": 1.0} | arguments))


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ((0, 0, 0), r"axis is \(0, 0, 0\); give three numbers that are not all zero"),
        ((0, 1), "axis is"),
        ((0.1, 0, 1), "do not close .* The nearest axis that does is"),
    ],
)
def test_impossible_axes_are_refused(axis, message):
    with pytest.raises(ValueError, match=message):
        cylinders(GRID, [0, 0, 0], 1.0, axis=axis)


def test_the_axis_named_by_the_error_works_and_other_boundaries_take_any_axis():
    with pytest.raises(ValueError, match=r"The nearest axis that does is \(8, 0, 24\)"):
        cylinders(GRID, [0, 0, 0], 0.8, axis=(0.3, 0, 1))
    assert np.isfinite(cylinders(GRID, [0, 0, 0], 0.8, axis=(8, 0, 24))).any()
    grid = bcc_grid(8, 1.0, "reflecting")
    assert np.isfinite(cylinders(grid, [0, 0, 0], 2.0, axis=(0.3, 0, 1))).any()


def test_oblique_cylinders_may_not_overlap_their_images():
    with pytest.raises(ValueError, match="overlaps its own periodic image, 5.65685 um away"):
        cylinders(GRID, [0, 0, 0], 3.0, axis=(1, 1, 0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torus(GRID, [0, 0], 2.0, 1.0), "center_um has shape"),
        (lambda: torus(GRID, [0, 0, 0], 2.0, 2.0), "the torus has no hole"),
        (lambda: torus(GRID, [0, 0, 0], 3.0, 1.5), "overlaps its own image"),
        (lambda: torus(GRID, [0, 0, 0], -1.0, 0.5), "radius_um is -1.0"),
        (lambda: torus(GRID, [0, 0, 0], 2.0, 1.0, axis=(0, 0, 0)), "axis is"),
        (lambda: bent_tube(GRID, [[0, 0, 0]], 1.0), "centerline_um has 1 point"),
        (lambda: bent_tube(GRID, [[0, 0], [1, 1]], 1.0), "centerline_um has shape"),
        (lambda: bent_tube(GRID, [[0, 0, 0], [0, 0, 8]], 5.0), "overlaps its own image"),
        (lambda: bent_tube(GRID, [[0, 0, 0], [0, 0, 8]], 0.0), "radius_um is 0.0"),
        (lambda: from_inside(GRID, np.zeros(3, bool)), r"inside has shape \(3,\)"),
        (lambda: from_inside(GRID, np.zeros(GRID.n_tetrahedra)), "type float64"),
        (lambda: from_inside(GRID, lambda x: x), r"inside returned shape \(\d+, 3\)"),
        (
            lambda: from_inside(GRID, GRID.centroids[:, 0] > 0, normal=lambda x: x[:, 0]),
            "normal returned shape",
        ),
        (lambda: from_inside(GRID, GRID.centroids[:, 0] > 0, permeability=-1), "permeability"),
    ],
)
def test_other_bad_input_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_region_without_a_boundary_has_no_walls():
    for value in (True, False):
        walls = from_inside(GRID, lambda points, value=value: np.full(len(points), value))
        assert np.isinf(walls).all()
