"""The emulator of packed cells, compiled for one acquisition.

The emulator answers for any pulses, some microseconds for each signal. A fit asks for all signals
of one acquisition, again and again. So tissues are scattered over the prior, their signals
emulated once, and interpolated by multiquadrics [1]_: from five numbers of a tissue to the
Legendre coefficients of its signals on every shell.

References
----------
.. [1] Hardy, J. Geophys. Res. 76 (1971), https://doi.org/10.1029/JB076i008p01905
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.linalg import eigh, solve
from scipy.stats import qmc

from dipy_spinverse.packed_cells.emulator import RANGES, Encodings, emulated_signals
from dipy_spinverse.packed_cells.orientations import even_legendre
from dipy_spinverse.packed_cells.radius_distribution import radius_quadrature
from dipy_spinverse.packed_cells.shells import Shells
from dipy_spinverse.packed_cells.waveform_correction import waveform_correction

# Diffusivities that are known, um^2/ms: of fixed tissue in the cold, to free water.
DIFFUSIVITY_RANGE = (0.15, 3.2)
# Inside over outside, likewise.
RATIO_RANGE = (0.4, 2.0)
# More values of q of one timing than this are interpolated between so many.
_MOST_Q = 12
# Of the logarithm that is interpolated.
_LEAST_SIGNAL = 1e-4
# Emulated signals, and the least and most tissues.
_N_SIGNALS, _N_TISSUES = 1_000_000, (3000, 10_000)
_HELD_OUT = 0.1
# Principal components of the coefficients that are interpolated.
_COMPONENTS = 28
# Tissues that multiquadrics are centred on, and how fast the signal changes with logarithm of the
# radius, fraction, logarithms of permeability and of either diffusivity, over half their ranges:
# of several tried, those of least error. Ridge relative to the number of tissues.
_CENTRES = 1500
_RATES = np.array([3.0, 0.95, 1.6, 0.85, 1.05])
_RIDGE = 1e-10
# Tissues that are emulated at once.
_AT_ONCE = 64
# Of coordinates, for slopes of what is not compiled.
_STEP = 1e-3


@dataclass(frozen=True, eq=False)
class InterpolatedSignals:
    """Legendre coefficients of the signals of one shape on the shells of an acquisition.

    Attributes
    ----------
    shape : {"cylinder", "sphere"}
    centre, scale : ndarray (5,)
        Of a tissue's coordinates: logarithm of the radius, fraction, logarithms of permeability
        and of the diffusivities inside and outside.
    places : ndarray (C, 5)
        Of the multiquadrics, scaled.
    weights : ndarray (C, 6, K)
        Of the components, and times the places.
    basis : ndarray (K, S * L)
    mean : ndarray (S * L,)
    degrees : ndarray (S,) of int
        Coefficients that each shell has; the others, up to L, are 0.
    error : ndarray (S,)
        Root mean square error of the signals of each shell at tissues held out, relative to b = 0.
    """

    shape: str
    centre: np.ndarray
    scale: np.ndarray
    places: np.ndarray
    weights: np.ndarray
    basis: np.ndarray
    mean: np.ndarray
    degrees: np.ndarray
    error: np.ndarray

    def __call__(self, coordinates: np.ndarray, changes: Sequence[np.ndarray] = ()) -> np.ndarray:
        """Coefficients (N, 1 + Q, S, L) at coordinates (N, 5), and derivatives.

        These are by Q parameters, with which the coordinates change as `changes` (Q, N, 5) say.
        """
        at = (coordinates - self.centre) * self.scale
        value = _multiquadrics(at, self.places)
        components = (value @ self.weights[:, 0])[:, None]
        if len(changes):
            parts = (1 / value) @ self.weights.reshape(len(self.places), -1)
            parts = parts.reshape(len(at), 6, -1)
            slopes = at[:, :, None] * parts[:, :1] - parts[:, 1:]
            by = np.swapaxes(changes, 0, 1) * self.scale
            components = np.concatenate([components, by @ slopes], axis=1)
        found = components.reshape(-1, len(self.basis)) @ self.basis
        found = found.reshape(len(at), -1, len(self.mean))
        found[:, 0] += self.mean
        return found.reshape(*found.shape[:2], len(self.degrees), -1)


def _multiquadrics(at, places):
    """(N, C) of places (N, 5) and (C, 5)."""
    square = (at**2).sum(axis=1)[:, None] + (1 + (places**2).sum(axis=1)) - 2 * at @ places.T
    return np.sqrt(np.maximum(square, 1))


def interpolated_signals(
    shape: str, shells: Shells, diffusivity: tuple[float, float] | None, radius_spread: float = 0.0
) -> InterpolatedSignals:
    """Emulate and interpolate the signals of a shape: some seconds, kept in memory.

    Parameters
    ----------
    shape : {"cylinder", "sphere"}
    shells : Shells
    diffusivity : (inside, outside) or None
        um^2/ms, where known.
    radius_spread : float, optional
        Standard deviation of the cells' radii over their mean.
    """
    key = _encoded(shape, shells).tobytes()
    return _compiled(shape, key, shells.spectra, diffusivity, radius_spread)


def _encoded(shape, shells):
    """q, delta, Delta and shape of b-tensors; spheres know no direction."""
    anisotropy = shells.b_anisotropy if shape == "cylinder" else np.ones(len(shells))
    return np.stack([shells.q, shells.small_delta, shells.big_delta, anisotropy])


@lru_cache(maxsize=16)
def _compiled(shape, key, spectra, diffusivity, spread):
    plan = _Plan.of(shape, np.frombuffer(key).reshape(4, -1), spectra, diffusivity, spread)
    n_tissues = int(np.clip(_N_SIGNALS // plan.n_encodings, *_N_TISSUES))
    coordinates = _scattered(shape, n_tissues, diffusivity)
    coefficients = plan.coefficients(coordinates)
    return _interpolated(plan, coordinates, coefficients)


def emulator_inputs(coordinates: np.ndarray) -> np.ndarray:
    """Tissues (N, 5) in units, as the emulator takes them, of coordinates."""
    tissue = np.exp(coordinates)
    tissue[:, 1] = coordinates[:, 1]
    return tissue


def _scattered(shape, n, diffusivity):
    """Coordinates (n, 5) over the prior, denser at its edges, where interpolation is worst."""
    u = qmc.Sobol(5, seed=0).random(2 ** int(np.ceil(np.log2(n))))[:n]
    u = (1 - np.cos(np.pi * u)) / 2
    low = [*np.log(RANGES["radius"]), *RANGES["fraction"][shape], *np.log(RANGES["permeability"])]
    low, width = np.array(low[::2]), np.diff(np.reshape(low, (3, 2)), axis=1)[:, 0]
    found = np.empty((n, 5))
    found[:, :3] = low + width * u[:, :3]
    if diffusivity is not None:
        found[:, 3:] = np.log(diffusivity)
        return found
    outside, ratio = np.log(DIFFUSIVITY_RANGE), np.log(RATIO_RANGE)
    found[:, 4] = outside[0] + (outside[1] - outside[0]) * u[:, 4]
    inside = found[:, 4] + ratio[0] + (ratio[1] - ratio[0]) * u[:, 3]
    found[:, 3] = np.clip(inside, *outside)
    return found


class _Group(NamedTuple):
    """Encodings of a shell, at nodes of the cosine, or of a timing, at some values of q.

    Attributes
    ----------
    encodings : Encodings
    departure : callable or None
        Of tissues: what waveforms have beyond the pulses.
    interpolation : ndarray (n, Q) or None
        Weights of the shells over these values of q.
    rows : sequence of int (n,)
        The shells.
    projection : ndarray (X, L)
        From signals at the nodes to coefficients.
    """

    encodings: Encodings
    departure: Callable[[np.ndarray], np.ndarray] | None
    interpolation: np.ndarray | None
    rows: Sequence[int] | np.ndarray
    projection: np.ndarray


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which encodings are emulated, and how coefficients follow from their signals."""

    shape: str
    groups: list[_Group]
    degrees: np.ndarray
    radius_spread: float

    @classmethod
    def of(cls, shape, encoded, spectra, diffusivity, radius_spread):
        q, small, big, anisotropy = encoded
        b = q**2 * (big - small / 3) * np.abs(anisotropy)
        fastest = max(diffusivity) if diffusivity else DIFFUSIVITY_RANGE[1]
        degrees = np.ones(len(q), dtype=int)
        if shape == "cylinder":
            # Then exp(-b D cos^2) is exact to 0.0005.
            degrees = np.ceil(3 + 2.3 * np.sqrt(b * fastest)).astype(int)
        groups = []
        kinds = np.stack([small, big, anisotropy, [spectra.index(each) for each in spectra]])
        for kind in np.unique(kinds, axis=1).T:
            rows = np.flatnonzero((kinds == kind[:, None]).all(axis=0) & (q > 0))
            if not len(rows):
                continue
            spectrum = spectra[rows[0]]
            if len(rows) <= _MOST_Q:
                nodes = [_cosines(shape, degrees[r]) for r in rows]
                groups += [
                    _Group(*_encodings(shape, q[[r]], x, kind, spectrum), None, [r], projection)
                    for r, (x, projection) in zip(rows, nodes, strict=True)
                ]
                continue
            # Closer at small q, where the logarithm of the signal bends.
            known = q[rows].max() * np.linspace(0, 1, _MOST_Q + 1) ** 1.5
            spline = CubicSpline(known, np.eye(len(known)), bc_type=("clamped", "not-a-knot"))
            x, projection = _cosines(shape, degrees[rows].max())
            encoded = _encodings(shape, known[1:], x, kind, spectrum)
            groups.append(_Group(*encoded, spline(q[rows])[:, 1:], rows, projection))
        return cls(shape, groups, degrees, radius_spread)

    @property
    def n_encodings(self):
        return sum(len(group.encodings.q_across) for group in self.groups)

    def coefficients(self, coordinates):
        """(N, S, L)."""
        result = np.zeros((len(coordinates), len(self.degrees), self.degrees.max()))
        result[..., 0] = 1.0
        tissue = emulator_inputs(coordinates)
        for first in range(0, len(tissue), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            self._add_coefficients(tissue[part], result[part])
        return result

    def _add_coefficients(self, tissue, result):
        if not self.groups:
            return
        every = Encodings(
            *map(np.concatenate, zip(*(group.encodings for group in self.groups), strict=True))
        )
        averaged = 0.0
        for share, radius in radius_quadrature(self.shape, tissue[:, 0], self.radius_spread):
            averaged = averaged + share * self._signals(
                np.column_stack([radius, tissue[:, 1:]]), every
            )
        ends = np.cumsum([len(group.encodings.q_across) for group in self.groups])[:-1]
        parts = np.split(averaged, ends, axis=1)
        for group, signals in zip(self.groups, parts, strict=True):
            _, _, interpolation, rows, projection = group
            n = len(projection)
            signals = signals.reshape(len(tissue), -1, n)
            if interpolation is not None:
                logs = np.log(np.maximum(signals, _LEAST_SIGNAL))
                signals = np.exp(np.einsum("rk,nkx->nrx", interpolation, logs, optimize=True))
            result[:, rows, :n] = signals @ projection

    def _signals(self, tissue, every):
        """Signals (N, E) of cells of one radius."""
        emulated, first = emulated_signals(self.shape, tissue, every), 0
        for group in self.groups:
            last = first + len(group.encodings.q_across)
            if group.departure is not None:
                emulated[:, first:last] += group.departure(tissue)
            first = last
        return emulated


@dataclass(frozen=True, eq=False)
class EmulatedSignals:
    """As `InterpolatedSignals`, straight from the emulator: for a few tissues.

    Attributes
    ----------
    plan : _Plan
    compiled : InterpolatedSignals, optional
        For derivatives; differences of emulated signals where not given.
    """

    plan: _Plan
    compiled: InterpolatedSignals | None = None

    @property
    def degrees(self) -> np.ndarray:
        """(S,): coefficients that each shell has."""
        return self.plan.degrees

    def __call__(self, coordinates: np.ndarray, changes: Sequence[np.ndarray] = ()) -> np.ndarray:
        """Coefficients and derivatives as of `InterpolatedSignals`."""
        found = [self.plan.coefficients(coordinates)]
        if self.compiled is not None and len(changes):
            slopes = self.compiled(coordinates, changes)[:, 1:]
            return np.concatenate([found[0][:, None], slopes], axis=1)
        for change in changes:
            ahead = self.plan.coefficients(coordinates + _STEP * change)
            found.append((ahead - found[0]) / _STEP)
        return np.stack(found, axis=1)


def emulated_shell_signals(
    shape: str,
    shells: Shells,
    diffusivity: tuple[float, float] | None,
    radius_spread: float = 0.0,
    compiled: InterpolatedSignals | None = None,
) -> EmulatedSignals:
    """Signals of a shape without preparation; see :func:`interpolated_signals`."""
    encoded = _encoded(shape, shells)
    plan = _Plan.of(shape, encoded, shells.spectra, diffusivity, radius_spread)
    return EmulatedSignals(plan, compiled)


def _cosines(shape, n):
    """Cosines (X,) at which signals give n even Legendre coefficients, by a matrix (X, n).

    Half of the nodes of Gauss make the polynomials orthogonal.
    """
    if shape == "sphere":
        return np.zeros(1), np.ones((1, 1))
    x, w = np.polynomial.legendre.leggauss(2 * n)
    x, w = x[n:], w[n:]
    return x, even_legendre(x, n) * (4 * np.arange(n) + 1) * w[:, None]


def _encodings(shape, q, x, kind, spectrum):
    """Encodings of each q at cosines x between the axes of cylinders and waveform.

    And what the signals of the waveform have beyond these.
    """
    small, big, anisotropy, _ = kind
    along, flat = (1 + 2 * anisotropy) / 3, (1 - anisotropy) / 3
    across = np.outer(q, np.sqrt(flat * (1 + x**2) + along * (1 - x**2))).ravel()
    axial = np.outer(q, np.sqrt(flat * (1 - x**2) + along * x**2)).ravel()
    encodings = Encodings(across, axial, *(np.full(len(across), t) for t in (small, big)))
    if spectrum is None:
        return encodings, None
    b = np.repeat(q**2 * (big - small / 3), len(x))
    return encodings, partial(
        waveform_correction, shape, spectrum=spectrum, pulses=(float(small), float(big)), b=b,
        square=np.tile(x**2, len(q)),
    )  # fmt: skip


def _interpolated(plan, coordinates, coefficients):
    n, n_shells, n_degrees = coefficients.shape
    # In these units a square is the mean square of the signal over directions.
    norm = np.tile(np.sqrt(4 * np.arange(n_degrees) + 1), n_shells)
    values = coefficients.reshape(n, -1) / norm
    mean = values.mean(axis=0)
    values = values - mean
    basis = _principal(values)
    half = np.maximum(np.ptp(coordinates, axis=0) / 2, 1e-9)
    centre = (coordinates.max(axis=0) + coordinates.min(axis=0)) / 2
    # What does not vary is no coordinate.
    scale = np.where(half > 1e-8, _RATES / half, 0.0)
    # The last of a Sobol sequence are spread as all of it.
    held_out = int(_HELD_OUT * n)
    at = (coordinates - centre) * scale
    places = at[:_CENTRES]
    design = _multiquadrics(at, places).astype(float)
    known = design[:-held_out]
    normal = known.T @ known
    normal[np.diag_indices_from(normal)] += _RIDGE * len(known)
    weights = solve(normal, known.T @ (values[:-held_out] @ basis), assume_a="pos")
    error = design[-held_out:] @ weights @ basis.T - values[-held_out:]
    error = (error**2).reshape(held_out, n_shells, n_degrees).sum(axis=2)
    both = np.concatenate([np.ones((len(places), 1)), places], axis=1)[..., None]
    return InterpolatedSignals(
        plan.shape,
        centre,
        scale,
        places,
        (both * weights[:, None]),
        (basis.T * norm),
        (mean * norm),
        plan.degrees,
        np.sqrt(error.mean(axis=0)),
    )


def _principal(values):
    """Principal components (P, K) of values (N, P)."""
    n, p = values.shape
    k = min(_COMPONENTS, n, p)
    few = values[: min(n, 2000)]
    if p <= len(few):
        return eigh(values.T @ values, subset_by_index=[p - k, p - 1])[1]
    rows = eigh(few @ few.T, subset_by_index=[len(few) - k, len(few) - 1])[1]
    return np.linalg.qr(few.T @ rows)[0]
