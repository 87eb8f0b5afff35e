"""The search for cells as an inversion: voxels in, reconstructions out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import unique_encodings
from dipy_spinverse.cell_search.budget import CellSearchBudget
from dipy_spinverse.cell_search.labelled import LabelledCells, face_transmissibility
from dipy_spinverse.cell_search.search import CellSearch
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.inversion.protocols import Reconstruction
from dipy_spinverse.inversion.unknowns import scaled_transmissibility
from dipy_spinverse.user_warnings import warn
from dipy_spinverse.voxels.noise import noise_per_te
from dipy_spinverse.voxels.progress import stepwise
from dipy_spinverse.walls.patterns import align_fields

# Error of simulated signals in the search, over the initial magnetisation, of float32 and of the
# time steps; set by hand.
_SIMULATION_ERROR = 1.5e-5
# Transmissibilities of other faces are fitted, too, and end at 1 or near it; within a hundredth of
# their prior standard deviation they are open.
_OPEN = 1e-4


class VoxelwiseInversion:
    """Inversion of one voxel at a time, of the means of repeated measurements."""

    # Of each echo time, where it is not specified.
    estimates_noise = True

    def __init__(self, acquisition: Acquisition, grid: TetrahedralGrid, n_fields: int):
        self._acquisition, self._grid, self._n_fields = acquisition, grid, n_fields
        representatives, self._encoding = unique_encodings(acquisition)
        self._n_repeats = np.bincount(self._encoding)
        self._te_index = acquisition.te_index[representatives]
        self._without_repeats = acquisition.subset(representatives)

    def _averaged(self, data, noise):
        """Means of repeats (M,), their standard errors, and the noise that biases magnitudes."""
        noise = noise[self._te_index]
        # Negative samples are of real parts, whose mean noise does not bias.
        rician_sigma = np.zeros_like(noise) if (data < 0).any() else noise
        mean = np.bincount(self._encoding, data) / self._n_repeats
        return mean, noise / np.sqrt(self._n_repeats), rician_sigma

    def _each_voxel(self, invert: Callable[..., dict[str, Any]], *of_voxels) -> dict[str, Any]:
        """Stacked results of `invert` for the data of each voxel."""
        # The matrices are small: several BLAS threads for each would only wait for each other.
        with threadpool_limits(1, user_api="blas"):
            results = [invert(*voxel) for voxel in stepwise([*zip(*of_voxels, strict=True)])]
        return {
            name: np.stack([result[name] for result in results], axis=1 if "fields" in name else 0)
            for name in results[0]
        }


class CellInversion(VoxelwiseInversion):
    """A :class:`dipy_spinverse.inversion.protocols.WallSolver` for separate cells and a known S0.

    The diffusivity is in um^2/ms; `n_fields` further permeability fields are drawn per voxel.
    """

    def __init__(
        self,
        acquisition: Acquisition,
        grid: TetrahedralGrid,
        *,
        diffusivity: float,
        n_fields: int,
        seed: int,
        budget: CellSearchBudget | None = None,
    ):
        super().__init__(acquisition, grid, n_fields)
        self.search = CellSearch(
            self._without_repeats, grid, diffusivity=diffusivity, seed=seed, budget=budget
        )

    def run(self, data: np.ndarray, sigma: np.ndarray | None) -> Reconstruction:
        """Find the cells of V voxels; arguments as :meth:`WallSolver.run`."""
        degrees_of_freedom = np.inf
        noise = np.zeros((len(data), len(self._acquisition.echo_times)))
        if sigma is not None:
            noise += sigma[:, None]
        else:
            estimated, freedom = noise_per_te(data, self._acquisition)
            if freedom.all():
                # Repeats that differ only by rounding are without noise.
                noise = np.where(estimated < _SIMULATION_ERROR, 0.0, estimated)
                degrees_of_freedom = freedom[0]

        invert = partial(self._of_voxel, degrees_of_freedom=degrees_of_freedom)
        stacked = self._each_voxel(invert, data, noise)
        if (n_hopeless := stacked.pop("hopeless").sum()) > 0:
            warn(
                f"In {n_hopeless} of {len(data)} voxels the search ended early, as no cells made "
                "of whole tetrahedra explain the signals. Walls may not lie on faces of the grid "
                "(use ClosedCellInversion(smooth=True)), or S0 or the diffusivity may be wrong."
            )
        noise_level = np.sqrt((noise**2).mean(axis=1)) if sigma is None else sigma
        residual = np.sqrt(((stacked["predicted"] - data) ** 2).mean(axis=1))
        return Reconstruction(
            **stacked,
            amplitudes=np.ones_like(noise),
            free_water=np.zeros(len(data)),
            free_water_fields=np.zeros((self._n_fields, len(data))),
            sigma=np.where(noise_level > 0, noise_level, np.maximum(residual, _SIMULATION_ERROR)),
        )

    def _of_voxel(self, data, noise, degrees_of_freedom):
        mean, error, rician_sigma = self._averaged(data, noise)
        sigma = np.hypot(error, _SIMULATION_ERROR)
        if not error.any():
            degrees_of_freedom = np.inf  # the errors of the simulation are known
        result = self.search.run(mean, sigma, rician_sigma, degrees_of_freedom, self._n_fields)
        fields = self._scaled_transmissibility([result.best, *result.draws])
        fields[1:] = 1 - align_fields(self._grid, 1 - fields[1:], 1 - fields[0])
        return {
            "scaled_transmissibility": fields[0],
            "scaled_transmissibility_fields": fields[1:],
            "wall_probability": (fields < 0.5).mean(axis=0),
            "predicted": (result.best.expected * sigma)[self._encoding],
            "converged": result.solved,
            "hopeless": result.hopeless,
        }

    def _scaled_transmissibility(self, states: list[LabelledCells]):
        labels = np.array([state.labels for state in states])
        transmissibility = np.array([state.transmissibility for state in states])
        of_open_faces = transmissibility[:, 1]
        of_open_faces[of_open_faces > 1 - _OPEN] = 1
        return scaled_transmissibility(face_transmissibility(self._grid, labels, transmissibility))
