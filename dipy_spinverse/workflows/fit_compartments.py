"""Commands that fit packed cells and compartment models: NODDI, ActiveAx, ZCD and IVIM."""

from __future__ import annotations

from dipy_spinverse.workflows.diffusion import DiffusionCommand, read_acquisition
from dipy_spinverse.workflows.model_options import maps_of, model_step


class NODDIFlow(DiffusionCommand):
    """Fit NODDI: neurite density, orientation dispersion and free water.

    Needs at least two shells. Writes maps with standard deviations and 95 % intervals.
    """

    maps = ("ndi", "odi", "fwf")
    others = ("axis",)
    read_acquisition = staticmethod(read_acquisition)  # type: ignore[assignment]

    make_model = model_step(
        "compartments.white_matter.NODDIModel",
        "parallel_diffusivity",
        "isotropic_diffusivity",
        "dispersion",
        "likelihood",
        "seed",
    )


class ActiveAxFlow(DiffusionCommand):
    """Fit the minimal model of white matter (ActiveAx): axon diameter and fractions.

    Needs the pulse timings (--big_delta, --small_delta) and at least two shells. Writes maps with
    standard deviations and 95 % intervals.
    """

    maps = ("axon_diameter", "restricted_fraction", "free_water_fraction", "dot_fraction")
    others = ("axis",)

    make_model = model_step(
        "compartments.white_matter.ActiveAxModel",
        "parallel_diffusivity",
        "isotropic_diffusivity",
        "no_dot",
        "likelihood",
        "seed",
    )


class ZCDFlow(DiffusionCommand):
    """Fit zeppelin, cylinder and dot: axon diameter, fractions and diffusivities.

    Needs the pulse timings (--big_delta, --small_delta) and at least two shells. Writes maps with
    standard deviations and 95 % intervals.
    """

    maps = (
        "axon_diameter",
        "restricted_fraction",
        "hindered_fraction",
        "dot_fraction",
        "parallel_diffusivity",
        "perpendicular_diffusivity",
    )
    others = ("axis",)

    make_model = model_step("compartments.white_matter.ZCDModel", "likelihood", "seed")


class IVIMFlow(DiffusionCommand):
    """Fit IVIM by variable projection: perfusion fraction, diffusivity and pseudo-diffusivity.

    Needs at least three b > 0; b below --b0_threshold count as 0. Writes maps with standard
    deviations and 95 % intervals.
    """

    maps = ("perfusion_fraction", "D_star", "D")
    read_acquisition = staticmethod(read_acquisition)  # type: ignore[assignment]

    make_model = model_step("compartments.other_tissue.IVIMModel", "likelihood", "seed")


class PackedCellsFlow(DiffusionCommand):
    """Find sizes, walls and exchange of packed cells from diffusion-weighted signals.

    Cylinders and spheres with walls that water passes, and the water beside them, compete for each
    voxel; all diffusivities are unknown. Writes maps with standard deviations and 95 % intervals.
    The pulse timings are needed: give --big_delta and --small_delta.
    """

    maps = maps_of("packed_cells.model.PackedCellsFit")
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
