"""What an inversion finds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Wall fields of V voxels, in units of the initial magnetisation that the data came in.

    Attributes
    ----------
    scaled_transmissibility : ndarray (V, F)
        Estimate, 0 wall to 1 no membrane.
    scaled_transmissibility_fields : ndarray (n, V, F)
        Other fields, moved to where they agree most with the estimate (see `walls.patterns`).
    wall_probability : ndarray (V, F)
    amplitudes : ndarray (V, K)
        Initial magnetisation for each echo time.
    free_water, free_water_fields : ndarray (V,), (n, V)
        Fraction of free water outside the grid.
    sigma : ndarray (V,)
        Standard deviation of the noise, given or estimated.
    predicted : ndarray (V, M)
    converged : ndarray (V,) of bool
    iterations, misfit : ndarray (V, S)
        Of each of the stages: number of iterations, and mean squared residual over the noise
        that the stage went by.
    cells : dict of ndarray (V, ...)
        Smooth cells, where these were sought; see `cell_search.smooth`.
    maps : dict of ndarray (n + 1, V)
        Maps of the estimate and the other fields that do not come from the faces of the grid.
    errors : dict of float
        Relative standard deviations of maps, of errors that all fields share.
    diffusivity : ndarray (V,), optional
        Of the water, um^2/ms, where it was found.
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
