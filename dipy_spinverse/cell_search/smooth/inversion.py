"""The search for smooth cells as an inversion: voxels in, reconstructions out."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import relative_transmissibility
from dipy_spinverse.cell_search.smooth.budget import SmoothSearchBudget
from dipy_spinverse.cell_search.smooth.level_set import SmoothCells, level_set_prior
from dipy_spinverse.cell_search.smooth.mesh import wall_area, wall_probability
from dipy_spinverse.cell_search.smooth.search import SmoothSearch, SmoothVoxelData
from dipy_spinverse.cell_search.smooth.storage import CELL_ARRAYS, cell_arrays
from dipy_spinverse.cell_search.smooth.volume_fractions import VolumeFractionModel
from dipy_spinverse.cell_search.voxel_inversion import VoxelwiseInversion
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.inversion.protocols import Reconstruction
from dipy_spinverse.inversion.unknowns import scaled_transmissibility
from dipy_spinverse.voxels.noise import noise_per_te
from dipy_spinverse.voxels.rician import rician_mean
from dipy_spinverse.walls.maps import LONGEST_EXCHANGE_TIME_MS

# Of simulated signals, relative to them, from grids, sampling points and time steps. Set by hand;
# that of single measurements is 0.6 % (benchmarks/results/smooth_bodies_truth.md).
_SIMULATION_ERROR = 0.003
# Relative standard deviations in addition to the scatter of samples. With these, intervals cover
# 95 to 98 % of the linearised errors of fits of ten known bodies
# (benchmarks/notes/walls_off_grid.md).
_RELATIVE_ERRORS = {
    "surface_to_volume": 0.04,
    "restricted_fraction": 0.05,
    "pore_diameter": 0.05,
    "wall_permeability": 0.25,
    "exchange_time": 0.25,
}
_TINY = 1e-9  # um^2, um^3/ms, against division by 0


class SmoothCellInversion(VoxelwiseInversion):
    """As :class:`dipy_spinverse.cell_search.CellInversion`, for cells whose walls lie anywhere.

    The box of the lattice is the domain, its faces show the walls; signals are simulated on other
    lattices. `n_fields` samples are drawn; unknown scales of echo times and diffusivities are
    fitted.
    """

    def __init__(
        self,
        acquisition: Acquisition,
        grid: TetrahedralGrid,
        *,
        diffusivity: float,
        n_fields: int,
        seed: int,
        budget: SmoothSearchBudget | None = None,
        S0_known: bool = True,
        diffusivity_known: bool = True,
    ):
        super().__init__(acquisition, grid, n_fields)
        self._diffusivity = diffusivity
        unknown_scales = np.arange(0 if S0_known else len(acquisition.echo_times))
        self._scale_of = self._te_index == unknown_scales[:, None]
        self.search = SmoothSearch(
            self._without_repeats,
            level_set_prior(grid).box_um,
            diffusivity=diffusivity,
            seed=seed,
            budget=budget or SmoothSearchBudget(),
            diffusivity_known=diffusivity_known,
        )
        self._volume_fractions = VolumeFractionModel(grid, self.search.prior)

    def run(self, data: np.ndarray, sigma: np.ndarray | None) -> Reconstruction:
        """Find the cells of V voxels; arguments as :meth:`WallSolver.run`."""
        n_te = len(self._acquisition.echo_times)
        noise = self._noise(data) if sigma is None else np.repeat(sigma[:, None], n_te, axis=1)
        stacked = self._each_voxel(self._of_voxel, data, noise)
        maps = {name: stacked.pop(f"fields of {name}") for name in _RELATIVE_ERRORS}
        cells = {name: stacked.pop(name) for name in CELL_ARRAYS}
        return Reconstruction(
            **stacked,
            cells=cells,
            maps=maps,
            errors=_RELATIVE_ERRORS,
            free_water=np.zeros(len(data)),
            free_water_fields=np.zeros((self._n_fields, len(data))),
            sigma=np.sqrt((noise**2).mean(axis=1)),
        )

    def _of_voxel(self, data, noise):
        voxel = self.voxel_data(data, noise)
        result = self.search.run(voxel, self._n_fields)
        predicted = rician_mean(result.signals, voxel.rician_sigma)[self._encoding]
        cells = [result.best, *result.draws]
        fields = np.array([self._scaled_transmissibility(x) for x in cells])
        centroids = self._grid.face_centroids
        return {
            **cell_arrays(cells),
            **{f"fields of {name}": values for name, values in self._maps(cells).items()},
            "amplitudes": result.scales if len(result.scales) else np.ones(len(noise)),
            "diffusivity": result.diffusivity,
            "scaled_transmissibility": fields[0],
            "scaled_transmissibility_fields": fields[1:],
            "wall_probability": wall_probability(self.search.prior, cells, centroids),
            "predicted": predicted,
            "converged": True,
        }

    def _maps(self, cells):
        """Maps (n,) of cells: of their smooth walls, not of the lattice's faces."""
        areas = [wall_area(self.search.prior, x) for x in cells]
        area = np.array([x.sum() for x in areas])
        flow = np.array([a @ x.permeability for a, x in zip(areas, cells, strict=True)])
        fractions, box = self.search.fine.volume_fractions, self._grid.box_volume_um3
        volume = np.array([fractions.geometry(x)[0].sum() for x in cells])
        exchange_time = volume / np.maximum(flow, _TINY)
        return {
            "surface_to_volume": area / box,
            "restricted_fraction": volume / box,
            "pore_diameter": 4 * volume / area.clip(_TINY),
            "wall_permeability": flow / area.clip(_TINY),
            "exchange_time": exchange_time.clip(0, LONGEST_EXCHANGE_TIME_MS),
        }

    def voxel_data(self, data: np.ndarray, noise: np.ndarray | None = None) -> SmoothVoxelData:
        """Data (M,) of a voxel; its noise (K,) at each echo time is estimated by default."""
        noise = self._noise(data[None])[0] if noise is None else noise
        mean, error, rician_sigma = self._averaged(data, noise)
        sigma = np.hypot(error, _SIMULATION_ERROR * mean)
        return SmoothVoxelData(mean, sigma, rician_sigma, self._scale_of)

    def _noise(self, data):
        """Noise (V, K) of each echo time."""
        noise, freedom = noise_per_te(data, self._acquisition)
        if not freedom.all():
            raise ValueError(
                "ClosedCellInversion(smooth=True) needs the noise level: give sigma, or at least "
                "two images without diffusion weighting at each echo time."
            )
        return noise

    def _scaled_transmissibility(self, cells: SmoothCells):
        """Of the faces (F,) of the grid, walls where most of one tetrahedron is inside."""
        inside = self._volume_fractions(cells).fractions > 0.5
        index = self._volume_fractions.index(cells)
        row, column = self._grid.face_tetrahedra.T
        cell_of_face = np.where(inside[row], index[row], index[column])
        of_walls = cells.permeability[cell_of_face]
        permeability = np.where(inside[row] != inside[column], of_walls, np.inf)
        tau = relative_transmissibility(self._grid, permeability, self._diffusivity)
        return scaled_transmissibility(tau)
