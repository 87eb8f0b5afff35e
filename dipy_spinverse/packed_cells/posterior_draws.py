"""What is found of the tissue of voxels: draws from their posteriors, and the best fits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipy_spinverse.voxels.statistics import of_axes


@dataclass(frozen=True, eq=False)
class PackedCellsPosterior:
    """Equally weighted draws from the posteriors of V voxels, and the best fits.

    Attributes
    ----------
    parameters : dict of ndarray (n, V)
        Draws of ``maps.PARAMETERS``; 0 where the class of a draw lacks one.
    maps : dict of ndarray (n, V), orientations (n, V, 3)
        Draws of "surface_to_volume" (1/um), "restricted_fraction", "wall_permeability" (um/ms,
        mean over the area), "exchange_time" (ms), "pore_diameter" (um, 4 V / S as in
        ``wall_maps``: 2 R of cylinders, 4 R / 3 of spheres), "body_diameter" (um, 2 R, mean
        over the volume), "wall_orientation" (z >= 0; 0 for spheres), "wall_anisotropy" (as in
        ``wall_maps``), "orientation_dispersion" (0.0005 to 0.95, spheres 1),
        "free_water_fraction", "dot_fraction", "hindered_fraction", "diffusivity_inside" and
        "diffusivity_outside" (um^2/ms).
    best : dict of ndarray (V, ...)
        The same maps at the likeliest place.
    best_parameters : dict of ndarray (V,)
    best_class : ndarray (V,) of int
        Place in `classes`.
    frames : ndarray (V, 3, 3)
        Of the likeliest place; the axis is the last row.
    predicted : ndarray (V, M)
        Expected measurements at the best parameters, with the noise floor.
    amplitudes : ndarray (V, K)
        Signal at b = 0 of each label.
    odd : ndarray (V, T * 6)
        What opposite directions differ by; see ``nuisance.odd_factors``.
    fleeting : ndarray (V, T)
        Over the amplitude, by timing; see ``nuisance.fleeting_signals``.
    floor : ndarray (V,)
        Share of the signal that the scanner adds to the noise.
    chi_square : ndarray (V,)
        Of the best parameters.
    degrees_of_freedom : ndarray (V,)
        Measurements less parameters of the best class and amplitudes.
    group_squares : ndarray (V, G)
        Sums of squares of `groups` of measurements, then along, oblique to and across the axis.
    group_freedom : ndarray (V, G)
        Of each, that the fit left.
    worst_excess, worst_freedom : ndarray (V,)
        Of the shell or timing that chance explains least.
    sigma : ndarray (V,)
        Noise given or estimated.
    class_probabilities : dict of ndarray (V,)
        Of each class; a priori equally likely.
    """

    parameters: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]
    best: dict[str, np.ndarray]
    best_parameters: dict[str, np.ndarray]
    best_class: np.ndarray
    frames: np.ndarray
    predicted: np.ndarray
    amplitudes: np.ndarray
    odd: np.ndarray
    fleeting: np.ndarray
    floor: np.ndarray
    chi_square: np.ndarray
    degrees_of_freedom: np.ndarray
    group_squares: np.ndarray
    group_freedom: np.ndarray
    worst_excess: np.ndarray
    worst_freedom: np.ndarray
    sigma: np.ndarray
    class_probabilities: dict[str, np.ndarray]

    def mean(self, name: str) -> np.ndarray:
        """Posterior means (V,) of a map; of orientations the dominant axis (V, 3)."""
        values = self.maps[name]
        if values.ndim == 2:
            return values.mean(axis=0)
        return of_axes(values)[0]

    def interval(self, name: str, level: float = 0.95) -> np.ndarray:
        """Central intervals (2, V) of a scalar map."""
        tail = (1 - level) / 2
        return np.quantile(self.maps[name], [tail, 1 - tail], axis=0)
