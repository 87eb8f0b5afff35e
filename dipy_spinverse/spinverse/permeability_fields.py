"""Engines that estimate permeability fields from the signals alone, without packed cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dipy_spinverse.acquisition import Acquisition, BaseAcquisition
from dipy_spinverse.bloch_torrey import permeability_of
from dipy_spinverse.cell_search import CellInversion
from dipy_spinverse.cell_search.smooth import (
    SmoothCellInversion,
    level_set_prior,
    signals_of_cells,
    smooth_layout,
    smooth_mesh,
    stored_cells,
)
from dipy_spinverse.inversion import (
    WALL_THRESHOLD,
    FaceSolver,
    Reconstruction,
    Stage,
    WallProblem,
    transmissibility,
)
from dipy_spinverse.inversion.protocols import Prior, WallSolver
from dipy_spinverse.spinverse.fit import SpinverseFit, status_with_pattern, wall_layout
from dipy_spinverse.spinverse.packings import permeability_field_signals
from dipy_spinverse.spinverse.voxel_inversion import VoxelInversion
from dipy_spinverse.spinverse.wall_corrections import LARGEST_LINK_PHASE
from dipy_spinverse.units import MM2_PER_S
from dipy_spinverse.user_warnings import warn
from dipy_spinverse.voxels.chunks import Engine, fit_image
from dipy_spinverse.voxels.image import Image, Voxels
from dipy_spinverse.voxels.model import VoxelModel
from dipy_spinverse.voxels.noise import noise_before_fit, noise_per_te
from dipy_spinverse.voxels.statistics import ENDINGS, dominant_axis, field_statistics
from dipy_spinverse.voxels.status import FITTED
from dipy_spinverse.walls.interface import InterfaceMesh
from dipy_spinverse.walls.maps import LONGEST_EXCHANGE_TIME_MS, wall_maps
from dipy_spinverse.walls.patterns import mean_pairwise_f1

# Memory of the voxels that are computed together, and how many these are at most.
_BYTES_PER_CHUNK = 2**30
_MOST_PER_CHUNK = 64
_LARGEST = {
    "restricted_fraction": 1.0,
    "wall_anisotropy": 1.0,
    "free_water_fraction": 1.0,
    "exchange_time": LONGEST_EXCHANGE_TIME_MS,
}
# Type and shape of what a fit stores of the maps of a voxel.
MAP_LAYOUT: dict[str, object] = {
    "wall_orientation": (float, (3,)),
    "wall_orientation_angle": float,
    **{name + ending: float for name in SpinverseFit.MAPS for ending in ENDINGS},
}


class PermeabilityFieldInversion(VoxelInversion):
    """An engine whose maps are computed from permeability fields of a `WallSolver`."""

    def solver(self, problem: WallProblem) -> WallSolver:
        """The solver of a problem."""
        raise NotImplementedError

    def layout(self, problem: WallProblem) -> dict[str, object]:
        """Type and shape of what a fit stores of a voxel."""
        return wall_layout(problem.grid.n_faces, problem.n_fields) | {
            "S0_per_te": (float, (len(problem.acquisition.echo_times),)),
            **MAP_LAYOUT,
        }

    def fit(
        self,
        problem: WallProblem,
        image: Image,
        walls: np.ndarray,
        compute: Engine,
        model: VoxelModel,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Status and values of the voxels of `walls`; the others are not fitted."""
        if not walls.any():
            raise ValueError(
                f"walls is False, but all maps of {type(self).__name__} come from walls; set "
                "walls=True, use a periodic grid without inversion=, or use PackedCellsModel."
            )
        _warn_if_coarse(problem)
        solver, noise_known = self.solver(problem), image.voxels.sigma is not None
        if not (noise_known or solver.estimates_noise):
            # Of all voxels, whose variances are the prior of those of single voxels.
            noise, freedom = noise_before_fit(
                image.voxels.signals, problem.acquisition, b0_only=True
            )
            initial = replace(image, noise=noise, freedom=freedom).with_initial_noise()
            image = replace(image, voxels=initial.voxels)
        image = image.within(walls)
        options = {
            "sigma": image.voxels.sigma, "noise_known": noise_known,
            "S0_known": problem.S0_known, "free_water": problem.free_water,
            "n_fields": problem.n_fields,
        }  # fmt: skip
        status, values = fit_image(
            image, FieldChunk(problem, solver, noise_known),
            self.layout(problem), compute,
            most=_voxels_per_chunk(problem), model=model, options=options,
        )  # fmt: skip
        has_walls = np.ones(len(image.voxels), dtype=bool)
        wall_status = status[np.isin(status, FITTED)]
        values |= {"has_walls": has_walls, "packed_cells": ~has_walls, "wall_status": wall_status}
        return status_with_pattern(status, has_walls, values), values

    def signals_of_fit(
        self, problem: WallProblem, values: Mapping[str, np.ndarray], acquisition: BaseAcquisition
    ) -> np.ndarray:
        """Signals (V, M) of the first permeability field and the free water outside of it."""
        return permeability_field_signals(problem, values, acquisition)


@dataclass(frozen=True)
class FaceInversion(PermeabilityFieldInversion):
    """Permeability of every face of a grid [1]_, by Levenberg-Marquardt in data space.

    Parameters
    ----------
    curriculum : sequence of Stage, optional
        The stages of the optimisation. By default `dipy_spinverse.inversion.DEFAULT_CURRICULUM`,
        on a grid with absorbing outside `CARVING_CURRICULUM`.
    priors : sequence, optional
        Priors of all stages, instead of those of the curriculum.

    Raises
    ------
    ValueError
        A curriculum whose first stage has no initial value.

    References
    ----------
    .. [1] "Spinverse", https://doi.org/10.48550/arXiv.2603.04638

    Examples
    --------
    >>> from dipy_spinverse.inversion import WallArea
    >>> FaceInversion(priors=[WallArea(0.1)])
    FaceInversion(curriculum=None, priors=(WallArea(weight=0.1),))
    """

    curriculum: tuple[Stage, ...] | None = None
    priors: tuple[Prior, ...] | None = None

    def __post_init__(self):
        if self.curriculum is not None:
            if not self.curriculum or self.curriculum[0].initial_value is None:
                raise ValueError(
                    f"curriculum has {len(self.curriculum)} stages; the first one needs an "
                    "initial_value, the scaled transmissibility in [0, 1] of all faces, such as "
                    "Stage(initial_value=0.8)."
                )
            object.__setattr__(self, "curriculum", tuple(self.curriculum))
        if self.priors is not None:
            object.__setattr__(self, "priors", tuple(self.priors))

    def solver(self, problem: WallProblem) -> WallSolver:
        """The solver of a problem."""
        return FaceSolver(problem, self.curriculum, self.priors)


@dataclass(frozen=True)
class ClosedCellInversion(PermeabilityFieldInversion):
    """Separate closed cells in a box with an absorbing outside.

    A fit raises ValueError for other grids, for `free_water` and on other devices than the CPU.

    Parameters
    ----------
    smooth : bool, optional
        Whether the walls of cells are smooth surfaces that need not lie on faces of the grid
        (experimental: another shape may explain the data as well). Then S0 and the diffusivity
        may be unknown, but the noise level is needed. Otherwise cells are sets of tetrahedra of
        the grid, and S0 must be known.
    """

    smooth: bool = False

    def solver(self, problem: WallProblem) -> WallSolver:
        """The solver of a problem, if it can solve it."""
        possible = problem.grid.boundary == "absorbing" and problem.device == "cpu"
        if not possible or problem.free_water or not (self.smooth or problem.S0_known):
            raise ValueError(
                f'{self!r} needs a grid with boundary="absorbing", device="cpu", '
                f"{'' if self.smooth else 'S0 given to fit(), '}and free_water=False."
            )
        options: dict[str, Any] = {
            name: getattr(problem, name) for name in ("diffusivity", "n_fields", "seed")
        }
        if not self.smooth:
            return CellInversion(problem.acquisition, problem.grid, **options)
        warn(
            "The search for smooth cells is experimental: it may end in a local minimum, a wrong "
            "shape that explains the data about as well, mostly with cells at other positions. "
            "Fit with several seeds, and trust what these have in common."
        )
        if not problem.S0_known:
            warn(
                "S0 is not given: that of late echo times is hardly distinguishable from the "
                "permeability of walls, and intervals do not include this error. Give S0 if it "
                "is known."
            )
        return SmoothCellInversion(
            problem.acquisition, problem.grid, S0_known=problem.S0_known,
            diffusivity_known=problem.diffusivity_known, **options,
        )  # fmt: skip

    def layout(self, problem: WallProblem) -> dict[str, object]:
        """Type and shape of what a fit stores of a voxel."""
        layout = super().layout(problem)
        return layout | smooth_layout(problem.grid, problem.n_fields) if self.smooth else layout

    def signals_of_fit(
        self, problem: WallProblem, values: Mapping[str, np.ndarray], acquisition: BaseAcquisition
    ) -> np.ndarray:
        """Signals (V, M) of the first cells of each voxel."""
        if self.smooth:
            return signals_of_cells(values, acquisition, problem.grid)
        return super().signals_of_fit(problem, values, acquisition)

    def mesh(self, voxel: SpinverseFit, threshold: float, field: int | None) -> InterfaceMesh:
        """Mesh of the walls of one voxel; smooth ones are closed, and drawn completely."""
        if not self.smooth:
            return super().mesh(voxel, threshold, field)
        cells = stored_cells(voxel)
        return smooth_mesh(level_set_prior(voxel.model.grid), cells[field or 0], cells)


def _warn_if_coarse(problem):
    """Warn of encodings that the grid does not resolve."""
    phase = np.abs(problem.grid.displacements @ problem.acquisition.q_vectors.T).max(axis=0)
    coarse = phase > LARGEST_LINK_PHASE
    if coarse.any():
        warn(
            f"The grid is too coarse for {coarse.sum()} of {len(coarse)} measurements: the "
            f"phase between neighbouring tetrahedra reaches {phase.max():.1f} rad. Use "
            f"lattice cubes smaller by a factor of {phase.max() / LARGEST_LINK_PHASE:.1f}, "
            "or leave these measurements out."
        )


def _voxels_per_chunk(problem):
    # Jacobian, its weighted copy and the temporary arrays of a step.
    bytes_per_voxel = 4 * 8 * len(problem.acquisition) * problem.grid.n_faces
    return max(1, min(_MOST_PER_CHUNK, _BYTES_PER_CHUNK // bytes_per_voxel))


@dataclass(frozen=True, eq=False)
class FieldChunk:
    """Permeability fields of a chunk of voxels, and their maps.

    `noise_known` says whether the noise level is known to be the same at all echo times.
    """

    problem: WallProblem
    solver: WallSolver
    noise_known: bool

    def __call__(self, voxels: Voxels) -> dict[str, np.ndarray]:
        """Values of each voxel, with the names of the layout and those of the status."""
        signals, acquisition = voxels.signals, self.problem.acquisition
        result = self.solver.run(signals, voxels.sigma)
        return (
            self._fields(result)
            | {
                "S0_per_te": result.amplitudes,
                "converged": result.converged,
                "sigma": result.sigma,
                "residual_rms": np.sqrt(((result.predicted - signals) ** 2).mean(axis=1)),
                "n_unknowns": np.zeros(len(signals)),
            }
            | _worst_timing(acquisition, signals, result, self.noise_known)
            | result.cells
        )

    def _fields(self, result: Reconstruction):
        """Permeability fields, how far they agree, and their maps."""
        problem = self.problem
        fields = np.concatenate(
            [result.scaled_transmissibility[None], result.scaled_transmissibility_fields]
        )
        n_voxels = fields.shape[1]
        tau = transmissibility(fields)
        permeability = permeability_of(problem.grid, tau, problem.diffusivity)
        walls = (fields < WALL_THRESHOLD).astype(float)
        estimated = result.diffusivity
        diffusivity = problem.diffusivity if estimated is None else estimated[:, None]
        values = {
            "permeability": permeability[0],
            "permeability_fields": np.swapaxes(permeability[1:], 0, 1),
            "packing_permeability": permeability[0],
            "field_scale": 1.0,
            "field_frame": np.broadcast_to(np.eye(3), (n_voxels, len(fields), 3, 3)),
            "field_diffusivity": diffusivity / MM2_PER_S,
            "field_share": 1.0,
            "field_bodies": np.zeros((n_voxels, len(fields), 4)),
            "wall_probability": result.wall_probability,
            "pattern_agreement": mean_pairwise_f1(walls.swapaxes(0, 1)),
            "field_free_water": result.free_water,
        }
        return values | _maps_of_fields(problem, result, tau)


def _worst_timing(
    acquisition: Acquisition, signals: np.ndarray, result: Reconstruction, noise_known: bool
) -> dict[str, np.ndarray | int]:
    """Reduced chi-square (V,) of the timing with the least probable residual.

    Where the noise level is not known it may differ between echo times, in proportion to the
    standard deviations of their b0.
    """
    relative_noise = np.ones((len(signals), len(acquisition.echo_times)))
    noise, freedom = noise_per_te(signals, acquisition)
    if not noise_known and (freedom > 0).all() and (noise > 0).all():
        relative_noise = noise / np.sqrt((noise**2).mean(axis=1, keepdims=True))
    sigma = result.sigma[:, None] * relative_noise[:, acquisition.te_index]
    squares = ((result.predicted - signals) / sigma) ** 2
    of_timing = acquisition.timing_index == np.arange(len(acquisition.timings))[:, None]
    n_measurements = of_timing.sum(axis=1)
    reduced_chi_square = squares @ of_timing.T / n_measurements
    # In standard deviations: a large value of few measurements is less improbable.
    improbable = ((reduced_chi_square - 1) * np.sqrt(n_measurements)).argmax(axis=1)
    return {
        "worst_reduced_chi_square": reduced_chi_square[np.arange(len(improbable)), improbable],
        "worst_degrees_of_freedom": n_measurements[improbable],
        "n_groups": len(of_timing) if len(of_timing) > 1 else 0,
    }


def _maps_of_fields(problem, result: Reconstruction, tau):
    """Statistics of the maps of permeability fields, from transmissibilities (n, V, F)."""
    n, n_voxels, n_faces = tau.shape
    maps = wall_maps(
        problem.grid,
        tau.reshape(-1, n_faces),
        diffusivity=problem.diffusivity,
        diffusion_time=float(problem.acquisition.diffusion_time.max()),
    )
    maps = {name: value.reshape(n, n_voxels, *value.shape[1:]) for name, value in maps.items()}
    maps |= result.maps
    free_water = np.concatenate([result.free_water[None], result.free_water_fields])
    maps["free_water_fraction"] = free_water
    # The grid is the part of the voxel that is not free water.
    for name in ("surface_to_volume", "restricted_fraction"):
        maps[name] = maps[name] * (1 - free_water)
    wall_errors = SpinverseFit.WALL_ERRORS if problem.grid.boundary == "periodic" else {}
    axis, angle = dominant_axis(maps.pop("wall_orientation"))
    axes = {"wall_orientation": axis, "wall_orientation_angle": angle}
    return axes | map_statistics(maps, result.errors or wall_errors)


def map_statistics(maps: dict[str, np.ndarray], errors: dict[str, float]) -> dict[str, np.ndarray]:
    """Statistics (V,) of maps (n, V) of fields, with relative errors that all fields share."""
    values: dict[str, np.ndarray] = {}
    for name, value in maps.items():
        statistics = field_statistics(value, errors.get(name, 0.0), _LARGEST.get(name, np.inf))
        values |= {name + ending: statistic for ending, statistic in statistics.items()}
    return values
