"""Walls of smooth cells as closed meshes of triangles, and where walls are likely."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from skimage.measure import marching_cubes

from dipy_spinverse.cell_search.smooth.level_set import FieldPrior, SmoothCells
from dipy_spinverse.grid.tetrahedral_grid import connected_component, vector_areas
from dipy_spinverse.walls.interface import InterfaceMesh, ranked_by_size

_N_POINTS = 48  # along a side of the box; the area of a ball of 11 um in 20 um is exact to 0.2 %
_STEP = 1e-3  # of difference quotients, over the side of the box
_TOLERANCE = 0.04  # distance within which there is a wall, over the side of the box
# Standard deviation of translations along each axis, over the side of the box, that samples do not
# have, as they remain near local minima (benchmarks/results/smooth_bodies.md).
_TRANSLATION_SD, _N_TRANSLATIONS = 0.045, 16


def smooth_mesh(
    prior: FieldPrior, cells: SmoothCells, samples: Sequence[SmoothCells]
) -> InterfaceMesh:
    """Mesh of the walls of smooth cells, closed also where the box cuts them off."""
    vertices, triangles = _walls(prior, cells)
    normals, centres = vector_areas(vertices[triangles]), vertices[triangles].mean(axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    edges = triangles[:, [[0, 1], [1, 2]]].reshape(-1, 2)
    component = connected_component(edges, len(vertices))
    return InterfaceMesh(
        vertices_um=vertices,
        triangles=triangles,
        permeability=cells.permeability[cells.index_at(centres, prior.box_um)],
        wall_probability=wall_probability(prior, samples, centres),
        normals=normals,
        components=ranked_by_size(component[triangles[:, 0]]),
    )


def wall_area(prior: FieldPrior, cells: SmoothCells) -> np.ndarray:
    """Area (C,) of the walls of each cell, um^2."""
    vertices, triangles = _walls(prior, cells)
    area = np.linalg.norm(vector_areas(vertices[triangles]), axis=1)
    index = cells.index_at(vertices[triangles].mean(axis=1), prior.box_um)
    return np.bincount(index, area, minlength=len(cells.log_permeability))


def _walls(prior, cells):
    """Vertices (V, 3), um, and triangles (N, 3) of closed walls."""
    axes = [((np.arange(_N_POINTS) + 0.5) / _N_POINTS - 0.5) * side for side in prior.box_um]
    # Outside of the box there are no cells.
    field = np.pad(prior.on_axes(cells.z, axes), 1, constant_values=-1e-3 * prior.length)
    if not (field > 0).any():
        return np.zeros((0, 3)), np.zeros((0, 3), dtype=int)
    spacing = prior.box_um / _N_POINTS
    vertices, triangles, *_ = marching_cubes(field, 0.0, spacing=tuple(spacing))
    return vertices - (prior.box_um + spacing) / 2, triangles


def wall_probability(
    prior: FieldPrior, cells: Sequence[SmoothCells], points: np.ndarray
) -> np.ndarray:
    """Probability (P,) of a wall within 4 % of the side of the box of points (P, 3), over samples
    and translations of each: samples stay near local minima, data hardly determine positions."""
    rng, side = np.random.default_rng(0), prior.box_um.mean()
    step, n_near = _STEP * side, np.zeros(len(points))
    for sample in cells:
        field_at = prior.interpolated(sample.z)
        for shift in _TRANSLATION_SD * side * rng.standard_normal((_N_TRANSLATIONS, 3)):
            shifted = (points - shift).clip(-prior.box_um / 2, prior.box_um / 2)
            field = field_at(shifted)
            slopes = [(field_at(shifted + step * e) - field) / step for e in np.eye(3)]
            n_near += np.abs(field) < _TOLERANCE * side * np.linalg.norm(slopes, axis=0)
    return n_near / max(len(cells) * _N_TRANSLATIONS, 1)
