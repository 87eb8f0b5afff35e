"""The fit of a chunk of voxels: from signals to shapes and their posterior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from dipy_spinverse.cell_shapes.geometry import MAPS, size_measures
from dipy_spinverse.cell_shapes.search import (
    ShapeLinearisation,
    ShapeObjective,
    initial_cells,
    minimise_cells,
    posterior_cells,
)
from dipy_spinverse.cell_shapes.shape_spaces.protocol import ShapeSpace
from dipy_spinverse.cell_shapes.unknowns import CellShape, ShapeSignals, SimulatedCell
from dipy_spinverse.voxels.fitted_model import FittedModel
from dipy_spinverse.voxels.image import Voxels
from dipy_spinverse.voxels.noise import noise_before_fit
from dipy_spinverse.voxels.progress import report_progress, stepwise
from dipy_spinverse.voxels.rician import rician_mean, rician_noise_from_residual
from dipy_spinverse.voxels.statistics import ENDINGS, statistics_of_maps
from dipy_spinverse.voxels.status import birge_variance
from dipy_spinverse.voxels.tensor_frames import tensor_frames

STAGES = ("start", "coarse", "likeliest")
MAX_REMESHINGS = 3  # of a fit
_STARTED, _COARSE, _FINE = 0.2, 0.4, 0.8  # fractions of a voxel's time, for the progress bar
# Iterations at most; chosen by hand, searches on finer meshes begin near their minimum.
_FIRST_STEPS, _COARSE_STEPS, _FINE_STEPS = 6, 25, 15
_N_CONTINUED = 2  # initial cells whose search continues after the first steps
_NOISE = 0.03  # of S0, initial value where repeats do not determine it
_MIN_NOISE = 1e-4  # of S0, below the discretisation error of any mesh here
_MIN_QUALITY = 0.1  # of tetrahedra, 1 for regular ones; below, the cell is meshed again
_AT_BOUND = 1e-6  # distance from a bound, relative to the range, that counts as none


class ShapeModel(FittedModel, Protocol):
    """Attributes of a `CellShapeModel` that the fit of a chunk uses."""

    shape_space: ShapeSpace
    coarse: ShapeSignals
    seed: int

    def forward_in(self, space: ShapeSpace) -> ShapeSignals:
        """Signals in a space, of the model's measurements."""

    def meshed(self, thetas: Sequence[np.ndarray] | np.ndarray) -> ShapeSignals:
        """Signals after the space was remeshed for each of some shapes, one after another."""


def cell_shape_layout(model: ShapeModel, n_draws: int) -> dict[str, object]:
    """Type of every array of a fit."""
    n = model.shape_space.n_parameters
    endings = (*ENDINGS, "_likeliest") if n_draws else ("", "_likeliest")
    maps: dict[str, object] = {name + ending: float for name in MAPS for ending in endings}
    if n_draws:
        maps["_draws"] = (float, (n_draws, n + 4))
    return maps | {
        "S0_per_te": (float, (len(model.acquisition.echo_times),)),
        "at_bounds": bool,
        "birge_ratio": float,
        "_stages": (float, (len(STAGES), n + 4)),
        "_stage_meshes": (int, (len(STAGES),)),
        "_meshed": (float, (MAX_REMESHINGS, n)),
    }


@dataclass(frozen=True, eq=False)
class FitShapes:
    """The fit of a chunk of voxels; arrays are named as in `cell_shape_layout`."""

    model: ShapeModel
    n_draws: int

    def __call__(self, voxels: Voxels) -> dict[str, np.ndarray]:
        """Arrays of the voxels, named as in `cell_shape_layout`."""
        acquisition = self.model.acquisition
        frames = tensor_frames(acquisition, voxels.signals)
        sigma_known, levels = voxels.sigma is not None, voxels.sigma
        if levels is None:
            noise, freedom = noise_before_fit(voxels.signals, acquisition)
            levels = np.where(freedom > 0, noise, _NOISE)
        results = [
            self._voxel_or_prior_mean(
                ShapeObjective(self.model.coarse, signals, max(level, _MIN_NOISE), not signed),
                frame, np.log(S0), level, sigma_known,
            )
            for signals, S0, level, signed, frame in stepwise([*zip(
                voxels.signals, voxels.S0, levels, voxels.signed, frames, strict=True
            )])
        ]  # fmt: skip
        return {name: np.array([result[name] for result in results]) for name in results[0]}

    def _voxel_or_prior_mean(self, objective, frame, log_S0, noise, noise_given):
        """Values of a voxel; where no cell can be simulated near its signals, those of the prior
        mean, NOT_CONVERGED."""
        starts = initial_cells(objective, frame, log_S0)
        try:
            if starts:
                return self._voxel(objective, starts, noise, noise_given)
        except np.linalg.LinAlgError:  # a singular curvature stops this voxel alone
            pass
        layout = cell_shape_layout(self.model, self.n_draws)
        values = {
            name: np.zeros(*kind[1:], kind[0]) if isinstance(kind, tuple) else kind(0)
            for name, kind in layout.items()
        }
        mean = CellShape(self.model.shape_space.prior_mean, Rotation.identity(), 0.0, log_S0)
        values["_stages"][:] = mean.pack()
        return values | {
            "S0_per_te": np.exp(log_S0), "birge_ratio": 1.0, "sigma": objective.sigma,
            "residual_rms": float(np.std(objective.data)), "n_unknowns": 0.0,
            "reduced_chi_square": np.inf, "converged": False,
        }  # fmt: skip

    def _voxel(self, objective, starts, noise, noise_given):
        cells, values, _ = minimise_cells(objective, starts, _FIRST_STEPS)
        order = np.argsort(values)[:_N_CONTINUED]
        if not noise_given:
            objective = _with_noise(objective, cells[order[0]])
        report_progress(_STARTED)
        minima, values, stopped = minimise_cells(
            objective, [cells[k] for k in order], _COARSE_STEPS
        )
        report_progress(_COARSE)
        best_row = int(np.argmin(values))
        cell, converged = minima[best_row], bool(stopped[best_row])
        stages = [starts[order[best_row]].shape, cell.shape]
        meshed = []
        while len(meshed) < MAX_REMESHINGS and (
            not meshed or lowest_quality(objective, cell) < _MIN_QUALITY
        ):
            remeshed = _remeshed(self.model, objective, cell)
            if remeshed is None:
                break
            meshed.append(cell.shape.theta)
            objective, cell = remeshed
            if not noise_given:
                objective = _with_noise(objective, cell)
            (cell,), _, (converged,) = minimise_cells(objective, [cell], _FINE_STEPS)
        if not noise_given:
            objective = _with_noise(objective, cell)
            (cell,), _, (converged,) = minimise_cells(objective, [cell], _FIRST_STEPS)
        stages.append(cell.shape)
        report_progress(_FINE)
        values = self._values(objective, cell, stages, meshed)
        # relative to noise (independent of the shape) and discretisation error, in units of sigma
        judged = values["residual_rms"] ** 2 / (noise**2 + objective.forward.mesh_error**2)
        freedom = max(len(objective.data) - values["n_unknowns"], 1)
        values["reduced_chi_square"] = (
            len(objective.data) / freedom * judged * (noise / objective.sigma) ** 2
        )
        simulated = np.isfinite(objective.linearised(cell).gradient).all()
        return values | {"converged": bool(converged and simulated)}

    def _values(self, objective, cell, stages, meshed):
        linearisation, forward = objective.linearised(cell), objective.forward
        residuals = residual(objective, cell)
        low, high = np.asarray(forward.space.bounds).T
        margin = _AT_BOUND * (high - low)
        theta = cell.shape.theta
        padded = np.zeros((MAX_REMESHINGS, len(theta)))
        padded[: len(meshed)] = np.array(meshed).reshape(-1, len(theta))
        values = {
            "S0_per_te": np.exp(cell.shape.log_S0),
            "at_bounds": bool(((theta <= low + margin) | (theta >= high - margin)).any()),
            "birge_ratio": birge_ratio_of(objective, cell, linearisation),
            "_stages": np.array([shape.pack() for shape in stages]),
            "_stage_meshes": np.array([0, 0, len(meshed)]),
            "_meshed": padded,
            "sigma": objective.sigma,
            "residual_rms": np.sqrt((residuals**2).mean()),
            "n_unknowns": linearisation.determined.sum(),
        }
        likeliest = size_measures(forward.grid, cell.points, cell.body)
        values |= {name + ending: value for name, value in likeliest.items()
                   for ending in ("", "_likeliest")}  # fmt: skip
        if self.n_draws:
            rng = np.random.default_rng(self.model.seed)
            drawn = [
                (draw.shape.pack(), size_measures(forward.grid, draw.points, draw.body))
                for draw in posterior_cells(forward, cell, linearisation, self.n_draws, rng)
            ]
            values["_draws"] = np.array([packed for packed, _ in drawn])
            samples = {name: np.array([sizes[name] for _, sizes in drawn]) for name in MAPS}
            # deviations of logarithms from the median are scaled
            values |= statistics_of_maps({
                name: np.median(x) * (x / np.median(x)) ** values["birge_ratio"]
                for name, x in samples.items()
            })  # fmt: skip
        return values


def residual(objective: ShapeObjective, cell: SimulatedCell) -> np.ndarray:
    """Data minus their expectation for a cell (M,)."""
    expected = cell.signals
    if objective.rician:
        expected = rician_mean(expected, objective.sigma)
    return objective.data - expected


def birge_ratio_of(
    objective: ShapeObjective, cell: SimulatedCell, linearisation: ShapeLinearisation
) -> float:
    """Birge ratio: factor by which intervals are wider where data or prior reject a cell.

    Once for the residual and once for the distance of the shape from the prior mean.
    """
    determined = linearisation.determined
    of_residual = ((residual(objective, cell) / objective.standard_error) ** 2).sum()
    of_shape = objective.prior_distance(cell.shape)
    square = np.array([of_residual, of_shape])
    freedom = np.array([
        max(len(objective.data) - determined.sum(), 1), determined[: len(cell.shape.theta)].sum()
    ])  # fmt: skip
    return float(np.sqrt(birge_variance(square / freedom, freedom).prod()))


def lowest_quality(objective: ShapeObjective, cell: SimulatedCell) -> float:
    """Lowest mean-ratio quality of a cell's tetrahedra, 0 to 1 (regular)."""
    corners = cell.points[objective.forward.grid.tetrahedra]
    volumes = np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1])) / 6
    corner_i, corner_j = np.triu_indices(4, 1)
    squares = ((corners[:, corner_i] - corners[:, corner_j]) ** 2).sum(axis=(1, 2))
    return float((12 * (3 * volumes) ** (2 / 3) / squares).min())


def _remeshed(model, objective, cell):
    """Objective and cell on a mesh suited to it; None where the space has no other."""
    forward = objective.forward
    space, theta = forward.space.remeshed(cell.shape.theta)
    if space is forward.space:
        return None
    finer = model.forward_in(space)
    moved = finer.at(replace(cell.shape, theta=np.asarray(theta, dtype=float)))
    return None if moved is None else (replace(objective, forward=finer), moved)


def _with_noise(objective, cell):
    """The objective with the noise of the residual of a cell, without the discretisation error."""
    shape, has_scale = cell.shape, objective.forward.space.has_scale
    n_unknowns = len(shape.pack()) - has_scale + len(shape.log_S0)
    n_unknowns = min(n_unknowns, len(objective.data) // 2)
    if objective.rician:
        arrays = objective.data[None], cell.signals[None], np.array([objective.standard_error])
        level = float(
            rician_noise_from_residual(*(torch.as_tensor(x) for x in arrays), n_unknowns)[0]
        )
    else:
        squares = (objective.data - cell.signals) ** 2
        level = float(np.sqrt(squares.sum() / (len(squares) - n_unknowns)))
    noise = np.sqrt(max(level**2 - objective.forward.mesh_error**2, _MIN_NOISE**2))
    return replace(objective, sigma=float(noise))
