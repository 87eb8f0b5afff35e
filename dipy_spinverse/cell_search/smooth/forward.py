"""Signals of smooth cells on a grid, and their derivatives by the parameters of the cells."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np

from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.bloch_torrey.finite_volumes.operator import face_resistance
from dipy_spinverse.bloch_torrey.finite_volumes.partial_volume import (
    PartialVolumeSimulator,
    contact_fraction,
)
from dipy_spinverse.cell_search.smooth.level_set import (
    LOG_PERMEABILITY_SD,
    FieldPrior,
    SmoothCells,
)
from dipy_spinverse.grid import TetrahedralGrid, bcc_grid

_MIN_AREA = 1e-9  # um^2, against division by 0
_STEPS = 4  # time steps per gradient pulse, as in the search on the lattice
# Odds ratio of Plackett's distribution by which pools of the same side of a smooth wall meet
# (https://doi.org/10.1080/01621459.1965.10480807). By chance, 1, signals of a ring err twice as
# much (doc/method.md).
_ODDS_RATIO = 30.0
# Width of walls, in distances of the points that sample a tetrahedron: wider ones lose signal
# (benchmarks/notes/walls_off_grid.md, "The width of a wall").
_WIDTH = 0.6
_MIN_SLOPE, _MAX_SLOPE = 0.3, 1.2  # of the field at walls, to convert it to a distance
_FLAT = 1e-6  # extent across a planar piece, over that along it


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
    """Volume fractions inside of smooth cells, volumes and areas, on an absorbing lattice."""

    def __init__(self, grid: TetrahedralGrid, prior: FieldPrior):
        self.grid, self._prior = grid, prior
        inner = np.einsum("qv,tvk->tqk", _barycentric(), grid.tetrahedron_points)
        sides = _evenly_in(_on_sides(grid))
        inner_width = _WIDTH * np.cbrt(grid.volumes[0] / inner.shape[1])
        side_width = _WIDTH * np.sqrt(grid.outer_areas[0] / sides.shape[1])
        self._pieces = (
            _Pieces(inner, grid.volumes, inner_width),
            _Pieces(sides, grid.outer_areas, side_width),
        )

    def __call__(self, cells: SmoothCells) -> VolumeFractions:
        """Volume fractions inside of cells."""
        field_at = self._prior.interpolated(cells.z)
        inner, sides = (pieces.fractions(field_at) for pieces in self._pieces)
        return VolumeFractions(
            fractions=np.concatenate([inner.fractions, sides.fractions]),
            area=inner.area,
            points=np.concatenate([inner.points, sides.points]),
            pieces=np.concatenate([inner.pieces, sides.pieces + len(inner.fractions)]),
            by_field=np.concatenate([inner.by_field, sides.by_field]),
        )

    def index(self, cells: SmoothCells) -> np.ndarray:
        """Cell to which each tetrahedron (T,) belongs."""
        return cells.index_at(self.grid.centroids, self._prior.box_um)

    def geometry(self, cells: SmoothCells) -> tuple[np.ndarray, np.ndarray]:
        """Volume and area (C,), um^3 and um^2, of each cell."""
        filled, index = self(cells), self.index(cells)
        volumes = filled.fractions[: self.grid.n_tetrahedra] * self.grid.volumes
        n_cells = len(cells.log_permeability)
        return np.bincount(index, volumes, n_cells), np.bincount(index, filled.area, n_cells)

    def projected_permeability(self, cells: SmoothCells, filled: VolumeFractions) -> np.ndarray:
        """Permeability (C,), um/ms, of the lattice's faces at the walls of each cell: its product
        with their area is that of the smooth walls."""
        index, n_cells = self.index(cells), len(cells.log_permeability)
        row, column = self.grid.face_tetrahedra.T
        a, b, areas = filled.fractions[row], filled.fractions[column], self.grid.face_areas
        inside_both = areas * contact_fraction(a, b, _ODDS_RATIO)[0]
        lattice_area = np.bincount(index[row], areas * a - inside_both, n_cells)
        lattice_area += np.bincount(index[column], areas * b - inside_both, n_cells)
        smooth_area = np.bincount(index, filled.area, n_cells)
        return cells.permeability * smooth_area / np.maximum(lattice_area, _MIN_AREA)


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


class SmoothModel:
    """Signals on a lattice of `cubes` along the shortest side of the box; diffusivity in
    um^2/ms."""

    def __init__(
        self, acquisition: BaseAcquisition, prior: FieldPrior, cubes: int, diffusivity: float
    ):
        edge = prior.box_um.min() / cubes
        grid = bcc_grid(np.round(prior.box_um / edge).astype(int), edge, "absorbing")
        self.volume_fractions = VolumeFractionModel(grid, prior)
        self.cubes, self._prior = cubes, prior
        self._acquisition, self._diffusivity = acquisition, diffusivity
        self._resistance = float(np.median(face_resistance(grid, diffusivity)))
        self.simulator = self._simulator_of(acquisition)

    def _simulator_of(self, acquisition):
        grid, D = self.volume_fractions.grid, self._diffusivity
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
        filled = self.volume_fractions(cells)
        ratio = self.volume_fractions.projected_permeability(cells, filled) * self._resistance
        return filled, np.append(ratio / (1 + ratio), 1.0), self.volume_fractions.index(cells)


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
