"""True cells of `benchmarks.cell_shapes`: surfaces, meshes, signals, distances."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context

import numpy as np
from dipy.core.sphere import HemiSphere, disperse_charges
from dipy.core.subdivide_octahedron import create_unit_sphere
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.bloch_torrey.finite_elements.matrix_formalism import (
    laplace_modes,
    simulate_modes,
)
from dipy_spinverse.bloch_torrey.finite_elements.modal_sensitivity import ModalSensitivities
from dipy_spinverse.cell_shapes.geometry import size_measures
from dipy_spinverse.cell_shapes.synthetic_axons import FAMILIES, draw_axons
from dipy_spinverse.cell_shapes.templates import cylinder_mesh
from dipy_spinverse.grid import mesh_surfaces

DIFFUSIVITY = 2.0
_SURFACE = (7, 22)  # rings and layers of the true surfaces; templates have 3 x 10 and 4 x 13
_EDGE_UM = 0.55
_LENGTH_SCALE = 1.7  # um, of the modes: 1e-4 of the signals is left out
_SAMPLES, _DENSE = 20_000, 200_000


@dataclass(frozen=True, eq=False)
class Truth:
    """A true cell: its surface, and its vertices on a template where a template fits."""

    name: str
    vertices: np.ndarray
    triangles: np.ndarray

    @property
    def volume(self) -> float:
        return volume_inside(self.vertices, self.triangles)


@cache
def directions(n: int = 30) -> np.ndarray:
    """Directions (n, 3) distributed over a hemisphere."""
    rng = np.random.default_rng(0)
    start = HemiSphere(theta=np.arccos(rng.uniform(0, 1, n)), phi=rng.uniform(0, 2 * np.pi, n))
    return disperse_charges(start, 1000)[0].vertices


def protocol(name: str) -> Acquisition:
    """The published protocol, or one that a scanner of 300 mT/m can run."""
    b, small, big = {
        "published": (np.linspace(0, 10, 21), 5.0, (10.0, 25.0, 50.0)),
        "scanner": (np.array([0, 1.25, 2.5, 3.75, 5.0]), 8.0, (16.0, 30.0, 50.0)),
    }[name]
    each_b, each_big, k = (
        x.ravel() for x in np.meshgrid(b, big, np.arange(len(directions())), indexing="ij")
    )
    chosen = directions()[k] * (each_b > 0)[:, None]
    return Acquisition(b=each_b, directions=chosen, small_delta=small, big_delta=each_big)


def axon_truths(family: str, n: int, seed: int) -> list[Truth]:
    """Axons of the test ranges, turned at random."""
    fine = cylinder_mesh(*_SURFACE)
    triangles = np.searchsorted(fine.surface, fine.triangles)
    axons = draw_axons(family, n, np.random.default_rng([seed, FAMILIES.index(family)]),
                       test=True, posed=True)  # fmt: skip
    return [
        Truth(f"{family} {seed}.{k}", axon.positions(fine.points[fine.surface]), triangles)
        for k, axon in enumerate(axons)
    ]


def outside_truths(n: int, seed: int) -> dict[str, list[Truth]]:
    """Shapes of no family, n of each kind, turned at random."""
    makers = {
        "branching": _branching,
        "bumped ellipsoid": _bumped,
        "undulating beaded": _undulating,
    }
    truths: dict[str, list[Truth]] = {}
    for number, (kind, make) in enumerate(makers.items()):
        truths[kind] = []
        for k in range(n):
            rng = np.random.default_rng([seed, number, k])
            vertices, triangles = make(rng)
            turned = Rotation.random(random_state=rng).apply(vertices)
            truths[kind].append(Truth(f"{kind} {seed}.{k}", turned, triangles))
    return truths


def _branching(rng):
    """Three arms of radius 1.5-2 um from one point, joined smoothly."""
    sphere = create_unit_sphere(recursion_level=5)
    arms = np.array([[0, 0, -1], [0.8, 0, 0.6], [-0.7, rng.uniform(-0.4, 0.4), 0.7]])
    arms *= (rng.uniform(4, 6, 3) / np.linalg.norm(arms, axis=1))[:, None]
    radii = rng.uniform(1.5, 2.0, 3)

    def outside(points):
        share = np.clip(points @ arms.T / (arms**2).sum(axis=1), 0, 1)
        away = np.linalg.norm(points[:, None] - share[..., None] * arms, axis=2) - radii
        return -0.4 * np.log(np.exp(-away / 0.4).sum(axis=1))

    low, high = np.zeros(len(sphere.vertices)), np.full(len(sphere.vertices), 10.0)
    for _ in range(40):
        middle = (low + high) / 2
        inside = outside(middle[:, None] * sphere.vertices) < 0
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return low[:, None] * sphere.vertices, _outward(sphere)


def _bumped(rng):
    """An ellipsoid with one bump."""
    sphere = create_unit_sphere(recursion_level=5)
    axes = rng.uniform([2.5, 2.8, 4.0], [3.0, 3.3, 5.5])
    radius = 1 / np.linalg.norm(sphere.vertices / axes, axis=1)
    place = rng.normal(size=3)
    cosine = sphere.vertices @ (place / np.linalg.norm(place))
    bump = 1 + rng.uniform(0.3, 0.5) * np.exp(-((np.arccos(np.clip(cosine, -1, 1)) / 0.5) ** 2))
    return (radius * bump)[:, None] * sphere.vertices, _outward(sphere)


def _undulating(rng):
    """A tube whose centre line is a wave, with three beads."""
    fine = cylinder_mesh(*_SURFACE)
    x, y, t = fine.points[fine.surface].T
    wave = rng.uniform(0.8, 1.3) * np.sin(np.pi * 1.5 * t + rng.uniform(0, 2 * np.pi))
    radius = 2.3 * (1 + rng.uniform(0.15, 0.3) * np.cos(3 * np.pi * t))
    vertices = np.column_stack([radius * x + wave, radius * y, 5.5 * t])
    return vertices, np.searchsorted(fine.surface, fine.triangles)


def _outward(sphere):
    """Triangles of a sphere, seen anticlockwise from outside."""
    faces = np.asarray(sphere.faces, dtype=int)
    a, b, c = np.moveaxis(sphere.vertices[faces], 1, 0)
    inward = (np.cross(b - a, c - a) * a).sum(axis=1) < 0
    faces[inward] = faces[inward][:, ::-1]
    return faces


def measured(truth: Truth, acquisition: Acquisition) -> tuple[np.ndarray, dict[str, float]]:
    """Signals (M,) and sizes on a Gmsh mesh of some 3000 vertices inside the true surface."""
    surface = truth.vertices, truth.triangles
    grid, _ = mesh_surfaces([surface], _EDGE_UM, boundary="reflecting")
    open_ = np.full(grid.n_faces, np.inf)
    modes = laplace_modes(grid, open_, _LENGTH_SCALE, diffusivity=DIFFUSIVITY)
    slowest = ModalSensitivities(acquisition, grid, diffusivity=DIFFUSIVITY, length_scale_um=9.0)
    own = size_measures(grid, grid.points_um, slowest.at(grid.points_um))
    return simulate_modes(acquisition, modes)[0], {name: float(x) for name, x in own.items()}


def in_own_process(function, *arguments):
    """Result of a function computed in a separate process, which isolates its memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as process:
        return process.submit(function, *arguments).result()


def volume_inside(vertices, triangles) -> float:
    """um^3."""
    a, b, c = np.moveaxis(vertices[triangles], 1, 0)
    return float((np.cross(a, b) * c).sum() / 6)


def centre_of(vertices, triangles) -> np.ndarray:
    """Centre of the volume (3,), um."""
    a, b, c = np.moveaxis(vertices[triangles], 1, 0)
    volumes = (np.cross(a, b) * c).sum(axis=1) / 6
    return volumes @ (a + b + c) / 4 / volumes.sum()


def points_on(vertices, triangles, n: int, rng) -> np.ndarray:
    """Points (n, 3) sampled uniformly from a surface."""
    a, b, c = np.moveaxis(vertices[triangles], 1, 0)
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    chosen = rng.choice(len(areas), n, p=areas / areas.sum())
    u, v = np.sqrt(rng.random((2, n, 1)))
    v = v**2
    return (1 - u) * a[chosen] + u * (1 - v) * b[chosen] + u * v * c[chosen]


def roughly_apart(found: tuple, truth: tuple) -> float:
    """Surface distance of :func:`distances` by fewer points, to 0.005 um."""
    rng = np.random.default_rng(0)
    both = [points_on(v - centre_of(v, t), t, _DENSE // 4, rng) for v, t in (found, truth)]
    return _least_mean(both, _SAMPLES // 10)


def distances(found: tuple, truth: tuple) -> tuple[float, float]:
    """Published Chamfer distance and symmetric surface distance of two surfaces, um.

    Both after centring the volumes, minimised over point reflection, which leaves signals
    unchanged; other rotations count as errors. With n points x of one surface and m of the other::

        d = 1 / (2 n) sum_i |x_i - nearest of the m| + 1 / (2 m) sum_j |x_j - nearest of the n|

    The published distance uses mesh vertices as points; here 20,000 are sampled from each surface.
    The surface distance is the same with the other surface itself (200,000 points) for the
    nearest.
    """
    rng = np.random.default_rng(0)
    both = [points_on(v - centre_of(v, t), t, _DENSE, rng) for v, t in (found, truth)]
    return tuple(_least_mean([points[:n] for points in both]) for n in (_SAMPLES, _DENSE))


def _least_mean(both, n=_SAMPLES):
    """Mean nearest-point distance between two surfaces, for the better of both mirror images."""
    ways = [(cKDTree(one), other[:n]) for one, other in (both, both[::-1])]
    return min(
        sum(near.query(sign * points)[0].mean() for near, points in ways) / 2 for sign in (1, -1)
    )


def distances_of_vertices(found: tuple, truth: tuple) -> np.ndarray:
    """Distances (N,) of a surface's vertices from the true surface, um, for the point reflection
    that is closer; both as in :func:`distances`."""
    vertices = found[0] - centre_of(*found)
    points = points_on(truth[0] - centre_of(*truth), truth[1], _DENSE, np.random.default_rng(0))
    near = cKDTree(points)
    return min((near.query(sign * vertices)[0] for sign in (1, -1)), key=np.mean)
