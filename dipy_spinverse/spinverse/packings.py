"""Packings on a lattice: pieces of tissue with the numbers of one draw from its posterior.

A draw says of what shape, size and density bodies are, how permeable their membranes, and along
which axis they lie. It says nothing of where they are: these places are drawn at random. As no
length of the lattice is given by nature, every packing has its own, so that the bodies have their
size; and its own frame, whose third axis is that of the bodies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dipy_spinverse.acquisition import Acquisition, BaseAcquisition
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.bloch_torrey import relative_transmissibility
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.inversion import scaled_transmissibility
from dipy_spinverse.substrates import cylinders, spheres
from dipy_spinverse.walls.maps import wall_maps

# How bodies lie where they are too dense for random places: a square and a body-centred lattice.
_ARRANGEMENTS = {
    "cylinders": {1: np.zeros((1, 2)), 2: np.array([[0, 0], [1, 1]]) / 2},
    "spheres": {
        1: np.zeros((1, 3)),
        2: np.array([[0, 0, 0], [1, 1, 1]]) / 2,
        4: np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2,
    },
}
_WALLS: dict[str, Callable[..., np.ndarray]] = {"cylinders": cylinders, "spheres": spheres}
# Of a body, in lattice cubes: below, its walls are no more than a few faces.
_LEAST_RADIUS = 0.5
_TRIES = 3
# Of the fraction, where a lattice cannot hold denser bodies and the water between them.
_SMALLER, _MOST_SIZES = 0.94, 20
# Part of the water between bodies that may be shut in.
_LEAST_OPEN = 0.8


@dataclass(frozen=True, eq=False)
class Packing:
    """A periodic piece of tissue.

    Attributes
    ----------
    grid : TetrahedralGrid
        The lattice in its own length.
    scale : float
        That length over the one of the lattice that was given.
    frame : ndarray (3, 3)
        Axes of the lattice, its rows, in the frame of the gradients.
    permeability : ndarray (F,)
        um/ms; infinite where there is no membrane.
    diffusivity : float
        Of all water in it, um^2/ms.
    share : float
        Of the voxel's water, that is in such tissue.
    """

    grid: TetrahedralGrid
    scale: float
    frame: np.ndarray
    permeability: np.ndarray
    diffusivity: float
    share: float

    @cached_property
    def scaled_transmissibility(self) -> np.ndarray:
        """Openness (F,) of its faces."""
        return scaled_transmissibility(
            relative_transmissibility(self.grid, self.permeability, self.diffusivity)
        )

    def seen(self, acquisition: BaseAcquisition) -> BaseAcquisition:
        """Measurements in the frame of the lattice."""
        if isinstance(acquisition, Acquisition):
            return replace(acquisition, directions=acquisition.directions @ self.frame.T)
        turned = [replace(w, rates=w.rates @ self.frame.T) for w in acquisition.waveforms]
        return WaveformAcquisition(turned, acquisition.b0_threshold)


def rescaled_grid(grid: TetrahedralGrid, scale: float) -> TetrahedralGrid:
    """The same periodic lattice with all its lengths so many times as large."""
    if scale == 1:
        return grid
    powers = {"volumes": 3, "face_areas": 2} | dict.fromkeys(
        ("points_um", "period_um", "tetrahedron_points", "centroids", "face_points",
         "face_distances", "displacements"), 1,
    )  # fmt: skip
    larger = {name: getattr(grid, name) * scale**power for name, power in powers.items()}
    return replace(grid, **larger)


def packing_of(
    grid: TetrahedralGrid,
    tissue: Mapping[str, float],
    axis: np.ndarray,
    rng: np.random.Generator,
) -> Packing:
    """Bodies at random places of a lattice.

    Parameters
    ----------
    grid : TetrahedralGrid
        Periodic.
    tissue : mapping of float
        `packed_cells.maps.PARAMETERS` of a draw. Where there are cylinders and spheres, one of
        them, by their shares.
    axis : ndarray (3,)
        Of cylinders; zero of tissue without.
    rng : numpy Generator
    """
    in_spheres = rng.random() < tissue["sphere_share"]
    shape, prefix = ("spheres", "sphere_") if in_spheres else ("cylinders", "")
    radius, fraction, permeability = (
        float(tissue[prefix + name]) for name in ("radius", "fraction", "permeability")
    )
    cells = (1 - tissue["free_water"]) * (1 - tissue["dot"]) * (1 - tissue["hindered"])
    inside, outside = tissue["diffusivity_inside"], tissue["diffusivity_outside"]
    diffusivity = float(fraction * inside + (1 - fraction) * outside)
    frame = _frame_along(axis)
    patch = Packing(
        grid, 1.0, frame, np.full(grid.n_faces, np.inf), diffusivity, float(cells)
    )  # fmt: skip
    if not fraction:
        return patch
    size = max(1.0, _least_fraction(grid, shape) / fraction)
    for _ in range(_MOST_SIZES):
        for centres, relative in _bodies(grid, shape, size * fraction, rng):
            # As much surface, where the bodies are not as dense as the draw says.
            scale = size * radius / relative
            lattice = rescaled_grid(grid, scale)
            walls = _WALLS[shape](
                lattice, scale * centres, size * radius, permeability=permeability
            )
            patch = replace(patch, grid=lattice, scale=scale, permeability=walls)
            if _open_around(patch, size * fraction):
                return patch
        size *= _SMALLER
    return patch


def _cube_um(grid):
    return np.cbrt(12 * grid.volumes.mean())


def _least_fraction(grid, shape):
    """Of one body that is as small as can be resolved."""
    size = _LEAST_RADIUS * _cube_um(grid)
    if shape == "spheres":
        return 4 / 3 * np.pi * size**3 / grid.volume_um3
    return np.pi * size**2 / grid.period_um[:2].prod()


def _bodies(grid, shape, fraction, rng):
    """Centres (n, 3) and the radius of bodies in the lattice as it was given, um; in any order.

    Few bodies leave wider gaps, many are more like tissue: neither is known.
    """
    period, cube = grid.period_um, _cube_um(grid)
    dimension = 2 if shape == "cylinders" else 3
    unit, period = (np.pi, period[:2]) if dimension == 2 else (4 / 3 * np.pi, period)
    arranged = []
    for n, arrangement in _ARRANGEMENTS[shape].items():
        room = grid.period_um[:dimension].prod() / (n * unit)
        radius = (fraction * room) ** (1 / dimension)
        if n > 1 and radius < _LEAST_RADIUS * cube:
            continue
        random = rng.random((_TRIES, n, dimension)) * period
        # Half a cube along x: there lattice faces leave thin gaps open.
        on_lattice = arrangement * period + cube / 2 * (np.arange(dimension) == 0)
        for centres in (*random[: _TRIES * (n > 1)], on_lattice):
            if _least_distance(centres, period) > 2 * radius:
                arranged.append((np.pad(centres, ((0, 0), (0, 3 - dimension))), radius))
                break
    return [arranged[k] for k in rng.permutation(len(arranged))]


def _least_distance(places, period):
    """Between bodies and all their periodic images."""
    first, second = np.triu_indices(len(places), 1)
    apart = places[first] - places[second]
    apart -= period * np.round(apart / period)
    return min(period.min(), np.linalg.norm(apart, axis=1).min(initial=np.inf))


def _open_around(packing, fraction):
    """Whether water gets around the bodies, which the lattice may have joined."""
    transmissibility = relative_transmissibility(
        packing.grid, packing.permeability, packing.diffusivity
    )
    time = packing.grid.period_um.max() ** 2 / packing.diffusivity
    found = wall_maps(
        packing.grid, transmissibility[None], diffusivity=packing.diffusivity, diffusion_time=time
    )
    return found["restricted_fraction"][0] < 1 - _LEAST_OPEN * (1 - fraction)


def _frame_along(axis):
    """A frame (3, 3) whose last row is an axis; any where it is zero."""
    length = np.linalg.norm(axis)
    if length == 0:
        return np.eye(3)
    along = axis / length
    across = np.cross(along, np.eye(3)[np.abs(along).argmin()])
    across /= np.linalg.norm(across)
    return np.stack([across, np.cross(along, across), along])
