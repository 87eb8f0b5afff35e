"""Signals of smooth cells on a grid, and their derivatives by what describes the cells."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.bloch_torrey.finite_volumes.operator import face_resistance
from dipy_spinverse.bloch_torrey.finite_volumes.partial_volume import (
    PartialVolumeSimulator,
    contact_fraction,
)
from dipy_spinverse.cell_search.smooth.level_set import (
    FieldPrior,
    VolumeFractionModel,
    VolumeFractions,
)
from dipy_spinverse.grid import TetrahedralGrid, bcc_grid

# Prior of permeabilities: um/ms, and the standard deviation of their logarithm.
TYPICAL_PERMEABILITY = 0.02
LOG_SPREAD = 1.2
_LEAST_PART = 0.05  # of the volume of all cells that a cell of its own permeability has
_LEAST_CELL = 0.0025  # of the box: lattices of the search do not resolve what is smaller
_SUNK = 0.5  # lengths of the prior, to which the field of such islands falls
_LEAST_AREA = 1e-9  # um^2
_STEPS = 4  # time intervals per gradient pulse
_ODDS = 30.0  # of pools of the same side to face each other


@dataclass(frozen=True, eq=False)
class SmoothCells:
    """Smooth cells in a box.

    Attributes
    ----------
    z : ndarray (n,)
        Of their field.
    leaks : ndarray (C,)
        Logarithms of the permeabilities of the walls of each cell, over their prior's.
    parts : ndarray (R, R, R) of int
        To which cell the points of the raster belong.
    """

    z: np.ndarray
    leaks: np.ndarray
    parts: np.ndarray

    @property
    def unknowns(self) -> np.ndarray:
        """All numbers (n + C,), each of prior variance 1."""
        return np.concatenate([self.z, self.leaks])

    @property
    def permeability(self) -> np.ndarray:
        """Of the walls of each cell (C,), um/ms."""
        return TYPICAL_PERMEABILITY * np.exp(LOG_SPREAD * self.leaks)

    def moved(self, step: np.ndarray) -> SmoothCells:
        """Cells with changed unknowns."""
        z, leaks = np.split(step, [len(self.z)])
        return replace(self, z=self.z + z, leaks=self.leaks + leaks)


def single_cell_field(z: np.ndarray, leak: float = 0.0) -> SmoothCells:
    """Cells of one permeability, by default the typical one."""
    return SmoothCells(z, np.array([leak]), np.zeros((1, 1, 1), dtype=int))


def without_unresolved_cells(cells: SmoothCells, prior: FieldPrior) -> SmoothCells:
    """The same without cells that are too small to be simulated well, unless all are.

    Steps by the derivatives of a coarse lattice make such islands, and do not take them back.
    """
    field = prior.on_raster(cells.z)
    labels, number = ndimage.label(field > 0)
    sizes = np.bincount(labels.ravel(), minlength=number + 1)
    small = sizes < _LEAST_CELL * labels.size
    if not small.any() or small[1:].all():
        return cells
    around = ndimage.binary_dilation(small[labels]) & (small[labels] | (labels == 0))
    change = np.where(around, np.minimum(-_SUNK * prior.length - field, 0.0), 0.0)
    return replace(cells, z=cells.z + prior.change_of(change.ravel()))


def split_into_cells(cells: SmoothCells, prior: FieldPrior) -> SmoothCells:
    """The same, with a permeability for each connected cell that is large enough to show.

    It begins as the mean of those that the cell consisted of. Cells that have grown together keep
    theirs.
    """
    inside = prior.on_raster(cells.z) > 0
    before = np.broadcast_to(cells.parts, inside.shape)
    labels, large = max(
        (_large(ndimage.label(inside)[0]), _large((before + 1) * inside)), key=lambda x: len(x[1])
    )
    if not len(large):
        return single_cell_field(cells.z)
    place = ndimage.distance_transform_edt(
        ~np.isin(labels, large), return_distances=False, return_indices=True
    )
    parts = np.searchsorted(large, labels[tuple(place)])
    leaks = [cells.leaks[before[inside & (parts == k)]].mean() for k in range(len(large))]
    return SmoothCells(cells.z, np.array(leaks), parts)


def _large(labels):
    """Labels of cells, 0 outside, and which of them are large enough to show."""
    sizes = np.bincount(labels.ravel())[1:]
    return labels, np.flatnonzero(sizes >= _LEAST_PART * sizes.sum().clip(1)) + 1


class SmoothShape:
    """What smooth cells are like on a lattice.

    Parameters
    ----------
    grid : TetrahedralGrid
        A lattice with an absorbing outside.
    prior : FieldPrior
    """

    def __init__(self, grid: TetrahedralGrid, prior: FieldPrior):
        self.grid, self._prior, self.filled = grid, prior, VolumeFractionModel(grid, prior)

    def share(self, cells: SmoothCells) -> np.ndarray:
        """Shares (T,) of tetrahedra inside of cells."""
        return self.filled(cells.z).share[: self.grid.n_tetrahedra]

    def part(self, cells: SmoothCells) -> np.ndarray:
        """To which cell each tetrahedron (T,) belongs."""
        n = len(cells.parts)
        place = (self.grid.centroids / self._prior.box_um + 0.5) * n
        return cells.parts[tuple(place.astype(int).clip(0, n - 1).T)]

    def geometry(self, cells: SmoothCells) -> tuple[np.ndarray, np.ndarray]:
        """Volume and area (C,), um^3 and um^2, of each cell."""
        filled, part = self.filled(cells.z), self.part(cells)
        inside = filled.share[: self.grid.n_tetrahedra] * self.grid.volumes
        number = len(cells.leaks)
        return np.bincount(part, inside, number), np.bincount(part, filled.area, number)

    def projected_permeability(self, cells: SmoothCells, filled: VolumeFractions) -> np.ndarray:
        """Permeability (C,), um/ms, of the lattice's faces at the walls of each cell.

        Permeability times area is that of the smooth walls, whatever the area of the faces is.
        """
        part, number = self.part(cells), len(cells.leaks)
        first, second = self.grid.face_tetrahedra.T
        a, b = filled.share[first], filled.share[second]
        met = self.grid.face_areas * contact_fraction(a, b, _ODDS).value
        lattice = np.bincount(part[first], self.grid.face_areas * a - met, number)
        lattice += np.bincount(part[second], self.grid.face_areas * b - met, number)
        smooth = np.bincount(part, filled.area, number)
        return cells.permeability * smooth / np.maximum(lattice, _LEAST_AREA)


class SmoothModel:
    """Signals of smooth cells, of some measurements on a lattice of some cubes along an axis.

    Parameters
    ----------
    acquisition : BaseAcquisition
    prior : FieldPrior
    cubes : int
        Along the shortest side of the box.
    diffusivity : float
        um^2/ms.
    """

    def __init__(
        self, acquisition: BaseAcquisition, prior: FieldPrior, cubes: int, diffusivity: float
    ):
        edge = prior.box_um.min() / cubes
        grid = bcc_grid(np.round(prior.box_um / edge).astype(int), edge, "absorbing")
        self.shape, self.cubes, self._prior = SmoothShape(grid, prior), cubes, prior
        self._acquisition, self._diffusivity = acquisition, diffusivity
        self._resistance = float(np.median(face_resistance(grid, diffusivity)))
        self.simulator = self._simulator_of(acquisition)

    def _simulator_of(self, acquisition):
        grid, D = self.shape.grid, self._diffusivity
        return PartialVolumeSimulator(
            acquisition, grid, diffusivity=D, steps=_STEPS, dtype="float32", odds_ratio=_ODDS
        )

    def of_measurements(self, rows: np.ndarray) -> SmoothModel:
        """The same model of some of the measurements."""
        part = copy(self)
        part.simulator = self._simulator_of(self._acquisition.subset(rows))
        return part

    def signals(self, cells: SmoothCells) -> np.ndarray:
        """Signals (M,) over the initial magnetisation of the box."""
        filled = self.shape.filled(cells.z)
        leaks, part = self._leaks(cells, filled), self.shape.part(cells)
        return self.simulator.partial_signals(filled.share[None], leaks, part)[0]

    def linear(self, cells: SmoothCells) -> tuple[np.ndarray, np.ndarray]:
        """Signals (M,), and their derivatives (M, n + C) by the unknowns of cells."""
        filled = self.shape.filled(cells.z)
        leaks, part = self._leaks(cells, filled), self.shape.part(cells)
        signals, by_share, by_leak = self.simulator.partial_sensitivities(
            filled.share, leaks, part
        )
        # tau = 1 / (1 + 1 / (kappa r)), so d tau / d ln kappa = tau (1 - tau)
        by_leak = by_leak[:, :-1] * (LOG_SPREAD * leaks * (1 - leaks))[:-1]
        return signals, np.hstack([filled.slopes(by_share, self._prior), by_leak])

    def _leaks(self, cells, filled):
        """Leaks (C + 1,) of the lattice's faces."""
        permeability = self.shape.projected_permeability(cells, filled)
        passed = permeability * self._resistance
        return np.append(passed / (1 + passed), 1.0)


class LimitModel:
    """Signals that those of two lattices tend to: their errors fall with the square of the edge.

    Parameters
    ----------
    coarse, fine : SmoothModel
    """

    def __init__(self, coarse: SmoothModel, fine: SmoothModel):
        self._coarse, self._fine = coarse, fine
        self._more = 1 / ((fine.cubes / coarse.cubes) ** 2 - 1)

    def of_measurements(self, rows: np.ndarray) -> LimitModel:
        """The same model of some of the measurements."""
        return LimitModel(self._coarse.of_measurements(rows), self._fine.of_measurements(rows))

    def signals(self, cells: SmoothCells) -> np.ndarray:
        """Signals (M,) over the initial magnetisation of the box."""
        fine = self._fine.signals(cells)
        return fine + self._more * (fine - self._coarse.signals(cells))
