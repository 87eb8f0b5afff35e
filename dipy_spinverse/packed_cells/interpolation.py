"""Interpolation of the emulator of packed cells, for one acquisition.

The emulator takes some microseconds for each signal of any pulses. A fit needs all signals of one
acquisition again and again. So tissues are scattered over the prior, their signals emulated once,
and interpolated by multiquadrics [1]_: from five coordinates of a tissue to the Legendre
coefficients of its signals on every shell.

References
----------
.. [1] Hardy, J. Geophys. Res. 76 (1971), https://doi.org/10.1029/JB076i008p01905
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.linalg import eigh, solve
from scipy.special import gammaincinv, ndtr
from scipy.stats import qmc

from dipy_spinverse.bloch_torrey.analytic import DIMENSIONS
from dipy_spinverse.packed_cells.emulator import RANGES, Encodings, emulated_signals
from dipy_spinverse.packed_cells.orientations import even_legendre
from dipy_spinverse.packed_cells.shells import Shells
from dipy_spinverse.packed_cells.waveform_correction import waveform_correction

# Diffusivities, um^2/ms: from fixed tissue in the cold to free water at body temperature.
DIFFUSIVITY_RANGE = (0.15, 3.2)
RATIO_RANGE = (0.4, 2.0)  # diffusivity inside over that outside
# More values of q of one timing than this are interpolated from so many, by splines of the
# logarithm, which is limited to that of the least signal.
_MAX_Q = 12
_LEAST_SIGNAL = 1e-4
# Number of emulated signals, which determines that of the tissues within these limits.
_N_SIGNALS, _N_TISSUES = 1_000_000, (3000, 10_000)
_HELD_OUT = 0.1  # fraction of the tissues that the error is estimated from
# Principal components of the coefficients that are interpolated.
_N_COMPONENTS = 28
# Number of multiquadrics, and how fast signals change with the logarithm of the radius, fraction,
# logarithms of permeability and of the diffusivities inside and outside, over half their ranges:
# of several tried, those of the least error (benchmarks/results/emulator.md has the error). The
# ridge is relative to the number of tissues.
_N_CENTRES = 1500
_RATES = np.array([3.0, 0.95, 1.6, 0.85, 1.05])
_RIDGE = 1e-10
_TISSUES_AT_ONCE = 64
LARGEST_SPREAD = 1.0  # standard deviation of the radii over their mean
_LEAST_SPREAD = 0.02  # narrower distributions are treated as a single radius
_RADIUS_RANGE = 0.05, 100.0  # um
# Four radii differ from sixteen by 0.05 % of S0, rms over the prior (benchmarks/notes/tissue.md).
_RADIUS_NODES, _RADIUS_WEIGHTS = np.polynomial.hermite_e.hermegauss(4)
_RADIUS_WEIGHTS = _RADIUS_WEIGHTS / _RADIUS_WEIGHTS.sum()
_STEP = 1e-3  # of coordinates, for numerical derivatives of emulated signals


@dataclass(frozen=True, eq=False)
class InterpolatedSignals:
    """Legendre coefficients of the signals of one shape on the S shells of an acquisition.

    Coordinates of a tissue are the logarithm of the radius, the fraction, and the logarithms of
    permeability and of the diffusivities inside and outside; less `centre`, times `scale`, they
    are compared with the nodes (C, 5) of the multiquadrics. `weights` (C, K) are those of the
    principal components, `basis` (K, S * L) and `mean` turn components into coefficients, of
    which shell s has degrees[s], others are 0.
    `error` (S,) is the root mean square of held-out tissues, relative to b = 0.
    """

    centre: np.ndarray
    scale: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray
    basis: np.ndarray
    mean: np.ndarray
    degrees: np.ndarray
    error: np.ndarray

    def __call__(self, coordinates: np.ndarray, tangents: Sequence[np.ndarray] = ()) -> np.ndarray:
        """Coefficients (N, 1 + Q, S, L) at coordinates (N, 5), and derivatives.

        Derivatives are by Q parameters, by which those of the coordinates are `tangents`
        (Q, N, 5).
        """
        scaled = (coordinates - self.centre) * self.scale
        values = _multiquadrics(scaled, self.nodes)
        components = (values @ self.weights)[:, None]
        if len(tangents):
            sums = (1 / values) @ self._slope_weights
            sums = sums.reshape(len(scaled), 6, -1)
            slopes = scaled[:, :, None] * sums[:, :1] - sums[:, 1:]
            scaled_tangents = np.swapaxes(tangents, 0, 1) * self.scale
            components = np.concatenate([components, scaled_tangents @ slopes], axis=1)
        result = components.reshape(-1, len(self.basis)) @ self.basis
        result = result.reshape(len(scaled), -1, len(self.mean))
        result[:, 0] += self.mean
        return result.reshape(*result.shape[:2], len(self.degrees), -1)

    @cached_property
    def _slope_weights(self):
        """Weights (C, 6 * K), and multiplied by each coordinate of the nodes."""
        factors = np.concatenate([np.ones((len(self.nodes), 1)), self.nodes], axis=1)
        weights = factors[..., None] * self.weights[:, None]
        return weights.reshape(len(self.nodes), -1)


def _multiquadrics(points, nodes):
    """sqrt(1 + |x - y|^2) (N, C) of points (N, 5) and nodes (C, 5)."""
    ones = np.ones((len(points), 1))
    points = np.concatenate([-2 * points, ones, 1 + (points**2).sum(axis=1)[:, None]], axis=1)
    norms, ones = (nodes**2).sum(axis=1)[:, None], np.ones((len(nodes), 1))
    square = points @ np.concatenate([nodes, norms, ones], axis=1).T
    return np.sqrt(np.maximum(square, 1, out=square), out=square)


def interpolated_signals(
    shape: str, shells: Shells, diffusivity: tuple[float, float] | None, radius_spread: float
) -> InterpolatedSignals:
    """Emulated and interpolated signals of a shape: some seconds, kept in memory."""
    key = _shell_encodings(shape, shells).tobytes()
    return _interpolated(shape, key, shells.spectra, diffusivity, radius_spread)


def _shell_encodings(shape, shells):
    """q, delta, Delta and shape of b-tensors; signals of spheres do not depend on the last."""
    anisotropy = shells.b_anisotropy if shape == "cylinder" else np.ones(len(shells))
    return np.stack([shells.q, shells.small_delta, shells.big_delta, anisotropy])


@lru_cache(maxsize=16)
def _interpolated(shape, key, spectra, diffusivity, spread):
    emulated = _emulated(shape, np.frombuffer(key).reshape(4, -1), spectra, diffusivity, spread)
    n_encodings = sum(len(group.encodings.q_across) for group in emulated.groups)
    n_tissues = int(np.clip(_N_SIGNALS // n_encodings, *_N_TISSUES))
    coordinates = _scattered(shape, n_tissues, diffusivity)
    return _fitted(coordinates, emulated.coefficients(coordinates), emulated.degrees)


def _scattered(shape, n, diffusivity):
    """Coordinates (n, 5) over the prior, denser at its edges, where interpolation is worst."""
    u = qmc.Sobol(5, seed=0).random(2 ** int(np.ceil(np.log2(n))))[:n]
    u = (1 - np.cos(np.pi * u)) / 2
    limits = np.log(RANGES["radius"]), RANGES["fraction"][shape], np.log(RANGES["permeability"])
    low, high = np.array(limits).T
    coordinates = np.empty((n, 5))
    coordinates[:, :3] = low + (high - low) * u[:, :3]
    if diffusivity is not None:
        coordinates[:, 3:] = np.log(diffusivity)
        return coordinates
    outside, ratio = np.log(DIFFUSIVITY_RANGE), np.log(RATIO_RANGE)
    coordinates[:, 4] = outside[0] + (outside[1] - outside[0]) * u[:, 4]
    inside = coordinates[:, 4] + ratio[0] + (ratio[1] - ratio[0]) * u[:, 3]
    coordinates[:, 3] = np.clip(inside, *outside)
    return coordinates


class _EncodingGroup(NamedTuple):
    """Encodings of a shell at nodes of the cosine, or of a timing at some values of q.

    `correction` is that of waveforms, a function of tissues; `interpolation` (n, Q) leads from
    values of q to the shells `rows`, `projection` (X, L) from signals at nodes to coefficients.
    """

    encodings: Encodings
    correction: Callable[[np.ndarray], np.ndarray] | None
    interpolation: np.ndarray | None
    rows: Sequence[int] | np.ndarray
    projection: np.ndarray


@dataclass(frozen=True, eq=False)
class EmulatedSignals:
    """As `InterpolatedSignals`, from the emulator itself: for a few tissues.

    Derivatives are those of `interpolated` signals, or numerical without these.
    """

    shape: str
    groups: list[_EncodingGroup]
    degrees: np.ndarray
    radius_spread: float
    interpolated: Callable[..., np.ndarray] | None = None

    def __call__(self, coordinates: np.ndarray, tangents: Sequence[np.ndarray] = ()) -> np.ndarray:
        """Coefficients and derivatives as of `InterpolatedSignals`."""
        coefficients = self.coefficients(coordinates)
        if self.interpolated is not None and len(tangents):
            slopes = self.interpolated(coordinates, tangents)[:, 1:]
            return np.concatenate([coefficients[:, None], slopes], axis=1)
        differences = (
            (self.coefficients(coordinates + _STEP * tangent) - coefficients) / _STEP
            for tangent in tangents
        )
        return np.stack([coefficients, *differences], axis=1)

    def coefficients(self, coordinates):
        """Coefficients (N, S, L) of tissues at coordinates (N, 5)."""
        result = np.zeros((len(coordinates), len(self.degrees), self.degrees.max()))
        result[..., 0] = 1.0
        tissue = np.exp(coordinates)
        tissue[:, 1] = coordinates[:, 1]
        for start in range(0, len(tissue) if self.groups else 0, _TISSUES_AT_ONCE):
            rows = slice(start, start + _TISSUES_AT_ONCE)
            self._write_coefficients(tissue[rows], result[rows])
        return result

    def _write_coefficients(self, tissue, result):
        encodings = Encodings(
            *map(np.concatenate, zip(*(group.encodings for group in self.groups), strict=True))
        )
        average = 0.0
        for weight, radius in radius_quadrature(self.shape, tissue[:, 0], self.radius_spread):
            equal_cells = np.column_stack([radius, tissue[:, 1:]])
            average = average + weight * self._signals(equal_cells, encodings)
        boundaries = np.cumsum([len(group.encodings.q_across) for group in self.groups])[:-1]
        for group, signals in zip(self.groups, np.split(average, boundaries, axis=1), strict=True):
            n = len(group.projection)
            signals = signals.reshape(len(tissue), -1, n)
            if group.interpolation is not None:
                logs = np.log(np.maximum(signals, _LEAST_SIGNAL))
                logs = np.einsum("rk,nkx->nrx", group.interpolation, logs, optimize=True)
                signals = np.exp(logs)
            result[:, group.rows, :n] = signals @ group.projection

    def _signals(self, tissue, encodings):
        """Signals (N, E) of equal cells."""
        signals, start = emulated_signals(self.shape, tissue, encodings), 0
        for group in self.groups:
            stop = start + len(group.encodings.q_across)
            if group.correction is not None:
                signals[:, start:stop] += group.correction(tissue)
            start = stop
        return signals


def emulated_shell_signals(
    shape: str, shells: Shells, diffusivity: tuple[float, float] | None, radius_spread: float = 0.0
) -> EmulatedSignals:
    """Signals of a shape without preparation; see :func:`interpolated_signals`."""
    encodings = _shell_encodings(shape, shells)
    return _emulated(shape, encodings, shells.spectra, diffusivity, radius_spread)


def _emulated(shape, shell_encodings, spectra, diffusivity, radius_spread):
    q, small, big, anisotropy = shell_encodings
    b = q**2 * (big - small / 3) * np.abs(anisotropy)
    fastest = max(diffusivity) if diffusivity else DIFFUSIVITY_RANGE[1]
    degrees = np.ones(len(q), dtype=int)
    if shape == "cylinder":
        # Then exp(-b D cos^2) is exact to 0.0005.
        degrees = np.ceil(3 + 2.3 * np.sqrt(b * fastest)).astype(int)
    groups = []
    kinds = np.stack([small, big, anisotropy, [spectra.index(s) for s in spectra]])
    for kind in np.unique(kinds, axis=1).T:
        rows = np.flatnonzero((kinds == kind[:, None]).all(axis=0) & (q > 0))
        if not len(rows):
            continue
        spectrum = spectra[rows[0]]
        if len(rows) <= _MAX_Q:
            for row in rows:
                x, projection = _cosines(shape, degrees[row])
                encodings = _encodings(shape, q[[row]], x, kind, spectrum)
                groups.append(_EncodingGroup(*encodings, None, [row], projection))
            continue
        # Closer at small q, where the curvature of the logarithm of the signal is largest.
        knots = q[rows].max() * np.linspace(0, 1, _MAX_Q + 1) ** 1.5
        spline = CubicSpline(knots, np.eye(len(knots)), bc_type=("clamped", "not-a-knot"))
        x, projection = _cosines(shape, degrees[rows].max())
        encodings = _encodings(shape, knots[1:], x, kind, spectrum)
        groups.append(_EncodingGroup(*encodings, spline(q[rows])[:, 1:], rows, projection))
    return EmulatedSignals(shape, groups, degrees, radius_spread)


def radius_quadrature(
    shape: str, radius: np.ndarray, spread: float
) -> list[tuple[float, np.ndarray]]:
    """Weights, as fractions of the volume, and radii (N,) of cells.

    Where n(r) ~ r^(k-1) exp(-r / s) in d dimensions, the volume has a gamma distribution of shape
    k + d, and surface over volume is d / ((k + d - 1) s): that of equal cells of `radius` (N,).
    The spread is the standard deviation of the radii over their mean.
    """
    if spread < _LEAST_SPREAD:
        return [(1.0, radius)]
    dimension, k = DIMENSIONS[shape], 1 / spread**2
    relative = gammaincinv(k + dimension, ndtr(_RADIUS_NODES)) / (k + dimension - 1)
    return [
        (weight, np.clip(factor * radius, *_RADIUS_RANGE))
        for weight, factor in zip(_RADIUS_WEIGHTS.tolist(), relative, strict=True)
    ]


def _cosines(shape, n):
    """Cosines (X,) from whose signals a matrix (X, n) gives n even Legendre coefficients.

    The polynomials are orthogonal on half of the Gauss-Legendre nodes.
    """
    if shape == "sphere":
        return np.zeros(1), np.ones((1, 1))
    x, w = np.polynomial.legendre.leggauss(2 * n)
    x, w = x[n:], w[n:]
    return x, even_legendre(x, n) * (4 * np.arange(n) + 1) * w[:, None]


def _encodings(shape, q, x, kind, spectrum):
    """Encodings of each q at cosines x between the axes of cylinders and waveform, and the
    correction of the waveform."""
    small, big, anisotropy, _ = kind
    along, flat = (1 + 2 * anisotropy) / 3, (1 - anisotropy) / 3
    q_across = np.outer(q, np.sqrt(flat * (1 + x**2) + along * (1 - x**2))).ravel()
    axial = np.outer(q, np.sqrt(flat * (1 - x**2) + along * x**2)).ravel()
    encodings = Encodings(q_across, axial, *(np.full(len(q_across), t) for t in (small, big)))
    if spectrum is None:
        return encodings, None
    b = np.repeat(q**2 * (big - small / 3), len(x))
    return encodings, partial(
        waveform_correction, shape, spectrum=spectrum, pulses=(float(small), float(big)), b=b,
        square=np.tile(x**2, len(q)),
    )  # fmt: skip


def _fitted(coordinates, coefficients, degrees):
    """Ridge regression of the principal components of coefficients (N, S, L)."""
    n, n_shells, n_degrees = coefficients.shape
    # In these units a square is the mean square of the signal over directions.
    norm = np.tile(np.sqrt(4 * np.arange(n_degrees) + 1), n_shells)
    values = coefficients.reshape(n, -1) / norm
    mean = values.mean(axis=0)
    values = values - mean
    basis = _principal_components(values)
    half_range = np.maximum(np.ptp(coordinates, axis=0) / 2, 1e-9)
    centre = (coordinates.max(axis=0) + coordinates.min(axis=0)) / 2
    # Known diffusivities do not vary.
    scale = np.where(half_range > 1e-8, _RATES / half_range, 0.0)
    # The last points of a Sobol sequence cover the range as all of it do.
    n_fitted = n - int(_HELD_OUT * n)
    scaled = (coordinates - centre) * scale
    nodes = scaled[:_N_CENTRES]
    design = _multiquadrics(scaled, nodes)
    normal = design[:n_fitted].T @ design[:n_fitted]
    normal[np.diag_indices_from(normal)] += _RIDGE * n_fitted
    right_side = design[:n_fitted].T @ (values[:n_fitted] @ basis)
    weights = solve(normal, right_side, assume_a="pos")
    error = design[n_fitted:] @ weights @ basis.T - values[n_fitted:]
    error = (error**2).reshape(-1, n_shells, n_degrees).sum(axis=2)
    return InterpolatedSignals(
        centre, scale, nodes, weights, basis.T * norm, mean * norm, degrees,
        np.sqrt(error.mean(axis=0)),
    )  # fmt: skip


def _principal_components(values):
    """Principal components (P, K) of values (N, P), of the first 2000 rows where P is larger."""
    n, p = values.shape
    k = min(_N_COMPONENTS, n, p)
    rows = values[:2000]
    if p <= len(rows):
        return eigh(values.T @ values, subset_by_index=[p - k, p - 1])[1]
    vectors = eigh(rows @ rows.T, subset_by_index=[len(rows) - k, len(rows) - 1])[1]
    return np.linalg.qr(rows.T @ vectors)[0]
