"""``dipy_fit_packed_cells``: maps of tissue of packed permeable cylinders and spheres."""

from __future__ import annotations

from dipy_spinverse.workflows.diffusion import DiffusionCommand
from dipy_spinverse.workflows.model_options import model_step


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

    make_model = model_step(
        "packed_cells.model.PackedCellsModel",
        "diffusivity",
        "free_diffusivity",
        "typical_radius",
        "radius_spread",
        "amplitudes",
        "least_b",
        "seed",
    )
