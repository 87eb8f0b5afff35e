"""From the signals of voxels to cells, and to what a fit holds of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import chi2

from dipy_spinverse.cell_shapes.geometry import MAPS, size_measures
from dipy_spinverse.cell_shapes.posterior import posterior_cells
from dipy_spinverse.cell_shapes.search import (
    Objective,
    ShapeLinearisation,
    initial_cells,
    minimise,
)
from dipy_spinverse.cell_shapes.unknowns import CellShape, SimulatedCell
from dipy_spinverse.voxels.image import Voxels
from dipy_spinverse.voxels.noise import independent_noise
from dipy_spinverse.voxels.progress import stepwise, tell
from dipy_spinverse.voxels.rician import rician_mean, rician_sigma
from dipy_spinverse.voxels.statistics import ENDINGS, summary
from dipy_spinverse.voxels.status import REFUTED
from dipy_spinverse.voxels.tensor_frames import tensor_frames

if TYPE_CHECKING:
    from dipy_spinverse.cell_shapes.model import CellShapeModel

STAGES = ("start", "coarse", "likeliest")
MOST_MESHES = 3  # after the first
_STARTED, _COARSE, _FINE = 0.2, 0.4, 0.8  # of a voxel's time
_FIRST_STEPS, _COARSE_STEPS, _FINE_STEPS = 6, 25, 15
_GO_ON = 2  # starts, after the first steps
_NOISE = 0.03  # of S0, to begin with where nothing tells
_LEAST_NOISE = 1e-4
_POOR = 0.1  # quality of a tetrahedron; 1 is regular
_AT_BOUND = 1e-6  # of the range


def cell_shape_layout(model: CellShapeModel, n_draws: int) -> dict[str, object]:
    """Type of everything that a fit holds of a voxel."""
    n = model.shape_space.n_parameters
    endings = (*ENDINGS, "_likeliest") if n_draws else ("", "_likeliest")
    maps: dict[str, object] = {name + end: float for name in MAPS for end in endings}
    if n_draws:
        maps["_draws"] = (float, (n_draws, n + 4))
    return maps | {
        "S0_per_te": (float, (len(model.acquisition.echo_times),)),
        "at_bounds": bool,
        "birge_ratio": float,
        "_stages": (float, (len(STAGES), n + 4)),
        "_stage_meshes": (int, (len(STAGES),)),
        "_meshed": (float, (MOST_MESHES, n)),
    }


@dataclass(frozen=True, eq=False)
class FitStage:
    """A cell at some stage of a fit.

    Attributes
    ----------
    shape : CellShape
    n_meshes : int
        How often it was meshed anew before.
    """

    shape: CellShape
    n_meshes: int


@dataclass(frozen=True, eq=False)
class FitShapes:
    """The fit of a chunk of voxels.

    Attributes
    ----------
    model : CellShapeModel
    n_draws : int
    """

    model: CellShapeModel
    n_draws: int

    def __call__(self, voxels: Voxels) -> dict[str, np.ndarray]:
        """Values of each voxel, with the names of `cell_shape_layout`."""
        acquisition = self.model.acquisition
        frames = tensor_frames(acquisition, voxels.signals)
        given, levels = voxels.sigma is not None, voxels.sigma
        if levels is None:
            noise, freedom = independent_noise(voxels.signals, acquisition)
            levels = np.where(freedom > 0, noise, _NOISE)
        found = [
            self._voxel(
                Objective(self.model.coarse, signals, max(level, _LEAST_NOISE), not signed),
                frame, np.log(S0), level, given,
            )
            for signals, S0, level, signed, frame in stepwise([*zip(
                voxels.signals, voxels.S0, levels, voxels.signed, frames, strict=True
            )])
        ]  # fmt: skip
        return {name: np.array([each[name] for each in found]) for name in found[0]}

    def _voxel(self, objective, frame, log_S0, noise, noise_given):
        starts = initial_cells(objective, frame, log_S0)
        cells, values, _ = minimise(objective, starts, _FIRST_STEPS)
        order = np.argsort(values)[:_GO_ON]
        if not noise_given:
            objective = _with_noise(objective, cells[order[0]])
        tell(_STARTED)
        best, values, stopped = minimise(objective, [cells[k] for k in order], _COARSE_STEPS)
        tell(_COARSE)
        first = int(np.argmin(values))
        cell, converged = best[first], bool(stopped[first])
        stages = [FitStage(starts[order[first]].shape, 0), FitStage(cell.shape, 0)]
        meshed = []
        while len(meshed) < MOST_MESHES and (not meshed or poorest(objective, cell) < _POOR):
            finer = _meshed_anew(self.model, objective, cell)
            if finer is None:
                break
            meshed.append(cell.shape.theta)
            objective, cell = finer
            if not noise_given:
                objective = _with_noise(objective, cell)
            (cell,), _, (converged,) = minimise(objective, [cell], _FINE_STEPS)
        if not noise_given:
            objective = _with_noise(objective, cell)
            (cell,), _, (converged,) = minimise(objective, [cell], _FIRST_STEPS)
        stages.append(FitStage(cell.shape, len(meshed)))
        tell(_FINE)
        values = self._values(objective, cell, stages, meshed)
        # beside the noise, which rests on no shape, meshes are not exact; over sigma, as asked for
        judged = values["residual_rms"] ** 2 / (noise**2 + objective.forward.mesh_error**2)
        freedom = max(len(objective.data) - values["n_unknowns"], 1)
        values["excess"] = len(objective.data) / freedom * judged * (noise / objective.sigma) ** 2
        return values | {"converged": bool(converged)}

    def _values(self, objective, cell, stages, meshed):
        near, forward = objective.linearised(cell), objective.forward
        rest = residual(objective, cell)
        low, high = np.asarray(forward.space.bounds).T
        margin = _AT_BOUND * (high - low)
        theta = cell.shape.theta
        padded = np.zeros((MOST_MESHES, len(theta)))
        padded[: len(meshed)] = np.array(meshed).reshape(-1, len(theta))
        values = {
            "S0_per_te": np.exp(cell.shape.log_S0),
            "at_bounds": bool(((theta <= low + margin) | (theta >= high - margin)).any()),
            "birge_ratio": birge_ratio_of(objective, cell, near),
            "_stages": np.array([stage.shape.pack() for stage in stages]),
            "_stage_meshes": np.array([stage.n_meshes for stage in stages]),
            "_meshed": padded,
            "sigma": objective.sigma,
            "residual_rms": np.sqrt((rest**2).mean()),
            "n_unknowns": near.determined.sum(),
        }
        likeliest = size_measures(forward.grid, cell.points, cell.body)
        values |= {name + end: value for name, value in likeliest.items()
                   for end in ("", "_likeliest")}  # fmt: skip
        if self.n_draws:
            rng = np.random.default_rng(self.model.seed)
            drawn = [
                (draw.shape.pack(), size_measures(forward.grid, draw.points, draw.body))
                for draw in posterior_cells(forward, cell, near, self.n_draws, rng)
            ]
            values["_draws"] = np.array([packed for packed, _ in drawn])
            values |= summary({
                name: about_median(
                    np.array([measures[name] for _, measures in drawn]), values["birge_ratio"]
                )
                for name in MAPS
            })  # fmt: skip
        return values


def residual(objective: Objective, cell: SimulatedCell) -> np.ndarray:
    """What a cell leaves of the data (M,)."""
    expected = cell.signals
    if objective.rician:
        expected = rician_mean(expected, objective.sigma)
    return objective.data - expected


def birge_ratio_of(objective: Objective, cell: SimulatedCell, near: ShapeLinearisation) -> float:
    """How many times wider intervals are than those of draws, since data or prior refute a cell.

    As in means of measurements that disagree [1]_: by the root of chi-square over its degrees of
    freedom where chance makes it larger in less than one of 1000 cells. Once for the residual,
    once for the distance of the shape from those that the prior knows.

    References
    ----------
    .. [1] Birge, "The calculation of errors by the method of least squares", Phys. Rev. 40
       (1932), https://doi.org/10.1103/PhysRev.40.207
    """
    determined = near.determined
    of_residual = ((residual(objective, cell) / objective.spread) ** 2).sum()
    of_shape = objective.beyond(cell.shape)
    square = np.array([of_residual, of_shape])
    freedom = np.array([
        max(len(objective.data) - determined.sum(), 1), determined[: len(cell.shape.theta)].sum()
    ])  # fmt: skip
    refuted = chi2.sf(square, freedom) < REFUTED
    return float(np.sqrt(np.prod(np.where(refuted, square / freedom, 1.0))))


def about_median(draws: np.ndarray, times: float) -> np.ndarray:
    """Positive draws (n,) whose logarithms are so many times as far from their median."""
    median = np.median(draws)
    return median * (draws / median) ** times


def poorest(objective: Objective, cell: SimulatedCell) -> float:
    """Least quality of a cell's tetrahedra, 0 to 1: volume over that of a regular one."""
    corners = cell.points[objective.forward.grid.tetrahedra]
    volumes = np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1])) / 6
    first, second = np.triu_indices(4, 1)
    squares = ((corners[:, first] - corners[:, second]) ** 2).sum(axis=(1, 2))
    return float((12 * (3 * volumes) ** (2 / 3) / squares).min())


def _meshed_anew(model, objective, cell):
    """Objective and cell on a mesh that suits it; None where the space has no other."""
    forward = objective.forward
    space, theta = forward.space.remeshed(cell.shape.theta)
    if space is forward.space:
        return None
    finer = model.forward_in(space)
    moved = finer.at(replace(cell.shape, theta=np.asarray(theta, dtype=float)))
    return None if moved is None else (replace(objective, forward=finer), moved)


def _with_noise(objective, cell):
    """The objective with the noise that a cell leaves of the data, beside the mesh's error."""
    shape, has_scale = cell.shape, objective.forward.space.has_scale
    n_unknowns = len(shape.pack()) - has_scale + len(shape.log_S0)
    n_unknowns = min(n_unknowns, len(objective.data) // 2)
    if objective.rician:
        arrays = objective.data[None], cell.signals[None], np.array([objective.spread])
        level = float(rician_sigma(*(torch.as_tensor(x) for x in arrays), n_unknowns)[0])
    else:
        squares = (objective.data - cell.signals) ** 2
        level = float(np.sqrt(squares.sum() / (len(squares) - n_unknowns)))
    noise = np.sqrt(max(level**2 - objective.forward.mesh_error**2, _LEAST_NOISE**2))
    return replace(objective, sigma=float(noise))
