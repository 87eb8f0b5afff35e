"""Maps of tissue from the parameters of packed cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dipy_spinverse.packed_cells.tissue_classes import (
    TissueClass,
    dispersion_of,
    parameter_values_and_slopes,
)
from dipy_spinverse.units import MM2_PER_S
from dipy_spinverse.walls.maps import LONGEST_EXCHANGE_TIME_MS

# ln of the ratio of the mean permeability to that of equal cells with the same signals, over the
# variance of ln between the cells of a voxel: about 0.12 where it is log-normal, 0.3 where half of
# them are 10 to 30 times as permeable as the others (benchmarks/notes/tissue.md).
_BIAS_PER_VARIANCE = 0.2
_TINY = 1e-12

PARAMETERS = (
    "radius", "fraction", "permeability", "dispersion_1", "dispersion_2", "half_angle",
    "crossing_share", "sphere_radius", "sphere_fraction", "sphere_permeability", "sphere_share",
    "free_water", "relaxation", "dot", "hindered", "hindered_1", "hindered_2", "hindered_along",
    "diffusivity_outside", "diffusivity_inside", "log_free_ratio",
)  # fmt: skip


def tissue_parameters(
    tissue: TissueClass, z: np.ndarray, diffusivity: tuple[float, float] | None
) -> dict[str, np.ndarray]:
    """All `PARAMETERS` (N,) in their units, 0 where the class lacks one (spheres: share 1)."""
    values = {name: np.zeros(len(z)) for name in PARAMETERS}
    values |= {n: value for n, (value, _) in parameter_values_and_slopes(tissue, z).items()}
    if diffusivity is not None:
        for name, value in zip(("inside", "outside"), diffusivity, strict=True):
            values[f"diffusivity_{name}"] = np.full(len(z), value)
    if tissue.name == "no cells":
        values["diffusivity_inside"] = values["diffusivity_outside"]
    if tissue.name == "spheres":
        values["sphere_share"] = np.ones(len(z))
    if tissue.name == "mixture":
        values["sphere_permeability"] = values["permeability"]
    if tissue.name == "crossing":
        values["dispersion_2"] = values["dispersion_1"]
    return values


def tissue_maps(parameters: dict[str, np.ndarray], frames: np.ndarray) -> dict[str, np.ndarray]:
    """Maps (...,) of parameters (...,) and frames (..., 3, 3).

    Membrane area, fractions and exchange refer to the total volume; the area is 2 f / R of
    cylinders and 3 f / R of spheres.
    """
    free, dot = parameters["free_water"], parameters["dot"]
    tissue = (1 - free) * (1 - dot)
    cells = tissue * (1 - parameters["hindered"])
    share = parameters["sphere_share"]
    cylinders = cells * (1 - share) * parameters["fraction"]
    spheres = cells * share * parameters["sphere_fraction"]
    surface_c = 2 * cylinders / np.maximum(parameters["radius"], 1e-9)
    surface_s = 3 * spheres / np.maximum(parameters["sphere_radius"], 1e-9)
    surface = surface_c + surface_s
    restricted = cylinders + spheres
    exchange = surface_c * parameters["permeability"]
    exchange = exchange + surface_s * parameters["sphere_permeability"]
    diameter = cylinders * parameters["radius"] + spheres * parameters["sphere_radius"]
    dispersion = (parameters["dispersion_1"] + parameters["dispersion_2"]) / 2
    has_axis = cylinders > 0
    axis, aligned = _main_axis(parameters, frames)
    axis = np.where(has_axis[..., None], axis, 0.0)
    return {
        "surface_to_volume": surface,
        "restricted_fraction": restricted,
        "wall_permeability": exchange / np.maximum(surface, _TINY),
        "exchange_time": np.minimum(
            restricted / np.maximum(exchange, _TINY), LONGEST_EXCHANGE_TIME_MS
        ),
        "pore_diameter": 4 * restricted / np.maximum(surface, _TINY),
        "body_diameter": 2 * diameter / np.maximum(restricted, _TINY),
        "wall_orientation": axis * np.where(axis[..., 2:] < 0, -1, 1),
        # 2 (l_2 - l_3) of wall_maps is P_2 of the axes, whose walls are normal to their normals.
        "wall_anisotropy": aligned
        * np.exp(-6 * dispersion)
        * surface_c
        / np.maximum(surface, _TINY),
        "orientation_dispersion": np.where(has_axis, dispersion_of(dispersion), 1.0),
        "free_water_fraction": free,
        "dot_fraction": (1 - free) * dot,
        "hindered_fraction": tissue * parameters["hindered"],
        "diffusivity_inside": parameters["diffusivity_inside"] / MM2_PER_S,
        "diffusivity_outside": parameters["diffusivity_outside"] / MM2_PER_S,
    }


def with_unequal_membranes(
    maps: dict[str, np.ndarray], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Samples (n, V) of maps, with an unknown spread of permeability between a voxel's cells.

    Its logarithm has a standard normal prior and is not identifiable.
    """
    n_samples = len(maps["wall_permeability"])
    # The same for all voxels, so that a voxel's samples do not depend on the others.
    factor = np.exp(_BIAS_PER_VARIANCE * rng.standard_normal((n_samples, 1)) ** 2)
    return maps | {
        "wall_permeability": maps["wall_permeability"] * factor,
        "exchange_time": maps["exchange_time"] / factor,
    }


def prior_maps(
    tissues: Sequence[TissueClass], diffusivity: tuple[float, float] | None, n: int
) -> dict[str, np.ndarray]:
    """Samples of maps from the prior, n of each class that has cells, or of all without cells."""
    rng, samples = np.random.default_rng(0), []
    for tissue in [t for t in tissues if t.shapes] or tissues:
        parameters = tissue_parameters(
            tissue, rng.standard_normal((n, tissue.n_parameters)), diffusivity
        )
        parameters = {name: value[:, None] for name, value in parameters.items()}
        maps = tissue_maps(parameters, np.broadcast_to(np.eye(3), (n, 1, 3, 3)))
        samples.append(with_unequal_membranes(maps, rng))
    return {name: np.concatenate([maps[name][:, 0] for maps in samples]) for name in samples[0]}


def _main_axis(parameters, frames):
    """Axis (..., 3) of the larger population, and P_2 (...) of both without dispersion."""
    angle, share = parameters["half_angle"], parameters["crossing_share"]
    side = np.where(share > 0.5, -1, 1) * np.sin(angle)
    axis = np.cos(angle)[..., None] * frames[..., 2, :] + side[..., None] * frames[..., 0, :]
    # Largest eigenvalue of the mean outer product of the axes.
    overlap = np.cos(2 * angle) ** 2
    largest = 0.5 + 0.5 * np.sqrt(1 - 4 * share * (1 - share) * (1 - overlap))
    return axis, (3 * largest - 1) / 2
