"""Surfaces of tissue as posterior samples describe it: smooth cylinders and spheres in a cube.

A sample states the shape, radius, volume fraction and permeability of bodies, not their
positions. These are drawn: bodies of a close-packed lattice take random steps without overlap.
"""

from __future__ import annotations

import numpy as np
from dipy.core.sphere import unit_icosahedron

from dipy_spinverse.grid.tetrahedral_grid import vector_areas
from dipy_spinverse.walls.interface import InterfaceMesh, ranked_by_size

# For display only: typical distances between neighbours along the cube, and the most of a sample;
# steps of each body; vertices around a cylinder and subdivisions of the icosahedron, of few bodies
# and of many.
_PER_SIDE, _MOST_PER_SIDE, _N_STEPS = 4, 6, 60
_MANY, _N_SIDES, _N_SUBDIVISIONS = 40, (32, 16), (2, 1)


def cube_side(bodies: np.ndarray) -> float:
    """Side of the cube, um, in which all samples of a voxel are drawn: four typical distances.

    `bodies` (n, 4): whether the bodies are spheres, radius, volume fraction, permeability.
    """
    distances = [_spacing(*sample[:3]) for sample in bodies if sample[2] > 0]
    if not distances:
        return 0.0
    typical = np.exp(np.mean(np.log(distances)))
    return float(min(_PER_SIDE * typical, _MOST_PER_SIDE * min(distances)))


def sample_mesh(sample: np.ndarray, frame: np.ndarray, side: float, seed: int) -> InterfaceMesh:
    """Closed mesh of the bodies whose centres are in a cube, in the frame of the gradients.

    Cylinders are parallel to the third axis of the frame and as long as the cube.
    """
    in_spheres, radius, fraction, permeability = sample
    if not fraction:
        empty = np.zeros(0)
        return InterfaceMesh(
            np.zeros((0, 3)), np.zeros((0, 3), int), empty, empty, np.zeros((0, 3)),
            np.zeros(0, int),
        )  # fmt: skip
    centres = _centres(in_spheres, radius, fraction, side, np.random.default_rng(seed))
    many = len(centres) > _MANY
    shape = _unit_sphere(_N_SUBDIVISIONS[many]) if in_spheres else _unit_cylinder(_N_SIDES[many])
    vertices, triangles = shape
    size = radius * np.array([1, 1, 1 if in_spheres else side / radius])
    points = (centres[:, None] + size * vertices).reshape(-1, 3) @ frame
    body = np.repeat(np.arange(len(centres)), len(triangles))
    triangles = np.tile(triangles, (len(centres), 1)) + len(vertices) * body[:, None]
    normals = vector_areas(points[triangles])
    return InterfaceMesh(
        vertices_um=points,
        triangles=triangles,
        permeability=np.full(len(triangles), permeability),
        wall_probability=np.full(len(triangles), np.nan),
        normals=normals / np.linalg.norm(normals, axis=1, keepdims=True),
        components=ranked_by_size(body),
    )


def _spacing(in_spheres, radius, fraction):
    """Distance between neighbours of a close-packed lattice of bodies."""
    if in_spheres:
        return radius * np.cbrt(16 * np.pi / 3 / fraction) / np.sqrt(2)
    return radius * np.sqrt(2 * np.pi / (np.sqrt(3) * fraction))


def _centres(in_spheres, radius, fraction, side, rng):
    """Centres (n, 3) in the cube, one of them at its centre."""
    spacing = _spacing(in_spheres, radius, fraction)
    if in_spheres:
        cell = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
        repeats, edges = (3, 3, 3), np.full(3, np.sqrt(2) * spacing)
    else:
        cell = np.array([[0, 0], [1, 1]]) / 2
        repeats, edges = (5, 3), np.array([1, np.sqrt(3)]) * spacing
    corners = np.stack(np.meshgrid(*map(range, repeats), indexing="ij"), -1)
    corners = corners.reshape(-1, len(repeats))
    points = ((corners[:, None] + cell).reshape(-1, len(repeats))) * edges
    period = repeats * edges
    step = max(spacing - 2 * radius, 0.05 * radius) / 2
    for k in np.tile(np.arange(len(points)), _N_STEPS):
        moved = points[k] + step * rng.standard_normal(len(period))
        offsets = moved - points
        offsets -= period * np.round(offsets / period)
        distances = np.delete(np.linalg.norm(offsets, axis=1), k)
        if distances.min() >= 2 * radius:
            points[k] = moved
    points -= points[0]
    n_images = np.ceil(side / period).astype(int) + 1
    images = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in n_images), indexing="ij"), -1)
    points = (points - period * np.round(points / period))[:, None]
    points = (points + images.reshape(-1, len(period)) * period).reshape(-1, len(period))
    points = points[(np.abs(points) <= side / 2).all(axis=1)]
    return np.pad(points, ((0, 0), (0, 3 - len(period))))


def _unit_sphere(n_subdivisions):
    """Vertices and triangles of a polyhedron with the volume of the unit ball."""
    sphere = unit_icosahedron.subdivide(n=n_subdivisions)
    vertices, triangles = sphere.vertices, sphere.faces.astype(int)
    a, b, c = np.moveaxis(vertices[triangles], 1, 0)
    products = np.einsum("tk,tk->t", a, np.cross(b, c))
    triangles = np.where(products[:, None] > 0, triangles, triangles[:, ::-1])
    return vertices * np.cbrt(8 * np.pi / np.abs(products).sum()), triangles


def _unit_cylinder(n_sides):
    """Vertices and triangles of a closed prism of length 1 with the area of the unit circle."""
    angle = 2 * np.pi * np.arange(n_sides) / n_sides
    radius = np.sqrt(2 * np.pi / n_sides / np.sin(2 * np.pi / n_sides))
    ring = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    ring = np.vstack([ring, np.zeros(2)])  # the last vertex is the centre of an end
    vertices = np.vstack([np.column_stack([ring, np.full(len(ring), z)]) for z in (-0.5, 0.5)])
    i = np.arange(n_sides)
    j, centre = (i + 1) % n_sides, np.full(n_sides, n_sides)
    top_i, top_j, top_centre = (index + len(ring) for index in (i, j, centre))
    corners = (i, j, top_j), (i, top_j, top_i), (j, i, centre), (top_i, top_j, top_centre)
    return vertices, np.concatenate([np.stack(triangle, axis=1) for triangle in corners])
