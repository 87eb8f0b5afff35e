"""Units and meanings of maps, and meanings of status codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dipy_spinverse.voxels.fit import VoxelFit


class MapDescription(NamedTuple):
    """Unit of a map ("1" where it has none), and its meaning as half a sentence."""

    unit: str
    meaning: str


_UNKNOWN = MapDescription("", "parameter of the model")
_TABLE = {
    "surface_to_volume": ("1/um", "area of the walls per volume"),
    "wall_permeability": ("um/ms", "mean permeability of the walls; 1 um/ms is 1e-3 m/s"),
    "exchange_time": ("ms", "mean residence time of water in cells"),
    "restricted_fraction": ("1", "fraction of the water enclosed by walls"),
    "pore_diameter": ("um", "mean chord length of the enclosed space"),
    "wall_anisotropy": ("1", "degree to which walls are parallel to one axis"),
    "orientation_dispersion": ("1", "dispersion of the axes of cylinders"),
    "free_water_fraction": ("1", "fraction of free water"),
    "dot_fraction": ("1", "fraction of immobile water"),
    "hindered_fraction": ("1", "fraction of hindered water, outside of cells"),
    "diffusivity_inside": ("mm^2/s", "diffusivity of the water within cells"),
    "diffusivity_outside": ("mm^2/s", "diffusivity of the water between cells"),
    "wall_orientation": ("1", "axis of the walls, a unit vector in the b-vectors' frame"),
    "wall_orientation_angle": ("degrees", "radius of the cone about that axis that contains 95 % "
                                          "of the posterior samples"),
    "packed_cells": ("1", "whether the maps are those of packed cells"),
    "pattern_agreement": ("1", "agreement of the posterior samples of the walls; below 0.8, a "
                               "mesh is one of many"),
    "systematic_error": ("1", "sd of errors proportional to the signal, as a fraction of it"),
    "misfit_percent": ("% of S0", "root mean square of the residual beyond the noise"),
    "left_out_ratio": ("1", "error of left-out measurements over a model-free description's"),
    "misfit_level": ("code", "1: the scan or its noise causes the misfit; 2: the model does"),
    "ndi": ("1", "neurite density index: fraction of sticks in tissue"),
    "odi": ("1", "orientation dispersion index; 0 is parallel, 1 is isotropic"),
    "fanning": ("1", "degree of fanning of fibres in one plane"),
    "fwf": ("1", "fraction of free water"),
    "axon_diameter": ("um", "diameter of the cylinders"),
    "neurite_fraction": ("1", "fraction of the water in neurites"),
    "neurite_diffusivity": ("mm^2/s", "diffusivity along neurites"),
    "extra_diffusivity": ("mm^2/s", "diffusivity of the water outside of cells"),
    "parallel_diffusivity": ("mm^2/s", "diffusivity along the fibres"),
    "perpendicular_diffusivity": ("mm^2/s", "diffusivity perpendicular to the fibres, outside of "
                                            "cylinders"),
    "perfusion_fraction": ("1", "fraction of blood that flows in small vessels"),
    "D": ("mm^2/s", "diffusivity of tissue water"),
    "D_star": ("mm^2/s", "pseudo-diffusion coefficient of flowing blood"),
    "axis": ("1", "axis of the fibres, a unit vector in the b-vectors' frame"),
    "volume": ("um^3", "volume of the cell"),
    "surface": ("um^2", "surface area of the cell"),
    "length": ("um", "length of the cell along its centre line"),
    "mean_radius": ("um", "radius of a cylinder of the same length and volume"),
    "tortuosity": ("1", "length over the distance between the ends"),
    "at_bounds": ("1", "whether the estimate is at the limits of the shape space"),
    "birge_ratio": ("1", "factor of the noise for intervals, above 1 in rejected voxels"),
    "csf": ("1", "fraction of cerebrospinal fluid"),
    "gm": ("1", "fraction of grey matter"),
    "wm": ("1", "fraction of white matter"),
    "background": ("1", "fraction without signal"),
    "b1": ("1", "transmit field over the nominal one"),
    "S0": ("that of the data", "signal without diffusion weighting"),
    "S0_hat": ("that of the data", "signal without diffusion weighting"),
    "outlier_fraction": ("1", "fraction of the measurements that were left out as outliers"),
    "residual_rms": ("that of the data", "root mean square of the residual"),
    "predicted": ("that of the data", "signals of the most probable parameters"),
    "status": ("code", "whether the voxel was fitted and the model explains it"),
}  # fmt: skip
MAP_DESCRIPTIONS = {name: MapDescription(*row) for name, row in _TABLE.items()}
# By name of Status, which takes seconds to import.
STATUS_DESCRIPTIONS = {
    "NOT_FITTED": "outside the mask",
    "CONVERGED": "fitted; the model explains the signals",
    "NOT_CONVERGED": "the residual stayed above the noise level; inspect before use",
    "MISFIT": "the residual exceeds the noise: the model, or the scan, has errors",
    "BAD_SAMPLES": "NaN or infinite samples in the data",
    "NO_SIGNAL": "all samples are zero, or noise alone",
    "NO_B0": "no positive signal without diffusion weighting",
    "PATTERN_NOT_DETERMINED": "maps are valid; many wall patterns explain the signals, and a mesh "
                              "shows one of them",
    "TISSUES_NOT_SEPARATED": "the contrasts do not separate all tissues; the prior "
                             "determines some fractions",
}  # fmt: skip


def map_description(name: str, fit: VoxelFit | None = None) -> MapDescription:
    """Unit and meaning of a map of a fit; for composed models, from the definition."""
    if name in MAP_DESCRIPTIONS:
        return MAP_DESCRIPTIONS[name]
    definition = getattr(getattr(fit, "model", None), "definition", None)
    for parameter in getattr(definition, "parameters", ()):
        if parameter.name == name:
            return MapDescription(parameter.unit, _UNKNOWN.meaning)
    return MapDescription("1", "fraction of the signal") if definition else _UNKNOWN
