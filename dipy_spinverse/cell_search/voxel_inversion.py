"""The search for cells as an inversion: voxels in, reconstructions out."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import unique_encodings
from dipy_spinverse.cell_search.effort import DEFAULT_EFFORT, SearchEffort
from dipy_spinverse.cell_search.labelled import LabelledCells, face_transmissibility
from dipy_spinverse.cell_search.search import CellSearch
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.inversion.reconstruction import Reconstruction
from dipy_spinverse.inversion.unknowns import scaled_transmissibility
from dipy_spinverse.voxels.noise import noise_of_each_te
from dipy_spinverse.voxels.progress import stepwise
from dipy_spinverse.walls.patterns import align_fields

# Error of simulated signals in the search, over the initial magnetisation: that of float32 and of
# its steps in time.
_LEAST_SIGMA = 1.5e-5


class CellInversion:
    """A :class:`dipy_spinverse.inversion.protocols.WallSolver`, for separate cells and a known S0.

    Parameters
    ----------
    acquisition : Acquisition
    grid : TetrahedralGrid
    diffusivity : float
        um^2/ms.
    n_fields : int
        Number of further wall fields of a voxel.
    seed : int
    effort : SearchEffort, optional
        What the search may spend.
    """

    def __init__(
        self,
        acquisition: Acquisition,
        grid: TetrahedralGrid,
        *,
        diffusivity: float,
        n_fields: int,
        seed: int,
        effort: SearchEffort = DEFAULT_EFFORT,
    ):
        self._acquisition, self._grid = acquisition, grid
        representatives, self._encoding = unique_encodings(acquisition)
        self._repeats = np.bincount(self._encoding)
        self._te_index = acquisition.te_index[representatives]
        part = acquisition.subset(representatives)
        self.search = CellSearch(part, grid, diffusivity=diffusivity, seed=seed, effort=effort)
        self._n_fields = n_fields

    n_stages = 1
    # Of each echo time, where it is not given.
    estimates_noise = True

    def run(self, data: np.ndarray, sigma: np.ndarray | None) -> Reconstruction:
        """Find the cells of V voxels; arguments as :meth:`WallSolver.run`."""
        noise, freedom = np.zeros((len(data), len(self._acquisition.echo_times))), np.inf
        if sigma is not None:
            noise += sigma[:, None]
        elif (estimated := noise_of_each_te(data, self._acquisition)) is not None:
            # Repeats that differ by rounding only are without noise.
            noise = np.where(estimated < _LEAST_SIGMA, 0.0, estimated)
            freedom = (self._acquisition.b0_per_te.sum(axis=1) - 1).sum()
        # The matrices are small: more threads for each would only wait for each other.
        with threadpool_limits(1, user_api="blas"):
            each = stepwise([*zip(data, noise, strict=True)])
            voxels = [self._of_voxel(*voxel, freedom) for voxel in each]
        stacked: dict[str, Any] = {
            name: np.stack([voxel[name] for voxel in voxels], axis=1 if "fields" in name else 0)
            for name in voxels[0]
        }
        if (n_hopeless := stacked.pop("hopeless").sum()) > 0:
            warnings.warn(
                f"{n_hopeless} of {len(data)} voxels: the search ended early, as no cells made of "
                "the grid's tetrahedra come near their signals. Their walls may lie off the grid "
                "(use ClosedCellInversion(smooth=True)), or S0 or the diffusivity be wrong.",
                stacklevel=2,
            )
        known = np.sqrt((noise**2).mean(axis=1)) if sigma is None else sigma
        residual = np.sqrt(((stacked["predicted"] - data) ** 2).mean(axis=1))
        nothing = np.zeros(len(data))
        return Reconstruction(
            **stacked,
            amplitudes=np.ones_like(noise),
            free_water=nothing,
            free_water_fields=np.zeros((self._n_fields, len(data))),
            sigma=np.where(known > 0, known, np.maximum(residual, _LEAST_SIGMA)),
        )

    def _of_voxel(self, data, noise, freedom):
        averaged = np.bincount(self._encoding, data) / self._repeats
        level = noise[self._te_index]
        sigma = np.hypot(level / np.sqrt(self._repeats), _LEAST_SIGMA)
        if not level.any():
            freedom = np.inf  # the errors of the simulation are known
        # Negative samples are of real parts, which noise does not lift.
        rician = np.zeros_like(level) if (data < 0).any() else level
        found = self.search.run(averaged, sigma, rician, freedom, self._n_fields)
        fields = self._scaled_transmissibility([found.best, *found.draws])
        fields[1:] = 1 - align_fields(self._grid, 1 - fields[1:], 1 - fields[0])
        return {
            "scaled_transmissibility": fields[0],
            "scaled_transmissibility_fields": fields[1:],
            "wall_probability": (fields < 0.5).mean(axis=0),
            "predicted": (found.best.signals * sigma)[self._encoding],
            "converged": found.solved,
            "hopeless": found.hopeless,
            "iterations": np.array([found.n_rounds]),
            "misfit": np.array([((found.best.signals - averaged / sigma) ** 2).mean()]),
        }

    def _scaled_transmissibility(self, states: list[LabelledCells]):
        labels = np.array([state.labels for state in states])
        leaks = np.array([state.leaks for state in states])
        tau = face_transmissibility(self._grid, labels, leaks)
        return scaled_transmissibility(torch.as_tensor(tau)).numpy()
