"""What a fit leaves, by shell, timing and direction: judged by the worst, and said in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from dipy_spinverse.packed_cells.equivalent_pulses import EquivalentPulses, PulsedMeasurements

# Shells of fewer measurements are judged together with the next.
_LEAST_SIZE = 12
# Squared cosines that part directions along the axis, oblique ones and those across.
_ALONG, _ACROSS = 0.67, 0.33
# Of the shape of b-tensors, above which they count as linear.
_LINEAR = 0.5
_DIRECTIONS = ("along the axis", "oblique to the axis", "across the axis")


@dataclass(frozen=True, eq=False)
class ResidualGroups:
    """Groups of measurements: shells, timings, and all that are used.

    Attributes
    ----------
    names : tuple of str (G,)
    members : ndarray (G, M) of bool
    """

    names: tuple[str, ...]
    members: np.ndarray

    def squares(self, white: np.ndarray) -> np.ndarray:
        """Sums (V, G) of squared whitened residuals (V, M)."""
        return white**2 @ self.members.T

    @property
    def sizes(self) -> np.ndarray:
        """Measurements (G,) of each group."""
        return self.members.sum(axis=1)


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
        b = acquisition.b[rows].round(2)
        shell: list[np.integer] = []
        for row, last in zip(rows, np.r_[b[1:] != b[:-1], True], strict=True):
            shell.append(row)
            if last and len(shell) >= _LEAST_SIZE:
                low, high = acquisition.b[shell].min(), acquisition.b[shell].max()
                span = f"{high:.3g}" if high - low < 0.05 else f"{low:.3g} to {high:.3g}"
                names.append(f"b {span} ms/um^2 at {timing}")
                members.append(np.isin(np.arange(len(acquisition)), shell))
                shell = []
    if not names:
        names, members = ["all measurements"], [used]
    return ResidualGroups(tuple(names), np.stack(members))


def worst_group(squares: np.ndarray, sizes: np.ndarray, share_left: np.ndarray):
    """The group (V,) whose squares (V, G) chance exceeds least often, its excess and freedom.

    Parameters
    ----------
    squares : ndarray (V, G)
    sizes : ndarray (G,)
    share_left : ndarray (V,)
        Degrees of freedom over measurements.
    """
    freedom = sizes * share_left[:, None]
    worst = chi2.logsf(squares, freedom).argmin(axis=1)
    row = np.arange(len(squares))
    return worst, squares[row, worst] / freedom[row, worst], freedom[row, worst]


def gradient_axes(acquisition: PulsedMeasurements) -> np.ndarray:
    """Directions (M, 3) of gradients along one; zeros of planar and spherical b-tensors."""
    if isinstance(acquisition, EquivalentPulses):
        return acquisition.directions * (acquisition.b_anisotropy > _LINEAR)[:, None]
    return acquisition.directions


def chi_square_by_direction(white: np.ndarray, directions: np.ndarray, axes: np.ndarray):
    """Sums (V, 3) of squares, and numbers (V, 3), along, oblique to and across axes (V, 3)."""
    square = (axes @ directions.T) ** 2
    weighted = (np.abs(directions).sum(axis=1) > 0) & (np.abs(axes).sum(axis=1) > 0)[:, None]
    parts = (square > _ALONG, (square <= _ALONG) & (square > _ACROSS), square <= _ACROSS)
    members = np.stack([part & weighted for part in parts], axis=1)
    return np.einsum("vgm,vm->vg", members, white**2), members.sum(axis=2)


def describe_residuals(names, squares: np.ndarray, freedom: np.ndarray) -> str:
    """Which groups of one voxel are left unexplained, the worst first."""
    names = (*names, *_DIRECTIONS)
    told = freedom > 0.5
    excess = squares / np.maximum(freedom, 1e-9)
    chance = np.where(told, chi2.sf(squares, np.maximum(freedom, 1e-9)), 1.0) * told.sum()
    worst = np.argsort(np.where(told, chi2.logsf(squares, np.maximum(freedom, 1e-9)), 0))
    unexplained = [k for k in worst if chance[k] < 1e-3]
    if not unexplained:
        k = worst[0]
        return (
            f"Nothing is left beyond the noise; most at {names[k]} "
            f"({excess[k]:.2f} times its variance)."
        )
    parts = [f"{names[k]}: {excess[k]:.2f}" for k in unexplained[:4]]
    return "Left beyond the noise (times its variance), worst first: " + "; ".join(parts) + "."
