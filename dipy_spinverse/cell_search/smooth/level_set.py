"""Smooth cells as level sets: a random field, positive inside of cells, of Gaussian prior.

The field is MEAN + SD sum_k z_k f_k(x) with independent z of variance 1 and the leading
eigenfunctions f of a squared exponential covariance, so |z|^2 says how unlikely a shape is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter

from dipy_spinverse.grid import TetrahedralGrid

# Of the field, relative to the mean side of the box, but for the mean, which is over its standard
# deviation: a fifth of the box is inside. With equal length and deviation slopes are about 1.
_LENGTH = 0.12
_MEAN = -0.75
_N_NODES = 64  # along an axis, on which the covariance is diagonalised
_LEAST_VARIANCE = 1e-3  # of a mode, relative to the first
_CLIP = 1.5  # lengths from walls up to which a body is described
_LEAST_SLOPE = 0.3  # of the field, where a distance is made of it
_STEEPEST = 1.2  # slope of a field, where tetrahedra near walls are told from others
_WIDTH = 0.6  # of the change from inside to outside, in distances of the points
_RIDGE = 1e-4
_FLAT = 1e-6  # extent across a piece of a plane, over that along it
RASTER = 20  # points along an axis
_SPLINE, _BEYOND = 32, 4  # nodes of cubic splines along an axis, in the box and beyond each end


@dataclass(frozen=True, eq=False)
class FieldPrior:
    """Modes of the random field in a box of given sides (3,), um, centred on the origin."""

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
        return self.product(self.factors(points))

    def factors(self, points: np.ndarray) -> list[np.ndarray]:
        """The functions (P, k) along each axis of which `basis` consists."""
        nodes = np.linspace(-0.5, 0.5, _N_NODES)[:, None] * self.box_um
        return [
            (self._covariance(points[:, k, None] - nodes[:, k]) @ factor).astype(np.float32)
            for k, factor in enumerate(self._modes[0])
        ]

    def product(self, factors: list[np.ndarray]) -> np.ndarray:
        """Basis (..., n) of factors (..., k)."""
        first, second, third = (x[..., k] for x, k in zip(factors, self._modes[1].T, strict=True))
        first *= np.float32(self.length)
        first *= second
        first *= third
        return first

    def on_axes(self, z: np.ndarray, axes: list[np.ndarray]) -> np.ndarray:
        """Field (A, B, C), um, at all points of three axes, of unknowns z (n,)."""
        points = [np.repeat(axis[:, None], 3, axis=1) for axis in axes]
        along = [self.factors(x)[k] for k, x in enumerate(points)]
        modes = np.zeros([x.shape[1] for x in along])
        modes[tuple(self._modes[1].T)] = self.length * z
        field = np.einsum("ijk,ck->ijc", modes, along[2])
        return np.einsum("ai,bj,ijc->abc", along[0], along[1], field, optimize=True) + self.mean

    def interpolated(self, z: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """The field, um, of unknowns z (n,) as a function of points (..., 3) in the box."""
        places = (np.arange(-_BEYOND, _SPLINE + _BEYOND) + 0.5) / _SPLINE - 0.5
        nodes = spline_filter(self.on_axes(z, [places * side for side in self.box_um]))

        def field(points):
            place = (points / self.box_um + 0.5) * _SPLINE - 0.5 + _BEYOND
            return map_coordinates(nodes, np.moveaxis(place, -1, 0), prefilter=False)

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

    def field_of(self, distance: np.ndarray) -> np.ndarray:
        """Unknowns z (n,) of a body from its distance (R^3,), um, on the raster, + inside."""
        return self.change_of(distance.clip(-_CLIP * self.length, _CLIP * self.length) - self.mean)

    def change_of(self, change: np.ndarray) -> np.ndarray:
        """Change of unknowns (n,) that changes the field by so much (R^3,), um, on the raster."""
        return self._raster_inverse @ change

    @cached_property
    def _raster_inverse(self):
        basis = self.raster[1].astype(float)
        square = basis.T @ basis
        square[np.diag_indices_from(square)] += _RIDGE * np.trace(square) / len(square)
        return np.linalg.solve(square, basis.T)

    def _covariance(self, apart):
        return np.exp(-0.5 * (apart / self.length) ** 2)

    @cached_property
    def _modes(self):
        nodes = np.linspace(-0.5, 0.5, _N_NODES)[:, None] * self.box_um
        values, factors = [], []
        for along in nodes.T:
            value, vector = np.linalg.eigh(self._covariance(along[:, None] - along))
            keep = value > _LEAST_VARIANCE * value[-1]
            values.append(value[keep][::-1])
            factors.append((vector[:, keep] / np.sqrt(value[keep]))[:, ::-1])
        variance = values[0][:, None, None] * values[1][:, None] * values[2]
        index = np.argwhere(variance > _LEAST_VARIANCE * variance.max())
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
    """How a field fills the T tetrahedra of a grid, and the sides of the box at its B outer faces.

    Attributes
    ----------
    share : ndarray (T + B,)
        Inside of cells.
    area : ndarray (T,)
        Of the walls in each, um^2.
    points : ndarray (P, 3)
        At walls, um, which tell the share of tetrahedra and sides.
    places : ndarray (P,)
        To which of these they belong.
    by_field : ndarray (P,)
        Derivatives of the share by the field there, 1/um.
    """

    share: np.ndarray
    area: np.ndarray
    points: np.ndarray
    places: np.ndarray
    by_field: np.ndarray

    def slopes(self, by_share: np.ndarray, prior: FieldPrior) -> np.ndarray:
        """Derivatives (M, n) by the unknowns, of those (M, T + B) by shares."""
        weighted = by_share[:, self.places] * self.by_field
        return weighted.astype(np.float32) @ prior.basis(self.points)


class VolumeFractionModel:
    """Shares of the tetrahedra of a grid, and of the sides of its box, inside of smooth cells.

    Parameters
    ----------
    grid : TetrahedralGrid
        A lattice with an absorbing outside.
    prior : FieldPrior
    """

    def __init__(self, grid: TetrahedralGrid, prior: FieldPrior):
        self._prior = prior
        inner = np.einsum("qv,tvk->tqk", _barycentric(), grid.tetrahedron_points)
        sides = _evenly_in(_on_sides(grid))
        # A share changes over this distance, as of one point: wider walls would leak.
        self._pieces = (
            _Pieces(inner, grid.volumes, _WIDTH * np.cbrt(grid.volumes[0] / inner.shape[1])),
            _Pieces(
                sides, grid.outer_areas, _WIDTH * np.sqrt(grid.outer_areas[0] / sides.shape[1])
            ),
        )

    def __call__(self, z: np.ndarray) -> VolumeFractions:
        """How the field of unknowns z (n,) fills the tetrahedra."""
        field_at = self._prior.interpolated(z)
        inner, sides = (pieces.filled(field_at) for pieces in self._pieces)
        return VolumeFractions(
            share=np.concatenate([inner.share, sides.share]),
            area=inner.area,
            points=np.concatenate([inner.points, sides.points]),
            places=np.concatenate([inner.places, sides.places + len(inner.share)]),
            by_field=np.concatenate([inner.by_field, sides.by_field]),
        )


class _Pieces:
    """Pieces of space of sizes (N,), each sampled by points (N, Q, 3).

    Shares change over a width, um.
    """

    def __init__(self, points, sizes, width):
        self._points, self._sizes, self._width = points, sizes, width
        self._centres = points.mean(axis=1)
        # Least squares of the field's slope in each piece.
        self._to_slope = np.linalg.pinv(points - self._centres[:, None], rcond=_FLAT)
        away = np.linalg.norm(points - self._centres[:, None], axis=2).max()
        self._reach = _STEEPEST * (away + width / 2)

    def filled(self, field_at):
        """How a field fills the pieces, numbered from 0."""
        middle = field_at(self._centres)
        near = np.flatnonzero(np.abs(middle) < self._reach)
        field = field_at(self._points[near])
        slope = np.linalg.norm(np.einsum("tkq,tq->tk", self._to_slope[near], field), axis=1)
        slope = slope.clip(_LEAST_SLOPE)[:, None]
        inside = 0.5 + field / slope / (2 * self._width)
        at_wall = (inside > 0) & (inside < 1)
        share, per_um = (middle > 0).astype(float), np.zeros(len(middle))
        share[near] = inside.clip(0, 1).mean(axis=1)
        per_um[near] = at_wall.mean(axis=1) / (2 * self._width)
        by_field = at_wall / slope / (2 * self._width * field.shape[1])
        places = near[np.nonzero(at_wall)[0]]
        points = self._points[near][at_wall]
        return VolumeFractions(share, per_um * self._sizes, points, places, by_field[at_wall])


def _on_sides(grid):
    """Triangles (B, 3, 3), um, on the sides of the box behind the outer faces of a lattice."""
    face, half = grid.points_um[grid.outer_faces], grid.box_um / 2
    # Two corners of an outer face lie on a side of the box, the third one under it.
    to_side = half - np.abs(face.mean(axis=1))
    on_side = np.arange(3) == to_side.argmin(axis=1)[:, None]
    return np.where(on_side[:, None], np.sign(face) * half, face)


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
    """Points (32, 4) that sample a tetrahedron evenly, four in each eighth of it."""
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
