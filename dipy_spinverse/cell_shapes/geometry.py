"""Size measures of a cell, and distances between surfaces."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from dipy_spinverse.bloch_torrey.finite_elements.modal_sensitivity import ModalSignals
from dipy_spinverse.grid.tetrahedral_grid import TetrahedralGrid, vector_areas

MAPS = ("volume", "surface", "length", "mean_radius", "tortuosity")
_END = 0.1  # fraction of the volume that defines an end; chosen by hand


def size_measures(
    grid: TetrahedralGrid, points: np.ndarray, body: ModalSignals
) -> dict[str, float]:
    """Volume (um^3), surface (um^2), length and mean radius (um), and tortuosity of a cell.

    The length is that of a straight tube with the same slowest rate of diffusion, pi (D / rate)^½:
    of synthetic axons that of the centre line to 6 %. The mean radius is that of a cylinder of the
    same length and volume. The slowest mode also defines the ends: tortuosity is the length
    over their distance, 1 in a straight tube.
    """
    masses, modes = body.network.masses, body.modes
    volume = masses.sum()
    length = np.pi * np.sqrt(float(body.sensitivities.diffusivity.max()) / modes.rates[1])
    order = np.argsort(modes.shapes[:, 1] / np.sqrt(masses))
    end_distance = np.linalg.norm(_end(body, order) - _end(body, order[::-1]))
    return {
        "volume": volume,
        "surface": np.linalg.norm(vector_areas(points[grid.outer_faces]), axis=1).sum(),
        "length": length,
        "mean_radius": np.sqrt(volume / (np.pi * length)),
        "tortuosity": (1 - _END) * length / end_distance,
    }


def _end(body, order):
    """Centre (3,) of the nodes that come first in an order, up to a fraction of the volume."""
    masses = body.network.masses[order]
    cumulative = np.cumsum(masses) - masses
    shares = np.clip(_END * masses.sum() - cumulative, 0, masses)
    return shares @ body.network.positions[order] / shares.sum()


def outward_triangles(grid: TetrahedralGrid, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangles (F, 3) of the outside, seen anticlockwise, and their vector areas (F, 3), um^2."""
    triangles = grid.outer_faces.copy()
    areas = vector_areas(points[triangles])
    inside = points[grid.tetrahedra[grid.outer_tetrahedra]].mean(axis=1)
    inward = np.einsum("tk,tk->t", areas, points[triangles[:, 0]] - inside) < 0
    triangles[inward] = triangles[inward][:, ::-1]
    return triangles, np.where(inward[:, None], -areas, areas)


def surface_std(grid: TetrahedralGrid, points: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Distance (N,) of other surfaces, of vertices (n, N, 3), from the vertices of one, um.

    Root mean square along the normals of the others, at their nearest vertices, as
    displacements within a surface do not change a shape. 0 inside.
    """
    surface = np.unique(grid.outer_faces)
    squares = np.zeros(len(points))
    for sample in samples:
        triangles, areas = outward_triangles(grid, sample)
        normals = np.zeros_like(sample)
        for k in range(3):
            np.add.at(normals, triangles[:, k], areas)
        nearest = surface[cKDTree(sample[surface]).query(points[surface])[1]]
        normal = normals[nearest] / np.linalg.norm(normals[nearest], axis=1, keepdims=True)
        squares[surface] += ((sample[nearest] - points[surface]) * normal).sum(axis=1) ** 2
    return np.sqrt(squares / len(samples))
