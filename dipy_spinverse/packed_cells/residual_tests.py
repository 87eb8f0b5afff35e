"""Chi-square tests of the residual by shell, timing and direction."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import chi2

from dipy_spinverse.packed_cells.equivalent_pulses import EquivalentPulses, PulsedMeasurements

# Shells of fewer measurements are tested together with the next; chosen by hand.
_MIN_SIZE = 12
# Squared cosines that separate directions along, oblique to and across the axis: thirds.
_ALONG, _ACROSS = 0.67, 0.33
# B-tensors of a larger anisotropy count as linear; chosen by hand.
_LINEAR = 0.5
_DIRECTIONS = ("along the axis", "oblique to the axis", "across the axis")


class ResidualGroups(NamedTuple):
    """Groups of measurements, timings and shells: names (G,) and members (G, M)."""

    names: tuple[str, ...]
    members: np.ndarray


def residual_groups(acquisition: PulsedMeasurements, used: np.ndarray) -> ResidualGroups:
    """Groups of the measurements (M,) that are used."""
    names, members = [], []
    for k, (small, big, _) in enumerate(acquisition.timings):
        timing = f"delta {small:.3g} ms, Delta {big:.3g} ms"
        rows = np.flatnonzero((acquisition.timing_index == k) & used)
        rows = rows[np.argsort(acquisition.b[rows], kind="stable")]
        if len(acquisition.timings) > 1 and len(rows):
            names.append(timing)
            members.append(np.isin(np.arange(len(acquisition)), rows))
        shell = rows[:0]
        for same_b in np.split(rows, np.flatnonzero(np.diff(acquisition.b[rows].round(2))) + 1):
            shell = np.r_[shell, same_b]
            if len(shell) >= _MIN_SIZE:
                low, high = acquisition.b[shell].min(), acquisition.b[shell].max()
                b_range = f"{high:.3g}" if high - low < 0.05 else f"{low:.3g} to {high:.3g}"
                names.append(f"b {b_range} ms/um^2 at {timing}")
                members.append(np.isin(np.arange(len(acquisition)), shell))
                shell = rows[:0]
    if not names:
        names, members = ["all measurements"], [used]
    return ResidualGroups(tuple(names), np.stack(members))


def worst_group(chi_square: np.ndarray, sizes: np.ndarray, freedom_per_measurement: np.ndarray):
    """Reduced chi-square and degrees of freedom (V,) of the least probable group.

    From chi-squares (V, G), sizes (G,), and degrees of freedom per measurement (V,).
    """
    freedom = sizes * freedom_per_measurement[:, None]
    index = chi2.logsf(chi_square, freedom).argmin(axis=1)[:, None]
    chi_square, freedom = (
        np.take_along_axis(values, index, axis=1)[:, 0] for values in (chi_square, freedom)
    )
    return chi_square / freedom, freedom


def gradient_axes(acquisition: PulsedMeasurements) -> np.ndarray:
    """Directions (M, 3) of linear encodings; zeros of planar and spherical ones."""
    if isinstance(acquisition, EquivalentPulses):
        return acquisition.directions * (acquisition.b_anisotropy > _LINEAR)[:, None]
    return acquisition.directions


def chi_square_by_direction(residual: np.ndarray, directions: np.ndarray, axes: np.ndarray):
    """Sums of squares and counts (V, 3), along, oblique to and across axes (V, 3)."""
    square = (axes @ directions.T) ** 2
    weighted = (np.abs(directions).sum(axis=1) > 0) & (np.abs(axes).sum(axis=1) > 0)[:, None]
    ranges = (square > _ALONG, (square <= _ALONG) & (square > _ACROSS), square <= _ACROSS)
    members = np.stack([in_range & weighted for in_range in ranges], axis=1)
    return np.einsum("vgm,vm->vg", members, residual**2), members.sum(axis=2)


def describe_residual(names, chi_square: np.ndarray, freedom: np.ndarray) -> str:
    """Groups (G,) of one voxel whose residual exceeds the noise, the least probable first."""
    names = (*names, *_DIRECTIONS)
    tested = freedom > 0.5
    positive = np.maximum(freedom, 1e-9)
    reduced = chi_square / positive
    p_values = np.where(tested, chi2.sf(chi_square, positive), 1.0) * tested.sum()
    order = np.argsort(np.where(tested, chi2.logsf(chi_square, positive), 0))
    rejected = [k for k in order if p_values[k] < 1e-3]
    if not rejected:
        k = order[0]
        return (
            "The residual is consistent with noise; the largest reduced chi-square is "
            f"{reduced[k]:.2f} ({names[k]})."
        )
    descriptions = [f"{names[k]}: {reduced[k]:.2f}" for k in rejected[:4]]
    return "Reduced chi-square of residuals beyond noise: " + "; ".join(descriptions) + "."
