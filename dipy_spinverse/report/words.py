"""Maps and status in words: their units, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dipy_spinverse.voxels.fit import VoxelFit


@dataclass(frozen=True)
class MapWords:
    """What a map is.

    Attributes
    ----------
    unit : str
        "1" where there is none.
    means : str
        Half a sentence.
    """

    unit: str
    means: str


_UNKNOWN = MapWords("", "parameter of the model")
OF_MAPS = {
    "surface_to_volume": MapWords("1/um", "area of the walls per volume"),
    "wall_permeability": MapWords("um/ms", "mean permeability of the walls; 1 um/ms is 1e-3 m/s"),
    "exchange_time": MapWords("ms", "how long water stays between walls before it passes one"),
    "restricted_fraction": MapWords("1", "share of the water that walls enclose"),
    "pore_diameter": MapWords("um", "mean chord of the enclosed space"),
    "wall_anisotropy": MapWords("1", "how strictly walls run along one axis"),
    "orientation_dispersion": MapWords("1", "how much the axes of cylinders spread"),
    "free_water_fraction": MapWords("1", "share of the water that nothing hinders"),
    "dot_fraction": MapWords("1", "share of the water that does not move"),
    "hindered_fraction": MapWords("1", "share of the water that moves around cells"),
    "diffusivity_inside": MapWords("um^2/ms", "diffusivity of the water within cells"),
    "diffusivity_outside": MapWords("um^2/ms", "diffusivity of the water between cells"),
    "wall_orientation": MapWords("1", "axis of the walls, a unit vector in the b-vectors' frame"),
    "wall_orientation_angle": MapWords("degrees", "angle to that axis that 95 % of draws keep to"),
    "packed_cells": MapWords("1", "whether the maps are those of packed cells"),
    "pattern_agreement": MapWords("1", "how well wall fields agree; below 0.8, a mesh is one of "
                                       "many"),
    "systematic_floor": MapWords("1", "share of each signal that the scanner seems to add"),
    "ndi": MapWords("1", "neurite density: share of sticks in tissue"),
    "odi": MapWords("1", "orientation dispersion; 0 is parallel, 1 is all directions alike"),
    "fanning": MapWords("1", "how much fibres fan out in one plane"),
    "fwf": MapWords("1", "share of free water"),
    "axon_diameter": MapWords("um", "diameter of the cylinders"),
    "parallel_diffusivity": MapWords("mm^2/s", "diffusivity along the fibres"),
    "perpendicular_diffusivity": MapWords("mm^2/s", "diffusivity across them, around cylinders"),
    "perfusion_fraction": MapWords("1", "share of blood that flows in small vessels"),
    "D": MapWords("mm^2/s", "diffusivity of tissue water"),
    "D_star": MapWords("mm^2/s", "apparent diffusivity of flowing blood"),
    "axis": MapWords("1", "axis of the fibres, a unit vector in the b-vectors' frame"),
    "volume": MapWords("um^3", "volume of the cell"),
    "surface": MapWords("um^2", "surface of the cell"),
    "length": MapWords("um", "length of the cell along its centre line"),
    "mean_radius": MapWords("um", "radius of a cylinder of the same length and volume"),
    "tortuosity": MapWords("1", "length over the distance of the ends"),
    "at_bounds": MapWords("1", "whether the shape is at the end of what its space holds"),
    "birge_ratio": MapWords("1", "factor by which intervals are wider as the shape is rejected"),
    "csf": MapWords("1", "share of cerebrospinal fluid"),
    "gm": MapWords("1", "share of grey matter"),
    "wm": MapWords("1", "share of white matter"),
    "background": MapWords("1", "share that gives no signal"),
    "b1": MapWords("1", "transmit field over the nominal one"),
    "S0": MapWords("that of the data", "signal without diffusion weighting"),
    "S0_hat": MapWords("that of the data", "signal without diffusion weighting"),
    "residual_rms": MapWords("that of the data", "root mean square of what the fit leaves"),
    "predicted": MapWords("that of the data", "signals of the likeliest parameters"),
    "status": MapWords("code", "what came of the voxel"),
}  # fmt: skip
# By name of Status, which takes seconds to import.
OF_STATUS = {
    "NOT_FITTED": "outside the mask",
    "CONVERGED": "fitted; the model explains the signals",
    "NOT_CONVERGED": "the search ended above the noise level; look before you use it",
    "MISFIT": "the model does not explain the signals; do not trust maps or intervals here",
    "BAD_SAMPLES": "NaN or infinite samples in the data",
    "NO_SIGNAL": "all samples are zero",
    "NO_B0": "no positive signal without diffusion weighting",
    "PATTERN_NOT_DETERMINED": "maps hold; many wall patterns explain the signals, and a mesh "
                                   "shows one of them",
    "TISSUES_NOT_SEPARATED": "the contrasts do not separate the tissues here",
}  # fmt: skip
# With these, maps mean what they say.
TRUSTED = ("CONVERGED", "PATTERN_NOT_DETERMINED")


def words_of(name: str, fit: VoxelFit | None = None) -> MapWords:
    """What a map of a fit is; of a composed model, as far as its definition tells."""
    if name in OF_MAPS:
        return OF_MAPS[name]
    definition = getattr(getattr(fit, "model", None), "definition", None)
    for parameter in getattr(definition, "parameters", ()):
        if parameter.name == name:
            return MapWords(parameter.unit, _UNKNOWN.means)
    return MapWords("1", "share of the signal") if definition else _UNKNOWN
