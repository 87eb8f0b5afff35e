"""Signals of smooth cells on a grid, and their derivatives by the parameters of the cells."""

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

# Prior of permeabilities: median, um/ms, and standard deviation of the logarithm. Broad: 95 % are
# between 0.002 and 0.2 um/ms.
TYPICAL_PERMEABILITY = 0.02
LOG_PERMEABILITY_SD = 1.2
_MIN_CELL_FRACTION = 0.05  # of the volume of all cells, of a cell of its own permeability
# Volume over that of the box below which the grids of the search do not resolve a cell, and depth
# (lengths of the prior) to which its field is lowered (benchmarks/notes/walls_off_grid.md).
_UNRESOLVED, _LOWERED = 0.0025, 0.5
_MIN_AREA = 1e-9  # um^2, against division by 0
_STEPS = 4  # time steps per gradient pulse, as in the search on the lattice
# Odds ratio of Plackett's distribution by which pools of the same side of a smooth wall meet
# (https://doi.org/10.1080/01621459.1965.10480807). By chance, 1, signals of a ring err twice as
# much (doc/method.md).
_ODDS_RATIO = 30.0


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
    """The same without cells that are too small to be resolved, unless all are.

    Steps by the derivatives of a coarse grid create such islands, and do not remove them.
    """
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
    """The same, with a permeability for each connected cell that is large enough.

    It begins as the mean over the volume of the cell. Cells that have merged keep theirs.
    """
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


class SmoothShape:
    """Volume fractions, volumes and areas of smooth cells on an absorbing lattice."""

    def __init__(self, grid: TetrahedralGrid, prior: FieldPrior):
        self.grid, self._box_um = grid, prior.box_um
        self.volume_fractions = VolumeFractionModel(grid, prior)

    def fractions(self, cells: SmoothCells) -> np.ndarray:
        """Volume fractions (T,) of tetrahedra inside of cells."""
        return self.volume_fractions(cells.z).fractions[: self.grid.n_tetrahedra]

    def index(self, cells: SmoothCells) -> np.ndarray:
        """Cell to which each tetrahedron (T,) belongs."""
        return cells.index_at(self.grid.centroids, self._box_um)

    def geometry(self, cells: SmoothCells) -> tuple[np.ndarray, np.ndarray]:
        """Volume and area (C,), um^3 and um^2, of each cell."""
        filled, index = self.volume_fractions(cells.z), self.index(cells)
        volumes = filled.fractions[: self.grid.n_tetrahedra] * self.grid.volumes
        n_cells = len(cells.log_permeability)
        return np.bincount(index, volumes, n_cells), np.bincount(index, filled.area, n_cells)

    def projected_permeability(self, cells: SmoothCells, filled: VolumeFractions) -> np.ndarray:
        """Permeability (C,), um/ms, of the lattice's faces at the walls of each cell.

        Permeability times area is that of the smooth walls, whatever the area of the faces is.
        """
        index, n_cells = self.index(cells), len(cells.log_permeability)
        row, column = self.grid.face_tetrahedra.T
        a, b, areas = filled.fractions[row], filled.fractions[column], self.grid.face_areas
        inside_both = areas * contact_fraction(a, b, _ODDS_RATIO)[0]
        lattice_area = np.bincount(index[row], areas * a - inside_both, n_cells)
        lattice_area += np.bincount(index[column], areas * b - inside_both, n_cells)
        smooth_area = np.bincount(index, filled.area, n_cells)
        return cells.permeability * smooth_area / np.maximum(lattice_area, _MIN_AREA)


class SmoothModel:
    """Signals of smooth cells on a lattice with some cubes along the shortest side of the box.

    The diffusivity is in um^2/ms.
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
            acquisition, grid, diffusivity=D, steps=_STEPS, dtype="float32", odds_ratio=_ODDS_RATIO
        )

    def of_measurements(self, rows: np.ndarray) -> SmoothModel:
        """The same model of some of the measurements."""
        model = copy(self)
        model.simulator = self._simulator_of(self._acquisition.subset(rows))
        return model

    def signals(self, cells: SmoothCells) -> np.ndarray:
        """Signals (M,) over the initial magnetisation of the box."""
        filled, tau, index = self._on_lattice(cells)
        return self.simulator.partial_signals(filled.fractions[None], tau, index)[0]

    def linear(self, cells: SmoothCells) -> tuple[np.ndarray, np.ndarray]:
        """Signals (M,), and their derivatives (M, n + C) by the unknowns of cells."""
        filled, tau, index = self._on_lattice(cells)
        signals, by_fraction, by_tau = self.simulator.partial_sensitivities(
            filled.fractions, tau, index
        )
        # tau = 1 / (1 + 1 / (kappa r)), so d tau / d ln kappa = tau (1 - tau)
        by_log_permeability = by_tau[:, :-1] * (LOG_PERMEABILITY_SD * tau * (1 - tau))[:-1]
        return signals, np.hstack([filled.slopes(by_fraction, self._prior), by_log_permeability])

    def _on_lattice(self, cells):
        """Volume fractions, relative transmissibilities (C + 1,) of faces, cell index (T,)."""
        filled = self.shape.volume_fractions(cells.z)
        ratio = self.shape.projected_permeability(cells, filled) * self._resistance
        return filled, np.append(ratio / (1 + ratio), 1.0), self.shape.index(cells)


class LimitModel:
    """Richardson extrapolation of the signals of two lattices, of errors of second order."""

    def __init__(self, coarse: SmoothModel, fine: SmoothModel):
        self._coarse, self._fine = coarse, fine
        self._weight = 1 / ((fine.cubes / coarse.cubes) ** 2 - 1)

    def of_measurements(self, rows: np.ndarray) -> LimitModel:
        """The same model of some of the measurements."""
        return LimitModel(self._coarse.of_measurements(rows), self._fine.of_measurements(rows))

    def signals(self, cells: SmoothCells) -> np.ndarray:
        """Signals (M,) over the initial magnetisation of the box."""
        fine = self._fine.signals(cells)
        return fine + self._weight * (fine - self._coarse.signals(cells))
