"""``dipy_fit_packed_cells``: maps of tissue of packed permeable cylinders and spheres."""

from __future__ import annotations

from typing import Any

from dipy_spinverse.workflows.diffusion import DiffusionCommand


class PackedCellsFlow(DiffusionCommand):
    """Find sizes, walls and exchange of packed cells from diffusion-weighted signals.

    Cylinders and spheres with walls that water passes, and the water beside them, compete for each
    voxel; all diffusivities are unknown. Writes maps with standard deviations and 95 % intervals.
    The pulse timings are needed: give --big_delta and --small_delta.
    """

    maps = (
        "surface_to_volume",
        "restricted_fraction",
        "wall_permeability",
        "exchange_time",
        "pore_diameter",
        "wall_anisotropy",
        "orientation_dispersion",
        "free_water_fraction",
        "dot_fraction",
        "hindered_fraction",
        "diffusivity_inside",
        "diffusivity_outside",
    )
    others = ("wall_orientation", "wall_orientation_angle", "systematic_error")

    def make_model(
        self,
        acquired: Any,
        *,
        diffusivity: float | None = None,
        free_diffusivity: float = 3e-3,
        typical_radius: float = 2.0,
        radius_spread: float = 0.0,
        amplitudes: str = "te",
        least_b: float = 0.0,
        seed: int = 0,
    ) -> Any:
        """The model.

        Parameters
        ----------
        diffusivity : float, optional
            Diffusivity of the water in tissue, mm^2/s, if it is known. Without it, it is found.
        free_diffusivity : float, optional
            Diffusivity of free water, mm^2/s.
        typical_radius : float, optional
            Radius (um) that cells are likely to have, within a factor of 3 or so; of muscle
            fibres about 25.
        radius_spread : float, optional
            Standard deviation of the radii of a voxel's cells over their mean, where it is known;
            0 for equal cells.
        amplitudes : string, optional
            Volumes that share a signal without diffusion: those of one echo time, 'te', or of one
            timing, 'timing'.
        least_b : float, optional
            Weighted volumes with smaller b (s/mm^2) do not count.
        seed : int, optional
            Seed of the draws.
        """
        from dipy_spinverse import PackedCellsModel

        return PackedCellsModel(
            acquired, diffusivity=diffusivity, free_diffusivity=free_diffusivity,
            typical_radius=typical_radius, radius_spread=radius_spread, amplitudes=amplitudes,
            least_b=least_b, seed=seed,
        )  # fmt: skip
