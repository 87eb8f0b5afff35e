"""Walls of smooth cells as closed meshes of triangles, and where walls are likely."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes

from dipy_spinverse.cell_search.smooth.forward import SmoothCells
from dipy_spinverse.cell_search.smooth.level_set import FieldPrior
from dipy_spinverse.walls.interface import InterfaceMesh

_POINTS = 48  # along a side of the box, between which walls are interpolated
_STEP = 1e-3  # of differences, over the side of the box
_WITHIN = 0.04  # of the side of the box: how near a wall counts
# Standard deviation of places along each axis, over the side of the box, beside that of draws.
_PLACE_SD, _N_PLACES = 0.045, 16


def smooth_mesh(
    prior: FieldPrior, cells: SmoothCells, draws: Sequence[SmoothCells]
) -> InterfaceMesh:
    """Mesh of the walls of smooth cells, closed also where the box cuts them off.

    The wall probability of a triangle is that of a wall within 4 % of the box's side, over the
    draws and places around them.
    """
    vertices, triangles = _walls(prior, cells)
    if not len(triangles):
        nothing, none = np.zeros((0, 3)), np.zeros(0)
        return InterfaceMesh(nothing, nothing.astype(int), none, none, nothing, none.astype(int))
    normals, centres = _areas(vertices, triangles), vertices[triangles].mean(axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    return InterfaceMesh(
        vertices_um=vertices,
        triangles=triangles,
        permeability=cells.permeability[_part(prior, cells, centres)],
        wall_probability=wall_probability(prior, draws, centres),
        normals=normals,
        components=_components(triangles, len(vertices)),
    )


def wall_area(prior: FieldPrior, cells: SmoothCells) -> np.ndarray:
    """Area (C,) of the walls of each cell, um^2."""
    vertices, triangles = _walls(prior, cells)
    area = np.linalg.norm(_areas(vertices, triangles), axis=1)
    part = _part(prior, cells, vertices[triangles].mean(axis=1))
    return np.bincount(part, area, minlength=len(cells.leaks))


def _walls(prior, cells):
    """Vertices (V, 3), um, and triangles (N, 3) of closed walls."""
    axes = [((np.arange(_POINTS) + 0.5) / _POINTS - 0.5) * side for side in prior.box_um]
    # Outside of the box there are no cells.
    field = np.pad(prior.on_axes(cells.z, axes), 1, constant_values=-1e-3 * prior.length)
    if not (field > 0).any():
        return np.zeros((0, 3)), np.zeros((0, 3), dtype=int)
    spacing = prior.box_um / _POINTS
    vertices, triangles, *_ = marching_cubes(field, 0.0, spacing=tuple(spacing))
    return vertices - (prior.box_um + spacing) / 2, triangles


def _areas(vertices, triangles):
    """Areas (N, 3) of triangles, um^2, along their normals."""
    a, b, c = np.moveaxis(vertices[triangles], 1, 0)
    return np.cross(b - a, c - a) / 2


def _part(prior, cells, points):
    """To which cell points (P, 3) belong."""
    n = len(cells.parts)
    place = ((points / prior.box_um + 0.5) * n).astype(int).clip(0, n - 1)
    return cells.parts[tuple(place.T)]


def wall_probability(
    prior: FieldPrior, cells: Sequence[SmoothCells], points: np.ndarray
) -> np.ndarray:
    """Probability (P,) that a wall is within 4 % of the box's side of points (P, 3).

    Over draws of cells, and over places around each: data hardly tell where cells stand, and
    draws stay near the ends of a search.
    """
    rng, side = np.random.default_rng(0), prior.box_um.mean()
    step, near = _STEP * side, np.zeros(len(points))
    for draw in cells:
        field = prior.interpolated(draw.z)
        for shift in _PLACE_SD * side * rng.standard_normal((_N_PLACES, 3)):
            there = (points - shift).clip(-prior.box_um / 2, prior.box_um / 2)
            here = field(there)
            slopes = [(field(there + step * e) - here) / step for e in np.eye(3)]
            near += np.abs(here) < _WITHIN * side * np.linalg.norm(slopes, axis=0)
    return near / max(len(cells) * _N_PLACES, 1)


def _components(triangles, n_vertices):
    """Number of the connected component of each triangle, 0 the largest."""
    ends = triangles[:, [0, 1]], triangles[:, [1, 2]]
    row, column = np.concatenate(ends).T
    graph = coo_matrix((np.ones(len(row)), (row, column)), (n_vertices,) * 2)
    label = connected_components(graph, directed=False)[1][triangles[:, 0]]
    order = np.argsort(-np.bincount(label), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[label]
