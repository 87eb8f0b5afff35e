"""Commands that fit compartment models (NODDI, ActiveAx, ZCD, IVIM), packed cells, cell shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dipy_spinverse.report.meshes import MESH_SUFFIXES, voxel_affine
from dipy_spinverse.workflows.diffusion import DiffusionCommand, read_acquisition
from dipy_spinverse.workflows.fit_command import Images
from dipy_spinverse.workflows.model_options import map_names, model_step


class CompartmentCommand(DiffusionCommand):
    """A command that fits a compartment model."""

    def fit_options(self, images: Images, *, known: list[str] | None = None) -> dict[str, Any]:
        """Parameters that are not fitted.

        Parameters
        ----------
        known : variable string, optional
            Parameters with known values in each voxel, as NAME=FILE with an image in the unit of
            the map of this name. A diffusivity must be a parameter: parallel_diffusivity free.
        """
        from dipy_spinverse.voxels.image_files import volume_of

        files, maps = dict(text.partition("=")[::2] for text in known or []), {}
        for name, path in files.items():
            maps[name] = volume_of(path, (images.data.shape[:3], images.affine), f"known {name}")
        return {"known": maps}


class NODDIFlow(CompartmentCommand):
    """Fit NODDI: neurite density, orientation dispersion and free water.

    Needs at least two shells. Writes maps with standard deviations and 95 % intervals.
    """

    maps = ("ndi", "odi", "fwf")
    others = ("axis", "outlier_fraction")
    read_acquisition = staticmethod(read_acquisition)  # type: ignore[assignment]

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
    others = ("axis", "outlier_fraction")

    make_model = model_step(
        "compartments.white_matter.ActiveAxModel",
        "parallel_diffusivity",
        "isotropic_diffusivity",
        "no_dot",
        "likelihood",
        "amplitudes",
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
    others = ("axis", "outlier_fraction")

    make_model = model_step(
        "compartments.white_matter.ZCDModel", "likelihood", "amplitudes", "seed"
    )


class SMEXFlow(CompartmentCommand):
    """Fit NEXI with finite pulses (SMEX): neurites that exchange water with their surroundings.

    Needs the pulse timings (--big_delta, --small_delta), several diffusion times and two b > 0 or
    more at each, as averages over directions (--isotropic all) or single directions. Writes maps
    with standard deviations and 95 % intervals.
    """

    maps = ("neurite_fraction", "exchange_time", "neurite_diffusivity", "extra_diffusivity")
    others = ("outlier_fraction",)

    make_model = model_step(
        "compartments.other_tissue.NEXIModel", "likelihood", "amplitudes", "seed"
    )


class IVIMFlow(CompartmentCommand):
    """Fit IVIM by variable projection: perfusion fraction, diffusivity and pseudo-diffusivity.

    Needs at least three b > 0. Writes maps with standard deviations and 95 % intervals.
    """

    maps = ("perfusion_fraction", "D_star", "D")
    others = ("outlier_fraction",)
    read_acquisition = staticmethod(read_acquisition)  # type: ignore[assignment]

    make_model = model_step("compartments.other_tissue.IVIMModel", "likelihood", "seed")


class PackedCellsFlow(DiffusionCommand):
    """Find sizes, walls and exchange of packed cells from diffusion-weighted signals.

    Cylinders and spheres with walls that water passes, and the water around them, compete for each
    voxel; all diffusivities are unknown. Writes maps with standard deviations and 95 % intervals.
    The pulse timings are needed: give --big_delta and --small_delta.
    """

    maps = map_names("packed_cells.fit.PackedCellsFit")
    others = (
        "wall_orientation", "wall_orientation_angle", "systematic_error", "misfit_percent",
        "left_out_ratio", "misfit_level",
    )  # fmt: skip

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


class CellShapesFlow(DiffusionCommand):
    """Find the shape of a closed cell from its diffusion signals.

    For signals of one cell, or of many of one shape and one orientation: simulations, phantoms,
    microscopy NMR. Not for tissue, whose voxels contain thousands of cells and extracellular
    water, and not for ensembles of all orientations, as in most spectroscopy of metabolites: both
    give a wrong shape that may be reported as CONVERGED. The diffusivity must be known: a wrong
    one changes the size, without a warning. Writes size and tortuosity with 95 % intervals, and a
    mesh. The pulse timings are needed: give --big_delta and --small_delta.
    """

    maps = ("volume", "surface", "length", "mean_radius", "tortuosity")
    others = ("at_bounds", "birge_ratio")
    more_outputs: ClassVar[dict[str, tuple[str, str]]] = {
        "cell": (
            "cell",
            "Stem of the mesh files; voxel i,j,k gives STEM_i_j_k.ply, .vtu (um) and .surf.gii "
            "(mm, enlarged to fill its voxel, for dipy_horizon).",
        )
    }

    make_model = model_step("cell_shapes.model.CellShapeModel", "diffusivity", "seed")

    def write(self, fit: Any, images: Images, settings: dict, paths: dict[str, Path]) -> None:
        """Write maps, and a mesh of each cell."""
        from dipy_spinverse.voxels.status import FITTED

        super().write(fit, images, settings, paths)
        for voxel in map(tuple, np.argwhere(np.isin(fit.status, FITTED)).tolist()):
            mesh = fit.mesh(voxel)
            size = 2 * float(np.abs(mesh.vertices_um).max())
            name = "_".join([paths["cell"].name, *map(str, voxel)])
            for suffix in MESH_SUFFIXES:
                mesh.save(
                    paths["cell"].with_name(name + suffix),
                    voxel_affine(images.affine, voxel, size),
                )
