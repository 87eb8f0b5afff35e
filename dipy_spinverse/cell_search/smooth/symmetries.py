"""Symmetries of the box: rotations of fields and signals, and images of single cells.

The effect of a cell on the signals depends on its distance from the sides of the absorbing box: it
is nearly the same at symmetry images of its position, and for the cell reflected in its centre.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from itertools import combinations, permutations, product

import numpy as np
from scipy.ndimage import map_coordinates

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.cell_search.smooth.level_set import (
    RASTER,
    FieldPrior,
    SmoothCells,
    split_into_cells,
)
from dipy_spinverse.voxels.shells import harmonics, shells_of

# Order of the harmonics of a shell below which they do not predict signals along other directions;
# those of order 6 do to 0.05 of the noise (benchmarks/notes/walls_off_grid.md).
_MIN_ORDER = 4
# Set by hand; cells that come closer to the sides of the box lose signal by thousands in twice the
# log posterior (benchmarks/notes/walls_off_grid.md).
_GAP = 0.1  # between cells, in lengths of the prior
_OUTSIDE_DEPTH = 0.5  # of the field of a cell in the space of other cells, in lengths of the prior
_MARGIN = 0.08  # between cells and sides, over the box, unless they were closer before
_TOLERANCE = 0.05  # of positions, over the box, within which two images are the same
_MIRRORS = np.array([*product((1, -1), repeat=3)])


class Rotations:
    """Rotations of a box onto itself. Rotated by R, cells have along g the signals of the cells
    along R^T g, by the harmonics of a shell; with too few directions only R = I is left."""

    def __init__(self, acquisition: Acquisition, box_um: np.ndarray):
        self._acquisition, self._shells = acquisition, shells_of(acquisition)
        can_rotate = all(shell.order >= _MIN_ORDER for shell in self._shells)
        self.matrices = [
            matrix
            for matrix in _signed_permutations()
            if np.allclose(np.abs(matrix) @ box_um, box_um)
            and (can_rotate or np.array_equal(matrix, np.eye(3)))
        ]

    def fields(self, k: int, fields: np.ndarray) -> np.ndarray:
        """Fields (N, R^3) on a raster after the rotation `k`."""
        n = round(fields.shape[1] ** (1 / 3))
        axis = np.arange(n) - (n - 1) / 2
        voxels = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        source = np.rint(voxels @ self.matrices[k] + (n - 1) / 2).astype(int)
        return fields[:, np.ravel_multi_index(tuple(source.T), (n, n, n))]

    def signals(self, k: int, signals: np.ndarray) -> np.ndarray:
        """Signals (N, M) after the rotation `k`."""
        return signals @ self._signal_matrices[k].T

    @cached_property
    def _signal_matrices(self):
        directions, number = self._acquisition.directions, len(self._acquisition)
        matrices = []
        for rotation in self.matrices:
            matrix = np.eye(number)
            if not np.array_equal(rotation, np.eye(3)):
                for shell in self._shells:
                    rotated = harmonics(shell.order, directions[shell.rows] @ rotation)
                    matrix[np.ix_(shell.rows, shell.rows)] = rotated @ shell.fit
            matrices.append(matrix)
        return matrices


def _signed_permutations():
    for order, signs in product(permutations(range(3)), _MIRRORS):
        matrix = signs[:, None] * np.eye(3)[list(order)]
        if np.linalg.det(matrix) > 0:
            yield matrix


def symmetry_images(cells: SmoothCells, prior: FieldPrior) -> list[SmoothCells]:
    """Cells of which one is moved to an image or reflected, or two are exchanged, if none
    touch."""
    points, cells = prior.raster[0], split_into_cells(cells, prior)
    field = prior.on_raster(cells.z).ravel()
    index = np.broadcast_to(cells.cell_index, (RASTER,) * 3).ravel()
    outside = np.minimum(field, -_OUTSIDE_DEPTH * prior.length)
    single = [np.where(index == k, field, outside) for k in range(index.max() + 1)]
    centres = [points[x > 0].mean(axis=0) for x in single]
    arrangements = []
    for k, cell in enumerate(single):
        targets = [(1, x) for x in _images(centres[k], prior.box_um)[1:]]
        if len(single) > 1:  # one reflected in the centre of the box has the same signals
            targets += [(-1, mirror * centres[k]) for mirror in _MIRRORS]
        for sign, target in targets:
            moved = _moved(cell, centres[k], target, sign, prior)
            arrangements.append([*single[:k], moved, *single[k + 1 :]])
    for k, n in combinations(range(len(single)), 2):
        exchanged = list(single)
        exchanged[k] = _moved(single[k], centres[k], centres[n], 1, prior)
        exchanged[n] = _moved(single[n], centres[n], centres[k], 1, prior)
        arrangements.append(exchanged)
    return [
        replace(
            cells,
            z=prior.coefficients_of(np.max(x, axis=0)),
            cell_index=np.argmax(x, axis=0).reshape((RASTER,) * 3),
        )
        for x in arrangements
        if (np.sort(x, axis=0)[-2:-1] < -_GAP * prior.length).all()
    ]


def _images(position, box_um):
    """Images (n, 3) of a position under the symmetries of a box, the position itself first."""
    images = [position]
    for order, mirror in product(permutations(range(3)), _MIRRORS):
        image, same_box = mirror * position[list(order)], np.allclose(box_um[list(order)], box_um)
        distance = np.linalg.norm((image - images) / box_um, axis=1).min()
        if same_box and distance > _TOLERANCE:
            images.append(image)
    return images


def _moved(field, centre, target, sign, prior):
    """Field (R^3,) of a cell, reflected or not, whose centre is moved to a target in the box."""
    points = prior.raster[0]
    inside = points[field > 0]
    extent, bound = sign * (inside - centre), np.abs(inside).max(axis=0)
    bound = np.maximum(bound, (0.5 - _MARGIN) * prior.box_um)
    target = np.maximum(target, -bound - extent.min(axis=0))
    target = np.minimum(target, bound - extent.max(axis=0))
    source = centre + sign * (points - target)
    coordinates = ((source / prior.box_um + 0.5) * RASTER - 0.5).T
    return map_coordinates(
        field.reshape((RASTER,) * 3), coordinates, order=1, mode="constant", cval=-prior.length
    )
