"""Checks of the arguments of the posterior of packed cells."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.packed_cells.emulator import RANGES
from dipy_spinverse.packed_cells.equivalent_pulses import PulsedMeasurements
from dipy_spinverse.packed_cells.radius_distribution import LARGEST_SPREAD
from dipy_spinverse.packed_cells.tissue_classes import ALIGNED, CLASSES


def checked_input(
    acquisition: PulsedMeasurements, data, sigma, free_diffusivity, typical_radius, radius_spread,
    n_draws, classes, least_b,
) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
    """Data (V, M) and noise (V,) or None, as floats."""
    data = np.ascontiguousarray(data, dtype=float)
    if data.ndim != 2 or data.shape[1] != len(acquisition) or len(data) == 0:
        raise ValueError(
            f"data has shape {data.shape}; the acquisition has {len(acquisition)} measurements, "
            f"so give (V, {len(acquisition)}) for V voxels (data[None] for one)."
        )
    if not np.isfinite(data).all() or (np.abs(data).max(axis=1) == 0).any():
        raise ValueError(
            "data has voxels that are 0 throughout or values that are not finite; leave such "
            "voxels out."
        )
    if acquisition.b0_mask.all():
        raise ValueError(
            f"acquisition has {len(acquisition)} measurements, none with diffusion weighting; "
            "give some above its b0_threshold."
        )
    if sigma is not None:
        sigma = np.asarray(sigma, dtype=float)
        if sigma.ndim > 1 or sigma.size not in (1, len(data)):
            raise ValueError(
                f"sigma has shape {sigma.shape} for {len(data)} voxels; give one number or one "
                "per voxel."
            )
        sigma = np.broadcast_to(sigma.ravel(), len(data)).copy()
        if not (np.isfinite(sigma) & (sigma > 0)).all():
            raise ValueError(
                f"sigma is between {sigma.min():g} and {sigma.max():g}; give positive numbers in "
                "the unit of the data, or None."
            )
    if np.ndim(free_diffusivity) or not 0 < free_diffusivity < np.inf:
        raise ValueError(
            f"free_diffusivity is {free_diffusivity!r}; give a positive number in um^2/ms."
        )
    low, high = RANGES["radius"]
    if np.ndim(typical_radius) or not low <= typical_radius <= high:
        raise ValueError(
            f"typical_radius is {typical_radius!r}; give the radius of typical cells in um, from "
            f"{low:g} to {high:g}."
        )
    if np.ndim(radius_spread) or not 0 <= radius_spread <= LARGEST_SPREAD:
        raise ValueError(
            f"radius_spread is {radius_spread!r}; give the standard deviation of the radii of "
            f"cells over their mean, from 0 to {LARGEST_SPREAD:g}."
        )
    if not 0 <= least_b <= acquisition.b.max():
        raise ValueError(
            f"least_b is {least_b!r}; give a number from 0 to the largest b, "
            f"{acquisition.b.max():.4g} ms/um^2."
        )
    if int(n_draws) != n_draws or n_draws < 0:
        raise ValueError(f"n_draws is {n_draws!r}; give a whole number of at least 0.")
    if not classes or not set(classes) <= {*CLASSES, ALIGNED}:
        available = ", ".join((*CLASSES, ALIGNED))
        raise ValueError(f"classes is {classes!r}; give some of {available}.")
    return data, sigma


def checked_diffusivity(diffusivity) -> tuple[float, float] | None:
    """(inside, outside) of one number, two, or None."""
    if diffusivity is None:
        return None
    values = np.atleast_1d(np.asarray(diffusivity, dtype=float))
    if values.shape not in ((1,), (2,)) or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(
            f"diffusivity is {diffusivity!r}; give a positive number in um^2/ms, one for inside "
            "and one for outside, or None where it is unknown."
        )
    return float(values[0]), float(values[-1])
