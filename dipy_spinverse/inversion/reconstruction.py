"""Results of an inversion."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Permeability fields of V voxels; signals are relative to the S0 of the data.

    Arrays have voxels first, or (n, V, ...) for n further fields, which are transformed to the
    best agreement with the estimate (`walls.patterns`). `amplitudes` (V, K) are the initial
    magnetisation of each echo time, `free_water` is the fraction outside the grid. A solver may
    add `cells` (see `cell_search.smooth`), `maps` (n + 1, V) that are not computed from the faces,
    relative standard deviations `errors` of maps that all fields share, and the estimated
    diffusivity (V,), um^2/ms.
    """

    scaled_transmissibility: np.ndarray
    scaled_transmissibility_fields: np.ndarray
    wall_probability: np.ndarray
    amplitudes: np.ndarray
    free_water: np.ndarray
    free_water_fields: np.ndarray
    sigma: np.ndarray
    predicted: np.ndarray
    converged: np.ndarray
    iterations: np.ndarray
    misfit: np.ndarray
    cells: dict[str, np.ndarray] = field(default_factory=dict)
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    diffusivity: np.ndarray | None = None
