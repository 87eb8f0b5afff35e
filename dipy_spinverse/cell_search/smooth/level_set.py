"""Smooth cells as level sets of a Gaussian random field, which is positive inside of them.

The field is MEAN + SD sum_k z_k f_k(x) with standard normal z and the leading eigenfunctions f of
a squared exponential covariance (Karhunen-Loeve), so |z|^2 / 2 is minus the log prior of a shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter

from dipy_spinverse.grid import TetrahedralGrid

# Correlation length over the mean side of the box, and mean over standard deviation of the field:
# a fifth of the box is inside. With equal length and standard deviation slopes are about 1. Set by
# hand so that samples resemble cells; not fitted to data.
_LENGTH, _MEAN = 0.12, -0.75
_N_NODES = 64  # along an axis, on which the covariance is diagonalised
_MIN_VARIANCE = 1e-3  # of a mode, relative to the first; leaves some 700 modes
RASTER = 20  # points along an axis
_SPLINE, _PADDING = 32, 4  # nodes of cubic splines along an axis, in the box and beyond each end
_CLIP = 1.5  # depth up to which bodies are represented, in lengths of the prior
_RIDGE = 1e-4  # of their least squares, relative to the mean diagonal
# Width of walls, in distances of the points that sample a tetrahedron: wider ones would leak
# (benchmarks/notes/walls_off_grid.md, "The width of a wall").
_WIDTH = 0.6
_MIN_SLOPE, _MAX_SLOPE = 0.3, 1.2  # of the field at walls, to convert it to a distance
_FLAT = 1e-6  # extent across a planar piece, over that along it


@dataclass(frozen=True, eq=False)
class FieldPrior:
    """Modes of the random field in a box of sides (3,), um, centred on the origin."""

    box_um: np.ndarray

    @property
    def length(self) -> float:
        """Correlation length and standard deviation of the field, um."""
        return _LENGTH * float(np.mean(self.box_um))

    @property
    def n_modes(self) -> int:
        """Number of unknowns z."""
        return len(self._modes[1])

    @property
    def variances(self) -> np.ndarray:
        """Of the modes (n,), over the largest: the smaller, the rougher they are."""
        return self._modes[2]

    def basis(self, points: np.ndarray) -> np.ndarray:
        """Matrix (P, n) from z to the field minus its mean, um, at points (P, 3)."""
        factors = zip(self._factors(points), self._modes[1].T, strict=True)
        modes, *others = (factor[..., index] for factor, index in factors)
        modes *= np.float32(self.length)
        for factor in others:
            modes *= factor
        return modes

    def _factors(self, points):
        """The functions (P, k) along each axis whose products are the modes."""
        nodes = np.linspace(-0.5, 0.5, _N_NODES)[:, None] * self.box_um
        return [
            (self._covariance(points[:, k, None] - nodes[:, k]) @ factor).astype(np.float32)
            for k, factor in enumerate(self._modes[0])
        ]

    def on_axes(self, z: np.ndarray, axes: list[np.ndarray]) -> np.ndarray:
        """Field (A, B, C), um, at all points of three axes, of unknowns z (n,)."""
        points = [np.repeat(axis[:, None], 3, axis=1) for axis in axes]
        axis_factors = [self._factors(x)[k] for k, x in enumerate(points)]
        modes = np.zeros([x.shape[1] for x in axis_factors])
        modes[tuple(self._modes[1].T)] = self.length * z
        field = np.einsum("ijk,ck->ijc", modes, axis_factors[2])
        x, y, _ = axis_factors
        return np.einsum("ai,bj,ijc->abc", x, y, field, optimize=True) + self.mean

    def interpolated(self, z: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """The field, um, of unknowns z (n,) as a function of points (..., 3) in the box."""
        relative = (np.arange(-_PADDING, _SPLINE + _PADDING) + 0.5) / _SPLINE - 0.5
        nodes = spline_filter(self.on_axes(z, [relative * side for side in self.box_um]))

        def field(points):
            coordinates = (points / self.box_um + 0.5) * _SPLINE - 0.5 + _PADDING
            return map_coordinates(nodes, np.moveaxis(coordinates, -1, 0), prefilter=False)

        return field

    @property
    def mean(self) -> float:
        """Mean of the field, um."""
        return _MEAN * self.length

    @cached_property
    def raster(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (R^3, 3), um, that sample the box, and `basis` there."""
        axis = (np.arange(RASTER) + 0.5) / RASTER - 0.5
        points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        points = points * self.box_um
        return points, self.basis(points)

    def on_raster(self, z: np.ndarray) -> np.ndarray:
        """Field (R, R, R), um, of unknowns z (n,) on the raster."""
        return (self.raster[1] @ z + self.mean).reshape((RASTER,) * 3)

    def coefficients_of(self, depth: np.ndarray) -> np.ndarray:
        """Unknowns z (n,) of a body from the depth (R^3,), um, of the raster's points in it."""
        limit = _CLIP * self.length
        return self.coefficient_change(depth.clip(-limit, limit) - self.mean)

    def coefficient_change(self, change: np.ndarray) -> np.ndarray:
        """Change of unknowns (n,) for a change of the field (R^3,), um, on the raster."""
        return self._raster_inverse @ change

    @cached_property
    def _raster_inverse(self):
        basis = self.raster[1].astype(float)
        gram = basis.T @ basis
        gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram)
        return np.linalg.solve(gram, basis.T)

    def _covariance(self, distance):
        return np.exp(-0.5 * (distance / self.length) ** 2)

    @cached_property
    def _modes(self):
        nodes = np.linspace(-0.5, 0.5, _N_NODES)[:, None] * self.box_um
        values, factors = [], []
        for axis in nodes.T:
            value, vector = np.linalg.eigh(self._covariance(axis[:, None] - axis))
            leading = value > _MIN_VARIANCE * value[-1]
            values.append(value[leading][::-1])
            factors.append((vector[:, leading] / np.sqrt(value[leading]))[:, ::-1])
        variance = values[0][:, None, None] * values[1][:, None] * values[2]
        index = np.argwhere(variance > _MIN_VARIANCE * variance.max())
        return factors, index, variance[tuple(index.T)] / variance.max()


def level_set_prior(grid: TetrahedralGrid) -> FieldPrior:
    """The prior in the box of an absorbing lattice."""
    if grid.box_um is None:
        raise ValueError(
            "ClosedCellInversion(smooth=True) needs the box of an absorbing lattice; use "
            'bcc_grid(..., boundary="absorbing").'
        )
    return FieldPrior(grid.box_um)


@dataclass(frozen=True, eq=False)
class VolumeFractions:
    """Volume fractions inside of cells, of T tetrahedra and B outer faces of a grid."""

    fractions: np.ndarray  # (T + B,)
    area: np.ndarray  # (T,) of the walls in each tetrahedron, um^2
    points: np.ndarray  # (P, 3) that sample the pieces near walls, um
    pieces: np.ndarray  # (P,) tetrahedra and outer faces to which these belong
    by_field: np.ndarray  # (P,) derivatives of the fractions by the field at the points, 1/um

    def slopes(self, by_fraction: np.ndarray, prior: FieldPrior) -> np.ndarray:
        """Derivatives (M, n) by the unknowns, from those (M, T + B) by the fractions."""
        weighted = by_fraction[:, self.pieces] * self.by_field
        return weighted.astype(np.float32) @ prior.basis(self.points)


class VolumeFractionModel:
    """Volume fractions inside of smooth cells, of tetrahedra and of sides of the box."""

    def __init__(self, grid: TetrahedralGrid, prior: FieldPrior):
        self._prior = prior
        inner = np.einsum("qv,tvk->tqk", _barycentric(), grid.tetrahedron_points)
        sides = _evenly_in(_on_sides(grid))
        inner_width = _WIDTH * np.cbrt(grid.volumes[0] / inner.shape[1])
        side_width = _WIDTH * np.sqrt(grid.outer_areas[0] / sides.shape[1])
        self._pieces = (
            _Pieces(inner, grid.volumes, inner_width),
            _Pieces(sides, grid.outer_areas, side_width),
        )

    def __call__(self, z: np.ndarray) -> VolumeFractions:
        """Volume fractions for the field of unknowns z (n,)."""
        field_at = self._prior.interpolated(z)
        inner, sides = (pieces.fractions(field_at) for pieces in self._pieces)
        return VolumeFractions(
            fractions=np.concatenate([inner.fractions, sides.fractions]),
            area=inner.area,
            points=np.concatenate([inner.points, sides.points]),
            pieces=np.concatenate([inner.pieces, sides.pieces + len(inner.fractions)]),
            by_field=np.concatenate([inner.by_field, sides.by_field]),
        )


class _Pieces:
    """Pieces of space of sizes (N,), sampled by points (N, Q, 3), with walls of a width, um."""

    def __init__(self, points, sizes, width):
        self._points, self._sizes, self._width = points, sizes, width
        self._centres = points.mean(axis=1)
        # Least squares of the field's slope in each piece.
        self._to_slope = np.linalg.pinv(points - self._centres[:, None], rcond=_FLAT)
        radius = np.linalg.norm(points - self._centres[:, None], axis=2).max()
        self._max_field = _MAX_SLOPE * (radius + width / 2)

    def fractions(self, field_at):
        """Volume fractions for a field, of pieces numbered from 0."""
        central = field_at(self._centres)
        near_wall = np.flatnonzero(np.abs(central) < self._max_field)
        field = field_at(self._points[near_wall])
        gradient = np.einsum("tkq,tq->tk", self._to_slope[near_wall], field)
        slope = np.linalg.norm(gradient, axis=1).clip(_MIN_SLOPE)[:, None]
        inside = 0.5 + field / slope / (2 * self._width)
        at_wall = (inside > 0) & (inside < 1)
        fractions, area_density = (central > 0).astype(float), np.zeros(len(central))
        fractions[near_wall] = inside.clip(0, 1).mean(axis=1)
        area_density[near_wall] = at_wall.mean(axis=1) / (2 * self._width)
        by_field = at_wall / slope / (2 * self._width * field.shape[1])
        return VolumeFractions(
            fractions,
            area_density * self._sizes,
            points=self._points[near_wall][at_wall],
            pieces=near_wall[np.nonzero(at_wall)[0]],
            by_field=by_field[at_wall],
        )


def _on_sides(grid):
    """Triangles (B, 3, 3), um, on the sides of the box behind the outer faces of a lattice."""
    face, half_box = grid.points_um[grid.outer_faces], grid.box_um / 2
    # Two corners of an outer face lie on a side of the box, the third one below it.
    distance = half_box - np.abs(face.mean(axis=1))
    normal_axis = np.arange(3) == distance.argmin(axis=1)[:, None]
    return np.where(normal_axis[:, None], np.sign(face) * half_box, face)


def _evenly_in(triangles):
    """Points (B, 16, 3) that sample triangles (B, 3, 3) evenly."""
    corner = np.eye(3)[None]
    for _ in range(2):
        a, b, c = np.moveaxis(corner, 1, 0)
        ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
        quarters = [[a, ab, ca], [ab, b, bc], [ca, bc, c], [ab, bc, ca]]
        corner = np.concatenate([np.stack(quarter, axis=1) for quarter in quarters])
    return np.einsum("qv,bvk->bqk", corner.mean(axis=1), triangles)


def _barycentric():
    """Barycentric points (32, 4) of a tetrahedron, by a four-point rule in each eighth."""
    inner, outer = 0.58541020, 0.13819660
    rule = np.full((4, 4), outer) + (inner - outer) * np.eye(4)
    return np.einsum("qv,pvk->pqk", rule, _eighths(np.eye(4))).reshape(-1, 4)


def _eighths(corner):
    """The eight tetrahedra (8, 4, 4) in which halved edges cut one."""
    a, b, c, d = corner
    ab, ac, ad, bc, bd, cd = ((x + y) / 2 for x, y in
                              ((a, b), (a, c), (a, d), (b, c), (b, d), (c, d)))  # fmt: skip
    return np.array([
        [a, ab, ac, ad], [b, ab, bc, bd], [c, ac, bc, cd], [d, ad, bd, cd],
        [ab, cd, ac, bc], [ab, cd, bc, bd], [ab, cd, bd, ad], [ab, cd, ad, ac],
    ])  # fmt: skip
