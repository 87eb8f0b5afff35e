"""Maps of walls from the parameters of packed cells."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.packed_cells.tissue_classes import TissueClass, physical
from dipy_spinverse.packed_cells.tissue_model import watson_coefficients
from dipy_spinverse.walls.maps import LONGEST_EXCHANGE_TIME_MS

PARAMETERS = (
    "radius", "fraction", "permeability", "dispersion",
    "sphere_radius", "sphere_fraction", "sphere_permeability", "sphere_share", "free_water",
)  # fmt: skip


def tissue_parameters(tissue: TissueClass, z: np.ndarray) -> dict[str, np.ndarray]:
    """All of `PARAMETERS` (N,), with those that the class lacks at 0 (spheres: share 1)."""
    values = {name: np.zeros(len(z)) for name in PARAMETERS}
    values.update(physical(tissue, z))
    if tissue.name == "spheres":
        values["sphere_share"] = np.ones(len(z))
        values["dispersion"] = np.ones(len(z))
    return values


def tissue_maps(parameters: dict[str, np.ndarray], axes: np.ndarray) -> dict[str, np.ndarray]:
    """Maps (...,) of parameters (...,) and axes (..., 3).

    Surface, fraction and exchange are per total volume, free water included; surface is the
    membranes', 2 f / R of cylinders and 3 f / R of spheres.
    """
    tissue = 1 - parameters["free_water"]
    share = parameters["sphere_share"]
    cylinders = tissue * (1 - share) * parameters["fraction"]
    spheres = tissue * share * parameters["sphere_fraction"]
    surface_c = 2 * cylinders / np.maximum(parameters["radius"], 1e-9)
    surface_s = 3 * spheres / np.maximum(parameters["sphere_radius"], 1e-9)
    surface = surface_c + surface_s
    restricted = cylinders + spheres
    exchange = surface_c * parameters["permeability"]
    exchange = exchange + surface_s * parameters["sphere_permeability"]
    diameter = cylinders * parameters["radius"] + spheres * parameters["sphere_radius"]
    little = 1e-12
    # P_2 of the axes: of normals across an axis with mean square cosine m, 2 (l_2 - l_3) of
    # wall_maps is (3 m - 1) / 2.
    dispersion = np.asarray(parameters["dispersion"])
    aligned = watson_coefficients(dispersion.ravel())[0][:, 1].reshape(dispersion.shape)
    return {
        "surface_to_volume": surface,
        "restricted_fraction": restricted,
        "wall_permeability": exchange / np.maximum(surface, little),
        "exchange_time": np.minimum(
            restricted / np.maximum(exchange, little), LONGEST_EXCHANGE_TIME_MS
        ),
        "pore_diameter": 4 * restricted / np.maximum(surface, little),
        "body_diameter": 2 * diameter / np.maximum(restricted, little),
        "wall_orientation": axes * np.where(axes[..., 2:] < 0, -1, 1),
        "wall_anisotropy": aligned * surface_c / np.maximum(surface, little),
        "orientation_dispersion": parameters["dispersion"],
        "free_water_fraction": parameters["free_water"],
    }
