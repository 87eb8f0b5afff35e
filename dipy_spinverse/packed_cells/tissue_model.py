"""Signals of tissue made of packed cylinders, packed spheres and free water.

    S = w_0 exp(-b D_free) + (1 - w_0) [ (1 - w_s) S_cylinders + w_s S_spheres ]

S_cylinders is the signal of the packing, free along its axis, averaged over a Watson distribution
of axes [1]_ in Legendre polynomials of the cosine between gradient and mean axis.

References
----------
.. [1] Zhang et al., NeuroImage 61 (2012), https://doi.org/10.1016/j.neuroimage.2012.03.072
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.polynomial import chebyshev, legendre

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.packed_cells.spline_kernels import (
    directional_slope,
    directional_sum,
    tensor_spline,
)
from dipy_spinverse.packed_cells.tables.signal_table import SignalTable
from dipy_spinverse.packed_cells.tables.two_pools import Pulses, two_pool_signal

# Even degrees 0 to 20: exp(-10 cos^2), an axis at b = 5 ms/um^2, is then right to 1e-4.
_N_LEGENDRE = 11
# Gauss-Legendre nodes: between gradient and axis, and across Watson distributions.
_N_COSINES = 14
_N_WATSON_NODES = 48
# q within a thousandth belong to one shell: an error of S below 0.1 %.
_Q_DECIMALS = 3
# How far tissue is from the table, beyond the errors that the table knows of: its packings hold 2
# to 4 bodies, and its lattice closes narrow gaps. Standard deviations of the logarithms of radius,
# fraction, permeability and diffusivity between bodies, at a fraction of 0.4, and the slopes of
# their logarithms over the fraction: the likeliest ones for independent Monte Carlo signals of 40
# random packings of 100 bodies at their true parameters.
_SPREAD = {"cylinder": (0.008, 0.020, 0.15, 0.011), "sphere": (0.06, 0.05, 0.15, 0.04)}
_SPREAD_GROWTH = {"cylinder": (8.6, 4.3, 3.3, 8.1), "sphere": (0.0, 0.0, 0.0, 0.0)}
# Of the logarithm of the diffusivity between bodies, for differences.
_LOG_STEP = 0.01
# Orientation dispersion index: within 2 degrees, to almost isotropic.
LEAST_DISPERSION = 0.0005
LARGEST_DISPERSION = 0.95


def _even_legendre(x):
    """P_0, P_2 ... (K, n) at x (n,)."""
    return legendre.legvander(x, 2 * _N_LEGENDRE - 2)[:, ::2].T


def _chebyshev_of_legendre():
    """Coefficients (K, K) of even Legendre polynomials in T_k(2 x^2 - 1)."""
    t = np.cos(np.pi * (np.arange(_N_LEGENDRE) + 0.5) / _N_LEGENDRE)
    values = _even_legendre(np.sqrt((t + 1) / 2))
    return np.linalg.solve(chebyshev.chebvander(t, _N_LEGENDRE - 1), values.T).T


def _half_range_nodes(n):
    x, weights = legendre.leggauss(n)
    return (x + 1) / 2, weights / 2


@dataclass(frozen=True, eq=False)
class TissueModel:
    """Signals of one acquisition, relative to b = 0, as functions of tissue parameters.

    Attributes
    ----------
    directions : ndarray (M, 3)
    shells : ndarray (M,) of int
        Shell of each measurement: one timing and one q.
    tables : dict of SignalTable
        Keys "cylinder", "sphere".
    q_weights : dict of ndarray
        From a table's columns to shells: (T * 8, S) for spheres, (T * 8, S * 14) across
        cylinders at 14 cosines.
    axial : ndarray (S * 14,)
        Logarithm of the free decay along cylinders at the same places.
    free : ndarray (M,)
        Signal of free water.
    shell_timing, shell_q : ndarray (S,)
        Timing (of the tables) and q in rad/um of each shell.
    diffusivity : float
        Of tissue, um^2/ms.
    """

    directions: np.ndarray
    shells: np.ndarray
    tables: dict[str, SignalTable]
    q_weights: dict[str, np.ndarray]
    axial: np.ndarray
    free: np.ndarray
    shell_timing: np.ndarray
    shell_q: np.ndarray
    diffusivity: float
    _to_chebyshev: np.ndarray = field(default_factory=_chebyshev_of_legendre)

    def log_signals(self, shape: str, coordinates: np.ndarray, slopes: bool = False) -> np.ndarray:
        """log S (C, N, T * 8) of a table at coordinates (N, 3), and its three derivatives."""
        table = self.tables[shape]
        last = np.array(table.coefficients.shape[:3]) - 3
        per_unit = last / (table.upper - table.lower)
        positions = (coordinates - table.lower) * per_unit
        values = tensor_spline(table.coefficients, np.clip(positions, 0, last), slopes)
        if slopes:
            values[1:] *= per_unit[:, None, None]
        return values

    def spheres(self, coordinates: np.ndarray, slopes: bool = False):
        """Signals (N, M) of packed spheres; with `slopes` also derivatives (N, M, 3)."""
        values = self.log_signals("sphere", coordinates, slopes) @ self.q_weights["sphere"]
        signals = np.exp(values[0])
        expanded = signals[:, self.shells]
        if not slopes:
            return expanded
        derivatives = (signals * values[1:])[..., self.shells]
        return expanded, np.moveaxis(derivatives, 0, -1)

    def cylinders(
        self,
        coordinates: np.ndarray,
        axes: np.ndarray,
        dispersion: np.ndarray,
        slopes: bool = False,
    ):
        """Signals (N, M) of packed cylinders.

        Parameters
        ----------
        coordinates : ndarray (N, 3)
            log radius, fraction, log(kappa + 0.0003).
        axes : ndarray (N, 3)
            Unit vectors.
        dispersion : ndarray (N,)
            Orientation dispersion index 2/pi arctan(1/kappa_Watson), or 0 for parallel ones.
        slopes : bool, optional
            Also return derivatives (N, M, 7) by coordinates, dispersion and axis.
        """
        values = self.log_signals("cylinder", coordinates, slopes) @ self.q_weights["cylinder"]
        values[0] += self.axial
        values[0] = np.exp(values[0])
        values[1:] *= values[0]
        n_sets, n_points = values.shape[:2]
        x, weights = _half_range_nodes(_N_COSINES)
        degrees = 4 * np.arange(_N_LEGENDRE) + 1
        project = (_even_legendre(x) * weights).T * degrees
        coefficients = values.reshape(n_sets, n_points, -1, _N_COSINES) @ project
        spread, spread_slope = watson_coefficients(dispersion, slopes)
        cosines = axes @ self.directions.T
        scaled = coefficients * spread[:, None]
        if slopes:
            by_dispersion = coefficients[:1] * spread_slope[:, None]
            scaled = np.concatenate([scaled, by_dispersion])
        scaled = scaled @ self._to_chebyshev
        sums = directional_sum(scaled, cosines, self.shells)
        if not slopes:
            return sums[0]
        along = directional_slope(scaled[0], cosines, self.shells)
        by_axis = along[..., None] * self.directions
        return sums[0], np.concatenate([np.moveaxis(sums[1:], 0, -1), by_axis], axis=-1)

    def error_modes(
        self, shape: str, parameters: np.ndarray, axis: np.ndarray | None
    ) -> np.ndarray:
        """Errors (K, M) of signals: one standard deviation each of the table's and of packings.

        Parameters
        ----------
        shape : {"cylinder", "sphere"}
        parameters : ndarray (3,)
            Radius in um, volume fraction, permeability in um/ms.
        axis : ndarray (3,) or None
            Of cylinders.
        """
        table = self.tables[shape]
        cosine = np.abs(self.directions @ axis) if shape == "cylinder" else 0.0
        # Errors of S, not of log S: the decay along the axis is free of them.
        timing, q = self.shell_timing[self.shells], self.shell_q[self.shells]
        across = q * np.sqrt(np.maximum(1 - cosine**2, 0))
        small, big = table.timings[timing].T
        along = np.exp(-self.diffusivity * (big - small / 3) * (q * cosine) ** 2)
        weights = table.q_interpolation(timing, across).T
        pulses = Pulses(across, small, big)
        either = [
            two_pool_signal(shape, parameters[None], pulses, self.diffusivity, factor)
            for factor in np.exp([_LOG_STEP, -_LOG_STEP])
        ]
        by_outside = (either[0] - either[1]) / (2 * _LOG_STEP)
        outside = packing_spread(shape, parameters[1])[3] * by_outside
        return np.concatenate([table.errors(parameters[1]) @ weights, outside]) * along


def packing_spread(shape: str, fraction: np.ndarray) -> np.ndarray:
    """Standard deviations (4, ...) between tissue and table, of logarithms.

    Of radius, fraction, permeability and diffusivity between the bodies, at fractions (...,).
    """
    growth = np.multiply.outer(_SPREAD_GROWTH[shape], np.asarray(fraction) - 0.4)
    return (np.array(_SPREAD[shape]) * np.exp(growth).T).T


def watson_coefficients(dispersion: np.ndarray, slopes: bool = False):
    """Means (N, K) of P_0, P_2 ... over Watson distributions, and their derivatives.

    Parameters
    ----------
    dispersion : ndarray (N,)
        Orientation dispersion index, 0 (parallel) to 1 (isotropic).
    """
    x, weights = _half_range_nodes(_N_WATSON_NODES)
    # x = 1 - s (1 - u^2): nodes close to the axis where the distribution is narrow.
    odi = np.clip(dispersion, LEAST_DISPERSION / 2, 1)[:, None]
    concentration = 1 / np.tan(np.pi / 2 * odi)
    reach = np.minimum(1, 12 / np.maximum(concentration, 1e-9))
    cosine = 1 - reach * x
    density = np.exp(concentration * (cosine**2 - 1)) * weights
    polynomials = np.moveaxis(_even_legendre(cosine.ravel()).reshape(_N_LEGENDRE, *cosine.shape),
                              0, -1)  # fmt: skip
    norm = density.sum(axis=1, keepdims=True)
    mean = np.einsum("nk,nkl->nl", density, polynomials) / norm
    parallel = np.asarray(dispersion) == 0
    mean[parallel] = 1
    if not slopes:
        return mean, None
    square = cosine**2
    mean_square = (density * square).sum(axis=1, keepdims=True) / norm
    by_concentration = (
        np.einsum("nk,nkl->nl", density * square, polynomials) / norm - mean * mean_square
    )
    slope = by_concentration * (-np.pi / 2 / np.sin(np.pi / 2 * odi) ** 2)
    slope[parallel] = 0
    return mean, slope


def tissue_model(
    acquisition: Acquisition,
    tables: dict[str, SignalTable],
    diffusivity: float,
    free_diffusivity: float,
) -> TissueModel:
    """Prepare an acquisition.

    Parameters
    ----------
    acquisition : Acquisition
    tables : dict of SignalTable
        "cylinder" and "sphere", for the acquisition's timings, largest q and diffusivity.
    diffusivity, free_diffusivity : float
        Of tissue and of free water, um^2/ms.
    """
    table = next(iter(tables.values()))
    pulses = np.stack([acquisition.small_delta, acquisition.big_delta], axis=1)
    timing = (np.abs(pulses[:, None] - table.timings).max(axis=2)).argmin(axis=1)
    q = acquisition.q
    step = 10.0**-_Q_DECIMALS
    rounded = np.where(q > 0, np.exp(np.round(np.log(np.maximum(q, 1e-9)) / step) * step), 0)
    keys, shells = np.unique(np.stack([timing, rounded], axis=1), axis=0, return_inverse=True)
    shell_timing = keys[:, 0].astype(int)
    shell_q = np.minimum(keys[:, 1], table.q_max[shell_timing])
    x = _half_range_nodes(_N_COSINES)[0]
    across = shell_q[:, None] * np.sqrt(1 - x**2)
    decay = (table.timings[:, 1] - table.timings[:, 0] / 3)[shell_timing]
    axial = -diffusivity * (decay * shell_q**2)[:, None] * x**2
    q_weights = {}
    for shape, each in tables.items():
        at = (np.repeat(shell_timing, _N_COSINES), across.ravel())
        at = at if shape == "cylinder" else (shell_timing, shell_q)
        q_weights[shape] = np.ascontiguousarray(each.q_interpolation(*at).T)
    return TissueModel(
        directions=acquisition.directions,
        shells=shells.ravel(),
        tables=tables,
        q_weights=q_weights,
        axial=axial.ravel(),
        free=np.exp(-np.where(acquisition.b0_mask, 0, acquisition.b) * free_diffusivity),
        shell_timing=shell_timing,
        shell_q=shell_q,
        diffusivity=diffusivity,
    )
