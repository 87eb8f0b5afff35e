"""Smooth cells as level sets of a Gaussian random field, which is positive inside of them.

The field is MEAN + SD sum_k z_k f_k(x) with standard normal z and the leading eigenfunctions f of
a squared exponential covariance (Karhunen-Loeve), so |z|^2 / 2 is minus the log prior of a shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import ndimage

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
# Prior of permeabilities: median, um/ms, and standard deviation of the logarithm. Broad: 95 % are
# between 0.002 and 0.2 um/ms.
TYPICAL_PERMEABILITY = 0.02
LOG_PERMEABILITY_SD = 1.2
_MIN_CELL_FRACTION = 0.05  # of the volume of all cells, of a cell with a separate permeability
# Volume over that of the box below which the grids of the search do not resolve a cell, and depth
# (lengths of the prior) to which its field is lowered (benchmarks/notes/walls_off_grid.md).
_UNRESOLVED, _LOWERED = 0.0025, 0.5


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
        nodes = ndimage.spline_filter(self.on_axes(z, [relative * side for side in self.box_um]))

        def field(points):
            coordinates = (points / self.box_um + 0.5) * _SPLINE - 0.5 + _PADDING
            return ndimage.map_coordinates(nodes, np.moveaxis(coordinates, -1, 0), prefilter=False)

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
class SmoothCells:
    """Smooth cells in a box."""

    z: np.ndarray  # (n,) coefficients of their level-set field
    log_permeability: np.ndarray  # (C,) of the walls of each cell, standardised by the prior
    cell_index: np.ndarray  # (R, R, R) cell to which each point of the raster belongs

    @property
    def unknowns(self) -> np.ndarray:
        """All parameters (n + C,), each with a standard normal prior."""
        return np.concatenate([self.z, self.log_permeability])

    @property
    def permeability(self) -> np.ndarray:
        """Of the walls of each cell (C,), um/ms."""
        return TYPICAL_PERMEABILITY * np.exp(LOG_PERMEABILITY_SD * self.log_permeability)

    def moved(self, step: np.ndarray) -> SmoothCells:
        """Cells with changed unknowns."""
        z, log_permeability = np.split(step, [len(self.z)])
        log_permeability = self.log_permeability + log_permeability
        return replace(self, z=self.z + z, log_permeability=log_permeability)

    def index_at(self, points: np.ndarray, box_um: np.ndarray) -> np.ndarray:
        """Cell (P,) to which points (P, 3), um, in a box belong."""
        n = len(self.cell_index)
        voxel = ((points / box_um + 0.5) * n).astype(int).clip(0, n - 1)
        return self.cell_index[tuple(voxel.T)]


def single_cell_field(z: np.ndarray, log_permeability: float = 0.0) -> SmoothCells:
    """Cells of one permeability, by default the typical one."""
    return SmoothCells(z, np.array([log_permeability]), np.zeros((1, 1, 1), dtype=int))


def without_unresolved_cells(cells: SmoothCells, prior: FieldPrior) -> SmoothCells:
    """The same without cells too small to be resolved, unless all are: steps by the derivatives of
    a coarse grid create such islands, and do not remove them."""
    field = prior.on_raster(cells.z)
    labels, number = ndimage.label(field > 0)
    sizes = np.bincount(labels.ravel(), minlength=number + 1)
    small = sizes < _UNRESOLVED * labels.size
    if not small.any() or small[1:].all():
        return cells
    region = ndimage.binary_dilation(small[labels]) & (small[labels] | (labels == 0))
    change = np.where(region, np.minimum(-_LOWERED * prior.length - field, 0.0), 0.0)
    return replace(cells, z=cells.z + prior.coefficient_change(change.ravel()))


def split_into_cells(cells: SmoothCells, prior: FieldPrior) -> SmoothCells:
    """The same, with a permeability for each connected cell that is large enough: at first the
    mean over its volume. Cells that have merged keep theirs."""
    inside = prior.on_raster(cells.z) > 0
    previous = np.broadcast_to(cells.cell_index, inside.shape)
    labels, large = max(
        (_large(ndimage.label(inside)[0]), _large((previous + 1) * inside)),
        key=lambda x: len(x[1]),
    )
    if not len(large):
        return single_cell_field(cells.z)
    nearest = ndimage.distance_transform_edt(
        ~np.isin(labels, large), return_distances=False, return_indices=True
    )
    index = np.searchsorted(large, labels[tuple(nearest)])
    log_permeability = [
        cells.log_permeability[previous[inside & (index == k)]].mean() for k in range(len(large))
    ]
    return SmoothCells(cells.z, np.array(log_permeability), index)


def _large(labels):
    """Labels of cells, 0 outside, and those that are large enough for their own permeability."""
    sizes = np.bincount(labels.ravel())[1:]
    return labels, np.flatnonzero(sizes >= _MIN_CELL_FRACTION * sizes.sum().clip(1)) + 1
