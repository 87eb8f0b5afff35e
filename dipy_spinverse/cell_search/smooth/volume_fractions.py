"""Volume fractions and wall areas of smooth cells in the tetrahedra of a lattice.

Each tetrahedron is divided into 64 by halving its edges twice, the triangle behind each outer face
into 16, and the level-set field is linear in each part. The fraction of a part in which it is
positive is the divided difference of x_+^d over the values at its d + 1 corners. The area of the
wall is the derivative of the volume by a shift of the field, times the slope of the field. So both
and their derivatives by the field at the corners are exact, and continuous as walls move.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack

from dipy_spinverse.cell_search.smooth.level_set import FieldPrior, SmoothCells
from dipy_spinverse.grid import TetrahedralGrid

# Linear in parts of length h, a ball of radius r is too small by h^2 / (8 r) or less: its volume
# by 1 % for 5.5 um in 5 tetrahedra along 20 um. Halved once only, by 3 to 5 %.
_N_HALVED = 2
# Corners of the parts of a divided simplex, as means of two of its corners.
_QUARTERS = [[(0, 0), (0, 1), (0, 2)], [(1, 1), (0, 1), (1, 2)],
             [(2, 2), (0, 2), (1, 2)], [(0, 1), (1, 2), (0, 2)]]  # fmt: skip
_EIGHTHS = [
    [(0, 0), (0, 1), (0, 2), (0, 3)], [(1, 1), (0, 1), (1, 2), (1, 3)],
    [(2, 2), (0, 2), (1, 2), (2, 3)], [(3, 3), (0, 3), (1, 3), (2, 3)],
    [(0, 1), (2, 3), (0, 2), (1, 2)], [(0, 1), (2, 3), (1, 2), (1, 3)],
    [(0, 1), (2, 3), (1, 3), (0, 3)], [(0, 1), (2, 3), (0, 3), (0, 2)],
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class VolumeFractions:
    """Of T tetrahedra, and of the sides of the box behind B outer faces."""

    fractions: np.ndarray  # (T + B,) inside of cells
    area: np.ndarray  # (T,) of the walls in each tetrahedron, um^2
    points: np.ndarray  # (P, 3) corners of the parts at walls, um
    by_field: csr_matrix  # (T + B + T, P) derivatives of both by the field there


class VolumeFractionModel:
    """Volume fractions inside of smooth cells, volumes and areas, on an absorbing lattice."""

    def __init__(self, grid: TetrahedralGrid, prior: FieldPrior):
        self.grid, self._prior = grid, prior
        parts = [_parts(grid.tetrahedron_points, _EIGHTHS), _parts(_on_sides(grid), _QUARTERS)]
        corners = np.concatenate([part.reshape(-1, 3) for part in parts])
        # Parts share corners, but for rounding.
        key = np.round((corners / grid.box_um + 1) * 2**18).astype(int) @ [1, 2**20, 2**40]
        _, first, index = np.unique(key, return_index=True, return_inverse=True)
        self._points = corners[first]
        n_inner = parts[0].size // 3
        self._tetrahedra = index[:n_inner].reshape(parts[0].shape[:-1])
        self._triangles = index[n_inner:].reshape(parts[1].shape[:-1])

    def __call__(self, cells: SmoothCells) -> VolumeFractions:
        """Volume fractions inside of cells."""
        field = self._prior.interpolated(cells.z)(self._points)
        inner, sides = _Parts(self._tetrahedra, field), _Parts(self._triangles, field)
        fraction, by_shift = _positive_fraction(inner.field)
        edges = torch.as_tensor(np.diff(self._points[inner.corners], axis=1))
        slope = torch.linalg.solve(edges, inner.field.diff(dim=1)).norm(dim=1)
        volume = self.grid.volumes[inner.simplices] / self._tetrahedra.shape[1]
        (filled, by_inner), (area, area_by_field), (of_sides, by_sides) = (
            inner.mean(fraction),
            inner.total(by_shift * slope * torch.as_tensor(volume)),
            sides.mean(_positive_fraction(sides.field)[0]),
        )
        by_field = vstack([by_inner, by_sides, area_by_field], format="csc")
        at_walls = np.flatnonzero(np.diff(by_field.indptr))
        return VolumeFractions(
            np.concatenate([filled, of_sides]), area, self._points[at_walls],
            by_field[:, at_walls].tocsr(),
        )  # fmt: skip

    def index(self, cells: SmoothCells) -> np.ndarray:
        """Cell to which each tetrahedron (T,) belongs."""
        return cells.index_at(self.grid.centroids, self._prior.box_um)

    def geometry(self, cells: SmoothCells) -> tuple[np.ndarray, np.ndarray]:
        """Volume and area (C,), um^3 and um^2, of each cell."""
        filled, index = self(cells), self.index(cells)
        volumes = filled.fractions[: self.grid.n_tetrahedra] * self.grid.volumes
        n_cells = len(cells.log_permeability)
        return np.bincount(index, volumes, n_cells), np.bincount(index, filled.area, n_cells)


class _Parts:
    """Parts of N simplices with P parts each, indices (N, P, d + 1) of points with a field."""

    def __init__(self, parts, field):
        n_positive = (field[parts] > 0).sum(axis=2)
        self._full = (n_positive == parts.shape[2]).mean(axis=1)
        cut = np.nonzero((n_positive > 0) & (n_positive < parts.shape[2]))
        self._shape, self._n_parts = (len(parts), len(field)), parts.shape[1]
        # Of the parts that walls cut.
        self.simplices, self.corners = cut[0], parts[cut]
        self.field = torch.tensor(field[self.corners], requires_grad=True)

    def total(self, values):
        """Sum (N,) over the cut parts of each simplex, and its derivatives by the field."""
        slopes = torch.autograd.grad(values.sum(), self.field, retain_graph=True)[0].numpy()
        rows = np.repeat(self.simplices, slopes.shape[1])
        total = np.bincount(self.simplices, values.detach().numpy(), self._shape[0])
        return total, csr_matrix((slopes.ravel(), (rows, self.corners.ravel())), self._shape)

    def mean(self, values):
        """Mean over all parts, of those not cut 0 or 1."""
        total, slopes = self.total(values)
        return self._full + total / self._n_parts, slopes / self._n_parts


def _positive_fraction(field):
    """Fraction of simplices in which linear fields, of values (n, d + 1) at corners, of both
    signs, are positive, and its derivative by a shift of the field."""
    n_positive = (field > 0).sum(dim=1)
    mirrored = 2 * n_positive > field.shape[1]
    sorted_field = torch.where(mirrored[:, None], -field, field).sort(dim=1, descending=True)[0]
    result = field.new_empty(2, len(field))
    for k, formula in enumerate((_one_corner, _two_corners)[: field.shape[1] // 2]):
        rows = (sorted_field > 0).sum(dim=1) == k + 1
        result[:, rows] = torch.stack(formula(*sorted_field[rows].T))
    return torch.where(mirrored, 1 - result[0], result[0]), result[1]


def _one_corner(a, *others):
    """Of one positive value, the first."""
    d, product = len(others), 1.0
    for x in others:
        product = product * (a - x)
    return a**d / product, d * a ** (d - 1) / product


def _two_corners(a, b, c, d):
    """Of two positive values of four, the first ones."""
    product = (a - c) * (a - d) * (b - c) * (b - d)
    fraction = (a * b) ** 2 - (c + d) * a * b * (a + b) + c * d * (a * a + a * b + b * b)
    return fraction / product, 3 * (c * d * (a + b) - (c + d) * a * b) / product


def _on_sides(grid):
    """Triangles (B, 3, 3), um, on the sides of the box behind the outer faces of a lattice."""
    face, half_box = grid.points_um[grid.outer_faces], grid.box_um / 2
    # Two corners of an outer face lie on a side of the box, the third one below it.
    distance = half_box - np.abs(face.mean(axis=1))
    normal_axis = np.arange(3) == distance.argmin(axis=1)[:, None]
    return np.where(normal_axis[:, None], np.sign(face) * half_box, face)


def _parts(simplices, halves):
    """Corners (N, P, d + 1, 3) of the P parts of simplices (N, d + 1, 3)."""
    middle_of = np.eye(simplices.shape[1])[np.array(halves)].mean(axis=2)  # (h, d + 1, d + 1)
    parts = simplices[:, None]
    for _ in range(_N_HALVED):
        parts = np.einsum("hij,npjk->nphik", middle_of, parts)
        parts = parts.reshape(len(simplices), -1, *simplices.shape[1:])
    return parts
