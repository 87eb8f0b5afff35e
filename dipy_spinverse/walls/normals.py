"""Normals of the smooth surface that walls on faces of a grid approximate."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.grid import TetrahedralGrid

# Neighbourhood of a wall, in shared edges: smaller ones follow single faces, larger ones smooth
# small bodies. Chosen for areas of spheres and cylinders (see below).
_NEIGHBOUR_DISTANCE = 4


def wall_normals(grid: TetrahedralGrid, walls: np.ndarray) -> np.ndarray:
    """Unit normals (W, 3), of arbitrary sign, of the smooth surface at each wall of a mask (F,).

    The direction in which the connected walls around a wall are least extended: the eigenvector
    of the smallest eigenvalue of the second moment of their area. The sum of ``A_f |n_f . n|``
    over the walls of spheres and cylinders is within 3 % of the area of the smooth surface, while
    the sum of ``A_f`` exceeds it by 10 to 80 %.
    """
    if not walls.any():
        return np.zeros((0, 3))
    incidence = grid.edge_faces[:, walls]
    step = (incidence.T @ incidence).astype(bool).astype(float)
    neighbours = step
    for _ in range(_NEIGHBOUR_DISTANCE - 1):
        neighbours = (neighbours @ step).astype(bool).astype(float)
    neighbours = neighbours.tocoo()
    wall_index, neighbour_index = neighbours.row, neighbours.col

    areas = grid.face_areas[walls]
    centroids = grid.face_centroids[walls]
    corners = grid.face_points[walls] - centroids[:, None]
    face_moments = np.einsum("fvi,fvj->fij", corners, corners) / 12
    weights = areas[neighbour_index] / np.bincount(wall_index, areas[neighbour_index])[wall_index]
    offsets = grid.minimum_image(centroids[neighbour_index] - centroids[wall_index])

    def average(values):
        sums = [
            np.bincount(wall_index, weights * v)
            for v in values.reshape(len(neighbour_index), -1).T
        ]
        return np.stack(sums, axis=1).reshape(-1, *values.shape[1:])

    mean = average(offsets)
    moment = average(offsets[:, :, None] * offsets[:, None] + face_moments[neighbour_index])
    moment -= mean[:, :, None] * mean[:, None]
    return np.linalg.eigh(moment)[1][:, :, 0]
