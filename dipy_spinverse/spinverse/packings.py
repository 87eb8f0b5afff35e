"""Packings: periodic lattices with bodies that have the parameters of a posterior sample.

A sample of packed cells gives the shape, size and density of bodies, the permeability of their
membranes, and their axis. It does not give positions, which are drawn at random. The length scale
of the lattice is arbitrary: every packing has its own, so that bodies have the right size, and
its own frame, whose third axis is that of the bodies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dipy_spinverse.acquisition import Acquisition, BaseAcquisition
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.bloch_torrey import relative_transmissibility, simulate
from dipy_spinverse.bloch_torrey.analytic import free_signal
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.inversion import WallProblem, scaled_transmissibility
from dipy_spinverse.substrates import cylinders, spheres
from dipy_spinverse.units import MM2_PER_S
from dipy_spinverse.walls.maps import wall_maps

# Regular arrangements for densities at which random positions overlap, relative to the period.
_ARRANGEMENTS = {
    "cylinders": {1: np.zeros((1, 2)), 2: np.array([[0, 0], [1, 1]]) / 2},
    "spheres": {
        1: np.zeros((1, 3)),
        2: np.array([[0, 0, 0], [1, 1, 1]]) / 2,
        4: np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2,
    },
}
_WALLS: dict[str, Callable[..., np.ndarray]] = {"cylinders": cylinders, "spheres": spheres}
# Smallest radius of a body in lattice cubes: walls of smaller ones are only a few faces. Chosen by
# hand, as the number of random arrangements that are tried.
_MIN_RADIUS = 0.5
_RANDOM_TRIALS = 3
# Factor by which the volume fraction is reduced, and how often at most, where bodies on the
# lattice would enclose the water between them. Chosen by hand; see benchmarks/wall_fields.py.
_FRACTION_STEP, _MAX_REDUCTIONS = 0.94, 20
# Smallest fraction of the water between bodies that must not be enclosed; chosen by hand.
_MIN_CONNECTED = 0.8


@dataclass(frozen=True, eq=False)
class Packing:
    """A periodic arrangement of bodies on a lattice.

    `scale` is the length of `grid` over that of the original lattice, `frame` (3, 3) the axes of
    the lattice, in rows, in the frame of the gradients; permeability (F,) in um/ms is infinite
    where there is no membrane; all water has one diffusivity, um^2/ms; `share` is the fraction of
    the voxel's water in packed cells and between them. `bodies` (4,) is what the sample says of
    them: 1 for spheres and 0 for cylinders, radius (um), volume fraction, permeability (um/ms).
    """

    grid: TetrahedralGrid
    scale: float
    frame: np.ndarray
    permeability: np.ndarray
    diffusivity: float
    share: float
    bodies: np.ndarray

    @cached_property
    def scaled_transmissibility(self) -> np.ndarray:
        """Of its faces (F,)."""
        return scaled_transmissibility(
            relative_transmissibility(self.grid, self.permeability, self.diffusivity)
        )

    def rotated(self, acquisition: BaseAcquisition) -> BaseAcquisition:
        """The acquisition in the frame of the lattice."""
        if isinstance(acquisition, Acquisition):
            return replace(acquisition, directions=acquisition.directions @ self.frame.T)
        waveforms = [replace(w, rates=w.rates @ self.frame.T) for w in acquisition.waveforms]
        return WaveformAcquisition(waveforms, acquisition.b0_threshold)


def rescaled_grid(grid: TetrahedralGrid, scale: float) -> TetrahedralGrid:
    """A periodic lattice with all lengths multiplied by a factor."""
    if scale == 1:
        return grid
    powers = {"volumes": 3, "face_areas": 2} | dict.fromkeys(
        ("points_um", "period_um", "tetrahedron_points", "centroids", "face_points",
         "face_distances", "displacements"), 1,
    )  # fmt: skip
    return replace(
        grid, **{name: getattr(grid, name) * scale**power for name, power in powers.items()}
    )


def packing_of(
    grid: TetrahedralGrid, tissue: Mapping[str, float], axis: np.ndarray, rng: np.random.Generator
) -> Packing:
    """Bodies at random positions of a periodic lattice, cylinders along an axis (3,).

    `tissue` are `packed_cells.maps.PARAMETERS` of a posterior sample. Of tissue with cylinders and
    spheres one of the two is chosen at random, with the probability of its share.
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
    bodies = np.array([in_spheres, radius, fraction, permeability])
    packing = Packing(
        grid, 1.0, frame, np.full(grid.n_faces, np.inf), diffusivity, float(cells), bodies
    )  # fmt: skip
    if not fraction:
        return packing
    size = max(1.0, _min_fraction(grid, shape) / fraction)
    for _ in range(_MAX_REDUCTIONS):
        for centres, relative in _bodies(grid, shape, size * fraction, rng):
            # Keeps the surface-to-volume ratio where the fraction is reduced.
            scale = size * radius / relative
            lattice = rescaled_grid(grid, scale)
            walls = _WALLS[shape](
                lattice, scale * centres, size * radius, permeability=permeability
            )
            packing = replace(packing, grid=lattice, scale=scale, permeability=walls)
            if _water_is_connected(packing, size * fraction):
                return packing
        size *= _FRACTION_STEP
    return packing


def cube_um(grid: TetrahedralGrid) -> float:
    """Edge of the cubes of a lattice, um."""
    return np.cbrt(12 * grid.volumes.mean())


def _min_fraction(grid, shape):
    """Volume fraction of one body of the smallest radius."""
    radius = _MIN_RADIUS * cube_um(grid)
    if shape == "spheres":
        return 4 / 3 * np.pi * radius**3 / grid.volume_um3
    return np.pi * radius**2 / grid.period_um[:2].prod()


def _bodies(grid, shape, fraction, rng):
    """Centres (n, 3) and radius of bodies in the original lattice, um, for several n.

    In random order, because the data do not determine n.
    """
    period, cube = grid.period_um, cube_um(grid)
    dimension = 2 if shape == "cylinders" else 3
    unit, period = (np.pi, period[:2]) if dimension == 2 else (4 / 3 * np.pi, period)
    arranged = []
    for n, arrangement in _ARRANGEMENTS[shape].items():
        room = grid.period_um[:dimension].prod() / (n * unit)
        radius = (fraction * room) ** (1 / dimension)
        if n > 1 and radius < _MIN_RADIUS * cube:
            continue
        random = rng.random((_RANDOM_TRIALS, n, dimension)) * period
        # Half a cube along x, where faces of the lattice leave thin gaps open.
        on_lattice = arrangement * period + cube / 2 * (np.arange(dimension) == 0)
        for centres in (*random[: _RANDOM_TRIALS * (n > 1)], on_lattice):
            if _min_distance(centres, period) > 2 * radius:
                arranged.append((np.pad(centres, ((0, 0), (0, 3 - dimension))), radius))
                break
    return [arranged[k] for k in rng.permutation(len(arranged))]


def _min_distance(centres, period):
    """Smallest distance between bodies, with all their periodic images."""
    displacements = np.subtract(*(centres[rows] for rows in np.triu_indices(len(centres), 1)))
    displacements -= period * np.round(displacements / period)
    return min(period.min(), np.linalg.norm(displacements, axis=1).min(initial=np.inf))


def _water_is_connected(packing, fraction):
    """Whether the water between bodies is connected, which faces of the lattice may prevent."""
    transmissibility = relative_transmissibility(
        packing.grid, packing.permeability, packing.diffusivity
    )
    time = packing.grid.period_um.max() ** 2 / packing.diffusivity
    maps = wall_maps(
        packing.grid, transmissibility[None], diffusivity=packing.diffusivity, diffusion_time=time
    )
    return maps["restricted_fraction"][0] < 1 - _MIN_CONNECTED * (1 - fraction)


def _frame_along(axis):
    """Frame (3, 3) whose last row is an axis, or the identity if that is zero."""
    length = np.linalg.norm(axis)
    if length == 0:
        return np.eye(3)
    z = axis / length
    x = np.cross(z, np.eye(3)[np.abs(z).argmin()])
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])


def packing_of_fit(problem: WallProblem, values: Mapping[str, np.ndarray], voxel: int) -> Packing:
    """The packing of the first permeability field of a voxel, from values (V, ...) of a fit."""
    scale, frame, diffusivity, share, bodies = (
        values[f"field_{name}"][voxel][0]
        for name in ("scale", "frame", "diffusivity", "share", "bodies")
    )
    walls, grid = values["packing_permeability"][voxel], rescaled_grid(problem.grid, scale)
    return Packing(grid, scale, frame, walls, MM2_PER_S * float(diffusivity), share, bodies)


def permeability_field_signals(
    problem: WallProblem, values: Mapping[str, np.ndarray], acquisition: BaseAcquisition
) -> np.ndarray:
    """Signals (V, M) of the first permeability fields and of free water, from values of a fit."""
    signals = np.empty((len(values["permeability"]), len(acquisition)))
    for voxel, permeability in enumerate(values["permeability"]):
        packing = packing_of_fit(problem, values, voxel)
        signals[voxel] = simulate(
            packing.rotated(acquisition), packing.grid, permeability,
            diffusivity=packing.diffusivity, dtype="float32", device=problem.device,
        )  # fmt: skip
    fraction = values["field_free_water"][:, None]
    free_water = free_signal(acquisition, problem.free_diffusivity)
    return (1 - fraction) * signals + fraction * free_water
