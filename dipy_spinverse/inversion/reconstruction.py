"""Results of an inversion."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Permeability fields of V voxels; signals are relative to the S0 of the data.

    Attributes
    ----------
    scaled_transmissibility : ndarray (V, F)
        Estimate, 0 wall to 1 no membrane.
    scaled_transmissibility_fields : ndarray (n, V, F)
        Further fields, transformed to the best agreement with the estimate (`walls.patterns`).
    wall_probability : ndarray (V, F)
    amplitudes : ndarray (V, K)
        Initial magnetisation for each echo time.
    free_water, free_water_fields : ndarray (V,), (n, V)
        Fraction of free water outside the grid.
    sigma : ndarray (V,)
        Standard deviation of the noise, known or estimated.
    predicted : ndarray (V, M)
    converged : ndarray (V,) of bool
    iterations, misfit : ndarray (V, S)
        Number of iterations, and final mean squared residual relative to the noise variance, of
        each stage.
    cells : dict of ndarray (V, ...)
        Smooth cells, if these were estimated; see `cell_search.smooth`.
    maps : dict of ndarray (n + 1, V)
        Maps that are not computed from the faces of the grid, the estimate first.
    errors : dict of float
        Relative standard deviations of errors of maps that all fields share.
    diffusivity : ndarray (V,), optional
        Of the water, um^2/ms, if it was estimated.
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
