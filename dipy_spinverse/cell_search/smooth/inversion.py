"""The search for smooth cells as an inversion: voxels in, reconstructions out."""

from __future__ import annotations

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import relative_transmissibility, unique_encodings
from dipy_spinverse.cell_search.smooth.effort import DEFAULT_EFFORT, SmoothEffort
from dipy_spinverse.cell_search.smooth.forward import SmoothCells, SmoothShape
from dipy_spinverse.cell_search.smooth.level_set import level_set_prior
from dipy_spinverse.cell_search.smooth.mesh import wall_area, wall_probability
from dipy_spinverse.cell_search.smooth.search import SmoothSearch
from dipy_spinverse.cell_search.smooth.storage import CELL_ARRAYS, stored
from dipy_spinverse.cell_search.smooth.voxel_data import VoxelData
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.inversion.reconstruction import Reconstruction
from dipy_spinverse.inversion.unknowns import scaled_transmissibility
from dipy_spinverse.voxels.noise import noise_of_each_te
from dipy_spinverse.voxels.progress import stepwise
from dipy_spinverse.voxels.rician import rician_mean
from dipy_spinverse.walls.maps import LONGEST_EXCHANGE_TIME_MS

# Of simulated signals, relative to them: of what lattices, points in tetrahedra and steps leave.
_SIMULATION_ERROR = 0.003
# Relative, beside the scatter of draws: with these, 95 to 98 % of the linearised errors of fits of
# ten bodies of known walls are within their intervals (benchmarks/notes/walls_off_grid.md).
_ERRORS = {
    "surface_to_volume": 0.04,
    "restricted_fraction": 0.05,
    "pore_diameter": 0.05,
    "wall_permeability": 0.25,
    "exchange_time": 0.25,
}
_LITTLE = 1e-9  # um^2, um^3/ms


class SmoothCellInversion:
    """As :class:`dipy_spinverse.cell_search.CellInversion`, for cells whose walls lie anywhere.

    Parameters
    ----------
    acquisition : Acquisition
    grid : TetrahedralGrid
        A lattice with an absorbing outside: its box is the domain, and its faces show the walls.
        Signals are simulated on lattices of its own.
    diffusivity : float
        um^2/ms.
    n_fields : int
        Number of draws from the posterior.
    seed : int
    effort : SmoothEffort, optional
        What the search may spend.
    S0_known, diffusivity_known : bool, optional
        Otherwise data have an unknown scale for each echo time, and the diffusivity may be off by
        some percent.
    """

    n_stages = 1
    estimates_noise = True

    def __init__(
        self,
        acquisition: Acquisition,
        grid: TetrahedralGrid,
        *,
        diffusivity: float,
        n_fields: int,
        seed: int,
        effort: SmoothEffort = DEFAULT_EFFORT,
        S0_known: bool = True,
        diffusivity_known: bool = True,
    ):
        prior = level_set_prior(grid)
        self._acquisition, self._grid, self._diffusivity = acquisition, grid, diffusivity
        representatives, self._encoding = unique_encodings(acquisition)
        self._repeats = np.bincount(self._encoding)
        self._te_index = acquisition.te_index[representatives]
        part = acquisition.subset(representatives)
        every = np.arange(0 if S0_known else len(acquisition.echo_times))
        self._scale_of = self._te_index == every[:, None]
        self.search = SmoothSearch(
            part, prior.box_um, diffusivity=diffusivity, seed=seed, effort=effort,
            diffusivity_known=diffusivity_known,
        )  # fmt: skip
        self._shape = SmoothShape(grid, self.search.prior)
        self._n_fields = n_fields

    def run(self, data: np.ndarray, sigma: np.ndarray | None) -> Reconstruction:
        """Find the cells of V voxels; arguments as :meth:`WallSolver.run`."""
        n_te = len(self._acquisition.echo_times)
        noise = self._noise(data) if sigma is None else np.repeat(sigma[:, None], n_te, axis=1)
        with threadpool_limits(1, user_api="blas"):
            each = stepwise([*zip(data, noise, strict=True)])
            voxels = [self._of_voxel(*voxel) for voxel in each]
        stacked = {
            name: np.stack([voxel[name] for voxel in voxels], axis=1 if "fields" in name else 0)
            for name in voxels[0]
        }
        maps = {name: stacked.pop(f"fields of {name}") for name in _ERRORS}
        cells = {name: stacked.pop(name) for name in CELL_ARRAYS}
        return Reconstruction(
            **stacked,
            cells=cells,
            maps=maps,
            errors=_ERRORS,
            free_water=np.zeros(len(data)),
            free_water_fields=np.zeros((self._n_fields, len(data))),
            sigma=np.sqrt((noise**2).mean(axis=1)),
        )

    def _of_voxel(self, data, noise):
        voxel = self._for_search(data, noise)
        found = self.search.run(voxel, self._n_fields)
        expected = rician_mean(found.signals, voxel.rician)[self._encoding]
        residual = (data - expected) / noise[self._acquisition.te_index]
        every = [found.best, *found.draws]
        fields = np.array([self._scaled_transmissibility(cells) for cells in every])
        maps = self._maps(every)
        scales = found.scales if len(found.scales) else np.ones(len(noise))
        return {
            **stored(every),
            **{f"fields of {name}": value for name, value in maps.items()},
            "amplitudes": scales,
            "diffusivity": found.diffusivity,
            "scaled_transmissibility": fields[0],
            "scaled_transmissibility_fields": fields[1:],
            "wall_probability": wall_probability(
                self.search.prior, every, self._grid.face_centroids
            ),
            "predicted": expected,
            "converged": True,
            "iterations": np.array([found.n_steps]),
            "misfit": np.array([(residual**2).mean()]),
        }

    def _maps(self, every):
        """Maps (n,) of cells: of their smooth walls, not of the lattice's faces."""
        areas = [wall_area(self.search.prior, cells) for cells in every]
        area = np.array([of_each.sum() for of_each in areas])
        leaks = [a @ cells.permeability for a, cells in zip(areas, every, strict=True)]
        exchange = np.maximum(leaks, _LITTLE)
        shape, box = self.search.fine.shape, self._grid.box_volume_um3
        volume = np.array([shape.geometry(cells)[0].sum() for cells in every])
        return {
            "surface_to_volume": area / box,
            "restricted_fraction": volume / box,
            "pore_diameter": 4 * volume / area.clip(_LITTLE),
            "wall_permeability": np.array(leaks) / area.clip(_LITTLE),
            "exchange_time": (volume / exchange).clip(0, LONGEST_EXCHANGE_TIME_MS),
        }

    def _for_search(self, data, noise):
        """Data of the different encodings, their errors, and the noise that lifts them."""
        level = noise[self._te_index]
        # Negative samples are of real parts, which noise does not lift.
        rician = np.zeros_like(level) if (data < 0).any() else level
        averaged = np.bincount(self._encoding, data) / self._repeats
        error = np.hypot(level / np.sqrt(self._repeats), _SIMULATION_ERROR * averaged)
        return VoxelData(averaged, error, rician, self._scale_of)

    def refined(self, data: np.ndarray, cells: SmoothCells) -> SmoothCells:
        """The cells in which the last steps of a search end that start from some cells."""
        return self.search.refined(self._for_search(data, self._noise(data[None])[0]), cells)

    def improbability(self, data: np.ndarray, cells: SmoothCells) -> float:
        """Minus twice the log probability of cells, given data (M,), but for a constant."""
        voxel = self._for_search(data, self._noise(data[None])[0])
        return self.search.improbability(voxel, cells)

    def _noise(self, data):
        """Noise (V, K) of each echo time."""
        estimated = noise_of_each_te(data, self._acquisition)
        if estimated is None:
            raise ValueError(
                "ClosedCellInversion(smooth=True) needs the noise level: give sigma, or at least "
                "two images without diffusion weighting at each echo time."
            )
        return estimated

    def _scaled_transmissibility(self, cells: SmoothCells):
        """s (F,) of the faces of the grid, walls where most of a tetrahedron is inside."""
        inside, part = self._shape.share(cells) > 0.5, self._shape.part(cells)
        first, second = self._grid.face_tetrahedra.T
        of_face = cells.permeability[np.where(inside[first], part[first], part[second])]
        permeability = np.where(inside[first] != inside[second], of_face, np.inf)
        tau = relative_transmissibility(self._grid, permeability, self._diffusivity)
        return scaled_transmissibility(torch.as_tensor(tau)).numpy()
