"""Commands that fit compartment models: NODDI, ActiveAx, ZCD and IVIM."""

from __future__ import annotations

from typing import ClassVar

from dipy_spinverse.workflows.diffusion import DiffusionCommand
from dipy_spinverse.workflows.model_options import model_step


class CompartmentCommand(DiffusionCommand):
    """A command that fits a compartment model."""

    others: ClassVar[tuple[str, ...]] = ("axis",)


class NODDIFlow(CompartmentCommand):
    """Fit NODDI: neurite density, orientation dispersion and free water.

    Needs at least two shells. Writes maps with standard deviations and 95 % intervals.
    """

    maps = ("ndi", "odi", "fwf")
    timed = False

    make_model = model_step(
        "compartments.white_matter.NODDIModel",
        "parallel_diffusivity",
        "isotropic_diffusivity",
        "dispersion",
        "likelihood",
        "seed",
    )


class ActiveAxFlow(CompartmentCommand):
    """Fit the minimal model of white matter (ActiveAx): axon diameter and fractions.

    Needs the pulse timings (--big_delta, --small_delta) and at least two shells. Writes maps with
    standard deviations and 95 % intervals.
    """

    maps = ("axon_diameter", "restricted_fraction", "free_water_fraction", "dot_fraction")

    make_model = model_step(
        "compartments.white_matter.ActiveAxModel",
        "parallel_diffusivity",
        "isotropic_diffusivity",
        "no_dot",
        "likelihood",
        "seed",
    )


class ZCDFlow(CompartmentCommand):
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

    make_model = model_step(
        "compartments.white_matter.ZCDModel",
        "likelihood",
        "seed",
    )


class IVIMFlow(CompartmentCommand):
    """Fit IVIM by variable projection: perfusion fraction, diffusivity and pseudo-diffusivity.

    Needs at least three b > 0; b below --b0_threshold count as 0. Writes maps with standard
    deviations and 95 % intervals.
    """

    maps = ("perfusion_fraction", "D_star", "D")
    others = ()
    timed = False

    make_model = model_step(
        "compartments.other_tissue.IVIMModel",
        "likelihood",
        "seed",
    )
